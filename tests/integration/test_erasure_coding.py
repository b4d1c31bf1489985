"""Stores of ``ec=4+2`` on real folders: what is lost, damaged or added, and what a push, a load and a rebuild make of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from typing_extensions import Buffer

import tensorkeep
from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.devices.forwarding import ForwardingDevice
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Capacity, Integrity, InvalidInput, NotEnoughCopies, Unavailable
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.names import parse_revision
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import ErasureCoded, filled_fragments
from tensorkeep.runtime import Runtime
from tensorkeep.store.fleet import DeviceOpener, open_by_facts
from tensorkeep.store.fragments import object_bytes
from tensorkeep.store.opening import open_store
from tensorkeep.store.revisions import get_version
from tensorkeep.store.store import Store

MIB = 1 << 20
NAMES = [f"d{number}" for number in range(6)]
Arrays = dict[str, npt.NDArray[Any]]


def weights(seed: int = 0) -> Arrays:
    """Return tensors that are parts of their own, one that is several, and small ones that share a pack."""
    chance = np.random.default_rng(seed)
    found: Arrays = {f"layers.{n}.w": chance.standard_normal((512, 1024 + n), np.float32) for n in range(4)}
    found |= {f"layers.{n}.b": chance.standard_normal(700, np.float32) for n in range(4)}
    found["head.w"] = chance.standard_normal((1100, 1024), np.float32)
    return found


def same(found: Mapping[str, Any], wanted: Arrays) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with six devices; its arrays are pushed as ``m``."""
    with tensorkeep.init(tmp_path / "store", ec="4+2") as store:
        for name in NAMES:
            add(store, tmp_path, name)
        store.push(weights(), "m", part_size=2 * MIB)
    return tmp_path


def add(store: Store, folder: Path, name: str) -> None:
    # With a capacity, since of equals the one with more room is first, and what the disk has free changes all the time.
    store.devices.add(name, str(folder / name), bandwidth=1 << 30, capacity=1 << 30)


def lose(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).rename(folder / f"{name} is away")


def bring_back(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"{name} is away").rename(folder / name)


def rows_of(store: Store, model: str = "m") -> dict[ObjectKey, list[Location]]:
    context = store._context
    _, version = get_version(context, parse_revision(model))
    keys = [key for key, _ in context.catalog.version_objects(version.id) if key.kind is ObjectKind.PART]
    return context.catalog.locate(keys)


def fragments_of(store: Store, model: str = "m") -> list[Location]:
    return [row for rows in rows_of(store, model).values() for row in rows if row.fragment is not None]


def path_of(folder: Path, store: Store, row: Location) -> Path:
    return folder / store._context.fleet.names()[row.device] / row.name


