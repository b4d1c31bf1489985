"""The reader of zip directories: reads what real writers write, and refuses every archive that contradicts itself."""

import io
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.formats.protocol import RangeSource
from tensorkeep.formats.zip_archive import DIRECTORY_LIMIT_BYTES, MEMBER_LIMIT, Member, read_members
from tests.unit.formats.zip_bytes import MAX16, MAX32, MAX64, MadeMember, make_zip, zip64_extra


class Bytes:
    """A byte source over bytes in memory, which counts what is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads = 0
        self.read_bytes = 0

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert offset + length <= len(self.data), "a reader must not read past the end"
        self.reads += 1
        self.read_bytes += length
        return self.data[offset : offset + length]


def read(data: bytes) -> tuple[Member, ...]:
    return read_members(Bytes(data))


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.comment = comment
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


class Unseekable(io.RawIOBase):
    """A stream that can't go back, so that a zip's sizes follow the data (flag bit 3)."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


def streamed(*, zip64: bool) -> bytes:
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("a", "b"):
            with archive.open(name, "w", force_zip64=zip64) as member:
                member.write(name.encode() * 5)
    return stream.data


def torch_file() -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.arange(1000.0), "größe": torch.ones(3, 4)}, file)
    return file.getvalue()


def savez(*, compressed: bool = False) -> bytes:
    file = io.BytesIO()
    arrays = {"x": np.arange(5), "größe": np.ones((3, 4))}
    if compressed:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    else:
        np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def behind_a_prefix() -> bytes:
    file = io.BytesIO(b"#!/bin/sh\n")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("a", b"123")
    return file.getvalue()


REAL: dict[str, Callable[[], bytes]] = {
    "torch.save": torch_file,
    "numpy.savez": savez,
    "numpy.savez_compressed": lambda: savez(compressed=True),
    "no members": lambda: zip_of({}),
    "a comment": lambda: zip_of({"a": b"1", "folder/": b"", "folder/b": b"22"}, comment=b"of 12 bytes."),
    "the longest comment": lambda: zip_of({"a": b"1"}, comment=bytes(MAX16)),
    "deflated": lambda: zip_of({"a": b"1" * 1000, "empty": b""}, zipfile.ZIP_DEFLATED),
    "a stream": lambda: streamed(zip64=False),
    "a zip64 stream": lambda: streamed(zip64=True),
    "appended to a file": behind_a_prefix,
    "names of two alphabets": lambda: zip_of({"größe": b"1", "模型": b"2"}),
    "65,535 members": lambda: zip_of(dict.fromkeys(map(str, range(MAX16)), b"")),
    "65,536 members": lambda: zip_of(dict.fromkeys(map(str, range(MAX16 + 1)), b"")),
}


