"""What pushing again must heal, what the stat cache must not believe, and which places must not become devices."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import tensorkeep
from tensorkeep import AlreadyExists, Conflict, NotEnoughCopies
from tensorkeep.devices.local import LocalDevice
from tensorkeep.runtime import Runtime
from tensorkeep.store.sources import open_sources
from tensorkeep.store.stat_cache import StatCache

GIB = 1 << 30


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, which is a soft device."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def test_a_push_heals_a_head_whose_checks_are_damaged_everywhere(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights.bin").write_bytes(np.random.default_rng(1).bytes(3 << 20))
    with tensorkeep.init(tmp_path / "store") as store:
        store.devices.add("d0", str(tmp_path / "d0"), bandwidth=GIB)
        first = store.push(source, "m")
        (checks,) = [path for path in (tmp_path / "d0" / "checks").rglob("*") if path.is_file()]
        checks.chmod(0o644)
        checks.write_bytes(bytes([checks.read_bytes()[0] ^ 1]) + checks.read_bytes()[1:])
        store.push(source, "m")
        for spec in ("m", f"m@{first.id}"):
            store.pull(spec, tmp_path / spec)
            assert (tmp_path / spec / "weights.bin").read_bytes() == (source / "weights.bin").read_bytes()


def test_kept_parts_that_only_soft_devices_count_for_get_durable_copies(tmp_path: Path, memory: Path) -> None:
    chance = np.random.default_rng(1)
    arrays = {"a": chance.standard_normal((800, 800), dtype=np.float32), "b": np.ones(3, np.float32)}
    with tensorkeep.init(tmp_path / "store", replicas=2) as store:
        store.devices.add("d0", str(tmp_path / "d0"), bandwidth=GIB)
        store.devices.add("soft", str(memory / "soft"), bandwidth=GIB)
        store.push(arrays, "m", allow_soft=True)
        store.devices.add("d1", str(tmp_path / "d1"), bandwidth=GIB)
        arrays["c"] = np.arange(5, dtype=np.float32)
        store.push(arrays, "m")
        store.devices.lost("soft")
        store.devices.lost("d0")
        assert store.model("m").load()["a"].tobytes() == arrays["a"].tobytes()


def test_a_file_that_was_young_when_it_was_scanned_is_not_believed_after_a_long_push(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    (source,) = open_sources(path)
    changed = datetime.fromtimestamp(os.stat(path).st_ctime, UTC)
    cache = StatCache(tmp_path / "cache")
    cache.remember([(source, "ab" * 32)], scanned_at=changed + timedelta(seconds=1))
    assert cache.find_sha256(source) is None
    cache.remember([(source, "ab" * 32)], scanned_at=changed + timedelta(seconds=3))
    assert cache.find_sha256(source) == "ab" * 32


def test_a_device_that_an_old_copy_of_the_catalog_does_not_know_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    catalog, d1 = tmp_path / "store" / "catalog.sqlite", tmp_path / "d1"
    with tensorkeep.init(tmp_path / "store") as store:
        store.devices.add("d0", str(tmp_path / "d0"), bandwidth=GIB)
    shutil.copy(catalog, tmp_path / "old")
    with tensorkeep.open(tmp_path / "store") as store:
        store.devices.add("d1", str(d1), bandwidth=GIB)
        store.push({"a": np.ones(3, np.float32)}, "m")
    shutil.copy(catalog, tmp_path / "new")
    shutil.copy(tmp_path / "old", catalog)
    identity = (d1 / "tensorkeep.json").read_bytes()
    with tensorkeep.open(tmp_path / "store") as store, pytest.raises(Conflict, match="rebuild-catalog"):
        store.devices.add("again", str(d1), bandwidth=GIB)
    assert (d1 / "tensorkeep.json").read_bytes() == identity
    shutil.copy(tmp_path / "new", catalog)
    with tensorkeep.open(tmp_path / "store") as store:
        assert store.verify().ok


def test_first_pushes_of_several_processes_at_once_share_one_device(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, tensorkeep\n"
        "store = tensorkeep.open(sys.argv[1])\n"
        "store.push({'w': numpy.full(9, int(sys.argv[2]))}, 'm' + sys.argv[2])\n"
    )
    location = tmp_path / "store"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, location, str(number)], stderr=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", "", ""]
    with tensorkeep.open(location) as store:
        assert [device.facts.name for device in store.devices.list()] == ["local"]
        assert [int(store.model(f"m{number}").load()["w"][8]) for number in range(3)] == [0, 1, 2]
        assert store.verify().ok


def test_one_place_added_by_several_threads_at_once_is_one_device(tmp_path: Path) -> None:
    store = tensorkeep.init(tmp_path / "store")

    def add(number: int) -> bool:
        try:
            store.devices.add(f"d{number}", str(tmp_path / "place"), bandwidth=GIB)
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(add, range(4))) == 1
    with store:
        assert [device.problem for device in store.devices.list()] == [None]
        store.push({"w": np.ones(9)}, "m")


def test_a_disk_that_is_swapped_in_mid_push_gets_nothing_that_counts(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("d0", "d1", "d2", "d3")]

    class SwapAfterStaging:
        def hit(self, name: str) -> None:
            if name == "push.staged" and not (tmp_path / "aside").exists():
                places[0].rename(tmp_path / "aside")
                shutil.copytree(places[1], places[0])

    with tensorkeep.init(tmp_path / "store") as store:
        for place in places:
            store.devices.add(place.name, str(place), bandwidth=GIB)
    arrays = {"a": np.random.default_rng(1).standard_normal((2000, 2000), dtype=np.float32)}
    with tensorkeep.open(tmp_path / "store", runtime=Runtime(failpoints=SwapAfterStaging())) as store:
        store.push(arrays, "m", part_size=1 << 20)
    shutil.rmtree(places[0])
    (tmp_path / "aside").rename(places[0])
    with tensorkeep.open(tmp_path / "store") as store:
        assert store.model("m").load()["a"].tobytes() == arrays["a"].tobytes()
        assert store.verify().ok


def test_a_device_whose_fsync_failed_stays_suspect_after_a_verification(tmp_path: Path) -> None:
    with tensorkeep.init(tmp_path / "store") as store:
        store.devices.add("d0", str(tmp_path / "d0"), bandwidth=GIB)
        store.push({"a": np.ones(3)}, "m")
        (member,) = store._context.fleet.members()
        assert isinstance(member.device, LocalDevice)
        member.device._suspect = "the fsync of a part failed"
        assert store.verify().ok
        with pytest.raises(NotEnoughCopies, match="suspect"):
            store.push({"a": np.ones(4)}, "m")
