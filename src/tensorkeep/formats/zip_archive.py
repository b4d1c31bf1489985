"""The directory of a zip archive, read strictly: which members it has, and where the bytes of each lie in the file.

Archives of arrays are mapped, sliced and split by what is read here, so nothing is guessed: two readers that disagree about
an archive (a header that lies, members that overlap, a name twice, a zip64 value beside another one) would load different
tensors from the same bytes. Every count and size is compared with the file's size or a limit before it is used. No member's
data is read, and names are only names, never paths.

Bytes before the archive are allowed where its offsets count from the file's first byte, as `zipfile` writes when it appends
to a file; an archive that was put behind other bytes without its offsets being changed is refused.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5; what `zipfile`, miniz (PyTorch) and ``numpy.savez`` write.
"""

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from tensorkeep.errors import Format
from tensorkeep.formats.protocol import ByteSource

DIRECTORY_LIMIT_BYTES = 64 << 20
"""Most bytes of a directory."""

MEMBER_LIMIT = 500_000
"""Most members of an archive."""


class Member(NamedTuple):
    """A file of an archive: ``length`` bytes from ``start`` of the source, as they are stored."""

    name: str
    start: int
    length: int
    compressed: bool


def read_members(source: ByteSource) -> tuple[Member, ...]:
    """Return an archive's members, in order of start. The directory and each member's own header are read, no data.

    Raises:
        Format: it is no zip archive, or one whose parts contradict each other; the message says where.
        InvalidInput: the source ended early (it shrank).
    """
    directory = _find_directory(source)
    entries = _read_entries(source, directory)
    entries.sort(key=_header_start)
    ends = [*(entry.header_start for entry in entries[1:]), directory.start]
    for entry, end in zip(entries, ends, strict=False):
        _check_end(entry, entry.header_start + _LOCAL.size + len(entry.raw_name), end)
    headers = _iter_headers(source, entries)
    return tuple(
        _read_member(source, entry, header, end) for entry, header, end in zip(entries, headers, ends, strict=False)
    )


_END = Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\5\6"
_LOCATOR = Struct("<4sLQL")
_LOCATOR_SIGNATURE = b"PK\6\7"
_END64 = Struct("<4sQ2H2L4Q")
_END64_SIGNATURE = b"PK\6\6"
_ENTRY = Struct("<4s6H3L5H2L")
_ENTRY_SIGNATURE = b"PK\1\2"
_LOCAL = Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\3\4"
_EXTRA = Struct("<2H")
_U64 = Struct("<Q")

_COMMENT_LIMIT_BYTES = 0xFFFF
_MAX16 = 0xFFFF  # in place of a value that only a zip64 record can hold
_MAX32 = 0xFFFFFFFF
_EXTRA_ZIP64 = 0x0001
_EXTRA_UNICODE_NAME = 0x7075

_FLAG_DESCRIPTOR = 1 << 3  # sizes follow the data; in the local header they may be zero
_FLAG_UTF8 = 1 << 11
_FLAGS_UNREADABLE = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 13  # encrypted, patched, strongly encrypted, masked headers
_DESCRIPTOR_BYTES = 12  # the least that follows the data of a member with that flag

_WINDOW_BYTES = 1 << 20
_WINDOW_GAP_BYTES = 16 << 10  # one read over this much of other bytes costs less than two reads
_WINDOW_MARGIN_BYTES = 64  # of a header, beyond its name: the extra fields of numpy and of torch


class _Directory(NamedTuple):
    start: int
    size_bytes: int
    member_count: int


def _find_directory(source: ByteSource) -> _Directory:
    """Return where the directory lies: it must end exactly where the records of its end begin."""
    end, directory = _read_end(source)
    locator = source.read(end - _LOCATOR.size, _LOCATOR.size) if end >= _LOCATOR.size else b""
    if locator.startswith(_LOCATOR_SIGNATURE):
        end, directory = _read_end64(source, end - _LOCATOR.size, locator, directory)
    elif _MAX32 in (directory.start, directory.size_bytes):
        raise Format("its end record refers to a zip64 record, and there is none")
    if directory.start + directory.size_bytes != end:
        raise Format(
            f"its directory should be at bytes {directory.start} to {directory.start + directory.size_bytes}, and its "
            f"end record is at {end}: bytes before the archive, or a cut in it?"
        )
    if directory.size_bytes > DIRECTORY_LIMIT_BYTES or directory.member_count > MEMBER_LIMIT:
        raise Format(
            f"its directory has {directory.member_count} members in {directory.size_bytes} bytes; the limits are "
            f"{MEMBER_LIMIT} and {DIRECTORY_LIMIT_BYTES}"
        )
    if directory.member_count * _ENTRY.size > directory.size_bytes:
        raise Format(f"its directory of {directory.size_bytes} bytes can't hold {directory.member_count} members")
    return directory


