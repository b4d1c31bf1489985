"""What a file is made of, and where long runs of it are cut.

A file is a sequence of *runs*: with the methods ``tensor`` and ``layer`` its tensors and what lies between them (headers, gaps),
with ``size`` the whole file as one, with ``parts=N`` what lies in it of each share of the model. Runs of 1 MiB and more are cut at
multiples of the part size; smaller ones are *small items* that go to packs, except with ``parts=N``, which knows no packs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tensorkeep.errors import Internal, InvalidInput
from tensorkeep.planning.layers import USUAL_NAMING, Layer, LayerNaming
from tensorkeep.planning.methods import Method
from tensorkeep.records.layout import MAX_PART_SIZE_BYTES, MIB, SMALL_ITEM_BYTES


class NamedRange(Protocol):
    """What splitting knows of a tensor: its name, and its bytes ``[start, start + length)``. A reader's or a manifest's will do."""

    @property
    def name(self) -> str:
        """Its name in the file."""

    @property
    def start(self) -> int:
        """Its first byte."""

    @property
    def length(self) -> int:
        """How many bytes it has."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to be split: its path in the version, size, format, and tensors ordered by start."""

    path: str
    size_bytes: int
    format: str
    tensors: Sequence[NamedRange]


class Run(NamedTuple):
    """Bytes ``[start, start + length)`` of a file that belong together; ``tensor`` if they are exactly that tensor's."""

    start: int
    length: int
    tensor: str | None
    layer: Layer | None
    expert: int | None


class SmallItem(NamedTuple):
    """A run under 1 MiB of file number ``file``: it goes to a pack."""

    file: int
    start: int
    length: int
    tensor: str | None
    layer: Layer | None
    expert: int | None


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


def iter_runs(file: SourceFile, *, method: Method, naming: LayerNaming = USUAL_NAMING) -> Iterator[Run]:
    """Yield the runs of a file in order, as ``tensor``, ``layer`` or ``size`` have them; they cover each byte exactly once.

    Tensors may overlap (views of one storage): a byte belongs to the first tensor that has it.
    """
    covered = 0
    for tensor in file.tensors if method.cuts_tensors else ():
        end = tensor.start + tensor.length
        if end <= covered or tensor.length == 0:
            continue
        if tensor.start > covered:
            yield Run(covered, tensor.start - covered, None, None, None)
        role = naming.role_of(tensor.name)
        if tensor.start >= covered:
            yield Run(tensor.start, tensor.length, tensor.name, *role)
        else:
            yield Run(covered, end - covered, None, *role)
        covered = end
    if covered > file.size_bytes:
        raise Internal(f"a tensor of {file.path!r} ends at byte {covered} of {file.size_bytes}")
    if covered < file.size_bytes:
        yield Run(covered, file.size_bytes - covered, None, None, None)


def iter_cuts(length: int, part_size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the pieces of a run: cut at multiples of the part size, a tail under 1 MiB joined."""
    count = max(1, (length + part_size - SMALL_ITEM_BYTES) // part_size)
    for start in range(0, (count - 1) * part_size, part_size):
        yield start, part_size
    start = (count - 1) * part_size
    yield start, length - start


def iter_shares(start: int, length: int, *, count: int, total_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield (share, start, length) of what bytes ``[start, start + length)`` of a model have of each of its shares, in order.

    Share i of ``count`` is the bytes from floor(i · total / count); shares may be empty.
    """
    end = start + length
    while start < end:
        share = -(-(start + 1) * count // total_bytes) - 1
        following = min(end, (share + 1) * total_bytes // count)
        yield share, start, following - start
        start = following


def list_small_items(
    files: Sequence[SourceFile], *, method: Method, naming: LayerNaming = USUAL_NAMING
) -> list[SmallItem]:
    """Return what goes to packs, by file and start: the items whose digests `plan_split` is given."""
    if method.shares:
        return []
    return [
        SmallItem(number, *run)
        for number, file in enumerate(files)
        for run in iter_runs(file, method=method, naming=naming)
        if run.length < SMALL_ITEM_BYTES
    ]
