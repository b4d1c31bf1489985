"""Space and state at a glance: ``du`` and ``status``."""

from tensorkeep.errors import TensorkeepError
from tensorkeep.records.device import DeviceFacts, is_gone
from tensorkeep.records.names import parse_revision
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import Member
from tensorkeep.store.reports import DeviceStatus, ShortVersion, StatusReport, UsageReport, UsageRow
from tensorkeep.store.revisions import get_model, get_version


def measure_usage(context: StoreContext, spec: str | None) -> UsageReport:
    """Return the space of all versions, of a model's (``model``), or of one (``model@revision``)."""
    chosen = _choose(context, spec)
    usage = {row.version: row for row in context.catalog.version_usage([version for _, version, _ in chosen])}
    rows = tuple(
        UsageRow(model, version, logical, usage[version].part_bytes, usage[version].exclusive_bytes)
        for model, version, logical in chosen
    )
    names = context.fleet.names()
    devices = {names[row.device]: row.bytes for row in context.catalog.device_usage()}
    return UsageReport(rows, sum(row.logical_bytes for row in rows), sum(devices.values()), devices)


def _choose(context: StoreContext, spec: str | None) -> list[tuple[str, str, int]]:
    if spec is not None and "@" in spec:
        model, version = get_version(context, parse_revision(spec))
        return [(model.name, version.id, version.total_bytes)]
    models = context.catalog.list_models() if spec is None else [get_model(context, parse_revision(spec).model)]
    return [
        (model.name, version.id, version.total_bytes)
        for model in models
        for version in context.catalog.list_versions(model.id)
    ]


def list_devices(context: StoreContext) -> list[DeviceStatus]:
    """Return every device, those that are gone too, with what it holds by the catalog and whether it can be used now."""
    context.fleet.recheck()
    usage = {row.device: row for row in context.catalog.device_usage()}
    flushed = context.catalog.flushed()
    last = context.catalog.info().last_seq
    members = {member.facts.id: member for member in context.fleet.members()}
    rows = []
    for facts in context.catalog.list_devices():
        member = members.get(facts.id)
        held = usage.get(facts.id)
        rows.append(
            DeviceStatus(
                facts=facts,
                problem=_problem(facts, member),
                objects=held.locations if held else 0,
                bytes=held.bytes if held else 0,
                bad_objects=held.bad_locations if held else 0,
                free_bytes=_free_bytes(member),
                journal_behind=last - flushed.get(facts.id, 0) if member else 0,
            )
        )
    return rows


def _problem(facts: DeviceFacts, member: Member | None) -> str | None:
    if member is None:
        return f"marked {facts.state}"
    return str(member.problem) if member.problem is not None else None


def _free_bytes(member: Member | None) -> int | None:
    if member is None or member.device is None:
        return None
    try:
        return member.device.free_bytes()
    except TensorkeepError:
        return None


def read_status(context: StoreContext, location: str) -> StatusReport:
    """Return the store at a glance: devices, what is short of copies, and what the user should do."""
    info = context.catalog.info()
    models = context.catalog.list_models()
    versions = [(model.name, version.id) for model in models for version in context.catalog.list_versions(model.id)]
    short = context.catalog.count_short([version for _, version in versions])
    devices = list_devices(context)
    return StatusReport(
        store=info.store,
        location=location,
        policy=info.policy,
        epoch=info.epoch,
        journal_seq=info.last_seq,
        models=len(models),
        versions=len(versions),
        devices=tuple(devices),
        short=tuple(ShortVersion(model, version, short[version]) for model, version in versions if version in short),
        warnings=tuple(_warnings(devices)),
    )


def _warnings(devices: list[DeviceStatus]) -> list[str]:
    warnings = []
    for device in devices:
        if not is_gone(device.facts) and device.problem is not None:
            warnings.append(
                f"device {device.facts.name} can't be used: {device.problem}; by the catalog it holds "
                f"{device.objects} objects, {device.bytes} bytes"
            )
        if device.bad_objects:
            warnings.append(f"device {device.facts.name} has {device.bad_objects} bad objects")
        if device.problem is None and device.journal_behind:
            warnings.append(f"device {device.facts.name} lacks {device.journal_behind} journal entries")
    return warnings
