"""Which versions of a model stay."""

from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.commands.history import when
from tensorkeep.cli.session import Session
from tensorkeep.cli.suggestions import suggest_models
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import human_count, human_size
from tensorkeep.errors import InvalidInput
from tensorkeep.records.retention import EVERY_TAG

if TYPE_CHECKING:
    from tensorkeep.store.reports import RetentionReport


def retain(
    session: Session,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model.", show_default=False, autocompletion=suggest_models)
    ],
    *,
    last: Annotated[
        int | None,
        typer.Option("--last", metavar="N", min=1, help="Keep N versions of each branch.", show_default=False),
    ] = None,
    days: Annotated[
        int | None,
        typer.Option("--days", metavar="D", min=1, help="Keep what was pushed in D days.", show_default=False),
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(
            "--protect", metavar="GLOB", help="Keep versions with such a tag. Default: with any.", show_default=False
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Keep every version, as at first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which versions would go.")] = False,
) -> None:
    """Show or change which versions of a model stay.

    Without options it shows what stays, and which versions go with the next gc. A version stays that any of --last, --days and
    --protect keeps, and the head of each branch does anyway. The others are removed by gc, with the tags that --protect
    leaves out.
    """
    if all_ and (last is not None or days is not None or protect):
        raise InvalidInput("--all keeps every version: leave --last, --days and --protect out")
    if not all_ and last is None and days is None and (protect or dry_run):
        raise InvalidInput("give --last, --days or both: which versions are to stay")
    with session.store() as store:
        if all_ or last is not None or days is not None:
            report = store.retain(model, last=last, days=days, protect=protect or EVERY_TAG, dry_run=dry_run)
        else:
            report = store.retention(model)
    session.show(report, lambda: _blocks(report))


def _blocks(report: "RetentionReport") -> list[Block]:
    old, new = report.old or "every version", report.new or "every version"
    stays = new if old == new else f"{old} → {new}"
    rows = [
        (
            version.id[:12],
            when(version.created_at),
            human_size(version.total_bytes),
            ", ".join(version.tags),
            version.message,
        )
        for version in report.expired
    ]
    going = f"{human_count(len(report.expired), 'version')} of {report.versions:,}"
    return [
        Facts([("model", report.model), ("would stay" if report.dry_run and old != new else "stays", stays)]),
        Facts([("go with the next gc", going)]),
        Table(("VERSION", "CREATED (UTC)", ">SIZE", "TAGS", "MESSAGE"), rows, empty="none goes"),
    ]
