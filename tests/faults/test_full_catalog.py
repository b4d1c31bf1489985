"""The catalog's disk is full: what would write says so and does nothing by halves, what reads goes on, and room is all it takes."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tensorkeep
from tensorkeep.errors import Capacity
from tensorkeep.store.store import Store
from tensorkeep.testing.power_cut import CutDisk
from tests.faults.store_world import MODEL, Arrays, assert_clean, assert_loads, small_weights

pytestmark = pytest.mark.root

VERBS: dict[str, Callable[[Store], object]] = {
    "push": lambda store: store.push(small_weights(7), MODEL),
    "push of another model": lambda store: store.push(small_weights(8), "acme/new"),
    "tag": lambda store: store.tag(MODEL, "t" * 90, "v0"),
    "delete a tag": lambda store: store.delete_tag(MODEL, "v1"),
    "branch": lambda store: store.branch(MODEL, "b" * 90, "v0"),
    "rm_model": lambda store: store.rm_model("acme/other"),
    "policy": lambda store: store.set_policy(MODEL, replicas=3),
    "device lost": lambda store: store.devices.lost("d2"),
    "drain": lambda store: store.devices.drain("d2", grace_s=0),
}
"""Verbs that write to the catalog, whatever it holds."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 16 MB, for the catalog alone."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    with CutDisk(str(tmp_path / "disk.img"), str(mount_point), size="16M"):
        yield mount_point


def fill(folder: Path) -> Path:
    """Leave no byte free on a file system, root's reserve included."""
    path = folder / "somebody else's"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
        os.fsync(file.fileno())
    return path


def told(store: Store) -> object:
    """Return what users see of the store."""
    return (
        [(model.name, model.policy, model.versions, model.branches, model.tags) for model in store.models()],
        [entry.id for entry in store.log(MODEL)],
        [(device.facts.name, device.facts.state) for device in store.devices.list()],
        store.policies(),
    )


def test_with_the_catalogs_disk_full_no_verb_does_half_of_its_work(disk: Path, tmp_path: Path) -> None:
    location = disk / "store"
    with tensorkeep.init(location, replicas=2) as store:
        for number in range(4):
            store.devices.add(f"d{number}", str(tmp_path / f"d{number}"), bandwidth=1 << 30)
        for turn in (0, 1):
            store.push(small_weights(turn), MODEL, tag=f"v{turn}")
        store.push(other(), "acme/other")
        before = told(store)
    filled = fill(disk)
    for name, verb in VERBS.items():
        with tensorkeep.open(location) as store:
            with pytest.raises(Capacity, match=re.escape(str(location))):
                verb(store)
            assert told(store) == before, name
            for turn in (0, 1):
                assert_loads(store, f"{MODEL}@v{turn}", small_weights(turn))
    filled.unlink()
    with tensorkeep.open(location) as store:
        assert told(store) == before
        store.push(small_weights(7), MODEL, tag="v7")
        store.set_policy(MODEL, replicas=3)
        store.gc(grace_s=0, max_fraction=None)
        assert_clean(store)
        assert_loads(store, f"{MODEL}@v7", small_weights(7))
        assert store.status().short == ()


def other() -> Arrays:
    """Return arrays of 40 kB."""
    return {"other": np.random.default_rng(9).standard_normal((100, 100), dtype=np.float32)}
