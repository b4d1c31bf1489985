"""ISA-L's Reed-Solomon arithmetic, called through ctypes: 5 to 20 times faster than anything else that can be had.

pyeclib's wheels bring the library; else the system's is taken. A call releases the interpreter lock.

Source: https://github.com/intel/isa-l, ``include/erasure_code.h``.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, files

import numpy as np

from tensorkeep.codecs import galois
from tensorkeep.codecs.galois import Matrix

_TABLE_BYTES = 32
"""What ISA-L expands each factor to."""

_SYSTEM_NAMES = ("libisal.so.2",)


class Isal:
    """The arithmetic of one loaded library. Thread safe.

    Raises:
        OSError: the file can't be loaded.
        AttributeError: it is another library.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        pointers = ctypes.POINTER(ctypes.c_void_p)
        self._init_tables = library.ec_init_tables
        self._init_tables.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        self._init_tables.restype = None
        self._encode = library.ec_encode_data
        self._encode.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, pointers, pointers]
        self._encode.restype = None

    def combine(self, matrix: Matrix, sources: Sequence[memoryview], targets: Sequence[memoryview]) -> None:
        """Write Σ_j matrix[i, j] · sources[j] to targets[i], as `galois.combine` does."""
        rows, columns = matrix.shape
        factors = np.ascontiguousarray(matrix)
        tables = np.empty(_TABLE_BYTES * rows * columns, np.uint8)
        self._init_tables(columns, rows, factors.ctypes.data, tables.ctypes.data)
        # The arrays keep what is read and written alive until the call is over.
        read, written = ([np.frombuffer(view, np.uint8) for view in views] for views in (sources, targets))
        self._encode(len(targets[0]), columns, rows, tables.ctypes.data, _addresses(read), _addresses(written))


def _addresses(arrays: Sequence[np.ndarray[tuple[int], np.dtype[np.uint8]]]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


@cache
def find_isal() -> Isal | None:
    """Return ISA-L, once it was seen to calculate as `galois` does; None where there is none, or it does not."""
    for path in [*_bundled(), *_SYSTEM_NAMES]:
        try:
            found = Isal(path)
        except (OSError, AttributeError):
            continue
        if is_right(found):
            return found
    return None


def is_right(isal: Isal) -> bool:
    """Return whether a library gives what the slow arithmetic gives, for lengths about those at which its code branches."""
    matrix = np.concatenate([galois.cauchy_matrix(5, 3)[5:], np.arange(5, dtype=np.uint8)[None]])
    for size in (1, 15, 16, 31, 32, 63, 64, 65, 200, 4097):
        sources = [memoryview(((np.arange(size) * (7 * j + 3) + j) % 251).astype(np.uint8).tobytes()) for j in range(5)]
        found, right = ([bytearray(size) for _ in matrix] for _ in range(2))
        isal.combine(matrix, sources, [memoryview(each) for each in found])
        galois.combine(matrix, sources, [memoryview(each) for each in right])
        if found != right:
            return False
    return True


def _bundled() -> list[str]:
    """Return the files of pyeclib's wheel that are ISA-L."""
    try:
        members = files("pyeclib") or []
    except PackageNotFoundError:
        return []
    return [str(member.locate()) for member in members if member.name.startswith("libisal")]
