"""Disks whose sectors go bad, under whole verbs: the kernel itself answers EIO to writes, fsyncs, reads and page faults.

A push over a disk that starts to fail goes on elsewhere, and a load over a bad sector takes another copy, mapped loads too,
where touching the sector would be a SIGBUS. The disk is a file system on a loop device that is told to end earlier than
before (`LOOP_SET_STATUS64`, ``lo_sizelimit``): what lies past that is neither read nor written, and is there again when the disk
is mended. Every test shows first, by plain calls, that its disk really fails so.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

import tensorkeep
from tensorkeep.catalog.protocol import Location
from tensorkeep.devices import LocalDevice, local_path
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import NotEnoughCopies, NotFound, Unavailable
from tensorkeep.records.device import DeviceFacts
from tensorkeep.runtime import Runtime
from tensorkeep.store import confirming, push_read
from tensorkeep.store import push as pushing
from tensorkeep.store.fleet import DeviceOpener, open_by_facts
from tensorkeep.store.store import Store
from tensorkeep.testing.power_cut import shut_down
from tests.faults.store_world import (
    GIB,
    MIB,
    MODEL,
    Arrays,
    Hooks,
    World,
    assert_clean,
    locations,
    usable,
    write_source,
)

pytestmark = pytest.mark.root

FILE_SYSTEMS = {
    # What describes the files lies at the start of the disk, the journal too: bad sectors past it are of files.
    "ext4": ("96M", ["mkfs.ext4", "-q", "-F", "-E", "packed_meta_blocks=1"]),
    "xfs": ("320M", ["mkfs.xfs", "-q", "-f", "-d", "agcount=2", "-l", "agnum=0"]),
}


# ---------------------------------------------------------------------------- disks

_LOOP_SET_STATUS64, _LOOP_GET_STATUS64 = 0x4C04, 0x4C05
_SIZE_LIMIT_AT = 32  # in struct loop_info64. Source: Linux, include/uapi/linux/loop.h
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_SYNC, _FIEMAP_LAST = 1, 1


class SickDisk:
    """A file system on a disk of its own, whose sectors can be made bad; `close` unmounts it. Needs root."""

    def __init__(self, folder: Path, file_system: str) -> None:
        self.image = folder / "disk.img"
        self.mount_point = folder / "disk"
        self.mount_point.mkdir()
        size, make = FILE_SYSTEMS[file_system]
        run_tool("truncate", "-s", size, str(self.image))
        run_tool(*make, str(self.image))
        self._mount()

    @property
    def device(self) -> Path:
        """The folder that is a device of the store."""
        return self.mount_point / "device"

    def fail_from(self, byte: int) -> None:
        """Make every sector bad from this byte of the disk on, a multiple of 512 over 0."""
        self._limit(byte)

    def shut_down(self) -> None:
        """Have the file system itself answer EIO to every call, as after an error that it can't bear."""
        shut_down(self.mount_point)

    def mend(self) -> None:
        """Have no bad sector any more, and mount the disk anew."""
        self._limit(0)
        self.restart()

    def restart(self) -> None:
        """Mount the disk anew, nothing of it in memory; all sectors are good again."""
        run_tool("umount", str(self.mount_point))
        self._mount()

    def extents(self, path: Path) -> list[tuple[int, int]]:
        """Return where on the disk a file lies: (byte, length), in the file's order. Source: Linux, filesystems/fiemap."""
        most = 256
        answer = bytearray(32 + 56 * most)
        struct.pack_into("QQIIII", answer, 0, 0, (1 << 64) - 1, _FIEMAP_SYNC, 0, most, 0)
        with path.open("rb") as file:
            fcntl.ioctl(file, _FS_IOC_FIEMAP, answer)
        (count,) = struct.unpack_from("I", answer, 20)
        found = [struct.unpack_from("QQQ16xI", answer, 32 + 56 * number) for number in range(count)]
        assert not found or found[-1][3] & _FIEMAP_LAST, f"{path} lies in too many pieces"
        return [(physical, length) for _, physical, length, _ in found]

    def end_of(self, paths: Sequence[Path]) -> int:
        """Return the first byte of the disk past all these files."""
        return max((start + length for path in paths for start, length in self.extents(path)), default=0)

    def files(self) -> list[Path]:
        """Return every file of the device that holds something."""
        return [path for path in self.device.rglob("*") if path.is_file() and path.stat().st_size]

    def move_last(self, path: Path) -> None:
        """Move a file past all others on the disk, under its name: the rest of the disk is full meanwhile."""
        fillers = [*self._fill(4 * MIB), *self._fill(MIB // 4)]
        fillers.sort(key=lambda filler: self.end_of([filler]))
        freed = 0
        while freed < path.stat().st_size + MIB:
            filler = fillers.pop()
            freed += filler.stat().st_size
            filler.unlink()
        self.write_back()  # only then the room is free
        copy = self.mount_point / "copy"
        shutil.copyfile(path, copy)
        copy.chmod(path.stat().st_mode)
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        copy.rename(path)
        for filler in fillers:
            filler.unlink()
        self.write_back()
        first = min(start for start, _ in self.extents(path))
        assert first >= self.end_of([other for other in self.files() if other != path]), "it does not lie last"

    def write_back(self) -> None:
        """Have the system write what it keeps of the disk; what it can't is forgotten."""
        run_tool("sync", "--file-system", str(self.mount_point))

    def close(self) -> None:
        """Unmount it, also where a test that failed still holds something of it."""
        if os.path.ismount(self.mount_point):
            with suppress(OSError):
                self._limit(0)
            run_tool("umount", "--lazy", str(self.mount_point))

    def _fill(self, size: int) -> list[Path]:
        """Make files of that size until no more fits."""
        made: list[Path] = []
        while True:
            made.append(self.mount_point / f"filler-{size}-{len(made)}")
            try:
                with made[-1].open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                made.pop().unlink(missing_ok=True)
                return made

    def _mount(self) -> None:
        run_tool("mount", "-o", "loop", str(self.image), str(self.mount_point))
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        (self._loop,) = [source for source, target, *_ in mounts if target == str(self.mount_point)]

    def _limit(self, size: int) -> None:
        """Have the loop device end after so many bytes; 0: where its file ends."""
        descriptor = os.open(self._loop, os.O_RDONLY)
        try:
            status = bytearray(232)
            fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, status)
            struct.pack_into("Q", status, _SIZE_LIMIT_AT, size)
            fcntl.ioctl(descriptor, _LOOP_SET_STATUS64, status)
        finally:
            os.close(descriptor)


def run_tool(*command: str) -> None:
    # Tools of the administrator lie outside many users' PATH.
    tool = shutil.which(command[0], path=os.defpath + ":/usr/sbin:/sbin:/usr/local/sbin") or command[0]
    done = subprocess.run([tool, *command[1:]], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} failed: {done.stderr.strip()}"


@pytest.fixture(params=FILE_SYSTEMS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SickDisk]:
    with ExitStack() as mounts:
        yield mounts.enter_context(in_memory(tmp_path / "sick", request.param))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk without faults that is in memory too: what is fsynced there costs nothing."""
    with in_memory(tmp_path / "sound", "ext4") as disk:
        yield disk.mount_point


@contextmanager
def in_memory(folder: Path, file_system: str) -> Iterator[SickDisk]:
    """Yield a disk whose image is in memory, and take it away."""
    folder.mkdir()
    run_tool("mount", "-t", "tmpfs", "-o", "size=256m", "none", str(folder))
    try:
        with closing(SickDisk(folder, file_system)) as disk:
            yield disk
    finally:
        run_tool("umount", "--lazy", str(folder))


def tell_errors(disk: SickDisk) -> list[tuple[str, str]]:
    """Return which calls fail, and how, while something is written to a new file of a disk and fsynced."""
    found = []
    try:
        with (disk.mount_point / "probe").open("wb", buffering=0) as file:
            calls: dict[str, Callable[[], object]] = {
                "write": lambda: file.write(bytes(2 * MIB)),
                "fsync": lambda: os.fsync(file.fileno()),
            }
            for name, call in calls.items():
                try:
                    call()
                except OSError as error:
                    found.append((name, errno.errorcode[error.errno or 0]))
    except OSError as error:
        found.append(("open", errno.errorcode[error.errno or 0]))
    return found


# ---------------------------------------------------------------------------- loads

LOADER = """
    import json, sys
    from blake3 import blake3
    import tensorkeep
    from tensorkeep.transfer.mapping import MappedRange

    location, job = sys.argv[1], json.loads(sys.argv[2])
    if job.get("touches without populating"):
        MappedRange.populate = lambda *words: True

    def digests(arrays):
        return {name: blake3(array.tobytes()).hexdigest() for name, array in arrays.items()}

    def tell(how, work):
        answer = {"how": how}
        try:
            answer["arrays"], report = work()
            answer["damaged"] = [[each.device_name, each.kind, each.reason] for each in report.damaged]
            answer["mapped"] = report.mapped_bytes
        except tensorkeep.TensorkeepError as error:
            answer["error"] = {"type": type(error).__name__, "message": error.message, "facts": error.facts}
        print(json.dumps(answer, default=str), flush=True)

    def load(**words):
        return digests(model.load(**words)), model.report

    def load_slice(name):
        return digests({name: model[name][1:]}), model.report

    with tensorkeep.open(location) as store:
        for spec in job["specs"]:
            model = store.model(spec)
            for mode in job["modes"]:
                tell(mode, lambda: load(mode=mode))
            for name in job.get("slices", ()):
                tell("slice", lambda: load_slice(name))
            for name in job.get("alone", ()):
                tell("alone", lambda: load(include=name))
            if "pull" in job:
                tell("pull", lambda: ({}, store.pull(spec, job["pull"]).load))
"""


@dataclass
class Told:
    """What a process that loads has told, and how it ended: a status, or minus a signal."""

    ended: int
    answers: list[dict[str, Any]]
    stderr: str

    def only(self, how: str) -> dict[str, Any]:
        (answer,) = [answer for answer in self.answers if answer["how"] == how]
        return answer


def load_elsewhere(location: Path, **job: Any) -> Told:
    """Load in a process of its own: a SIGBUS is its end and not ours."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOADER), str(location), json.dumps(job)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Told(done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr)


def digests(arrays: Arrays) -> dict[str, str]:
    return {name: blake3(array.tobytes()).hexdigest() for name, array in arrays.items()}


# ---------------------------------------------------------- a disk that takes no writes


def matrices(turn: int, rows: int) -> Arrays:
    """Return 12 MB in matrices of as many rows of 4 KiB, each a part of its own."""
    chance = np.random.default_rng(turn)
    return {f"layers.{n}.w": chance.standard_normal((rows, 1024), np.float32) for n in range(3072 // rows)}


def lossy(facts: DeviceFacts, runtime: Runtime) -> Device:
    """Open a device that leaves out every fsync."""
    return LocalDevice(local_path(facts.url), runtime=runtime, url=facts.url, fsync=False)


@dataclass
class Failing:
    """A store whose device ``d0`` is on a disk, the others in folders; ``v0`` is in it, and the disk fails when told.

    ``errors`` says which calls failed, and how, as soon as it did.
    """

    world: World
    disk: SickDisk
    files_begin: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)

    def begin(self) -> None:
        self.world.folder.mkdir()
        store = self.world.open()
        store.devices.add("d0", str(self.disk.device), bandwidth=GIB)
        for name in self.world.names[1:]:
            store.devices.add(name, str(self.world.place(name)), bandwidth=GIB)
        store.push(matrices(0, 512), MODEL, tag="v0", split="tensor")
        self.files_begin = min(start for path in self.disk.files() for start, _ in self.disk.extents(path))

    def fail(self, fault: str) -> None:
        """Have the disk fail from now on, and see that it does."""
        if fault == "sectors of files":
            self.disk.fail_from(self.files_begin)
        elif fault == "every sector":
            self.disk.fail_from(4096)
        else:
            self.disk.shut_down()
        self.errors = tell_errors(self.disk)

    def open(self, fault: str, *, opener: DeviceOpener = open_by_facts) -> Store:
        """Return a handle on the store whose pushes have the disk fail, once a batch of theirs is on two devices."""
        lock = threading.Lock()

        def fail_in_time() -> None:
            with lock:
                if hooks.hits["push.part_flushed"] >= 2 and not self.errors:
                    self.fail(fault)

        hooks = Hooks(push__part_flushed=fail_in_time)
        return self.world.open(failpoints=hooks, opener=opener)

    def mend(self) -> Store:
        """Bring the disk back, and return the store as a process sees it that starts then."""
        self.world.close()
        self.disk.mend()
        return self.world.open()


@pytest.fixture
def failing(disk: SickDisk, folder: Path) -> Iterator[Failing]:
    failing = Failing(World(folder / "world"), disk)
    failing.begin()
    yield failing
    failing.world.close()


@pytest.fixture
def failing_pair(disk: SickDisk, folder: Path) -> Iterator[Failing]:
    """The same with as many devices as copies: none can take over."""
    failing = Failing(World(folder / "world", devices=2), disk)
    failing.begin()
    yield failing
    failing.world.close()


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A push of some megabytes has batches, one after the other, so that some of it is on devices when the disk fails."""
    monkeypatch.setattr(push_read, "_BATCH_BYTES", 2 * MIB)
    monkeypatch.setattr(pushing, "_BATCHES", 1)
    monkeypatch.setattr(confirming, "_INTERVAL_S", 600.0)  # so that it is a write that fails first, and not a read


def device_id(store: Store, name: str) -> str:
    return next(facts.id for facts in store._context.catalog.list_devices() if facts.name == name)


def assert_whole(store: Store) -> None:
    """Assert that every byte is right, and everything has its copies, when gc has taken away what pushes gave up."""
    assert store.scrub(deep=True).ok
    repaired = store.repair()
    assert (repaired.ok, repaired.short) == (True, 0)
    store.gc(grace_s=0, max_fraction=None)
    assert_clean(store)
    assert store.status().short == ()
    assert {len(devices) for devices in usable(store).values()} <= {2, 3}


ERRORS = ("EIO", "EROFS", "ENOMEM", "ENOSPC")
"""ext4 is read-only without its journal, and says that it has no memory for a block that a disk can't have."""

NAMED = rf".*\(({'|'.join(ERRORS)})\)"


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    ("fault", "rows"),
    [
        ("sectors of files", 160),  # matrices below a MiB go through the page cache: the fsync fails
        ("sectors of files", 320),  # larger ones go past it: the write itself fails
        ("every sector", 160),
        pytest.param("shut down", 320, marks=pytest.mark.soak),
    ],
)
def test_a_push_over_a_disk_that_starts_to_fail_goes_on_elsewhere(failing: Failing, fault: str, rows: int) -> None:
    opened: dict[str, Device] = {}

    def opener(facts: DeviceFacts, runtime: Runtime) -> Device:
        opened[facts.name] = open_by_facts(facts, runtime)
        return opened[facts.name]

    store = failing.open(fault, opener=opener)
    version = store.push(matrices(1, rows), MODEL, tag="v1", split="tensor")
    assert_failed(failing, fault)
    assert version.report is not None
    (warning,) = version.report.warnings
    assert re.match(f"device d0 takes nothing more in this push: {NAMED}", warning)
    sick = device_id(store, "d0")
    if (fault, rows) == ("sectors of files", 320):
        assert ": writing parts/" in warning
    if (fault, rows) == ("sectors of files", 160):
        assert "is suspect and takes no more writes: the fsync of" in warning
        with pytest.raises(Unavailable, match="suspect"):  # and stays so, for this process
            opened["d0"].flush()
    assert all(devices - {sick} for devices in usable(store).values()), "something is on the failed disk only"
    told = load_elsewhere(failing.world.location, specs=[f"{MODEL}@v0", f"{MODEL}@v1"], modes=["auto", "read"])
    right = [digests(matrices(0, 512)), digests(matrices(1, rows))]
    assert [answer.get("arrays") for answer in told.answers] == [right[0], right[0], right[1], right[1]], told
    fresh = failing.mend()
    assert_clean(fresh)  # what the disk had acknowledged is there, and right
    assert_whole(fresh)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("fault", ["every sector", pytest.param("sectors of files", marks=pytest.mark.soak)])
def test_with_no_other_device_the_push_fails_by_name_and_can_be_made_again(failing_pair: Failing, fault: str) -> None:
    store = failing_pair.open(fault)
    with pytest.raises(NotEnoughCopies, match=f"d0: {NAMED}"):
        store.push(matrices(1, 160), MODEL, tag="v1", split="tensor")
    assert_failed(failing_pair, fault)
    with pytest.raises(NotFound):
        store.model(f"{MODEL}@v1")
    told = load_elsewhere(failing_pair.world.location, specs=[MODEL], modes=["auto", "read"])
    assert [answer.get("arrays") for answer in told.answers] == [digests(matrices(0, 512))] * 2, told
    fresh = failing_pair.mend()
    fresh.push(matrices(1, 160), MODEL, tag="v1", split="tensor")
    assert digests(fresh.model(f"{MODEL}@v1").load(mode="read")) == digests(matrices(1, 160))
    assert_whole(fresh)


def assert_failed(failing: Failing, fault: str) -> None:
    """Assert that the disk did what it should: where all but files is well, it is the fsync that tells, and by EIO."""
    if fault == "sectors of files":
        assert failing.errors == [("fsync", "EIO")]
    assert failing.errors
    assert {number for _, number in failing.errors} <= set(ERRORS)


@pytest.mark.usefixtures("small_batches")
def test_the_negative_control_without_fsync_what_the_disk_lost_counts(failing: Failing) -> None:
    store = failing.open("sectors of files", opener=lossy)
    version = store.push(matrices(1, 160), MODEL, tag="v1", split="tensor")
    assert failing.errors == [("fsync", "EIO")]
    assert version.report is not None
    assert version.report.warnings == ()  # nobody has noticed
    with pytest.raises(AssertionError, match="Input/output error"):
        failing.disk.write_back()
    fresh = failing.mend()
    lost = [problem for problem in fresh.verify().problems if problem.kind in ("corrupt", "missing")]
    assert lost
    assert {problem.device for problem in lost} == {"d0"}


# -------------------------------------------------------------------- a sector that is bad

PIECES = {"layers.0.w": 1100, "layers.1.w": 1101, "layers.2.w": 1102}


def tensors() -> Arrays:
    """Return matrices of 4.5 MB, parts of their own, and small ones."""
    chance = np.random.default_rng(7)
    arrays: Arrays = {name: chance.standard_normal((rows, 1024), np.float32) for name, rows in PIECES.items()}
    arrays["norm"] = chance.standard_normal(300, np.float32)
    return arrays


@dataclass
class BadSector:
    """A store with one version, a part of which has bad sectors on device ``d0``, the one that is read first.

    ``victim`` is the row of what can't be read, ``name`` the tensor that is its part.
    """

    folder: Path
    disk: SickDisk
    victim: Location
    name: str

    @property
    def location(self) -> Path:
        return self.folder / "store"

    @property
    def source(self) -> Path:
        return self.folder / "source"

    def load(self, **job: Any) -> Told:
        return load_elsewhere(self.location, specs=[MODEL], **job)

    @property
    def path(self) -> Path:
        return self.disk.device / self.victim.name


def begin_with_bad_sector(folder: Path, disk: SickDisk, *, devices: int, **policy: Any) -> BadSector:
    """Push a version, and make the sectors bad that a part of it lies on; nothing of the disk is in memory then."""
    write_source(folder / "source", tensors())
    with tensorkeep.init(folder / "store", **policy) as store:
        store.devices.add("d0", str(disk.device), bandwidth=64 * GIB, capacity=GIB)
        for number in range(1, devices):
            store.devices.add(f"d{number}", str(folder / f"d{number}"), bandwidth=GIB, capacity=GIB)
        store.push(folder / "source", MODEL, split="tensor")
        sick, names = device_id(store, "d0"), {blake3(a.tobytes()).digest(): name for name, a in tensors().items()}
        victim, name = next(
            (row, names[row.key.digest])
            for row in locations(store)
            if row.device == sick
            and names.get(row.key.digest) in PIECES
            and row.fragment in (None, 0, 1)  # data, that is, not parity
        )
    path = disk.device / victim.name
    disk.move_last(path)
    disk.restart()
    ((start, _), *_) = disk.extents(path)
    disk.fail_from(start + MIB)
    with path.open("rb", buffering=0) as file:
        assert len(file.read(MIB // 2)) == MIB // 2
        file.seek(MIB + 4096)
        with pytest.raises(OSError, match="Input/output error") as caught:
            file.read(4096)
        assert caught.value.errno == errno.EIO
    return BadSector(folder, disk, victim, name)


def right_bytes(name: str) -> list[tuple[str, dict[str, str]]]:
    """Return what loads of every kind should give, of all tensors and of a slice of one."""
    arrays = digests(tensors())
    sliced = digests({name: np.ascontiguousarray(tensors()[name][1:])})
    return [("auto", arrays), ("read", arrays), ("slice", sliced)]


def pulled(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("devices", "policy"), [(3, {"replicas": 2}), (4, {"ec": "2+1"})], ids=["copies", "fragments"])
def test_a_bad_sector_is_made_up_for_in_every_load_then_found_and_repaired(
    disk: SickDisk, folder: Path, devices: int, policy: dict[str, Any]
) -> None:
    bad = begin_with_bad_sector(folder, disk, devices=devices, **policy)
    told = bad.load(modes=["auto", "read"], slices=[bad.name], pull=str(folder / "out"))
    assert told.ended == 0, told
    assert [(answer["how"], answer.get("arrays")) for answer in told.answers[:3]] == right_bytes(bad.name), told
    assert told.only("auto")["mapped"] > 12 * MIB
    assert [answer["how"] for answer in told.answers] == ["auto", "read", "slice", "pull"]
    for answer in told.answers:
        ((device, kind, reason),) = answer["damaged"]
        assert (device, kind) == ("d0", "unreachable")
        assert bad.victim.name in reason
        assert "(EIO)" in reason
    assert pulled(folder / "out") == pulled(bad.source)
    with tensorkeep.open(bad.location) as store:
        assert store.status().short == ()  # what can't be read is not gone, as far as a load can tell
        (problem,) = store.scrub(deep=True).problems
        assert (problem.kind, problem.device, problem.object) == ("corrupt", "d0", bad.victim.name)
        repaired = store.repair()
        assert (repaired.ok, repaired.short, repaired.repaired) == (True, 1, 1)
        store.gc(grace_s=0, max_fraction=None)
        assert not bad.path.exists()
        assert store.scrub(deep=True).ok
        assert_clean(store)
        # The new copy may be on the same disk, where that is good. Who trusts it no more has all of it made elsewhere.
        assert store.devices.drain("d0", grace_s=0).empty
        assert not any(path.is_file() for path in (disk.device / "parts").rglob("*"))
        assert_clean(store)
        model = store.model(MODEL)
        assert digests(model.load()) == digests(tensors())
        assert model.report is not None
        assert model.report.damaged == ()


def test_the_only_copy_on_a_bad_sector_is_an_error_that_names_it(disk: SickDisk, folder: Path) -> None:
    bad = begin_with_bad_sector(folder, disk, devices=3, replicas=1)
    others = [name for name in tensors() if name != bad.name]
    told = bad.load(modes=["auto", "read"], slices=[bad.name], pull=str(folder / "out"), alone=others)
    assert told.ended == 0, told
    for how in ("auto", "read", "slice", "pull"):
        error = told.only(how)["error"]
        assert error["type"] == "NotEnoughCopies"
        assert error["facts"]["part"] == bad.victim.key.digest.hex()
        assert error["facts"]["devices"] == ["d0"]
        assert f"device d0: reading {bad.victim.name} on " in error["message"]
        assert "(EIO)" in error["message"]
    alone = {
        name: digest for answer in told.answers if answer["how"] == "alone" for name, digest in answer["arrays"].items()
    }
    assert alone == {name: digest for name, digest in digests(tensors()).items() if name != bad.name}
    assert not (folder / "out" / "model.safetensors").exists()
    with tensorkeep.open(bad.location) as store:
        assert [problem.object for problem in store.scrub(deep=True).problems] == [bad.victim.name]
        (lost,) = store.repair().lost
        assert (lost.digest, lost.files) == (bad.victim.key.digest.hex(), ("model.safetensors",))
        assert "device d0" in lost.reason
    disk.mend()
    with tensorkeep.open(bad.location) as store:
        assert store.scrub(deep=True).ok
        assert store.repair().ok
        assert digests(store.model(MODEL).load(mode="read")) == digests(tensors())


def test_the_negative_control_who_touches_the_sector_without_populating_is_killed(disk: SickDisk, folder: Path) -> None:
    bad = begin_with_bad_sector(folder, disk, devices=3, replicas=2)
    told = bad.load(**{"modes": ["auto"], "touches without populating": True})
    assert (told.ended, told.answers) == (-signal.SIGBUS, []), told
