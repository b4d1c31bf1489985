"""Where the parts of a split file are looked for, and what is said of those that are not as they should be."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from blake3 import blake3

from tensorkeep.errors import Integrity, NotFound, TensorkeepError, Unavailable
from tensorkeep.records.parts_index import INDEX_LIMIT_BYTES, INDEX_SUFFIX, PartsIndex, decode_index
from tensorkeep.store.steady_file import SteadyFile
from tensorkeep.transfer.fan_out import CHUNK_BYTES
from tensorkeep.transfer.memory import allocate

ProblemKind = Literal["missing", "unreadable", "size", "damaged", "swapped", "foreign"]

_VERB = "join"
_SHOWN = 20
_INDEXES_READ = 100
"""Other indexes that are looked into, at most, to say where a foreign part is from."""


@dataclass(frozen=True, slots=True)
class PartProblem:
    """What is wrong with a part, ``number`` from 1; ``other`` is the part whose bytes were found in its place."""

    number: int
    kind: ProblemKind
    path: str | None
    message: str
    other: int | None = None


def read_index(path: str) -> PartsIndex:
    """Return the index in a file.

    Raises:
        NotFound: there is no such file.
        Integrity: it is damaged, or no index.
        Format: it is of a newer format, or contradicts itself.
    """
    with SteadyFile(path, verb=_VERB) as file:
        if file.size_bytes > INDEX_LIMIT_BYTES:
            raise Integrity(
                f"{path} is no index of parts: it is over 16 MiB; give the file that ends with {INDEX_SUFFIX}",
                path=path,
            )
        data = bytearray(file.size_bytes)
        file.read_into(0, memoryview(data))
    return decode_index(bytes(data), what=path)


class PartSearch:
    """Finds part files: where the index says, beside the index, and in other folders, in this order."""

    def __init__(self, index_path: str, index: PartsIndex, folders: Sequence[str]) -> None:
        self._index = index
        self._home = os.path.dirname(os.path.realpath(index_path))
        self._index_path = index_path
        self._folders = [self._home, os.path.dirname(index_path), *folders]
        # Of parts that are alike, such as runs of zeros, the first.
        self._digests = _by_digest(index)

    def find(self, number: int) -> list[str]:
        """Return the paths where something of a part's name lies, number from 0; each file once."""
        found: dict[tuple[int, int], str] = {}
        for path in self._places(number):
            try:
                status = os.stat(path)
            except OSError:
                continue  # there is nothing, or nothing that can be looked at
            found.setdefault((status.st_dev, status.st_ino), path)
        return list(found.values())

    def missing(self, number: int) -> PartProblem:
        """Return the problem of a part that was found nowhere."""
        places = [os.path.dirname(path) for path in self._places(number)]
        name = self._index.parts[number].name
        return PartProblem(
            number + 1, "missing", None, f"part {number + 1} is missing: {name} is not in {' or '.join(places)}"
        )

    def wrong_size(self, number: int, path: str, size_bytes: int) -> PartProblem:
        """Return the problem of a file that has not the part's size."""
        wanted = self._index.parts[number].size_bytes
        if any(part.size_bytes == size_bytes for part in self._index.parts):
            known = self._recognise(number, path, _digest(path))
            if known:
                return known
        message = f"part {number + 1} has the wrong size: {path} has {size_bytes} bytes, not {wanted}"
        return PartProblem(number + 1, "size", path, message)

    def wrong_digest(self, number: int, path: str, digest: str) -> PartProblem:
        """Return the problem of a file whose bytes are not the part's."""
        known = self._recognise(number, path, digest)
        message = f"part {number + 1} is damaged: the BLAKE3 of {path} does not fit, restore it from another copy"
        return known or PartProblem(number + 1, "damaged", path, message)

    def _places(self, number: int) -> list[str]:
        part = self._index.parts[number]
        folders = [os.path.normpath(os.path.join(self._home, part.folder)), *self._folders]
        return [os.path.join(folder, part.name) for folder in dict.fromkeys(folders)]

    def _recognise(self, number: int, path: str, digest: str) -> PartProblem | None:
        """Return the problem of a file that holds another part, of this split or of one whose index is near."""
        other = self._digests.get(digest)
        if other is not None:
            message = f"part {number + 1} is not in its place: {path} holds what part {other + 1} should"
            return PartProblem(number + 1, "swapped", path, message, other=other + 1)
        for foreign_path, foreign in self._foreign_indexes(path):
            found = _by_digest(foreign).get(digest)
            if found is not None:
                message = (
                    f"part {number + 1} is of another split: {path} holds part {found + 1} of the {foreign.name} "
                    f"that {foreign_path} describes"
                )
                return PartProblem(number + 1, "foreign", path, message)
        return None

    def _foreign_indexes(self, path: str) -> Iterator[tuple[str, PartsIndex]]:
        """Yield the other indexes beside a file, beside the index, and in the folders that were given."""
        read = 0
        for folder in dict.fromkeys([os.path.dirname(path), *self._folders]):
            try:
                names = sorted(name for name in os.listdir(folder) if name.endswith(INDEX_SUFFIX))
            except OSError:
                continue
            for name in names:
                if read == _INDEXES_READ:
                    return
                read += 1
                try:
                    yield os.path.join(folder, name), read_index(os.path.join(folder, name))
                except TensorkeepError:
                    continue  # it tells nothing of the part


def combine(name: str, count: int, problems: Sequence[PartProblem]) -> TensorkeepError:
    """Return one error for all that is wrong; its class is that of the worst.

    Damage is `Integrity`, else what is missing is `NotFound`, else what can't be read is `Unavailable`.
    """
    kinds = {problem.kind for problem in problems}
    lines = list(_lines(problems))
    more = [f"and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    bad = len({problem.number for problem in problems})
    title = f"{name} can't be joined, {bad} of its {count} parts {'is' if bad == 1 else 'are'} not right:"
    message = "\n".join([title, *lines[:_SHOWN], *more])
    error: type[TensorkeepError] = Integrity
    if kinds <= {"missing", "unreadable"}:
        error = NotFound if "missing" in kinds else Unavailable
    facts = [
        {"part": p.number, "kind": p.kind, "path": p.path, "holds_part": p.other, "message": p.message}
        for p in problems
    ]
    return error(message, problems=facts)


def _lines(problems: Sequence[PartProblem]) -> Iterator[str]:
    """Yield the message of each problem; two parts that hold each other's bytes are one."""
    swaps: Mapping[int, PartProblem] = {p.number: p for p in problems if p.kind == "swapped"}
    told: set[int] = set()
    for problem in problems:
        back = swaps.get(problem.other or 0)
        if back is None or back.other != problem.number or problem is not swaps.get(problem.number):
            yield problem.message
        elif problem.number not in told:
            told.add(back.number)
            yield (
                f"parts {problem.number} and {back.number} are swapped: {problem.path} holds what part {back.number} "
                f"should, {back.path} what part {problem.number} should"
            )


def _by_digest(index: PartsIndex) -> dict[str, int]:
    return {part.blake3: number for number, part in reversed(list(enumerate(index.parts)))}


def _digest(path: str) -> str:
    hasher = blake3()
    buffer = allocate(CHUNK_BYTES)
    with SteadyFile(path, verb=_VERB) as file:
        for offset in range(0, file.size_bytes, CHUNK_BYTES):
            view = buffer[: min(CHUNK_BYTES, file.size_bytes - offset)]
            file.read_into(offset, view)
            hasher.update(view)
    return hasher.hexdigest()
