"""Pull: byte-identical files, written part by part as verified bytes arrive, under their names only when whole."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tensorkeep.errors import AlreadyExists, InvalidInput, NotFound
from tensorkeep.planning.read_plan import PartRange
from tensorkeep.records.digest import parse_digest
from tensorkeep.records.history import VersionFacts
from tensorkeep.records.manifest import File, Manifest
from tensorkeep.store.context import StoreContext
from tensorkeep.store.damage import confirm_checks, record_damage
from tensorkeep.store.local_files import UnfinishedFile, open_unfinished, translate_os_error
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
    """A file to write, and where its bytes go."""

    file: File
    output: UnfinishedFile


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
            output, offset = places[part_range.key]
            output.write_at(data, offset)

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
            target.output.publish(force=force, verb="pull")
    except OSError as error:
        raise translate_os_error(error, destination) from error
    finally:
        for target in targets:
            target.output.discard()
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
    return _Target(file, open_unfinished(path, file.size_bytes, context.runtime))


def _ranges(targets: Sequence[_Target]) -> tuple[list[PartRange], list[tuple[UnfinishedFile, int]]]:
    """Return the part ranges to read, and for each (by key) the file and offset where it goes."""
    ranges: list[PartRange] = []
    places: list[tuple[UnfinishedFile, int]] = []
    for target in targets:
        offset = 0
        for extent in target.file.extents:
            ranges.append(PartRange(extent.part, extent.start, extent.length, key=len(places)))
            places.append((target.output, offset))
            offset += extent.length
    return ranges, places
