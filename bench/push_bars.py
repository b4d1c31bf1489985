"""What a push promises in time and memory (issue lines of `make bench-accept`), each figure beside its bar.

Time is a ratio to ``cp -r`` and ``sync`` of the same files: pairs that alternate in one run, on one disk, sources warm for both,
the disk idle before each. Memory is that of a process of its own, above what it has once everything is imported.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

import tensorkeep
from bench.contenders.worker import peak_bytes, reset_peak
from bench.figures import Figure
from bench.rounds import Contender, Timing, copy_and_sync, files_under, make_warm, measure
from bench.work import WORK, new_store, remove
from tensorkeep.transfer.memory import allocate

MODEL = "bench/model"
PAIRS = 7
STORE, COPY, CEILING, LARGE = "push-bars", "push-copy", "push-ceiling", "push-large"
LARGE_BYTES = 10_000_000_000
_TENSORS = 10
_CHUNK_BYTES = 64 << 20


def push_figures(source: Path, rounds: int) -> list[Figure]:
    """Return all figures of a push; leaves nothing behind."""
    figures = [
        *push_against_copy(source, max(rounds, PAIRS)),
        *unchanged_push(source, rounds),
        Figure(f"peak memory of a push of {source.name}", push_memory(source) / 2**20, 400, "MiB"),
        Figure("peak memory of a push of one file of 10 GB", large_file_memory() / 2**20, 400, "MiB"),
        start_of_the_command_line(rounds),
    ]
    for name in (STORE, COPY, LARGE):
        remove(name)
    return figures


def push_against_copy(source: Path, pairs: int) -> list[Figure]:
    """Return the time of a push into a new store over that of ``cp -r`` and sync, and what stands beside it."""
    size = sum(path.stat().st_size for path in files_under(source))

    def prepare(*, store: bool) -> None:
        for name in (STORE, COPY):
            remove(name)
        if store:
            new_store(STORE).close()
        make_warm(source)
        os.sync()  # also what was just removed: its blocks are discarded now, not during the round

    def push() -> None:
        with tensorkeep.open(WORK / STORE) as store:
            store.push(source, MODEL)

    timings = measure(
        [
            Contender("push", push, lambda: prepare(store=True)),
            Contender("copy", lambda: copy_and_sync(source, WORK / COPY), lambda: prepare(store=False)),
            Contender("ceiling", lambda: write_direct(WORK / CEILING, size), lambda: prepare(store=False)),
        ],
        rounds=pairs,
    )
    (WORK / CEILING).unlink()
    push_timing, copy_timing, ceiling = timings["push"], timings["copy"], timings["ceiling"]
    ratios = [ours / theirs for ours, theirs in zip(push_timing.seconds, copy_timing.seconds, strict=True)]
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    return [
        Figure(f"push / cp -r + sync, median of {pairs} pairs ({spread})", statistics.median(ratios), 1.25, "times"),
        Figure("  push", push_timing.median, None, "s"),
        Figure("  cp -r + sync", copy_timing.median, None, "s"),
        Figure("  ceiling: direct writes + fsync of as many bytes", ceiling.median, None, "s"),
        Figure("  push", _median_cpu(push_timing), None, "CPU s"),
        Figure("  cp -r + sync", _median_cpu(copy_timing), None, "CPU s"),
    ]


def unchanged_push(source: Path, rounds: int) -> list[Figure]:
    """Return the seconds of pushing what is already there: in a warm process, and by the command; and the parts it made."""
    with new_store(STORE) as store:
        store.push(source, MODEL)
        time.sleep(2.5)  # the stat cache distrusts files under two seconds old
        report = store.push(source, MODEL).report
        assert report is not None
        timings = measure([Contender("push", lambda: store.push(source, MODEL))], rounds=rounds)
    command = ["--store", str(WORK / STORE), "push", str(source), MODEL]
    return [
        Figure("parts made by a push of an unchanged model", report.new_parts, 0, ""),
        Figure("push of an unchanged model, warm process", timings["push"].median, 0.3, "s"),
        Figure("push of an unchanged model, by the command", _median_of_command(command, rounds), 1.5, "s"),
    ]


def start_of_the_command_line(rounds: int) -> Figure:
    """Return the seconds of ``tensorkeep --help``."""
    return Figure("tensorkeep --help", _median_of_command(["--help"], 2 * rounds), 0.5, "s")


def push_memory(source: Path) -> int:
    """Return the most bytes that a process took for a push into a new store, above what it has when all is imported."""
    new_store(STORE).close()
    command = [sys.executable, __file__, str(WORK / STORE), str(source)]
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    remove(STORE)
    return int(done.stdout)


def large_file_memory() -> int:
    """Return the same for one safetensors file of 10 GB."""
    need = 2 * LARGE_BYTES + (2 << 30)
    remove(STORE)
    free = shutil.disk_usage(WORK).free
    if free < need:
        sys.exit(f"{WORK} has {free} bytes free, and pushing a file of 10 GB needs {need}: free some space")
    folder = remove(LARGE)
    folder.mkdir()
    _write_large(folder / "model.safetensors")
    peak = push_memory(folder)
    remove(LARGE)
    return peak


def _write_large(path: Path) -> None:
    """Write a safetensors file of a few large tensors of random bytes, from a seed, without holes."""
    each = LARGE_BYTES // _TENSORS // 4096 * 4096
    entries = {
        f"layers.{number}.weight": {
            "dtype": "BF16",
            "shape": [each // 4096, 2048],
            "data_offsets": [number * each, (number + 1) * each],
        }
        for number in range(_TENSORS)
    }
    header = json.dumps(entries).encode()
    header += b" " * (-(len(header) + 8) % 4096)
    with path.open("wb", buffering=0) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for chunk in _random_chunks(each * _TENSORS):
            file.write(chunk)


def _random_chunks(size_bytes: int) -> Iterator[bytes]:
    chance = np.random.Generator(np.random.SFC64(10))
    for start in range(0, size_bytes, _CHUNK_BYTES):
        yield chance.bytes(min(_CHUNK_BYTES, size_bytes - start))


def write_direct(path: Path, size_bytes: int) -> None:
    """Write as many bytes as a push does, from one piece of memory, past the page cache: what the disk can take."""
    path.unlink(missing_ok=True)
    memory = allocate(_CHUNK_BYTES)
    memory[:] = np.random.Generator(np.random.SFC64(1)).bytes(_CHUNK_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
    os.posix_fallocate(descriptor, 0, size_bytes)
    for start in range(0, size_bytes, _CHUNK_BYTES):
        length = min(_CHUNK_BYTES, size_bytes - start)
        os.pwrite(descriptor, memory[: -(-length // 4096) * 4096], start)
    os.fsync(descriptor)
    os.close(descriptor)


def _median_cpu(timing: Timing) -> float:
    return statistics.median(timing.cpu_seconds)


def _median_of_command(words: list[str], rounds: int) -> float:
    command = [str(Path(sys.executable).with_name("tensorkeep")), *words]
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _push_and_tell(location: str, source: str) -> None:
    """Push, and print the peak of this process's memory above what it had before."""
    with tensorkeep.open(location) as store:
        store.models()  # by now all is imported, and the catalog is open
        before = reset_peak()
        store.push(source, MODEL)
        print(peak_bytes() - before)


if __name__ == "__main__":
    _push_and_tell(*sys.argv[1:])
