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
from tensorkeep.formats.zip_archive import Member, read_members

MAX16 = 0xFFFF


class Bytes:
    """A byte source over bytes in memory, which counts what is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads = 0

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert offset + length <= len(self.data), "a reader must not read past the end"
        self.reads += 1
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


# The archive that lies are made from: one member, no extra fields, no comment.
PLAIN = zip_of({"name": b"0123456789"})
ENTRY = PLAIN.index(b"PK\1\2")
END = PLAIN.index(b"PK\5\6")


def patched(at: int, value: bytes, data: bytes = PLAIN) -> bytes:
    return data[:at] + value + data[at + len(value) :]


LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no end record"),
    "some bytes": (bytes(1000), "no end record"),
    "cut at the end": (PLAIN[:-1], "no end record"),
    "bytes after it": (PLAIN + b"x", "comment"),
    "bytes before it": (b"x" + PLAIN, "bytes before the archive"),
    "an encrypted member": (patched(ENTRY + 8, b"\1"), "encrypted"),
    "another name in its own header": (patched(30, b"NAME"), "another name"),
    "two members of a name": (zip_of({"a": b"", "b": b""}).replace(b"b", b"a"), "two members of the name 'a'"),
}


@pytest.mark.parametrize("kind", LIES)
def test_an_archive_that_lies_is_refused(kind: str) -> None:
    data, words = LIES[kind]
    with pytest.raises(Format) as refused:
        read(data)
    assert words in refused.value.message
