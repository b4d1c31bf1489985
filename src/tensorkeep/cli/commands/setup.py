"""Making a store, and making its catalog anew."""

from typing import Annotated

import typer

from tensorkeep.cli.commands.devices import device_url
from tensorkeep.cli.session import Session
from tensorkeep.cli.tables import Block, Facts
from tensorkeep.cli.units import human_count, human_duration
from tensorkeep.errors import InvalidInput


def init(
    session: Session,
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="The new store's folder. Default: as for --store.", show_default=False),
    ] = None,
    *,
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", metavar="N", min=1, help="Keep N whole copies of each part.", show_default=False),
    ] = None,
    ec: Annotated[
        str | None, typer.Option("--ec", metavar="K+M", help="Keep K data and M parity fragments.", show_default=False)
    ] = None,
) -> None:
    """Make a new, empty store.

    Other commands make one themselves where none is, with one copy of each part; init also sets how many copies are kept.
    """
    if path is not None and session.location not in {None, path}:
        raise InvalidInput(f"the store is given twice: PATH {path!r} and --store {session.location!r}; give one")
    with session.doors.init(session.location if path is None else path, replicas=replicas, ec=ec) as store:
        status = store.status()
        document = {"store": status.store, "location": status.location, "policy": status.policy}
    session.show(
        document,
        lambda: [Facts([("made store", status.location), ("id", status.store), ("policy", status.policy)])],
    )


def rebuild_catalog(
    session: Session,
    source: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="URL", help="A device to read; give it once per device.", show_default=False),
    ] = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace a catalog that can still be read.")] = False,
) -> None:
    """Make the catalog anew from what the devices hold.

    Without --from, the devices that the old catalog names are read, and those in the store's own folder. The old catalog
    is kept beside the new one.
    """
    report = session.doors.rebuild_catalog(
        session.location, sources=[device_url(url) for url in source or []], force=force
    )
    for device in report.unreachable:
        session.warn(f"device {device} could not be read; what only it holds is not in the new catalog", device=device)
    for what in report.missing:
        session.warn(f"no device had {what}", missing=what)

    def blocks() -> list[Block]:
        counts = (
            human_count(report.models, "model"),
            human_count(report.versions, "version"),
            human_count(report.refs, "branch or tag", "branches and tags"),
        )
        return [
            Facts(
                [
                    ("store", report.store),
                    ("found", ", ".join(counts)),
                    ("objects", f"{report.objects:,} in {human_count(report.locations, 'place')}"),
                    ("devices", ", ".join(report.devices) or "none"),
                    ("epoch", str(report.epoch)),
                    ("old catalog", report.replaced),
                    ("time", human_duration(report.seconds)),
                ]
            )
        ]

    session.show(report, blocks)
