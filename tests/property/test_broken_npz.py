"""Whatever bytes a zip archive has, npz or not, it is read or refused with a Format error; and what is read is what numpy reads."""

import io
import random
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from tensorkeep.formats.npz import NpzReader
from tensorkeep.formats.protocol import FileStructure
from tensorkeep.records.dtype import get_dtype
from tests.property.mutations import INTERESTING, Outcomes, damage
from tests.unit.formats.zip_bytes import MAX32, Fields, MadeMember, make_zip, zip64_extra

# Offset and width of the numbers in each record, by its signature.
NUMBERS = {
    b"PK\3\4": [(6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
    b"PK\1\2": [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4)],
    b"PK\5\6": [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
    b"PK\6\6": [(4, 8), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8)],
    b"PK\6\7": [(4, 4), (8, 8), (16, 4)],
    b"\1\0\x10\0": [(2, 2), (4, 8), (12, 8)],
    b"\x93NUMPY": [(8, 2)],
}


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ARRAYS = [
    npy(np.arange(3, dtype="<u2")),
    npy(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    npy(np.array(1, ">c16")),
]


def seeds() -> list[bytes]:
    """Return small archives of every form: sizes after the data, zip64, compressed, a comment, other files."""
    plain = io.BytesIO()
    np.savez(plain, a=np.arange(3), b=np.ones((2, 2), order="F"))
    mixed = io.BytesIO()
    with zipfile.ZipFile(mixed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"a comment"
        archive.writestr("a", b"aaaaaaaaaaaaaaaaaaaaa")
        archive.writestr("ö.npy", ARRAYS[0], zipfile.ZIP_STORED)
    after: Fields = {"flags": 8, "crc": 0, "size": 0, "full_size": 0}
    wide: Fields = {"size": MAX32, "full_size": MAX32, "extra": zip64_extra(len(ARRAYS[1]), len(ARRAYS[1]))}
    made = make_zip(
        MadeMember(b"a.npy", ARRAYS[0], local=after, central={"flags": 8}, after=bytes(16)),
        MadeMember(b"b.npy", ARRAYS[1], central=wide),
        MadeMember(b"c", ARRAYS[2]),
        zip64=True,
    )
    return [plain.getvalue(), mixed.getvalue(), made]


def numbers_of(data: bytes) -> list[tuple[int, int]]:
    """Return where the numbers of an archive's records are."""
    found = []
    for signature, numbers in NUMBERS.items():
        start = data.find(signature)
        while start >= 0:
            found += [(start + at, width) for at, width in numbers if start + at + width <= len(data)]
            start = data.find(signature, start + 1)
    return found


LOCAL: list[str] = ["flags", "method", "crc", "size", "full_size", "extra", "name", "signature"]
CENTRAL = [*LOCAL, "disk", "start", "comment"]
WIDTHS = {"flags": 2, "method": 2, "disk": 2, "first_disk": 2, "here": 2, "count": 2, "comment": 2}


def lying_zip(rng: random.Random) -> bytes:
    """Return an archive that was written field by field, with none to three lies, half of them told twice alike."""
    members = [
        MadeMember(name, rng.choice(ARRAYS))
        for name in rng.sample((b"a.npy", b"b.npy", b"c", b"c.npy"), rng.randrange(1, 4))
    ]
    zip64 = rng.random() < 0.3
    records: dict[str, Fields] = {"end": {}, "end64": {}, "locator": {}}
    for _ in range(rng.randrange(4)):
        member = rng.choice(members)
        if rng.random() < 0.75:
            key = rng.choice(CENTRAL)
            value = _lie(rng, key, len(member.data))
            if rng.random() < 0.7:
                member.central[key] = value
            if rng.random() < 0.7 and key in LOCAL:
                member.local[key] = value
        elif rng.random() < 0.5:
            member.after = bytes(rng.randrange(20))
        else:
            where = rng.choice(list(records) if zip64 else ["end"])
            key = rng.choice(
                {"end": ["disk", "here", "count", "size", "start"], "end64": ["count", "size", "start"]}.get(
                    where, ["at", "disks"]
                )
            )
            records[where][key] = _small(rng.choice(INTERESTING), 2 if where == "end" and key in WIDTHS else 4)
    return make_zip(*members, zip64=zip64, comment=bytes(rng.choice((0, 0, 5))), **records)


def _lie(rng: random.Random, key: str, size: int) -> int | bytes:
    if key == "extra":
        values = [rng.choice((size, size, MAX32, 1 << 63)) for _ in range(rng.randrange(4))]
        return rng.choice((zip64_extra(*values), b"UT\1\0x", rng.randbytes(rng.randrange(9))))
    if key in ("name", "comment", "signature"):
        return {"name": rng.choice((b"a.npy", b"x.npy", b"\xff", b"")), "comment": b"PK\5\6", "signature": b"PK\3\5"}[
            key
        ]
    if key in ("size", "full_size"):
        return _small(rng.choice((size - 1, size + 1, 0, MAX32, MAX32, rng.choice(INTERESTING))), 4)
    if key == "flags":
        return rng.choice((1, 8, 8, 8, 1 << 11, 1 << 13, 9))
    return _small(rng.choice(INTERESTING), WIDTHS.get(key, 4))


def _small(value: int, width: int) -> int:
    return value % (1 << 8 * width)


def assert_numpy_agrees(data: bytes, structure: FileStructure) -> int:
    """Return how many arrays numpy finds in it too, all with the same bytes; what numpy refuses says nothing."""
    found = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            archive = np.load(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OSError):
            return 0
        with archive:
            for tensor in structure.tensors:
                try:
                    expected = archive[tensor.name]
                except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OSError):
                    continue  # a checksum, which is not read here
                stored = data[tensor.start : tensor.start + tensor.length]
                dtype = get_dtype(tensor.dtype).numpy
                strides = tensor.strides and [stride * dtype.itemsize for stride in tensor.strides]
                ours: Any = np.ndarray(tensor.shape, dtype, stored, strides=strides)
                assert (ours.dtype, ours.shape, ours.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
                found += 1
    return found


def test_a_hundred_thousand_broken_archives_are_read_as_numpy_reads_them_or_refused() -> None:
    rng = random.Random(7)
    whole = [(seed, numbers_of(seed)) for seed in seeds()]
    makers: list[Callable[[], bytes]] = [lambda: damage(*_of(rng, whole)), lambda: lying_zip(rng)]
    outcomes = Outcomes(NpzReader(), "a.npz")
    compared = 0
    for number in range(100_000):
        data = makers[number % 2]()
        structure = outcomes.read(data)
        if structure is not None and outcomes.accepted % 20 == 0:
            compared += assert_numpy_agrees(data, structure)
    assert compared > 500
    assert outcomes.accepted > 10_000
    assert outcomes.refused["it has no end record: no zip archive, or an incomplete download?"] < 15_000
    assert len([kind for kind, count in outcomes.refused.items() if count > 10]) > 25


def _of(
    rng: random.Random, seeds: list[tuple[bytes, list[tuple[int, int]]]]
) -> tuple[bytes, random.Random, list[tuple[int, int]]]:
    data, numbers = rng.choice(seeds)
    return data, rng, numbers


def test_broken_archives_take_no_memory() -> None:
    rng = random.Random(8)
    whole = [(seed, numbers_of(seed)) for seed in seeds()]
    outcomes = Outcomes(NpzReader(), "a.npz")
    tracemalloc.start()
    try:
        for _ in range(1500):
            outcomes.read(damage(*_of(rng, whole)))
            outcomes.read(lying_zip(rng))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
