"""Dtypes by name: bits per element and the numpy type that holds them.

Names are those of safetensors where it has one. Quantised types of GGUF are ``GGUF:Q4_K`` and the like: a block of elements
of a row shares scales, so it is the block that has a size. Packed and quantised types load as ``uint8`` with the last
dimension in bytes, since numpy has neither. Other dtypes of numpy are ``NPY:>f4`` and the like (`npy_dtype`). torch names live
in the torch integration.

Source: https://github.com/huggingface/safetensors (``Dtype`` in ``tensor.rs``);
https://github.com/ggml-org/llama.cpp (``GGML_QUANT_SIZES`` in ``gguf-py/gguf/constants.py``).
"""

from functools import lru_cache
from typing import NamedTuple

import ml_dtypes
import numpy as np

from tensorkeep.errors import Format
from tensorkeep.records.npy_dtype import NPY_PREFIX, canonical_descr, find_descr


class Dtype(NamedTuple):
    """How elements are held.

    Attributes:
        bits: of one block; of one element where a block is one element.
        numpy: the dtype that arrays get, ``uint8`` for packed and quantised types.
        block_elements: neighbours in a row that make one block; 1 for all but quantised types.
    """

    bits: int
    numpy: np.dtype
    block_elements: int = 1


DTYPES: dict[str, Dtype] = {
    "BOOL": Dtype(8, np.dtype(np.bool_)),
    "F4": Dtype(4, np.dtype(np.uint8)),
    "F6_E2M3": Dtype(6, np.dtype(np.uint8)),
    "F6_E3M2": Dtype(6, np.dtype(np.uint8)),
    "U8": Dtype(8, np.dtype(np.uint8)),
    "I8": Dtype(8, np.dtype(np.int8)),
    "F8_E5M2": Dtype(8, np.dtype(ml_dtypes.float8_e5m2)),
    "F8_E4M3": Dtype(8, np.dtype(ml_dtypes.float8_e4m3fn)),
    "F8_E8M0": Dtype(8, np.dtype(ml_dtypes.float8_e8m0fnu)),
    "F8_E4M3FNUZ": Dtype(8, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    "F8_E5M2FNUZ": Dtype(8, np.dtype(ml_dtypes.float8_e5m2fnuz)),
    "I16": Dtype(16, np.dtype("<i2")),
    "U16": Dtype(16, np.dtype("<u2")),
    "F16": Dtype(16, np.dtype("<f2")),
    "BF16": Dtype(16, np.dtype(ml_dtypes.bfloat16)),
    "I32": Dtype(32, np.dtype("<i4")),
    "U32": Dtype(32, np.dtype("<u4")),
    "F32": Dtype(32, np.dtype("<f4")),
    "C64": Dtype(64, np.dtype("<c8")),
    "F64": Dtype(64, np.dtype("<f8")),
    "I64": Dtype(64, np.dtype("<i8")),
    "U64": Dtype(64, np.dtype("<u8")),
}
"""Every dtype of safetensors, by its name there."""

GGUF_PREFIX = "GGUF:"

_GGUF_BLOCKS = {
    "Q1_0": (128, 18),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q8_1": (32, 40),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
}
"""Elements and bytes of a block, by GGUF's name of the type."""

GGUF_DTYPES: dict[str, Dtype] = {
    f"{GGUF_PREFIX}{name}": Dtype(size_bytes * 8, np.dtype(np.uint8), elements)
    for name, (elements, size_bytes) in _GGUF_BLOCKS.items()
}
"""Every quantised type of GGUF. Its other types have names of safetensors."""

NAMES_BY_NUMPY: dict[np.dtype, str] = {dtype.numpy: name for name, dtype in DTYPES.items() if dtype.bits >= 8}
"""The safetensors name of a numpy dtype, for arrays pushed from memory."""


@lru_cache(maxsize=1024)
def find_dtype(name: str) -> Dtype | None:
    """Return a dtype by its name, or None."""
    if (dtype := DTYPES.get(name)) is not None or (dtype := GGUF_DTYPES.get(name)) is not None:
        return dtype
    return _find_npy(name.removeprefix(NPY_PREFIX)) if name.startswith(NPY_PREFIX) else None


def npy_name(descr: str) -> str | None:
    """Return the name of what an npy header calls ``descr``: `find_dtype` finds it again. None where it is no number or time."""
    canonical = canonical_descr(descr)
    if canonical is None:
        return None
    return NAMES_BY_NUMPY.get(np.dtype(canonical), NPY_PREFIX + canonical)


def _find_npy(descr: str) -> Dtype | None:
    """Return a dtype of numpy's own, if safetensors has no name for it: a dtype has one name."""
    dtype = find_descr(descr)
    return None if dtype is None or dtype in NAMES_BY_NUMPY else Dtype(dtype.itemsize * 8, dtype)


def get_dtype(name: str) -> Dtype:
    """Return a dtype by its name.

    Raises:
        Format: there is none of that name.
    """
    if (dtype := find_dtype(name)) is None:
        known = ", ".join([*DTYPES, *GGUF_DTYPES, f"{NPY_PREFIX}…"])
        raise Format(f"dtype {name!r} is not known: known are {known}", dtype=name)
    return dtype


def packed_shape(shape: tuple[int, ...], dtype: Dtype) -> tuple[int, ...]:
    """Return the shape of the array that holds a tensor: the last dimension in bytes for packed and quantised types.

    Raises:
        Format: the last dimension does not fill whole bytes or blocks.
    """
    if dtype.bits >= 8 and dtype.block_elements == 1:
        return shape
    blocks, rest = divmod(shape[-1] if shape else 1, dtype.block_elements)
    if rest:
        raise Format(f"a tensor of shape {shape} does not fill whole blocks of {dtype.block_elements} elements a row")
    if blocks * dtype.bits % 8:
        raise Format(f"a tensor of {dtype.bits}-bit elements and shape {shape} does not fill whole bytes a row")
    return (*shape[:-1], blocks * dtype.bits // 8)
