"""Measuring a device of the store at length, and keeping what was measured as its bandwidth."""

import msgspec

from tensorkeep.devices.bench import Measured, measure
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Capacity, Conflict, InvalidInput, NotFound, PermissionDenied
from tensorkeep.records.conformance import Conformance
from tensorkeep.records.device import DeviceFacts
from tensorkeep.store.context import StoreContext
from tensorkeep.store.journal import record_change
from tensorkeep.store.reports import DeviceBench


def bench_device(context: StoreContext, name: str, *, size_bytes: int, save: bool | None) -> DeviceBench:
    """Return what a device does; see `DeviceCollection.bench`."""
    facts = _find_active(context, name)
    if context.read_only:
        raise PermissionDenied(
            f"the store {context.place.shown} can't be written: its devices are not written to either",
            device=facts.name,
        )
    member = next(each for each in context.fleet.members() if each.facts.id == facts.id)
    if member.problem is not None:
        raise member.problem
    assert member.device is not None, "a device without a problem is open"
    _check_room(context, facts, member.device, size_bytes)
    found = measure(member.device, runtime=context.runtime, size_bytes=size_bytes)
    facts = _find_active(context, name)  # a bench takes its time, and the row may be another by now
    if facts.id != member.facts.id:
        raise Conflict(f"device {name} became another one meanwhile: run the bench again", device=name)
    given = is_given(facts)
    saved = not given if save is None else save
    if saved:
        facts = _save(context, facts, found)
    return DeviceBench(
        name=facts.name,
        url=facts.url,
        size_bytes=found.size_bytes,
        write_rate=found.write_rate,
        read_latency_seconds=found.read_latency_s,
        read_rates=found.read_rates,
        best_readers=found.best.readers,
        best_rate=found.best.rate,
        bandwidth=facts.bandwidth,
        rate_limit=facts.rate_limit,
        given=given and not saved,
        saved=saved,
    )


def is_given(facts: DeviceFacts) -> bool:
    """Return whether a device's bandwidth is what a user gave: it is there, and no measurement that is kept has found it."""
    found = facts.conformance
    measured = {found.read_rate, found.best_rate} if isinstance(found, Conformance) else set()
    return facts.bandwidth is not None and facts.bandwidth not in measured


def _find_active(context: StoreContext, name: str) -> DeviceFacts:
    found = [facts for facts in context.catalog.list_devices() if facts.name.casefold() == name.casefold()]
    if not found:
        raise NotFound(f"no device {name!r}: `tensorkeep device ls` lists them", device=name)
    active = next((facts for facts in found if facts.state == "active"), None)
    if active is None:
        raise InvalidInput(
            f"device {name} is given up or draining ({found[0].state}): nothing is written there any more", device=name
        )
    return active


def _check_room(context: StoreContext, facts: DeviceFacts, device: Device, size_bytes: int) -> None:
    room = device.free_bytes()
    if facts.capacity is not None:
        used = next((row.bytes for row in context.catalog.device_usage() if row.device == facts.id), 0)
        left = max(0, facts.capacity - used)
        room = left if room is None else min(room, left)
    if room is not None and room < size_bytes:
        raise Capacity(
            f"device {facts.name} has room for {room:,} bytes, and the bench writes {size_bytes:,}: give a smaller --size",
            device=facts.name,
            free_bytes=room,
            needed_bytes=size_bytes,
        )


def _save(context: StoreContext, facts: DeviceFacts, found: Measured) -> DeviceFacts:
    new = msgspec.structs.replace(facts, bandwidth=found.best.rate)
    if isinstance(facts.conformance, Conformance):  # so that the next bench knows that no user gave this
        kept = msgspec.structs.replace(facts.conformance, best_rate=found.best.rate, best_readers=found.best.readers)
        new = msgspec.structs.replace(new, conformance=kept)
    record_change(
        context,
        lambda heads: context.catalog.change_device(facts, new, heads=heads, now=context.runtime.clock.now()),
    )
    return new
