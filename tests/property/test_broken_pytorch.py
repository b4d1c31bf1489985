"""A hundred thousand broken PyTorch files: each is opaque with a note, or read as what holds, in little memory.

Most have a right archive around a pickle that was changed where it hurts: opcodes exchanged, arguments put at the edges of
their width, pieces cut out, doubled and moved between pickles. The others have any of their bytes changed.
"""

import io
import pickletools
import random
import resource
import struct
import zipfile
from collections import OrderedDict
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch

from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.protocol import TensorLayout
from tensorkeep.formats.pytorch import PyTorchReader
from tensorkeep.records.dtype import get_dtype
from tests.unit.formats.torch_files import BytesSource

PICKLES = 20_000
"""Of each of the four seeds."""

ARCHIVES = 6_000
COMPARED = 2_000

OPCODES = b"()]}.0NIJKMGXUCB\x8a\x88\x89\x85\x86\x87\x8c\x8f\x90\x91\x93\x94\x95qrhjtueasbRQc\x81\x80"
EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 127, 128, 255)

_READER = PyTorchReader()


def checkpoints() -> list[tuple[bytes, dict[str, bytes]]]:
    """Return the pickles of small checkpoints of every shape, and the other members of their archives."""
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = OrderedDict({"a.weight": base, "a.bias": base.t()[1:], "tied": base})
    values = [
        state,
        {
            "model": state,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        },
        [
            torch.nn.Parameter(torch.ones(2, 3)),
            (torch.zeros(2, dtype=torch.uint16), {"x": None, "y": 1 << 40}),
            torch.Size([2]),
        ],
        {"half": torch.ones(4, 2, dtype=torch.bfloat16), "set": {1, 2}, "text": "größe", "device": torch.device("cpu")},
    ]
    found = []
    for number, value in enumerate(values):
        file = io.BytesIO()
        torch.save(value, file, pickle_protocol=4 if number == 3 else 2)
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        found.append((members.pop("archive/data.pkl"), {k: v for k, v in members.items() if "/data/" in k}))
    return found


def archive_of(members: dict[str, bytes]) -> bytes:
    """Return a zip file, quicker than `zipfile` writes it."""
    body, directory = bytearray(), bytearray()
    for name, data in members.items():
        facts = struct.pack("<5H3L2H", 20, 0, 0, 0, 0, crc32(data), len(data), len(data), len(name), 0)
        directory += b"PK\1\2\x14\0" + facts + struct.pack("<3H2L", 0, 0, 0, 0, len(body)) + name.encode()
        body += b"PK\3\4" + facts + name.encode() + data
    count = len(members)
    return bytes(
        body + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    )


