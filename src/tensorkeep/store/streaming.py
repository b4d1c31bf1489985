"""Tensors one after another, each handed over as soon as it is whole, while those that follow are read.

Tensors are read in groups, in the order asked for, each group from all devices at once and of half as many bytes as may wait; the
next group is begun as soon as the caller has taken enough. So what is in memory is what the caller keeps, and a bounded rest.
"""

import concurrent.futures
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from tensorkeep.records.manifest import File, Tensor
from tensorkeep.runtime import Cancellation, WorkerPool
from tensorkeep.store.frameworks import Destination, Framework
from tensorkeep.store.loading import whole_box
from tensorkeep.store.reading import VersionReader
from tensorkeep.transfer.boxes import Box
from tensorkeep.transfer.reader import prepare_carriers

Named = tuple[str, tuple[File, Tensor]]


class TensorStream:
    """Reads tensors ahead of who takes them. Used by one thread; its pool's one worker reads.

    Args:
        tensors: by name, in the order to read them in.
        reader: of their version; nobody else may use it meanwhile.
        pool: of one worker.
        made: whose arrays are made.
        device: where they lie, as in `Model.load`.
        waiting_bytes: how many bytes of arrays may be read, or being read, that were not taken yet; one tensor always may.
        stop: cancelled to end the reading.
    """

    def __init__(
        self,
        tensors: Mapping[str, tuple[File, Tensor]],
        reader: VersionReader,
        pool: WorkerPool,
        *,
        made: Framework,
        device: str | None,
        waiting_bytes: int,
        stop: Cancellation,
    ) -> None:
        self._stop = stop
        self._groups = deque(_grouped(list(tensors.items()), max(waiting_bytes // 2, 1)))
        self._reader = reader
        self._pool = pool
        self._made = made
        self._device = device
        self._limit = waiting_bytes
        self._waiting = 0
        self._reading: concurrent.futures.Future[None] | None = None
        self._whole: SimpleQueue[tuple[str, Tensor, Destination] | None] = SimpleQueue()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield names and arrays; the array is the caller's.

        Raises:
            What `Model.load` raises, once all that was whole before has been yielded.
        """
        while self._begin_next():
            found = self._whole.get()
            if found is None:  # the group has ended
                ended, self._reading = self._reading, None
                assert ended is not None
                ended.result()
                continue
            name, tensor, destination = found
            yield name, self._made.finish(destination, self._device)
            del found, destination  # it is the caller's now, who may have dropped it
            self._waiting -= tensor.length

    def _begin_next(self) -> bool:
        """Begin the next group if none is being read and there is room; return whether anything is to come."""
        if self._reading is None and self._groups:
            size_bytes = sum(tensor.length for _, (_, tensor) in self._groups[0])
            if self._waiting == 0 or self._waiting + size_bytes <= self._limit:
                self._waiting += size_bytes
                self._reading = self._pool.submit(self._read, *self._make(self._groups.popleft()))
        return self._reading is not None or bool(self._groups) or not self._whole.empty()

    def _make(self, group: Sequence[Named]) -> tuple[list[tuple[str, Tensor, Destination] | None], list[Box]]:
        """Make the arrays of a group, in the caller's thread: a GPU's current device and stream are the thread's."""
        filled: list[tuple[str, Tensor, Destination] | None] = []
        boxes = []
        for name, (file, tensor) in group:
            destination = self._made.make_empty(tensor.dtype, tensor.shape, self._device)
            filled.append((name, tensor, destination))
            boxes.append(whole_box(file, tensor, destination.view))
        prepare_carriers(boxes)
        return filled, boxes

    def _read(self, filled: list[tuple[str, Tensor, Destination] | None], boxes: Sequence[Box]) -> None:
        def whole(number: int) -> None:
            self._whole.put(filled[number])
            filled[number] = None

        try:
            self._reader.read_boxes(boxes, whole=whole, stop=self._stop)
        finally:
            self._whole.put(None)


def _grouped(tensors: Sequence[Named], size_bytes: int) -> Iterator[list[Named]]:
    """Yield runs of tensors of at most that many bytes together, or of one."""
    group: list[Named] = []
    total = 0
    for named in tensors:
        length = named[1][1].length
        if group and total + length > size_bytes:
            yield group
            group, total = [], 0
        group.append(named)
        total += length
    if group:
        yield group
