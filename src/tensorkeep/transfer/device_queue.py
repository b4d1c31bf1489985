"""What a load asks of one device: reads that wait, reads that run, and how it has kept up so far."""

from collections import deque
from dataclasses import dataclass, field

from tensorkeep.devices.protocol import ThrottlingDevice
from tensorkeep.records.layout import BLOCK_BYTES, MIB
from tensorkeep.runtime import LeavablePool
from tensorkeep.transfer.job import WINDOW_BYTES, Attempt, ReadJob
from tensorkeep.transfer.reader_count import ReaderCount
from tensorkeep.transfer.sources import PartSource

LEAST_READERS, MOST_READERS = 4, 8
"""Reads of a local device at once; as many again wait in its pool, so that none waits for the scheduling thread. With more than 8
threads each waits longer for the interpreter lock than it reads: on 16 processors 8 were quickest, warm."""

LEAST_CHECKERS = 2
"""The same of a local device for what lies in the page cache and is only checked. Warm, 2.2 GB on 2 processors, medians of 11 loads: 1 reader 129 ms, 2 123 ms, 3 131 ms, 4 138 ms;
more threads than processors wait for each other, and for the interpreter lock between two blocks."""

MOST_WAITING_READERS = 16
"""The same for all devices together where they check what disks bring slowly: then they wait for them, not for each other. 2.2 GB cold on 2 processors,
medians of 12 loads: 4 readers 1.59 s, 8 1.52 s, 16 1.44 s; warm 0.21, 0.24, 0.26 s."""

_SLOW_BYTES_PER_S = 500 * MIB
"""A reader that gets less than that from a disk waits for it."""

GIVE_UP_AFTER = 3
"""Failures to answer after which a device is not asked again in the same load."""


def readers_per_device(device_count: int, processors: int) -> int:
    """Return how many reads of a local device run at once."""
    return min(max(processors // 2 // max(device_count, 1), LEAST_READERS), MOST_READERS)


def checkers_per_device(device_count: int, processors: int) -> int:
    """Return how many checks of what is mapped run at once, to begin with: hashing fills a processor, and `DeviceQueue.count_check` asks for more where it is the disk that they wait for."""
    return min(max(processors // max(device_count, 1), LEAST_CHECKERS), MOST_READERS)


def longest_read_bytes(memory_limit_bytes: int, device_count: int, readers: int) -> int:
    """Return how long reads may be such that each device can have all its readers at work within the limit."""
    share = memory_limit_bytes // max(device_count, 1) // readers
    return max(min(share, WINDOW_BYTES) // BLOCK_BYTES, 1) * BLOCK_BYTES


@dataclass(slots=True)
class DeviceQueue:
    """A device's jobs and what it has done so far. Touched by the scheduling thread only.

    ``owes_since_s``: when it got a read after it had none. ``carried``: how many reads are verified and not delivered yet. ``held_bytes``: of reads that run; ``memory_bytes``: what they take, and those that are carried. ``waited``: how many checks on end waited for the disk. ``usual_s``: seconds that a read of it takes in this load, the last ones counting most; None before the first has ended.
    """

    device: str
    waiting: deque[tuple[ReadJob, PartSource]] = field(default_factory=deque)
    waiting_bytes: int = 0
    running: int = 0
    carried: int = 0
    held_bytes: int = 0
    memory_bytes: int = 0
    failures: int = 0
    bytes_read: int = 0
    started_s: float | None = None
    ended_s: float = 0.0
    local_readers: int = LEAST_READERS
    pool: LeavablePool | None = None
    remote: ThrottlingDevice | None = None
    readers: ReaderCount | None = None
    usual_s: float | None = None
    asked_s: float | None = None
    owes_since_s: float = 0.0
    waited: int = 0

    def quiet_s(self, now: float) -> float:
        """Return for how long it has owed an answer and given none."""
        return max(now - max(self.owes_since_s, self.ended_s), 0.0) if self.running else 0.0

    def rate(self, now: float) -> float | None:
        """Return its bytes per second in this load; None where nothing was read yet."""
        return self.bytes_read / max(now - self.asked_s, 1e-9) if self.bytes_read and self.asked_s is not None else None

    def count(self, attempt: Attempt) -> None:
        """Count what an attempt has read, and how long that took."""
        self.bytes_read += attempt.bytes_read
        self.started_s = attempt.started_s if self.started_s is None else min(self.started_s, attempt.started_s)
        self.ended_s = max(self.ended_s, attempt.ended_s)
        if attempt.bytes_read:
            took = attempt.ended_s - attempt.started_s
            self.usual_s = took if self.usual_s is None else 0.7 * self.usual_s + 0.3 * took

    def count_check(self, attempt: Attempt, devices: int) -> None:
        """Take as many readers as reads have once one comes from the disk, and twice as many once all of them have waited for it; with more devices each gets fewer."""
        from_disk = 2 * attempt.disk_bytes > attempt.bytes_read
        if from_disk and self.local_readers < LEAST_READERS:
            self._grow(LEAST_READERS)
            return
        waits = from_disk and attempt.bytes_read < _SLOW_BYTES_PER_S * (attempt.ended_s - attempt.started_s)
        self.waited = self.waited + 1 if waits else 0
        more = 2 * self.local_readers
        if self.waited >= self.local_readers and more <= MOST_WAITING_READERS // devices:
            self._grow(more)

    def _grow(self, readers: int) -> None:
        if self.pool is not None:
            self.local_readers, self.waited = readers, 0
            self.pool.grow(readers)

    @property
    def is_idle(self) -> bool:
        """Whether it could take another read at once, and has none waiting."""
        return not self.waiting and self.has_room

    @property
    def has_room(self) -> bool:
        """Whether it could take another read. What is carried counts: its buffer is in use."""
        return self.running + self.carried < self.admits

    @property
    def admits(self) -> int:
        """How many reads may be in its pool; those of a remote device are counted one by one to find the best number."""
        return 2 * self.local_readers if self.readers is None else self.readers.readers

    @property
    def given_up(self) -> bool:
        """Whether the device failed to answer too often to be asked again."""
        return self.failures >= GIVE_UP_AFTER

    @property
    def seconds(self) -> float:
        """From the first byte asked for to the last byte verified."""
        return 0.0 if self.started_s is None else self.ended_s - self.started_s