def mutate(data: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """Return bytes changed in one to four places."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4))):
        at = dice.randrange(len(changed)) if changed else 0
        length = dice.choice((1, 1, 2, 3, 5, 9, 17, 40))
        kind = dice.randrange(8)
        if kind == 0:
            changed[at : at + 1] = bytes([dice.choice(OPCODES)])
        elif kind == 1:
            changed[at : at + 1] = bytes([dice.choice(EDGES)])
        elif kind == 2:
            changed[at : at + 1] = bytes([dice.randrange(256)])
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * dice.choice((1, 1, 2, 30))
        elif kind == 5:
            changed[at:at] = bytes([dice.choice(OPCODES)])
        elif kind == 6:
            other = dice.choice(others)
            start = dice.randrange(len(other))
            changed[at : at + dice.choice((0, length))] = other[start : start + length]
        else:
            other_at = dice.randrange(len(changed)) if changed else 0
            changed[at : at + length] = changed[other_at : other_at + length]
    return bytes(changed)


def list_arguments(data: bytes) -> list[int]:
    """Return the positions of bytes that are numbers: sizes, strides, offsets, places in the memo."""
    opcodes = list(pickletools.genops(data))
    ends = [*(position for _, _, position in opcodes[1:]), len(data)]
    return [
        at
        for (opcode, argument, position), end in zip(opcodes, ends, strict=True)
        if type(argument) is int and position is not None and end is not None
        for at in range(position + len(opcode.code), end)
    ]


def change_arguments(data: bytes, arguments: list[int], dice: random.Random) -> bytes:
    """Return a pickle of the same opcodes with one to three other numbers."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 3))):
        at = dice.choice(arguments)
        changed[at] = dice.choice(
            (dice.choice(EDGES), (changed[at] + dice.choice((-2, -1, 1, 2))) % 256, dice.randrange(40))
        )
    return bytes(changed)


def outcome(data: bytes) -> str:
    """Return what became of a file: its format, or the note's first words; whatever it is, it holds together."""
    structure = _READER.read_structure("folder/model.pt", BytesSource(data))
    check_structure(structure, len(data))
    if structure.format == "pytorch":
        return "pytorch" if structure.tensors else "empty"
    assert structure.note
    assert structure.note.isprintable()
    assert len(structure.note) < 250
    return structure.note


SEEDS = checkpoints()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_a_broken_pickle_is_opaque_or_read_as_what_holds(seed: int) -> None:
    dice = random.Random(seed)
    pickles = [data for data, _ in SEEDS]
    data, members = SEEDS[seed]
    before = peak_bytes()
    outcomes = []
    arguments = list_arguments(data)
    for number in range(PICKLES):
        broken = change_arguments(data, arguments, dice) if number % 2 else mutate(data, pickles, dice)
        outcomes.append(outcome(archive_of({"archive/data.pkl": broken} | members)))
    assert peak_bytes() - before < 64 << 20
    count = len(outcomes)
    assert outcomes.count("pytorch") > count // 20  # many changes hurt nothing that is a tensor
    assert sum("broken near byte" in note for note in outcomes) > count // 20
    assert sum("tensor" in note or "storage" in note for note in outcomes) > count // 20  # it got as far as the layout
    assert len(set(outcomes)) > 200


def test_a_broken_archive_is_opaque_or_read_as_what_holds() -> None:
    dice = random.Random(99)
    files = [archive_of({"archive/data.pkl": data} | members) for data, members in SEEDS]
    outcomes = [outcome(mutate(file, files, dice)) for file in files for _ in range(ARCHIVES)]
    assert outcomes.count("pytorch") > len(outcomes) // 50
    assert len(set(outcomes)) > 200


@pytest.mark.filterwarnings("ignore::UserWarning")  # what torch says of pickles that it did not write
@pytest.mark.parametrize("seed", range(3))  # the fourth has a protocol that torch does not read without executing
def test_what_torch_loads_of_a_broken_file_is_what_is_read_of_it(seed: int) -> None:
    dice = random.Random(1000 + seed)
    pickles = [data for data, _ in SEEDS]
    data, members = SEEDS[seed]
    arguments = list_arguments(data)
    compared = 0
    for number in range(COMPARED):
        broken = change_arguments(data, arguments, dice) if number % 3 else mutate(data, pickles, dice)
        file = archive_of({"archive/data.pkl": broken, "archive/version": b"3\n"} | members)
        structure = _READER.read_structure("model.pt", BytesSource(file))
        if structure.format != "pytorch":
            continue
        try:
            loaded = torch.load(io.BytesIO(file), weights_only=True)
        except Exception:  # noqa: BLE001 - whatever it says, it did not load
            continue
        expected = flatten(loaded)
        found = {layout.name: layout for layout in structure.tensors}
        assert sorted(found) == sorted(expected), broken
        for name, layout in found.items():
            assert layout.shape == expected[name].shape, broken
            assert array_of(file, layout).tobytes() == bytes_of(expected[name]), broken
        compared += 1
    assert compared > COMPARED // 20


def flatten(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return every tensor that torch loaded by the keys on the way to it."""
    if isinstance(value, torch.Tensor):
        return {prefix or "model": value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    found: dict[str, torch.Tensor] = {}
    for key, item in items:
        found |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def array_of(file: bytes, layout: TensorLayout) -> Any:
    """Return the array that a layout describes."""
    dtype = get_dtype(layout.dtype).numpy
    strides = None if layout.strides is None else [stride * dtype.itemsize for stride in layout.strides]
    return np.ndarray(layout.shape, dtype, file, layout.start, strides)


def bytes_of(tensor: torch.Tensor) -> bytes:
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(tensor.view(torch.uint8).tolist()) if tensor.numel() else b""


def test_the_seeds_are_right_and_torch_reads_them() -> None:
    for data, members in SEEDS:
        file = archive_of({"archive/data.pkl": data, "archive/version": b"3\n"} | members)
        assert outcome(file) == "pytorch"
        assert torch.load(io.BytesIO(file), weights_only=False)
    assert 4 * PICKLES + len(SEEDS) * ARCHIVES >= 100_000
