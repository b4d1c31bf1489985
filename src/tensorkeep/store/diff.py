"""What differs between two versions: files by SHA-256, tensors by digest, dtype, shape and strides; equal content moved is a rename."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from tensorkeep.errors import NotFound
from tensorkeep.records.manifest import Manifest, Tensor
from tensorkeep.store.names_of_tensors import tensors_by_name
from tensorkeep.store.reports import Diff, FileChange, TensorChange

_Row = TypeVar("_Row")


def diff_manifests(
    old_id: str, old: Manifest, new_id: str, new: Manifest, *, include: str | Sequence[str] | None = None
) -> Diff:
    """Return the changes that lead from one version to another, sorted by path and name.

    ``include``: only files and tensors whose path or name, the old or the new one, fits one of these globs.

    Raises:
        NotFound: no file and no tensor of either version fits.
    """
    files, tensors = _diff_files(old, new), _diff_tensors(old, new)
    if include is not None:
        globs = [include] if isinstance(include, str) else list(include)
        _check_include(globs, (old, new))
        files = [change for change in files if _fits(globs, (change.path, change.old_path))]
        tensors = [change for change in tensors if _fits(globs, (change.name, change.old_name))]
    return Diff(old_id, new_id, tuple(files), tuple(tensors))


def _check_include(globs: Sequence[str], manifests: Iterable[Manifest]) -> None:
    for manifest in manifests:
        if _fits(globs, (file.path for file in manifest.files)) or _fits(globs, tensors_by_name(manifest)):
            return
    named = ", ".join(map(repr, globs))
    raise NotFound(f"no file and no tensor of either version fits {named}", include=list(globs))


def _fits(globs: Sequence[str], names: Iterable[str | None]) -> bool:
    return any(name is not None and fnmatchcase(name, glob) for name in names for glob in globs)


def _diff_files(old: Manifest, new: Manifest) -> list[FileChange]:
    before = {file.path: file for file in old.files}
    after = {file.path: file for file in new.files}
    renamed = _find_renamed(before, after, lambda file: (file.sha256, file.size_bytes))
    changes = []
    for path in sorted({*before, *after}):
        was, now = before.get(path), after.get(path)
        if path in renamed.values():
            continue
        if path in renamed:
            source = before[renamed[path]]
            changes.append(FileChange("renamed", path, after[path].size_bytes, source.size_bytes, source.path))
        elif was is None and now is not None:
            changes.append(FileChange("added", path, now.size_bytes, None))
        elif now is None and was is not None:
            changes.append(FileChange("removed", path, None, was.size_bytes))
        elif was is not None and now is not None and was.sha256 != now.sha256:
            changes.append(FileChange("changed", path, now.size_bytes, was.size_bytes))
    return changes


def _diff_tensors(old: Manifest, new: Manifest) -> list[TensorChange]:
    before = {name: tensor for name, (_, tensor) in tensors_by_name(old).items()}
    after = {name: tensor for name, (_, tensor) in tensors_by_name(new).items()}
    renamed = _find_renamed(before, after, _content)
    changes = []
    for name in sorted({*before, *after}):
        if name in renamed.values():
            continue
        was = before.get(renamed.get(name, name))
        now = after.get(name)
        if name in renamed:
            changes.append(_tensor_change("renamed", name, was, now, old_name=renamed[name]))
        elif was is None:
            changes.append(_tensor_change("added", name, was, now))
        elif now is None:
            changes.append(_tensor_change("removed", name, was, now))
        elif _content(was) != _content(now):
            changes.append(_tensor_change("changed", name, was, now))
    return changes


def _content(tensor: Tensor) -> tuple[object, ...]:
    # With other strides the same bytes are other values: a square matrix and its transpose.
    return tensor.dtype, tensor.shape, tensor.strides, tensor.digest


def _find_renamed(before: Mapping[str, _Row], after: Mapping[str, _Row], content: Any) -> dict[str, str]:
    """Return new name → old name of rows whose content is the same under a name that the other side lacks."""
    gone: dict[Any, list[str]] = {}
    for name in sorted(before.keys() - after.keys(), reverse=True):
        gone.setdefault(content(before[name]), []).append(name)
    renamed = {}
    for name in sorted(after.keys() - before.keys()):
        names = gone.get(content(after[name]))
        if names:
            renamed[name] = names.pop()
    return renamed


def _tensor_change(
    kind: Any, name: str, was: Tensor | None, now: Tensor | None, *, old_name: str | None = None
) -> TensorChange:
    either = now or was
    assert either is not None
    return TensorChange(
        kind=kind,
        name=name,
        dtype=now.dtype if now else None,
        shape=now.shape if now else None,
        old_dtype=was.dtype if was else None,
        old_shape=was.shape if was else None,
        size_bytes=either.length,
        old_name=old_name,
    )
