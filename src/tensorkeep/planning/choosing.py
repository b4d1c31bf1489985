"""Chooses how a model is split when the user leaves it open, and says why."""

from collections.abc import Sequence
from dataclasses import dataclass

from tensorkeep.errors import InvalidInput
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.planning.cuts import SourceFile, check_part_size
from tensorkeep.planning.kept_items import Parent
from tensorkeep.planning.methods import SIZE, TENSOR, Method, find_method, parse_method
from tensorkeep.records.layout import MAX_PART_SIZE_BYTES, MIB, MIN_AUTO_PART_BYTES

AUTO = "auto"

PARTS_PER_DEVICE = 16
"""About how many parts each device gets of a model: enough to balance devices, few enough to be cheap to open."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How to split, and one sentence that says why."""

    method: Method
    part_size: int
    why: str


def choose_split(
    files: Sequence[SourceFile], *, requested: str, part_size: int | None, device_count: int, parent: Parent | None
) -> Choice:
    """Return the method and part size for these files.

    ``auto`` keeps the parent's method and part size. Without a parent it is ``tensor`` where files of known formats hold most
    of the bytes, else ``size``. A part size that is given wins; one that the parent used with the same method is kept, so
    that unchanged bytes are found again.

    Raises:
        InvalidInput: the method is unknown, the part size is no whole number of MiB from 1 to 64, or the model has fewer bytes
            than parts are asked for.
    """
    check_split(requested, part_size)
    method, why_method = _choose_method(files, requested, parent)
    if part_size is not None:
        return Choice(method, part_size, f"{why_method}; parts of {_mib(part_size)} were asked for")
    if parent is not None and _cut_alike(parent, method):
        kept = parent.manifest.part_size
        return Choice(
            method,
            kept,
            f"{why_method}; the parent's part size of {_mib(kept)} is kept, so equal parts are stored once",
        )
    total = sum(file.size_bytes for file in files)
    size = auto_part_size(total, device_count)
    return Choice(method, size, f"{why_method}; {_why_size(total, device_count, size)}")


def check_split(requested: str, part_size: int | None) -> None:
    """Return if a method and a part size can be asked for: known before any file is read.

    Raises:
        InvalidInput: the method is unknown, or the part size is no whole number of MiB from 1 to 64.
    """
    if part_size is not None:
        check_part_size(part_size)
    if requested != AUTO:
        parse_method(requested)


def auto_part_size(total_bytes: int, device_count: int) -> int:
    """Return total / (16 · devices), rounded up to a MiB, from 4 to 64 MiB."""
    share = -(-total_bytes // (PARTS_PER_DEVICE * max(1, device_count)))
    return min(max(-(-share // MIB) * MIB, MIN_AUTO_PART_BYTES), MAX_PART_SIZE_BYTES)


def _choose_method(files: Sequence[SourceFile], requested: str, parent: Parent | None) -> tuple[Method, str]:
    if requested != AUTO:
        method = parse_method(requested)
        _check_shares(method, sum(file.size_bytes for file in files))
        return method, f"the method {requested} was asked for"
    if parent is not None and (kept := find_method(parent.manifest.split)) is not None:
        return kept, f"the parent's method {kept} is kept"
    total = sum(file.size_bytes for file in files)
    known = sum(file.size_bytes for file in files if file.format != OPAQUE)
    if 2 * known > total:
        formats = " and ".join(sorted({file.format for file in files if file.format != OPAQUE}))
        return TENSOR, f"{formats} files hold {100 * known // total} % of the bytes, so cuts are at tensor boundaries"
    return SIZE, "most bytes are in no known tensor format, so files are cut at fixed sizes"


def _cut_alike(parent: Parent, method: Method) -> bool:
    """Return whether a method cuts where the parent's does, so that with its part size equal bytes are equal parts."""
    old = find_method(parent.manifest.split)
    return old is not None and (old == method or (old.cuts_tensors and method.cuts_tensors))


def _check_shares(method: Method, total_bytes: int) -> None:
    if method.shares > total_bytes:
        raise InvalidInput(
            f"{method} of {total_bytes} bytes: ask for at most one part a byte, or leave the split to auto",
            method=str(method),
            bytes=total_bytes,
        )


def _why_size(total: int, device_count: int, size: int) -> str:
    if size == MIN_AUTO_PART_BYTES and total < size * PARTS_PER_DEVICE * max(1, device_count):
        return f"the model is small, so parts have the least size of {_mib(size)}"
    if size == MAX_PART_SIZE_BYTES:
        return f"the model is large, so parts have the greatest size of {_mib(size)}"
    devices = "the device" if device_count <= 1 else f"each of {device_count} devices"
    return f"parts of {_mib(size)} give {devices} about {PARTS_PER_DEVICE} of them"


def _mib(size: int) -> str:
    return f"{size // MIB} MiB"
