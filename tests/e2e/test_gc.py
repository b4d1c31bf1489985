"""gc frees what nothing uses, exactly that, and nothing before its time."""

from pathlib import Path

import numpy as np
import pytest

from tensorkeep.runtime import ManualClock, Runtime
from tests.e2e.conftest import StoreFactory
from tests.e2e.trees import read_tree, seeded_bytes, write_tree
from tests.e2e.workshop import Workshop

SHARED = seeded_bytes(6 << 20)
OLD = {"shared.bin": SHARED, "own.bin": seeded_bytes(5 << 20, seed=1), "note": b"old"}
NEW = {"shared.bin": SHARED, "own.bin": seeded_bytes(5 << 20, seed=2), "note": b"new"}


def push_two(workshop: Workshop, tmp_path: Path) -> tuple[str, str]:
    """Push two versions of ``acme/m`` that share a file; return their ids."""
    store = workshop.store
    old = store.push(write_tree(tmp_path / "old", OLD), "acme/m")
    new = store.push(write_tree(tmp_path / "new", NEW), "acme/m")
    return old.id, new.id


def pulls(workshop: Workshop, spec: str, out: Path) -> dict[str, bytes]:
    workshop.open().pull(spec, out)
    return read_tree(out)


@pytest.mark.every_backend
@pytest.mark.parametrize("replicas", [1, 2])
def test_gc_frees_exactly_what_only_the_removed_version_used(
    replicas: int, store_factory: StoreFactory, tmp_path: Path
) -> None:
    alone = store_factory(2, replicas=replicas)
    alone.store.push(write_tree(tmp_path / "alone", NEW), "acme/m")
    workshop = store_factory(2, replicas=replicas)
    old, _ = push_two(workshop, tmp_path)
    before = sum(workshop.held_bytes().values())
    workshop.store.rm(f"acme/m@{old}")
    assert sum(workshop.held_bytes().values()) == before
    report = workshop.open().gc(grace_s=0, max_fraction=None)
    after = sum(workshop.held_bytes().values())
    assert report.deleted_bytes == report.condemned_bytes == before - after
    assert before - after > replicas * len(OLD["own.bin"])
    assert (report.waiting, report.unreachable) == (0, ())
    # What is left is what a store has that never saw the removed version; ids of versions differ in the record alone.
    assert after == pytest.approx(sum(alone.held_bytes().values()), abs=400 * replicas)
    assert workshop.store.verify().problems == ()
    assert pulls(workshop, "acme/m", tmp_path / "out") == NEW
    assert workshop.store.du().stored_bytes == after


def test_a_dry_run_says_what_would_go_and_changes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    old, _ = push_two(workshop, tmp_path)
    workshop.store.rm(f"acme/m@{old}")
    objects = {name: workshop.objects(name) for name in workshop.devices}
    dry = workshop.store.gc(dry_run=True, grace_s=0)
    assert dry.dry_run
    assert dry.condemned_bytes > len(OLD["own.bin"])
    assert {name: workshop.objects(name) for name in workshop.devices} == objects
    assert workshop.store.gc(dry_run=True, grace_s=0) == dry
    wet = workshop.store.gc(grace_s=0, max_fraction=None)
    assert (wet.deleted, wet.deleted_bytes) == (dry.deleted, dry.deleted_bytes) == (dry.condemned, dry.condemned_bytes)


def test_gc_keeps_bytes_until_the_grace_is_over(store_factory: StoreFactory, tmp_path: Path) -> None:
    clock = ManualClock()
    workshop = store_factory(2, runtime=Runtime(clock=clock))
    old, _ = push_two(workshop, tmp_path)
    workshop.store.rm(f"acme/m@{old}")
    before = workshop.held_bytes()

    first = workshop.store.gc(max_fraction=None)
    assert (first.deleted, workshop.held_bytes()) == (0, before)
    assert first.condemned == first.waiting > 0

    clock.advance(86_399)
    assert workshop.store.gc(max_fraction=None).deleted == 0
    assert workshop.held_bytes() == before

    clock.advance(2)
    last = workshop.store.gc(max_fraction=None)
    assert (last.deleted, last.deleted_bytes) == (first.condemned, first.condemned_bytes)
    assert sum(before.values()) - sum(workshop.held_bytes().values()) == first.condemned_bytes
    assert workshop.store.verify().problems == ()
    assert pulls(workshop, "acme/m", tmp_path / "out") == NEW


