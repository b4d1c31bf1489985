"""Rebalance on real folders: about a new device's share moves and no more, and whatever is killed meanwhile, nothing is lost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorkeep
from tensorkeep.cli.main import main
from tensorkeep.records.naming import ObjectKind
from tests.faults.store_world import (
    GIB,
    MIB,
    MODEL,
    Hooks,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    usable,
)

Arrays = dict[str, np.ndarray[Any, Any]]


def many(seed: int = 0) -> Arrays:
    """Return arrays of 48 MB in 60 parts and a few packs."""
    chance = np.random.default_rng(seed)
    found: Arrays = {f"layers.{n}.w": chance.standard_normal((400, 500 + n % 7), np.float32) for n in range(60)}
    return found | {f"layers.{n}.b": chance.standard_normal(300, np.float32) for n in range(60)}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with one copy of a model on three devices, and a fourth that is empty."""
    world = World(tmp_path, replicas=1)
    store = world.create()
    store.push(many(), MODEL, part_size=MIB, tag="v0")
    world.devices = 4
    store.devices.add("d3", str(world.place("d3")), bandwidth=GIB)
    return world


def test_a_fourth_equal_device_gets_a_quarter_and_no_more_moves(world: World) -> None:
    store = world.open()
    planned = store.rebalance(dry_run=True)
    report = store.rebalance()
    total = sum(report.before.values())
    assert report.moved_bytes / total == pytest.approx(0.25, abs=0.03)
    assert (report.moved, report.moved_bytes, report.after) == (planned.moved, planned.moved_bytes, planned.after)
    assert (report.trimmed, report.failed) == (0, ())
    assert sum(report.after.values()) == total
    for size in report.after.values():
        assert size / total == pytest.approx(0.25, abs=0.03)
    store.gc(grace_s=0, max_fraction=None)
    assert_loads(store, f"{MODEL}@v0", many())
    assert_clean(store)
    assert_no_orphans(world, store)
    assert store.status().ok
    again = store.rebalance()
    assert (again.moved, again.trimmed) == (0, 0)


def test_layers_stay_spread(world: World) -> None:
    store = world.open()
    rows = store._context.catalog.locate_all(after=0, limit=9999)
    layers = [row.key for row in rows if row.key.kind is ObjectKind.PART and row.length > MIB // 2]
    assert len(layers) == 60
    store.rebalance()
    on_d3 = next(d.facts.id for d in store.devices.list() if d.facts.name == "d3")
    held = usable(store)
    moved = [held[key] == {on_d3} for key in layers]
    assert sum(moved) == pytest.approx(15, abs=2)
    assert all(3 <= sum(moved[start : start + 20]) <= 7 for start in (0, 20, 40))


def test_loads_go_on_while_parts_move(world: World) -> None:
    hooks = Hooks()
    store = world.open(failpoints=hooks)
    loads: list[bool] = []

    def load() -> None:
        assert_loads(world.open(), f"{MODEL}@v0", many())
        loads.append(True)

    hooks.on |= {"rebalance.copied": load, "rebalance.retired": load}
    store.rebalance()
    assert len(loads) >= 4


def test_a_device_killed_midway_loses_nothing_of_two_copies(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=2)
    hooks = Hooks()
    world.create().push(many(), MODEL, part_size=MIB, tag="v0")
    world.devices = 4
    store = world.open(failpoints=hooks)
    store.devices.add("d3", str(world.place("d3")), bandwidth=GIB)
    count = 0

    def kill_the_new_one() -> None:
        nonlocal count
        count += 1
        if count == 2:
            world.unmount("d3")

    hooks.on["rebalance.copied"] = kill_the_new_one
    report = store.rebalance()
    assert report.moved > 0
    fresh = world.open()
    assert_loads(fresh, f"{MODEL}@v0", many())
    fresh.devices.lost("d3")
    assert_loads(fresh, f"{MODEL}@v0", many())
    assert fresh.repair().ok
    assert_clean(fresh)
    assert {len(devices) for devices in usable(fresh).values()} == {2}
    assert_loads(fresh, f"{MODEL}@v0", many())


def test_a_device_killed_midway_loses_nothing_of_one_copy_that_did_not_move(world: World) -> None:
    hooks = Hooks()
    store = world.open(failpoints=hooks)
    hooks.on["rebalance.copied"] = lambda: world.unmount("d3") if world.place("d3").joinpath("parts").exists() else None
    report = store.rebalance()
    # The device went after its copies were confirmed and before the old ones were given up: it can't be reached, so they stay.
    assert report.moved == 0
    fresh = world.open()
    fresh.devices.lost("d3")
    assert_loads(fresh, f"{MODEL}@v0", many())
    assert_clean(fresh)


def test_the_negative_control_counting_what_cannot_be_reached_loses_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = Hooks()
    store = world.open(failpoints=hooks)
    hooks.on["rebalance.copied"] = lambda: world.unmount("d3") if world.place("d3").joinpath("parts").exists() else None
    retire = store._context.catalog.retire
    monkeypatch.setattr(store._context.catalog, "retire", lambda rows, **words: retire(rows, **{**words, "down": ()}))
    assert store.rebalance().moved > 0
    fresh = world.open()
    fresh.gc(grace_s=0, max_fraction=None)
    fresh.devices.lost("d3")
    with pytest.raises(tensorkeep.TensorkeepError):
        fresh.model(f"{MODEL}@v0").load()


def test_fragments_move_and_keep_their_numbers(tmp_path: Path) -> None:
    with tensorkeep.init(tmp_path / "store", ec="2+1") as store:
        for number in range(3):
            store.devices.add(f"d{number}", str(tmp_path / f"d{number}"), bandwidth=GIB, capacity=GIB)
        arrays = {f"w{n}": np.random.default_rng(n).standard_normal((400, 1000 + n), np.float32) for n in range(24)}
        store.push(arrays, MODEL, part_size=2 * MIB, tag="v0")
        store.devices.add("d3", str(tmp_path / "d3"), bandwidth=GIB, capacity=GIB)
        report = store.rebalance()
        total = sum(report.before.values())
        assert report.failed == ()
        assert report.moved_bytes / total == pytest.approx(0.25, abs=0.03)
        store.gc(grace_s=0, max_fraction=None)
        assert store.verify().problems == ()
        assert store.status().ok
        for rows in store._context.catalog.locate(
            [row.key for row in store._context.catalog.locate_all(after=0, limit=9999)]
        ).values():
            numbers = [row.fragment for row in rows if row.fragment is not None]
            assert len(numbers) == len({*numbers}) == len({row.device for row in rows if row.fragment is not None})
        (tmp_path / "d3").rename(tmp_path / "d3 is away")
        loaded = store.model(f"{MODEL}@v0").load()
        assert all(np.array_equal(loaded[name], array) for name, array in arrays.items())


def test_it_keeps_to_a_rate(world: World) -> None:
    store = world.open()
    size = store.rebalance(dry_run=True).moved_bytes
    assert store.rebalance(rate_limit=size).seconds > 0.9


def test_the_command_moves_parts(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--store", str(world.location)]
    assert main([*place, "rebalance", "--dry-run"]) == 0
    assert "would be moved" in capsys.readouterr().out
    assert main([*place, "rebalance", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["moved"] > 0
    assert main([*place, "rebalance"]) == 0
    assert "0 copies" in capsys.readouterr().out
