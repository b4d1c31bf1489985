"""torch tensors as the destination of a load and the source of a push. Registered as the framework ``torch``.

CPU tensors are laid over memory that numpy fills (one ``frombuffer`` per tensor: otherwise ``torch.save`` of one would save
all). Tensors of other devices are filled there piece by piece (`tensorkeep.integrations.torch_carrier`), so that no copy of a
whole model is in the host's memory. Quantised types of GGUF are ``uint8`` tensors of their blocks' bytes.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tensorkeep.errors import InvalidInput
from tensorkeep.integrations.torch_carrier import TorchCarrier
from tensorkeep.records.dtype import DTYPES, GGUF_PREFIX, get_dtype, packed_shape
from tensorkeep.store.frameworks import Destination, empty_array
from tensorkeep.transfer.far_memory import FarMemory

_DTYPES: dict[str, str] = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "NPY:<c16": "complex128",
}


class TorchFramework:
    """Makes torch tensors, and fills those of the caller's; keeps one carrier for each device."""

    def __init__(self) -> None:
        self._carriers: dict[torch.device, TorchCarrier] = {}

    def make_empty(
        self, dtype: str, shape: tuple[int, ...], device: str | None, memory: memoryview | None = None
    ) -> Destination:
        """Return an empty tensor, and the numpy view of its memory or the far memory that it is."""
        kind = _torch_dtype(dtype)
        place = _check_device(device)
        if place.type != "cpu":
            return self.make_far(dtype, shape, kind, place)
        view = empty_array(dtype, shape, memory)
        if view.size == 0:
            return Destination(torch.empty(view.shape, dtype=kind), view)
        flat = view.reshape(-1).view(np.uint8) if memory is None else memory
        # `resize_` to the same size sets the shape alone; `reshape` costs twice as much, and a model may have 60,000 tensors.
        return Destination(torch.frombuffer(flat, dtype=kind).resize_(view.shape), view)

    def make_far(self, dtype: str, shape: tuple[int, ...], kind: torch.dtype, device: torch.device) -> Destination:
        """Return an empty tensor that a carrier fills, for a tensor of that safetensors dtype and shape (elements)."""
        spec = get_dtype(dtype)
        tensor = torch.empty(packed_shape(shape, spec), dtype=kind, device=device)
        return Destination(tensor, self._far_memory(tensor, spec.numpy))

    def finish(self, destination: Destination, device: str | None) -> Any:  # noqa: ARG002 - the protocol's names
        """Return the tensor, which lies where it was asked for."""
        return destination.array

    def to_numpy(self, array: Any) -> npt.NDArray[Any] | None:
        """Return the bytes of a tensor as a numpy array of the matching dtype."""
        if not isinstance(array, torch.Tensor):
            return None
        name = _stored_dtypes().get(array.dtype)
        if name not in DTYPES or DTYPES[name].bits < 8:
            raise InvalidInput(f"torch dtype {array.dtype} can't be stored from memory: save it to a file first")
        flat = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return flat.view(DTYPES[name].numpy).reshape(tuple(array.shape))

    def memory_of(self, array: Any) -> npt.NDArray[Any] | FarMemory | None:
        """Return the numpy view of a CPU tensor, any strides, or the far memory that another contiguous one is."""
        if not isinstance(array, torch.Tensor):
            return None
        name = _stored_dtypes().get(array.dtype)
        if name is None:
            raise InvalidInput(f"torch dtype {array.dtype} is none that tensors are stored in")
        if array.device.type == "meta" or array.layout != torch.strided or array.is_conj() or array.is_neg():
            raise InvalidInput(
                f"a tensor on {array.device}, {array.layout}{', a view of a conjugate' * array.is_conj()}, can't be loaded into: "
                "give an ordinary one, such as `torch.empty_like` makes"
            )
        tensor, spec = array.detach(), get_dtype(name)
        if tensor.device.type == "cpu":
            same_size = _INTEGERS.get(tensor.itemsize)  # numpy has no bfloat16 of its own
            view: npt.NDArray[Any] = (tensor if same_size is None else tensor.view(same_size)).numpy()
            return view.view(spec.numpy)
        if not tensor.is_contiguous():
            raise InvalidInput(f"a tensor on {tensor.device} can be loaded into only where it is contiguous")
        return self._far_memory(tensor, spec.numpy)

    def _far_memory(self, tensor: torch.Tensor, dtype: np.dtype[Any]) -> FarMemory:
        device = tensor.device
        carrier = self._carriers.get(device) or self._carriers.setdefault(device, TorchCarrier(device))
        flat = tensor.view(-1).view(torch.uint8)
        return FarMemory(carrier, flat, dtype, tuple(tensor.shape), tensor.data_ptr())


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@cache
def _torch_dtype(dtype: str) -> torch.dtype:
    """Return what torch calls a safetensors dtype, or what the blocks of a quantised type of GGUF are bytes of."""
    if dtype.startswith(GGUF_PREFIX):
        return torch.uint8
    kind: torch.dtype | None = getattr(torch, _DTYPES.get(dtype, ""), None)
    if kind is None:
        raise InvalidInput(f"torch has no dtype for {dtype}: load it with framework='numpy'", dtype=dtype)
    return kind


@cache
def _stored_dtypes() -> dict[torch.dtype, str]:
    """Return the safetensors spelling of each dtype that this torch has."""
    return {getattr(torch, kind): name for name, kind in _DTYPES.items() if hasattr(torch, kind)}


@cache
def _check_device(device: str | None) -> torch.device:
    try:
        found = torch.device(device or "cpu")
    except RuntimeError as error:
        raise InvalidInput(f"{device!r} is no torch device: {error}", device=device) from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(f"torch sees no CUDA device, {device!r} was asked for", device=device)
    return found
