"""Pull: files written part by part as verified bytes arrive, under their names only when whole.

They are byte-identical to those that were pushed; or, where another format is asked for, what `pull_outputs` makes of them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tensorkeep.errors import AlreadyExists, InvalidInput, NotFound
from tensorkeep.records.history import VersionFacts
from tensorkeep.records.manifest import File, Manifest
from tensorkeep.store.context import StoreContext
from tensorkeep.store.copying import Copies
from tensorkeep.store.local_files import UnfinishedFile, check_path, open_unfinished, translate_os_error
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.pull_outputs import ConvertedFile, CopiedFile, MadeFile, Output, plan_conversion
from tensorkeep.store.reading import VersionReader, choose_verify
from tensorkeep.store.reports import ProgressCallback
from tensorkeep.store.saving import add_export, write_strided
from tensorkeep.store.structure import open_checks
from tensorkeep.transfer.report import LoadReport, Verify

FORMATS = ("safetensors",)


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull did: ``written_files`` are new or replaced, ``unchanged_files`` were there already, byte for byte.

    ``converted_files`` count those that are safetensors files now and were of another format. ``warnings`` say what came as
    it is all the same.
    """

    destination: str
    files: int
    bytes: int
    written_files: int
    unchanged_files: int
    load: LoadReport
    converted_files: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Target:
    """A file to write, and where its bytes go."""

    output: Output
    unfinished: UnfinishedFile


def pull_files(
    context: StoreContext,
    version: VersionFacts,
    manifest: Manifest,
    destination: Path,
    *,
    format_name: str | None,
    include: str | Sequence[str] | None,
    force: bool,
    verify: Verify | None,
    deadline_s: float | None,
    progress: ProgressCallback | None,
) -> PullReport:
    """Write a version's files under a folder; see `Store.pull`."""
    how = choose_verify(context, verify)
    if format_name is not None and format_name not in FORMATS:
        raise InvalidInput(f"{format_name!r} can't be written: use {', '.join(map(repr, FORMATS))}", format=format_name)
    check_path(destination)
    chosen = _select(manifest, include)
    targets: list[_Target] = []
    try:
        checks = open_checks(context, version, manifest)
        reader = VersionReader(context, version, manifest, checks, verify=how, deadline_s=deadline_s)
        outputs: list[Output] = [CopiedFile(file) for file in chosen]
        warnings: tuple[str, ...] = ()
        if format_name is not None:
            outputs, warnings = plan_conversion(manifest, chosen, reader)
        todo = _find_missing(outputs, destination, force=force)
        for output in todo:  # one by one, so that the files made before a failure are cleaned up
            targets.append(_open_target(context, output, destination))  # noqa: PERF401
        reader.progress = ByteProgress(progress, "pull", sum(output.needed_bytes for output in todo))
        _write(targets, reader)
        for target in targets:
            target.unfinished.publish(force=force, verb="pull")
    except OSError as error:
        raise translate_os_error(error, destination) from error
    finally:
        for target in targets:
            target.unfinished.discard()
    return PullReport(
        destination=str(destination),
        files=len(outputs),
        bytes=sum(output.size_bytes for output in outputs),
        written_files=len(todo),
        unchanged_files=len(outputs) - len(todo),
        load=reader.report(),
        converted_files=sum(isinstance(output, ConvertedFile) for output in outputs),
        warnings=warnings,
    )


def _select(manifest: Manifest, include: str | Sequence[str] | None) -> list[File]:
    if include is None:
        return list(manifest.files)
    globs = [include] if isinstance(include, str) else list(include)
    chosen = [file for file in manifest.files if any(fnmatchcase(file.path, glob) for glob in globs)]
    if not chosen:
        raise NotFound(f"no file fits {', '.join(map(repr, globs))}", include=globs)
    return chosen


def _find_missing(outputs: Sequence[Output], destination: Path, *, force: bool) -> list[Output]:
    """Return the files that are not there yet; one that differs is an error without ``force``."""
    if destination.exists() and not destination.is_dir():
        raise InvalidInput(f"{destination} is a file, not a folder: name another destination", path=str(destination))
    missing = []
    for output in outputs:
        path = destination / output.path
        if not os.path.lexists(path):
            missing.append(output)
        elif path.is_dir():
            raise AlreadyExists(f"{path} is a folder, {output.path} is a file: move it away", path=str(path))
        elif not output.is_at(path):
            if not force:
                raise AlreadyExists(f"{path} exists and differs: move it away, or pull with --force", path=str(path))
            missing.append(output)
    return missing


def _open_target(context: StoreContext, output: Output, destination: Path) -> _Target:
    path = destination / output.path
    # Before any folder is made: a link would have it made outside.
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(destination)):
        raise InvalidInput(f"{path} leads outside {destination} through a link: remove the link", path=str(path))
    return _Target(output, open_unfinished(path, output.size_bytes, context.runtime))


def _write(targets: Sequence[_Target], reader: VersionReader) -> None:
    """Write all bytes of all files: what is copied at once, then tensors that are laid out anew, file by file."""
    copies = Copies()
    for target in targets:
        output, unfinished = target.output, target.unfinished
        if isinstance(output, CopiedFile):
            copies.add(output.file, 0, output.file.size_bytes, unfinished, 0)
        elif isinstance(output, ConvertedFile):
            add_export(output.plan, unfinished, copies)
        elif isinstance(output, MadeFile):
            unfinished.write_at(memoryview(output.data), 0)
    copies.run(reader)
    for target in targets:
        if isinstance(target.output, ConvertedFile):
            write_strided(target.output.plan, target.unfinished, reader)
