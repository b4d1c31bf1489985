"""gc asks a device across a network for several deletions at once, and forgets no row that it has no answer for."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

import tensorkeep
from tensorkeep.devices import LocalDevice
from tensorkeep.errors import Unavailable
from tensorkeep.store.folder_place import FolderPlace
from tensorkeep.store.store import Store
from tests.e2e.trees import seeded_bytes

AT_ONCE = 4


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with one device, which says that it lies across a network, and holds what a removed version used."""
    monkeypatch.setattr(LocalDevice, "put_concurrency", AT_ONCE, raising=False)
    (tmp_path / "model").write_bytes(seeded_bytes(1 << 20))
    with tensorkeep.init(tmp_path / "store") as store:
        store.devices.add("far", str(tmp_path / "far"), bandwidth=1 << 30)
        version = store.push(tmp_path / "model", "m", split="parts=8")
        (tmp_path / "model").write_bytes(b"small")
        store.push(tmp_path / "model", "m")
        store.rm(f"m@{version.id}")
        yield store


def test_several_objects_are_deleted_at_once_across_a_network(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    delete, count, crowd = LocalDevice.delete, itertools.count(), threading.Barrier(AT_ONCE)

    def wait_for_others(device: LocalDevice, name: str) -> None:
        if next(count) < AT_ONCE:
            crowd.wait(30)
        delete(device, name)

    monkeypatch.setattr(LocalDevice, "delete", wait_for_others)
    report = store.gc(grace_s=0, max_fraction=None)
    assert report.deleted == report.condemned > AT_ONCE
    assert (report.waiting, report.unreachable) == (0, ())
    assert store.verify().problems == ()


def test_where_one_of_many_deletions_fails_every_row_waits_for_the_next_gc(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, count = LocalDevice.delete, itertools.count()

    def fail_once(device: LocalDevice, name: str) -> None:
        if next(count) == AT_ONCE + 1:
            raise Unavailable("it does not answer")
        delete(device, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalDevice, "delete", fail_once)
        report = store.gc(grace_s=0, max_fraction=None)
    assert (report.deleted, report.waiting, report.unreachable) == (0, report.condemned, ("far",))
    again = store.gc(grace_s=0, max_fraction=None)
    assert (again.deleted, again.waiting, again.unreachable) == (report.condemned, 0, ())


def test_once_its_lock_is_lost_only_what_was_sent_already_is_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, deleted = LocalDevice.delete, itertools.count()

    def count(device: LocalDevice, name: str) -> None:
        next(deleted)
        delete(device, name)

    def check() -> None:
        if next(checks) > 0:
            raise Unavailable("another process may have the lock", reason="lock_lost")

    checks = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(LocalDevice, "delete", count)
        patch.setattr(FolderPlace, "lock", lambda _, *, shared: nullcontext(check))
        with pytest.raises(Unavailable, match="lock"):
            store.gc(grace_s=0, max_fraction=None)
    assert next(deleted) == AT_ONCE
    assert (
        store.gc(grace_s=0, max_fraction=None).deleted > AT_ONCE
    )  # what was deleted is forgotten now, with the others
