"""What a file is made of, and where long runs of it are cut.

A file is a sequence of *runs*: with the method ``tensor`` its tensors and what lies between them (headers, gaps), with
``size`` the whole file as one. Runs of 1 MiB and more are cut at multiples of the part size; smaller ones are *small items*
that go to packs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from tensorkeep.errors import Internal, InvalidInput
from tensorkeep.formats.protocol import TensorLayout
from tensorkeep.records.layout import MAX_PART_SIZE_BYTES, MIB, SMALL_ITEM_BYTES

Method = Literal["tensor", "size"]
METHODS: tuple[Method, ...] = get_args(Method)

_LAYER = re.compile(r"(?:^|\.)([0-9]{1,9})(?=\.|$)")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to be split: its path in the version, size, format, and tensors ordered by start."""

    path: str
    size_bytes: int
    format: str
    tensors: tuple[TensorLayout, ...]


class Run(NamedTuple):
    """Bytes ``[start, start + length)`` of a file that belong together; ``tensor`` if they are exactly that tensor's."""

    start: int
    length: int
    tensor: str | None
    layer: int | None


class SmallItem(NamedTuple):
    """A run under 1 MiB of file number ``file``: it goes to a pack."""

    file: int
    start: int
    length: int
    tensor: str | None
    layer: int | None


def get_method(name: str) -> Method:
    """Return the split method of that name.

    Raises:
        InvalidInput: there is none.
    """
    for method in METHODS:
        if method == name:
            return method
    raise InvalidInput(f"there is no split method {name!r}: use auto, {' or '.join(METHODS)}", method=name)


def check_part_size(part_size: int) -> None:
    """Return if a part size is a whole number of MiB from 1 to 64.

    Raises:
        InvalidInput: it is not.
    """
    if part_size % MIB or not MIB <= part_size <= MAX_PART_SIZE_BYTES:
        raise InvalidInput(
            f"a part size of {part_size} bytes is not possible: use a whole number of MiB, "
            f"from 1 to {MAX_PART_SIZE_BYTES // MIB}",
            part_size=part_size,
        )


def layer_of(name: str) -> int | None:
    """Return the layer of a tensor: the first component of its dotted name that is a whole number, or None."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def iter_runs(file: SourceFile, *, method: Method) -> Iterator[Run]:
    """Yield the runs of a file in order; they cover each of its bytes exactly once.

    Tensors may overlap (views of one storage): a byte belongs to the first tensor that has it.
    """
    covered = 0
    for tensor in file.tensors if method == "tensor" else ():
        end = tensor.start + tensor.length
        if end <= covered or tensor.length == 0:
            continue
        layer = layer_of(tensor.name)
        if tensor.start > covered:
            yield Run(covered, tensor.start - covered, None, None)
        if tensor.start >= covered:
            yield Run(tensor.start, tensor.length, tensor.name, layer)
        else:
            yield Run(covered, end - covered, None, layer)
        covered = end
    if covered > file.size_bytes:
        raise Internal(f"a tensor of {file.path!r} ends at byte {covered} of {file.size_bytes}")
    if covered < file.size_bytes:
        yield Run(covered, file.size_bytes - covered, None, None)


def iter_cuts(length: int, part_size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the pieces of a run: cut at multiples of the part size, a tail under 1 MiB joined."""
    count = max(1, (length + part_size - SMALL_ITEM_BYTES) // part_size)
    for start in range(0, (count - 1) * part_size, part_size):
        yield start, part_size
    start = (count - 1) * part_size
    yield start, length - start


def list_small_items(files: Sequence[SourceFile], *, method: str) -> list[SmallItem]:
    """Return what goes to packs, by file and start: the items whose digests `plan_split` is given.

    Raises:
        InvalidInput: there is no such method.
    """
    known = get_method(method)
    return [
        SmallItem(number, *run)
        for number, file in enumerate(files)
        for run in iter_runs(file, method=known)
        if run.length < SMALL_ITEM_BYTES
    ]
