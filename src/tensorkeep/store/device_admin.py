"""Adding devices, checking them, and giving up lost ones."""

import msgspec

from tensorkeep.catalog.protocol import DeviceHead
from tensorkeep.devices.conformance import check_place
from tensorkeep.devices.opening import normalize_url, open_device, same_place
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import AlreadyExists, InvalidInput, NotFound, PermissionDenied, Unavailable
from tensorkeep.records.conformance import Conformance
from tensorkeep.records.conformance_report import ConformanceReport
from tensorkeep.records.device import IDENTITY_NAME, DeviceFacts, decode_identity, is_gone
from tensorkeep.records.names import check_device_name
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import write_identity
from tensorkeep.store.healing import find_short, heal
from tensorkeep.store.journal import new_ulid, record_change, refuse_stale


def add_device(
    context: StoreContext,
    name: str,
    url: str,
    *,
    zone: str | None,
    capacity: int | None,
    bandwidth: int | None,
    rate_limit: int | None,
    untrusted: bool,
) -> DeviceFacts:
    """Make a place a device of the store and return its row; see `DeviceCollection.add`."""
    check_device_name(name)
    check_device_name(zone or name)
    for label, value in (("capacity", capacity), ("bandwidth", bandwidth), ("rate limit", rate_limit)):
        if value is not None and value <= 0:
            raise InvalidInput(f"the {label} of device {name} must be over 0, not {value}", device=name)
    canonical = normalize_url(url)
    # Before the place is touched:
    if context.read_only:
        raise PermissionDenied(f"the store {context.place.shown} can't be written: it gets no devices", device=name)
    refuse_stale(context)
    # Whoever comes second finds the first one's row: it must not replace the identity that the first one wrote.
    with context.place.lock(shared=False):
        present = context.catalog.list_devices()
        for facts in present:
            if facts.name.casefold() == name.casefold():
                raise AlreadyExists(
                    f"device {facts.name} exists ({facts.url}, {facts.state}): choose another name", device=name
                )
            if same_place(facts.url, canonical) and not is_gone(facts):
                raise AlreadyExists(
                    f"{facts.url} is the device {facts.name} already: choose another place", device=name
                )
        device = open_device(canonical, runtime=context.runtime, rate_limit_bytes_per_s=rate_limit)
        claimed = _is_ours(context, name, canonical, device, {facts.id for facts in present})
        report = check_place(
            canonical,
            runtime=context.runtime,
            form="short",
            name=name,
            rate_limit_bytes_per_s=rate_limit,
            rates=bandwidth is None,
        )
        if report.refusal is not None:
            raise report.refusal
        # Only now: a place without the layout's folders can't be listed, and one that is refused is left as it was.
        device.prepare()
        if not claimed:
            _check_empty(name, canonical, device)
        facts = DeviceFacts(
            id=new_ulid(context.runtime),
            name=name,
            url=canonical,
            zone=zone or name,
            durability=report.durability,
            capacity=capacity,
            bandwidth=bandwidth or report.conformance.read_rate,
            rate_limit=rate_limit,
            untrusted=untrusted,
            conformance=report.conformance,
        )
        info = context.catalog.info()
        write_identity(device, facts.id, store=info.store, epoch=info.epoch, runtime=context.runtime)
        record_change(
            context,
            lambda heads: context.catalog.change_device(None, facts, heads=heads, now=context.runtime.clock.now()),
        )
    # With the second device manifests, checks and records owe a second copy: they are small. Parts are left to `repair`.
    heal(context, find_short(context, parts=False))
    return facts


def lose_device(context: StoreContext, name: str) -> DeviceFacts:
    """Give a device up for lost: its copies count no more, and pushes and repair replace them. It is never used again.

    Raises:
        NotFound: there is no such device.
        InvalidInput: it is marked lost already.
    """
    found = [facts for facts in context.catalog.list_devices() if facts.name.casefold() == name.casefold()]
    if not found:
        raise NotFound(f"no device {name!r}: `tensorkeep device ls` lists them", device=name)
    old = next((facts for facts in found if not is_gone(facts)), None)
    if old is None:
        raise InvalidInput(f"device {name} is marked {found[0].state} already", device=name)
    new = msgspec.structs.replace(old, state="lost")

    def change(heads: tuple[DeviceHead, ...]) -> int:
        others = [head for head in heads if head.device != old.id]
        seq = context.catalog.change_device(old, new, heads=others, now=context.runtime.clock.now())
        context.fleet.forget(old.id)
        return seq

    record_change(context, change)
    return new


