"""gc: let go of versions that no retention keeps, condemn what nothing uses, delete it from devices after the grace, drop its rows when its absence is confirmed.

Safety never asks a clock: a row is condemned in a transaction that commits cannot overtake (the locking rule), physical names
are never used again, and a device that can't be reached keeps its rows. The grace is for readers with open plans.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tensorkeep.catalog.protocol import GcSummary, Location, Orphan
from tensorkeep.devices.forwarding import concurrency_of
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Conflict, NotFound, TensorkeepError
from tensorkeep.records.device import DeviceFacts, is_gone
from tensorkeep.store.asking import ask_each
from tensorkeep.store.context import StoreContext
from tensorkeep.store.reports import GcReport
from tensorkeep.store.retention import expire_versions

N = TypeVar("N", Location, Orphan)

MOST_UNUSED = 0.5
"""Of what is stored: more is given up at once by nobody but who says so."""

_PAGE = 1000


@dataclass(slots=True)
class _Sweep:
    """What was deleted and what waits; ``epoch`` is that of the catalog that condemned."""

    epoch: int
    deleted: int = 0
    deleted_bytes: int = 0
    orphans: int = 0
    unreachable: set[str] = field(default_factory=set)


def collect(context: StoreContext, *, dry_run: bool, grace_s: float, max_fraction: float | None) -> GcReport:
    """Condemn, delete, drop; or say what that would do. See `Store.gc`."""
    context.fleet.recheck()
    refuse_unseen(context)
    expired = expire_versions(context, dry_run=dry_run, grace_s=grace_s, max_fraction=max_fraction)
    sweep, swept = _Sweep(context.catalog.info().epoch), 0
    summary = condemn_unused(context, dry_run=dry_run, grace_s=grace_s, max_fraction=max_fraction)
    if not dry_run:
        context.runtime.failpoints.hit("gc.condemned")
        _delete_condemned(context, sweep, grace_s)
        _delete_orphans(context, sweep, grace_s)
        swept = _sweep_unfinished(context, grace_s)
    waiting = list(_condemned(context, grace_s=0.0))
    if dry_run:
        # What a real run would find condemned long enough: old rows, and new ones where there is no grace.
        due = list(_condemned(context, grace_s=grace_s))
        sweep.deleted = len(due) + (summary.locations if grace_s <= 0 else 0)
        sweep.deleted_bytes = sum(row.length for row in due) + (summary.bytes if grace_s <= 0 else 0)
    return GcReport(
        dry_run=dry_run,
        condemned=summary.locations,
        condemned_bytes=summary.bytes,
        deleted=sweep.deleted,
        deleted_bytes=sweep.deleted_bytes,
        waiting=len(waiting),
        waiting_bytes=sum(location.length for location in waiting),
        swept_unfinished=swept,
        swept_orphans=sweep.orphans,
        unreachable=tuple(sorted(sweep.unreachable)),
        expired=expired,
    )


def refuse_unseen(context: StoreContext) -> None:
    """Return if every device was seen since the catalog was rebuilt: one that was not may need what no version here uses.

    Raises:
        Conflict: ``reason="unseen_device"``; the message names devices.
    """
    epoch = context.catalog.info().epoch
    if epoch == 1:
        return
    begun = min((row.seq for row in context.catalog.journal_rows() if row.epoch == epoch), default=0)
    names = context.fleet.names()
    unseen = [names[device] for device, seq in context.catalog.flushed().items() if seq < begun]
    if unseen:
        raise Conflict(
            f"nothing is collected: {', '.join(unseen)} was not seen since the catalog was rebuilt and may have versions that "
            "use what this catalog does not know the use of. Bring it back and run `tensorkeep rebuild-catalog` again, or "
            f"mark it with `tensorkeep device lost {unseen[0]}`",
            reason="unseen_device",
            devices=unseen,
        )


def condemn_unused(context: StoreContext, *, dry_run: bool, grace_s: float, max_fraction: float | None) -> GcSummary:
    """Condemn what nothing uses, or only say what that would be.

    Raises:
        Conflict: as `Catalog.condemn`; or ``reason="unseen_device"``.
    """
    refuse_unseen(context)
    return context.catalog.condemn(
        grace_s=grace_s,
        dry_run=dry_run,
        max_fraction=max_fraction,
        heads=context.fleet.heads(),
        now=context.runtime.clock.now(),
    )


def _condemned(context: StoreContext, *, grace_s: float) -> Iterator[Location]:
    after = 0
    while page := context.catalog.list_condemned(
        grace_s=grace_s, now=context.runtime.clock.now(), after=after, limit=_PAGE
    ):
        yield from page
        after = page[-1].id


def delete_on(context: StoreContext, device: str, *, grace_s: float) -> tuple[int, int]:
    """Delete what was condemned on one device at least the grace ago; return how many objects and bytes."""
    sweep = _Sweep(context.catalog.info().epoch)
    _delete_condemned(context, sweep, grace_s, only=device)
    return sweep.deleted, sweep.deleted_bytes


def _delete_condemned(context: StoreContext, sweep: _Sweep, grace_s: float, *, only: str | None = None) -> None:
    facts = {f.id: f for f in context.catalog.list_devices()}
    writable = context.fleet.writable()
    after = 0
    while page := context.catalog.list_condemned(
        grace_s=grace_s, now=context.runtime.clock.now(), after=after, limit=_PAGE
    ):
        after = page[-1].id
        by_device: dict[str, list[Location]] = {}
        for location in page:
            if only in (None, location.device):
                by_device.setdefault(location.device, []).append(location)
        for device_id, rows in by_device.items():
            if is_gone(facts[device_id]):
                context.catalog.drop([row.id for row in rows])
            elif device_id not in writable:
                sweep.unreachable.add(facts[device_id].name)
            else:
                _delete_rows(context, facts[device_id], writable[device_id], rows, sweep)


def _delete_orphans(context: StoreContext, sweep: _Sweep, grace_s: float) -> None:
    """Delete what scrubs met on devices and no row tells of; see `Catalog.note_orphans` for why nothing can need it."""
    facts = {f.id: f for f in context.catalog.list_devices()}
    writable = context.fleet.writable()
    after = 0
    while page := context.catalog.list_orphans(
        grace_s=grace_s, now=context.runtime.clock.now(), after=after, limit=_PAGE
    ):
        after = page[-1].id
        for device_id in dict.fromkeys(orphan.device for orphan in page):
            mine = [orphan for orphan in page if orphan.device == device_id]
            if device_id not in writable:
                sweep.unreachable.add(facts[device_id].name)
                continue
            gone = _delete_objects(
                context, facts[device_id], writable[device_id], mine, sweep, forget=context.catalog.drop_orphans
            )
            sweep.orphans += len(gone)


def _delete_rows(
    context: StoreContext, facts: DeviceFacts, device: Device, rows: Sequence[Location], sweep: _Sweep
) -> None:
    gone = _delete_objects(context, facts, device, rows, sweep, forget=context.catalog.drop)
    sweep.deleted += len(gone)
    sweep.deleted_bytes += sum(row.length for row in gone)


def _delete_objects(
    context: StoreContext,
    facts: DeviceFacts,
    device: Device,
    found: Sequence[N],
    sweep: _Sweep,
    *,
    forget: Callable[[Sequence[int]], None],
) -> list[N]:
    """Delete exact physical names, have the catalog forget those that are seen to be absent then, and return them."""
    failpoints, workers, lot = context.runtime.failpoints, context.runtime.workers, concurrency_of([device])
    # A rebuild waits for this lock. Without it, it could list an object that is deleted a moment later, and offer it to pushes.
    with context.place.lock(shared=True) as check_lock:
        try:
            # A catalog that a rebuild has replaced must not delete what the new one may need.
            context.fleet.check_epoch(facts, device, sweep.epoch)
            ask_each(workers, lot, found, lambda each: device.delete(each.name), before=check_lock)
            failpoints.hit("gc.deleted")
            device.flush()
            failpoints.hit("gc.flushed")
            absent = ask_each(workers, lot, found, lambda each: _is_absent(device, each.name))
            gone = [each for each, is_absent in zip(found, absent, strict=True) if is_absent]
        except TensorkeepError:
            check_lock()
            sweep.unreachable.add(facts.name)
            return []
        if context.catalog.info().epoch == sweep.epoch:  # else row numbers mean other rows now
            forget([each.id for each in gone])
    failpoints.hit("gc.dropped")
    return gone


def _is_absent(device: Device, name: str) -> bool:
    try:
        device.size_of(name)
    except NotFound:
        return True
    return False


def _sweep_unfinished(context: StoreContext, grace_s: float) -> int:
    swept = 0
    for device in context.fleet.writable().values():
        try:
            swept += device.sweep_unfinished(grace_s)
        except TensorkeepError:
            continue
    context.runtime.failpoints.hit("gc.tmp_swept")
    return swept
