"""A local device under the system's errors: nothing half written is seen, and "cannot tell" is never "absent"."""

import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tensorkeep.devices import LocalDevice, open_device
from tensorkeep.devices.system_calls import SystemCalls
from tensorkeep.errors import (
    AlreadyExists,
    Capacity,
    Integrity,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import Runtime
from tensorkeep.testing.device_contract import MODEL, content, listed, part
from tensorkeep.testing.system_faults import FaultySystem
from tensorkeep.transfer.memory import allocate


def open_at(root: Path, system: SystemCalls | None = None) -> LocalDevice:
    return LocalDevice(str(root), runtime=Runtime(), url=f"file://{root}", system=system)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    open_at(tmp_path / "disk").prepare()
    return tmp_path / "disk"


@pytest.fixture
def system() -> FaultySystem:
    return FaultySystem()


@pytest.fixture
def device(root: Path, system: FaultySystem) -> LocalDevice:
    return open_at(root, system)


def assert_nothing_visible(root: Path) -> None:
    assert listed(open_at(root)) == {}
    assert os.listdir(root / "tmp") == []


# ------------------------------------------------------------------- failing calls


@pytest.mark.parametrize("call", ["allocate", "pwritev", "link"])
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, Capacity),
        (errno.EDQUOT, Capacity),
        (errno.EROFS, PermissionDenied),
        (errno.EACCES, PermissionDenied),
        (errno.EIO, Unavailable),
        (errno.EMFILE, Unavailable),
    ],
)
def test_a_failed_write_is_named_by_what_to_do_next_and_leaves_nothing(
    root: Path, device: LocalDevice, system: FaultySystem, call: str, number: int, expected: type[TensorkeepError]
) -> None:
    system.fail(call, number, on_call=1)
    with pytest.raises(expected) as caught:
        device.put(part(1), [content(100_000)])
    assert caught.value.facts["errno"] == number
    assert_nothing_visible(root)
    device.put(part(1), [content(100_000)])
    assert device.read(part(1)) == content(100_000)


def test_a_write_that_fails_midway_leaves_nothing(root: Path) -> None:
    system = FaultySystem(step_bytes=10_000)
    system.fail("pwritev", errno.ENOSPC, on_call=5)
    with pytest.raises(Capacity):
        open_at(root, system).put(part(1), [content(100_000)])
    assert_nothing_visible(root)


