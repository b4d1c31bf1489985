"""A long measurement of a device: how fast it is written and read, by how many readers best, and how long a small read takes.

It works on the device itself, in ``tmp``, with objects of a part's kind, which are removed again. `bandwidth` has the short
form, for a device that is being added. How many readers are best is found by a climb over powers of two, which is a decision
without I/O (`climb`, `best_of`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from tensorkeep.devices.forwarding import concurrency_of, innermost
from tensorkeep.devices.local import LocalDevice
from tensorkeep.devices.object_names import UNFINISHED_FOLDER
from tensorkeep.devices.protocol import Device, ThrottlingDevice
from tensorkeep.errors import InvalidInput, TensorkeepError, Unavailable
from tensorkeep.records.layout import KIB, MIB
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid
from tensorkeep.runtime import Runtime

LEAST_BYTES = 1 * MIB
"""Less says nothing of a rate."""

OBJECT_BYTES = 16 * MIB
STEP_S = 4.0
"""Longest reading with one number of readers, and longest writing: a slow device is measured with what it did until then."""

MOST_LOCAL_READERS, MOST_REMOTE_READERS = 16, 64

GAIN = 1.08
"""What more readers must bring: less is noise. The same as of the readers that a load of a remote device adds."""

_POOR_STEPS = 2
"""Steps in a row that bring nothing, after which the climb ends: one alone may be an accident."""

_REQUEST_BYTES = 4 * MIB
_SMALL_BYTES = 4 * KIB
_SMALL_READS = 15


class ReaderRate(NamedTuple):
    """How many readers read at once, and the bytes per second of them all."""

    readers: int
    rate: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a device did.

    ``size_bytes`` were written. ``write_rate`` is bytes per second until they were durable; ``read_rates`` is by number of
    readers, in rising order, not from the page cache of this machine; ``read_latency_s`` the median seconds of a read of 4 KiB.
    """

    size_bytes: int
    write_rate: int
    read_latency_s: float
    read_rates: tuple[ReaderRate, ...]

    @property
    def best(self) -> ReaderRate:
        """The number of readers to read with, and what they give."""
        return best_of(self.read_rates)


def measure(device: Device, *, runtime: Runtime, size_bytes: int) -> Measured:
    """Return what a device does with objects of ``size_bytes`` in all; they are deleted again whatever happens.

    Reads come from the device as far as this machine is concerned: the kernel is asked to drop what it has cached of a local
    file. The disk's own cache, and the host of a virtual machine, may hold it all the same.

    Args:
        device: prepared; a limit of its rate holds.
        runtime: clock, randomness and workers.
        size_bytes: how much to write at most, at least `LEAST_BYTES`; a device that is slow gets less.

    Raises:
        InvalidInput: ``size_bytes`` is too little.
        Capacity: it has no room.
        PermissionDenied: it can't be written.
        Unavailable: it does not answer.
    """
    if size_bytes < LEAST_BYTES:
        raise InvalidInput(f"a bench needs at least {LEAST_BYTES:,} bytes, not {size_bytes:,}", size_bytes=size_bytes)
    with _scratch(device, runtime) as bench:
        written_s = bench.write(size_bytes)
        latency_s = bench.read_small()
        most = MOST_REMOTE_READERS if isinstance(innermost(device), ThrottlingDevice) else MOST_LOCAL_READERS
        return Measured(
            size_bytes=bench.size_bytes,
            write_rate=_rate(bench.size_bytes, written_s, device),
            read_latency_s=latency_s,
            read_rates=climb(bench.read, most=most),
        )


def climb(read: Callable[[int], int], *, most: int) -> tuple[ReaderRate, ...]:
    """Return the rates of 1, 2, 4… readers, up to where more of them bring nothing more.

    Args:
        read: returns the bytes per second of that many readers.
        most: readers to try at most.
    """
    found: list[ReaderRate] = []
    highest, poor, readers = 0, 0, 1
    while readers <= most and poor < _POOR_STEPS:
        rate = read(readers)
        found.append(ReaderRate(readers, rate))
        poor = 0 if rate >= highest * GAIN else poor + 1
        highest = max(highest, rate)
        readers *= 2
    return tuple(found)


def best_of(rates: Sequence[ReaderRate]) -> ReaderRate:
    """Return the fewest readers whose rate is, but for noise, the highest."""
    highest = max(each.rate for each in rates)
    return next(each for each in rates if each.rate * GAIN >= highest)


