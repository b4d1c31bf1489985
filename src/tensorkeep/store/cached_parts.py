"""Parts of a load that the node's cache has or shall have: fetched once for the whole machine, then read like any local copy.

What lies on a file system of this machine already is never cached. Parts are fetched whole, in lots, so that processes that load
the same model at once share the work: each fetches what no other has begun, and waits for the rest. Whatever goes wrong with
the cache, the load goes on without it.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from tensorkeep.devices.forwarding import mappable
from tensorkeep.planning.read_plan import PartRange
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import Clock
from tensorkeep.store.node_cache import Claim, Fetched, NodeCache
from tensorkeep.transfer.report import Damage
from tensorkeep.transfer.sources import RESERVE, PartSource, PartTable

NODE_CACHE = "node-cache"
"""What stands for the cache where devices are named; no device of a store has such an id."""

_LOT_BYTES = 512 * MIB
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
            if each.device == NODE_CACHE and each.kind == "corrupt" and each.confirmed:
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
    waiting.rotate(-(os.getpid() % (len(waiting) or 1)))  # processes that start together begin at different parts
    keep = frozenset(by_digest)
    quiet_since_s = clock.monotonic_s()
    while waiting and may_go_on():
        lot = _next_lot(waiting)
        answers = list(zip(lot, cache.claim(lot, keep), strict=True))
        waiting.extend(each for each, answer in answers if answer == "busy")
        claims = {by_digest[each.digest]: answer for each, answer in answers if isinstance(answer, Claim)}
        if claims:
            _fetch(claims, table.sizes, read)
        if any(answer != "busy" for _, answer in answers):
            quiet_since_s = clock.monotonic_s()
        elif clock.monotonic_s() - quiet_since_s > _PATIENCE_S:
            return
        else:
            clock.sleep(_LOOK_EVERY_S)


def count_bytes(table: PartTable, cache: NodeCache) -> tuple[int, int, int]:
    """Return how many bytes of the table's parts the cache has, lie on file systems of this machine, and do neither."""
    cached = local = left_out = 0
    for part in table.sources:
        if not _is_remote(table, part):
            local += table.sizes[part]
        elif cache.holds(_wanted(table, part)):
            cached += table.sizes[part]
        else:
            left_out += table.sizes[part]
    return cached, local, left_out


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


def _next_lot(waiting: "deque[Fetched]") -> list[Fetched]:
    lot = [waiting.popleft()]
    size = lot[0].size_bytes
    while waiting and size + waiting[0].size_bytes <= _LOT_BYTES:
        lot.append(waiting.popleft())
        size += lot[-1].size_bytes
    return lot


def _wanted(table: PartTable, part: int) -> Fetched:
    return Fetched(table.checks.digest(part), table.sizes[part])


def _is_remote(table: PartTable, part: int) -> bool:
    """Whether a part has bytes, and no copy of it lies on a file system of this machine."""
    if not table.sizes[part]:
        return False
    devices = (table.devices.get(source.device) for source in table.sources[part])
    return not any(device is not None and mappable(device) for device in devices)