def check_device(context: StoreContext, place: str) -> ConformanceReport:
    """Return what a device, or a place that is none yet, can do; see `DeviceCollection.check`."""
    facts = _find_device(context, place)
    if facts is None:
        return check_place(normalize_url(place), runtime=context.runtime, form="full")
    if context.read_only:
        raise PermissionDenied(
            f"the store {context.place.shown} can't be written: check {facts.url}", device=facts.name
        )
    if is_gone(facts):
        raise InvalidInput(
            f"device {facts.name} is given up ({facts.state}): check its disk by its URL, {facts.url}",
            device=facts.name,
        )
    problem = next(member.problem for member in context.fleet.members() if member.facts.id == facts.id)
    if problem is not None:
        raise problem
    report = check_place(
        facts.url, runtime=context.runtime, form="full", name=facts.name, rate_limit_bytes_per_s=facts.rate_limit
    )
    _keep(context, facts, report)
    return report


def _find_device(context: StoreContext, place: str) -> DeviceFacts | None:
    """Return the device of that name or at that place, None for another place.

    Raises:
        NotFound: it is a name, and no device has it.
    """
    present = context.catalog.list_devices()
    if found := next((facts for facts in present if facts.name.casefold() == place.casefold()), None):
        return found
    if "/" not in place:
        raise NotFound(f"no device {place!r}: `tensorkeep device ls` lists them", device=place)
    url = normalize_url(place)
    return next((facts for facts in present if not is_gone(facts) and same_place(facts.url, url)), None)


def _keep(context: StoreContext, facts: DeviceFacts, report: ConformanceReport) -> None:
    """Keep a check's result with its device, and its class where it passed: the mount may be another than it was.

    What was measured before and was not this time is kept too.
    """
    durability = report.durability if report.ok else facts.durability
    found, before, bandwidth = report.conformance, facts.conformance, facts.bandwidth
    if isinstance(before, Conformance):
        found = msgspec.structs.replace(
            found,
            read_rate=found.read_rate or before.read_rate,
            write_rate=found.write_rate or before.write_rate,
            best_rate=before.best_rate,
            best_readers=before.best_readers,
        )
        if bandwidth == before.read_rate:  # what a check measured; what a user gave, or a bench measured, stays
            bandwidth = found.read_rate
    new = msgspec.structs.replace(facts, conformance=found, durability=durability, bandwidth=bandwidth)
    record_change(
        context,
        lambda heads: context.catalog.change_device(facts, new, heads=heads, now=context.runtime.clock.now()),
    )


def _is_ours(context: StoreContext, name: str, url: str, device: Device, known: set[str]) -> bool:
    """Return whether a place is what an `add_device` of this store left that was killed; False where it is nobody's."""
    data = _find_identity(device)
    if data is None:
        return False
    identity = decode_identity(data, device=name)
    if identity.store != context.catalog.info().store:
        raise InvalidInput(
            f"{url} belongs to another store ({identity.store}): give an empty folder", device=name, url=url
        )
    if identity.device in known:
        raise InvalidInput(
            f"{url} holds a device that this store has given up or knows under another name: give an empty folder",
            device=name,
            url=url,
        )
    if next(device.iter_objects(""), None) is not None:
        raise InvalidInput(
            f"{url} holds objects of this store and is a device that this catalog does not know: the catalog is an old "
            f"copy, or its last rebuild missed it. Run `tensorkeep rebuild-catalog --force --from {url}`, or give an "
            "empty folder",
            device=name,
            url=url,
        )
    return True


def _check_empty(name: str, url: str, device: Device) -> None:
    if next(device.iter_objects(""), None) is not None:
        raise InvalidInput(f"{url} holds objects but no {IDENTITY_NAME}: give an empty folder", device=name, url=url)


def _find_identity(device: Device) -> bytes | None:
    """Return a place's identity, or None where it has none or is not there yet."""
    try:
        return device.read_identity()
    except Unavailable:
        return None
