"""Reading a stored copy and comparing every byte with its digest."""

from collections.abc import Callable

from blake3 import blake3

from tensorkeep.catalog.protocol import Location
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Integrity
from tensorkeep.store.fragments import check_footer, object_bytes

CHUNK_BYTES = 4 << 20
"""Of the scratch memory that a copy is read into, piece by piece."""


def check_copy(
    device: Device, location: Location, scratch: memoryview, *, before: Callable[[int], None] = lambda _: None
) -> None:
    """Return if the bytes of a row are what they should be.

    Args:
        device: where they are.
        location: the row.
        scratch: memory to read into.
        before: called with the number of bytes ahead of each read.

    Raises:
        NotFound: the object is not there.
        Integrity: it has another size, or other bytes.
    """
    size, should = device.size_of(location.name), object_bytes(location)
    if size != should:
        raise Integrity(f"it has {size} bytes instead of {should}")
    for attempt in range(2):  # a bit may have flipped on the way: only what is wrong twice is the copy's
        expected = _find_digest(device, location, should, is_last=attempt == 1)
        digest = _read_digest(device, location, scratch, before)
        if digest == expected:
            return
    raise Integrity(f"its bytes have digest {digest.hex()}")


def _find_digest(device: Device, location: Location, size: int, *, is_last: bool) -> bytes | None:
    """Return the digest that the bytes of a row should have: of a fragment what its footer says, None where that is damaged."""
    if location.fragment is None:
        return location.key.digest
    start = location.offset + location.length
    tail = bytearray(size - start)
    device.read_into(location.name, start, [memoryview(tail)])
    try:
        return bytes.fromhex(check_footer(bytes(tail), location).digest)
    except Integrity:
        if is_last:
            raise
        return None


def _read_digest(device: Device, location: Location, scratch: memoryview, before: Callable[[int], None]) -> bytes:
    hasher = blake3()
    for start in range(0, location.length, len(scratch)):
        view = scratch[: min(len(scratch), location.length - start)]
        before(len(view))
        device.read_into(location.name, location.offset + start, [view])
        hasher.update(view)
    return hasher.digest(length=len(location.key.digest))
