"""The npy format: one array of numpy, in C or Fortran order, after a short header.

The array is a tensor if it holds numbers or times; its name is the file's without ``.npy``. Objects (pickles), texts and
records are no tensors. Arrays of ml_dtypes (bfloat16) are saved by numpy as raw bytes without their type, so nobody can
tell what they were.

Source: ``numpy.lib.format``.
"""

import math
import posixpath
from typing import NamedTuple

from tensorkeep.errors import Format
from tensorkeep.formats.npy_header import NpyHeader, read_header
from tensorkeep.formats.opaque import opaque_structure
from tensorkeep.formats.protocol import ByteSource, FileStructure, TensorLayout
from tensorkeep.records.dtype import get_dtype, npy_name

NPY = "npy"
"""The format's name in manifests."""

NPY_SUFFIX = ".npy"

_MAX_BYTES = 1 << 63
_NOT_NUMERIC = {"O": "pickled objects", "S": "texts", "U": "texts", "a": "texts", "V": "records"}
_ORDERS = "<>|="


class NoTensor(NamedTuple):
    """An array that can't be loaded: why, in a few words, and whether it may hold numbers for all that is known."""

    reason: str
    maybe_numeric: bool


class NpyReader:
    """Reads the structure of ``*.npy`` files: the header alone."""

    name = NPY

    def claims(self, path: str) -> bool:
        """Return whether the path ends with ``.npy``, in any case."""
        return path.lower().endswith(NPY_SUFFIX)

    def read_structure(self, path: str, source: ByteSource) -> FileStructure:
        """Return the one tensor of a file, or an opaque structure that says what the file holds instead.

        Raises:
            Format: the file breaks a rule; the message says which.
            InvalidInput: the source ended early (it shrank).
        """
        found = read_array(_stem(path), source)
        if isinstance(found, NoTensor):
            return opaque_structure(f"it holds {found.reason}")
        return FileStructure(NPY, (found,))


def read_array(name: str, source: ByteSource) -> TensorLayout | NoTensor:
    """Return where the array of an npy file lies in it, under the name given, or what the file holds instead.

    Raises:
        Format: it is no npy file, its header is not what numpy writes, or its size is not what its header says.
        InvalidInput: the source ended early (it shrank).
    """
    header = read_header(source)
    dtype = None if header.descr is None else npy_name(header.descr)
    if dtype is None:
        return _describe(header.descr)
    item = get_dtype(dtype).numpy.itemsize
    if math.prod(size for size in header.shape if size) * item >= _MAX_BYTES:
        raise Format(f"its header has a shape whose product overflows: {list(header.shape)}")
    length = math.prod(header.shape) * item
    if header.data_start + length != source.size_bytes:
        raise Format(
            f"it has {source.size_bytes - header.data_start} bytes of data, and its shape {list(header.shape)} and dtype "
            f"{header.descr} need {length}: an incomplete download?"
        )
    return TensorLayout(name, dtype, header.shape, _strides(header), header.data_start, length)


def _describe(descr: str | None) -> NoTensor:
    if descr is None:
        return NoTensor("records", maybe_numeric=False)
    kind = descr.lstrip(_ORDERS)
    if kind in ("V1", "V2", "f1"):
        return NoTensor(
            f"raw elements of {kind[1:]} byte(s), as numpy saves bfloat16 and the other types of ml_dtypes: save it as "
            "safetensors, or view it as integers before saving",
            maybe_numeric=True,
        )
    if kind[:1] in _NOT_NUMERIC and (not kind[1:] or kind[1:].isdecimal()):
        return NoTensor(_NOT_NUMERIC[kind[0]], maybe_numeric=False)
    return NoTensor(
        f"elements of a dtype that numpy does not write or this one does not have, {descr[:40]!r}", maybe_numeric=True
    )


def _strides(header: NpyHeader) -> tuple[int, ...] | None:
    """Return the strides of Fortran order, in elements; None where it is C order too."""
    if not header.fortran_order or 0 in header.shape or sum(size > 1 for size in header.shape) < 2:
        return None
    return tuple(math.prod(header.shape[:axis]) for axis in range(len(header.shape)))


def _stem(path: str) -> str:
    name = posixpath.basename(path)
    stem = name[: -len(NPY_SUFFIX)] if name.lower().endswith(NPY_SUFFIX) else name
    return stem or name
