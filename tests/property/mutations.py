"""Seeded damage to files, and a count of how far into a reader it got: a fuzz that the first check stops tests nothing."""

import random
import re
from collections import Counter
from collections.abc import Sequence

from tensorkeep.errors import Format
from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.protocol import FileStructure, FormatReader

_DETAILS = re.compile(r"'.*'|\".*\"|[0-9]+|\[.*\]|b'.*")

INTERESTING = [
    0,
    1,
    2,
    8,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]


class CountingSource:
    """A byte source over bytes in memory that holds a reader to reading little, and never past the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size_bytes = len(data)
        self.left = 4 * len(data) + 4096

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size_bytes, "read past the end"
        self.left -= length
        assert self.left >= 0, "reads the file over and over"
        return self.data[offset : offset + length]


class Outcomes:
    """What a reader said of many files. Whatever it says, it is a structure that holds or a Format error."""

    def __init__(self, reader: FormatReader, path: str) -> None:
        self.reader = reader
        self.path = path
        self.files = 0
        self.accepted = 0
        self.refused: Counter[str] = Counter()

    def read(self, data: bytes) -> FileStructure | None:
        """Return the structure of a file, or None where it is refused."""
        self.files += 1
        try:
            structure = self.reader.read_structure(self.path, CountingSource(data))
            check_structure(structure, len(data))
        except Format as error:
            self.refused[_DETAILS.sub("…", error.message)] += 1
            return None
        except BaseException:
            print(f"file {self.files}: {data!r}")
            raise
        self.accepted += 1
        return structure


def damage(data: bytes, rng: random.Random, numbers: Sequence[tuple[int, int]] = ()) -> bytes:
    """Return a file with one to three kinds of damage. ``numbers``: offset and width of little-endian numbers in it."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        at = rng.randrange(len(damaged)) if damaged else 0
        if kind < 0.6 and numbers:
            _change_number(damaged, rng, *rng.choice(numbers))
        elif kind < 0.85 and damaged:
            damaged[at] = rng.choice((damaged[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
        elif kind < 0.88:
            del damaged[at:]
        elif kind < 0.91:
            del damaged[at : at + rng.randrange(1, 20)]
        elif kind < 0.95:
            damaged[at:at] = damaged[rng.randrange(len(damaged) + 1) :][: rng.randrange(1, 60)]
        else:
            damaged[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(damaged)


def _change_number(data: bytearray, rng: random.Random, at: int, width: int) -> None:
    value = int.from_bytes(data[at : at + width], "little")
    changed = rng.choice((value + rng.randrange(-3, 4), value ^ 1 << rng.randrange(8 * width), rng.choice(INTERESTING)))
    data[at : at + width] = (changed % (1 << 8 * width)).to_bytes(width, "little")
