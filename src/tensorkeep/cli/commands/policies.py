"""How many losses of devices models survive, and in which form."""

from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.copying import RateLimitOption, parse_limit
from tensorkeep.cli.session import Session
from tensorkeep.cli.suggestions import suggest_models
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import human_count, human_duration, human_size
from tensorkeep.errors import ERROR_TABLE, InvalidInput, NotEnoughCopies, NotFound
from tensorkeep.records.names import parse_model_name

if TYPE_CHECKING:
    from tensorkeep.store.reports import PolicyReport


def policy(
    session: Session,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="This model, its versions included. Default: the store's policy.",
            show_default=False,
            autocompletion=suggest_models,
        ),
    ] = None,
    *,
    replicas: Annotated[
        int | None, typer.Option("--replicas", metavar="N", min=1, help="Keep N copies.", show_default=False)
    ] = None,
    ec: Annotated[
        str | None,
        typer.Option("--ec", metavar="K+M", help="Keep K data and M parity fragments.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    rate_limit: RateLimitOption = None,
) -> None:
    """Show or change what models owe.

    Without --replicas and --ec it lists the policies. With one of them a model's versions owe that from now on: their parts are
    written in the new form and read back, then copies of the old one are given up, which gc deletes after its grace. Without MODEL
    it is what models without a policy of their own get by later pushes. Killed, it goes on when it is run again.
    """
    if replicas is None and ec is None:
        if dry_run or rate_limit is not None:
            raise InvalidInput("nothing is to change: give --replicas or --ec, or leave --dry-run and --rate-limit out")
        _show(session, model)
        return
    with session.store() as store, session.progress() as progress:
        report = store.set_policy(
            model, replicas=replicas, ec=ec, dry_run=dry_run, rate_limit=parse_limit(rate_limit), progress=progress
        )
    for failure in report.failed:
        session.warn(failure)
    session.show(report, lambda: _changed(report))
    if not report.ok:
        raise typer.Exit(ERROR_TABLE[NotEnoughCopies.code].exit_code)


def _changed(report: "PolicyReport") -> list[Block]:
    would = "would be " if report.dry_run else ""
    old = report.old or "as the store's"
    rows = [("policy", f"{old} → {report.new}")]
    if report.model is not None:
        rows = [
            ("model", report.model),
            *rows,
            ("versions", f"{report.versions:,} {would}changed"),
            (f"{would}converted", f"{human_count(report.converted, 'part')}, {human_size(report.converted_bytes)}"),
        ]
        if not report.dry_run:
            rows += [
                ("written", human_size(report.written_bytes)),
                ("given up", f"{human_count(report.given_up, 'object')}, {human_size(report.given_up_bytes)}"),
            ]
        if report.shared:
            rows.append(("left as they are", f"{human_count(report.shared, 'part')} of which other models ask more"))
    return [Facts([*rows, ("time", human_duration(report.seconds))])]


def _show(session: Session, model: str | None) -> None:
    with session.store() as store:
        table = store.policies()
    models = table.models
    if model is not None:
        name = str(parse_model_name(model))
        models = tuple(each for each in models if each.model.casefold() == name.casefold())
        if not models:
            raise NotFound(f"there is no model {name}: `tensorkeep ls` lists them", model=name)

    def blocks() -> list[Block]:
        rows = [
            (
                each.model,
                each.own or f"{table.store} (the store's)",
                ", ".join(f"{count:,} of {text}" for text, count in sorted(each.owed.items())),
            )
            for each in models
        ]
        return [
            Facts([("store", table.store)]),
            Table(("MODEL", "LATER PUSHES", "VERSIONS"), rows, empty="no models"),
        ]

    session.show({"store": table.store, "models": models}, blocks)