def _read_end(source: ByteSource) -> tuple[int, _Directory]:
    """Return where the end record starts, and what it says. It is the last one, as for `zipfile` and miniz."""
    size = source.size_bytes
    tail_start = max(0, size - _END.size - _COMMENT_LIMIT_BYTES)
    tail = source.read(tail_start, size - tail_start)
    at = tail.rfind(_END_SIGNATURE, 0, max(0, len(tail) - _END.size + len(_END_SIGNATURE)))
    if at < 0:
        raise Format("it has no end record: no zip archive, or an incomplete download?")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise Format(f"its comment of {comment} bytes does not end with the file")
    if any(number not in (0, _MAX16) for number in (disk, first_disk)) or here != count:
        raise Format("it is one of several disks of an archive")
    return tail_start + at, _Directory(start, length, count)


def _read_end64(source: ByteSource, end: int, locator: bytes, small: _Directory) -> tuple[int, _Directory]:
    """Return where the zip64 record starts, and what it says: what the end record says too must be the same."""
    _, disk, at, disks = _LOCATOR.unpack(locator)
    if disk or disks > 1:
        raise Format("it is one of several disks of an archive")
    if at + _END64.size != end:
        raise Format(
            f"its zip64 record should be at byte {at}, and {end - _END64.size} is where it ends with its locator"
        )
    signature, length, _, _, disk, first_disk, here, count, size, start = _END64.unpack(source.read(at, _END64.size))
    if signature != _END64_SIGNATURE or length != _END64.size - 12:
        raise Format(f"there is no zip64 record at byte {at}")
    if disk or first_disk or here != count:
        raise Format("it is one of several disks of an archive")
    for word, value, sentinel, value64 in (
        ("count", small.member_count, _MAX16, count),
        ("size", small.size_bytes, _MAX32, size),
        ("offset", small.start, _MAX32, start),
    ):
        if value not in (sentinel, value64):
            raise Format(f"its end record gives the directory's {word} as {value}, its zip64 record as {value64}")
    return at, _Directory(start, size, count)


class _Entry(NamedTuple):
    """What the directory says of a member. ``size_bytes`` as stored; ``raw_name`` as in the file."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    size_bytes: int
    full_size_bytes: int
    header_start: int


def _header_start(entry: _Entry) -> int:
    return entry.header_start


def _read_entries(source: ByteSource, directory: _Directory) -> list[_Entry]:
    data = source.read(directory.start, directory.size_bytes)
    entries: list[_Entry] = []
    at = 0
    for number in range(directory.member_count):
        entry, at = _read_entry(data, at, number)
        entries.append(entry)
    if at != len(data):
        raise Format(f"its directory has {len(data)} bytes, and its {directory.member_count} members take {at}")
    if len({entry.name for entry in entries}) != len(entries):
        raise Format(f"it has two members of the name {_first_duplicate(entries)!r}")
    return entries


def _read_entry(data: bytes, at: int, number: int) -> tuple[_Entry, int]:
    """Return the directory's entry at a byte of it, and where the next one starts."""
    if at + _ENTRY.size > len(data):
        raise Format(f"its directory ends inside member {number}")
    (
        signature,
        _,
        _,
        flags,
        method,
        _,
        _,
        crc,
        size,
        full_size,
        name_length,
        extra_length,
        comment_length,
        disk,
        _,
        _,
        start,
    ) = _ENTRY.unpack_from(data, at)
    if signature != _ENTRY_SIGNATURE:
        raise Format(f"its directory has no member {number} where one should be")
    name_end = at + _ENTRY.size + name_length
    end = name_end + extra_length + comment_length
    if end > len(data):
        raise Format(f"its directory ends inside member {number}")
    raw_name = data[name_end - name_length : name_end]
    name = _decode_name(raw_name, flags, number)
    if flags & _FLAGS_UNREADABLE:
        raise _broken(name, "is encrypted")
    if extra_length or _MAX32 in (size, full_size, start):
        extra = data[name_end : name_end + extra_length]
        full_size, size, start = _widen(name, extra, (full_size, size, start))
    if disk not in (0, _MAX16):
        raise _broken(name, "lies on another disk")
    if method == 0 and size != full_size:
        raise _broken(name, f"is stored as it is, in {size} bytes instead of its {full_size}")
    return _Entry(name, raw_name, flags, method, crc, size, full_size, start), end


def _decode_name(raw: bytes, flags: int, number: int) -> str:
    if b"\0" in raw or not raw:
        raise Format(f"the name of its member {number} is empty or has a NUL: {raw!r}")
    try:
        return raw.decode("utf-8") if flags & _FLAG_UTF8 else raw.decode("cp437")
    except UnicodeDecodeError as error:
        raise Format(f"the name of its member {number} is not UTF-8: {raw!r}") from error