def test_a_write_that_stops_without_an_error_is_noticed(root: Path) -> None:
    class Stopping(SystemCalls):
        def pwritev(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
            return 0

    with pytest.raises(Unavailable, match="0 of 100000 bytes"):
        open_at(root, Stopping()).put(part(1), [content(100_000)])
    assert_nothing_visible(root)


def test_an_error_of_close_fails_the_put_before_it_is_visible(
    root: Path, device: LocalDevice, system: FaultySystem
) -> None:
    system.fail("close", errno.EIO, on_call=1)
    with pytest.raises(Unavailable):
        device.put(part(1), [content(1000)])
    assert_nothing_visible(root)


def test_an_interrupt_in_mid_put_leaves_nothing(root: Path) -> None:
    class Interrupted(SystemCalls):
        def pwritev(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
            super().pwritev(descriptor, [views[0][:10]], offset)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_at(root, Interrupted()).put(part(1), [content(1000)])
    assert_nothing_visible(root)


def test_reads_and_writes_in_small_steps_move_every_byte(root: Path) -> None:
    device = open_at(root, FaultySystem(step_bytes=777))
    data = content(50_000)
    device.put(part(1), [data[:100], data[100:101], data[101:]])
    buffers = [bytearray(size) for size in (1, 1000, 0, 30_000)]
    device.read_into(part(1), 9, [memoryview(buffer) for buffer in buffers])
    assert device.read(part(1)) == data
    assert b"".join(buffers) == data[9 : 9 + 31_001]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_fallocate_is_written_all_the_same(
    device: LocalDevice, system: FaultySystem, number: int
) -> None:
    system.fail("allocate", number)
    device.put(part(1), [content(1000)])
    assert device.read(part(1)) == content(1000)


def test_a_file_system_without_hard_links_still_never_replaces(
    root: Path, device: LocalDevice, system: FaultySystem
) -> None:
    system.fail("link", errno.EPERM)
    device.put(part(1), [b"first"])
    with pytest.raises(AlreadyExists):
        device.put(part(1), [b"second"])
    assert device.read(part(1)) == b"first"
    assert os.listdir(root / "tmp") == []


def test_a_temporary_name_that_can_not_be_removed_is_swept_later(
    root: Path, device: LocalDevice, system: FaultySystem
) -> None:
    system.fail("unlink", errno.EIO, on_call=1)
    device.put(part(1), [b"whole"])
    assert len(os.listdir(root / "tmp")) == 1
    assert device.sweep_unfinished(0) == 1
    assert device.read(part(1)) == b"whole"


# ---------------------------------------------------------------------------- fsync


def assert_suspect(device: LocalDevice) -> None:
    calls: list[Callable[[], object]] = [
        lambda: device.put(part(7), [b"more"]),
        lambda: device.replace_identity(b"{}"),
        lambda: device.delete(part(1)),
        device.flush,
        device.prepare,
    ]
    for call in calls:
        with pytest.raises(Unavailable, match="suspect") as caught:
            call()
        assert caught.value.facts["suspect"] is True


@pytest.mark.parametrize(("number", "expected"), [(errno.EIO, Unavailable), (errno.ENOSPC, Capacity)])
def test_an_fsync_error_fails_the_put_and_makes_the_device_suspect(
    root: Path, device: LocalDevice, system: FaultySystem, number: int, expected: type[TensorkeepError]
) -> None:
    device.put(part(1), [b"before"])
    system.fail("fsync", number, on_call=1)
    with pytest.raises(expected, match=errno.errorcode[number]):
        device.put(part(2), [b"lost"])
    assert_suspect(device)
    assert system.counts["fsync"] == 2
    assert "fsync_folder" not in system.counts
    assert device.read(part(1)) == b"before"
    assert listed(device) == {part(1): 6}
    assert os.listdir(root / "tmp") == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EINVAL])
def test_an_fsync_error_of_a_folder_fails_this_and_every_later_flush(
    device: LocalDevice, system: FaultySystem, number: int
) -> None:
    device.put(part(1), [b"one"])
    device.put(part(2), [b"two"])
    system.fail("fsync_folder", number, on_call=1)
    with pytest.raises(TensorkeepError):
        device.flush()
    assert system.counts["fsync_folder"] == 1
    assert_suspect(device)
    assert system.counts["fsync_folder"] == 1
    assert device.read(part(1)) == b"one"


def test_a_flush_that_can_not_open_a_folder_may_be_tried_again(root: Path, device: LocalDevice) -> None:
    device.put(part(1), [b"one"])
    os.rename(root, root.with_name("elsewhere"))
    with pytest.raises(Unavailable):
        device.flush()
    os.rename(root.with_name("elsewhere"), root)
    device.flush()


def test_a_flush_fsyncs_the_folders_of_the_puts_and_those_that_lead_to_a_new_one(
    device: LocalDevice, system: FaultySystem
) -> None:
    for number in (1, 1 + 256, 2):
        device.put(part(number), [b"x"])
    device.flush()
    assert system.counts["fsync_folder"] == 2
    device.put(f"versions/{MODEL}/one", [b"x"])
    device.flush()
    assert system.counts["fsync_folder"] == 4
    device.flush()
    assert system.counts["fsync_folder"] == 4
    device.delete(part(1))
    device.delete(part(3))  # absent: who removed it may not have lived to its flush
    device.flush()
    assert system.counts["fsync_folder"] == 6


# ---------------------------------------------------------------------------- reads


def test_a_truncated_object_is_an_integrity_error(root: Path, device: LocalDevice) -> None:
    device.put(part(1), [content(10_000)])
    os.truncate(root / part(1), 9_999)
    with pytest.raises(Integrity, match="shorter than expected: 9999 bytes where 10000 are needed"):
        device.read_into(part(1), 0, [memoryview(bytearray(10_000))])
    assert device.size_of(part(1)) == 9_999


