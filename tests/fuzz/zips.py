"""Archives of ``torch.save`` around a pickle, quicker than `zipfile` writes them."""

import struct
from collections.abc import Mapping
from zlib import crc32

_STORAGES = {"archive/data/0": bytes(range(64)), "archive/data/1": bytes(64)}


def torch_archive(data_pkl: bytes) -> bytes:
    """Return an archive with this pickle, and with two storages of 64 bytes."""
    return stored_zip({"archive/data.pkl": data_pkl, "archive/byteorder": b"little", **_STORAGES})


def stored_zip(members: Mapping[str, bytes]) -> bytes:
    """Return a zip file of these members, uncompressed."""
    body, directory = bytearray(), bytearray()
    for name, data in members.items():
        facts = struct.pack("<5H3L2H", 20, 0, 0, 0, 0, crc32(data), len(data), len(data), len(name), 0)
        directory += b"PK\1\2\x14\0" + facts + struct.pack("<3H2L", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\3\4" + facts + name.encode() + data
    count = len(members)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return bytes(body + directory) + end
