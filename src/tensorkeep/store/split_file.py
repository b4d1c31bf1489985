"""Split: one file becomes N part files and an index, in one pass over it.

The chunks that are read go to lanes of their own: SHA-256 of the whole (the slowest, so the time of the split), SHA-256 of the
part, BLAKE3 of both, and the part's file. Parts are durable before they get their names, and all have them before the index
has its own: a split that was killed leaves nothing that a join takes for a whole file.
"""

import hashlib
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from tensorkeep.errors import InvalidInput
from tensorkeep.records.layout import MIB
from tensorkeep.records.parts_index import (
    PARTS_LIMIT,
    PartEntry,
    PartsIndex,
    encode_index,
    index_name,
    iter_cuts,
    part_name,
)
from tensorkeep.runtime import Runtime, WorkerPool
from tensorkeep.store.local_files import UnfinishedFile, sync_folder
from tensorkeep.store.new_files import NewFiles
from tensorkeep.store.progress import ByteProgress, progress_callback
from tensorkeep.store.reports import FilePart, ProgressCallback
from tensorkeep.store.steady_file import SteadyFile
from tensorkeep.transfer.fan_out import FanOut, Taker, feed, open_fan_out

SYNC_BYTES = 64 * MIB
"""Written bytes are sent to the disk this often, so that the disk works while the rest is read."""

_VERB = "split"
_LANES = ("sha256", "part-sha256", "blake3", "write")
_WRITE_LANE = _LANES.index("write")
_SYNC_LANES = 8


@dataclass(frozen=True, slots=True)
class SplitReport:
    """What a split made: ``index`` describes the parts, ``copies`` are the same in the folders of the parts."""

    path: str
    index: str
    copies: tuple[str, ...]
    size_bytes: int
    blake3: str
    sha256: str
    parts: tuple[FilePart, ...]
    seconds: float

    @property
    def rate_bytes_per_s(self) -> float:
        """Bytes of the file by seconds."""
        return self.size_bytes / self.seconds if self.seconds else 0.0


def split_file(
    path: str | os.PathLike[str],
    *,
    parts: int,
    to: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    force: bool,
    progress: bool | ProgressCallback | None,
    runtime: Runtime,
) -> SplitReport:
    """Split a file; see `tensorkeep.split_file`."""
    began_s = runtime.clock.monotonic_s()
    if "\0" in os.fspath(path):
        raise InvalidInput(f"the path {os.fspath(path)!r} holds a NUL", path=os.fspath(path))
    place = os.path.abspath(os.fspath(path))
    with SteadyFile(place, verb=_VERB) as source, NewFiles(verb=_VERB, runtime=runtime) as files:
        check_count(parts, source.size_bytes)
        layout = _Layout(place, source.size_bytes, parts, check_folders(to))
        layout.check_writable_as_text()
        for folder in layout.folders:
            files.make_folder(folder.path)
        check_different([folder.path for folder in layout.folders])
        files.check_free([*layout.part_paths, *layout.copy_paths, layout.index_path], force=force)
        made = [files.create(target, size) for target, (_, size) in zip(layout.part_paths, layout.cuts, strict=True)]
        runtime.failpoints.hit("split.reserved")
        counter = ByteProgress(progress_callback(progress), _VERB, source.size_bytes)
        index = _Splitter(source, layout, made, counter, runtime).run()
        source.check_unchanged()
        _publish(files, layout, made, index, force=force, runtime=runtime)
        files.keep()
    entries = zip(layout.part_paths, index.parts, strict=True)
    return SplitReport(
        path=place,
        index=layout.index_path,
        copies=tuple(layout.copy_paths),
        size_bytes=index.size_bytes,
        blake3=index.blake3,
        sha256=index.sha256,
        parts=tuple(
            FilePart(number, target, entry.start, entry.size_bytes, entry.blake3, entry.sha256)
            for number, (target, entry) in enumerate(entries, 1)
        ),
        seconds=runtime.clock.monotonic_s() - began_s,
    )


