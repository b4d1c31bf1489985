"""Join: a file again from its parts, every part and the whole verified before the file gets its name.

The parts are read one after the other; each chunk goes to lanes of its own: SHA-256 of the whole, BLAKE3 of the part and of the
whole, and the new file. A part whose copy in one place is bad is taken from the next place. What is wrong is gathered over all
parts and told at once. The SHA-256 of single parts is not computed: it is there for other tools, their BLAKE3 says as much.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from tensorkeep.errors import Integrity, InvalidInput, NotFound, TensorkeepError
from tensorkeep.records.parts_index import PartEntry, PartsIndex
from tensorkeep.runtime import Runtime, WorkerPool
from tensorkeep.store.local_files import UnfinishedFile, sync_folder
from tensorkeep.store.new_files import NewFiles
from tensorkeep.store.part_search import PartProblem, PartSearch, combine, read_index
from tensorkeep.store.progress import ByteProgress, progress_callback
from tensorkeep.store.reports import FilePart, ProgressCallback
from tensorkeep.store.split_layout import check_folders
from tensorkeep.store.split_pass import SYNC_BYTES
from tensorkeep.store.steady_file import SteadyFile
from tensorkeep.transfer.fan_out import FanOut, Taker, feed, open_fan_out

_VERB = "join"
_LANES = ("sha256", "blake3", "write")


@dataclass(frozen=True, slots=True)
class JoinReport:
    """What a join made: ``parts`` are where they were found; ``warnings`` tell of bad copies that were passed over."""

    path: str
    index: str
    size_bytes: int
    blake3: str
    sha256: str
    parts: tuple[FilePart, ...]
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def rate_bytes_per_s(self) -> float:
        """Bytes of the file by seconds."""
        return self.size_bytes / self.seconds if self.seconds else 0.0


def join_file(
    index: str | os.PathLike[str],
    path: str | os.PathLike[str] | None,
    *,
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    force: bool,
    progress: bool | ProgressCallback | None,
    runtime: Runtime,
) -> JoinReport:
    """Join parts to the file that they were; see `tensorkeep.join_file`."""
    began_s = runtime.clock.monotonic_s()
    index_path = _absolute(index)
    record = read_index(index_path)
    folders = [folder.path for folder in check_folders(sources)]
    target = os.path.join(os.path.dirname(index_path), record.name) if path is None else _absolute(path)
    search = PartSearch(index_path, record, folders)
    with NewFiles(verb=_VERB, runtime=runtime) as files:
        _check_folders_exist(folders)
        files.make_folder(os.path.dirname(target))
        files.check_free([target], force=force)
        _check_no_input(target, [index_path, *(found for i in range(len(record.parts)) for found in search.find(i))])
        new = files.create(target, record.size_bytes)
        runtime.failpoints.hit("join.reserved")
        counter = ByteProgress(progress_callback(progress), _VERB, record.size_bytes)
        joiner = _Joiner(record, search, new, counter, runtime)
        used = joiner.run()
        runtime.failpoints.hit("join.verified")
        files.publish(new, force=force)
        runtime.failpoints.hit("join.published")
        files.sync_new_folders()
        files.keep()
    sync_folder(new.path.parent)  # whatever this says, the file is whole, and stays
    return JoinReport(
        path=target,
        index=index_path,
        size_bytes=record.size_bytes,
        blake3=record.blake3,
        sha256=record.sha256,
        parts=tuple(
            FilePart(number, found, part.start, part.size_bytes, part.blake3, part.sha256)
            for number, (found, part) in enumerate(zip(used, record.parts, strict=True), 1)
        ),
        seconds=runtime.clock.monotonic_s() - began_s,
        warnings=tuple(joiner.warnings),
    )


def _absolute(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InvalidInput(f"{text!r} is no path of a file", path=text)
    return os.path.abspath(text)


def _check_folders_exist(folders: Sequence[str]) -> None:
    for folder in folders:
        if not os.path.isdir(folder):
            raise NotFound(f"there is no folder {folder} to look for parts in", path=folder)


def _check_no_input(target: str, inputs: Sequence[str]) -> None:
    """Refuse a target that is read itself: with force it would be replaced, and lost where it is the only copy."""
    if not os.path.exists(target):
        return
    for path in inputs:
        if os.path.exists(path) and os.path.samefile(path, target):
            raise InvalidInput(f"{target} is {path}, which is read: name another file", path=target)


class _Joiner:
    """The one pass: finds, reads, hashes, writes, syncs."""

    def __init__(
        self, index: PartsIndex, search: PartSearch, new: UnfinishedFile, progress: ByteProgress, runtime: Runtime
    ) -> None:
        self._index = index
        self._search = search
        self._new = new
        self._progress = progress
        self._runtime = runtime
        self._sha = hashlib.sha256()
        self._blake = blake3()
        self._problems: list[PartProblem] = []
        self._syncs: list[Future[Any]] = []
        self._sync_lane: WorkerPool
        self._counted = 0
        self.warnings: list[str] = []

    def run(self) -> list[str]:
        """Return the path of each part, when the file is whole, verified and on its disk.

        Raises:
            Integrity, NotFound, Unavailable: what is wrong with the parts, all of it.
        """
        workers = self._runtime.workers
        used = []
        with workers.open_pool(1, "sync") as self._sync_lane, open_fan_out(workers, _LANES) as fan_out:
            for number in range(len(self._index.parts)):
                used.append(self._take_part(fan_out, number))
                self._runtime.failpoints.hit("join.part_taken")
            if self._problems:
                raise combine(self._index.name, len(self._index.parts), self._problems)
            for sync in self._syncs:
                sync.result()
            self._sync_lane.submit(self._new.sync).result()
        if (self._blake.hexdigest(), self._sha.hexdigest()) != (self._index.blake3, self._index.sha256):
            raise Integrity(
                f"every part of {self._index.name} fits the index, but the whole does not: the index was not written by a split",
                path=self._index.name,
            )
        return used

    def _take_part(self, fan_out: FanOut, number: int) -> str:
        """Return the path of the first good copy of a part, its bytes taken; where there is none, note why."""
        problems: list[PartProblem] = []
        for path in self._search.find(number):
            problem = self._try_copy(fan_out, number, path)
            if problem is None:
                self.warnings += [f"{bad.message}; {path} was read instead" for bad in problems]
                return path
            problems.append(problem)
        self._problems += problems or [self._search.missing(number)]
        return ""

    def _try_copy(self, fan_out: FanOut, number: int, path: str) -> PartProblem | None:
        """Take a part's bytes from a file; return what is wrong with it, and then nothing was taken."""
        part = self._index.parts[number]
        before = self._sha.copy(), self._blake.copy()
        self._counted = 0
        try:
            with _reading():  # and nothing else: an error of the new file's disk is no part's
                file = SteadyFile(path, verb=_VERB)
            with file:
                if file.size_bytes != part.size_bytes:
                    with _reading():
                        return self._search.wrong_size(number, path, file.size_bytes)
                digest = self._send(fan_out, file, part)
            if digest == part.blake3:
                return None
            problem = self._search.wrong_digest(number, path, digest)
        except _Unreadable as error:
            fan_out.drain()
            problem = PartProblem(number + 1, "unreadable", path, f"part {number + 1} can't be read: {error}")
        self._sha, self._blake = before
        self._progress.count(-self._counted)
        return problem

    def _send(self, fan_out: FanOut, file: SteadyFile, part: PartEntry) -> str:
        """Send a part through the lanes and return its digest; once there is a problem, only that is wanted."""
        alone = blake3()
        whole = not self._problems

        def fill(offset: int, view: memoryview) -> None:
            with _reading():
                file.read_into(offset, view)

        def write(data: memoryview, offset: int) -> None:
            if whole:
                self._write(data, part.start + offset)
            self._counted += len(data)
            self._progress.count(len(data))

        takers: list[Taker | None] = [
            feed(self._sha) if whole else None,
            feed(alone, self._blake) if whole else feed(alone),
            write,
        ]
        fan_out.send(part.size_bytes, fill, takers)
        fan_out.drain()
        return alone.hexdigest()

    def _write(self, data: memoryview, offset: int) -> None:
        self._new.write_at(data, offset)
        if (offset + len(data)) // SYNC_BYTES > offset // SYNC_BYTES:
            self._syncs.append(self._sync_lane.submit(self._new.sync))


class _Unreadable(Exception):
    """A part could not be read; unlike an error of the new file's disk, another copy may do."""


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except TensorkeepError as error:
        raise _Unreadable(error.message) from error
