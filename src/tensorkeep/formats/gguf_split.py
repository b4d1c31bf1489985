"""A model in several GGUF files: ``name-00001-of-00003.gguf``, each saying in its metadata which of how many it is.

Such a model has no index; a push of a folder that lacks a piece would store a model that no program can run. The pieces of
a model are files of one folder and one name but for the number; a piece that was renamed is known by its metadata.

Source: ``gguf-split`` and ``llama_split_path`` of llama.cpp.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from tensorkeep.errors import Format
from tensorkeep.formats.gguf import GGUF, SplitInfo, is_gguf, read_split
from tensorkeep.formats.protocol import ByteSource, FileStructure

_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<pieces>\d{5})\.gguf", re.IGNORECASE | re.DOTALL)


@dataclass(slots=True)
class _Split:
    """What there is of one split model.

    Attributes:
        paths: of the piece of each number.
        found: tensors of the pieces; None where they can't be told, or a number is there twice.
        expected: how many tensors the pieces say that there are.
    """

    paths: dict[int, str] = field(default_factory=dict)
    found: int | None = 0
    expected: set[int] = field(default_factory=set)

    def add(self, path: str, piece: SplitInfo, structure: FileStructure) -> None:
        """Count one piece."""
        known = structure.format == GGUF and piece.number not in self.paths
        self.found = self.found + len(structure.tensors) if known and self.found is not None else None
        self.paths.setdefault(piece.number, path)
        if piece.tensors is not None:
            self.expected.add(piece.tensors)


def check_splits(sources: Mapping[str, ByteSource], files: Mapping[str, FileStructure]) -> None:
    """Return if every split GGUF model is whole; ``files`` are all files of the version by path, ``sources`` their bytes.

    Raises:
        Format: a piece is missing, or its tensors are; the message names a piece that is there, and the number of the missing.
    """
    splits: dict[tuple[str, int], _Split] = defaultdict(_Split)
    for path, structure in sorted(files.items()):
        if not is_gguf(path):
            continue
        model, piece = _describe(path, _read_split(sources[path], structure))
        if piece is not None and piece.pieces > 1:
            splits[model, piece.pieces].add(path, piece, structure)
    for (_, pieces), split in splits.items():
        _check_whole(pieces, split)


def _read_split(source: ByteSource, structure: FileStructure) -> SplitInfo | None:
    try:
        return read_split(source)
    except Format:
        if structure.format == GGUF:
            raise
        return None  # a broken file that an earlier push was told to store as it is


def _describe(path: str, said: SplitInfo | None) -> tuple[str, SplitInfo | None]:
    """Return the name of the model that a file is a piece of, and which piece: by its metadata, else by its name."""
    match = _NAME.fullmatch(path)
    if match is None:
        return posixpath.dirname(path) + "/", said
    return match["stem"], said or SplitInfo(int(match["number"]) - 1, int(match["pieces"]), None)


def _check_whole(pieces: int, split: _Split) -> None:
    path = next(iter(split.paths.values()))
    missing = next((number for number in range(pieces) if number not in split.paths), None)
    if missing is not None:
        raise Format(
            f"{path!r} is one of {pieces} files of a model, and number {missing + 1} is not in the folder: an incomplete "
            "download? Add it, or use --split size, which stores what is there",
            path=path,
            missing=missing + 1,
            pieces=pieces,
        )
    if split.expected and split.found is not None and split.expected != {split.found}:
        raise Format(
            f"{path!r} and the other {pieces - 1} files of its model have {split.found} tensors, and say that there are "
            f"{', '.join(map(str, sorted(split.expected)))}: files of different models? Fetch them again, or use --split "
            "size, which stores them as they are",
            path=path,
        )
