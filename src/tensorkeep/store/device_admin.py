"""Adding devices, and giving up lost ones."""

import msgspec

from tensorkeep.catalog.protocol import DeviceHead
from tensorkeep.devices.bandwidth import measure_bandwidth
from tensorkeep.devices.opening import normalize_url, open_device, same_place
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import AlreadyExists, InvalidInput, NotFound, PermissionDenied, Unavailable
from tensorkeep.records.device import IDENTITY_NAME, DeviceFacts, decode_identity
from tensorkeep.records.names import check_device_name
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import write_identity
from tensorkeep.store.journal import new_ulid, record_change, refuse_stale
from tensorkeep.store.structure_copies import copy_structure


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
            if same_place(facts.url, canonical) and facts.state == "active":
                raise AlreadyExists(
                    f"{facts.url} is the device {facts.name} already: choose another place", device=name
                )
        device = open_device(canonical, runtime=context.runtime, rate_limit_bytes_per_s=rate_limit)
        _claim_place(context, name, canonical, device, {facts.id for facts in present})
        device.prepare()
        measured = bandwidth or measure_bandwidth(device, runtime=context.runtime)
        facts = DeviceFacts(
            id=new_ulid(context.runtime),
            name=name,
            url=canonical,
            zone=zone or name,
            durability=device.durability,
            capacity=capacity,
            bandwidth=measured,
            rate_limit=rate_limit,
            untrusted=untrusted,
        )
        info = context.catalog.info()
        write_identity(device, facts.id, store=info.store, epoch=info.epoch, runtime=context.runtime)
        record_change(
            context,
            lambda heads: context.catalog.change_device(None, facts, heads=heads, now=context.runtime.clock.now()),
        )
    copy_structure(context)
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
    old = next((facts for facts in found if facts.state == "active"), None)
    if old is None:
        raise InvalidInput(f"device {name} is marked lost already", device=name)
    new = msgspec.structs.replace(old, state="lost")

    def change(heads: tuple[DeviceHead, ...]) -> int:
        others = [head for head in heads if head.device != old.id]
        seq = context.catalog.change_device(old, new, heads=others, now=context.runtime.clock.now())
        context.fleet.forget(old.id)
        return seq

    record_change(context, change)
    return new


def _claim_place(context: StoreContext, name: str, url: str, device: Device, known: set[str]) -> None:
    """Return if a place is free to become a device, prepared: nothing there, or what an `add_device` left that was killed."""
    data = _find_identity(device)
    if data is not None:
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
        return
    # Only now: a place without the layout's folders can't be listed, and one with an identity must not be touched.
    device.prepare()
    if next(device.iter_objects(""), None) is not None:
        raise InvalidInput(f"{url} holds objects but no {IDENTITY_NAME}: give an empty folder", device=name, url=url)


def _find_identity(device: Device) -> bytes | None:
    """Return a place's identity, or None where it has none or is not there yet."""
    try:
        return device.read_identity()
    except Unavailable:
        return None
