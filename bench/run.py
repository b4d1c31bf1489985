"""The first tables: push and load of a local model, beside what people use today and the machine's ceilings.

    python bench/run.py [--model small|tiny|…] [--rounds 5]

Prints tables and writes ``bench/results/push.json`` and ``bench/results/load.json``. Ours verifies every block; the others
verify nothing, so ours is also shown with verification off.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

import tensorkeep
from bench.rounds import Contender, Timing, copy_and_sync, files_under, make_cold, make_warm, measure, touch
from bench.work import RESULTS, WORK, get_model, new_store, remove

MODEL = "bench/model"
HAS_TORCH = find_spec("torch") is not None
READERS = 4

Preparation = Callable[[Path], None]


def bench_push(source: Path, rounds: int) -> dict[str, Timing]:
    """Return timings of pushing a model into a new store, beside copying it."""
    remove("push")

    def push() -> None:
        with tensorkeep.open(WORK / "push") as store:
            store.push(source, MODEL)

    def prepare() -> None:
        new_store("push").close()
        make_warm(source)

    def prepare_copy() -> None:
        remove("copy")
        make_warm(source)

    contenders = [
        Contender("tensorkeep push", push, prepare),
        Contender("cp -r + sync", lambda: copy_and_sync(source, WORK / "copy"), prepare_copy),
    ]
    if HAS_TORCH:
        contenders += _torch_savers(source)
    timings = measure(contenders, rounds=rounds)
    for name in ("push", "copy", "saved"):
        remove(name)
    return timings


def _torch_savers(source: Path) -> list[Contender]:
    import safetensors.torch  # noqa: PLC0415 - only where torch is
    import torch  # noqa: PLC0415

    state = {name: tensor for path in _weights(source) for name, tensor in safetensors.torch.load_file(path).items()}

    def prepare() -> None:
        remove("saved").mkdir()

    def save(kind: str) -> None:
        path = WORK / "saved" / kind
        if kind == "safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    return [
        Contender("safetensors save_file + fsync", lambda: save("safetensors"), prepare),
        Contender("torch.save + fsync", lambda: save("torch"), prepare),
    ]


def bench_load(source: Path, rounds: int, cache: str) -> dict[str, Timing]:
    """Return timings of loading a model into memory, every page touched, warm or cold as ``cache`` says."""
    make: Preparation = make_warm if cache == "warm" else make_cold
    store = new_store("load")
    store.push(source, MODEL)
    model = store.model(MODEL)
    devices = WORK / "load" / "devices"
    memory = np.ones(sum(path.stat().st_size for path in files_under(source)), np.uint8)

    def ours(verify: Literal["blocks", "off"]) -> Any:
        arrays = model.load(verify=verify)
        touch(arrays.values())
        return arrays

    contenders = [
        Contender("tensorkeep, verified", lambda: ours("blocks"), lambda: make(devices)),
        Contender("tensorkeep, verify=off", lambda: ours("off"), lambda: make(devices)),
        Contender(f"ceiling: pread, {READERS} threads", lambda: _read_all(_weights(source)), lambda: make(source)),
        Contender("ceiling: memory copy", memory.copy),
    ]
    if HAS_TORCH:
        contenders[2:2] = _torch_loaders(source, make)
    timings = measure(contenders, rounds=rounds)
    store.close()
    remove("load")
    remove("saved")
    return timings


def _torch_loaders(source: Path, make: Preparation) -> list[Contender]:
    import safetensors.torch  # noqa: PLC0415 - only where torch is
    import torch  # noqa: PLC0415

    saved = remove("saved")
    saved.mkdir()
    for path in _weights(source):
        torch.save(safetensors.torch.load_file(path), saved / f"{path.stem}.pt")

    def load(read: Callable[[Path], dict[str, Any]], paths: Sequence[Path]) -> Any:
        tensors = {name: tensor for path in paths for name, tensor in read(path).items()}
        touch(tensor.view(-1).view(torch.uint8).numpy() for tensor in tensors.values())
        return tensors

    return [
        Contender(
            "safetensors load_file (mmap)",
            lambda: load(safetensors.torch.load_file, _weights(source)),
            lambda: make(source),
        ),
        Contender(
            "torch.load(mmap=True)",
            lambda: load(lambda path: torch.load(path, mmap=True, weights_only=True), files_under(saved)),
            lambda: make(saved),
        ),
    ]


def _weights(source: Path) -> list[Path]:
    return sorted(source.glob("*.safetensors"))


def _read_all(paths: Sequence[Path]) -> list[bytearray]:
    """Read files into memory with several threads: what the disk or the page cache can give."""
    buffers = [bytearray(path.stat().st_size) for path in paths]
    chunk = 16 << 20

    def read(path: Path, view: memoryview, start: int) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        os.preadv(descriptor, [view[start : start + chunk]], start)
        os.close(descriptor)

    with ThreadPoolExecutor(READERS) as pool:
        tasks = [
            pool.submit(read, path, memoryview(buffer), start)
            for path, buffer in zip(paths, buffers, strict=True)
            for start in range(0, len(buffer), chunk)
        ]
        for task in tasks:
            task.result()
    return buffers


def _show(title: str, timings: dict[str, Timing], size_bytes: int, console: Console) -> None:
    first = next(iter(timings.values()))
    table = Table(title=title)
    for heading in ("contender", "median s", "spread s", "GB/s", "CPU s", "peak MB", "time / ours"):
        table.add_column(heading, justify="left" if heading == "contender" else "right")
    for timing in timings.values():
        table.add_row(
            timing.name,
            f"{timing.median:.2f}",
            timing.spread,
            f"{size_bytes / timing.median / 1e9:.2f}",
            f"{sorted(timing.cpu_seconds)[len(timing.cpu_seconds) // 2]:.2f}",
            f"{timing.peak_bytes / 1e6:.0f}",
            f"{timing.median / first.median:.2f}",
        )
    console.print(table)


def _write(name: str, model: str, size_bytes: int, tables: dict[str, dict[str, Timing]]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {
        "model": model,
        "bytes": size_bytes,
        "version": tensorkeep.__version__,
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "tables": {title: [timing.to_dict() for timing in timings.values()] for title, timings in tables.items()},
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def main() -> None:
    """Run all tables."""
    parser = argparse.ArgumentParser(description="measure push and load")
    parser.add_argument("--model", default="small")
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    console = Console(width=110)
    source = get_model(words.model)
    size = sum(path.stat().st_size for path in files_under(source))
    pushes = bench_push(source, words.rounds)
    _show(f"push {words.model}, {size / 1e9:.2f} GB, warm source", pushes, size, console)
    _write("push", words.model, size, {"push": pushes})
    loads = {}
    for cache in ("warm", "cold"):
        loads[cache] = bench_load(source, words.rounds, cache)
        _show(f"load {words.model}, {size / 1e9:.2f} GB, one local device, {cache}", loads[cache], size, console)
    _write("load", words.model, size, loads)


if __name__ == "__main__":
    main()