def flip(path: Path, at: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 0x20
    path.write_bytes(data)


def test_parts_lie_in_fragments_on_a_device_each_and_small_ones_in_copies(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        for rows in rows_of(store).values():
            assert len({row.device for row in rows}) == len(rows)
            if rows[0].size_bytes >= MIB:
                filled = filled_fragments(ErasureCoded(4, 2), rows[0].size_bytes)
                assert [row.fragment for row in rows] == [*range(filled), 4, 5]
            else:
                assert [row.form for row in rows] == ["raw"] * 3
        for row in fragments_of(store):
            assert path_of(folder, store, row).stat().st_size == object_bytes(row)
        assert store.verify().problems == ()
        assert store.status().short == ()


def test_large_parts_take_half_as_much_again(tmp_path: Path) -> None:
    with tensorkeep.init(tmp_path / "store", ec="4+2") as store:
        for name in NAMES:
            add(store, tmp_path, name)
        array = np.random.default_rng(1).integers(0, 256, 48 * MIB, np.uint8)
        store.push({"w": array}, "m", part_size=16 * MIB)
    stored = sum(path.stat().st_size for name in NAMES for path in (tmp_path / name).rglob("*") if path.is_file())
    assert stored <= 1.51 * array.nbytes


def test_a_push_does_what_its_plan_says(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        arrays = weights(5)
        plan = store.plan(arrays, "other", part_size=2 * MIB, exact=True)
        before = store._context.catalog.locate_all(after=0, limit=1000)[-1].id
        version = store.push(arrays, "other", part_size=2 * MIB)
        rows = [row for found in rows_of(store, "other").values() for row in found if row.id > before]
        counts = Counter(row.device for row in rows)
        sizes: Counter[str] = Counter()
        for row in rows:
            sizes[row.device] += row.length
        ids = {facts.name: facts.id for facts in store._context.catalog.list_devices()}
        for device in plan.devices:
            assert (device.parts, device.bytes) == (counts[ids[device.name]], sizes[ids[device.name]])
        assert version.report is not None
        assert plan.new_parts == version.report.new_parts
        model = store.model("other")
        model.load(mode="read")
        assert model.report is not None
        predicted = {device.name: device.load_bytes for device in plan.devices}
        assert {each.name: each.bytes for each in model.report.devices}.keys() == {n for n, b in predicted.items() if b}


def test_a_healthy_load_maps_data_fragments_and_reads_no_parity(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        model = store.model("m")
        loaded = model.load()
        assert same(loaded, weights())
        assert model.report is not None
        assert model.report.mapped_bytes == model.report.bytes_needed
        assert model.report.damaged == ()
        assert all(array.flags.c_contiguous and array.flags.writeable for array in loaded.values())
        assert same(model.load(mode="read"), weights())
        rows = model["head.w"][500:700]
        assert np.array_equal(rows, weights()["head.w"][500:700])


def test_any_two_devices_may_be_away(folder: Path, tmp_path: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        store.pull("m", tmp_path / "whole")
    wanted = (tmp_path / "whole/model.safetensors").read_bytes()
    for pair in combinations(NAMES, 2):
        lose(folder, *pair)
        with tensorkeep.open(folder / "store") as store:
            for words in ({}, {"mode": "read"}, {"verify": "digest"}, {"verify": "off", "mode": "read"}):
                model = store.model("m")
                assert same(model.load(**words), weights()), (pair, words)  # type: ignore[arg-type]  # as named
                assert model.report is not None
                assert {each.device_name for each in model.report.damaged} <= {*pair}
            assert np.array_equal(model["head.w"][90:1000, 5:9], weights()["head.w"][90:1000, 5:9])
            out = tmp_path / "-".join(pair)
            store.pull("m", out)
        bring_back(folder, *pair)
        assert (out / "model.safetensors").read_bytes() == wanted, pair
    with tensorkeep.open(folder / "store") as store:
        assert store.verify().problems == ()


def test_with_three_away_what_is_lost_is_named_and_all_else_loads(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        store.push(weights(7), "safe", replicas=4)
        kept = store.push({"w": np.arange(9)}, "tiny", replicas=4)
    lose(folder, "d3", "d4", "d5")
    with tensorkeep.open(folder / "store") as store:
        with pytest.raises((NotEnoughCopies, Integrity), match=r"too few of its ec=4\+2 fragments") as caught:
            store.model("m")["head.w"][5:]
        for name in ("d3", "d4", "d5"):
            assert f"on {name}: can't be reached" in str(caught.value)
        assert same(store.model("safe").load(), weights(7))
        assert np.array_equal(store.model(f"tiny@{kept.id}").load()["w"], np.arange(9))
    bring_back(folder, "d3", "d4", "d5")
    with tensorkeep.open(folder / "store") as store:
        assert same(store.model("m").load(), weights())


@pytest.mark.parametrize("mode", ["auto", "read"])
def test_flips_are_found_restored_in_the_same_load_and_healed_by_the_next_push(folder: Path, mode: str) -> None:
    with tensorkeep.open(folder / "store") as store:
        rows = fragments_of(store)
        harmed = [row for row in rows if row.fragment in (1, 4)]
        for row in harmed:
            flip(path_of(folder, store, row), row.length // 2)
        model = store.model("m")
        assert same(model.load(mode=mode), weights())  # type: ignore[arg-type]  # one of the two
        assert model.report is not None
        found = {each.location for each in model.report.damaged if each.kind == "corrupt" and each.location > 0}
        assert found == {row.id for row in harmed}, "of the parity, since it is what the data is restored from"
        assert {row.id for row in fragments_of(store) if row.state == "bad"} == found
        assert store.status().short
        version = store.push(weights(), "m", part_size=2 * MIB)
        assert version.report is not None
        assert version.report.written_bytes == sum(row.length for row in harmed)
        assert store.status().short == ()
        store.gc(grace_s=0, max_fraction=None)
        assert store.verify().problems == ()
        assert same(store.model("m").load(mode="read"), weights())


def test_verify_finds_every_damaged_fragment_and_says_when_a_part_is_lost(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        rows = [row for row in fragments_of(store) if row.key == fragments_of(store)[0].key]
        flip(path_of(folder, store, rows[0]), 0)  # data
        flip(path_of(folder, store, rows[5]), object_bytes(rows[5]) - 20)  # the footer of parity
        problems = store.verify("m").problems
        assert {each.object for each in problems if each.kind == "corrupt"} == {rows[0].name, rows[5].name}
        assert not any(each.lost for each in problems)
        path_of(folder, store, rows[2]).unlink()
        problems = store.verify("m").problems
        assert {each.kind for each in problems if each.object == rows[2].name} == {"missing"}
        assert all(each.lost for each in problems if each.kind in ("corrupt", "missing"))


def test_a_lost_device_is_made_good_on_a_new_one_by_the_next_push(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        lost = [row for row in fragments_of(store) if store._context.fleet.names()[row.device] == "d2"]
        lose(folder, "d2")
        store.devices.lost("d2")
        assert store.status().short
        add(store, folder, "d6")
        version = store.push(weights(), "m", part_size=2 * MIB)
        assert version.report is not None
        # Most on the new one; parts with an empty fragment had left a device free before.
        assert version.report.device_bytes["d6"] > sum(row.length for row in lost) / 3
        assert version.report.written_bytes >= sum(row.length for row in lost)
        assert store.status().short == ()
        assert store.verify().problems == ()
        lose(folder, "d0", "d1")
    with tensorkeep.open(folder / "store") as store:
        assert same(store.model("m").load(), weights())


def test_a_push_with_a_device_down_is_refused_or_leaves_what_the_next_completes(folder: Path) -> None:
    lose(folder, "d5")
    with tensorkeep.open(folder / "store") as store:
        with pytest.raises(Unavailable, match="d5"):
            store.push(weights(3), "other")
        version = store.push(weights(3), "other", allow_degraded=True)
        assert version.report is not None
        assert any("repair is due" in warning for warning in version.report.warnings)
        assert same(store.model("other").load(), weights(3))
        assert "default/other" in {each.model for each in store.status().short}
    bring_back(folder, "d5")
    with tensorkeep.open(folder / "store") as store:
        store.push(weights(3), "other")
        assert store.status().short == ()
        assert {count_copies(rows) for rows in rows_of(store, "other").values()} == {3}


def test_too_few_devices_and_full_ones_are_refused(folder: Path, tmp_path: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        with pytest.raises(InvalidInput, match=r"ec=4\+3 needs 7 devices .* there are 6"):
            store.push(weights(2), "other", ec="4+3")
        assert [model.name for model in store.models()] == ["default/m"]
    with tensorkeep.init(tmp_path / "small", ec="2+1") as store:
        for name in "xyz":
            store.devices.add(name, str(tmp_path / name), bandwidth=1 << 30, capacity=MIB)
        with pytest.raises(Capacity, match="devices for its fragments"):
            store.push(weights(2), "other")
        assert store.models() == []


def test_forms_may_be_mixed_in_one_store_and_shared_parts_owe_the_most(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        before = {row.id for rows in rows_of(store).values() for row in rows}
        version = store.push(weights(), "copies", replicas=3, part_size=2 * MIB)
        assert version.report is not None
        assert version.report.new_parts == 0, "two lost devices are survived as it is"
        assert {row.id for rows in rows_of(store).values() for row in rows} == before
        version = store.push(weights(), "careful", replicas=4, part_size=2 * MIB)
        assert version.report is not None
        added = [row for rows in rows_of(store).values() for row in rows if row.id not in before]
        assert {row.form for row in added} == {"raw"}
        assert store.status().short == ()


def test_a_model_changes_its_policy_and_keeps_it(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        store.push(weights(4), "other", replicas=2, part_size=2 * MIB)
        assert {row.form for rows in rows_of(store, "other").values() for row in rows} == {"raw"}
        changed = weights(4) | {"new": np.zeros(600_000, np.float32)}
        store.push(changed, "other", ec="3+2", part_size=2 * MIB)
        assert store.status().short == ()
        assert {row.form for row in fragments_of(store, "other")} == {"ec-3-2"}
        lose(folder, "d1", "d4")
    with tensorkeep.open(folder / "store") as store:
        assert same(store.model("other").load(), changed)


def test_a_catalog_that_is_rebuilt_knows_every_fragment(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        before = sorted(
            (row.device, row.name, row.form, row.fragment, row.needed, row.length) for row in fragments_of(store)
        )
        path_of(folder, store, fragments_of(store)[3]).unlink()
        lost = fragments_of(store)[3].name
    (folder / "store/catalog.sqlite").unlink()
    report = tensorkeep.rebuild_catalog(folder / "store", sources=[str(folder / name) for name in NAMES])
    assert report.missing == ()
    with tensorkeep.open(folder / "store") as store:
        after = sorted(
            (row.device, row.name, row.form, row.fragment, row.needed, row.length) for row in fragments_of(store)
        )
        assert after == [row for row in before if row[1] != lost]
        assert same(store.model("m").load(), weights())
        assert store.status().short
        store.push(weights(), "m", part_size=2 * MIB)
        assert store.status().short == ()
        assert store.verify().problems == ()


def test_gc_removes_fragments_of_removed_versions_and_nothing_else(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        store.push(weights(6), "other", part_size=2 * MIB)
        gone = [path_of(folder, store, row) for row in fragments_of(store, "other")]
        store.rm_model("other")
        store.gc(grace_s=0, max_fraction=None)
        assert not any(path.exists() for path in gone)
        assert same(store.model("m").load(), weights())
        assert store.verify().problems == ()


class FailingDevice(ForwardingDevice):
    """Stores some parts, then answers nothing any more."""

    puts_left = 2

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Put an object, or fail."""
        if name.startswith("parts/"):
            self.puts_left -= 1
            if self.puts_left < 0:
                raise Unavailable("the cable is out", device="d3")
        super().put(name, data)


def open_failing(facts: DeviceFacts, runtime: Runtime) -> Device:
    device = open_by_facts(facts, runtime)
    return FailingDevice(device) if facts.name == "d3" else device


def opened(folder: Path, opener: DeviceOpener) -> Store:
    context = open_store(
        folder / "store",
        runtime=Runtime(),
        cache_root=None,
        user="test",
        policy=None,
        opener=opener,
        snapshot_every=1000,
    )
    return Store(context)


@pytest.mark.parametrize("spare", [False, True])
def test_a_device_that_fails_in_a_push_costs_its_own_fragments_and_no_more(folder: Path, *, spare: bool) -> None:
    if spare:
        with tensorkeep.open(folder / "store") as store:
            add(store, folder, "d6")
    arrays = weights(9)
    with opened(folder, open_failing) as store:
        version = store.push(arrays, "other", part_size=2 * MIB, allow_degraded=not spare)
        assert version.report is not None
        assert any("d3" in warning for warning in version.report.warnings)
        kept = [row for rows in rows_of(store, "other").values() for row in rows]
        for rows in rows_of(store, "other").values():
            numbers = [row.fragment for row in rows if row.fragment is not None]
            assert len(set(numbers)) == len(numbers) == len({row.device for row in rows if row.fragment is not None})
        parts = sum(row.length for row in kept)
        assert version.report.written_bytes <= 1.1 * parts, "what arrived is not sent again"
    with tensorkeep.open(folder / "store") as store:
        assert same(store.model("other").load(), arrays)
        store.push(arrays, "other", part_size=2 * MIB)
        assert store.status().short == ()
        assert {count_copies(rows) for rows in rows_of(store, "other").values()} == {3}
        store.gc(grace_s=0, max_fraction=None)
        assert store.verify().problems == ()


def test_what_was_healed_and_turns_good_again_does_not_keep_the_next_loss_from_being_healed(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        bad = [row for row in fragments_of(store) if store._context.fleet.names()[row.device] == "d0"]
        store._context.catalog.record_checked(good=[], bad=[row.id for row in bad])
        lose(folder, "d1")
        store.devices.lost("d1")
        add(store, folder, "d6")
        store.push(weights(), "m", part_size=2 * MIB)
        assert store.verify().problems == ()
        lose(folder, "d2")
        store.devices.lost("d2")
        add(store, folder, "d7")
        store.push(weights(), "m", part_size=2 * MIB)
        assert store.status().short == ()
        lose(folder, "d3", "d4")
    with tensorkeep.open(folder / "store") as store:
        assert same(store.model("m").load(), weights())


def test_after_a_rebuild_fragments_that_no_version_needs_are_collected(folder: Path) -> None:
    with tensorkeep.open(folder / "store") as store:
        store.push(weights(8), "other", part_size=2 * MIB)
        gone = [path_of(folder, store, row) for row in fragments_of(store, "other")]
        torn = [path_of(folder, store, row) for row in fragments_of(store) if row.fragment == 5]
        store.rm_model("other")
    gone[0].chmod(0o644)
    gone[0].write_bytes(gone[0].read_bytes()[:-5])
    for path in torn:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-5])
    (folder / "store/catalog.sqlite").unlink()
    report = tensorkeep.rebuild_catalog(folder / "store", sources=[str(folder / name) for name in NAMES])
    assert [what for what in report.missing if gone[0].name in what]
    assert len(report.missing) == 1
    with tensorkeep.open(folder / "store") as store:
        assert store.status().short, "torn fragments don't count"
        store.gc(grace_s=0, max_fraction=None)
        assert [path for path in gone if path.exists()] == [gone[0]]
        store.push(weights(), "m", part_size=2 * MIB)
        assert store.status().short == ()
