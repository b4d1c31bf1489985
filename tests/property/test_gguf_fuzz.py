"""A hundred thousand broken GGUF files: each is refused as such or read as what holds, in little memory.

The files are small and right, then changed where it hurts: numbers of the header (counts, lengths, types, sizes, offsets)
get values near their own and at the edges of their width; bytes are flipped, cut out, doubled, cut off.
"""

import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import pytest

from tensorkeep.errors import Format
from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.gguf import TENSOR_TYPES, GgufReader, read_split
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.records.dtype import get_dtype, packed_shape

CASES = 25_000
"""Of each seed; there are four."""

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_EDGES = (
    0,
    1,
    2,
    3,
    4,
    8,
    9,
    13,
    31,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
)
_READER = GgufReader()


class Source:
    """Bytes in memory, with zeros behind them; refuses to be read outside, or more than there is of a header."""

    def __init__(self, data: bytes, zeros: int) -> None:
        self.data = data
        self.size_bytes = len(data) + zeros

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size_bytes
        return self.data[offset : offset + length].ljust(length, b"\0")


class Sample(NamedTuple):
    """A file that is right, and where the numbers of its header lie: ``(offset, width)``."""

    data: bytes
    numbers: list[tuple[int, int]]


class Writer:
    """Writes a header and notes where its numbers are."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.data = bytearray()
        self.numbers: list[tuple[int, int]] = []

    def number(self, width: int, value: int) -> None:
        self.numbers.append((len(self.data), width))
        self.data += value.to_bytes(width, "little")

    def text(self, value: str) -> None:
        self.number(8, len(value.encode()))
        self.data += value.encode()

    def value(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self.text("ä" * self._dice.randrange(6))
        elif kind == _ARRAY:
            items = self._dice.choice([*_WIDTHS, _STRING, _STRING, *([_ARRAY] * (depth < 3))])
            count = self._dice.randrange(5)
            self.number(4, items)
            self.number(8, count)
            for _ in range(count):
                self.value(items, depth + 1)
        else:
            self.number(_WIDTHS[kind], self._dice.randrange(100))


def make_sample(dice: random.Random) -> Sample:
    """Return a file that is right."""
    writer = Writer(dice)
    keys, tensors = dice.randrange(7), dice.randrange(1, 6)
    alignment = dice.choice([None, None, 1, 16, 64])
    writer.data += b"GGUF"
    writer.number(4, dice.choice([2, 3]))
    writer.number(8, tensors)
    writer.number(8, keys + (alignment is not None) + 1)
    for index in range(keys):
        kind = dice.choice([*_WIDTHS, _STRING, _STRING, _ARRAY, _ARRAY, _ARRAY])
        writer.text(f"key.{index}")
        writer.number(4, kind)
        writer.value(kind)
    if alignment is not None:
        writer.text("general.alignment")
        writer.number(4, 4)
        writer.number(4, alignment)
    writer.text("split.count")
    writer.number(4, 2)
    writer.number(2, 0)
    step = alignment or 32
    end = 0
    for index in range(tensors):
        kind = dice.choice(list(TENSOR_TYPES))
        dtype = get_dtype(TENSOR_TYPES[kind])
        shape = [dice.randrange(1, 4) for _ in range(dice.randrange(4))] + [dice.randrange(3) * dtype.block_elements]
        writer.text(f"blk.{index}.w")
        writer.number(4, len(shape))
        for size in reversed(shape):
            writer.number(8, size)
        writer.number(4, kind)
        writer.number(8, end)
        size_bytes = dtype.numpy.itemsize
        for size in packed_shape(tuple(shape), dtype):
            size_bytes *= size
        end += size_bytes + -size_bytes % step
    data = bytes(writer.data) + bytes(-len(writer.data) % step + end)
    return Sample(data, writer.numbers)


def change(sample: Sample, dice: random.Random) -> bytes:
    """Return a sample with one change, or a few."""
    data = bytearray(sample.data)
    header = sample.numbers[-1][0] + 8
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        way = dice.randrange(12)
        if way < 7:
            _change_number(data, sample.numbers, dice)
        elif way == 7:
            data[dice.randrange(min(header, len(data)))] ^= 1 << dice.randrange(8)
        elif way == 8:
            del data[dice.randrange(len(data)) :]
        elif way == 9:
            at = dice.randrange(min(header, len(data)))
            del data[at : at + dice.choice((1, 4, 8, 30))]
        else:
            at, other = dice.randrange(min(header, len(data))), dice.randrange(min(header, len(data)))
            data[at:at] = data[other : other + dice.choice((1, 4, 8, 30))]
        if len(data) < 2:
            break
    return bytes(data)


def _change_number(data: bytearray, numbers: list[tuple[int, int]], dice: random.Random) -> None:
    at, width = dice.choice(numbers)
    if at + width > len(data):
        return
    value = int.from_bytes(data[at : at + width], "little")
    near = (value + 1, value - 1, value * 2, value + 32, value ^ 1, dice.randrange(64))
    changed = dice.choice(near if dice.randrange(3) else _EDGES)
    data[at : at + width] = (changed % (1 << 8 * width)).to_bytes(width, "little")


def cases(seed: int, count: int) -> Iterator[Source]:
    """Yield broken files; every eighth is followed by zeros, so that larger counts find room."""
    dice = random.Random(seed)
    samples = [make_sample(dice) for _ in range(200)]
    for index in range(count):
        yield Source(change(dice.choice(samples), dice), 20_000 if index % 8 == 0 else 0)


def outcome(source: Source) -> str:
    """Return how far a file got: the only error is `Format`, and what is read holds together."""
    try:
        found = _READER.read_structure("model.gguf", source)
    except Format as error:
        told = error
    else:
        check_structure(found, source.size_bytes)
        return "opaque" if found.format == OPAQUE else "read"
    return "tensor" if "tensor" in told.facts else "key" if "key" in told.facts else "header"


@pytest.mark.parametrize("seed", range(4))
def test_a_broken_file_is_refused_or_read_as_what_holds(seed: int) -> None:
    ends = Counter(outcome(source) for source in cases(seed, CASES))
    assert ends.total() == CASES
    # Far enough in to be about a tensor, or all through.
    assert ends["tensor"] + ends["read"] + ends["opaque"] > 0.5 * CASES, ends
    assert min(ends[end] for end in ("read", "opaque", "tensor", "key", "header")) > 0.01 * CASES, ends


def test_what_is_read_of_a_changed_file_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = tmp_path / "changed.gguf"
    compared = 0
    for source in cases(6, 6000):
        if outcome(source) != "read" or len(source.data) != source.size_bytes:
            continue
        path.write_bytes(source.data)
        theirs = gguf.GGUFReader(path)
        found = _READER.read_structure("model.gguf", source)
        assert {t.name: (t.start, t.length, t.shape) for t in found.tensors} == {
            t.name: (t.data_offset, t.n_bytes, tuple(int(size) for size in reversed(t.shape))) for t in theirs.tensors
        }
        assert [key for key in theirs.fields if not key.startswith("GGUF.")] == list(
            _READER.read_metadata("model.gguf", source)
        )
        compared += 1
    assert compared > 500


def test_metadata_of_a_broken_file_is_refused_or_read() -> None:
    ends: Counter[str] = Counter()
    for source in cases(4, 10_000):
        try:
            ends["read" if len(_READER.read_metadata("model.gguf", source)) else "none"] += 1
            read_split(source)
        except Format:
            ends["refused"] += 1
    assert ends["read"] > 3000, ends
    assert ends["refused"] > 1000, ends


def test_no_broken_file_takes_more_memory_than_a_few_times_its_size() -> None:
    tracemalloc.start()
    try:
        for source in cases(5, 3000):
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            outcome(source)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < 20 * source.size_bytes + (1 << 18)
    finally:
        tracemalloc.stop()
