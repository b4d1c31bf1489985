"""The one pass of a split over its file: read, hashed, written and synced, all at the same time.

Each chunk goes to lanes of their own: SHA-256 of the whole (the slowest: its time is that of the split), SHA-256 of the part,
BLAKE3 of both, and the part's file. What was written is synced by and by, each folder in a lane of its own, since folders
should be different disks.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any

from blake3 import blake3

from tensorkeep.records.layout import MIB
from tensorkeep.runtime import Runtime, WorkerPool
from tensorkeep.store.local_files import UnfinishedFile
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.split_layout import Digests, SplitLayout
from tensorkeep.store.steady_file import SteadyFile
from tensorkeep.transfer.fan_out import FanOut, Taker, feed, open_fan_out

SYNC_BYTES = 64 * MIB
"""Written bytes are sent to the disk this often, so that the disk works while the rest is read."""

_SHA_LANE, _PART_SHA_LANE, _BLAKE_LANE, _WRITE_LANE = range(4)
_LANES = ("sha256", "part-sha256", "blake3", "write")
_SYNC_LANES = 8


class SplitPass:
    """Makes the part files of a split. Use it once."""

    def __init__(
        self,
        source: SteadyFile,
        layout: SplitLayout,
        files: Sequence[UnfinishedFile],
        *,
        progress: ByteProgress,
        runtime: Runtime,
    ) -> None:
        self._source = source
        self._layout = layout
        self._files = files
        self._progress = progress
        self._runtime = runtime
        self._sha, self._blake = hashlib.sha256(), blake3()
        self._part_shas: list[Any] = []
        self._part_blakes: list[Any] = []
        self._syncs: deque[Future[Any]] = deque()
        self._sync_lanes: list[WorkerPool] = []

    def run(self) -> tuple[Digests, list[Digests]]:
        """Return the digests of the whole and of each part, when every part is on its disk.

        Raises:
            InvalidInput: the file is shorter than it was.
            TensorkeepError: a disk can't read or keep it.
        """
        workers = self._runtime.workers
        with ExitStack() as stack:
            lanes = range(min(len(self._layout.folders), _SYNC_LANES))
            self._sync_lanes = [stack.enter_context(workers.open_pool(1, f"sync-{lane}")) for lane in lanes]
            fan_out = stack.enter_context(open_fan_out(workers, _LANES))
            for number in range(len(self._files)):
                self._send_part(fan_out, number)
            fan_out.drain()
            for sync in self._syncs:
                sync.result()
        parts = zip(self._part_blakes, self._part_shas, strict=True)
        whole = Digests(self._blake.hexdigest(), self._sha.hexdigest())
        return whole, [Digests(blake.hexdigest(), sha.hexdigest()) for blake, sha in parts]

    def _send_part(self, fan_out: FanOut, number: int) -> None:
        while self._syncs and self._syncs[0].done():  # a disk that fails is not written to for hours
            self._syncs.popleft().result()
        start, size = self._layout.cuts[number]
        hashing = self._hash_first() if number == 0 else self._hash_later()
        takers = [*hashing, partial(self._write, number)]
        fan_out.send(size, lambda offset, view: self._source.read_into(start + offset, view), takers)
        if number == 0:
            fan_out.queue(_SHA_LANE, lambda: self._part_shas.insert(0, self._sha.copy()))
            fan_out.queue(_BLAKE_LANE, lambda: self._part_blakes.insert(0, self._blake.copy()))
        fan_out.queue(_WRITE_LANE, partial(self._sync, number, self._finish))

    def _hash_first(self) -> list[Taker | None]:
        """Return what hashes the first part: as long as there is no other, the whole is that part."""
        return [feed(self._sha), None, feed(self._blake)]

    def _hash_later(self) -> list[Taker | None]:
        sha, blake = hashlib.sha256(), blake3()
        self._part_shas.append(sha)
        self._part_blakes.append(blake)
        return [feed(self._sha), feed(sha), feed(self._blake, blake)]

    def _write(self, number: int, data: memoryview, offset: int) -> None:
        self._files[number].write_at(data, offset)
        self._progress.count(len(data))
        if (offset + len(data)) // SYNC_BYTES > offset // SYNC_BYTES:
            self._sync(number, self._flush)

    def _sync(self, number: int, task: Callable[[int], None]) -> None:
        lane = self._layout.folder_number(number) % _SYNC_LANES
        self._syncs.append(self._sync_lanes[lane].submit(task, number))

    def _flush(self, number: int) -> None:
        self._files[number].sync()

    def _finish(self, number: int) -> None:
        self._files[number].sync()
        self._runtime.failpoints.hit("split.part_written")
