"""Rebalance: parts move until each device holds its share by bandwidth, and copies that nobody owes any more are given up.

Add, then remove: a copy is given up only when the new one was read back and is counted. What is given up is deleted by gc after its
grace, as all else is: loads that have begun go on. Killed midway, an object has a copy too many, which the next run gives up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.catalog.rules import USABLE
from tensorkeep.devices.rate_limit import TokenBucket, open_bucket
from tensorkeep.errors import PermissionDenied, TensorkeepError, Unavailable
from tensorkeep.planning.rebalancing import HeldCopy, Move, plan_moves
from tensorkeep.records.device import counted_devices
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import parse_form
from tensorkeep.store.context import StoreContext
from tensorkeep.store.gc import refuse_unseen
from tensorkeep.store.healing import settle_states, writing_copies
from tensorkeep.store.journal import refuse_stale
from tensorkeep.store.object_writer import NewObject, ObjectWriter
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.push_target import device_shares
from tensorkeep.store.repair import give_up
from tensorkeep.store.reports import ProgressCallback, RebalanceReport
from tensorkeep.store.structure import read_object

_PAGE = 2000
_LOT = 64
"""Copies that are made before those in whose place they are go."""

_WORKERS = 4


@dataclass(slots=True)
class _Tally:
    moved: int = 0
    moved_bytes: int = 0
    trimmed: int = 0
    trimmed_bytes: int = 0
    failed: list[str] = field(default_factory=list)


def rebalance(
    context: StoreContext, *, rate_limit: int | None, dry_run: bool, progress: ProgressCallback | None
) -> RebalanceReport:
    """Move parts to the devices that lack their share, and give up copies beyond what is owed; see `Store.rebalance`."""
    started_s = context.runtime.clock.monotonic_s()
    if context.read_only and not dry_run:
        raise PermissionDenied(f"the store {context.place.shown} can't be written: nothing is moved")
    context.fleet.recheck()
    refuse_stale(context)
    refuse_unseen(context)
    _refuse_away(context)
    tally = _Tally()
    _trim(context, tally, dry_run=dry_run)
    rows = _read_rows(context)
    names = context.fleet.names()
    before = _held_bytes(rows.values(), names)
    devices = counted_devices(context.catalog.list_devices())
    moves = plan_moves(_copies_of(rows), device_shares(context, devices, allow_soft=True))
    context.runtime.failpoints.hit("rebalance.planned")
    if dry_run:
        tally.moved, tally.moved_bytes = len(moves), sum(move.copy.size_bytes for move in moves)
    else:
        _move_all(context, moves, rows, tally, rate_limit, progress)
        context.runtime.failpoints.hit("rebalance.done")
    after = dict(before)
    for move in moves if dry_run else ():
        after[names[move.copy.device]] -= move.copy.size_bytes
        after[names[move.to]] = after.get(names[move.to], 0) + move.copy.size_bytes
    return RebalanceReport(
        dry_run=dry_run,
        moved=tally.moved,
        moved_bytes=tally.moved_bytes,
        trimmed=tally.trimmed,
        trimmed_bytes=tally.trimmed_bytes,
        failed=tuple(tally.failed),
        before=before,
        after=after if dry_run else _held_bytes(_read_rows(context).values(), context.fleet.names()),
        seconds=context.runtime.clock.monotonic_s() - started_s,
    )


def _refuse_away(context: StoreContext) -> None:
    """Return if all devices can be reached: with copies that can't be looked at now, none could be given up for a new one.

    Raises:
        Unavailable: one can't be.
    """
    for member in context.fleet.members():
        if not member.readable:
            raise Unavailable(
                f"nothing is moved while device {member.facts.name} can't be reached ({member.problem}): bring it back, or give it "
                f"up with `tensorkeep device lost {member.facts.name}` and run `tensorkeep repair`",
                device=member.facts.name,
            )


def _read_rows(context: StoreContext) -> dict[int, Location]:
    """Return the good copies of all parts by row id, in the order in which they were stored."""
    rows: dict[int, Location] = {}
    after = 0
    while page := context.catalog.locate_all(after=after, limit=_PAGE):
        after = page[-1].id
        rows.update((row.id, row) for row in page if row.key.kind is ObjectKind.PART and row.state in USABLE)
    return rows


def _copies_of(rows: dict[int, Location]) -> list[HeldCopy]:
    items: dict[ObjectKey, int] = {}
    return [HeldCopy(row.id, items.setdefault(row.key, len(items)), row.device, row.length) for row in rows.values()]


def _held_bytes(rows: Iterable[Location], names: dict[str, str]) -> dict[str, int]:
    held = dict.fromkeys(names.values(), 0)
    for row in rows:
        held[names[row.device]] += row.length
    return held


def _trim(context: StoreContext, tally: _Tally, *, dry_run: bool) -> None:
    """Give up copies that objects have beyond what they owe, on the fullest devices first."""
    zones = {facts.id: facts.zone for facts in context.catalog.list_devices() if facts.state == "active"}
    fill = {row.device: row.bytes for row in context.catalog.device_usage()}
    seen: set[ObjectKey] = set()
    after = 0
    while page := context.catalog.locate_all(after=after, limit=_PAGE):
        after = page[-1].id
        keys = [key for key in dict.fromkeys(row.key for row in page) if key not in seen]
        found = context.catalog.locate(keys)
        owed = context.catalog.copies_owed(keys)
        seen.update(key for key in keys if len(found[key]) > 1)
        wanted: list[Location] = []
        for key in keys:
            usable = [row for row in found[key] if row.state in USABLE and row.device in zones]
            if key in owed and count_copies(usable) >= owed[key]:
                wanted += order_to_go(usable, owed[key], fill, zones)
        if not wanted:
            continue
        numbers = [row.id for row in wanted]
        gone = {*(numbers if dry_run else give_up(context, numbers))}
        tally.trimmed += len(gone)
        tally.trimmed_bytes += sum(row.length for row in wanted if row.id in gone)


def order_to_go(
    rows: Sequence[Location], owed: int, fill: Mapping[str, int], zones: Mapping[str, str]
) -> list[Location]:
    """Return the copies of an object in the order in which it can do without them, as many as it can, zones too.

    Where its fragments are enough, whole copies go first: they take more room. Else fragments do, which give nothing by themselves.
    """
    fragments = [row for row in rows if row.fragment is not None]
    whole_first = count_copies(fragments) >= owed
    order = sorted(rows, key=lambda row: ((row.fragment is None) is not whole_first, -fill.get(row.device, 0), row.id))
    least_zones = min(owed, len({zones[row.device] for row in rows}))
    going: list[Location] = []
    for row in order:
        left = [each for each in rows if each not in going and each is not row]
        if count_copies(left) >= owed and len({zones[each.device] for each in left}) >= least_zones:
            going.append(row)
    return going


def _move_all(
    context: StoreContext,
    moves: Sequence[Move],
    rows: dict[int, Location],
    tally: _Tally,
    rate_limit: int | None,
    progress: ProgressCallback | None,
) -> None:
    counter = ByteProgress(progress, "rebalance", sum(move.copy.size_bytes for move in moves))
    bucket = open_bucket(rate_limit, context.runtime.clock)
    donors = dict.fromkeys(move.copy.device for move in moves)
    for donor in donors:
        mine = iter([move for move in moves if move.copy.device == donor])
        # The donor's copies don't count, so that each object lacks just the one that moves; nor do soft ones for a durable one.
        soft = [f.id for f in context.catalog.list_devices() if f.durability == "soft"]
        with writing_copies(context, down=[donor] if donor in soft else [donor, *soft]) as writer:
            while lot := list(islice(mine, _LOT)):
                _move_lot(context, writer, lot, rows, tally, counter, bucket)


def _move_lot(
    context: StoreContext,
    writer: ObjectWriter,
    lot: Sequence[Move],
    rows: dict[int, Location],
    tally: _Tally,
    counter: ByteProgress,
    bucket: TokenBucket | None,
) -> None:
    keys = [rows[move.copy.row].key for move in lot]
    owed = context.catalog.copies_owed(keys)

    def copy_one(move: Move) -> Move | None:
        row = rows[move.copy.row]
        if row.key not in owed:
            return None  # its version was removed meanwhile: gc's
        if bucket is not None:
            bucket.take(row.length)
        code = None if row.fragment is None else parse_form(row.form)
        try:
            data = read_object(context, row.key)
            writer.write([NewObject(row.key, data, len(data), owed[row.key], (move.to,), code=code)])
        except TensorkeepError as error:
            tally.failed.append(f"part {row.key.digest.hex()}: {error.message}")
            return None
        counter.count(row.length)
        return move

    with context.runtime.workers.open_pool(_WORKERS, "move") as pool:
        tasks = [pool.submit(copy_one, move) for move in lot]
        copied = [move for task in tasks if (move := task.result()) is not None]
    writer.settle()
    context.runtime.failpoints.hit("rebalance.copied")
    settle_states(context, keys)
    gone = give_up(context, [move.copy.row for move in copied])
    context.runtime.failpoints.hit("rebalance.retired")
    for move in copied:
        if move.copy.row not in gone:
            digest = rows[move.copy.row].key.digest.hex()
            tally.failed.append(f"part {digest}: no copy of it counts on the device that it was to move to")
    tally.moved += len(gone)
    tally.moved_bytes += sum(rows[number].length for number in gone)
