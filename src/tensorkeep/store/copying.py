"""Copying: byte ranges of a version's files to places in files being written, verified, all of them from all devices at once.

Nothing waits for a whole tensor or file: each range of a part is written by the thread that read it, so memory is bounded by
what is in flight.
"""

from tensorkeep.planning.read_plan import ExtentMap, PartRange
from tensorkeep.records.manifest import File
from tensorkeep.store.local_files import UnfinishedFile
from tensorkeep.store.reading import VersionReader


class Copies:
    """Ranges to copy, and where each goes."""

    def __init__(self) -> None:
        self._ranges: list[PartRange] = []
        self._places: list[tuple[UnfinishedFile, int]] = []  # by key: the file, and where byte 0 of the part would be
        self._maps: dict[int, ExtentMap] = {}  # by identity: hashing a file would hash all its extents

    def add(self, file: File, start: int, length: int, output: UnfinishedFile, at: int) -> None:
        """Have bytes ``[start, start + length)`` of a file written to ``at`` of another."""
        extents = self._maps.get(id(file))
        if extents is None:
            extents = self._maps[id(file)] = ExtentMap(file.extents)
        for piece in extents.pieces(start, length, 0, at):
            self._ranges.append(PartRange(piece.part, piece.start, piece.length, key=len(self._places)))
            self._places.append((output, piece.offset - piece.start))

    def run(self, reader: VersionReader) -> None:
        """Copy everything.

        Raises:
            Integrity: bytes are damaged on every device that has them.
            NotEnoughCopies: no device that has some bytes can be read.
            Capacity: the disk is full.
        """
        reader.read_ranges(self._ranges, self._write)

    def _write(self, part_range: PartRange, data: memoryview) -> None:
        output, origin = self._places[part_range.key]
        output.write_at(data, origin + part_range.start)
