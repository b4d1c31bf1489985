"""Verify: read every stored byte again and compare it with its digest; say what is wrong, where, and whether a good copy is left."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Integrity, NotFound, TensorkeepError
from tensorkeep.records.device import IDENTITY_NAME, is_gone
from tensorkeep.records.history import VersionFacts
from tensorkeep.records.naming import ObjectKind
from tensorkeep.runtime import Cancellation
from tensorkeep.store.answering import Answering
from tensorkeep.store.checking import CHUNK_BYTES, check_copy
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import Member
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.reports import Problem, ProgressCallback, VerifyReport
from tensorkeep.store.verify_journal import check_journal
from tensorkeep.transfer.memory import allocate

_PAGE = 2000
_READERS_A_DEVICE = 2


@dataclass(slots=True)
class _Findings:
    """What the readers found, by location."""

    good: list[Location] = field(default_factory=list)
    bad: list[tuple[Location, str, str]] = field(default_factory=list)
    unread: list[tuple[Location, str]] = field(default_factory=list)
    unasked: list[Location] = field(default_factory=list)
    bytes: int = 0


def verify_store(context: StoreContext, progress: ProgressCallback | None) -> VerifyReport:
    """Return what is wrong in the whole store: every object, identity and journal entry on every device, and the catalog."""
    started_s = context.runtime.clock.monotonic_s()
    context.fleet.recheck()
    locations = [loc for loc in _iter_locations(context) if loc.state in ("live", "stored", "bad")]
    problems, findings = _read_all(context, locations, progress)
    context.fleet.recheck()  # not `forget`: its handle knows whether an fsync failed in this process
    for member in context.fleet.members():
        problems += _check_device(context, member)
    problems += [Problem("catalog", "catalog", detail) for detail in context.catalog.check()]
    problems += _short_versions(context, None)
    return _report(context, started_s, findings, problems)


def verify_version(context: StoreContext, version: VersionFacts, progress: ProgressCallback | None) -> VerifyReport:
    """Return what is wrong with one version: every copy of its parts, manifest, checks and record."""
    started_s = context.runtime.clock.monotonic_s()
    context.fleet.recheck()
    keys = [key for key, _ in context.catalog.version_objects(version.id)]
    found = context.catalog.locate(keys)
    problems, findings = _read_all(context, [loc for key in keys for loc in found.get(key, [])], progress)
    for key in keys:
        if not found.get(key):
            problems.append(Problem("missing", f"{key.kind} {key.digest.hex()}", "no copy is known", lost=True))
    problems += _short_versions(context, version)
    return _report(context, started_s, findings, problems)


def _iter_locations(context: StoreContext) -> Iterator[Location]:
    after = 0
    while page := context.catalog.locate_all(after=after, limit=_PAGE):
        yield from page
        after = page[-1].id


def _read_all(
    context: StoreContext, locations: Sequence[Location], progress: ProgressCallback | None
) -> tuple[list[Problem], _Findings]:
    readable = context.fleet.readable()
    active = {facts.id for facts in context.catalog.list_devices() if not is_gone(facts)}
    names = context.fleet.names()
    counter = ByteProgress(progress, "verify", sum(loc.length for loc in locations if loc.device in readable))
    findings = _Findings()
    by_device: dict[str, list[Location]] = {}
    for location in locations:
        by_device.setdefault(location.device, []).append(location)
    problems = []
    stop = Cancellation()

    def count(size_bytes: int) -> None:
        stop.check()
        counter.count(size_bytes)

    with context.runtime.workers.open_pool(max(1, _READERS_A_DEVICE * len(readable)), "verify") as pool, stop:
        tasks = []
        for device_id, rows in by_device.items():
            if device_id in readable:
                lanes = [rows[lane::_READERS_A_DEVICE] for lane in range(_READERS_A_DEVICE)]
                answering = Answering(readable[device_id])
                tasks += [pool.submit(_read_lane, readable[device_id], lane, count, answering) for lane in lanes]
            elif device_id in active:
                problems.append(_unreachable(names[device_id], rows, "the device can't be reached; it held"))
        for task in tasks:
            part: _Findings = task.result()
            findings.good += part.good
            findings.bad += part.bad
            findings.unread += part.unread
            findings.unasked += part.unasked
            findings.bytes += part.bytes
    if not context.read_only:
        context.catalog.record_checked(
            good=[loc.id for loc in findings.good], bad=[loc.id for loc, _, _ in findings.bad]
        )
    for device_id in {location.device for location in findings.unasked}:
        rows = [location for location in findings.unasked if location.device == device_id]
        problems.append(_unreachable(names[device_id], rows, "the device answers no more; not looked at are"))
    return problems + _problems_of(findings, names), findings


def _read_lane(
    device: Device, locations: Sequence[Location], count: Callable[[int], None], answering: Answering
) -> _Findings:
    findings = _Findings()
    scratch = allocate(CHUNK_BYTES)
    for number, location in enumerate(locations):
        if answering.is_given_up:
            findings.unasked += locations[number:]
            break
        try:
            check_copy(device, location, scratch)
            findings.good.append(location)
        except NotFound as error:
            findings.bad.append((location, "missing", error.message))
            answering.answered()
        except Integrity as error:
            findings.bad.append((location, "corrupt", error.message))
            answering.answered()
        except TensorkeepError as error:
            findings.unread.append((location, error.message))
            answering.failed()
        else:
            answering.answered()
        findings.bytes += location.length
        count(location.length)
    return findings


def _problems_of(findings: _Findings, names: dict[str, str]) -> list[Problem]:
    rows: dict[ObjectKey, list[Location]] = {}
    for location in findings.good:
        rows.setdefault(location.key, []).append(location)
    good = {key for key, found in rows.items() if count_copies(found)}
    problems = [
        Problem(kind, location.name, detail, device=names[location.device], lost=location.key not in good)
        for location, kind, detail in findings.bad
    ]
    return problems + [
        Problem("unreachable", location.name, detail, device=names[location.device], lost=location.key not in good)
        for location, detail in findings.unread
    ]


def _unreachable(name: str, rows: Sequence[Location], why: str) -> Problem:
    size = sum(row.length for row in rows)
    parts = sum(row.key.kind is ObjectKind.PART for row in rows)
    what = f"{len(rows)} objects"
    return Problem("unreachable", what, f"{why} {what} ({parts} parts), {size} bytes", device=name)


def _check_device(context: StoreContext, member: Member) -> list[Problem]:
    name = member.facts.name
    if member.device is None or not member.readable:
        return [Problem("identity", IDENTITY_NAME, str(member.problem), device=name)]
    problems = []
    try:
        if member.problem is not None:
            problems.append(Problem("identity", IDENTITY_NAME, member.problem.message, device=name))
        problems += check_journal(context, member.facts, member.device)
    except TensorkeepError as error:
        problems.append(Problem("unreachable", "journal", error.message, device=name))
    return problems


def _short_versions(context: StoreContext, version: VersionFacts | None) -> list[Problem]:
    wanted = {version.id: version} if version else {}
    if version is None:
        for model in context.catalog.list_models():
            wanted.update({found.id: found for found in context.catalog.list_versions(model.id)})
    short = context.catalog.count_short(list(wanted))
    return [
        Problem(
            "short",
            f"version {version_id}",
            f"{count} objects have fewer good copies than {wanted[version_id].policy} owes",
        )
        for version_id, count in short.items()
    ]


def _report(context: StoreContext, started_s: float, findings: _Findings, problems: Sequence[Problem]) -> VerifyReport:
    return VerifyReport(
        objects=len(findings.good) + len(findings.bad),
        bytes=findings.bytes,
        seconds=context.runtime.clock.monotonic_s() - started_s,
        problems=tuple(problems),
    )