def test_a_push_after_a_condemnation_stores_the_bytes_anew(store_factory: StoreFactory, tmp_path: Path) -> None:
    clock = ManualClock()
    workshop = store_factory(2, runtime=Runtime(clock=clock))
    old, _ = push_two(workshop, tmp_path)
    workshop.store.rm(f"acme/m@{old}")
    workshop.store.gc(max_fraction=None)  # condemned, not deleted yet
    again = workshop.store.push(tmp_path / "old", "acme/again")
    assert again.report is not None
    assert again.report.new_bytes > len(OLD["own.bin"])
    clock.advance(90_000)
    workshop.store.gc(max_fraction=None)
    assert workshop.store.verify().problems == ()
    assert pulls(workshop, "acme/again", tmp_path / "again") == OLD
    assert pulls(workshop, "acme/m", tmp_path / "m") == NEW


def test_gc_of_a_store_where_all_is_used_deletes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    push_two(workshop, tmp_path)
    before = {name: workshop.objects(name) for name in workshop.devices}
    report = workshop.store.gc(grace_s=0, max_fraction=None)
    assert (report.condemned, report.deleted, report.waiting, report.swept_unfinished) == (0, 0, 0, 0)
    assert {name: workshop.objects(name) for name in workshop.devices} == before


def test_removing_every_model_frees_everything(workshop: Workshop, tmp_path: Path) -> None:
    push_two(workshop, tmp_path)
    workshop.store.push({"w": np.ones(300_000)}, "acme/w")
    for model in ("acme/m", "acme/w"):
        workshop.store.rm_model(model)
    workshop.store.gc(grace_s=0, max_fraction=None)
    assert workshop.held_bytes() == dict.fromkeys(workshop.devices, 0)
    usage = workshop.store.du()
    assert (usage.rows, usage.stored_bytes) == ((), 0)
    assert workshop.open().verify().problems == ()
    assert workshop.open().models() == []


def test_gc_waits_for_a_device_that_cannot_be_reached(store_factory: StoreFactory, tmp_path: Path) -> None:
    workshop = store_factory(2, replicas=2)
    old, _ = push_two(workshop, tmp_path)
    workshop.store.rm(f"acme/m@{old}")
    before = workshop.held_bytes()
    workshop.unmount("disk1")
    report = workshop.open().gc(grace_s=0, max_fraction=None)
    assert report.unreachable == ("disk1",)
    assert report.waiting > 0
    workshop.mount("disk1")
    assert workshop.held_bytes()["disk1"] == before["disk1"]
    report = workshop.open().gc(grace_s=0, max_fraction=None)
    assert (report.unreachable, report.waiting) == ((), 0)
    assert workshop.held_bytes()["disk0"] == workshop.held_bytes()["disk1"] < before["disk1"]
    assert workshop.open().verify().problems == ()


def test_gc_forgets_what_a_lost_device_held(store_factory: StoreFactory, tmp_path: Path) -> None:
    workshop = store_factory(2, replicas=2)
    old, _ = push_two(workshop, tmp_path)
    workshop.destroy("disk1")
    store = workshop.open()
    store.devices.lost("disk1")
    store.rm(f"acme/m@{old}")
    report = store.gc(grace_s=0, max_fraction=None)
    assert (report.unreachable, report.waiting) == ((), 0)
    assert pulls(workshop, "acme/m", tmp_path / "out") == NEW
