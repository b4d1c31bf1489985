"""The footer of a fragment: what lies after its bytes, so that a device tells by itself what it keeps.

Sealed canonical JSON, then its length (u32, little-endian) and the four bytes ``tkf1``: a reader that does not know how long
the fragment is finds its footer from the end. The checks of parity blocks are here; those of data blocks are the part's own.

Source: ``docs/format-v1.md``, section 12.
"""

import struct

import msgspec
import numpy as np
import numpy.typing as npt

from tensorkeep.errors import Format, Integrity
from tensorkeep.records.digest import DIGEST_BYTES, parse_digest
from tensorkeep.records.json_text import decode_canonical, encode_canonical
from tensorkeep.records.layout import PART_LIMIT_BYTES, block_count
from tensorkeep.records.redundancy import MOST_FRAGMENTS, ErasureCoded, fragment_length
from tensorkeep.records.sealing import seal, unseal

FRAGMENT_FORMAT = 1
MATRIX = "cauchy1"

LONGEST_FOOTER_BYTES = 8192
"""No footer is longer: 260 blocks of parity of a part in one data fragment take 4,160 of them."""

_SEAL = "blake3"
_END = struct.Struct("<I4s")
_MAGIC = b"tkf1"


class FragmentFooter(msgspec.Struct, frozen=True, kw_only=True):
    """What a fragment is: number ``index`` of the ``data + parity`` fragments of the part with this digest (hex) and size.

    ``digest`` is the BLAKE3-256 of the fragment's bytes, in hex. ``blocks``: the XXH3-64 of each block of a parity fragment,
    little-endian, in hex; None for data.
    """

    format: int = FRAGMENT_FORMAT
    part: str
    size_bytes: int
    data: int
    parity: int
    index: int
    digest: str
    blocks: str | None
    matrix: str = MATRIX

    @property
    def policy(self) -> ErasureCoded:
        """What the part was cut by."""
        return ErasureCoded(self.data, self.parity)

    @property
    def block_checks(self) -> npt.NDArray[np.uint64]:
        """The checks of a parity fragment's blocks, shape (blocks,); none for data."""
        return np.frombuffer(bytes.fromhex(self.blocks or ""), dtype="<u8")


class _Head(msgspec.Struct):
    format: int


def encode_footer(footer: FragmentFooter) -> bytes:
    """Return the bytes that follow a fragment's own."""
    body = seal(encode_canonical(footer), _SEAL)
    return body + _END.pack(len(body), _MAGIC)


def footer_length(policy: ErasureCoded, size_bytes: int, index: int) -> int:
    """Return the length of the footer of a fragment of a part of that size."""
    digest = "0" * (2 * DIGEST_BYTES)
    blocks = "0" * (16 * _parity_blocks(policy, size_bytes, index)) if index >= policy.data else None
    footer = FragmentFooter(
        part=digest,
        size_bytes=size_bytes,
        data=policy.data,
        parity=policy.parity,
        index=index,
        digest=digest,
        blocks=blocks,
    )
    return len(encode_footer(footer))


def decode_footer(tail: bytes, *, what: str) -> FragmentFooter:
    """Return the footer that these last bytes of an object end with.

    Args:
        tail: at least the whole footer; `LONGEST_FOOTER_BYTES` are enough.
        what: names the object in errors.

    Raises:
        Integrity: there is no footer, or its seal does not fit: it is damaged, or cut.
        Format: a newer format, another matrix, or fields that do not fit each other.
    """
    if len(tail) < _END.size:
        raise Integrity(f"{what} is too short for a fragment's footer")
    length, magic = _END.unpack(tail[-_END.size :])
    if magic != _MAGIC or length > len(tail) - _END.size:
        raise Integrity(f"{what} does not end with a fragment's footer: it is damaged or was cut")
    body = unseal(tail[len(tail) - _END.size - length : -_END.size], _SEAL, what=f"the footer of {what}")
    # The version alone first: a newer format may have other fields.
    newest = decode_canonical(body, _Head, what=f"the footer of {what}").format
    if newest > FRAGMENT_FORMAT:
        raise Format(f"the footer of {what} has format {newest}, this tensorkeep knows {FRAGMENT_FORMAT}: upgrade it")
    footer = decode_canonical(body, FragmentFooter, what=f"the footer of {what}")
    _check(footer, what)
    return footer


def _check(footer: FragmentFooter, what: str) -> None:
    for digest in (footer.part, footer.digest):
        parse_digest(digest, what=f"a digest in the footer of {what}")
    if footer.matrix != MATRIX:
        raise Format(
            f"{what} was coded with the matrix {footer.matrix!r}, this tensorkeep knows {MATRIX!r}: upgrade it"
        )
    slots = footer.data + footer.parity
    fits = footer.data >= 1 and footer.parity >= 1 and slots <= MOST_FRAGMENTS and 0 <= footer.index < slots
    if not fits or not 0 < footer.size_bytes < PART_LIMIT_BYTES:
        raise Format(f"the footer of {what} contradicts itself: {footer}")
    needed = _parity_blocks(footer.policy, footer.size_bytes, footer.index) if footer.index >= footer.data else None
    blocks = None if footer.blocks is None else _count_blocks(footer.blocks, what)
    if blocks != needed:
        raise Format(f"the footer of {what} has {blocks} block checks, its fragment needs {needed}")


def _count_blocks(text: str, what: str) -> int:
    """Return how many block checks a text holds.

    Raises:
        Format: it is not whole checks in lower-case hex.
    """
    parse_digest(text, size=8 * (len(text) // 16), what=f"the block checks of {what}")
    return len(text) // 16


def _parity_blocks(policy: ErasureCoded, size_bytes: int, index: int) -> int:
    return block_count(fragment_length(policy, size_bytes, index))
