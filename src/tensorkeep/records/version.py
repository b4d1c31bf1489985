"""The version record: a small immutable object that names a manifest. Its id is the BLAKE3-160 of its stored bytes."""

import msgspec

from tensorkeep.errors import Format
from tensorkeep.records.digest import blake3_160
from tensorkeep.records.json_text import decode_canonical, encode_canonical

VERSION_FORMAT = 1


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable snapshot of a model's files.

    ``model`` is a ulid, ``parent`` a version id in hex or None, ``manifest`` a BLAKE3-256 in hex, ``created_at`` UTC.
    """

    format: int = VERSION_FORMAT
    model: str
    parent: str | None
    manifest: str
    message: str
    author: str
    created_at: str
    total_bytes: int


def encode_version(record: VersionRecord) -> tuple[str, bytes]:
    """Return a version's id (40 hex digits) and its stored bytes."""
    data = encode_canonical(record)
    return blake3_160(data).hex(), data


def decode_version(data: bytes) -> VersionRecord:
    """Return the record that these bytes hold.

    Raises:
        Format: a newer format, or not a version record.
    """
    record = decode_canonical(data, VersionRecord, what="version record")
    if record.format > VERSION_FORMAT:
        raise Format(f"version record has format {record.format}, this tensorkeep knows {VERSION_FORMAT}: upgrade it")
    return record
