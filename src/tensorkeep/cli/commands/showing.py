"""One version looked into: its facts, files, tensors, and the parameters that they have."""

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.command import SpecArgument
from tensorkeep.cli.metadata_table import metadata_table
from tensorkeep.cli.session import Session
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import human_count, human_number, human_size, parse_shape, parse_size, shape_text

if TYPE_CHECKING:
    from tensorkeep.store.reports import FileInfo, ParameterSummary, TensorInfo, Version


class Sort(StrEnum):
    """The order of tensors."""

    NAME = "name"
    SIZE = "size"


def show(
    session: Session,
    spec: SpecArgument,
    *,
    files: Annotated[bool, typer.Option("--files", help="List every file.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor, or those that fit.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="List the parameters of each layer.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="List what files say of themselves.")] = False,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="GLOB", help="Only tensors of such a name.", show_default=False),
    ] = None,
    dtypes: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="GLOB", help="Only of this dtype: BF16, 'GGUF:*'.", show_default=False),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="SHAPE", help="Only of this shape: '4096x*', scalar.", show_default=False),
    ] = None,
    in_layers: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="LAYER", help="Only of this layer: 0, 'model.layers.*'.", show_default=False),
    ] = None,
    min_size: Annotated[
        str | None, typer.Option("--min-size", metavar="SIZE", help="Only of this size or more.", show_default=False)
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="SIZE", help="Only of this size or less.", show_default=False)
    ] = None,
    sort: Annotated[
        Sort | None,
        typer.Option("--sort", help="Tensors by name, or the largest first. Default: as in files.", show_default=False),
    ] = None,
) -> None:
    """Show a version with its files, tensors and parameters.

    Options that say "only" may be given several times: one of them has to fit. They imply --tensors. --json always has
    everything but metadata, which is read only when asked for, and only the tensors that fit.
    """
    from tensorkeep.store.parameters import count_parameters
    from tensorkeep.store.selection import TensorFilter, select_tensors

    wanted = TensorFilter(
        names=names or (),
        dtypes=dtypes or (),
        shapes=[parse_shape(shape) for shape in shapes or ()],
        layers=in_layers or (),
        min_size_bytes=None if min_size is None else parse_size(min_size),
        max_size_bytes=None if max_size is None else parse_size(max_size),
    )
    with session.store() as store:
        model = store.model(spec)
        version, listed, every = model.version, list(model.files), list(model.tensors.values())
        told = model.metadata() if metadata else {}
    chosen = select_tensors(every, wanted, sort=sort)
    summary = count_parameters(chosen)

    def blocks() -> list[Block]:
        shown: list[Block] = [_version_facts(version, listed, len(every), summary if wanted.is_empty else None)]
        if not wanted.is_empty:
            shown.append(_selection_text(summary, len(every)))
        elif chosen and not tensors:
            shown.append(_dtype_table(summary))
        if layers:
            shown.append(_layer_table(summary))
        if files:
            shown.append(_file_table(listed))
        if metadata:
            shown.append(metadata_table(told))
        if tensors or sort or not wanted.is_empty:
            shown.append(_tensor_table(chosen, empty="no tensors" if wanted.is_empty else "no tensor fits"))
        return shown

    document = {
        "version": version,
        "files": listed,
        "tensors": chosen,
        "tensors_in_all": len(every),
        "summary": summary,
    }
    session.show(document | {"metadata": told} if metadata else document, blocks)


def _version_facts(
    version: "Version", files: "list[FileInfo]", tensors: int, summary: "ParameterSummary | None"
) -> Facts:
    counts = f"{human_count(len(files), 'file')}, {human_count(tensors, 'tensor')}, {human_size(version.total_bytes)}"
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
            ("holds", counts),
            ("parameters", _parameters_text(summary) if summary and summary.tensors else None),
        ]
    )


def _parameters_text(summary: "ParameterSummary") -> str:
    tied = f"; {summary.tied:,} tied, counted once" if summary.tied else ""
    return human_number(summary.parameters) + tied


def _selection_text(summary: "ParameterSummary", every: int) -> str:
    chosen = f"{summary.tensors:,} of {human_count(every, 'tensor')}"
    return f"{chosen}; parameters: {_parameters_text(summary)}; {human_size(summary.bytes)}"


def _dtype_table(summary: "ParameterSummary") -> Table:
    rows = [(d.dtype, f"{d.tensors:,}", f"{d.parameters:,}", human_size(d.bytes)) for d in summary.dtypes]
    return Table(("DTYPE", ">TENSORS", ">PARAMETERS", ">SIZE"), rows)


def _layer_table(summary: "ParameterSummary") -> Table:
    rows = [
        (
            "(no layer)" if row.layer is None else row.layer,
            f"{row.tensors:,}",
            f"{row.parameters:,}",
            human_size(row.bytes),
        )
        for row in summary.layers
    ]
    return Table(("LAYER", ">TENSORS", ">PARAMETERS", ">SIZE"), rows, empty="no layers")


def _file_table(files: "Iterable[FileInfo]") -> Table:
    rows = [(f.path, human_size(f.size_bytes), f.format, f"{f.tensors:,}", f.sha256[:12]) for f in files]
    return Table(("FILE", ">SIZE", "FORMAT", ">TENSORS", "SHA256"), rows)


def _tensor_table(tensors: "Iterable[TensorInfo]", *, empty: str) -> Table:
    rows = [(t.name, t.dtype, shape_text(t.shape), human_size(t.size_bytes), t.file) for t in tensors]
    return Table(("TENSOR", "DTYPE", "SHAPE", ">SIZE", "FILE"), rows, empty=empty)
