"""The devices of a store."""

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from tensorkeep.cli.command import YesOption
from tensorkeep.cli.copying import RateLimitOption, left_blocks, parse_limit
from tensorkeep.cli.documents import device_document
from tensorkeep.cli.session import Session
from tensorkeep.cli.suggestions import suggest_devices
from tensorkeep.cli.tables import Block, Facts, Table
from tensorkeep.cli.units import (
    human_count,
    human_duration,
    human_rate,
    human_size,
    parse_duration,
    parse_rate,
    parse_size,
)
from tensorkeep.errors import ERROR_TABLE, NotEnoughCopies, TensorkeepError

if TYPE_CHECKING:
    from tensorkeep.records.conformance import Conformance
    from tensorkeep.records.conformance_report import ConformanceReport
    from tensorkeep.records.device import DeviceFacts
    from tensorkeep.store.reports import DeviceBench, DeviceStatus

_GONE = ("lost", "removed")  # as `records.device` has them, which would make every --help wait for what it imports
DEVICE_HEADINGS = ("DEVICE", "STATE", "ZONE", ">OBJECTS", ">STORED", ">FREE", ">BANDWIDTH", "NOTE")
BENCH_HEADINGS = (
    "DEVICE",
    ">WRITE",
    ">4 KiB READ",
    ">ONE READER",
    ">BEST",
    ">READERS",
    ">BANDWIDTH",
    "NOTE",
)


def add(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the device is called in this store.")],
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="Where it is: a folder, file:///mnt/nvme0, s3://bucket/prefix?…, gs://…, az://…"
        ),
    ],
    *,
    zone: Annotated[
        str | None,
        typer.Option(
            "--zone", metavar="ZONE", help="What fails together. Default: the device's name.", show_default=False
        ),
    ] = None,
    capacity: Annotated[
        str | None,
        typer.Option("--capacity", metavar="SIZE", help="Store at most this much, e.g. 2TB.", show_default=False),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            "--bandwidth", metavar="RATE", help="Its speed, e.g. 3GB/s, instead of measuring.", show_default=False
        ),
    ] = None,
    rate_limit: Annotated[
        str | None,
        typer.Option(
            "--rate-limit", metavar="RATE", help="Never read or write faster, e.g. 200MB/s.", show_default=False
        ),
    ] = None,
    untrusted: Annotated[
        bool, typer.Option("--untrusted", help="Check what it gives by cryptographic digest.")
    ] = False,
) -> None:
    """Add a device. The place is checked first, and refused if it can't be trusted; its bandwidth is measured, unless given."""
    with session.store() as store:
        facts = store.devices.add(
            name,
            device_url(url),
            zone=zone,
            capacity=None if capacity is None else parse_size(capacity, what="capacity"),
            bandwidth=None if bandwidth is None else parse_rate(bandwidth, what="bandwidth"),
            rate_limit=None if rate_limit is None else parse_rate(rate_limit, what="rate limit"),
            untrusted=untrusted,
        )
    session.show(facts, lambda: [device_facts(facts, "added device")])


def ls(
    session: Session,
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show ids, URLs, limits, durability, and what checks found.")
    ] = False,
) -> None:
    """List the devices, and what they hold."""
    with session.store() as store:
        statuses = store.devices.list()

    def blocks() -> list[Block]:
        listed: list[Block] = [device_table(statuses)]
        if verbose:
            listed += [device_facts(status.facts, "device") for status in statuses]
        return listed

    session.show({"devices": [device_document(status) for status in statuses]}, blocks)


def check(
    session: Session,
    place: Annotated[
        str,
        typer.Argument(
            metavar="NAME|URL", help="A device, or a place that is none yet.", autocompletion=suggest_devices
        ),
    ],
) -> None:
    """Ask a device, or a place that may become one, everything that a store needs of it.

    It works in a folder of its own, which is removed: what the device holds is left alone. What was found of a device is kept, and
    shown by `device ls -v`. The exit code is that of the first thing that is wrong.
    """
    with session.store() as store:
        report = store.devices.check(place if "/" not in place else device_url(place))
    session.show(report, lambda: check_blocks(report))
    if report.refusal is not None:
        raise typer.Exit(ERROR_TABLE[report.refusal.code].exit_code)


