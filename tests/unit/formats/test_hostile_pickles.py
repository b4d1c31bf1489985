"""Pickles that are cheap to write and would be dear to read: each ends within a few seconds and little memory.

Where work grew with the square of their size, or a list were copied each time that it is named, these would take hours.
"""

import resource
import time
from collections.abc import Callable

import pytest

from tests.unit.formats.torch_files import a_dict, archive, numbers, program, read, storage, tensor, text

COUNT = 200_000
MAX_SECONDS = 20.0
"""Of processor time; the slowest takes about one on an idle machine. Any of them that were quadratic would take minutes."""

MAX_BYTES = 256 << 20

LONG = b"(" + b"N" * COUNT + b"tq\0"
"""A tuple of many values, kept in the memo."""

LONG_PAIRS = b"}(" + b"NN" * (COUNT // 2) + b"uq\0"
PARTS = storage() + b"q\5" + numbers(1) + b"q\6ctorch._utils\n_rebuild_tensor_v2\nq\7"
"""A storage, a shape and a function, kept in the memo."""

REBUILD = b"h\7(h\5K\0h\6h\6\x89NtR"


def many(*, first: bytes, then: bytes, times: int = COUNT) -> bytes:
    """Return a pickle that makes something once and uses it often."""
    return first + b"](" + then * times + b"e"


def colliding_keys() -> bytes:
    """Return whole numbers that all have the hash 0, as keys."""
    keys = ((number * ((1 << 61) - 1)).to_bytes(11, "little") for number in range(COUNT))
    return b"}(" + b"".join(b"\x8a\x0b" + key + b"N" for key in keys) + b"u"


def doubling(depth: int, of: bytes) -> bytes:
    """Return lists that hold the one before them twice."""
    return b"](" + of + b"eq\0" + b"](h\0h\0eq\0" * depth


HOSTILE: dict[str, Callable[[], bytes]] = {
    "lists in lists": lambda: b"]" * COUNT + b"a" * (COUNT - 1),
    "tuples in tuples": lambda: b"N" + b"\x85" * COUNT,
    "marks": lambda: b"(" * COUNT,
    "arguments named often": lambda: many(first=LONG + b"c__builtin__\nset\nq\1", then=b"h\1h\0R"),
    "sizes named often": lambda: many(first=b"(" + LONG + b"tq\0ctorch\nSize\nq\1", then=b"h\1h\0R"),
    "dictionaries named often": lambda: many(first=LONG_PAIRS + b"\x85q\0ccollections\nCounter\nq\1", then=b"h\1h\0R"),
    "arguments too many": lambda: many(first=LONG + PARTS, then=b"h\7h\0R"),
    "metadata named often": lambda: many(first=LONG_PAIRS + PARTS, then=b"h\7(h\5K\0h\6h\6\x89Nh\0tR"),
    "shape named often": lambda: many(first=LONG + PARTS, then=b"h\7(h\5K\0h\0h\0\x89NtR"),
    "parameters of parameters": lambda: (
        PARTS
        + REBUILD
        + b"q\1ctorch._utils\n_rebuild_parameter_with_state\nq\0"
        + b"h\1"
        + b"q\1h\0(h\1\x88NK\1tR" * 60_000
    ),
    "keys of one hash": colliding_keys,
    "memo": lambda: b"N" + b"".join(b"r" + (at << 14).to_bytes(4, "little") for at in range(COUNT)),
    "one list often": lambda: many(first=b"](" + b"N" * 1000 + b"eq\0", then=b"h\0"),
    "doubled lists": lambda: doubling(90, b"N"),
    "doubled tensors": lambda: doubling(40, tensor()),
    "doubled dictionaries": lambda: b"}q\0" + (b"}(" + text("a") + b"h\0" + text("b") + b"h\0uq\0") * 60,
    "long names": lambda: b"}" + text("k" * COUNT) + b"](" + (b"](" + tensor() + b"e") * 1000 + b"es",
    "one long name often": lambda: (
        a_dict(x=tensor()) + b"q\0}(" + (text("k" * 1000) + b"q\2h\0") + b"h\2h\0" * 100_000 + b"u"
    ),
    "one wide text": lambda: text("a" * (4 * COUNT) + "\U0001f600"),
    "many tensors": lambda: many(first=PARTS, then=REBUILD, times=60_000),
    "huge lengths": lambda: b"\x8d" + b"\xff" * 8 + b"N" * COUNT,
    "no end of a name": lambda: b"c" + b"a" * COUNT,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_costs_little(kind: str) -> None:
    data = archive(program(HOSTILE[kind]()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    started = time.process_time()
    structure = read(data)
    assert time.process_time() - started < MAX_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < MAX_BYTES
    assert structure.format in ("opaque", "pytorch")
