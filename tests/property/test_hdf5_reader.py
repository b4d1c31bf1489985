"""Whatever bytes an HDF5 or Keras file has, the reader answers, and the process that pushes lives.

Broken HDF5 files go through the real pipes to the real probe, many to a process, as starting one takes 0.2 s; a process that
a file kills is replaced. Broken archives are read without HDF5: what is inside is checked to lie inside the file.
"""

import os
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import pytest

from tensorkeep.errors import Format
from tensorkeep.formats import hdf5_probe, keras
from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.hdf5_child import Probe, ask_probe
from tensorkeep.formats.keras import KerasReader
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.formats.protocol import ByteSource, FileStructure, TensorLayout
from tests.unit.formats.hdf5_files import Bytes, hdf5_file, keras_file, some_numbers, write_weights

# What the library does for ever with some broken files is ended after 0.3 s of computing, so that the test ends.
SERVE_MANY = f"""
import sys
sys.path.insert(0, {os.path.dirname(hdf5_probe.__file__)!r})
import hdf5_probe, json, signal
question = json.loads(hdf5_probe.read_line())
hdf5_probe.prepare(question["sys_path"])
while True:
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.3)
    hdf5_probe.inspect(hdf5_probe.RemoteFile(hdf5_probe.fetch, question["size_bytes"]), hdf5_probe.say)
    question = json.loads(hdf5_probe.read_line())
"""
CORNERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)


class ProbeForMany:
    """Probes that each answer for many files, until one of them dies."""

    def __init__(self) -> None:
        self.started = 0
        self._probe: Probe | None = None

    def ask(self, data: bytes) -> tuple[FileStructure | None, str]:
        """Return the structure of a file, or None and the note."""
        if self._probe is None:
            self._probe = Probe((sys.executable, "-c", SERVE_MANY), timeout_s=30)
            self.started += 1
        try:
            return ask_probe(self._probe, "hdf5", Bytes(data)), ""
        except Format as error:
            if "its process" in error.message or "no answer" in error.message:
                self.close()
            return None, error.message

    def close(self) -> None:
        """End the process that is running."""
        if self._probe is not None:
            self._probe.close()
            self._probe = None


@pytest.fixture
def probes() -> Iterator[ProbeForMany]:
    made = ProbeForMany()
    yield made
    made.close()


def _small(file: Any) -> None:
    file["a/w"] = some_numbers("f4", (3, 2))
    file["a/b/big"] = some_numbers(">f8", (4,))
    file["c"] = some_numbers("<c16", (2,))
    file["yes"] = np.array([True, False])
    file["soft"] = h5py.SoftLink("/a/w")
    file["hard"] = file["a"]


def _odd(file: Any) -> None:
    file.create_dataset("chunk", data=some_numbers("i8", (3, 2)), chunks=(3, 2))
    file.create_dataset("rows", (2,), np.dtype(("<f4", (2,))))[...] = np.ones((2, 2), "f4")
    file["records"] = np.zeros(2, [("a", "f4"), ("b", "i8")])
    file["text"] = ["a", "bc"]
    file["outside"] = h5py.ExternalLink("other.h5", "/w")
    file["chunk"].attrs["dtype"] = "bfloat16"
    file["half"] = np.zeros(3, "V2")
    file["half"].attrs["dtype"] = "bfloat16"


SEEDS = [
    hdf5_file(fill, **options)
    for fill in (_small, _odd, write_weights)
    for options in ({}, {"userblock_size": 512}, {"libver": "latest"}, {"track_order": True})
]


def mutate(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """Return a file with a few broken places: most of them small, some of them whole ranges."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(changed))
        kind = chance.randrange(8)
        if kind < 3:
            changed[at] = chance.choice((chance.randrange(256), changed[at] ^ (1 << chance.randrange(8))))
        elif kind < 6:
            width = chance.choice((1, 2, 4, 8))
            number = chance.choice((*CORNERS, chance.randrange(len(data)), chance.randrange(len(data)) & ~7))
            changed[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif kind == 6:
            length = chance.randrange(1, 64)
            start = chance.randrange(len(data))
            changed[at : at + length] = data[start : start + length]
        else:
            other = chance.choice(others)
            changed[at:] = other[at:] if chance.random() < 0.5 else b""
            changed += bytes(1)
    return bytes(changed)


def test_ten_thousand_broken_hdf5_files_give_an_answer_each(probes: ProbeForMany) -> None:
    chance = random.Random(31)
    notes: Counter[str] = Counter()
    for number in range(10_000):
        structure, note = probes.ask(mutate(SEEDS[number % len(SEEDS)], chance, SEEDS))
        assert note.isprintable()
        notes["tensors" if structure is not None else note[:60]] += 1
    assert notes["tensors"] > 1000
    assert sum(notes.values()) - notes["tensors"] > 3000
    assert probes.started < 500


ARCHIVES = [keras_file(b"\x89HDF\r\n\x1a\n" + bytes(range(100))), keras_file(b"w", others={"assets/a.txt": b"x" * 50})]


def _whole(format_name: str, source: ByteSource) -> FileStructure:
    """Return one tensor over all of a file, once all of it was read."""
    assert len(source.read(0, source.size_bytes)) == source.size_bytes
    return FileStructure(format_name, (TensorLayout("all", "U8", (source.size_bytes,), None, 0, source.size_bytes),))


def test_ninety_thousand_broken_keras_archives_give_an_answer_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras, "read_hdf5", _whole)
    chance = random.Random(32)
    formats: Counter[str] = Counter()
    for number in range(90_000):
        data = mutate(ARCHIVES[number % len(ARCHIVES)], chance, ARCHIVES)
        structure = KerasReader().read_structure("model.keras", Bytes(data))
        check_structure(structure, len(data))
        assert structure.format != OPAQUE or structure.note
        formats[structure.format] += 1
    assert formats["keras"] > 1000
    assert formats[OPAQUE] > 10_000
