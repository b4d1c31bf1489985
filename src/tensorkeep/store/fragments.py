"""Fragments of a part in memory: made for the devices that lack them, and put together again."""

from collections.abc import Container, Mapping, Sequence

from typing_extensions import Buffer

from tensorkeep.catalog.counting import best_form
from tensorkeep.catalog.protocol import Location
from tensorkeep.codecs.erasure import ErasureCode
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Integrity, NotEnoughCopies, NotFound, TensorkeepError
from tensorkeep.planning.placement import PartToPlace
from tensorkeep.records.digest import blake3_256, block_checks
from tensorkeep.records.fragment import FragmentFooter, decode_footer, encode_footer, footer_length
from tensorkeep.records.redundancy import (
    ErasureCoded,
    Policy,
    filled_fragments,
    form_name,
    form_of,
    fragment_length,
    fragment_range,
    parse_form,
)
from tensorkeep.transfer.memory import allocate


def code_of(policy: Policy, size_bytes: int) -> ErasureCoded | None:
    """Return how a part of that size is cut under a policy; None where it is kept whole."""
    form = form_of(policy, size_bytes)
    return form if isinstance(form, ErasureCoded) else None


def held_part(good: Sequence[Location], size_bytes: int, code: ErasureCoded | None) -> PartToPlace:
    """Return an object of that size with the devices that keep these copies of it, and fragments of that code."""
    form = None if code is None else form_name(code)
    return PartToPlace(
        size_bytes,
        None,
        frozenset(row.device for row in good if row.fragment is None),
        fragments={row.fragment: row.device for row in good if row.fragment is not None and row.form == form},
    )


def make_fragments(data: Buffer, digest: bytes, rows: Sequence[Location]) -> dict[int, list[Buffer]]:
    """Return the objects that these rows of a part are: each fragment's bytes and its footer, by number.

    Data fragments are views of the part. Parity is calculated, for all rows together, where there is some.
    """
    view = memoryview(data).cast("B")
    code = parse_form(rows[0].form)
    numbers = sorted({row.fragment for row in rows if row.fragment is not None})
    parts = {i: view[slice(*fragment_range(code, len(view), i))] for i in range(code.data)}
    parity = {i: allocate(fragment_length(code, len(view), i)) for i in numbers if i >= code.data}
    if parity:
        ErasureCode(code).restore(parts, parity)
    return {i: _with_footer(parity.get(i) or parts[i], i, code, digest, len(view)) for i in numbers}


def _with_footer(body: memoryview, number: int, code: ErasureCoded, part: bytes, size_bytes: int) -> list[Buffer]:
    blocks = None
    if number >= code.data:
        blocks = b"".join(check.to_bytes(8, "little") for check in block_checks(body)).hex()
    footer = FragmentFooter(
        part=part.hex(),
        size_bytes=size_bytes,
        data=code.data,
        parity=code.parity,
        index=number,
        digest=blake3_256(body).hex(),
        blocks=blocks,
    )
    return [body, encode_footer(footer)]


def check_footer(tail: bytes, location: Location) -> FragmentFooter:
    """Return the footer of a fragment that a row tells of.

    Raises:
        Integrity: it is damaged, or another fragment's.
        Format: it is of a newer tensorkeep.
    """
    footer = decode_footer(tail, what=location.name)
    code = parse_form(location.form)
    found = (footer.part, footer.policy, footer.size_bytes, footer.index)
    if found != (location.key.digest.hex(), code, location.size_bytes, location.fragment):
        raise Integrity(f"it is another fragment: its footer says number {footer.index} of part {footer.part}")
    return footer


def object_bytes(location: Location) -> int:
    """Return how many bytes the object of a row has, what follows its own bytes included."""
    size = location.offset + location.length
    if location.fragment is None:
        return size
    return size + footer_length(parse_form(location.form), location.size_bytes, location.fragment)


def fragments_of_best_form(locations: Sequence[Location], readable: Container[str]) -> Sequence[Location]:
    """Return the rows of fragments of one code: of the one that devices which can be read give best."""
    fragments = [row for row in locations if row.fragment is not None]
    usable = [row for row in fragments if row.state != "bad" and row.device in readable]
    best = best_form(usable) or best_form(fragments)
    return [row for row in fragments if row.form == best[0].form] if best else ()


def join_fragments(
    locations: Sequence[Location], devices: Mapping[str, Device], names: Mapping[str, str]
) -> tuple[bytes, list[int]]:
    """Return a part put together from its fragments, not compared with its digest yet, and the rows that were found bad.

    Raises:
        NotEnoughCopies: fewer than it takes can be read; the message says what is wrong with the others.
    """
    rows = fragments_of_best_form(locations, devices)
    if not rows:
        raise NotEnoughCopies("there are no fragments of it")
    code, size = parse_form(rows[0].form), rows[0].size_bytes
    known: dict[int, bytes] = dict.fromkeys(range(filled_fragments(code, size), code.data), b"")
    bad: list[int] = []
    reasons: list[str] = []
    for row in sorted(rows, key=lambda row: (row.state == "bad", row.fragment)):
        if len(known) == code.data or row.fragment is None or row.fragment in known:
            continue
        device = devices.get(row.device)
        try:
            if device is None:
                raise NotEnoughCopies("can't be reached")
            known[row.fragment] = _read_fragment(device, row)
        except (Integrity, NotFound) as error:
            bad.append(row.id)
            reasons.append(f"fragment {row.fragment} on device {names[row.device]}: {error.message}")
        except TensorkeepError as error:
            reasons.append(f"fragment {row.fragment} on device {names[row.device]}: {error.message}")
    if len(known) < code.data:
        raise NotEnoughCopies(f"too few fragments of {code} are left: {'; '.join(reasons)}", bad=bad)
    lost = {i: bytearray(fragment_length(code, size, i)) for i in range(code.data) if i not in known}
    if lost:
        ErasureCode(code).restore(known, lost)
    return b"".join(known[i] if i in known else lost[i] for i in range(code.data)), bad


def _read_fragment(device: Device, row: Location) -> bytes:
    data = device.read(row.name)
    if len(data) != object_bytes(row):
        raise Integrity(f"it has {len(data)} bytes instead of {object_bytes(row)}")
    footer = check_footer(data[row.length :], row)
    body = data[: row.length]
    if blake3_256(body).hex() != footer.digest:
        raise Integrity("its bytes do not have the digest in its footer")
    return body
