"""Copies of what was read to torch tensors on other devices, a GPU's memory first of all.

For CUDA: buffers of the host are page-locked, and copies run on a stream of their own, so that one thread's copy goes on while
others read and check. Page-locking costs as much as copying; torch keeps such buffers for the next load.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tensorkeep.transfer.memory import allocate


class TorchCarrier:
    """Copies to tensors of one torch device; a target is a flat uint8 tensor.

    Args:
        device: the device; any that torch can copy to. On others than CUDA each copy has ended when `copy` returns.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def prepare(self) -> None:
        """Let copies wait for what the caller's stream still does: its tensors may lie where others were used a moment ago."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def allocate(self, size_bytes: int) -> memoryview:
        """Return page-locked memory; ordinary memory where none is left, which is slower to copy from."""
        if self._stream is not None:
            try:
                return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy().data
            except RuntimeError:
                pass
        return allocate(size_bytes)

    @contextmanager
    def copies(self) -> Iterator[None]:
        """Copy on this carrier's stream, and wait for these copies at the end; other threads go on meanwhile."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record(self._stream)
                done.synchronize()

    def copy(self, target: torch.Tensor, offset: int, data: memoryview) -> None:
        """Copy to bytes of a tensor."""
        source = torch.frombuffer(data, dtype=torch.uint8)
        target[offset : offset + len(data)].copy_(source, non_blocking=self._stream is not None)
