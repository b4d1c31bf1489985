"""Opening a version: its manifest and checks, from the catalog or from any good copy on a device, verified either way."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress

from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.devices.forwarding import is_far
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Integrity, NotEnoughCopies, NotFound, TensorkeepError
from tensorkeep.records.checks import Checks, decode_checks
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.digest import blake3_160, blake3_256
from tensorkeep.records.fragment import footer_length
from tensorkeep.records.history import VersionFacts
from tensorkeep.records.manifest import Manifest, decode_manifest
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import parse_form
from tensorkeep.runtime import collection_paused
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fragments import fragments_of_best_form, join_fragments
from tensorkeep.store.learned_rates import find_rates
from tensorkeep.transfer.report import Damage
from tensorkeep.transfer.sources import SUSPECT, FragmentSet, PartSource, PartTable


def open_manifest(context: StoreContext, version: VersionFacts) -> Manifest:
    """Return a version's manifest: the catalog's copy if it is whole, else a device's.

    Raises:
        Integrity: every copy is damaged.
        NotEnoughCopies: no copy can be reached.
    """
    body = context.catalog.find_manifest(version.manifest)
    if body is None or blake3_256(body).hex() != version.manifest:
        body = read_object(context, ObjectKey(ObjectKind.MANIFEST, bytes.fromhex(version.manifest)))
    with collection_paused():
        return decode_manifest(body)


def open_checks(context: StoreContext, version: VersionFacts, manifest: Manifest) -> Checks:
    """Return a version's checks, read whole from a device and verified against their digest.

    Raises:
        Integrity: every copy is damaged.
        NotEnoughCopies: no copy can be reached.
    """
    data = read_object(context, ObjectKey(ObjectKind.CHECKS, bytes.fromhex(version.checks)))
    return decode_checks(data, manifest.parts)


def object_digest(key: ObjectKey, data: bytes) -> bytes:
    """Return the digest that these bytes have as an object of that kind."""
    return blake3_160(data) if key.kind is ObjectKind.VERSION else blake3_256(data)


def read_object(context: StoreContext, key: ObjectKey) -> bytes:
    """Return a whole object from the first good copy; copies found bad are recorded.

    Raises:
        Integrity: a copy was damaged and no good one is left; the message names devices.
        NotEnoughCopies: no copy can be reached.
    """
    devices, copies = context.catalog.survey([key])
    readable = context.fleet.readable(devices)
    names = {facts.id: facts.name for facts in devices}
    reasons: list[str] = []
    damaged: list[int] = []
    try:
        for location in _nearest_first(copies[key], readable):
            device = readable.get(location.device)
            if device is None:
                reasons.append(f"device {names[location.device]} can't be reached")
                continue
            try:
                return _read_copy(device, location)
            except (Integrity, NotFound) as error:
                damaged.append(location.id)
                reasons.append(f"{location.name} on device {names[location.device]}: {error.message}")
            except TensorkeepError as error:
                reasons.append(f"{location.name} on device {names[location.device]}: {error.message}")
        if any(location.fragment is not None for location in copies[key]):
            return _join(key, copies[key], readable, names, reasons, damaged)
    finally:
        if damaged and not context.read_only:
            with suppress(TensorkeepError):  # a note that can't be written now is written by the next reader
                context.catalog.record_checked(good=[], bad=damaged)
    raise _no_good_copy(key, reasons, damaged)


def _nearest_first(locations: Sequence[Location], readable: Mapping[str, Device]) -> list[Location]:
    """Return the whole copies, those on disks of this machine first: quicker, and a store far away may stand still for long."""
    whole = [each for each in locations if each.fragment is None]
    return sorted(whole, key=lambda each: each.device in readable and is_far(readable[each.device]))


def _join(
    key: ObjectKey,
    locations: Sequence[Location],
    readable: Mapping[str, Device],
    names: Mapping[str, str],
    reasons: list[str],
    damaged: list[int],
) -> bytes:
    """Return a part put together from its fragments; add what is wrong with them to what is known."""
    try:
        data, bad = join_fragments(locations, readable, names)
    except NotEnoughCopies as error:
        damaged += error.facts.get("bad", ())
        raise _no_good_copy(key, [*reasons, error.message], damaged) from error
    damaged += bad
    if object_digest(key, data) != key.digest:
        raise _no_good_copy(key, [*reasons, "its fragments do not give its digest"], damaged)
    return data


def _no_good_copy(key: ObjectKey, reasons: Sequence[str], damaged: Sequence[int]) -> TensorkeepError:
    message = f"no good copy of {key.kind} {key.digest.hex()} is left: {'; '.join(reasons) or 'the catalog knows none'}"
    kind = Integrity if damaged else NotEnoughCopies
    return kind(message, object=key.digest.hex(), kind=key.kind.value)


def _read_copy(device: Device, location: Location) -> bytes:
    data = device.read(location.name)
    if object_digest(location.key, data) != location.key.digest:
        raise Integrity("its bytes do not have its digest")
    return data


def part_table(
    context: StoreContext,
    manifest: Manifest,
    checks: Checks,
    parts: Iterable[int],
    *,
    confirm_checks: Callable[[], Checks] | None = None,
    note_damage: Callable[[Sequence[Damage]], None] | None = None,
) -> PartTable:
    """Return where the copies of some parts are, good ones first, and the devices that can be read now."""
    keys = {part: ObjectKey(ObjectKind.PART, checks.digest(part)) for part in sorted(set(parts))}
    devices, found = context.catalog.survey(list(dict.fromkeys(keys.values())))
    readable = context.fleet.readable(devices)
    return PartTable(
        sizes=manifest.parts,
        checks=checks,
        sources={part: _sources(found.get(key, [])) for part, key in keys.items()},
        fragments={part: each for part, key in keys.items() if (each := find_fragments(found.get(key, []), readable))},
        devices=readable,
        names={facts.id: facts.name for facts in devices},
        rates=known_rates(devices, find_rates(context.cache_folder, devices)),
        confirm_checks=confirm_checks,
        describe=lambda part: describe_part(manifest, part),
        note_damage=note_damage,
    )


def known_rates(devices: Iterable[DeviceFacts], learned: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the bytes per second that devices give, by id, where that is known.

    Args:
        devices: rows of the catalog.
        learned: what real loads taught (`learned_rates.find_rates`), instead of the catalog's bandwidth. For predictions; where
            parts are placed is decided for all machines, by the catalog alone.
    """
    rates = {}
    for facts in devices:
        bandwidth = (learned or {}).get(facts.id, facts.bandwidth)
        known = [rate for rate in (bandwidth, facts.rate_limit) if rate]
        if known:
            rates[facts.id] = float(min(known))
    return rates


