"""Runs of buffers as the system's vector calls take them, and the loop around those calls."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from typing_extensions import Buffer

VECTOR_LIMIT = os.sysconf("SC_IOV_MAX")
"""How many buffers one ``preadv`` or ``pwritev`` takes; more is EINVAL."""


def byte_views(buffers: Iterable[Buffer]) -> list[memoryview]:
    """Return flat byte views of the buffers that are not empty, in order.

    Raises:
        TypeError: a buffer is not C-contiguous: a bug of the caller.
    """
    # A view with a zero in its shape can't be cast, and has nothing to move.
    views = (memoryview(buffer) for buffer in buffers)
    return [view if view.format == "B" and view.ndim == 1 else view.cast("B") for view in views if view.nbytes]


def count_bytes(views: Iterable[memoryview]) -> int:
    """Return how many bytes the views have together."""
    return sum(view.nbytes for view in views)


def move_all(step: Callable[[Sequence[memoryview], int], int], views: Sequence[memoryview], offset: int) -> int:
    """Call a vector call until every view was moved, and return the bytes moved: fewer only where a call moved none.

    Args:
        step: ``preadv`` or ``pwritev`` of one file: takes views and a file offset, returns how many bytes it moved. Linux
            moves at most 2 GiB in one call, and fewer whenever it likes.
        views: flat byte views, none of them empty.
        offset: of the first byte in the file.
    """
    left = list(views)
    first = 0
    moved = 0
    while first < len(left):
        count = step(left[first : first + VECTOR_LIMIT], offset + moved)
        if count == 0:
            break
        moved += count
        while first < len(left) and count >= left[first].nbytes:
            count -= left[first].nbytes
            first += 1
        if count:
            left[first] = left[first][count:]
    return moved


def iter_chunks(views: Sequence[memoryview], chunk_bytes: int) -> Iterator[list[memoryview]]:
    """Yield the bytes of the views, in order, in runs of exactly ``chunk_bytes``; the last run may be shorter."""
    chunk: list[memoryview] = []
    room = chunk_bytes
    for whole in views:
        rest = whole
        while rest.nbytes:
            chunk.append(rest[:room])
            room -= chunk[-1].nbytes
            rest = rest[chunk[-1].nbytes :]
            if room == 0:
                yield chunk
                chunk, room = [], chunk_bytes
    if chunk:
        yield chunk
