"""One version looked into: its facts, files and tensors."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.command import SpecArgument
from tensorkeep.cli.session import Session
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import human_count, human_size, shape_text

if TYPE_CHECKING:
    from tensorkeep.store.reports import TensorInfo, Version


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