def _sources(locations: Sequence[Location]) -> list[PartSource]:
    return [_source_of(location) for location in locations if location.form == "raw"]


def find_fragments(locations: Sequence[Location], readable: Container[str]) -> FragmentSet | None:
    """Return the fragments among the rows of a part; of several codes those of the one that devices which can be read give best."""
    rows = fragments_of_best_form(locations, readable)
    if not rows:
        return None
    code = parse_form(rows[0].form)
    copies: dict[int, list[PartSource]] = {}
    for row in sorted(rows, key=lambda row: row.state == "bad"):
        assert row.fragment is not None
        copies.setdefault(row.fragment, []).append(
            _source_of(row, tail_bytes=footer_length(code, row.size_bytes, row.fragment))
        )
    return FragmentSet(code, copies)


def _source_of(location: Location, *, tail_bytes: int = 0) -> PartSource:
    return PartSource(
        location=location.id,
        device=location.device,
        name=location.name,
        offset=location.offset,
        length=location.length,
        # Copies marked bad are read only when no other is left: a read error may have been the cable's.
        rank=SUSPECT if location.state == "bad" else 0,
        tail_bytes=tail_bytes,
    )


def describe_part(manifest: Manifest, part: int) -> str:
    """Return which files, and which tensor first, a part belongs to."""
    files = [file.path for file in manifest.files if any(extent.part == part for extent in file.extents)]
    return ", ".join(files[:3]) + (" …" if len(files) > 3 else "")
