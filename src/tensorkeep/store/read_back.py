"""Reading what was just written, from the device itself, and comparing it with what was sent.

A repaired copy counts only then: a disk that acknowledges what it does not keep is found out while there is still another copy.
"""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from typing_extensions import Buffer

from tensorkeep.devices.buffers import byte_views, count_bytes
from tensorkeep.devices.forwarding import innermost
from tensorkeep.devices.protocol import CachingDevice, Device
from tensorkeep.errors import Integrity, NotFound, TensorkeepError
from tensorkeep.transfer.memory import allocate

_CHUNK_BYTES = 4 << 20


def compare_stored(device: Device, name: str, data: Sequence[Buffer]) -> TensorkeepError | None:
    """Return what is wrong with an object that should be the concatenation of ``data``; None where nothing is.

    It is read past the system's cache, as far as the system lets go of it.
    """
    try:
        _compare(device, name, byte_views(data))
    except (Integrity, NotFound) as error:
        return Integrity(f"what was written to {device.url} does not read back: {error.message}", object=name)
    except TensorkeepError as error:
        return error
    return None


def _compare(device: Device, name: str, views: Sequence[memoryview]) -> None:
    drop_cached(device, name)
    found, sent = device.size_of(name), count_bytes(views)
    if found != sent:
        raise Integrity(f"{name} has {found} bytes instead of {sent}")
    scratch = allocate(min(_CHUNK_BYTES, max(sent, 1)))
    position = 0
    for view in views:
        for start in range(0, len(view), _CHUNK_BYTES):
            wanted = view[start : start + _CHUNK_BYTES]
            device.read_into(name, position, [scratch[: len(wanted)]])
            if not np.array_equal(np.frombuffer(scratch[: len(wanted)], np.uint8), np.frombuffer(wanted, np.uint8)):
                raise Integrity(f"{name} has other bytes between {position} and {position + len(wanted)}")
            position += len(wanted)


def drop_cached(device: Device, name: str) -> None:
    """Have the system forget an object's pages, where the device has any: the next read then comes from the disk."""
    inner = innermost(device)
    if isinstance(inner, CachingDevice):
        with suppress(TensorkeepError):  # a hint: the read says what is wrong
            inner.drop_cached(name)