def bench(
    session: Session,
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="The devices.", autocompletion=suggest_devices)],
    *,
    size: Annotated[
        str, typer.Option("--size", metavar="SIZE", help="Write and read at most this much on each device.")
    ] = "256MiB",
    save: Annotated[
        bool | None,
        typer.Option(
            "--save/--no-save",
            help="Keep the best read rate as the device's bandwidth. Default: unless --bandwidth gave one.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure devices: write rate, read rate by the best number of readers, and how long a small read takes.

    One after the other, with objects that are removed again; a device's rate limit holds. What is measured becomes the bandwidth
    by which parts are placed and loads predicted.
    """
    size_bytes = parse_size(size)
    reports: list[DeviceBench] = []
    failure: TensorkeepError | None = None
    with session.store() as store:
        for name in names:
            try:
                reports.append(store.devices.bench(name, size=size_bytes, save=save))
            except TensorkeepError as error:
                failure = error
                break
    if reports:  # of those that were measured before one failed too
        session.show({"devices": reports}, lambda: [bench_table(reports)])
    if failure is not None:
        raise failure


def drain(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device.", autocompletion=suggest_devices)],
    *,
    cancel: Annotated[bool, typer.Option("--cancel", help="Have it take objects again, and its copies count.")] = False,
    grace: Annotated[
        str, typer.Option("--grace", metavar="TIME", help="Keep what was given up less than this ago.")
    ] = "24h",
    rate_limit: RateLimitOption = None,
) -> None:
    """Empty a device, so that it can be removed.

    What it holds is copied to the others, then given up there.
    It takes no objects from now on, and its copies do not count; it is still read. What was given up is deleted by a drain, or
    a gc, after the grace: --grace 0 deletes at once. Killed, it goes on when it is run again. The exit code is 8 where copies could
    not be made.
    """
    with session.store() as store, session.progress() as progress:
        if cancel:
            facts = store.devices.undrain(name)
            session.show(facts, lambda: [f"device {facts.name} takes objects again"])
            return
        report = store.devices.drain(
            name,
            grace_s=parse_duration(grace, what="grace"),
            rate_limit=parse_limit(rate_limit),
            progress=progress,
        )

    def blocks() -> list[Block]:
        found = left_blocks(report.left)
        state = (
            "empty: it can be removed"
            if report.empty
            else "not empty: gc frees what no version uses; then run it again"
        )
        if report.held and report.left:
            state = "not empty: it holds copies that could not be made elsewhere"
        elif report.waiting and not report.reachable:
            state = "it can't be reached: what is to be deleted there waits"
        elif report.waiting and not report.held:
            state = "run it again after the grace"
        found.append(
            Facts(
                [
                    ("device", report.device),
                    ("copied", f"{human_count(report.repaired, 'object')}, {human_size(report.written_bytes)}"),
                    ("given up", human_count(report.given_up, "object")),
                    ("deleted", f"{human_count(report.deleted, 'object')}, {human_size(report.deleted_bytes)}"),
                    ("holds", f"{human_count(report.held, 'object')}, {report.waiting:,} more wait for the grace"),
                    ("time", human_duration(report.seconds)),
                    ("state", state),
                ]
            )
        )
        return found

    session.show(report, blocks)
    if report.left and report.held:
        raise typer.Exit(ERROR_TABLE[NotEnoughCopies.code].exit_code)


def remove(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device.", autocompletion=suggest_devices)],
) -> None:
    """Take a drained, empty device out of the store for good."""
    with session.store() as store:
        facts = store.devices.remove(name)
    session.show(facts, lambda: [f"device {facts.name} is removed; nothing at {facts.url} is needed any more"])


def lost(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The device.", autocompletion=suggest_devices)],
    *,
    yes: YesOption = False,
) -> None:
    """Give up a device: it is never read or written again, and its copies no longer count."""
    if not session.confirm(f"Give up device {name} for good, with all copies on it?", yes=yes):
        typer.echo("nothing was changed", err=True)
        raise typer.Exit(1)
    with session.store() as store:
        facts = store.devices.lost(name)
    session.show(
        facts, lambda: [f"device {facts.name} is given up; `tensorkeep repair` makes its copies anew on others"]
    )


def _refusal(facts: "DeviceFacts") -> str:
    found = facts.conformance
    return f"refused by its last check ({found.refusal})" if found and found.verdict == "refused" else ""


def device_url(text: str) -> str:
    """Return a device's URL as the store takes it: a folder that the user named from where they are is made absolute."""
    # "s3:" without slashes too: what follows may be a key, and must not become a folder's name.
    return text if re.match(r"(?i:s3|gs|az):|[A-Za-z][A-Za-z0-9+.-]*:/", text) else os.path.abspath(text)


def device_table(statuses: "Iterable[DeviceStatus]") -> Table:
    """Return the table of devices with their states and what they hold."""
    rows = [
        (
            status.facts.name,
            state_of(status),
            status.facts.zone,
            f"{status.objects:,}",
            human_size(status.bytes),
            "" if status.free_bytes is None else human_size(status.free_bytes),
            "" if status.facts.bandwidth is None else human_rate(status.facts.bandwidth),
            note_on(status),
        )
        for status in statuses
    ]
    return Table(DEVICE_HEADINGS, rows, empty="no devices; the first push adds one named local")


def state_of(status: "DeviceStatus") -> str:
    """Return ``ok``, ``draining``, ``lost``, ``removed`` or ``DOWN``."""
    facts = status.facts
    if facts.state in _GONE:
        return facts.state
    if not status.reachable:
        return "DOWN"
    return "ok" if facts.state == "active" else facts.state


def note_on(status: "DeviceStatus") -> str:
    """Return what is wrong with a device, or remarkable."""
    notes = [
        status.problem if status.problem and status.facts.state not in _GONE else "",
        _refusal(status.facts),
        f"{status.bad_objects:,} damaged" if status.bad_objects else "",
        f"journal {status.journal_behind:,} behind" if status.journal_behind else "",
        "soft: its copies do not count" if status.facts.durability == "soft" else "",
    ]
    return "; ".join(note for note in notes if note)


def check_blocks(report: "ConformanceReport") -> list[Block]:
    """Return a check's probes, and what they add up to."""
    rows = [
        (
            probe.name,
            probe.outcome.replace("_", " "),
            human_duration(probe.seconds) if probe.seconds else "",
            probe.detail,
        )
        for probe in report.probes
    ]
    passed = f"may be a device, {report.durability}"
    return [
        Table(("PROBE", "RESULT", ">TIME", "FOUND"), rows),
        Facts(
            [
                ("checked", report.url if report.name is None else f"{report.name} ({report.url})"),
                *conformance_pairs(report.conformance)[1:],
                ("time", human_duration(report.seconds)),
                ("result", passed if report.ok else f"REFUSED: {report.conformance.refusal}"),
            ]
        ),
    ]


def bench_table(reports: "Iterable[DeviceBench]") -> Table:
    """Return the table of what devices did."""
    rows = [
        (
            report.name,
            human_rate(report.write_rate),
            f"{report.read_latency_seconds * 1000:.2f} ms",
            human_rate(report.read_rates[0].rate),
            human_rate(report.best_rate),
            str(report.best_readers),
            "" if report.bandwidth is None else human_rate(report.bandwidth),
            "; ".join(
                note
                for note in (
                    "saved" if report.saved else "",
                    "the given bandwidth stays: --save replaces it" if report.given else "",
                    f"limited to {human_rate(report.rate_limit)}" if report.rate_limit else "",
                )
                if note
            ),
        )
        for report in reports
    ]
    return Table(BENCH_HEADINGS, rows)


def conformance_pairs(found: "Conformance") -> list[tuple[str, str | None]]:
    """Return what is kept of a check, first of all when it was and what came of it."""
    small = [
        f"{what} {median / 1000:.2f} ms (p99 {slow / 1000:.2f} ms)"
        for what, median, slow in (
            ("read", found.read_p50_us, found.read_p99_us),
            ("durable write", found.write_p50_us, found.write_p99_us),
        )
        if median is not None and slow is not None
    ]
    sums = found.refused_checksums
    return [
        ("checked", f"{found.checked_at[:19]}Z, {found.form} form: {found.refusal or found.verdict}"),
        ("file system", found.file_system),
        ("create only", found.conditional_create),
        ("compare and swap", found.compare_and_swap),
        ("wrong checksums", None if sums is None else f"refused: {', '.join(sums) or 'none'}"),
        ("clock", None if found.clock_offset_s is None else f"{found.clock_offset_s:+d} s"),
        ("4 KiB", ", ".join(small) or None),
        ("one writer", None if found.write_rate is None else human_rate(found.write_rate)),
        ("one reader", None if found.read_rate is None else human_rate(found.read_rate)),
        ("best", _best_of(found)),
    ]


def _best_of(found: "Conformance") -> str | None:
    if found.best_rate is None or found.best_readers is None:
        return None
    return f"{human_rate(found.best_rate)} with {human_count(found.best_readers, 'reader')}"


def device_facts(facts: "DeviceFacts", label: str) -> Facts:
    """Return all that is fixed about one device."""
    return Facts(
        [
            (label, facts.name),
            ("id", facts.id),
            ("url", facts.url),
            ("zone", facts.zone),
            ("durability", facts.durability),
            ("capacity", None if facts.capacity is None else human_size(facts.capacity)),
            ("bandwidth", None if facts.bandwidth is None else human_rate(facts.bandwidth)),
            ("rate limit", None if facts.rate_limit is None else human_rate(facts.rate_limit)),
            ("untrusted", "yes: checked by digest" if facts.untrusted else None),
            *(conformance_pairs(facts.conformance) if facts.conformance else ()),
        ]
    )