def check_count(parts: int, size_bytes: int) -> None:
    """Return if a file of that size can be split into that many parts.

    Raises:
        InvalidInput: fewer than one, more than `PARTS_LIMIT`, or more than the file has bytes; an empty file makes one part.
    """
    if not 1 <= parts <= PARTS_LIMIT:
        raise InvalidInput(f"{parts} parts: give a number from 1 to {PARTS_LIMIT:,}", parts=parts)
    if parts > max(1, size_bytes):
        most = "an empty file makes 1 part" if not size_bytes else f"at most {size_bytes}, one for each byte"
        raise InvalidInput(f"a file of {size_bytes} bytes can't make {parts} parts: {most}", parts=parts)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder for parts: its real path, and whether the user wrote it as an absolute one."""

    path: str
    absolute: bool


def check_folders(to: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None) -> list[Folder]:
    """Return the folders that the user named, in order; none for the default.

    Raises:
        InvalidInput: a name can't be one.
    """
    if to is None:
        return []
    given = [os.fspath(folder) for folder in ([to] if isinstance(to, (str, os.PathLike)) else to)]
    for text in given:
        if not text or "\0" in text:
            raise InvalidInput(f"{text!r} is no folder", path=text)
    return [Folder(os.path.realpath(text), os.path.isabs(text)) for text in given]


def check_different(folders: Sequence[str]) -> None:
    """Return if no two folders are the same.

    Raises:
        InvalidInput: two are: one would get the parts of both, and its disk fail for both.
    """
    seen: dict[tuple[int, int], str] = {}
    for folder in folders:
        status = os.stat(folder)
        other = seen.setdefault((status.st_dev, status.st_ino), folder)
        if other is not folder:
            raise InvalidInput(f"the folder {folder} is given twice: name each once", path=folder)


class _Layout:
    """Where everything of a split goes."""

    def __init__(self, source: str, size_bytes: int, count: int, folders: Sequence[Folder]) -> None:
        beside, self.name = os.path.split(source)
        self.folders = folders[:count] or [Folder(os.path.realpath(beside), absolute=False)]
        self.size_bytes = size_bytes
        self.cuts = list(iter_cuts(size_bytes, count))
        self.part_names = [part_name(self.name, number + 1, count) for number in range(count)]
        self.index_path = os.path.join(beside, index_name(self.name))
        home = os.path.realpath(beside)
        self.copy_folders = [folder.path for folder in self.folders if folder.path != home]
        self.copy_paths = [os.path.join(folder, index_name(self.name)) for folder in self.copy_folders]
        self.part_paths = [os.path.join(self._folder(i).path, name) for i, name in enumerate(self.part_names)]
        self.home = home  # where the index lies, links resolved

    def index(self, whole: Sequence[str], digests: Sequence[Sequence[str]], *, folder: str) -> PartsIndex:
        """Return the index as it stands in a folder: others are relative to it, where the user gave them so."""
        entries = []
        for i, ((start, size), name, (blake, sha)) in enumerate(zip(self.cuts, self.part_names, digests, strict=True)):
            place = self._folder(i)
            where = place.path if place.absolute else os.path.relpath(place.path, folder)
            entries.append(PartEntry(name=name, folder=where, start=start, size_bytes=size, blake3=blake, sha256=sha))
        return PartsIndex(
            name=self.name, size_bytes=self.size_bytes, blake3=whole[0], sha256=whole[1], parts=tuple(entries)
        )

    def check_writable_as_text(self) -> None:
        """Return if the index can be written; raises before hours of work what would be raised after them."""
        zero = ("0" * 64, "0" * 64)
        for folder in (self.home, *self.copy_folders[:1]):
            encode_index(self.index(zero, [zero] * len(self.cuts), folder=folder))

    def lane(self, number: int) -> int:
        """Return which of `_SYNC_LANES` syncs a part: folders are different disks, and sync at the same time."""
        return number % len(self.folders) % _SYNC_LANES

    def _folder(self, number: int) -> Folder:
        return self.folders[number % len(self.folders)]


class _Splitter:
    """The one pass: reads, hashes, writes, syncs."""

    def __init__(
        self,
        source: SteadyFile,
        layout: _Layout,
        files: Sequence[UnfinishedFile],
        progress: ByteProgress,
        runtime: Runtime,
    ) -> None:
        self._source = source
        self._layout = layout
        self._files = files
        self._progress = progress
        self._runtime = runtime
        self._syncs: deque[Future[Any]] = deque()
        self._sync_lanes: list[WorkerPool] = []

    def run(self) -> PartsIndex:
        """Return the index, as it stands beside the file, when every part is on its disk."""
        whole_sha, whole_blake = hashlib.sha256(), blake3()
        hashers = []
        workers = self._runtime.workers
        alone = len(self._files) == 1
        with ExitStack() as stack:
            count = min(len(self._layout.folders), _SYNC_LANES)
            self._sync_lanes = [stack.enter_context(workers.open_pool(1, f"sync-{i}")) for i in range(count)]
            fan_out = stack.enter_context(open_fan_out(workers, _LANES))
            for number, (start, size) in enumerate(self._layout.cuts):
                # One part alone is the whole: its digests are not computed twice.
                sha, blake = (whole_sha, whole_blake) if alone else (hashlib.sha256(), blake3())
                hashers.append((blake, sha))
                self._send_part(
                    fan_out,
                    number,
                    start,
                    size,
                    [
                        feed(whole_sha),
                        None if alone else feed(sha),
                        feed(whole_blake) if alone else feed(whole_blake, blake),
                        partial(self._write, number),
                    ],
                )
            fan_out.drain()
            for sync in self._syncs:
                sync.result()
        digests = [(blake.hexdigest(), sha.hexdigest()) for blake, sha in hashers]
        return self._layout.index((whole_blake.hexdigest(), whole_sha.hexdigest()), digests, folder=self._layout.home)

    def _send_part(self, fan_out: FanOut, number: int, start: int, size: int, takers: Sequence[Taker | None]) -> None:
        while self._syncs and self._syncs[0].done():  # a disk that fails is not written to for hours
            self._syncs.popleft().result()
        fan_out.send(size, lambda offset, view: self._source.read_into(start + offset, view), takers)
        fan_out.queue(_WRITE_LANE, partial(self._sync, number, self._finish))

    def _write(self, number: int, data: memoryview, offset: int) -> None:
        self._files[number].write_at(data, offset)
        self._progress.count(len(data))
        if (offset + len(data)) // SYNC_BYTES > offset // SYNC_BYTES:
            self._sync(number, self._flush)

    def _sync(self, number: int, task: Any) -> None:
        self._syncs.append(self._sync_lanes[self._layout.lane(number)].submit(task, number))

    def _flush(self, number: int) -> None:
        self._files[number].sync()

    def _finish(self, number: int) -> None:
        self._files[number].sync()
        self._runtime.failpoints.hit("split.part_written")


def _publish(
    files: NewFiles,
    layout: _Layout,
    made: Sequence[UnfinishedFile],
    index: PartsIndex,
    *,
    force: bool,
    runtime: Runtime,
) -> None:
    """Give the parts their names, then the copies of the index, then the index; each step is durable before the next."""
    for file in made:
        files.publish(file, force=force)
        runtime.failpoints.hit("split.part_published")
    for folder in layout.folders:
        sync_folder(Path(folder.path))
    runtime.failpoints.hit("split.parts_durable")
    whole = (index.blake3, index.sha256)
    digests = [(entry.blake3, entry.sha256) for entry in index.parts]
    for folder_path, path in zip(layout.copy_folders, layout.copy_paths, strict=True):
        copy = layout.index(whole, digests, folder=folder_path)
        _publish_index(files, path, encode_index(copy), force=force)
        runtime.failpoints.hit("split.copy_published")
    _publish_index(files, layout.index_path, encode_index(index), force=force)
    runtime.failpoints.hit("split.index_published")


def _publish_index(files: NewFiles, path: str, data: bytes, *, force: bool) -> None:
    file = files.create(path, len(data))
    file.write_at(memoryview(data), 0)
    file.sync()
    files.publish(file, force=force)
    sync_folder(file.path.parent)
