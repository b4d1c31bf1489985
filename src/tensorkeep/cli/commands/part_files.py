"""A file into parts and back: no store is opened or made."""

from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.session import Session
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import human_count, human_duration, human_rate, human_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tensorkeep import JoinReport, SplitReport
    from tensorkeep.store.reports import FilePart


def split(
    session: Session,
    path: Annotated[str, typer.Argument(metavar="FILE", help="A file.")],
    *,
    parts: Annotated[int, typer.Option("--parts", metavar="N", help="How many parts to make.")],
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="DIR",
            help="A folder for parts, made where it is missing; given several times, the parts take turns. "
            "Default: beside FILE.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files of the same names.")] = False,
) -> None:
    """Split one file into N part files, without a store.

    The parts hold the file's bytes and nothing else. FILE.parts.json beside the file says where they are and what they must
    be, for `tensorkeep join`; each folder of parts gets a copy.
    """
    with session.progress() as progress:
        report = session.doors.split_file(path, parts=parts, to=to or None, force=force, progress=progress)
    session.show(report, lambda: _split_blocks(report))


def join(
    session: Session,
    index: Annotated[str, typer.Argument(metavar="INDEX", help="The index that split wrote: NAME.parts.json.")],
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="[OUT]", help="The file to make. Default: the old name, beside INDEX.", show_default=False
        ),
    ] = None,
    *,
    source: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="DIR", help="Look for parts here too; may be repeated.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
) -> None:
    """Make a file again from its parts, all verified.

    Parts are looked for where the index says, beside the index, and in each --from. What is missing, damaged or swapped is
    named, all of it at once, and then no file is made.
    """
    with session.progress() as progress:
        report = session.doors.join_file(index, out, sources=source or None, force=force, progress=progress)
    for warning in report.warnings:
        session.warn(warning)
    session.show(report, lambda: _join_blocks(report))


def _split_blocks(report: "SplitReport") -> list[Block]:
    facts = [
        ("split", f"{report.path}, {human_size(report.size_bytes)}, into {human_count(len(report.parts), 'part')}"),
        ("index", report.index),
        ("copies", ", ".join(report.copies) or None),
        ("sha256", report.sha256),
        ("time", f"{human_duration(report.seconds)}, {human_rate(report.rate_bytes_per_s)}"),
    ]
    return [Facts(facts), _table(report.parts)]


def _join_blocks(report: "JoinReport") -> list[Block]:
    facts = [
        ("joined", f"{report.path}, {human_size(report.size_bytes)}, from {human_count(len(report.parts), 'part')}"),
        ("index", report.index),
        ("sha256", report.sha256),
        ("time", f"{human_duration(report.seconds)}, {human_rate(report.rate_bytes_per_s)}"),
    ]
    return [Facts(facts), _table(report.parts)]


def _table(parts: "Sequence[FilePart]") -> Table:
    rows = [(str(part.number), human_size(part.size_bytes), part.blake3[:12], part.path) for part in parts]
    return Table((">PART", ">SIZE", "BLAKE3", "FILE"), rows)
