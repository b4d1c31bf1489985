"""One contender in a process of its own, asked in lines of JSON on standard input and answering in lines on standard output.

    python bench/contenders/worker.py MODULE:NAME

A request names an action of the contender and its words: ``{"do": "load", "folder": "…"}``. The answer has wall seconds, CPU
seconds of the process and its children, and the memory it took beyond what it had before. Tensors that an action returns count
as loaded when every byte can be used: the timer stops after a sum over one byte of each page. Then, outside the timer, all
their bytes are hashed, so that whoever asked can tell whether they are the right ones, and dropped.

It runs in the contender's environment: nothing but numpy and xxhash is imported here.
"""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

ROOT = Path(__file__).resolve().parents[2]
PAGE_BYTES = 4096


Actions = Mapping[str, Callable[..., Any]]


class Tensors(NamedTuple):
    """What an action returns that loaded something.

    ``keep`` is whatever must live as long as the tensors do, ``close`` gives their memory back where dropping them does not.
    """

    by_name: Mapping[str, Any]
    keep: Any = None
    close: Callable[[], None] | None = None


def perform(actions: Actions, request: Mapping[str, Any], base_bytes: int) -> dict[str, Any]:
    """Return the answer to a request; its ``facts`` are what the action returned, where that was a dict.

    ``base_bytes`` is the memory of the idle process: what an allocator keeps from round to round counts in each of them.
    """
    words = {key: value for key, value in request.items() if key != "do"}
    action = actions[request["do"]]
    forget_memory()
    before = reset_peak()
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = action(**words)
    page_sum = touch_all(result.by_name) if isinstance(result, Tensors) else None
    answer: dict[str, Any] = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": cpu_seconds() - cpu,
        "peak_bytes": peak_bytes() - min(before, base_bytes),
    }
    if isinstance(result, Tensors):
        answer |= {"checksum": checksum(result.by_name), "tensors": len(result.by_name), "page_sum": page_sum}
        if result.close is not None:
            result.close()
    elif isinstance(result, dict):
        answer["facts"] = result
    return answer


def checksum(tensors: Mapping[str, Any]) -> str:
    """Return a hash over names and bytes of tensors (torch or numpy), whatever their order, dtypes and shapes."""
    whole = xxhash.xxh3_128()
    for name in sorted(tensors):
        whole.update(f"{name}\0".encode())
        whole.update(xxhash.xxh3_128_digest(as_bytes(tensors[name]).data))
    return whole.hexdigest()


def touch_all(tensors: Mapping[str, Any]) -> int:
    """Return a sum over one byte of each page of the tensors: afterwards every byte can be used."""
    return sum(int(as_bytes(tensor)[::PAGE_BYTES].sum(dtype=np.int64)) for tensor in tensors.values())


def as_bytes(tensor: Any) -> npt.NDArray[np.uint8]:
    """Return a torch tensor or a numpy array as bytes, without a copy where it lies in C order."""
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    import torch  # noqa: PLC0415 - only where a contender made one

    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    assert isinstance(flat, np.ndarray)
    return flat


def forget_memory() -> None:
    """Give free memory back to the kernel, so that a round finds none that an earlier one has touched already."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def reset_peak() -> int:
    """Begin a new peak of memory and return what is in use now. Source: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the peak of memory in use, file mappings included."""
    status = Path("/proc/self/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def serve(where: str) -> None:
    """Answer requests for the actions at ``module:name`` until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    module, _, name = where.partition(":")
    actions: Actions = getattr(import_module(module), name)
    if "import" in actions:
        actions["import"]()
    base_bytes = reset_peak()
    for line in sys.stdin:
        try:
            answer = perform(actions, json.loads(line), base_bytes)
        except Exception as error:  # noqa: BLE001 - whatever a library of others raises is told to who asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    import_module("bench.contenders.worker").serve(
        sys.argv[1]
    )  # not this `__main__`: its `Tensors` would be another class
