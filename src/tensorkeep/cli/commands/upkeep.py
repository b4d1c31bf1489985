"""Is everything there, and how much room does it take."""

from typing import Annotated

import typer

from tensorkeep.cli.commands.devices import device_table
from tensorkeep.cli.documents import device_document, to_plain
from tensorkeep.cli.session import Session
from tensorkeep.cli.suggestions import suggest_specs
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import human_count, human_duration, human_rate, human_size
from tensorkeep.errors import ERROR_TABLE, Integrity

OptionalSpec = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL[@REV]]",
        help="Only this version. Default: the whole store.",
        show_default=False,
        autocompletion=suggest_specs,
    ),
]


def verify(session: Session, spec: OptionalSpec = None) -> None:
    """Read every copy of everything and check it.

    The exit code is 6 where anything is damaged, missing, unreachable or has too few copies.
    """
    with session.store() as store, session.progress() as progress:
        report = store.verify(spec, progress=progress)

    def blocks() -> list[Block]:
        rate = report.bytes / report.seconds if report.seconds else 0.0
        checked = f"{human_count(report.objects, 'object')}, {human_size(report.bytes)}"
        found: list[Block] = []
        if report.problems:
            rows = [
                (p.kind, p.device or "", p.object, ("LOST: no good copy; " if p.lost else "") + p.detail)
                for p in report.problems
            ]
            found.append(Table(("PROBLEM", "DEVICE", "OBJECT", "DETAIL"), rows))
        found.append(
            Facts(
                [
                    ("checked", checked),
                    ("time", f"{human_duration(report.seconds)}, {human_rate(rate)}"),
                    ("result", "all good" if report.ok else f"{human_count(len(report.problems), 'problem')} found"),
                ]
            )
        )
        return found

    session.show(report, blocks)
    if not report.ok:
        raise typer.Exit(ERROR_TABLE[Integrity.code].exit_code)


def du(session: Session, spec: OptionalSpec = None) -> None:
    """Show the space that versions and devices take.

    FILES is the size of a version's files, PARTS that of its parts, each once. Of these, SHARED are used by another version too,
    and ALONE by this one only: what gc frees once it is removed.
    """
    with session.store() as store:
        report = store.du(spec)

    def blocks() -> list[Block]:
        rows = [
            (
                r.model,
                r.version[:12],
                human_size(r.logical_bytes),
                human_size(r.part_bytes),
                human_size(r.shared_bytes),
                human_size(r.exclusive_bytes),
            )
            for r in report.rows
        ]
        devices = [(name, human_size(size)) for name, size in sorted(report.device_bytes.items())]
        return [
            Table(("MODEL", "VERSION", ">FILES", ">PARTS", ">SHARED", ">ALONE"), rows, empty="no versions"),
            Table(("DEVICE", ">STORED"), devices, empty="no devices"),
            Facts(
                [
                    ("files of all versions", human_size(report.logical_bytes)),
                    ("stored, all copies", human_size(report.stored_bytes)),
                ]
            ),
        ]

    session.show(report, blocks)


def status(session: Session) -> None:
    """Show the store at a glance.

    Devices, missing copies, warnings. The exit code is 0 also where something is wrong: verify checks.
    """
    with session.store() as store:
        report = store.status()
    document = to_plain(report) | {"devices": [device_document(device) for device in report.devices]}

    def blocks() -> list[Block]:
        shown: list[Block] = [
            Facts(
                [
                    ("store", report.location),
                    ("id", report.store),
                    ("policy", report.policy),
                    ("journal", f"epoch {report.epoch}, entry {report.journal_seq:,}"),
                    ("holds", f"{human_count(report.models, 'model')}, {human_count(report.versions, 'version')}"),
                    ("state", "all good" if report.ok else "needs attention"),
                ]
            ),
            device_table(report.devices),
        ]
        if report.short:
            rows = [(short.model, short.version[:12], f"{short.objects:,}") for short in report.short]
            shown.append(Table(("MODEL", "VERSION", ">OBJECTS SHORT OF COPIES"), rows))
        return shown

    session.show(document, blocks)
    for warning in report.warnings:
        session.warn(warning)
