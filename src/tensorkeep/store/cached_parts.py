"""Parts of a load that the node's cache has or shall have: fetched once for the whole machine, then read like any local copy.

What lies on a file system of this machine already is never cached. Parts are fetched whole, in lots, so that processes that load
the same model at once share the work: each fetches what no other has begun, and waits for the rest. Whatever goes wrong with
the cache, the load goes on without it.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from tensorkeep.devices.forwarding import mappable
from tensorkeep.planning.read_plan import PartRange
from tensorkeep.records.layout import MIB
from tensorkeep.records.redundancy import filled_fragments
from tensorkeep.runtime import Clock
from tensorkeep.store.node_cache import CachedPart, Claim, NodeCache
from tensorkeep.transfer.report import Damage
from tensorkeep.transfer.sources import RESERVE, SUSPECT, PartSource, PartTable

NODE_CACHE = "node-cache"
"""What stands for the cache where devices are named; no device of a store has such an id."""

_LOT_BYTES, _LOT_PARTS = 512 * MIB, 64
_RANGE_BYTES = 8 * MIB
_LOOK_EVERY_S = 0.05
_PATIENCE_S = 60.0
"""How long other processes may finish none of the parts that they fetch, before a load stops waiting for them."""

ReadRanges = Callable[[Sequence[PartRange], Callable[[PartRange, memoryview], None]], None]
"""Reads ranges of parts of the table and hands each to a consumer, from several threads; raises what a load does."""


def with_cached(table: PartTable, cache: NodeCache) -> PartTable:
    """Return the table with the copies that the cache has of its parts; their other copies are kept in reserve.

    A copy found bad is removed from the cache instead of being noted in the catalog.
    """
    found = [part for part in table.sources if _is_remote(table, part) and cache.holds(_wanted(table, part))]
    if not found:
        return table
    sources = dict(table.sources)
    for part in found:
        name = cache.name_of(table.checks.digest(part))
        # Rows of the catalog count from 1, so these are no row's.
        copy = PartSource(location=-1 - part, device=NODE_CACHE, name=name, length=table.sizes[part])
        sources[part] = [copy, *(replace(each, rank=max(each.rank, RESERVE)) for each in table.sources[part])]

    def note(damaged: Sequence[Damage]) -> None:
        for each in damaged:
            if (
                each.device == NODE_CACHE
            ):  # what could not be read may lie on a bad sector: fetched again, it lies elsewhere
                cache.remove(table.checks.digest(each.part))
        others = [each for each in damaged if each.device != NODE_CACHE]
        if others and table.note_damage is not None:
            table.note_damage(others)

    return replace(
        table,
        sources=sources,
        devices={**table.devices, NODE_CACHE: cache.device},
        names={**table.names, NODE_CACHE: "node cache"},
        note_damage=note,
    )


def fetch_missing(
    table: PartTable, cache: NodeCache, read: ReadRanges, *, clock: Clock, may_go_on: Callable[[], bool]
) -> None:
    """Return when the cache has all parts of the table that it should, but for those that find no room.

    Args:
        table: the parts; those with a copy on a file system of this machine are left out.
        cache: where they go.
        read: reads ranges, verified.
        clock: for waiting.
        may_go_on: whether the load has time left; raises where it was given up.

    Raises:
        OSError: the folder can't be used. What is whole already stays.
        TensorkeepError: what ``read`` raises.
    """
    by_digest = {table.checks.digest(part): part for part in table.sources if _is_remote(table, part)}
    wanted = [_wanted(table, part) for part in by_digest.values()]
    waiting = deque(each for each in wanted if not cache.holds(each))
    # Processes that start together begin at different parts; the numbers of processes differ by little, these by much.
    waiting.rotate(-(os.getpid() * 0x9E3779B1 % 2**32 % (len(waiting) or 1)))
    keep = frozenset(by_digest)
    busy = 0
    while waiting and may_go_on():
        if busy >= len(waiting) and not _wait_for_any(waiting, cache, clock, may_go_on):
            return
        busy = 0 if busy >= len(waiting) else busy
        lot = _next_lot(waiting)
        answers = list(zip(lot, cache.claim(lot, keep, _patience(clock, may_go_on)), strict=True))
        waiting.extend(each for each, answer in answers if answer == "busy")
        claims = {by_digest[each.digest]: answer for each, answer in answers if isinstance(answer, Claim)}
        if claims:
            _fetch(claims, table.sizes, read)
        busy = busy + len(lot) if all(answer == "busy" for _, answer in answers) else 0


def _patience(clock: Clock, may_go_on: Callable[[], bool]) -> Callable[[], bool]:
    """Return who says whether to wait on: for so long, and as long as the load may go on."""
    until_s = clock.monotonic_s() + _PATIENCE_S
    return lambda: may_go_on() and clock.monotonic_s() < until_s


def _wait_for_any(waiting: Iterable[CachedPart], cache: NodeCache, clock: Clock, may_go_on: Callable[[], bool]) -> bool:
    """Return once another process has finished one of the parts, or given it up; False where that takes too long."""
    may_wait = _patience(clock, may_go_on)
    while not any(cache.is_settled(each) for each in waiting):
        if not may_wait():
            return False
        clock.sleep(_LOOK_EVERY_S)
    return True


class PartBytes(NamedTuple):
    """Bytes of parts that the cache has, that lie on file systems of this machine, and that do neither."""

    cached: int
    local: int
    left_out: int


def count_bytes(table: PartTable, cache: NodeCache) -> PartBytes:
    """Return where the parts of a table are."""
    cached = local = left_out = 0
    for part in table.sources:
        if not _is_remote(table, part):
            local += table.sizes[part]
        elif cache.holds(_wanted(table, part)):
            cached += table.sizes[part]
        else:
            left_out += table.sizes[part]
    return PartBytes(cached, local, left_out)


def _fetch(claims: dict[int, Claim], sizes: Sequence[int], read: ReadRanges) -> None:
    left = {part: sizes[part] for part in claims}
    lock = threading.Lock()
    ranges = [
        PartRange(part, start, min(_RANGE_BYTES, sizes[part] - start))
        for part in claims
        for start in range(0, sizes[part], _RANGE_BYTES)
    ]

    def take(wanted: PartRange, data: memoryview) -> None:
        claims[wanted.part].write(wanted.start, data)
        with lock:
            left[wanted.part] -= wanted.length
            whole = claims.pop(wanted.part) if not left[wanted.part] else None
        if whole is not None:
            whole.finish()

    try:
        read(ranges, take)
    finally:
        for claim in claims.values():
            claim.drop()


def _next_lot(waiting: "deque[CachedPart]") -> list[CachedPart]:
    lot = [waiting.popleft()]
    size = lot[0].size_bytes
    while waiting and len(lot) < _LOT_PARTS and size + waiting[0].size_bytes <= _LOT_BYTES:
        lot.append(waiting.popleft())
        size += lot[-1].size_bytes
    return lot


def _wanted(table: PartTable, part: int) -> CachedPart:
    return CachedPart(table.checks.digest(part), table.sizes[part])


def _is_remote(table: PartTable, part: int) -> bool:
    """Whether a part has bytes, and no copy of it, nor all of its data fragments, lie on file systems of this machine."""
    if not table.sizes[part]:
        return False
    if _is_mappable(table, table.sources[part]):
        return False
    found = table.fragments.get(part)
    return found is None or not all(
        _is_mappable(table, found.copies.get(number, ()))
        for number in range(filled_fragments(found.code, table.sizes[part]))
    )


def _is_mappable(table: PartTable, copies: Sequence[PartSource]) -> bool:
    devices = (table.devices.get(source.device) for source in copies if source.rank < SUSPECT)
    return any(device is not None and mappable(device) for device in devices)
