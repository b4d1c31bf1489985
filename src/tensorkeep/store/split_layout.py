"""Where everything of a split goes: which bytes make which part, in which folder, and what the index says of it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tensorkeep.errors import InvalidInput
from tensorkeep.records.parts_index import (
    PARTS_LIMIT,
    PartEntry,
    PartsIndex,
    encode_index,
    index_name,
    iter_cuts,
    part_name,
)


def check_count(parts: int, size_bytes: int) -> None:
    """Return if a file of that size can be split into that many parts.

    Raises:
        InvalidInput: fewer than one, more than `PARTS_LIMIT`, or more than the file has bytes; an empty file makes one part.
    """
    if not 1 <= parts <= PARTS_LIMIT:
        raise InvalidInput(f"{parts} parts: give a number from 1 to {PARTS_LIMIT:,}", parts=parts)
    if parts > max(1, size_bytes):
        most = "an empty file makes 1 part" if not size_bytes else f"at most {size_bytes}, one for each byte"
        raise InvalidInput(f"a file of {size_bytes} bytes can't make {parts} parts: {most}", parts=parts)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder for parts: its real path, and whether the user wrote it as an absolute one."""

    path: str
    absolute: bool


def check_folders(to: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None) -> list[Folder]:
    """Return the folders that the user named, in order; none for the default.

    Raises:
        InvalidInput: a name can't be one.
    """
    if to is None:
        return []
    given = [os.fspath(folder) for folder in ([to] if isinstance(to, (str, os.PathLike)) else to)]
    for text in given:
        if not text or "\0" in text:
            raise InvalidInput(f"{text!r} is no folder", path=text)
    return [Folder(os.path.realpath(text), os.path.isabs(text)) for text in given]


def check_different(folders: Sequence[str]) -> None:
    """Return if no two folders are the same.

    Raises:
        InvalidInput: two are: one would get the parts of both, and its disk fail for both.
    """
    seen: set[tuple[int, int]] = set()
    for folder in folders:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            raise InvalidInput(f"the folder {folder} is given twice: name each once", path=folder)
        seen.add((status.st_dev, status.st_ino))


class Digests(NamedTuple):
    """BLAKE3 and SHA-256 of the same bytes, in hex."""

    blake3: str
    sha256: str


_UNKNOWN = Digests("0" * 64, "0" * 64)


class SplitLayout:
    """Where everything of a split goes.

    Args:
        source: absolute path of the file.
        size_bytes: its size.
        count: how many parts it becomes.
        folders: where to put them; none: beside the file.
    """

    def __init__(self, source: str, size_bytes: int, count: int, folders: Sequence[Folder]) -> None:
        beside, self.name = os.path.split(source)
        self.size_bytes = size_bytes
        self.cuts = list(iter_cuts(size_bytes, count))
        self.home = os.path.realpath(beside)  # where the index lies
        self.folders = folders[:count] or [Folder(self.home, absolute=False)]
        self._names = [part_name(self.name, number + 1, count) for number in range(count)]
        self.part_paths = [os.path.join(self._folder(i).path, name) for i, name in enumerate(self._names)]
        self.index_path = os.path.join(beside, index_name(self.name))
        self.copy_paths = [
            os.path.join(folder.path, index_name(self.name)) for folder in self.folders if folder.path != self.home
        ]

    def index(self, whole: Digests, parts: Sequence[Digests], *, folder: str) -> PartsIndex:
        """Return the index as it stands in a folder: others are relative to it, where the user gave them so."""
        entries = []
        for i, ((start, size), name, digests) in enumerate(zip(self.cuts, self._names, parts, strict=True)):
            place = self._folder(i)
            where = place.path if place.absolute else os.path.relpath(place.path, folder)
            entries.append(PartEntry(name=name, folder=where, start=start, size_bytes=size, **digests._asdict()))
        return PartsIndex(name=self.name, size_bytes=self.size_bytes, parts=tuple(entries), **whole._asdict())

    def check_index(self) -> None:
        """Return if the index can be written; raises before hours of work what would be raised after them."""
        for folder in {self.home, self.folders[0].path}:
            encode_index(self.index(_UNKNOWN, [_UNKNOWN] * len(self.cuts), folder=folder))

    def folder_number(self, number: int) -> int:
        """Return in which of the folders a part goes: they take turns."""
        return number % len(self.folders)

    def _folder(self, number: int) -> Folder:
        return self.folders[self.folder_number(number)]
