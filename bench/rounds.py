"""Timing on a noisy machine: contenders take turns, a figure is the median of its rounds and counts as a ratio to another's.

Each round is measured in wall seconds, CPU seconds of this process and its children, and the memory that this process took
beyond what it had before (its peak, file mappings included).
"""

import gc
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PAGE_BYTES = 4096


class Contender(NamedTuple):
    """What is measured: ``prepare`` is outside the timer, ``run`` inside; its result is dropped after the timer stopped."""

    name: str
    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


class Timing(NamedTuple):
    """The rounds of one contender, in order; seconds and bytes."""

    name: str
    seconds: list[float]
    cpu_seconds: list[float]
    peak_bytes: int

    @property
    def median(self) -> float:
        """The median of the wall seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """The fastest and the slowest round."""
        return f"{min(self.seconds):.2f}-{max(self.seconds):.2f}"

    def to_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return {**self._asdict(), "median": self.median, "median_cpu_seconds": statistics.median(self.cpu_seconds)}


def measure(contenders: Sequence[Contender], *, rounds: int) -> dict[str, Timing]:
    """Return the timing of each contender by name, after rounds that alternate: A B A B."""
    timings = {contender.name: Timing(contender.name, [], [], 0) for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            contender.prepare()
            gc.collect()
            before = _reset_peak()
            wall, cpu = time.perf_counter(), _cpu_seconds()
            result = contender.run()
            timing = timings[contender.name]
            timing.seconds.append(time.perf_counter() - wall)
            timing.cpu_seconds.append(_cpu_seconds() - cpu)
            timings[contender.name] = timing._replace(peak_bytes=max(timing.peak_bytes, _peak_bytes() - before))
            del result
    return timings


def touch(arrays: Iterable[npt.NDArray[Any]]) -> int:
    """Return a sum over one byte of each page of the arrays: afterwards every byte can be used."""
    total = 0
    for array in arrays:
        total += int(array.reshape(-1).view(np.uint8)[::PAGE_BYTES].sum(dtype=np.int64))
    return total


def files_under(folder: Path) -> list[Path]:
    """Return all files under a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def make_warm(folder: Path) -> None:
    """Read every file, so that it lies in the page cache."""
    for path in files_under(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass


def make_cold(folder: Path) -> None:
    """Drop every file from the page cache."""
    for path in files_under(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy_and_sync(source: Path, target: Path) -> None:
    """Do what ``cp -r`` and ``sync`` of the copied files do: the ceiling of a push."""
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", *map(str, files_under(target)), str(target)], check=True)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _reset_peak() -> int:
    """Begin a new peak and return the memory in use now. Source: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return _peak_bytes()


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
