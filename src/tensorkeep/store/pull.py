"""Pull: byte-identical files, written part by part as verified bytes arrive, under their names only when whole."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tensorkeep.errors import (
    AlreadyExists,
    Capacity,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)
from tensorkeep.planning.read_plan import PartRange
from tensorkeep.records.digest import parse_digest
from tensorkeep.records.history import VersionFacts
from tensorkeep.records.manifest import File, Manifest
from tensorkeep.store.context import StoreContext
from tensorkeep.store.damage import confirm_checks, record_damage
from tensorkeep.store.journal import new_ulid
from tensorkeep.store.model import DEFAULT_MEMORY_LIMIT_BYTES, choose_verify
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.reports import ProgressCallback
from tensorkeep.store.structure import open_checks, part_table
from tensorkeep.transfer.hashing import FileHasher
from tensorkeep.transfer.reader import read_parts
from tensorkeep.transfer.report import LoadReport, Verify

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull did: ``written_files`` are new or replaced, ``unchanged_files`` were there already, byte for byte."""

    destination: str
    files: int
    bytes: int
    written_files: int
    unchanged_files: int
    load: LoadReport


@dataclass(frozen=True, slots=True)
class _Target:
    """A file to write: its record, its final path, and the temporary one that is renamed when all bytes are in."""

    file: File
    path: Path
    temporary: Path


def pull_files(
    context: StoreContext,
    version: VersionFacts,
    manifest: Manifest,
    destination: Path,
    *,
    include: str | Sequence[str] | None,
    force: bool,
    verify: Verify | None,
    deadline_s: float | None,
    progress: ProgressCallback | None,
) -> PullReport:
    """Write a version's files under a folder; see `Store.pull`."""
    how = choose_verify(context, verify)
    chosen = _select(manifest, include)
    targets: list[_Target] = []
    try:
        todo = _find_missing(chosen, destination, force=force)
        checks = open_checks(context, version, manifest)
        for file in todo:  # one by one, so that the files made before a failure are cleaned up
            targets.append(_open_target(context, file, destination))  # noqa: PERF401
        ranges, places = _ranges(targets)

        def write(part_range: PartRange, data: memoryview) -> None:
            path, offset = places[part_range.key]
            _write_at(path, data, offset)

        report = read_parts(
            ranges,
            write,
            parts=part_table(
                context,
                manifest,
                checks,
                {r.part for r in ranges},
                confirm_checks=lambda: confirm_checks(context, version, manifest),
                note_damage=lambda damaged: record_damage(context, damaged),
            ),
            verify=how,
            deadline_s=deadline_s,
            memory_limit_bytes=DEFAULT_MEMORY_LIMIT_BYTES,
            runtime=context.runtime,
            progress=ByteProgress(progress, "pull", sum(file.size_bytes for file in todo)).count,
        )
        for target in targets:
            _publish(target, force=force)
    except OSError as error:
        raise _translate(error, destination) from error
    finally:
        for target in targets:
            target.temporary.unlink(missing_ok=True)
    total = sum(file.size_bytes for file in chosen)
    return PullReport(str(destination), len(chosen), total, len(todo), len(chosen) - len(todo), report)


def _select(manifest: Manifest, include: str | Sequence[str] | None) -> list[File]:
    if include is None:
        return list(manifest.files)
    globs = [include] if isinstance(include, str) else list(include)
    chosen = [file for file in manifest.files if any(fnmatchcase(file.path, glob) for glob in globs)]
    if not chosen:
        raise NotFound(f"no file fits {', '.join(map(repr, globs))}", include=globs)
    return chosen


def _find_missing(files: Sequence[File], destination: Path, *, force: bool) -> list[File]:
    """Return the files that are not there yet; one that differs is an error without ``force``."""
    if destination.exists() and not destination.is_dir():
        raise InvalidInput(f"{destination} is a file, not a folder: name another destination", path=str(destination))
    missing = []
    for file in files:
        path = destination / file.path
        if not os.path.lexists(path):
            missing.append(file)
        elif path.is_dir():
            raise AlreadyExists(f"{path} is a folder, {file.path} is a file: move it away", path=str(path))
        elif not _same(path, file):
            if not force:
                raise AlreadyExists(f"{path} exists and differs: move it away, or pull with --force", path=str(path))
            missing.append(file)
    return missing


def _same(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    hasher = FileHasher(file.size_bytes)
    with path.open("rb") as stream:
        left = file.size_bytes
        while left and (data := stream.read(min(left, _CHUNK_BYTES))):
            hasher.update(memoryview(data))
            left -= len(data)
    return left == 0 and hasher.sha256 == parse_digest(file.sha256, what="SHA-256").hex()


def _open_target(context: StoreContext, file: File, destination: Path) -> _Target:
    path = destination / file.path
    # Before any folder is made: a link would have it made outside.
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(destination)):
        raise InvalidInput(f"{path} leads outside {destination} through a link: remove the link", path=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tensorkeep-{new_ulid(context.runtime)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _reserve(descriptor, file.size_bytes)
    except OSError:
        temporary.unlink()
        raise
    finally:
        os.close(descriptor)
    return _Target(file, path, temporary)


def _reserve(descriptor: int, size_bytes: int) -> None:
    if not size_bytes:
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, size_bytes)


def _ranges(targets: Sequence[_Target]) -> tuple[list[PartRange], list[tuple[Path, int]]]:
    """Return the part ranges to read, and for each (by key) the file and offset where it goes."""
    ranges: list[PartRange] = []
    places: list[tuple[Path, int]] = []
    for target in targets:
        offset = 0
        for extent in target.file.extents:
            ranges.append(PartRange(extent.part, extent.start, extent.length, key=len(places)))
            places.append((target.temporary, offset))
            offset += extent.length
    return ranges, places


def _publish(target: _Target, *, force: bool) -> None:
    """Give a whole file its name; without ``force`` never in the place of one that somebody else made meanwhile."""
    if force:
        target.temporary.replace(target.path)
        return
    try:
        os.link(target.temporary, target.path)
    except FileExistsError as error:
        raise AlreadyExists(
            f"{target.path} was made during the pull: move it away, or pull with --force", path=str(target.path)
        ) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        target.temporary.replace(target.path)  # a file system without hard links


def _write_at(path: Path, data: memoryview, offset: int) -> None:
    # Opened for each write: a version may have more files than a process may have descriptors.
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while data:
                count = os.pwrite(descriptor, data, offset)
                data = data[count:]
                offset += count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _translate(error, path) from error


def _translate(error: OSError, destination: Path | None) -> TensorkeepError:
    where = error.filename or destination or "the destination"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Capacity(f"{where} is full: free space or pull somewhere else")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"{where} can't be written: {error.strerror}")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return InvalidInput(f"{where}: {error.strerror}")
    return Unavailable(f"{where}: {error.strerror}")