class _Bench:
    """The objects of one measurement; each has its name here before it is put."""

    def __init__(self, device: Device, runtime: Runtime) -> None:
        self.objects: list[tuple[str, int]] = []
        self._device = device
        self._runtime = runtime

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.objects)

    def write(self, size_bytes: int) -> float:
        """Write objects, as many at once as a push does, and return the seconds until they are durable."""
        clock, lot = self._runtime.clock, concurrency_of([self._device])
        sizes = [min(OBJECT_BYTES, size_bytes - start) for start in range(0, size_bytes, OBJECT_BYTES)]
        seconds = 0.0
        with self._runtime.workers.open_pool(lot, "bench-write") as pool:
            for at in range(0, len(sizes), lot):
                if self.objects and seconds >= STEP_S:
                    break
                random = self._runtime.randomness.random_bytes
                batch = [(self._new_object(size), random(size)) for size in sizes[at : at + lot]]
                start_s = clock.monotonic_s()
                for put in [pool.submit(self._device.put, name, [data]) for name, data in batch]:
                    put.result()
                seconds += clock.monotonic_s() - start_s
        start_s = clock.monotonic_s()
        self._device.flush()
        return seconds + clock.monotonic_s() - start_s

    def read_small(self) -> float:
        """Return the median seconds of a small read, at places apart from each other."""
        self._forget_cached()
        clock, buffer, seconds = self._runtime.clock, memoryview(bytearray(_SMALL_BYTES)), []
        places = [(name, start) for name, size in self.objects for start in range(0, size - _SMALL_BYTES + 1, MIB)]
        for name, start in places[:: max(1, len(places) // _SMALL_READS)][:_SMALL_READS]:
            start_s = clock.monotonic_s()
            self._device.read_into(name, start, [buffer])
            seconds.append(clock.monotonic_s() - start_s)
        return median(seconds)

    def read(self, readers: int) -> int:
        """Return the bytes per second of that many readers at once."""
        self._forget_cached()
        clock = self._runtime.clock
        requests = deque(
            (name, start, min(_REQUEST_BYTES, size - start))
            for name, size in self.objects
            for start in range(0, size, _REQUEST_BYTES)
        )
        started_s = clock.monotonic_s()

        def read_on() -> int:
            buffer, done = memoryview(bytearray(_REQUEST_BYTES)), 0
            while requests and (not done or clock.monotonic_s() - started_s < STEP_S):
                try:
                    name, start, length = requests.popleft()
                except IndexError:  # another reader was quicker
                    break
                self._device.read_into(name, start, [buffer[:length]])
                done += length
            return done

        with self._runtime.workers.open_pool(readers, "bench-read") as pool:
            reading = [pool.submit(read_on) for _ in range(readers)]
            done = sum(each.result() for each in reading)
        return _rate(done, clock.monotonic_s() - started_s, self._device)

    def delete(self) -> None:
        """Delete every object, or what can be deleted of them; raises the first error."""
        first: TensorkeepError | None = None
        for name, _ in self.objects:
            try:
                self._device.delete(name)
            except TensorkeepError as error:
                first = first or error
        if first is not None:
            raise first

    def _new_object(self, size_bytes: int) -> str:
        runtime = self._runtime
        ulid = make_ulid(runtime.clock.now(), runtime.randomness.random_bytes(RANDOM_BYTES))
        name = f"{UNFINISHED_FOLDER}/bench-{ulid}"
        self.objects.append((name, size_bytes))
        return name

    def _forget_cached(self) -> None:
        if isinstance(local := innermost(self._device), LocalDevice):
            for name, _ in self.objects:
                local.drop_cached(name)


@contextmanager
def _scratch(device: Device, runtime: Runtime) -> Iterator[_Bench]:
    bench = _Bench(device, runtime)
    try:
        yield bench
    except BaseException as error:
        try:
            bench.delete()
        except TensorkeepError as second:  # the first one says what happened
            error.add_note(f"its objects could not be deleted: {second.message}")
        raise
    bench.delete()


def _rate(size_bytes: int, seconds: float, device: Device) -> int:
    if seconds <= 0:
        raise Unavailable(f"no rate of {device.url} can be told: the clock did not move", device=device.url)
    return max(1, int(size_bytes / seconds))