def _widen(name: str, extra: bytes, values: Sequence[int], *, exact: bool = True) -> list[int]:
    """Return sizes and offsets with those that did not fit replaced by their zip64 values.

    ``exact``: there are no more of those than are needed. In a member's own header miniz adds its offset.
    """
    fields = _extra_fields(name, extra)
    if _EXTRA_UNICODE_NAME in fields:
        raise _broken(name, "has a second name in an extra field")
    wide = fields.get(_EXTRA_ZIP64, b"")
    at = 0
    widened = []
    for value in values:
        if value == _MAX32:
            if at + _U64.size > len(wide):
                raise _broken(name, "refers to a zip64 value, and there is none")
            (value,) = _U64.unpack_from(wide, at)  # noqa: PLW2901 - the same value, wider
            at += _U64.size
        widened.append(value)
    if exact and at != len(wide):
        raise _broken(name, f"has a zip64 field of {len(wide)} bytes, where its directory's entry refers to {at}")
    return widened


def _extra_fields(name: str, extra: bytes) -> dict[int, bytes]:
    """Return the extra fields by their kind. Up to three bytes after them are padding, as zipalign writes."""
    fields: dict[int, bytes] = {}
    at = 0
    while at + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if at + length > len(extra):
            raise _broken(name, "has an extra field that ends past the others")
        if kind == _EXTRA_ZIP64 and kind in fields:
            raise _broken(name, "has two zip64 fields")
        fields[kind] = extra[at : at + length]
        at += length
    return fields


def _first_duplicate(entries: Sequence[_Entry]) -> str:
    seen: set[str] = set()
    return next(entry.name for entry in entries if entry.name in seen or seen.add(entry.name))  # type: ignore[func-returns-value]


def _check_end(entry: _Entry, start: int, end: int) -> None:
    """Return if a member whose data start there ends before the next header, or before the directory."""
    needed = entry.size_bytes + (_DESCRIPTOR_BYTES if entry.flags & _FLAG_DESCRIPTOR else 0)
    if start + needed > end:
        raise _broken(
            entry.name,
            f"has {entry.size_bytes} bytes from byte {start}, over the next header or the directory at {end}",
        )


def _iter_headers(source: ByteSource, entries: Sequence[_Entry]) -> Iterator[bytes]:
    """Yield what each member starts with: its own header up to the name, and what of the extra fields was read with it."""
    last = 0
    for first in range(len(entries)):
        if first < last:
            continue
        start = entries[first].header_start
        end, last = _window(source.size_bytes, entries, first)
        window = source.read(start, end - start)
        for entry in entries[first:last]:
            at = entry.header_start - start
            yield window[at : at + _LOCAL.size + len(entry.raw_name) + _WINDOW_MARGIN_BYTES]


def _window(size: int, entries: Sequence[_Entry], first: int) -> tuple[int, int]:
    """Return where a read that begins with a header should end, and the first entry whose header is not in it."""
    limit = entries[first].header_start + _WINDOW_BYTES
    end = entries[first].header_start
    last = first
    while last < len(entries):
        entry = entries[last]
        header_end = entry.header_start + _LOCAL.size + len(entry.raw_name) + _WINDOW_MARGIN_BYTES
        if last > first and (entry.header_start > end + _WINDOW_GAP_BYTES or header_end > limit):
            break
        end = header_end
        last += 1
    return min(end, size), last


def _read_member(source: ByteSource, entry: _Entry, header: bytes, end: int) -> Member:
    """Return a member, with its own header saying what the directory says."""
    signature, _, flags, method, _, _, crc, size, full_size, name_length, extra_length = _LOCAL.unpack_from(header)
    name_end = _LOCAL.size + name_length
    if signature != _LOCAL_SIGNATURE:
        raise _broken(entry.name, f"has no header at byte {entry.header_start}")
    if header[_LOCAL.size : name_end] != entry.raw_name or (flags ^ entry.flags) & _FLAG_UTF8:
        raise _broken(entry.name, "has another name in its own header than in the directory")
    if method != entry.method or flags & _FLAGS_UNREADABLE:
        raise _broken(entry.name, "is compressed or encrypted in another way than the directory says")
    start = entry.header_start + name_end + extra_length
    _check_end(entry, start, end)
    if _MAX32 in (size, full_size) and not flags & _FLAG_DESCRIPTOR:
        extra = header[name_end : name_end + extra_length]
        if len(extra) < extra_length:
            extra = source.read(entry.header_start + name_end, extra_length)
        full_size, size = _widen(entry.name, extra, (full_size, size), exact=False)
    unset = (0, _MAX32) if flags & _FLAG_DESCRIPTOR else ()
    for word, value, expected in (
        ("bytes", size, entry.size_bytes),
        ("uncompressed bytes", full_size, entry.full_size_bytes),
        ("as CRC", crc, entry.crc),
    ):
        if value != expected and value not in unset:
            raise _broken(entry.name, f"has {value} {word} by its own header, {expected} by the directory")
    return Member(entry.name, start, entry.size_bytes, entry.method != 0)


def _broken(name: str, problem: str) -> Format:
    return Format(f"member {name!r} {problem}", member=name)
