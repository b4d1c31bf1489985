"""Files laid over one range of addresses, so that what lies in several files is one run of memory and nothing is copied.

The range is anonymous memory of a stdlib ``mmap``, which every array over it keeps alive and which unmaps all of itself when
the last one dies, files included. Files are laid over its pages by ``mmap(2)`` with MAP_FIXED, private: what is written to an
array stays in this process. ``mmap`` is called through ctypes, since Python's can't name an address.

Touching a page of a file that has become shorter is a SIGBUS. So nothing here touches a page; to populate them is an error instead, and whoever
reads them then has the file keep its length.
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from functools import cache
from typing import cast

import numpy as np

from tensorkeep.transfer.memory import HUGE_PAGE_BYTES, ask_for_huge_pages, populate

PAGE_BYTES = mmap.PAGESIZE

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_FAILED = ctypes.c_void_p(-1).value
_ACCESS = mmap.PROT_READ | mmap.PROT_WRITE


class MappedRange:
    """A range of addresses, from a multiple of 2 MiB on, that files are laid over. Not thread safe; any thread may use arrays over it.

    Args:
        size_bytes: of the range, a multiple of a page.

    Raises:
        OSError: the system has no such range to give.
    """

    def __init__(self, size_bytes: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        area = mmap.mmap(-1, size_bytes + HUGE_PAGE_BYTES, flags=flags, prot=_ACCESS)
        address = np.frombuffer(area, dtype=np.uint8).ctypes.data
        skip = -address % HUGE_PAGE_BYTES
        self._view = memoryview(area)[skip : skip + max(size_bytes, PAGE_BYTES)]
        self._address = address + skip
        self._size = size_bytes

    def lay_file(self, at: int, descriptor: int, start: int, length: int) -> None:
        """Lay bytes of an open file at an offset of the range; both offsets are multiples of a page.

        What follows the last byte in its page is the file's, or zero past its end.

        Raises:
            OSError: the system refuses, as where a process has too many mappings.
        """
        self._map(at, length, mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE, descriptor, start)
        if length >= HUGE_PAGE_BYTES:
            ask_for_huge_pages(self._address + at, length)

    def populate(self, at: int, length: int) -> bool:
        """Have pages of the range mapped now, so that whoever touches them need not wait; ``at`` is a multiple of a page.

        Returns:
            Whether all of them are: not those past a file's end.
        """
        self._check(at, length)
        return populate(self._address + at, length)

    def lay_memory(self, at: int, length: int) -> memoryview:
        """Lay fresh zeroed memory there instead, and return it.

        Raises:
            OSError: the system refuses.
        """
        self._map(at, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED, -1, 0)
        return self.view(at, length)

    def view(self, at: int, length: int) -> memoryview:
        """Return bytes of the range, without touching them."""
        return self._view[at : at + length]

    def _map(self, at: int, length: int, flags: int, descriptor: int, start: int) -> None:
        self._check(at, length)
        if start % PAGE_BYTES:
            raise ValueError(f"a file can't be laid from byte {start}: no multiple of {PAGE_BYTES}")
        found = _mmap()(self._address + at, length, _ACCESS, flags, descriptor, start)
        if found == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _check(self, at: int, length: int) -> None:
        if not 0 <= at <= at + length <= self._size or at % PAGE_BYTES:
            raise ValueError(f"{length} bytes can't lie at {at} of a range of {self._size}")  # never outside of it


@cache
def _mmap() -> Callable[[int, int, int, int, int, int], int]:
    found = ctypes.CDLL(None, use_errno=True).mmap
    found.argtypes = (
        *(ctypes.c_void_p, ctypes.c_size_t),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ctypes.c_int64,
    )
    found.restype = ctypes.c_void_p
    return cast("Callable[[int, int, int, int, int, int], int]", found)
