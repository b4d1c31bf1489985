"""Zip archives written field by field, so that a test can make any field lie."""

import struct
import zlib
from dataclasses import dataclass, field

MAX16 = 0xFFFF
MAX32 = 0xFFFFFFFF
MAX64 = 0xFFFFFFFFFFFFFFFF


Fields = dict[str, int | bytes]


@dataclass
class MadeMember:
    """A member and what is to differ from the truth in its own header (``local``) and in the directory (``central``)."""

    name: bytes = b"name"
    data: bytes = b"0123456789"
    local: Fields = field(default_factory=dict)
    central: Fields = field(default_factory=dict)
    after: bytes = b""


def make_zip(
    *members: MadeMember,
    zip64: bool = False,
    end: Fields | None = None,
    end64: Fields | None = None,
    locator: Fields | None = None,
    comment: bytes = b"",
) -> bytes:
    """Return an archive of members; the dicts are what its records say in place of the truth."""
    data = b""
    directory = b""
    for member in members:
        directory += _central(member, len(data))
        data += _local(member) + member.data + member.after
    start, size, count = len(data), len(directory), len(members)
    data += directory
    lies = {"end": end or {}, "end64": end64 or {}, "locator": locator or {}}
    if zip64:
        found: Fields = {"signature": b"PK\6\7", "disk": 0, "at": len(data), "disks": 1}
        record: Fields = {
            "signature": b"PK\6\6",
            "length": 44,
            "made_by": 45,
            "version": 45,
            "disk": 0,
            "first_disk": 0,
        }
        record |= {"here": count, "count": count, "size": size, "start": start}
        data += struct.pack("<4sQ2H2L4Q", *(record | lies["end64"]).values())
        data += struct.pack("<4sLQL", *(found | lies["locator"]).values())
    last: Fields = {"signature": b"PK\5\6", "disk": 0, "first_disk": 0, "here": count, "count": count, "size": size}
    last |= {"start": start, "comment": len(comment)}
    return data + struct.pack("<4s4H2LH", *(last | lies["end"]).values()) + comment


def zip64_extra(*values: int) -> bytes:
    """Return a zip64 extra field of these values."""
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def _fields(member: MadeMember) -> Fields:
    size = len(member.data)
    return {"flags": 0, "method": 0, "crc": zlib.crc32(member.data), "size": size, "full_size": size, "extra": b""}


def _local(member: MadeMember) -> bytes:
    said = _fields(member) | {"signature": b"PK\3\4", "name": member.name} | member.local
    name, extra = said["name"], said["extra"]
    assert isinstance(name, bytes)
    assert isinstance(extra, bytes)
    packed = struct.pack(
        "<4s5H3L2H",
        *(said["signature"], 20, said["flags"], said["method"], 0, 33),
        *(said["crc"], said["size"], said["full_size"], len(name), len(extra)),
    )
    return packed + name + extra


def _central(member: MadeMember, start: int) -> bytes:
    said = _fields(member) | {"signature": b"PK\1\2", "name": member.name, "disk": 0, "start": start, "comment": b""}
    said |= member.central
    name, extra, comment = said["name"], said["extra"], said["comment"]
    assert isinstance(name, bytes)
    assert isinstance(extra, bytes)
    assert isinstance(comment, bytes)
    packed = struct.pack(
        "<4s6H3L5H2L",
        *(said["signature"], 20, 20, said["flags"], said["method"], 0, 33),
        *(said["crc"], said["size"], said["full_size"]),
        *(len(name), len(extra), len(comment), said["disk"], 0, 0, said["start"]),
    )
    return packed + name + extra + comment
