"""Buffers: aligned, writable, theirs until the last view dies."""

import gc
import weakref

import numpy as np
import pytest

from tensorkeep.transfer.memory import HUGE_PAGE_BYTES, allocate


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4097, HUGE_PAGE_BYTES - 1])
def test_small_buffers_start_at_a_cache_line(size: int) -> None:
    buffer = allocate(size)
    assert (len(buffer), buffer.readonly, buffer.format) == (size, False, "B")
    assert np.frombuffer(buffer, np.uint8).ctypes.data % 64 == 0 or not size


@pytest.mark.parametrize("size", [HUGE_PAGE_BYTES, HUGE_PAGE_BYTES + 1, 5 * HUGE_PAGE_BYTES - 1])
def test_large_buffers_start_at_a_huge_page_and_are_zero(size: int) -> None:
    buffer = allocate(size)
    array = np.frombuffer(buffer, np.uint8)
    assert (len(buffer), buffer.readonly, buffer.format) == (size, False, "B")
    assert array.ctypes.data % HUGE_PAGE_BYTES == 0
    assert not array.any()
    buffer[-1] = 7
    assert array[-1] == 7


def test_an_array_keeps_its_buffer_alive_and_frees_it_with_itself() -> None:
    buffer = allocate(HUGE_PAGE_BYTES)
    area = weakref.ref(buffer.obj)
    array = np.frombuffer(buffer, np.uint8)[10:20]
    del buffer
    gc.collect()
    assert area() is not None
    array[:] = 1
    del array
    gc.collect()
    assert area() is None


def test_more_than_there_is_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        allocate(1 << 62)
