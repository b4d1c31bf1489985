"""Any file, any number of parts, any mishaps: the file comes back, or exactly what is wrong with which part is told."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorkeep
from tensorkeep.errors import Integrity, NotFound, TensorkeepError
from tensorkeep.runtime import InlineWorkers, Runtime

NAME = "model.bin"
RUNTIME = Runtime(workers=InlineWorkers())

# Few different bytes, so that parts are alike now and then.
contents = st.binary(max_size=300) | st.lists(st.sampled_from([0, 1]), max_size=60).map(bytes)
mishaps = st.lists(
    st.tuples(st.sampled_from(["flip", "swap", "copy", "remove", "cut", "grow"]), st.integers(0), st.integers(0)),
    max_size=4,
)


@contextmanager
def new_folder() -> Iterator[Path]:
    """Give a folder in which nothing need be durable."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(os, "fsync"):
        yield Path(folder)


def happen(parts: list[bytes | None], what: str, one: int, other: int) -> None:
    """Do to the parts in memory what shall be done to their files."""
    i, j = one % len(parts), other % len(parts)
    data = parts[i]
    if what == "swap":
        parts[i], parts[j] = parts[j], parts[i]
    elif what == "copy":
        parts[i] = parts[j]
    elif what == "remove":
        parts[i] = None
    elif data is not None and what == "grow":
        parts[i] = data + bytes(1 + other % 3)
    elif data and what == "cut":
        parts[i] = data[: other % len(data)]
    elif data and what == "flip":
        at = other % len(data)
        parts[i] = data[:at] + bytes([data[at] ^ (1 << one % 8)]) + data[at + 1 :]


def expect(wanted: list[bytes], found: list[bytes | None]) -> list[tuple[int, str, int | None]]:
    """Return what a join shall say: number, kind, and the part whose bytes were found."""
    problems: list[tuple[int, str, int | None]] = []
    for number, (right, data) in enumerate(zip(wanted, found, strict=True), 1):
        if data is None:
            problems.append((number, "missing", None))
        elif data == right:
            continue
        elif data in wanted:
            problems.append((number, "swapped", wanted.index(data) + 1))
        else:
            problems.append((number, "damaged" if len(data) == len(right) else "size", None))
    return problems


@settings(max_examples=300)
@given(data=contents, count=st.integers(1, 12), folders=st.integers(0, 3), events=mishaps)
def test_a_join_gives_the_file_back_or_tells_exactly_what_is_wrong(
    data: bytes, count: int, folders: int, events: list[tuple[str, int, int]]
) -> None:
    count = min(count, max(1, len(data)))
    with new_folder() as folder:
        (folder / NAME).write_bytes(data)
        to = [folder / str(number) for number in range(folders)] or None
        report = tensorkeep.split_file(folder / NAME, parts=count, to=to, runtime=RUNTIME)
        wanted = [Path(part.path).read_bytes() for part in report.parts]
        assert b"".join(wanted) == data
        found: list[bytes | None] = [*wanted]
        for event in events:
            happen(found, *event)
        for part, content in zip(report.parts, found, strict=True):
            Path(part.path).unlink()
            if content is not None:
                Path(part.path).write_bytes(content)
        check_join(Path(report.index), folder / "out", data, expect(wanted, found))


def check_join(index: Path, out: Path, data: bytes, problems: list[tuple[int, str, int | None]]) -> None:
    if not problems:
        tensorkeep.join_file(index, out, runtime=RUNTIME)
        assert out.read_bytes() == data
        return
    error = NotFound if {kind for _, kind, _ in problems} == {"missing"} else Integrity
    with pytest.raises(error) as caught:
        tensorkeep.join_file(index, out, runtime=RUNTIME)
    told: list[dict[str, Any]] = caught.value.facts["problems"]
    assert [(p["part"], p["kind"], p["holds_part"]) for p in told] == problems
    for number, _, _ in problems:
        assert (
            f"part {number} " in str(caught.value)
            or f" {number} are swapped" in str(caught.value)
            or (f"parts {number} and" in str(caught.value))
        )
    assert not out.exists()
    assert not list(out.parent.rglob(".tensorkeep-*"))


@settings(max_examples=200)
@given(data=st.binary(min_size=1, max_size=40), count=st.integers(1, 4), at=st.integers(0), bits=st.integers(1, 255))
def test_no_byte_of_an_index_can_change_unnoticed(data: bytes, count: int, at: int, bits: int) -> None:
    with new_folder() as folder:
        (folder / NAME).write_bytes(data)
        report = tensorkeep.split_file(folder / NAME, parts=min(count, len(data)), runtime=RUNTIME)
        index = bytearray(Path(report.index).read_bytes())
        index[at % len(index)] ^= bits
        Path(report.index).write_bytes(index)
        with pytest.raises(TensorkeepError) as caught:
            tensorkeep.join_file(report.index, folder / "out", runtime=RUNTIME)
        assert isinstance(caught.value, Integrity)
        assert not (folder / "out").exists()
