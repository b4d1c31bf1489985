"""torch tensors as the destination of a load and the source of a push. Registered as the framework ``torch``.

CPU tensors are laid over memory that numpy fills (one ``frombuffer`` per tensor: otherwise ``torch.save`` of one would save
all). Other devices get a copy of it. Quantised types of GGUF are ``uint8`` tensors of their blocks' bytes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tensorkeep.errors import InvalidInput
from tensorkeep.records.dtype import GGUF_PREFIX
from tensorkeep.store.frameworks import Destination, empty_array

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
    """Makes torch tensors."""

    def make_empty(
        self, dtype: str, shape: tuple[int, ...], device: str | None, memory: memoryview | None = None
    ) -> Destination:
        """Return an empty CPU tensor and the numpy view of its memory."""
        kind = torch.uint8 if dtype.startswith(GGUF_PREFIX) else getattr(torch, _DTYPES.get(dtype, ""), None)
        if kind is None:
            raise InvalidInput(f"torch has no dtype for {dtype}: load it with framework='numpy'", dtype=dtype)
        _check_device(device)
        view = empty_array(dtype, shape, memory)
        if view.size == 0:
            return Destination(torch.empty(view.shape, dtype=kind), view)
        return Destination(torch.frombuffer(view.reshape(-1).view(np.uint8), dtype=kind).reshape(view.shape), view)

    def finish(self, destination: Destination, device: str | None) -> Any:
        """Return the tensor, on the device that was asked for."""
        return destination.array if device in (None, "cpu") else destination.array.to(device)

    def to_numpy(self, array: Any) -> npt.NDArray[Any] | None:
        """Return the bytes of a tensor as a numpy array of the matching dtype."""
        if not isinstance(array, torch.Tensor):
            return None
        from tensorkeep.records.dtype import DTYPES  # noqa: PLC0415 - only a push of tensors needs it

        names = {getattr(torch, torch_name, None): name for name, torch_name in _DTYPES.items()}
        name = names.get(array.dtype)
        if name not in DTYPES or DTYPES[name].bits < 8:
            raise InvalidInput(f"torch dtype {array.dtype} can't be stored from memory: save it to a file first")
        flat = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return flat.view(DTYPES[name].numpy).reshape(tuple(array.shape))


def _check_device(device: str | None) -> None:
    try:
        kind = torch.device(device or "cpu").type
    except RuntimeError as error:
        raise InvalidInput(f"{device!r} is no torch device: {error}", device=device) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(f"torch sees no CUDA device, {device!r} was asked for", device=device)
