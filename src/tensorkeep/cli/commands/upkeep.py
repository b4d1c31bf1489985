"""Is everything there, and how much room does it take."""

from typing import Annotated

import typer

from tensorkeep.cli.commands.devices import device_table
from tensorkeep.cli.copying import RateLimitOption, left_blocks, parse_limit
from tensorkeep.cli.documents import device_document, to_plain
from tensorkeep.cli.session import Session
from tensorkeep.cli.suggestions import suggest_devices, suggest_specs
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import human_count, human_duration, human_rate, human_size
from tensorkeep.errors import ERROR_TABLE, Integrity, NotEnoughCopies

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


def scrub(
    session: Session,
    *,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte and compare it with its digest.")] = False,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Only this device. Repeatable.",
            show_default=False,
            autocompletion=suggest_devices,
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew.")] = False,
    rate_limit: RateLimitOption = None,
) -> None:
    """Find missing and damaged objects.

    Devices are looked through all at once; repair then makes good what was found.
    Without --deep listings are compared with the catalog; objects that nothing tells of are noted, and deleted by gc after its
    grace. A scrub that is cut off goes on when it is run again. The exit code is 6 where something was found.
    """
    with session.store() as store, session.progress() as progress:
        report = store.scrub(
            deep=deep, devices=device or (), restart=restart, rate_limit=parse_limit(rate_limit), progress=progress
        )

    def blocks() -> list[Block]:
        found: list[Block] = []
        if report.problems:
            rows = [(p.kind, p.device or "", p.object, p.detail) for p in report.problems]
            found.append(Table(("PROBLEM", "DEVICE", "OBJECT", "DETAIL"), rows))
        rates = [
            (
                each.device,
                f"{each.objects:,}",
                human_size(each.bytes),
                human_rate(each.bytes / each.seconds) if each.bytes and each.seconds else "",
                f"{each.bad:,}",
                f"{each.orphans:,}",
                "done" if each.complete else "cut off",
            )
            for each in report.devices
        ]
        headings = ("DEVICE", ">OBJECTS", ">READ", ">RATE", ">BAD", ">UNKNOWN", "PASS")
        result = "all good" if report.ok else f"{human_count(len(report.problems), 'problem')} found"
        return [
            *found,
            Table(headings, rates, empty="no devices"),
            Facts([("depth", report.depth), ("time", human_duration(report.seconds)), ("result", result)]),
        ]

    session.show(report, blocks)
    if report.problems:
        raise typer.Exit(ERROR_TABLE[Integrity.code].exit_code)


def repair(
    session: Session,
    *,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="NAME",
            help="Count no copies on this device this time, though it may come back. Repeatable.",
            show_default=False,
            autocompletion=suggest_devices,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what lacks copies.")] = False,
    rate_limit: RateLimitOption = None,
) -> None:
    """Make copies anew that were lost.

    Whatever has fewer copies than it owes gets the others again, the most endangered first.
    Copies on a device that can't be reached count: nothing is copied because a disk is not mounted. Give a device up with device
    lost first, or name it by --without. Killed, it goes on when it is run again. The exit code is 8 where something still
    lacks copies; what is lost is named.
    """
    with session.store() as store, session.progress() as progress:
        report = store.repair(
            without=without or (), dry_run=dry_run, rate_limit=parse_limit(rate_limit), progress=progress
        )
    for device in report.unreachable:
        session.warn(f"device {device} can't be reached: its copies count as there", device=device)

    def blocks() -> list[Block]:
        rate = report.written_bytes / report.seconds if report.seconds else 0.0
        result = "nothing lacks copies" if report.ok else f"{human_count(len(report.left), 'object')} short of copies"
        if report.lost:
            result += f", {len(report.lost):,} of them LOST"
        return [
            *left_blocks(report.left),
            Facts(
                [
                    ("found short", f"{human_count(report.short, 'object')}, {human_size(report.short_bytes)}"),
                    ("repaired", human_count(report.repaired, "object")),
                    ("written", f"{human_size(report.written_bytes)}, {human_rate(rate)}"),
                    ("time", human_duration(report.seconds)),
                    ("result", result),
                ]
            ),
        ]

    session.show(report, blocks)
    if not report.ok:
        raise typer.Exit(ERROR_TABLE[NotEnoughCopies.code].exit_code)


def rebalance(
    session: Session,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would move.")] = False,
    rate_limit: RateLimitOption = None,
) -> None:
    """Give each device its share of parts.

    Parts move until each holds its share by bandwidth, and copies that nobody owes any more are given up.
    To a new device moves about its share and no more. A copy is given up once the new one was read back; gc deletes it after its
    grace. Killed, it goes on when it is run again.
    """
    with session.store() as store, session.progress() as progress:
        report = store.rebalance(dry_run=dry_run, rate_limit=parse_limit(rate_limit), progress=progress)
    for failure in report.failed:
        session.warn(failure)

    def blocks() -> list[Block]:
        would = "would be " if report.dry_run else ""
        rows = [
            (name, human_size(size), human_size(report.after.get(name, 0)))
            for name, size in sorted(report.before.items())
        ]
        total = sum(report.before.values())
        share = f", {report.moved_bytes / total:.0%} of all" if total else ""
        return [
            Table(("DEVICE", ">BEFORE", ">AFTER"), rows, empty="no devices"),
            Facts(
                [
                    (
                        f"{would}moved",
                        f"{human_count(report.moved, 'copy', 'copies')}, {human_size(report.moved_bytes)}{share}",
                    ),
                    (
                        f"{would}given up",
                        f"{human_count(report.trimmed, 'copy', 'copies')} too many, {human_size(report.trimmed_bytes)}",
                    ),
                    ("time", human_duration(report.seconds)),
                ]
            ),
        ]

    session.show(report, blocks)
    if report.failed:
        raise typer.Exit(ERROR_TABLE[NotEnoughCopies.code].exit_code)


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
