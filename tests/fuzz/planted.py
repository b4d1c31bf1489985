"""Targets with a bug each: what looks for crashes must find these."""

from collections.abc import Callable, Mapping

from tensorkeep.errors import Format


def _index(data: bytes) -> None:
    """Looks beyond the end of what it was given, where a length says so."""
    if len(data) < 2 or data[0] != ord("T"):
        raise Format("it starts with another letter")
    data[data[1]]


def _memory(data: bytes) -> None:
    """Believes a length, up to a gigabyte."""
    if not data.startswith(b"T"):
        raise Format("it starts with another letter")
    bytearray(min(int.from_bytes(data[1:9], "little"), 1 << 30))


def _loop(data: bytes) -> None:
    """Counts up to what it was told."""
    at = 0
    while at < int.from_bytes(data[1:9], "little"):
        at += 1


PLANTED: Mapping[str, Callable[[bytes], None]] = {
    "planted index": _index,
    "planted memory": _memory,
    "planted loop": _loop,
}
"""By name, as the real ones."""

PLANTED_EXAMPLE = b"T\3\0\0\0\0\0\0\0abc"
"""What none of them gets wrong."""
