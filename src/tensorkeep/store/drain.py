"""Taking a device out: its copies are made elsewhere first, then given up, then deleted; an empty device can be removed.

A device that drains is read as before, but takes no objects, and its copies do not count any more: pushes that go on meanwhile put
theirs elsewhere too. Killed anywhere, nothing is lost: running it again goes on.
"""

import msgspec

from tensorkeep.catalog.protocol import DeviceHead
from tensorkeep.errors import Conflict, InvalidInput, NotFound, PermissionDenied
from tensorkeep.records.device import DeviceFacts, DeviceState, is_gone
from tensorkeep.store.context import StoreContext
from tensorkeep.store.gc import MOST_UNUSED, condemn_unused, delete_on, refuse_unseen
from tensorkeep.store.journal import record_change, refuse_stale
from tensorkeep.store.repair import repair, retire_on
from tensorkeep.store.reports import DrainReport, ProgressCallback

_PAGE = 2000
_SPARED_S = 86400.0
"""Pushes that were alive within it keep what they have staged."""


def drain_device(
    context: StoreContext, name: str, *, grace_s: float, rate_limit: int | None, progress: ProgressCallback | None
) -> DrainReport:
    """Make the copies of a device elsewhere and give them up there; see `DeviceCollection.drain`."""
    started_s = context.runtime.clock.monotonic_s()
    facts = _find_used(context, name)
    context.fleet.recheck()
    refuse_stale(context)
    refuse_unseen(context)
    if facts.state == "active":
        _change_state(context, facts, "draining")
    context.runtime.failpoints.hit("drain.begun")
    made = repair(context, without=(), rate_limit=rate_limit, dry_run=False, progress=progress)
    try:
        # What a push that goes on has there is its own until it commits, and needs other copies for that.
        condemn_unused(context, dry_run=False, grace_s=_SPARED_S, max_fraction=MOST_UNUSED)
    except Conflict as error:
        if error.facts.get("reason") != "gc_brake":
            raise  # else so much is unused that a person is to look first, by gc: then the device keeps its share of it
    given_up = retire_on(context, facts.id)
    context.runtime.failpoints.hit("drain.retired")
    deleted, deleted_bytes = delete_on(context, facts.id, grace_s=grace_s)
    context.runtime.failpoints.hit("drain.deleted")
    waiting, held = _count_rows(context, facts.id)
    context.runtime.failpoints.hit("drain.done")
    return DrainReport(
        device=facts.name,
        repaired=made.repaired,
        written_bytes=made.written_bytes,
        device_bytes=made.device_bytes,
        given_up=len(given_up),
        deleted=deleted,
        deleted_bytes=deleted_bytes,
        waiting=waiting,
        held=held,
        reachable=facts.id in context.fleet.writable(),
        left=made.left,
        seconds=context.runtime.clock.monotonic_s() - started_s,
    )


def undrain_device(context: StoreContext, name: str) -> DeviceFacts:
    """Have a device that drains take objects again, and its copies count.

    Raises:
        NotFound: there is no such device.
        InvalidInput: it does not drain.
    """
    facts = _find_used(context, name)
    if facts.state != "draining":
        raise InvalidInput(f"device {facts.name} does not drain: it is {facts.state}", device=facts.name)
    return _change_state(context, facts, "active")


def remove_device(context: StoreContext, name: str) -> DeviceFacts:
    """Take an empty device out of the store for good; see `DeviceCollection.remove`."""
    facts = _find_used(context, name)
    if facts.state != "draining":
        raise InvalidInput(
            f"device {facts.name} is in use: run `tensorkeep device drain {facts.name}` first, which copies what it holds "
            f"elsewhere; or `tensorkeep device lost {facts.name}`, where it is broken",
            device=facts.name,
        )
    return _change_state(context, facts, "removed")


def _find_used(context: StoreContext, name: str) -> DeviceFacts:
    if context.read_only:
        raise PermissionDenied(f"the store {context.place.shown} can't be written: its devices stay as they are")
    found = [facts for facts in context.catalog.list_devices() if facts.name.casefold() == name.casefold()]
    if not found:
        raise NotFound(f"no device {name!r}: `tensorkeep device ls` lists them", device=name)
    if is_gone(found[0]):
        raise InvalidInput(f"device {found[0].name} is {found[0].state} already", device=name)
    return found[0]


def _change_state(context: StoreContext, old: DeviceFacts, state: DeviceState) -> DeviceFacts:
    new = msgspec.structs.replace(old, state=state)

    def change(heads: tuple[DeviceHead, ...]) -> int:
        seq = context.catalog.change_device(old, new, heads=heads, now=context.runtime.clock.now())
        if is_gone(new):
            context.fleet.forget(old.id)
        return seq

    record_change(context, change)
    return new


def _count_rows(context: StoreContext, device: str) -> tuple[int, int]:
    """Return how many rows of a device wait to be deleted, and how many are held."""
    waiting = held = after = 0
    while page := context.catalog.list_on(device, after=after, limit=_PAGE):
        after = page[-1].id
        condemned = sum(row.state == "condemned" for row in page)
        waiting += condemned
        held += len(page) - condemned
    return waiting, held
