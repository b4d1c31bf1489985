"""Loads onto a CUDA device: the share of what the machine can give, which is the slower of reading files and copying from pinned memory.

python bench/accept.py gpu

The bar is for files that a disk has to bring. Where they lie in memory the ceiling of reads has every processor at work by itself, so
that nothing is left to verify with: that figure has no bar (docs/performance.md).

What was loaded must equal, bit for bit, what safetensors loads there. Everything runs in this process, which has loaded the model
once before, so that the device's memory and pinned buffers are there, as they are for the ceilings.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bench.figures import Figure
from bench.loading import weights
from bench.rounds import Contender, files_under, make_cold, make_warm, measure
from bench.work import WORK, new_store, remove

MODEL = "bench/model"
DEVICE = "cuda:0"
SLOT_BYTES = 8 << 20
OURS, UNVERIFIED, THEIRS = "tensorkeep, verified", "tensorkeep, verify=off", "safetensors"
COPY, READ = "ceiling: copies from pinned memory", "ceiling: pread into pinned memory"


def gpu_figures(source: Path, rounds: int) -> Iterator[Figure]:
    """Yield the figures, warm and cold; none where there is no CUDA device."""
    if not torch.cuda.is_available():
        print("gpu: not measured, torch sees no CUDA device", flush=True)
        return
    with new_store("gpu") as store:
        store.push(source, MODEL)
        model = store.model(MODEL)
        _check_equal(model.load(framework="torch", device=DEVICE), _load_safetensors(source))
        parts = WORK / "gpu" / "devices"
        ceilings = _Ceilings(files_under(parts))
        for cache, make in (("warm", make_warm), ("cold", make_cold)):
            yield from _measure(cache, make, source, parts, model, ceilings, rounds)
    remove("gpu")


def _measure(
    cache: str,
    make: Callable[[Path], None],
    source: Path,
    parts: Path,
    model: Any,
    ceilings: "_Ceilings",
    rounds: int,
) -> Iterator[Figure]:
    def ours(verify: str) -> None:
        tensors = model.load(framework="torch", device=DEVICE, verify=verify)
        torch.cuda.synchronize()
        del tensors

    contenders = [
        Contender(OURS, lambda: ours("blocks"), lambda: make(parts)),
        Contender(UNVERIFIED, lambda: ours("off"), lambda: make(parts)),
        Contender(THEIRS, lambda: _load_safetensors(source), lambda: make(source)),
        Contender(COPY, ceilings.copy),
        Contender(READ, ceilings.read, lambda: make(parts)),
    ]
    timings = measure(contenders, rounds=rounds)
    for timing in timings.values():
        rate = ceilings.size_bytes / timing.median / 1e9
        cpu = sorted(timing.cpu_seconds)[len(timing.cpu_seconds) // 2]
        print(
            f"{cache}: {timing.name}: {timing.median:.3f} s ({timing.spread}), {cpu:.2f} CPU s, {rate:.1f} GB/s",
            flush=True,
        )
    ceiling = max(timings[COPY].median, timings[READ].median)
    question = f"load onto a CUDA device, {cache}, verified: rate / the slower of reads and copies"
    yield Figure(question, ceiling / timings[OURS].median, 0.9 if cache == "cold" else None, "", at_least=True)
    question = f"the same: rate / {THEIRS}"
    yield Figure(question, timings[THEIRS].median / timings[OURS].median, None, "", at_least=True)


def _load_safetensors(source: Path) -> dict[str, torch.Tensor]:
    tensors = {name: tensor for path in weights(source) for name, tensor in load_file(path, DEVICE).items()}
    torch.cuda.synchronize()
    return tensors


def _check_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        same = (ours[name].dtype, ours[name].shape, ours[name].device) == (tensor.dtype, tensor.shape, tensor.device)
        assert same, name
        assert torch.equal(*(each.view(-1).view(torch.uint8) for each in (ours[name], tensor))), name


class _Ceilings:
    """What reading some files and copying as many bytes take, with one thread a processor and pinned buffers that are used again."""

    def __init__(self, paths: list[Path]) -> None:
        self._runs = [
            (path, start, min(SLOT_BYTES, path.stat().st_size - start))
            for path in paths
            for start in range(0, path.stat().st_size, SLOT_BYTES)
        ]
        self.size_bytes = sum(length for _, _, length in self._runs)
        self._workers = len(os.sched_getaffinity(0))
        self._slots = [torch.empty(SLOT_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(self._workers)]
        for slot in self._slots:
            slot.fill_(1)
        self._target = torch.empty(self.size_bytes, dtype=torch.uint8, device=DEVICE)

    def copy(self) -> None:
        """Copy as many bytes as the files have."""
        at = 0
        for number, (_, _, length) in enumerate(self._runs):
            slot = self._slots[number % self._workers]
            self._target[at : at + length].copy_(slot[:length], non_blocking=True)
            at += length
        torch.cuda.synchronize()

    def read(self) -> None:
        """Read all bytes of the files."""
        views = [slot.numpy() for slot in self._slots]
        with ThreadPoolExecutor(self._workers) as pool:
            for task in [pool.submit(self._read_share, number, view) for number, view in enumerate(views)]:
                task.result()

    def _read_share(self, number: int, view: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
        for path, start, length in self._runs[number :: self._workers]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                done = 0
                while done < length:
                    done += os.preadv(descriptor, [view[done:length].data], start + done)
            finally:
                os.close(descriptor)