@pytest.mark.parametrize("kind", REAL)
def test_what_others_write_is_read(kind: str) -> None:
    data = REAL[kind]()
    members = read(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {member.name for member in members} == set(archive.namelist())
        for member in members[:50]:
            info = archive.getinfo(member.name)
            assert member.compressed == (info.compress_type != zipfile.ZIP_STORED)
            assert member.length == info.compress_size
            if not member.compressed:
                assert data[member.start : member.start + member.length] == archive.read(info)
    assert [member.start for member in members] == sorted(member.start for member in members)


def test_a_zip_inside_a_zip_is_a_members_bytes() -> None:
    inner = zip_of({"deep": b"value"})
    data = b"before" + zip_of({"outer.zip": inner}) + b"after"
    whole = RangeSource(Bytes(data), 6, len(data) - 11)
    (member,) = read_members(whole)
    assert member.length == len(inner)
    (deep,) = read_members(RangeSource(whole, member.start, member.length))
    assert whole.read(member.start + deep.start, deep.length) == b"value"


def test_a_source_that_shrinks_is_invalid_input() -> None:
    data = zip_of({"a": b"1"})
    with pytest.raises(InvalidInput):
        read_members(RangeSource(RangeSource(Bytes(data), 0, len(data) - 30), 0, len(data)))


def made(name: bytes = b"name", data: bytes = b"0123456789", **said: Any) -> MadeMember:
    """Return a member; ``local_``, ``central_`` and ``both_`` name where a field lies."""
    member = MadeMember(name, data, after=said.pop("after", b""))
    for where, value in said.items():
        place, _, key = where.partition("_")
        if place in ("local", "both"):
            member.local[key] = value
        if place in ("central", "both"):
            member.central[key] = value
    return member


WIDE: dict[str, Any] = {"central_size": MAX32, "central_full_size": MAX32, "central_extra": zip64_extra(10, 10)}
LEGAL = {
    "plain": make_zip(made()),
    "a zip64 record that was not needed": make_zip(made(), zip64=True),
    "a zip64 record with all": make_zip(
        made(), zip64=True, end={"here": MAX16, "count": MAX16, "size": MAX32, "start": MAX32}
    ),
    "zip64 sizes": make_zip(made(**WIDE), zip64=True),
    "a zip64 offset": make_zip(made(central_start=MAX32, central_extra=zip64_extra(0)), zip64=True),
    "zip64 sizes in the member's own header": make_zip(
        made(local_size=MAX32, local_full_size=MAX32, local_extra=zip64_extra(10, 10))
    ),
    "an offset after them, as miniz writes": make_zip(
        made(local_size=MAX32, local_full_size=MAX32, local_extra=zip64_extra(10, 10, 1 << 40))
    ),
    "an offset alone, as miniz writes": make_zip(made(local_extra=zip64_extra(1 << 40))),
    "sizes after the data": make_zip(
        made(both_flags=8, local_size=0, local_full_size=0, local_crc=0, after=bytes(16)), made(b"other")
    ),
    "zip64 sizes after the data": make_zip(
        made(
            both_flags=8,
            local_size=MAX32,
            local_full_size=MAX32,
            local_crc=0,
            local_extra=zip64_extra(0, 0),
            after=bytes(24),
        )
    ),
    "other extra fields": make_zip(made(local_extra=b"FB\4\0ZZZZ", central_extra=b"UT\0\0\0\0\0")),
    "long extra fields": make_zip(made(local_extra=b"FB\xff\1" + bytes(511)), made(b"other")),
    "long extra fields and zip64 sizes": make_zip(
        made(local_size=MAX32, local_full_size=MAX32, local_extra=b"FB\xff\1" + bytes(511) + zip64_extra(10, 10))
    ),
    "a gap": make_zip(made(after=b"not of any member"), made(b"other")),
    "a member's comment": make_zip(made(central_comment=b"PK\5\6 is no end record")),
    "an archive's comment": make_zip(made(), comment=b"of some bytes"),
    "an old name": make_zip(made(b"gr\x94\xe1e")),
    "a path that leaves": make_zip(made(b"../../etc/passwd"), made(b"/etc/passwd")),
}


@pytest.mark.parametrize("kind", LEGAL)
def test_every_form_that_the_standard_allows_is_read_as_zipfile_reads_it(kind: str) -> None:
    data = LEGAL[kind]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert [member.name for member in read(data)] == archive.namelist()
        for member in read(data):
            assert data[member.start : member.start + member.length] == archive.read(member.name)


PLAIN = LEGAL["plain"]
LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no end record"),
    "some bytes": (bytes(1000), "no end record"),
    "an end record of one byte less": (PLAIN[:-1], "no end record"),
    "cut in the middle": (PLAIN[: len(PLAIN) // 2], "no end record"),
    "bytes after it": (PLAIN + b"x", "comment"),
    "a comment past the end": (make_zip(made(), end={"comment": 9}), "comment"),
    "bytes before it": (b"x" + PLAIN, "bytes before the archive"),
    "a cut inside": (PLAIN[5:], "a cut in it"),
    "a disk": (make_zip(made(), end={"disk": 1}), "several disks"),
    "a first disk": (make_zip(made(), end={"first_disk": 1}), "several disks"),
    "a disk with fewer members": (make_zip(made(), made(b"b"), end={"here": 1}), "several disks"),
    "a member on another disk": (make_zip(made(central_disk=1)), "another disk"),
    "one member more than there are": (make_zip(made(), end={"here": 2, "count": 2}), "can't hold 2"),
    "one member more that would fit": (
        make_zip(made(central_comment=bytes(99)), end={"here": 2, "count": 2}),
        "ends inside member 1",
    ),
    "65,535 members": (make_zip(made(), end={"here": MAX16, "count": MAX16}), "can't hold 65535"),
    "one member fewer than there are": (make_zip(made(), made(b"b"), end={"here": 1, "count": 1}), "members take"),
    "a directory of other size": (make_zip(made(), end={"size": 49}), "should be at"),
    "a directory elsewhere": (make_zip(made(), end={"start": 1}), "should be at"),
    "a directory of other size elsewhere": (make_zip(made(), end={"start": 43, "size": 51}), "no member 0"),
    "a directory before the file": (make_zip(made(), end={"start": 0, "size": 2000}), "should be at"),
    "a zip64 size without its record": (make_zip(made(), end={"size": MAX32}), "zip64 record, and there is none"),
    "a zip64 offset without its record": (make_zip(made(), end={"start": MAX32}), "zip64 record, and there is none"),
    "a zip64 record elsewhere": (make_zip(made(), zip64=True, locator={"at": 1}), "zip64 record should be"),
    "a zip64 record past the end": (make_zip(made(), zip64=True, locator={"at": MAX64}), "zip64 record should be"),
    "no zip64 record": (make_zip(made(), zip64=True, end64={"signature": b"PK\1\2"}), "no zip64 record"),
    "a longer zip64 record": (make_zip(made(), zip64=True, end64={"length": MAX64}), "no zip64 record"),
    "a zip64 record on a disk": (make_zip(made(), zip64=True, locator={"disk": 1}), "several disks"),
    "a zip64 record of two disks": (make_zip(made(), zip64=True, locator={"disks": 2}), "several disks"),
    "a zip64 disk": (make_zip(made(), zip64=True, end64={"disk": 1}), "several disks"),
    "a zip64 first disk": (make_zip(made(), zip64=True, end64={"first_disk": 1}), "several disks"),
    "a zip64 disk with fewer members": (make_zip(made(), zip64=True, end64={"here": 0}), "several disks"),
    "another zip64 count": (make_zip(made(), zip64=True, end={"here": 0, "count": 0}), "count as 0"),
    "another zip64 size": (make_zip(made(), zip64=True, end={"size": 0}), "size as 0"),
    "another zip64 offset": (make_zip(made(), zip64=True, end={"start": 0}), "offset as 0"),
    "a zip64 count of 2^63": (
        make_zip(made(), zip64=True, end={"here": MAX16, "count": MAX16}, end64={"here": 1 << 63, "count": 1 << 63}),
        "limits",
    ),
    "a zip64 size of 2^64 - 1": (
        make_zip(made(), zip64=True, end={"size": MAX32}, end64={"size": MAX64}),
        "should be at",
    ),
    "a zip64 offset of 2^64 - 1": (
        make_zip(made(), zip64=True, end={"start": MAX32}, end64={"start": MAX64}),
        "should be at",
    ),
    "a directory without members": (make_zip(made(central_signature=b"PK\1\1")), "no member 0"),
    "a name past the directory": (
        PLAIN[:-22].replace(b"\4\0\0\0\0\0\0\0\0\0\0\0", b"\4\xff\0\0\0\0\0\0\0\0\0\0") + PLAIN[-22:],
        "ends inside member 0",
    ),
    "an empty name": (make_zip(made(b"")), "is empty"),
    "a name with NUL": (make_zip(made(b"a\0b")), "NUL"),
    "a name that is not UTF-8": (make_zip(made(b"\xff", both_flags=1 << 11)), "not UTF-8"),
    "a second name": (make_zip(made(central_extra=b"up\6\0\1\0\0\0\0x")), "second name"),
    "two members of a name": (make_zip(made(), made(data=b"")), "two members of the name 'name'"),
    "two spellings of a name": (
        make_zip(made(b"\x94"), made("ö".encode(), both_flags=1 << 11)),
        "two members of the name 'ö'",
    ),
    "another name in its own header": (make_zip(made(local_name=b"NAME")), "another name"),
    "a longer name in its own header": (make_zip(made(local_name=b"names")), "another name"),
    "another alphabet in its own header": (make_zip(made(local_flags=1 << 11)), "another name"),
    "an encrypted member": (make_zip(made(both_flags=1)), "encrypted"),
    "a member that its own header encrypts": (make_zip(made(local_flags=1)), "encrypted"),
    "a patched member": (make_zip(made(both_flags=1 << 5)), "encrypted"),
    "strong encryption": (make_zip(made(both_flags=1 << 6)), "encrypted"),
    "a masked header": (make_zip(made(both_flags=1 << 13)), "encrypted"),
    "another method in its own header": (make_zip(made(local_method=8)), "in another way"),
    "another method in the directory": (make_zip(made(central_method=8)), "in another way"),
    "another size in its own header": (make_zip(made(local_size=9)), "9 bytes by its own header, 10"),
    "no size in its own header": (make_zip(made(local_size=0)), "0 bytes by its own header, 10"),
    "another full size in its own header": (make_zip(made(local_full_size=11)), "11 uncompressed bytes"),
    "another CRC in its own header": (make_zip(made(local_crc=1)), "CRC"),
    "another size before sizes that follow": (
        make_zip(made(both_flags=8, local_size=9, after=bytes(16))),
        "9 bytes by its own header, 10",
    ),
    "no room for sizes that follow": (make_zip(made(both_flags=8, after=bytes(11))), "over the next header"),
    "another size for what is stored": (make_zip(made(both_full_size=11)), "instead of its 11"),
    "no header": (make_zip(made(local_signature=b"PK\3\5")), "no header"),
    "a header elsewhere": (make_zip(made(after=bytes(9)), made(b"b", central_start=49)), "no header"),
    "a header past the end": (make_zip(made(central_start=MAX32 - 1)), "over the next header"),
    "a header in the directory": (make_zip(made(central_start=60)), "over the next header"),
    "a zip64 header past the end": (
        make_zip(made(central_start=MAX32, central_extra=zip64_extra(MAX64)), zip64=True),
        "over the next header",
    ),
    "one header for two members": (make_zip(made(), made(b"othe", central_start=0)), "over the next header"),
    "a member over the directory": (make_zip(made(both_size=11, both_full_size=11)), "over the next header"),
    "a member over the next": (make_zip(made(both_size=11, both_full_size=11), made(b"b")), "over the next header"),
    "a member over all": (make_zip(made(both_size=MAX32 - 1, both_full_size=MAX32 - 1)), "over the next header"),
    "extra fields over the data": (
        make_zip(made(local_extra=bytes(8), data=b"")).replace(b"\4\0\x08\0", b"\4\0\x09\0"),
        "over the next header",
    ),
    "zip64 sizes that are not there": (make_zip(made(central_size=MAX32, central_full_size=MAX32)), "there is none"),
    "half of the zip64 sizes": (
        make_zip(made(**WIDE | {"central_extra": zip64_extra(10)})),
        "there is none",
    ),
    "zip64 sizes that nobody asked for": (make_zip(made(central_extra=zip64_extra(10, 10))), "zip64 field of 16 bytes"),
    "zip64 sizes twice": (
        make_zip(made(**WIDE | {"central_extra": zip64_extra(10, 10) * 2})),
        "two zip64 fields",
    ),
    "zip64 sizes of 2^64 - 1": (
        make_zip(made(**WIDE | {"central_extra": zip64_extra(MAX64, MAX64)})),
        "over the next header",
    ),
    "zip64 sizes that differ": (make_zip(made(**WIDE | {"central_extra": zip64_extra(10, 9)})), "instead of its 10"),
    "other zip64 sizes in its own header": (
        make_zip(made(local_size=MAX32, local_full_size=MAX32, local_extra=zip64_extra(10, 9))),
        "9 bytes by its own header, 10",
    ),
    "no zip64 sizes in its own header": (make_zip(made(local_size=MAX32, local_full_size=MAX32)), "there is none"),
    "an extra field past the others": (make_zip(made(central_extra=b"UT\1\0")), "extra field that ends"),
    "an extra field past the others, in its own header": (
        make_zip(made(local_size=MAX32, local_extra=b"UT\1\0")),
        "extra field that ends",
    ),
}


@pytest.mark.parametrize("kind", LIES)
def test_an_archive_that_lies_is_refused_and_the_lie_named(kind: str) -> None:
    data, words = LIES[kind]
    with pytest.raises(Format) as refused:
        read(data)
    assert words in refused.value.message


class Sparse:
    """A source of any size: zeros, but for some pieces. Reading much of it fails."""

    def __init__(self, size_bytes: int, pieces: dict[int, bytes]) -> None:
        self.size_bytes = size_bytes
        self.pieces = pieces
        self.read_bytes = 0

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size_bytes
        self.read_bytes += length
        assert self.read_bytes < 4 << 20, "a reader must not read what it will not use"
        data = bytearray(length)
        for start, piece in self.pieces.items():
            low, high = max(start, offset), min(start + len(piece), offset + length)
            if low < high:
                data[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(data)


def test_members_of_many_gigabytes_are_read_as_torch_writes_them() -> None:
    """miniz writes sizes after the data, and in a header the offset alone where only that does not fit."""
    big, small = 5 << 30, 16
    extra = zip64_extra(big, big) + b"FB\4\0ZZZZ"
    first = make_zip(
        made(b"a/data/0", b"", both_flags=8, local_size=MAX32, local_full_size=MAX32, local_crc=0, local_extra=extra)
    )
    first_header = first[: first.index(b"PK\1\2")]
    second_start = len(first_header) + big + 24
    second = make_zip(
        made(
            b"a/data/1",
            bytes(small),
            both_flags=8,
            local_size=0,
            local_full_size=0,
            local_crc=0,
            local_extra=zip64_extra(second_start),
        )
    )
    second_header = second[: second.index(b"PK\1\2")]
    directory = b"".join(
        archive[archive.index(b"PK\1\2") : archive.index(b"PK\5\6")]
        for archive in (
            make_zip(
                made(
                    b"a/data/0",
                    b"",
                    both_flags=8,
                    central_crc=7,
                    central_size=MAX32,
                    central_full_size=MAX32,
                    central_extra=zip64_extra(big, big),
                )
            ),
            make_zip(
                made(
                    b"a/data/1",
                    bytes(small),
                    both_flags=8,
                    central_start=MAX32,
                    central_extra=zip64_extra(second_start),
                )
            ),
        )
    )
    start = second_start + len(second_header) + 16
    records = make_zip(
        zip64=True,
        end={"here": 2, "count": 2, "size": len(directory), "start": MAX32},
        end64={"here": 2, "count": 2, "size": len(directory), "start": start},
        locator={"at": start + len(directory)},
    )
    pieces = {0: first_header, second_start: second_header, start: directory, start + len(directory): records}
    source = Sparse(start + len(directory) + len(records), pieces)
    assert read_members(source) == (
        Member("a/data/0", len(first_header), big, compressed=False),
        Member("a/data/1", second_start + len(second_header) - small, small, compressed=False),
    )


@pytest.mark.parametrize(
    ("size", "count"), [(DIRECTORY_LIMIT_BYTES + 1, 1), (DIRECTORY_LIMIT_BYTES, MEMBER_LIMIT + 1), (1 << 40, 1 << 33)]
)
def test_an_endless_directory_is_refused_before_it_is_read(size: int, count: int) -> None:
    said = {"here": count, "count": count, "size": size, "start": 0}
    records = make_zip(
        zip64=True, end={"here": MAX16, "count": MAX16, "size": MAX32}, end64={**said}, locator={"at": size}
    )
    with pytest.raises(Format, match="limits"):
        read_members(Sparse(size + len(records), {size: records}))


def test_headers_far_apart_are_read_alone_and_headers_close_by_together() -> None:
    near = Bytes(make_zip(*(made(b"%d" % number) for number in range(1000))))
    assert len(read_members(near)) == 1000
    assert near.reads < 10
    far = Bytes(make_zip(*(made(b"%d" % number, bytes(50_000)) for number in range(20))))
    assert len(read_members(far)) == 20
    assert far.read_bytes < 100_000
