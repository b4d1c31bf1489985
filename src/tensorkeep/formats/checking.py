"""What holds of every structure, whoever read it: the rules that loading and splitting rely on."""

import math

from tensorkeep.errors import Format
from tensorkeep.formats.protocol import FileStructure, TensorLayout
from tensorkeep.records.dtype import find_dtype, packed_shape


def check_structure(structure: FileStructure, size_bytes: int) -> None:
    """Return if tensors have names of their own, lie inside the file in order, and hold what their shapes say.

    A dtype that is not known is loaded as flat bytes, so nothing is asked of its shape.

    Raises:
        Format: the first broken rule, with the tensor.
    """
    names: set[str] = set()
    last = 0
    for tensor in structure.tensors:
        if tensor.name in names:
            raise _broken(tensor, "is there twice")
        names.add(tensor.name)
        if tensor.start < last:
            raise _broken(tensor, "starts before the tensor before it")
        last = tensor.start
        if tensor.length < 0 or tensor.start + tensor.length > size_bytes:
            raise _broken(tensor, f"ends at byte {tensor.start + tensor.length} of {size_bytes}")
        if any(size < 0 for size in tensor.shape):
            raise _broken(tensor, f"has the shape {list(tensor.shape)}")
        _check_length(tensor)


def _check_length(tensor: TensorLayout) -> None:
    dtype = find_dtype(tensor.dtype)
    if dtype is None:
        return
    if tensor.strides is None:
        needed = math.prod(packed_shape(tensor.shape, dtype)) * dtype.numpy.itemsize
        if needed != tensor.length:
            raise _broken(tensor, f"has {tensor.length} bytes; its shape and dtype need {needed}")
        return
    if len(tensor.strides) != len(tensor.shape) or any(stride < 0 for stride in tensor.strides):
        raise _broken(tensor, f"has the strides {list(tensor.strides)} for the shape {list(tensor.shape)}")
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) and reach * dtype.numpy.itemsize > tensor.length:
        raise _broken(tensor, f"reaches over {reach * dtype.numpy.itemsize} bytes and has {tensor.length}")


def _broken(tensor: TensorLayout, problem: str) -> Format:
    return Format(f"tensor {tensor.name!r} {problem}", tensor=tensor.name)
