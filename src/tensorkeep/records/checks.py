"""The checks object: every part's digest and every block's XXH3-64, apart from the manifest so that it stays small.

Binary: all part digests (32 bytes each), then all block checks (u64, little-endian), in part order; readable by range.
Named by the BLAKE3-256 of its bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tensorkeep.errors import Integrity
from tensorkeep.records.digest import DIGEST_BYTES
from tensorkeep.records.layout import BLOCK_BYTES


class BlockChecks(Protocol):
    """What bytes are compared with: the checks of parts, or of what a load reads them as."""

    def digest(self, part: int) -> bytes:
        """Return the BLAKE3-256 of a part."""

    def block_checks(self, part: int) -> npt.NDArray[np.uint64]:
        """Return the checks of a part's blocks, shape (blocks,)."""


@dataclass(frozen=True)
class Checks:
    """Digests and block checks of a version's parts, in part order.

    ``digests`` has shape (parts, 32) and dtype uint8; ``blocks`` shape (all blocks,) and dtype ``<u8``; blocks of part i are
    ``blocks[first_block[i] : first_block[i + 1]]``.
    """

    digests: npt.NDArray[np.uint8]
    blocks: npt.NDArray[np.uint64]
    first_block: npt.NDArray[np.int64]

    def digest(self, part: int) -> bytes:
        """Return the BLAKE3-256 of a part."""
        return bytes(self.digests[part])

    def block_checks(self, part: int) -> npt.NDArray[np.uint64]:
        """Return the checks of a part's blocks, shape (blocks,)."""
        return self.blocks[self.first_block[part] : self.first_block[part + 1]]


def encode_checks(digests: Sequence[bytes], block_checks: Sequence[Sequence[int]]) -> bytes:
    """Return the bytes of a checks object; ``block_checks[i]`` are those of part i."""
    blocks = np.fromiter((check for part in block_checks for check in part), dtype="<u8")
    return b"".join(digests) + blocks.tobytes()


def decode_checks(data: bytes, part_sizes: Sequence[int]) -> Checks:
    """Return the checks of parts of these sizes, as views of the bytes.

    Raises:
        Integrity: the object has another size than these parts need.
    """
    sizes = np.asarray(part_sizes, dtype=np.int64)
    first = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(-(-sizes // BLOCK_BYTES), out=first[1:])
    expected = DIGEST_BYTES * len(sizes) + 8 * int(first[-1])
    if len(data) != expected:
        raise Integrity(f"the checks object has {len(data)} bytes, its manifest needs {expected}")
    digests = np.frombuffer(data, dtype=np.uint8, count=DIGEST_BYTES * len(sizes)).reshape(-1, DIGEST_BYTES)
    blocks = np.frombuffer(data, dtype="<u8", offset=DIGEST_BYTES * len(sizes))
    return Checks(digests, blocks, first)
