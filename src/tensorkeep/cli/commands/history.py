"""What is stored: models, versions, their files and tensors, their history, and what differs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.command import SpecArgument
from tensorkeep.cli.session import Session
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import human_count, human_size

if TYPE_CHECKING:
    from tensorkeep.store.reports import FileChange, LogEntry, TensorChange, TensorInfo, Version
    from tensorkeep.store.store import Store

_SIGNS = {"added": "+", "removed": "-", "changed": "~", "renamed": ">"}


def ls(
    session: Session,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="List this model's versions, branches and tags.", show_default=False),
    ] = None,
) -> None:
    """List models, or the versions of one."""
    if model is not None:
        _ls_model(session, model)
        return
    with session.store() as store:
        models = store.models()

    def blocks() -> list[Block]:
        rows = [
            (
                m.name,
                "" if m.bytes is None else human_size(m.bytes),
                f"{m.versions:,}",
                ", ".join(m.branches),
                ", ".join(m.tags),
                m.policy or "",
                when(m.updated_at),
            )
            for m in models
        ]
        headings = ("MODEL", ">SIZE", ">VERSIONS", "BRANCHES", "TAGS", "POLICY", "UPDATED (UTC)")
        return [Table(headings, rows, empty="no models; store one with: tensorkeep push PATH MODEL")]

    session.show({"models": models}, blocks)


def show(
    session: Session,
    spec: SpecArgument,
    *,
    files: Annotated[bool, typer.Option("--files", help="List every file.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
) -> None:
    """Show a version with its files and tensors.

    --json always has all of them.
    """
    with session.store() as store:
        model = store.model(spec)
        version, listed, named = model.version, list(model.files), list(model.tensors.values())

    def blocks() -> list[Block]:
        shown: list[Block] = [_version_facts(version, len(listed), len(named))]
        if named and not tensors:
            shown.append(_dtype_table(named))
        if files:
            rows = [(f.path, human_size(f.size_bytes), f.format, f"{f.tensors:,}", f.sha256[:12]) for f in listed]
            shown.append(Table(("FILE", ">SIZE", "FORMAT", ">TENSORS", "SHA256"), rows))
        if tensors:
            rows = [(t.name, t.dtype, shape_text(t.shape), human_size(t.size_bytes), t.file) for t in named]
            shown.append(Table(("TENSOR", "DTYPE", "SHAPE", ">SIZE", "FILE"), rows, empty="no tensors"))
        return shown

    session.show({"version": version, "files": listed, "tensors": named}, blocks)


def log(session: Session, spec: SpecArgument) -> None:
    """Show a branch's history, newest first.

    Versions that were removed since are named too.
    """
    with session.store() as store:
        entries = store.log(spec)

    def blocks() -> list[Block]:
        headings = ("VERSION", "CREATED (UTC)", "AUTHOR", ">SIZE", "NAMES", "MESSAGE")
        return [Table(headings, [_log_row(entry) for entry in entries], empty="no versions")]

    session.show({"entries": entries}, blocks)


def diff(
    session: Session,
    old: Annotated[str, typer.Argument(metavar="OLD", help="MODEL[@REV]")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="MODEL[@REV]")],
) -> None:
    """Show how two versions differ, in files and tensors.

    + added, - removed, ~ changed, > renamed. The exit code is 0 also where they differ.
    """
    with session.store() as store:
        found = store.diff(old, new)

    def blocks() -> list[Block]:
        if found.same:
            return ["no differences"]
        shown: list[Block] = []
        if found.files:
            shown.append(Table(("", "FILE", ">OLD SIZE", ">NEW SIZE"), [_file_row(change) for change in found.files]))
        if found.tensors:
            shown.append(
                Table(("", "TENSOR", "OLD", "NEW", ">SIZE"), [_tensor_row(change) for change in found.tensors])
            )
        return [*shown, f"{_counts(found.files, 'file')}; {_counts(found.tensors, 'tensor')}"]

    session.show(found, blocks)


def versions_of(store: "Store", model: str) -> "list[Version]":
    """Return all versions of a model, newest first: also those that no branch or tag reaches."""
    versions: dict[str, Version] = {}
    for row in store.du(model).rows:
        if row.version not in versions:  # a log holds ancestors too; it asks the catalog only, so devices may be down
            entries = store.log(f"{model}@{row.version}")
            versions |= {entry.id: entry.version for entry in entries if entry.version is not None}
    return sorted(versions.values(), key=lambda version: (version.created_at, version.id), reverse=True)


def when(time: str | None) -> str:
    """Return a stored time (ISO 8601, UTC) as tables have it, to the minute."""
    return "" if time is None else time[:16].replace("T", " ")


def shape_text(shape: Iterable[int] | None) -> str:
    """Return a shape like ``[32, 64]``; ``[]`` is a scalar's."""
    return "" if shape is None else "[" + ", ".join(str(size) for size in shape) + "]"


