"""What is stored: models and their versions, their history, and what differs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.command import SpecArgument
from tensorkeep.cli.session import Session
from tensorkeep.cli.suggestions import suggest_models, suggest_specs
from tensorkeep.cli.tables import Block, Table
from tensorkeep.cli.units import human_count, human_size, shape_text

if TYPE_CHECKING:
    from tensorkeep.store.reports import FileChange, LogEntry, TensorChange, TensorStats, Version
    from tensorkeep.store.store import Store

_SIGNS = {"added": "+", "removed": "-", "changed": "~", "renamed": ">"}


def ls(
    session: Session,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="List this model's versions, branches and tags.",
            show_default=False,
            autocompletion=suggest_models,
        ),
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
    old: Annotated[str, typer.Argument(metavar="OLD", help="MODEL[@REV]", autocompletion=suggest_specs)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="MODEL[@REV]", autocompletion=suggest_specs)],
    *,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read the changed tensors and measure how far their values moved.")
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Only these files and tensors; several.", show_default=False),
    ] = None,
) -> None:
    """Show how two versions differ, in files and tensors.

    + added, - removed, ~ changed, > renamed. The exit code is 0 also where they differ. With --stats: the largest absolute
    difference of a tensor's values, the L2 norm of the differences, and how many elements changed.
    """
    with session.store() as store, session.progress() as progress:
        found = store.diff(old, new, stats=stats, include=include or None, progress=progress)

    def blocks() -> list[Block]:
        if found.same:
            return ["no differences"]
        shown: list[Block] = []
        if found.files:
            shown.append(Table(("", "FILE", ">OLD SIZE", ">NEW SIZE"), [_file_row(change) for change in found.files]))
        if found.tensors:
            headings = ("", "TENSOR", "OLD", "NEW", ">SIZE")
            more = (">MAX CHANGE", ">L2 OF CHANGE", ">CHANGED", "NOTE") if stats else ()
            rows = [(*_tensor_row(change), *(_stats_row(change.stats) if stats else ())) for change in found.tensors]
            shown.append(Table((*headings, *more), rows))
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


def _stats_row(stats: "TensorStats | None") -> tuple[str, ...]:
    if stats is None:
        return "", "", "", ""
    note = stats.note
    if stats.not_finite:
        left_out = f"{human_count(stats.not_finite, 'element')} NaN or infinite, left out of the first two"
        note = f"{note}; {left_out}" if note else left_out
    return _number(stats.max_change), _number(stats.l2_change), _percent(stats), note


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) and abs(value) < 10**9 else f"{value:.4g}"


def _percent(stats: "TensorStats") -> str:
    """Return how much changed, in percent; never 0 % nor 100 % of what is not none or all."""
    if stats.changed_fraction is None:
        return "-"
    if stats.changed in (0, stats.compared):
        return "100 %" if stats.changed else "0 %"
    percent = 100 * stats.changed_fraction
    return "< 0.01 %" if percent < 0.01 else "> 99.99 %" if percent > 99.99 else f"{percent:.2f} %"


def _counts(changes: Iterable["FileChange | TensorChange"], noun: str) -> str:
    counts: dict[str, int] = {}
    for change in changes:
        counts[change.kind] = counts.get(change.kind, 0) + 1
    said = [f"{counts[kind]:,} {kind}" for kind in _SIGNS if kind in counts]
    return f"{noun}s: {', '.join(said) if said else 'no differences'}"
