"""Digests: BLAKE3 names bytes, XXH3-64 checks blocks, SHA-256 and git SHA-1 speak to other tools.

A digest in memory is ``bytes`` (32, or 20 for a version id); in JSON and in names it is lower-case hex.

Source: BLAKE3 specification (https://github.com/BLAKE3-team/BLAKE3-specs), xxHash specification (XXH3-64).
"""

import re

import xxhash
from blake3 import blake3
from typing_extensions import Buffer

from tensorkeep.errors import Format
from tensorkeep.records.layout import BLOCK_BYTES

DIGEST_BYTES = 32
VERSION_ID_BYTES = 20

_HEX = re.compile(r"[0-9a-f]*\Z")


def blake3_256(data: "Buffer") -> bytes:
    """Return the BLAKE3-256 of a buffer, 32 bytes. Releases the interpreter lock on large buffers."""
    return blake3(data).digest()


def blake3_160(data: "Buffer") -> bytes:
    """Return the first 20 bytes of the BLAKE3 output: the id of a version whose record these bytes are."""
    return blake3(data).digest(length=VERSION_ID_BYTES)


def xxh3_64(data: "Buffer") -> int:
    """Return the XXH3-64 of a buffer, seed 0, as an unsigned integer."""
    return xxhash.xxh3_64_intdigest(data)


def block_checks(data: "Buffer") -> list[int]:
    """Return the XXH3-64 of each block of a part, in order; the last block may be shorter."""
    view = memoryview(data).cast("B")
    digest = xxhash.xxh3_64_intdigest
    return [digest(view[start : start + BLOCK_BYTES]) for start in range(0, len(view), BLOCK_BYTES)]


def parse_digest(text: str, *, size: int = DIGEST_BYTES, what: str = "digest") -> bytes:
    """Return the bytes of a lower-case hex digest.

    Raises:
        Format: it is not exactly ``2 * size`` lower-case hex digits.
    """
    if len(text) != 2 * size or not _HEX.match(text):
        raise Format(f"{what} {text!r} is not {2 * size} lower-case hex digits", value=text)
    return bytes.fromhex(text)
