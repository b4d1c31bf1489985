"""Whatever bytes an npy file has, its array is the one that numpy loads, or it is refused with a Format error; nothing is executed."""

import builtins
import io
import random
import re
import tracemalloc
import warnings
from typing import Any, NoReturn

import numpy as np
import pytest

from tensorkeep.formats.npy import NpyReader
from tensorkeep.formats.protocol import FileStructure
from tensorkeep.records.dtype import get_dtype
from tests.property.mutations import Outcomes, damage

ARRAYS: list[Any] = [
    np.arange(6, dtype="<f4").reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    np.array(3, "<c16"),
    np.zeros(2, "<M8[ns]"),
    np.zeros((1, 0, 2), "?"),
    np.zeros(2, [("a", "<f4"), ("b", "<i4", (2, 3))]),
    np.array(["a", "b"]),
]
WORDS = [
    "{", "}", "(", ")", "[", "]", ",", ":", " ", "\n", "\\", "'", '"', "0", "1", "2", "-1", "007", "0x2", "1_0", "2L", "1.5",
    "9223372036854775807", "99999999999999999999", "True", "False", "None", "'descr'", "'fortran_order'", "'shape'", "'<f4'",
    "'>c16'", "'<M8[3D]'", "'|O'", "'<V2'", "'float64'", "'i4,i4'", "('<f4',(2,))", "[('a','<f4')]", "__import__('os')",
    "lambda: 0", "print()", "b''", "u'<f4'", "'\\x3cf4'", "#", "ä", "\0", "(2, 3)", "(6,)", "()",
]  # fmt: skip
TOKENS = re.compile(r"'[^']*'|\w+|\s+|.")


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def seeds() -> list[bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy warns of versions above 1.0
        return [*map(saved, ARRAYS), saved(ARRAYS[0], (2, 0)), saved(ARRAYS[1], (3, 0))]


def reworded(data: bytes, rng: random.Random) -> bytes:
    """Return a file with words of its header replaced, left out or added, and the length of the header set right."""
    start = 10 if data[6] == 1 else 12
    end = start + int.from_bytes(data[8:start], "little")
    words = TOKENS.findall(data[start:end].rstrip().decode())
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        at = rng.randrange(len(words) + 1)
        words[at : at + rng.choice((0, 1, 1, 1, 2))] = rng.choices([*WORDS, *words], k=rng.choice((0, 1, 1, 1, 2)))
    if rng.random() < 0.1:
        words *= rng.randrange(20)
    text = "".join(words).encode()[:0xFFFF]
    return data[:8] + len(text).to_bytes(start - 8, "little") + text + data[end:]


def numpy_array(data: bytes) -> Any:
    """Return what numpy loads, or None where it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote, of escapes in a header
        try:
            return np.load(io.BytesIO(data))
        except (ValueError, EOFError, OSError, TypeError, OverflowError):
            return None


def assert_numpy_agrees(data: bytes, structure: FileStructure) -> None:
    (tensor,) = structure.tensors
    expected = numpy_array(data)
    assert expected is not None, data
    dtype = get_dtype(tensor.dtype).numpy
    strides = tensor.strides and [stride * dtype.itemsize for stride in tensor.strides]
    stored = data[tensor.start : tensor.start + tensor.length]
    ours: Any = np.ndarray(tensor.shape, dtype, stored, strides=strides)
    assert (ours.dtype, ours.shape, ours.tobytes()) == (expected.dtype, expected.shape, expected.tobytes()), data


def test_a_hundred_thousand_broken_files_are_read_as_numpy_reads_them_or_refused() -> None:
    rng = random.Random(11)
    whole = seeds()
    outcomes = Outcomes(NpyReader(), "w.npy")
    compared = 0
    for number in range(100_000):
        seed = rng.choice(whole)
        data = reworded(seed, rng) if number % 4 else damage(seed, rng, [(6, 1), (7, 1), (8, 2), (8, 1)])
        structure = outcomes.read(data)
        if structure is not None and structure.tensors and outcomes.accepted % 10 == 0:
            assert_numpy_agrees(data, structure)
            compared += 1
    assert compared > 1000
    assert outcomes.accepted > 15_000
    assert sum(count for kind, count in outcomes.refused.items() if "starts with" in kind) < 5000
    assert len([kind for kind, count in outcomes.refused.items() if count > 10]) > 12


def test_broken_files_take_no_memory() -> None:
    rng = random.Random(12)
    whole = seeds()
    outcomes = Outcomes(NpyReader(), "w.npy")
    tracemalloc.start()
    try:
        for _ in range(2000):
            outcomes.read(reworded(rng.choice(whole), rng))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_nothing_of_a_header_is_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(13)
    files = [reworded(seed, rng) for seed in seeds() for _ in range(200)]

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise SystemExit("compiled or executed")

    outcomes = Outcomes(NpyReader(), "w.npy")
    with monkeypatch.context() as patch:
        for name in ("eval", "exec", "compile"):
            patch.setattr(builtins, name, refuse)
        for data in files:
            outcomes.read(data)
    assert outcomes.files == len(files)
    assert 100 < outcomes.accepted < len(files) - 100
