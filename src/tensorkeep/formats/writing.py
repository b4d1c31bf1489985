"""Writes the header of a safetensors file, for arrays that are pushed from memory and models that leave in this format.

The bytes are those that the safetensors library writes for the same tensors: the widest dtypes come first, so that every
tensor starts aligned. The library writes metadata in a random order, so here it is sorted.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from tensorkeep.errors import InvalidInput
from tensorkeep.formats.protocol import TensorLayout
from tensorkeep.formats.safetensors import HEADER_LIMIT_BYTES, LENGTH_BYTES, MAX_RANK, METADATA_KEY
from tensorkeep.records.dtype import DTYPES

_ALIGNMENT_BYTES = 8
_MAX_BYTES = 1 << 60  # what a reader's limit of 2^63 bits allows to a tensor, here to all of them
_DTYPE_ORDER = {
    name: order for order, name in enumerate(DTYPES)
}  # the library sorts by its enumeration: by width first

NamedShape = tuple[str, str, tuple[int, ...]]
"""Name, dtype (safetensors spelling) and shape of a tensor."""


def safetensors_header(
    tensors: Sequence[NamedShape], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[TensorLayout]]:
    """Return what stands before the data of a safetensors file, and where each tensor then lies, in file order.

    The file is these bytes followed by the tensors' bytes in the order of the layouts, without gaps. Any order of the
    input gives the same file. ``metadata`` is the file's ``__metadata__``; None: it has none.

    Raises:
        InvalidInput: a name is taken twice, reserved or not valid Unicode, a dtype is unknown, a shape is negative, does
            not fill whole bytes or is too large, or there are more tensors than a header can hold.
    """
    lengths = {name: _length(name, dtype, shape) for name, dtype, shape in tensors}
    if len(lengths) != len(tensors):
        raise InvalidInput("two arrays have the same name: rename one")
    ordered = sorted(tensors, key=lambda tensor: (-_DTYPE_ORDER[tensor[1]], tensor[0]))
    fields: dict[str, object] = {} if metadata is None else {METADATA_KEY: dict(sorted(metadata.items()))}
    offset = 0
    for name, dtype, shape in ordered:
        end = offset + lengths[name]
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, end)}
        offset = end
    if offset >= _MAX_BYTES:
        raise InvalidInput(f"the arrays have {offset} bytes; the limit of one file is {_MAX_BYTES - 1}")
    header = _encode(fields, len(ordered))
    layouts = []
    start = len(header)
    for name, dtype, shape in ordered:
        layouts.append(TensorLayout(name, dtype, tuple(shape), None, start, lengths[name]))
        start += lengths[name]
    return header, layouts


def _length(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor that a header may hold."""
    if name == METADATA_KEY:
        raise InvalidInput(f"{METADATA_KEY!r} is reserved in safetensors files: rename the array", tensor=name)
    if dtype not in DTYPES:
        raise InvalidInput(
            f"array {name!r} has the unknown dtype {dtype!r}; known are {', '.join(DTYPES)}", tensor=name
        )
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise InvalidInput(f"array {name!r} has no possible shape: {list(shape)}", tensor=name)
    bits = math.prod(shape) * DTYPES[dtype].bits
    if bits % 8 or math.prod(size for size in shape if size) * DTYPES[dtype].bits >= _MAX_BYTES * 8:
        raise InvalidInput(
            f"array {name!r} of shape {list(shape)} and dtype {dtype} does not fill whole bytes, or is too large",
            tensor=name,
        )
    return bits // 8


def _encode(fields: dict[str, object], tensors: int) -> bytes:
    try:
        text = msgspec.json.encode(fields)
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the name of an array, or the metadata, is not valid Unicode: {error}") from error
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    if len(text) > HEADER_LIMIT_BYTES:
        raise InvalidInput(
            f"a header of {len(text)} bytes is over the limit of {HEADER_LIMIT_BYTES}: write the {tensors} arrays as "
            "several files"
        )
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
