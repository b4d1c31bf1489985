"""Split: one file becomes N part files and an index, in one pass over it.

Parts are durable before they get their names, and all have them before the index has its own: a split that was killed
leaves nothing that a join takes for a whole file.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tensorkeep.errors import InvalidInput
from tensorkeep.records.parts_index import encode_index
from tensorkeep.runtime import Runtime
from tensorkeep.store.local_files import UnfinishedFile, sync_folder
from tensorkeep.store.new_files import NewFiles
from tensorkeep.store.progress import ByteProgress, progress_callback
from tensorkeep.store.reports import FilePart, ProgressCallback
from tensorkeep.store.split_layout import Digests, SplitLayout, check_count, check_different, check_folders
from tensorkeep.store.split_pass import SplitPass
from tensorkeep.store.steady_file import SteadyFile

_VERB = "split"


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
        layout = SplitLayout(place, source.size_bytes, parts, check_folders(to))
        layout.check_index()
        for folder in layout.folders:
            files.make_folder(folder.path)
        check_different([folder.path for folder in layout.folders])
        files.check_free([*layout.part_paths, *layout.copy_paths, layout.index_path], force=force)
        made = [files.create(target, size) for target, (_, size) in zip(layout.part_paths, layout.cuts, strict=True)]
        runtime.failpoints.hit("split.reserved")
        counter = ByteProgress(progress_callback(progress), _VERB, source.size_bytes)
        whole, digests = SplitPass(source, layout, made, progress=counter, runtime=runtime).run()
        source.check_unchanged()
        _publish_parts(files, layout, made, force=force, runtime=runtime)
        _publish_indexes(files, layout, whole, digests, force=force, runtime=runtime)
        files.keep()
    return SplitReport(
        path=place,
        index=layout.index_path,
        copies=tuple(layout.copy_paths),
        size_bytes=layout.size_bytes,
        blake3=whole.blake3,
        sha256=whole.sha256,
        parts=tuple(
            FilePart(number, target, start, size, *part)
            for number, (target, (start, size), part) in enumerate(
                zip(layout.part_paths, layout.cuts, digests, strict=True), 1
            )
        ),
        seconds=runtime.clock.monotonic_s() - began_s,
    )


def _publish_parts(
    files: NewFiles, layout: SplitLayout, made: Sequence[UnfinishedFile], *, force: bool, runtime: Runtime
) -> None:
    """Give the parts their names, durably."""
    for file in made:
        files.publish(file, force=force)
        runtime.failpoints.hit("split.part_published")
    for folder in layout.folders:
        sync_folder(Path(folder.path))
    files.sync_new_folders()
    runtime.failpoints.hit("split.parts_durable")


def _publish_indexes(
    files: NewFiles, layout: SplitLayout, whole: Digests, parts: Sequence[Digests], *, force: bool, runtime: Runtime
) -> None:
    """Write the copies of the index, each as it stands in its folder, and the index beside the file last."""
    for path in layout.copy_paths:
        copy = layout.index(whole, parts, folder=os.path.dirname(path))
        _publish_index(files, path, encode_index(copy), force=force)
        runtime.failpoints.hit("split.copy_published")
    index = layout.index(whole, parts, folder=layout.home)
    _publish_index(files, layout.index_path, encode_index(index), force=force)
    runtime.failpoints.hit("split.index_published")


def _publish_index(files: NewFiles, path: str, data: bytes, *, force: bool) -> None:
    file = files.create(path, len(data))
    file.write_at(memoryview(data), 0)
    file.sync()
    files.publish(file, force=force)
    sync_folder(file.path.parent)
