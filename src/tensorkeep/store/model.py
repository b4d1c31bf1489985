"""A version opened for reading: its structure, and its tensors loaded from all devices at once, every block verified."""

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tensorkeep.errors import InvalidInput, NotFound
from tensorkeep.formats.registry import read_metadata
from tensorkeep.planning.export_folder import is_unknown_shard, may_be_model
from tensorkeep.planning.load_order import load_order
from tensorkeep.planning.shards import Shard
from tensorkeep.records.checks import Checks
from tensorkeep.records.history import VersionFacts
from tensorkeep.records.manifest import File, Manifest, Tensor
from tensorkeep.runtime import Cancellation, collection_paused
from tensorkeep.store.context import StoreContext
from tensorkeep.store.filling import fill_arrays
from tensorkeep.store.frameworks import Framework, get_framework
from tensorkeep.store.loading import Mode, Wanted, choose_parts, load_tensors, plan_tensors
from tensorkeep.store.names_of_tensors import find_tensor, tensors_by_name
from tensorkeep.store.progress import ByteProgress, progress_callback
from tensorkeep.store.reading import DEFAULT_MEMORY_LIMIT_BYTES, VersionReader, choose_verify
from tensorkeep.store.reports import FileInfo, PrefetchReport, ProgressCallback, TensorInfo, Version
from tensorkeep.store.saving import SaveReport, save_tensors
from tensorkeep.store.stored_source import StoredSource
from tensorkeep.store.streaming import TensorStream
from tensorkeep.store.structure import open_checks
from tensorkeep.store.tensor_handle import TensorHandle
from tensorkeep.transfer.boxes import Box
from tensorkeep.transfer.report import LoadPlan, LoadReport, Verify


