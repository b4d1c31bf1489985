"""What the catalog, the journal and the device itself say of a device.

`DeviceIdentity` is the one file on a device that is replaced (``tensorkeep.json``): it ends with a BLAKE3 over the rest,
so that a torn or damaged identity is never believed.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from tensorkeep.errors import Format
from tensorkeep.records.conformance import Conformance
from tensorkeep.records.json_text import decode_canonical, encode_canonical
from tensorkeep.records.layout import LAYOUT_VERSION
from tensorkeep.records.sealing import seal, unseal
from tensorkeep.records.ulid import parse_ulid

IDENTITY_NAME = "tensorkeep.json"

Durability = Literal["durable", "soft"]
DeviceState = Literal["active", "draining", "lost", "removed"]
"""active: takes objects, and its copies count; draining: is read, but its copies do not count, so that they are made again elsewhere;
lost: given up with what it holds; removed: taken out, empty."""

GONE: tuple[DeviceState, ...] = ("lost", "removed")
"""States that are for good: such a device is never read or written again, and its URL is free."""

_SEAL = "blake3"


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A device as the catalog and the journal know it.

    Sizes are bytes, rates bytes per second. ``rate_limit`` is a limit that the user set; ``bandwidth`` what was given or
    measured. Devices that are ``lost`` or ``removed`` are never read or written again. ``conformance`` is what the last check found; unset (false), and
    not in the record's JSON, where there was none: so are the entries of before there were checks.
    """

    id: str
    name: str
    url: str
    zone: str
    durability: Durability
    state: DeviceState = "active"
    capacity: int | None = None
    bandwidth: int | None = None
    rate_limit: int | None = None
    untrusted: bool = False
    conformance: Conformance | msgspec.UnsetType = msgspec.UNSET


def is_gone(facts: DeviceFacts) -> bool:
    """Return whether a device is never read or written again."""
    return facts.state in GONE


def counted_devices(devices: Iterable[DeviceFacts]) -> list[DeviceFacts]:
    """Return the devices whose copies of metadata count: the active durable ones, or all active ones where none is durable."""
    active = [facts for facts in devices if facts.state == "active"]
    return [facts for facts in active if facts.durability == "durable"] or active


class DeviceIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``tensorkeep.json`` without its seal."""

    layout: int
    store: str
    device: str
    epoch: int
    created_at: str


def encode_identity(identity: DeviceIdentity) -> bytes:
    """Return the bytes of ``tensorkeep.json``: canonical JSON whose last field is a ``blake3`` over the rest."""
    return seal(encode_canonical(identity), _SEAL)


def decode_identity(data: bytes, *, device: str) -> DeviceIdentity:
    """Return the identity that these bytes hold; ``device`` names it in errors.

    Raises:
        Integrity: the seal does not fit the rest.
        Format: a newer layout, or not an identity at all.
    """
    what = f"{IDENTITY_NAME} of device {device}"
    body = unseal(data, _SEAL, what=what, device=device)
    # The version alone first: a newer layout may have other fields, and its user must be told to upgrade.
    newest = decode_canonical(body, _Head, what=what)
    if newest.layout > LAYOUT_VERSION:
        raise Format(
            f"device {device} has layout version {newest.layout}, this tensorkeep knows {LAYOUT_VERSION}: "
            "upgrade tensorkeep",
            device=device,
            layout=newest.layout,
        )
    identity = decode_canonical(body, DeviceIdentity, what=what)
    parse_ulid(identity.store, what="store id")
    parse_ulid(identity.device, what="device id")
    return identity


class _Head(msgspec.Struct):
    layout: int