def test_an_object_that_shrinks_under_a_read_is_an_integrity_error(root: Path) -> None:
    class Shrinking(SystemCalls):
        def preadv(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
            os.truncate(root / part(1), 5_000)
            return super().preadv(descriptor, views, offset)

        def pread(self, descriptor: int, size_bytes: int, offset: int) -> bytes:
            os.truncate(root / part(1), 3_000)
            return super().pread(descriptor, size_bytes, offset)

    device = open_at(root, Shrinking())
    device.put(part(1), [content(10_000)])
    with pytest.raises(Integrity, match="shorter than expected: 5000"):
        device.read_into(part(1), 0, [memoryview(bytearray(10_000))])
    with pytest.raises(Integrity, match="shorter than expected: 3000"):
        device.read(part(1))


def test_an_object_is_not_shortened_while_it_is_kept(root: Path, device: LocalDevice) -> None:
    device.put(part(1), [content(4096)])
    path, size = root / part(1), len(content(4096))
    opened = device.open_object(part(1))
    try:
        assert opened.keep_length(size)
        assert not opened.keep_length(size + 1)
        path.chmod(0o600)
        cutting = threading.Thread(target=os.truncate, args=[path, 1], daemon=True)
        cutting.start()
        cutting.join(0.3)
        assert cutting.is_alive()
        assert path.stat().st_size == size
    finally:
        opened.close()
    cutting.join(10)
    assert path.stat().st_size == 1


def test_whoever_keeps_an_object_learns_that_somebody_waits_to_write_to_it(root: Path, device: LocalDevice) -> None:
    device.put(part(1), [content(4096)])
    path, size = root / part(1), len(content(4096))
    opened = device.open_to_map(part(1), size)
    assert not opened.keeps_length(), "nobody asked for it"
    assert opened.keep_length(size)
    assert opened.keeps_length()
    path.chmod(0o600)
    cutting = threading.Thread(target=os.truncate, args=[path, 1], daemon=True)
    cutting.start()
    give_up = time.monotonic() + 10
    while opened.keeps_length():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert path.stat().st_size == size
    del opened  # the last reference closes it, and gives its length free
    cutting.join(10)
    assert path.stat().st_size == 1


def test_a_process_that_was_forked_does_not_go_on_keeping_an_object(root: Path, device: LocalDevice) -> None:
    device.put(part(1), [content(4096)])
    opened = device.open_object(part(1))
    assert opened.keep_length(4096)
    end, begin = os.pipe()
    child = os.fork()
    if not child:
        os.close(begin)
        os.read(end, 1)
        os._exit(0)
    os.close(end)
    try:
        opened.close()
        (root / part(1)).chmod(0o600)
        cutting = threading.Thread(target=os.truncate, args=[root / part(1), 1], daemon=True)
        cutting.start()
        cutting.join(10)
        assert not cutting.is_alive()
    finally:
        os.close(begin)
        os.waitpid(child, 0)


@pytest.mark.parametrize("harm", ["gone", "cut", "being written", "refused"])
def test_an_object_that_can_not_be_kept_is_read_instead(
    root: Path, device: LocalDevice, system: FaultySystem, harm: str
) -> None:
    device.put(part(1), [content(4096)])
    path, size = root / part(1), len(content(4096))
    path.chmod(0o600)
    with ExitStack() as stack:
        if harm == "gone":
            path.unlink()
        elif harm == "cut":
            os.truncate(path, 1)
        elif harm == "being written":
            stack.enter_context(path.open("r+b"))
        else:
            system.fail("keep_length", errno.EACCES)
        opened = device.open_object(part(1))
        stack.callback(opened.close)
        assert not opened.keep_length(size)
        if harm in ("gone", "cut"):
            with pytest.raises(TensorkeepError):
                opened.read_into(0, [memoryview(bytearray(size))])
        else:
            found = bytearray(size)
            opened.read_into(0, [memoryview(found)])
            assert bytes(found) == content(4096)


@pytest.mark.parametrize("call", ["preadv", "pread"])
def test_an_error_of_the_disk_on_reading_is_unavailable(device: LocalDevice, system: FaultySystem, call: str) -> None:
    device.put(part(1), [content(1000)])
    system.fail(call, errno.EIO)
    reads: dict[str, Callable[[], object]] = {
        "pread": lambda: device.read(part(1)),
        "preadv": lambda: device.read_into(part(1), 0, [memoryview(bytearray(10))]),
    }
    with pytest.raises(Unavailable, match="EIO"):
        reads[call]()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_what_is_no_file_under_an_objects_name_is_refused_without_a_hang(
    root: Path, device: LocalDevice, make: Callable[[Path], None]
) -> None:
    make(root / part(1))
    with pytest.raises(Integrity, match="not a regular file"):
        device.read(part(1))
    with pytest.raises(Integrity, match="not a regular file"):
        device.read_into(part(1), 0, [memoryview(bytearray(1))])
    with pytest.raises(Integrity, match="not a regular file"):
        device.size_of(part(1))
    assert listed(device) == {}


# ------------------------------------------------------------------------- kill -9

KILLED_WRITER = """
    import sys
    from tensorkeep.devices import LocalDevice
    from tensorkeep.devices.system_calls import SystemCalls
    from tensorkeep.runtime import Runtime

    root, name, stop_at = sys.argv[1:]

    class Stopping(SystemCalls):
        def pwritev(self, descriptor, views, offset):
            if stop_at != "pwritev":
                return super().pwritev(descriptor, views, offset)
            super().pwritev(descriptor, [views[0][:100_000]], offset)
            self.stop()

        def link(self, source, target):
            if stop_at == "link":
                self.stop()
            super().link(source, target)

        def unlink(self, path):
            self.stop()

        def stop(self):
            print("stopped", flush=True)
            sys.stdin.read()

    LocalDevice(root, runtime=Runtime(), url="file://" + root, system=Stopping()).put(name, [bytes(300_000)])
"""


@pytest.mark.parametrize("stop_at", ["pwritev", "link", "unlink"])
def test_a_writer_killed_in_mid_put_leaves_only_what_the_sweep_removes(
    root: Path, device: LocalDevice, stop_at: str
) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(KILLED_WRITER), str(root), part(1), stop_at]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "stopped\n"
        published = {part(1): 300_000} if stop_at == "unlink" else {}
        assert listed(device) == published
        assert device.sweep_unfinished(0) == 0
        assert len(os.listdir(root / "tmp")) == 1
        writer.kill()
    assert listed(device) == published
    assert device.sweep_unfinished(3600) == 0
    assert device.sweep_unfinished(0) == 1
    assert os.listdir(root / "tmp") == []
    assert listed(device) == published