def _ls_model(session: Session, model: str) -> None:
    with session.store() as store:
        versions = versions_of(store, model)

    def blocks() -> list[Block]:
        rows = [
            (
                v.id[:12],
                when(v.created_at),
                human_size(v.total_bytes),
                ", ".join(v.branches),
                ", ".join(v.tags),
                v.message,
            )
            for v in versions
        ]
        return [Table(("VERSION", "CREATED (UTC)", ">SIZE", "BRANCHES", "TAGS", "MESSAGE"), rows, empty="no versions")]

    document = {
        "model": versions[0].model if versions else model,
        "versions": versions,
        "branches": {name: v.id for v in versions for name in v.branches},
        "tags": {name: v.id for v in versions for name in v.tags},
    }
    session.show(document, blocks)


def _version_facts(version: "Version", files: int, tensors: int) -> Facts:
    return Facts(
        [
            ("version", version.id),
            ("model", version.model),
            ("branches", ", ".join(version.branches) or None),
            ("tags", ", ".join(version.tags) or None),
            ("parent", version.parent),
            ("message", version.message or None),
            ("author", version.author),
            ("created", version.created_at[:19].replace("T", " ") + " UTC"),
            ("policy", version.policy),
            (
                "holds",
                f"{human_count(files, 'file')}, {human_count(tensors, 'tensor')}, {human_size(version.total_bytes)}",
            ),
        ]
    )


def _dtype_table(tensors: Iterable["TensorInfo"]) -> Table:
    sums: dict[str, tuple[int, int]] = {}
    for tensor in tensors:
        count, size = sums.get(tensor.dtype, (0, 0))
        sums[tensor.dtype] = (count + 1, size + tensor.size_bytes)
    rows = [(dtype, f"{count:,}", human_size(size)) for dtype, (count, size) in sorted(sums.items())]
    return Table(("DTYPE", ">TENSORS", ">SIZE"), rows)


def _log_row(entry: "LogEntry") -> tuple[str, ...]:
    version = entry.version
    if version is None:
        return entry.id[:12], "", "", "", "", "(removed)"
    refs = ", ".join([*version.branches, *(f"tag {tag}" for tag in version.tags)])
    return (
        entry.id[:12],
        when(version.created_at),
        version.author,
        human_size(version.total_bytes),
        refs,
        version.message,
    )


def _file_row(change: "FileChange") -> tuple[str, ...]:
    name = change.path if change.old_path is None else f"{change.old_path} -> {change.path}"
    old, new = ("" if size is None else human_size(size) for size in (change.old_size_bytes, change.size_bytes))
    return _SIGNS[change.kind], name, old, new


def _tensor_row(change: "TensorChange") -> tuple[str, ...]:
    name = change.name if change.old_name is None else f"{change.old_name} -> {change.name}"
    old = f"{change.old_dtype or ''} {shape_text(change.old_shape)}".strip()
    new = f"{change.dtype or ''} {shape_text(change.shape)}".strip()
    return _SIGNS[change.kind], name, old, new, human_size(change.size_bytes)


def _counts(changes: Iterable["FileChange | TensorChange"], noun: str) -> str:
    counts: dict[str, int] = {}
    for change in changes:
        counts[change.kind] = counts.get(change.kind, 0) + 1
    said = [f"{counts[kind]:,} {kind}" for kind in _SIGNS if kind in counts]
    return f"{noun}s: {', '.join(said) if said else 'no differences'}"
