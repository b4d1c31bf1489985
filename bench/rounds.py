"""Timing on a noisy machine: contenders take turns, a figure is the median of its rounds and counts as a ratio to another's.

Each round is measured in wall seconds, CPU seconds of its process and children, and the memory that the process took beyond
what it had before (its peak, file mappings included). A contender runs in this process (`measure`) or in one of its own
(`bench.workers`); `alternate` only says whose turn it is.
"""

import ctypes
import mmap
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.contenders.worker import PAGE_BYTES, cpu_seconds, forget_memory, peak_bytes, reset_peak
from tensorkeep.transfer.memory import allocate

MOST_STILL_WARM = 0.02
"""How much of the files may lie in the page cache after it was dropped: a page or two that the kernel holds on to."""

FETCHED_BYTES = 4 << 30


class ContenderFailed(Exception):
    """A contender raised, hung, died, or gave other bytes than the model's."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class Contender(NamedTuple):
    """What is measured in this process: ``prepare`` is outside the timer, ``run`` inside; its result is dropped after it."""

    name: str
    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


class Round(NamedTuple):
    """One measured run."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


class Turn(NamedTuple):
    """A contender whose turn measures itself, in this process or elsewhere."""

    name: str
    take: Callable[[], Round]
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


def alternate(turns: Sequence[Turn], *, rounds: int, failures: dict[str, str] | None = None) -> dict[str, Timing]:
    """Return the timing of each contender by name, after rounds in which each has a turn, in the first as given, then in other orders.

    Who always follows the same neighbour is measured with what that one leaves behind: a disk of a virtual machine may be read fast
    for a while after little was asked of it. In one order for all rounds our cold loads were 0.94 of the fastest peer, in changing
    ones 1.26. The orders are those of fixed seeds.

    Args:
        turns: who takes part, in order.
        rounds: how often each has its turn.
        failures: where given, a contender that fails is left out from then on and its reason noted here.

    Raises:
        ContenderFailed: one failed, and no ``failures`` were given to note it in.
    """
    timings = {turn.name: Timing(turn.name, [], [], 0) for turn in turns}
    for number in range(rounds):
        order = random.Random(number).sample(turns, len(turns)) if number else turns
        for turn in order:
            if turn.name not in timings:
                continue
            try:
                turn.prepare()
                fetch_memory()
                taken = turn.take()
            except ContenderFailed as error:
                if failures is None:
                    raise
                failures[turn.name] = error.reason
                del timings[turn.name]
                continue
            timing = timings[turn.name]
            timing.seconds.append(taken.seconds)
            timing.cpu_seconds.append(taken.cpu_seconds)
            timings[turn.name] = timing._replace(peak_bytes=max(timing.peak_bytes, taken.peak_bytes))
    return timings


def measure(contenders: Sequence[Contender], *, rounds: int) -> dict[str, Timing]:
    """Return the timing of contenders that run in this process, after rounds that alternate."""
    return alternate([in_process(contender) for contender in contenders], rounds=rounds)


def in_process(contender: Contender) -> Turn:
    """Return the turn of a contender that runs in this process."""
    return Turn(contender.name, partial(_run_here, contender.run), contender.prepare)


def _run_here(run: Callable[[], Any]) -> Round:
    forget_memory()
    before = reset_peak()
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = run()
    taken = Round(time.perf_counter() - wall, cpu_seconds() - cpu, peak_bytes() - before)
    del result
    return taken


def fetch_memory() -> None:
    """Touch and free as much memory as the largest contender takes, at most half of what is free.

    A virtual machine that reports its free pages (virtio-balloon) loses them after about 2 seconds; whoever takes them next waits
    until the host has given them back, five times as long as for clearing them. Without this a round's seconds tell how long
    ago others freed memory.
    """
    size = min(FETCHED_BYTES, free_memory_bytes() // 2)
    np.frombuffer(allocate(size), np.uint8)[::PAGE_BYTES] = 1


def free_memory_bytes() -> int:
    """Return how much memory nobody uses, not even the page cache."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    return int(lines["MemFree"].split()[0]) * 1024


def touch(arrays: Iterable[npt.NDArray[Any]]) -> int:
    """Return a sum over one byte of each page of the arrays: afterwards every byte can be used."""
    total = 0
    for array in arrays:
        total += int(array.reshape(-1).view(np.uint8)[::PAGE_BYTES].sum(dtype=np.int64))
    return total


def files_under(folder: Path) -> list[Path]:
    """Return all files under a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def size_of(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in files_under(folder))


def disk_bytes(folder: Path) -> int:
    """Return what the folder takes on its disk, as ``du`` counts: blocks, each file once."""
    return sum({path.stat().st_ino: path.stat().st_blocks * 512 for path in files_under(folder)}.values())


def make_warm(folder: Path) -> None:
    """Read every file, so that it lies in the page cache."""
    for path in files_under(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass


def make_cold(folder: Path) -> None:
    """Drop every file from the page cache.

    Raises:
        RuntimeError: the kernel kept more than a trace of them, as it does where somebody still maps a file.
    """
    for path in files_under(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    if (share := cached_share(folder)) > MOST_STILL_WARM:
        raise RuntimeError(f"{share:.0%} of {folder} is still in the page cache: who else has its files open?")


def cached_share(folder: Path) -> float:
    """Return how much of a folder's files lies in the page cache, 0 to 1. Source: mincore(2)."""
    cached, pages = 0, 0
    for path in files_under(folder):
        if path.stat().st_size:
            resident = _resident_pages(path)
            cached, pages = cached + int((resident & 1).sum()), pages + len(resident)
    return cached / pages if pages else 0.0


def _resident_pages(path: Path) -> npt.NDArray[np.uint8]:
    size = path.stat().st_size
    pages = np.zeros(-(-size // PAGE_BYTES), np.uint8)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
        address = np.frombuffer(mapped, np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = ctypes.c_void_p(address.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data)
        failed = libc.mincore(*arguments)
        del address
    if failed:
        raise OSError(ctypes.get_errno(), f"mincore failed for {path}")
    return pages


def copy_and_sync(source: Path, target: Path) -> None:
    """Do what ``cp -r`` and ``sync`` of the copied files do: the ceiling of a push."""
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", *map(str, files_under(target)), str(target)], check=True)