# ------------------------------------------------------------- real file systems


@contextmanager
def mounted(*options: str, at: Path) -> Iterator[Path]:
    at.mkdir()
    subprocess.run(["mount", *options, str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("size", ["size=4m", "nr_inodes=900"])
def test_a_full_file_system_is_a_lack_of_capacity_and_keeps_what_it_has(tmp_path: Path, size: str) -> None:
    with mounted("-t", "tmpfs", "-o", size, "none", at=tmp_path / "small") as root:
        device = open_at(root)
        device.prepare()
        device.put(part(0), [b"kept"])
        stored = {part(0): 4}

        def put_many() -> None:
            for number in range(1, 200):
                device.put(part(number), [content(100_000)])
                stored[part(number)] = 100_000

        with pytest.raises(Capacity) as caught:
            put_many()
        assert caught.value.facts["errno"] == errno.ENOSPC
        assert listed(device) == stored
        assert os.listdir(root / "tmp") == []
        device.delete(part(1))
        device.put(part(1000), [b"room again"])
        assert device.read(part(0)) == b"kept"


@pytest.mark.root
def test_a_full_file_system_is_noticed_without_fallocate_too(tmp_path: Path) -> None:
    system = FaultySystem(step_bytes=65_536)
    system.fail("allocate", errno.EOPNOTSUPP)
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", at=tmp_path / "small") as root:
        device = open_at(root, system)
        device.prepare()
        with pytest.raises(Capacity):
            device.put(part(1), [content(2_000_000)])
        assert_nothing_visible(root)


@pytest.mark.root
def test_a_read_only_file_system_is_read_and_not_written(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "none", at=tmp_path / "disk") as root:
        device = open_at(root)
        device.prepare()
        device.put(part(1), [b"kept"])
        device.flush()
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        calls: list[Callable[[], object]] = [
            lambda: device.put(part(2), [b"more"]),
            lambda: device.delete(part(1)),
            lambda: device.replace_identity(b"{}"),
        ]
        for call in calls:
            with pytest.raises(PermissionDenied, match="EROFS"):
                call()
        assert device.read(part(1)) == b"kept"
        device.prepare()


@pytest.mark.root
def test_an_unmounted_disk_is_unavailable_and_its_mount_point_stays_empty(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "none", at=tmp_path / "disk") as root:
        device = open_device(str(root), runtime=Runtime())
        device.prepare()
        device.put(part(1), [b"kept"])
        assert device.durability == "soft"
    calls: list[Callable[[], object]] = [
        lambda: device.put(part(2), [b"more"]),
        lambda: device.delete(part(1)),
        lambda: device.read(part(1)),
        lambda: device.size_of(part(2)),
        lambda: list(device.iter_objects("")),
        lambda: list(device.iter_objects("parts/")),
        lambda: device.sweep_unfinished(0),
    ]
    for call in calls:
        with pytest.raises(Unavailable, match="mounted"):
            call()
    assert os.listdir(root) == []


@pytest.mark.root
def test_a_disk_that_loses_written_bytes_fails_the_put_and_is_suspect(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "size=6m", "none", at=tmp_path / "small") as small:
        image = small / "disk.img"
        # A disk of 64 MB that has room for 6: the loss shows when the kernel writes back, that is at the fsync.
        subprocess.run(["truncate", "-s", "64M", str(image)], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(image)], check=True)
        with mounted("-o", "loop", str(image), at=tmp_path / "disk") as root:
            device = open_at(root / "store")
            device.prepare()
            device.put(part(1), [b"kept"])
            device.flush()
            assert device.durability == "durable"
            with pytest.raises((Capacity, Unavailable)):  # which one depends on what the disk below says
                device.put(part(2), [content(16_000_000)])
            assert_suspect(device)
            assert device.read(part(1)) == b"kept"
            assert listed(device) == {part(1): 4}


# ------------------------------------------------------------------------- batches


def aligned(size: int, seed: int) -> memoryview:
    buffer = allocate(max(size, 2 * MIB))[:size]
    buffer[:] = content(size, seed)
    return buffer


SIZES = [2 * MIB, 3 * MIB + 4096, 2 * MIB + 1, 5, 0, MIB + 4095]


def a_batch() -> list[tuple[str, list[memoryview]]]:
    return [(part(number), [aligned(size, number)]) for number, size in enumerate(SIZES)]


def assert_batch(device: LocalDevice, count: int) -> None:
    assert listed(device) == {part(number): size for number, size in enumerate(SIZES[:count])}
    for number in range(count):
        assert device.read(part(number)) == content(SIZES[number], number)


def test_a_batch_is_written_byte_for_byte_and_fsynced_before_the_first_name(root: Path) -> None:
    order: list[str] = []

    class Watched(FaultySystem):
        def fsync(self, descriptor: int) -> None:
            order.append("fsync")
            super().fsync(descriptor)

        def link(self, source: str, target: str) -> None:
            order.append("link")
            super().link(source, target)

    device = open_at(root, Watched())
    assert device.put_batch(a_batch()) == (len(SIZES), None)
    assert order == ["fsync"] * len(SIZES) + ["link"] * len(SIZES)
    assert_batch(device, len(SIZES))
    assert device.put_batch([]) == (0, None)


def test_a_batch_of_many_small_objects_needs_few_open_files(root: Path) -> None:
    held: set[int] = set()
    most: list[int] = []

    class Counting(SystemCalls):
        def open(self, path: str, flags: int, mode: int = 0o600) -> int:
            descriptor = super().open(path, flags, mode)
            if flags & os.O_ACCMODE == os.O_WRONLY:
                held.add(descriptor)
                most.append(len(held))
            return descriptor

        def close(self, descriptor: int) -> None:
            held.discard(descriptor)
            super().close(descriptor)

    objects = [(part(number), [content(10, number)]) for number in range(150)]
    assert open_at(root, Counting()).put_batch(objects) == (150, None)
    assert len(most) == 150
    assert max(most) <= 32


def test_whole_pages_go_past_the_page_cache_and_the_rest_through_it(root: Path) -> None:
    direct: dict[int, bool] = {}
    written: list[tuple[int, bool]] = []

    class Watched(SystemCalls):
        def set_direct(self, descriptor: int, *, direct: bool) -> None:
            super().set_direct(descriptor, direct=direct)
            flags[descriptor] = direct

        def pwritev(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
            count = super().pwritev(descriptor, views, offset)
            written.append((count, flags.get(descriptor, False)))
            return count

    flags = direct
    open_at(root, Watched()).put(part(1), [aligned(3 * MIB + 4097, 1)])
    open_at(root, Watched()).put(part(2), [aligned(3 * MIB, 2)[1:]])
    open_at(root, Watched()).put(part(3), [aligned(MIB - 1, 3)])
    assert written == [(3 * MIB + 4096, True), (1, False), (3 * MIB - 1, False), (MIB - 1, False)]


@pytest.mark.parametrize("step_bytes", [None, 777_777, 8192])
def test_a_file_system_without_direct_writes_or_with_other_steps_is_written_all_the_same(
    root: Path, step_bytes: int | None
) -> None:
    class Odd(FaultySystem):
        def set_direct(self, descriptor: int, *, direct: bool) -> None:
            if step_bytes is None:
                raise OSError(errno.EINVAL, "no direct writes")
            super().set_direct(descriptor, direct=direct)

    device = open_at(root, Odd(step_bytes=step_bytes))
    assert device.put_batch(a_batch()) == (len(SIZES), None)
    assert_batch(device, len(SIZES))


def test_a_disk_that_refuses_the_alignment_is_written_through_the_page_cache(
    root: Path, device: LocalDevice, system: FaultySystem
) -> None:
    system.fail("pwritev", errno.EINVAL, on_call=1)
    assert device.put_batch(a_batch()) == (len(SIZES), None)
    assert_batch(device, len(SIZES))


@pytest.mark.parametrize("call", ["pwritev", "allocate"])
def test_what_a_batch_wrote_before_an_error_is_kept(
    root: Path, device: LocalDevice, system: FaultySystem, call: str
) -> None:
    system.fail(call, errno.ENOSPC, on_call=3)
    done, error = device.put_batch(a_batch())
    assert isinstance(error, Capacity)
    assert done == 2
    assert_batch(device, 2)
    assert os.listdir(root / "tmp") == []


def test_an_fsync_error_in_a_batch_gives_no_file_its_name_and_makes_the_device_suspect(
    root: Path, device: LocalDevice, system: FaultySystem
) -> None:
    device.put(part(7), [b"before"])
    system.fail("fsync", errno.EIO, on_call=2)
    done, error = device.put_batch(a_batch())
    assert done == 0
    assert isinstance(error, Unavailable)
    assert system.counts["fsync"] == 3
    done, error = device.put_batch(a_batch())
    assert done == 0
    assert error is not None
    assert error.facts["suspect"] is True
    assert listed(device) == {part(7): 6}
    assert os.listdir(root / "tmp") == []


def test_a_name_that_is_taken_ends_a_batch_there(root: Path, device: LocalDevice) -> None:
    device.put(part(2), [b"first"])
    done, error = device.put_batch(a_batch())
    assert isinstance(error, AlreadyExists)
    assert done == 2
    assert device.read(part(2)) == b"first"
    assert listed(device) == {part(0): SIZES[0], part(1): SIZES[1], part(2): 5}
    assert os.listdir(root / "tmp") == []
