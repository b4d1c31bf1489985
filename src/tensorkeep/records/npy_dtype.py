"""Dtypes by numpy's own spelling: those that arrays in npy files have and safetensors has no word for.

A dtype string of an npy header (``>f4``, ``<c16``, ``<M8[ns]``) names numbers or times, or nothing here: objects, texts and
records are no tensors. `canonical_descr` and `find_descr` are inverse to each other over the canonical spellings, so that
what a manifest says is found again years later.

Source: ``numpy.dtype.str``; numpy's user guide, "Array interface protocol", ``typestr``.
"""

import re
from functools import lru_cache
from typing import Any

import numpy as np

NPY_PREFIX = "NPY:"
"""What the dtypes of this module start with in manifests."""

_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "f16", "c8", "c16", "c32")
_DESCR = re.compile(
    rf"([<>|=]?)({'|'.join(_NUMBERS)}|[mM]8(?:\[(?:[1-9][0-9]{{0,8}})?(?:[YMWDhms]|ms|us|ns|ps|fs|as)\])?)",
    re.ASCII,
)


def canonical_descr(descr: str) -> str | None:
    """Return numpy's own spelling of a dtype string of numbers or times, or None where it is none of them.

    Without a byte order (``=f4``, ``f4``) it is little-endian, as nearly every machine that wrote such a string was.
    """
    match = _DESCR.fullmatch(descr)
    if match is None:
        return None
    dtype = _numpy_dtype(match[2])
    if dtype is None:
        return None
    ordered = dtype.newbyteorder(">" if match[1] == ">" else "<")
    # Times without a unit lose a big-endian order in any array that numpy makes, so no array could be loaded as such.
    return ordered.str if np.empty(0, ordered).dtype == ordered else None


def find_descr(descr: str) -> np.dtype[Any] | None:
    """Return the numpy dtype of a canonical spelling; None for any other, and for what this machine's numpy lacks."""
    return np.dtype(descr) if canonical_descr(descr) == descr else None


@lru_cache(maxsize=1024)
def _numpy_dtype(kind: str) -> np.dtype[Any] | None:
    try:
        return np.dtype(kind)
    except TypeError:  # long doubles of 16 bytes are not everywhere
        return None
