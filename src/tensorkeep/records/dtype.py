"""Dtypes by their safetensors spelling: bits per element and the numpy type that holds them.

Types narrower than a byte are packed; numpy has no packed types, so they load as ``uint8`` with the last dimension in
bytes. torch names live in the torch integration.

Source: https://github.com/huggingface/safetensors (``Dtype`` in ``tensor.rs``).
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np

from tensorkeep.errors import Format


class Dtype(NamedTuple):
    """Bits per element, and the numpy dtype that arrays get (``uint8`` for packed types)."""

    bits: int
    numpy: np.dtype


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

NAMES_BY_NUMPY: dict[np.dtype, str] = {dtype.numpy: name for name, dtype in DTYPES.items() if dtype.bits >= 8}
"""The safetensors name of a numpy dtype, for arrays pushed from memory."""


def find_dtype(name: str) -> Dtype | None:
    """Return a dtype by its safetensors name, or None."""
    return DTYPES.get(name)


def get_dtype(name: str) -> Dtype:
    """Return a dtype by its safetensors name.

    Raises:
        Format: there is none of that name.
    """
    if (dtype := DTYPES.get(name)) is None:
        raise Format(f"dtype {name!r} is not known: known are {', '.join(DTYPES)}", dtype=name)
    return dtype


def packed_shape(shape: tuple[int, ...], dtype: Dtype) -> tuple[int, ...]:
    """Return the shape of the array that holds a tensor: the last dimension in bytes for packed types.

    Raises:
        Format: the last dimension does not fill whole bytes.
    """
    if dtype.bits >= 8:
        return shape
    bits = (shape[-1] if shape else 1) * dtype.bits
    if bits % 8:
        raise Format(f"a tensor of {dtype.bits}-bit elements and shape {shape} does not fill whole bytes a row")
    return (*shape[:-1], bits // 8)
