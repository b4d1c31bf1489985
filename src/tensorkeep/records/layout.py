"""The sizes that layout v1 fixes. They are part of the format: changing one makes another layout.

See ``docs/format-v1.md``.
"""

KIB = 1 << 10
MIB = 1 << 20

LAYOUT_VERSION = 1
"""Of ``tensorkeep.json``; a device with a higher one is refused."""

BLOCK_BYTES = 256 * KIB
"""Unit of verification: each block of a part has an XXH3-64 check; the last block may be shorter."""

SMALL_ITEM_BYTES = 1 * MIB
"""Items under this size go to packs; a tail under it joins the piece before it."""

MIN_AUTO_PART_BYTES = 4 * MIB
MAX_PART_SIZE_BYTES = 64 * MIB
"""The largest part *size* of a version; with a joined tail a part stays under `PART_LIMIT_BYTES`."""

PART_LIMIT_BYTES = MAX_PART_SIZE_BYTES + SMALL_ITEM_BYTES

PACK_ALIGNMENT_BYTES = 64
"""Start of every item in a pack."""

CATALOG_MANIFEST_BYTES = 4 * MIB
"""Stored manifests up to this size also lie in the catalog."""

JOURNAL_SNAPSHOT_EVERY = 1000
"""Entries between two snapshots of the journal."""

GIT_SHA1_LIMIT_BYTES = 10 * 1000 * 1000
"""Files under this size also carry their git blob SHA-1."""


def block_count(size_bytes: int) -> int:
    """Return how many blocks a part of that size has."""
    return -(-size_bytes // BLOCK_BYTES)