class Model:
    """One version of a model. Opening it reads the manifest only; tensors are read when asked for.

    Attributes:
        name: ``namespace/name``.
        version: the version, as users see it.
        manifest: its structure.
        tensors: name → `TensorInfo`; where names collide between files also ``path::name``.
        report: the `LoadReport` of the last load, None before.
    """

    def __init__(
        self, context: StoreContext, name: str, version: Version, facts: VersionFacts, manifest: Manifest
    ) -> None:
        self.name = name
        self.version = version
        self.manifest = manifest
        self.report: LoadReport | None = None
        self._context = context
        self._facts = facts
        self._checks: Checks | None = None
        with collection_paused():
            self._named = tensors_by_name(manifest)

    @property
    def files(self) -> list[FileInfo]:
        """The files of the version, by path."""
        return [FileInfo(f.path, f.size_bytes, f.format, f.sha256, len(f.tensors)) for f in self.manifest.files]

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors of the version, by name."""
        return _TensorMap(self.manifest, self._named)

    @property
    def unknown_shards(self) -> list[str]:
        """Paths of files that are pieces of a model, by their names, and whose tensors are not known: a load is without them."""
        return [file.path for file in self.manifest.files if is_unknown_shard(file)]

    def metadata(self, path: str | None = None) -> dict[str, dict[str, Any]]:
        """Return what files say of themselves, by path: texts, numbers, booleans and lists of them, in each file's order.

        Only headers are read, verified: ``__metadata__`` of safetensors, all keys of GGUF. Files of formats without metadata
        are left out; ``path`` asks for one file, whose metadata is then empty.

        Raises:
            NotFound: there is no file of that path.
            Format: a file has more metadata than is read.
            Integrity: bytes of a header are damaged on every device that has them.
            NotEnoughCopies: no device that has a header can be read.
        """
        files = [file for file in self.manifest.files if path in (None, file.path)]
        if not files and path is not None:
            raise NotFound(f"{self.name} has no file {path!r}: `tensorkeep show --files` lists them", path=path)
        reader = self._reader(None, None)
        found = {file.path: read_metadata(file.path, file.format, StoredSource(file, reader)) for file in files}
        return {name: dict(keys or {}) for name, keys in found.items() if keys is not None or path is not None}

    def load(
        self,
        *,
        framework: str = "numpy",
        device: str | None = None,
        include: str | Sequence[str] | None = None,
        shard: Shard | None = None,
        verify: Verify | None = None,
        mode: Mode = "auto",
        into: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
        memory_limit: int | None = None,
        progress: bool | ProgressCallback | None = None,
    ) -> dict[str, Any]:
        """Return arrays by tensor name, read from all devices at once.

        Args:
            framework: ``numpy``, ``torch``, or one that a package registered.
            device: where the framework puts the arrays, such as ``cuda:0``; None is the CPU.
            include: a glob, or several, over tensor names; None is all.
            shard: the part of the model that this process wants: its tensors only, and of those that are cut only its rank's run,
                in an array of that run's shape. None is all.
            verify: ``blocks`` (XXH3 of every block, the default), ``digest`` (BLAKE3 of whole parts; the default where a
                device is marked untrusted), or ``off``.
            mode: ``auto``: arrays on the CPU lie over the files of their parts where these are on file systems of this machine and
                cuts suit it, verified like all others; the pages are shared by all processes that load them, and what is
                written to an array stays in this process. A file that is truncated later, or a disk that fails, ends the
                process when the array is touched. ``read``, and ``digest``: every array is in memory of its own.
            into: arrays to fill, by tensor name: numpy arrays of any strides, or tensors of a framework, such as a module's
                ``state_dict()``. They say what is loaded, and where it lies, so ``include``, ``shard``, ``framework``,
                ``device`` and ``mode`` are left out; the same arrays are returned. After an error their content is undefined.
            deadline_s: seconds after which the load fails instead of waiting.
            memory_limit: most bytes of buffers beside the arrays.
            progress: True for a line on standard error, or a callable.

        Raises:
            NotFound: no tensor fits ``include``, or none of those that do belongs to the shard; or there is none of a name in ``into``.
            InvalidInput: a tensor can't be cut as the shard asks, the message says what to do; or an array of ``into`` has not the
                dtype and shape of its tensor. Nothing is read then.
            Integrity: bytes are damaged on every device that has them; nothing is returned.
            NotEnoughCopies: no device that has some bytes can be read.
            Unavailable: the deadline passed.
        """
        reader = self._reader(verify, deadline_s, memory_limit)
        reader.fills_cache, reader.fill_progress = True, progress_callback(progress)
        if into is not None:
            if include is not None or shard is not None or (framework, device, mode) != ("numpy", None, "auto"):
                raise InvalidInput("the arrays of `into` say what is loaded and where: leave the other arguments out")
            named = {name: self._find(name) for name in into}
            fill_arrays(into, named, reader, progress=progress)
            loaded = dict(into)
        else:
            wanted = self._choose(include, shard)
            loaded = load_tensors(wanted, reader, framework=framework, device=device, mode=mode, progress=progress)
        self.report = reader.report()
        return loaded

    def stream(
        self,
        *,
        framework: str = "numpy",
        device: str | None = None,
        include: str | Sequence[str] | None = None,
        verify: Verify | None = None,
        deadline_s: float | None = None,
        memory_limit: int | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Return an iterator over names and arrays, each yielded as soon as it is whole and verified while later ones are read.

        Tensors are read in the order of ``include``'s patterns, and where one fits several in that of use
        (`planning.load_order`): layer by layer. Those that are read together come as they are whole. Every array is in memory of its own, the caller's: what is dropped is
        freed once what is read together with it is whole. To close the iterator early ends the reading; `report` is set when it ends.

        Args:
            framework: as in `load`.
            device: as in `load`.
            include: as in `load`.
            verify: as in `load`.
            deadline_s: seconds of reading after which it fails instead of waiting.
            memory_limit: most bytes of arrays that are read ahead, and of buffers beside them; one tensor is always read.

        Raises:
            NotFound, InvalidInput: at once, as `load` does.
            Integrity, NotEnoughCopies, Unavailable: in ``next``, once what was whole before has been yielded.
        """
        made = get_framework(framework)
        tensors = self._select(include)
        names = load_order(list(tensors))
        if include is not None:
            globs = [include] if isinstance(include, str) else list(include)
            names.sort(key=lambda name: _first_fit(name, globs))
        chosen = {name: tensors[name] for name in names}
        reader = self._reader(verify, deadline_s, memory_limit)
        reader.fills_cache = True
        return self._stream(chosen, reader, made, device, memory_limit)

    def _stream(
        self,
        tensors: Mapping[str, tuple[File, Tensor]],
        reader: VersionReader,
        made: Framework,
        device: str | None,
        memory_limit: int | None,
    ) -> Iterator[tuple[str, Any]]:
        limit = memory_limit or DEFAULT_MEMORY_LIMIT_BYTES
        try:
            with self._context.runtime.workers.open_pool(1, "stream") as pool, Cancellation() as stop:
                yield from TensorStream(tensors, reader, pool, made=made, device=device, waiting_bytes=limit, stop=stop)
        finally:
            self.report = reader.report()

    def prefetch(
        self,
        *,
        include: str | Sequence[str] | None = None,
        shard: Shard | None = None,
        progress: bool | ProgressCallback | None = None,
    ) -> PrefetchReport:
        """Bring the parts that a load would read across a network into this machine's cache (`store.node_config`), verified.

        Parts come whole. What is in the cache already is not read again. Later loads of any process read, or map, what is there. Returns what was done; bytes
        that found no room, or that another process was too slow to fetch, are ``left_out_bytes``.

        Args:
            include: as in `load`.
            shard: as in `load`.
            progress: True for a line on standard error, or a callable.

        Raises:
            InvalidInput: the machine has no cache, or a tensor can't be cut as the shard asks.
            NotFound: no tensor fits ``include``, or none of those that do belongs to the shard.
            Integrity: bytes are damaged on every device that has them; what came before stays in the cache.
            NotEnoughCopies: no device that has some bytes can be read; as before.
            Capacity, PermissionDenied, Unavailable: the folder can't be written.
        """
        cache = self._context.node_cache
        if cache is None:
            raise InvalidInput(
                "this machine has no cache: name a folder in ~/.config/tensorkeep/node.toml, under [cache], "
                'as folder = "/nvme/tensorkeep-cache"'
            )
        wanted = self._choose(include, shard)
        reader = self._reader(None, None)
        report = reader.prefetch(
            [(each.file, each.part.tensor) for each in wanted.values()], cache, progress_callback(progress)
        )
        self.report = report.load
        return report

    def plan_load(
        self,
        *,
        include: str | Sequence[str] | None = None,
        shard: Shard | None = None,
        verify: Verify | None = None,
        memory_limit: int | None = None,
    ) -> LoadPlan:
        """Return what a load would read, in all and of each device, and how long it would take; no byte of a tensor is read.

        Args:
            include: as in `load`.
            shard: as in `load`.
            verify: as in `load`: whole blocks are read for ``blocks``, whole parts for ``digest``.
            memory_limit: as in `load`.

        Raises:
            NotFound: no tensor fits ``include``, or none of those that do belongs to the shard.
            InvalidInput: a tensor can't be cut as the shard asks; the message says what to do.
        """
        return plan_tensors(self._choose(include, shard), self._reader(verify, None, memory_limit))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        include: str | Sequence[str] | None = None,
        verify: Verify | None = None,
        force: bool = False,
        deadline_s: float | None = None,
        progress: bool | ProgressCallback | None = None,
    ) -> SaveReport:
        """Write tensors as one safetensors file, which appears under its name only when it is whole.

        Names, dtypes and bytes are kept; strided tensors are written in C order. Names of one and the same tensor (a tie)
        are written once, and the others noted in the metadata as ``safetensors.torch.save_model`` does. Memory is bounded,
        whatever the size.

        Args:
            path: the file; its folders are made.
            include: as in `load`.
            verify: as in `load`.
            force: replace a file that is there.
            deadline_s: seconds of reading after which it fails instead of waiting.
            progress: True for a line on standard error, or a callable.

        Raises:
            NotFound: no tensor fits ``include``.
            InvalidInput: safetensors can't hold a tensor's dtype, two tensors of different files have one name, or the header
                would be over the format's limit; nothing is written.
            AlreadyExists: there is such a file.
            Integrity: bytes are damaged on every device that has them.
            NotEnoughCopies: no device that has some bytes can be read.
        """
        reader = self._reader(verify, deadline_s)
        chosen = list(self._select(include).values())
        report = save_tensors(
            chosen,
            Path(path),
            reader,
            self._context.runtime,
            unknown=[file for file in self.manifest.files if include is None and may_be_model(file)],
            force=force,
            progress=progress_callback(progress),
        )
        self.report = report.load
        return report

    def read_boxes(
        self,
        boxes: Sequence[Box],
        *,
        verify: Verify | None = None,
        deadline_s: float | None = None,
        memory_limit_bytes: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> LoadReport:
        """Fill the destinations of boxes, verified, and return the report: the one call that every load ends in.

        Raises:
            Integrity: bytes are damaged on every device that has them.
            NotEnoughCopies: no device that has some bytes can be read.
        """
        reader = self._reader(verify, deadline_s, memory_limit_bytes)
        reader.progress = ByteProgress(progress, "load", sum(box.destination.nbytes for box in boxes))
        reader.read_boxes(boxes)
        self.report = reader.report()
        return self.report

    def __getitem__(self, name: str) -> TensorHandle:
        """Return a handle on one tensor; slicing it reads those rows.

        Raises:
            NotFound: there is no tensor of that name.
        """
        return TensorHandle(*self._find(name), self.read_boxes)

    def _find(self, name: str) -> tuple[File, Tensor]:
        found = find_tensor(self.manifest, self._named, name)
        if found is None:
            raise NotFound(f"{self.name} has no tensor {name!r}: `tensorkeep show --tensors` lists them", tensor=name)
        return found

    def _open_checks(self) -> Checks:
        if self._checks is None:
            self._checks = open_checks(self._context, self._facts, self.manifest)
        return self._checks

    def _reader(
        self, verify: Verify | None, deadline_s: float | None, memory_limit_bytes: int | None = None
    ) -> VersionReader:
        return VersionReader(
            self._context,
            self._facts,
            self.manifest,
            self._open_checks(),
            verify=choose_verify(self._context, verify),
            deadline_s=deadline_s,
            memory_limit_bytes=memory_limit_bytes,
        )

    def _choose(self, include: str | Sequence[str] | None, shard: Shard | None) -> dict[str, Wanted]:
        with collection_paused():
            wanted = choose_parts(self._select(include), shard)
        if shard is not None and not wanted:
            raise NotFound(f"no tensor of {self.name} belongs to {shard}: `tensorkeep show --layers` lists its layers")
        return wanted

    def _select(self, include: str | Sequence[str] | None) -> dict[str, tuple[File, Tensor]]:
        if include is None:
            return self._named
        globs = [include] if isinstance(include, str) else list(include)
        chosen = {n: found for n, found in self._named.items() if any(fnmatchcase(n, glob) for glob in globs)}
        for glob in globs:
            if glob not in chosen and (found := find_tensor(self.manifest, self._named, glob)):
                chosen[glob] = found
        if not chosen:
            raise NotFound(f"no tensor of {self.name} fits {', '.join(map(repr, globs))}", include=globs)
        return chosen


def _first_fit(name: str, globs: Sequence[str]) -> int:
    """Return which of the patterns a name fits first; those that were asked for in another way come last."""
    return next((number for number, glob in enumerate(globs) if glob == name or fnmatchcase(name, glob)), len(globs))


class _TensorMap(Mapping[str, TensorInfo]):
    def __init__(self, manifest: Manifest, named: Mapping[str, tuple[File, Tensor]]) -> None:
        self._manifest = manifest
        self._named = named

    def __getitem__(self, name: str) -> TensorInfo:
        found = find_tensor(self._manifest, self._named, name)
        if found is None:
            raise NotFound(f"no tensor {name!r}", tensor=name)
        file, tensor = found
        return TensorInfo(name, tensor.dtype, tensor.shape, tensor.length, file.path, tensor.start, tensor.digest)

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)
