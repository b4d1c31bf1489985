"""Removing versions and models, and freeing what nothing uses any more."""

from typing import Annotated

import typer

from tensorkeep.cli.command import YesOption
from tensorkeep.cli.session import Session
from tensorkeep.cli.suggestions import suggest_specs
from tensorkeep.cli.tables import Block, Facts
from tensorkeep.cli.units import human_count, human_size, parse_duration
from tensorkeep.errors import InvalidInput
from tensorkeep.records.names import parse_revision


def rm(
    session: Session,
    spec: Annotated[
        str,
        typer.Argument(metavar="MODEL@REV", help="A version; or a model, with --all.", autocompletion=suggest_specs),
    ],
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Remove the model, with all its versions, branches and tags.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Remove a version, or a whole model with --all.

    A version that a branch or tag points at is not removed. The bytes are freed by gc. --all asks first.
    """
    revision = parse_revision(spec)
    if not every and revision.revision is None:
        raise InvalidInput(
            f"{spec!r} names no version: write {spec}@REV, or --all to remove the whole model", spec=spec
        )
    if every and revision.revision is not None:
        raise InvalidInput(f"--all removes a whole model, but {spec!r} names a version: leave one out", spec=spec)
    if every:
        _rm_model(session, spec, yes=yes)
        return
    with session.store() as store:
        version = store.rm(spec)
    document = {"model": version.model, "version": version.id, "versions_removed": 1}
    session.show(document, lambda: [f"removed {version.model}@{version.id[:12]}; gc frees what nothing else uses"])


def gc(
    session: Session,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    grace: Annotated[
        str, typer.Option("--grace", metavar="TIME", help="Keep what was given up less than this ago.")
    ] = "24h",
    max_fraction: Annotated[
        float,
        typer.Option(
            "--max-fraction",
            metavar="F",
            help="Refuse to give up more than this of all bytes or versions.",
            min=0.0,
            max=1.0,
        ),
    ] = 0.5,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Give up as much as is unused.")] = False,
) -> None:
    """Free what no version uses.

    First the versions go that `tensorkeep retain` lets go, with tags that it does not protect. What is unused then is given up
    at once, and deleted by the first gc after the grace. --grace 0 deletes at once; it is safe.
    More than half of all that is stored, or of all versions, is given up only with --yes: it is more often a mistake than meant.
    """
    with session.store() as store:
        report = store.gc(
            dry_run=dry_run,
            grace_s=parse_duration(grace, what="grace"),
            max_fraction=None if yes else max_fraction,
        )
    for device in report.unreachable:
        session.warn(f"device {device} could not be reached: what is to be deleted there waits", device=device)

    def amount(objects: int, size: int) -> str:
        return f"{human_count(objects, 'object')}, {human_size(size)}"

    def blocks() -> list[Block]:
        would = "would be " if report.dry_run else ""
        return [
            Facts(
                [
                    *([("versions", f"{report.expired:,} {would}removed by retention")] if report.expired else []),
                    (f"{would}given up", amount(report.condemned, report.condemned_bytes)),
                    (f"{would}deleted", amount(report.deleted, report.deleted_bytes)),
                    ("waiting", amount(report.waiting, report.waiting_bytes)),
                    ("unfinished writes", f"{report.swept_unfinished:,} {would}swept"),
                    ("objects unknown", f"{report.swept_orphans:,} {would}swept"),
                    ("grace", grace),
                ]
            )
        ]

    session.show(report, blocks)


def _rm_model(session: Session, model: str, *, yes: bool) -> None:
    if not session.confirm(f"Remove the model {model} with all its versions, branches and tags?", yes=yes):
        typer.echo("nothing was removed", err=True)
        raise typer.Exit(1)
    with session.store() as store:
        count = store.rm_model(model)
    name = str(parse_revision(model).model)
    session.show(
        {"model": name, "version": None, "versions_removed": count},
        lambda: [f"removed {name} with {human_count(count, 'version')}; gc frees what nothing else uses"],
    )
