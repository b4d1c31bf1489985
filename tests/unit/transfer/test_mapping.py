"""Files side by side in one range of addresses: right bytes, private writes, nothing left when the last view dies."""

import gc
import os
import re
import weakref
from pathlib import Path

import numpy as np
import pytest

from tensorkeep.transfer.mapping import PAGE_BYTES, MappedRange
from tensorkeep.transfer.memory import HUGE_PAGE_BYTES


def lay(area: MappedRange, at: int, path: Path, start: int, length: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        area.lay_file(at, descriptor, start, length)
    finally:
        os.close(descriptor)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_bytes(b"a" * PAGE_BYTES + b"A" * PAGE_BYTES)
    paths[1].write_bytes(b"b" * 100)
    return paths


def test_pages_of_several_files_are_one_run_of_memory(files: list[Path]) -> None:
    area = MappedRange(2 * PAGE_BYTES)
    lay(area, 0, files[0], PAGE_BYTES, PAGE_BYTES)
    lay(area, PAGE_BYTES, files[1], 0, 100)
    assert bytes(area.view(PAGE_BYTES - 2, 5)) == b"AAbbb"
    assert bytes(area.view(PAGE_BYTES + 99, 3)) == b"b\0\0"


def test_what_is_written_stays_in_this_process(files: list[Path]) -> None:
    area = MappedRange(PAGE_BYTES)
    lay(area, 0, files[1], 0, 100)
    area.view(0, 3)[:] = b"xyz"
    assert bytes(area.view(0, 4)) == b"xyzb"
    assert files[1].read_bytes() == b"b" * 100


def test_memory_takes_the_place_of_a_file_that_became_shorter(files: list[Path]) -> None:
    area = MappedRange(PAGE_BYTES)
    lay(area, 0, files[1], 0, 100)
    files[1].write_bytes(b"")  # to touch the mapping now would be the end of the process
    memory = area.lay_memory(0, 100)
    assert bytes(memory) == bytes(100)
    memory[:2] = b"ok"
    assert bytes(area.view(0, 3)) == b"ok\0"


def test_an_array_keeps_the_range_alive_and_frees_all_of_it(files: list[Path]) -> None:
    def mappings() -> int:
        lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
        return sum(line.endswith(str(files[0])) for line in lines)

    area = MappedRange(2 * PAGE_BYTES)
    lay(area, 0, files[0], 0, 2 * PAGE_BYTES)
    array = np.frombuffer(area.view(PAGE_BYTES, 8), np.uint8)
    owner = weakref.ref(area.view(0, 1).obj)
    del area
    gc.collect()
    assert array.tobytes() == b"A" * 8
    assert mappings() == 1
    del array
    gc.collect()
    assert owner() is None
    assert mappings() == 0


@pytest.mark.parametrize(("at", "start", "length"), [(0, 0, 2 * PAGE_BYTES), (-1, 0, 1), (8, 0, 1), (0, 8, 1)])
def test_nothing_is_laid_outside_of_the_range_or_off_its_pages(
    at: int, start: int, length: int, files: list[Path]
) -> None:
    area = MappedRange(PAGE_BYTES)
    with pytest.raises(ValueError, match=r"can't (be laid|lie)"):
        lay(area, at, files[0], start, length)


def test_what_the_system_refuses_is_an_error(tmp_path: Path) -> None:
    area = MappedRange(PAGE_BYTES)
    with pytest.raises(OSError, match=r"\[Errno 19\]|\[Errno 13\]"):
        lay(area, 0, tmp_path, 0, 1)  # a folder


def test_an_empty_range_has_nothing_to_give() -> None:
    assert len(MappedRange(0).view(0, 0)) == 0


def test_a_long_file_at_its_place_can_be_populated_and_what_is_not_there_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(os.urandom(3 * HUGE_PAGE_BYTES))
    area = MappedRange(3 * HUGE_PAGE_BYTES)
    assert np.frombuffer(area.view(0, 1), np.uint8).ctypes.data % HUGE_PAGE_BYTES == 0
    lay(area, 0, path, 0, 3 * HUGE_PAGE_BYTES)
    assert resident(area, 2 * HUGE_PAGE_BYTES) == 0
    assert area.populate(0, 2 * HUGE_PAGE_BYTES)
    assert resident(area, 2 * HUGE_PAGE_BYTES) == 2 * HUGE_PAGE_BYTES
    os.truncate(path, HUGE_PAGE_BYTES)
    assert not area.populate(0, 3 * HUGE_PAGE_BYTES)  # to touch the end now would be the end of the process
    assert bytes(area.view(0, HUGE_PAGE_BYTES)) == path.read_bytes()
    with pytest.raises(ValueError, match="range"):
        area.populate(0, 4 * HUGE_PAGE_BYTES)


def resident(area: MappedRange, length: int) -> int:
    """Return how many bytes of the range's beginning this process has mapped. Source: proc(5), smaps."""
    address = np.frombuffer(area.view(0, 1), np.uint8).ctypes.data
    text = Path("/proc/self/smaps").read_text("utf-8")
    [found] = [part for part in text.split("VmFlags") if re.search(rf"^{address:x}-", part, re.MULTILINE)]
    return min(int(re.findall(r"Rss: +(\d+) kB", found)[-1]) * 1024, length)
