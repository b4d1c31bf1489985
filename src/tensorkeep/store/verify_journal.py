"""Checking a device's journal: every entry has its digest, and every entry that the catalog says is there is there."""

from tensorkeep.catalog.protocol import JournalRow
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Format, Integrity, NotFound, TensorkeepError, Unavailable
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.history import Snapshot, decode_entry
from tensorkeep.records.naming import JournalName, parse_physical_name
from tensorkeep.store.answering import Answering
from tensorkeep.store.context import StoreContext
from tensorkeep.store.reports import Problem


def check_journal(context: StoreContext, facts: DeviceFacts, device: Device) -> list[Problem]:
    """Return what is wrong with the journal on a device: damaged entries, and entries that are missing.

    Raises:
        Unavailable: the device does not list it.
    """
    answering = Answering(device)
    problems: list[Problem] = []
    whole: set[tuple[int, str]] = set()
    for info in device.iter_objects("journal/"):
        name = parse_physical_name(info.name)
        if not isinstance(name, JournalName):
            continue
        try:
            detail = _find_damage(device, info.name, name, answering)
        except Unavailable as error:
            return [*problems, Problem("unreachable", "journal", error.message, device=facts.name)]
        if detail is None:
            whole.add((name.seq, name.digest.hex()))
        else:
            problems.append(Problem("journal", info.name, detail, device=facts.name))
    problems += [
        Problem("journal", f"entry {row.seq}", "it is missing or damaged", device=facts.name)
        for row in _owed_rows(context, facts)
        if (row.seq, row.digest) not in whole
    ]
    return problems


def _owed_rows(context: StoreContext, facts: DeviceFacts) -> list[JournalRow]:
    """Return the entries that a device holds by the catalog: up to what was flushed to it, from the last snapshot in that on."""
    flushed = context.catalog.flushed().get(facts.id, 0)
    rows = [row for row in context.catalog.journal_rows() if row.seq <= flushed]
    snapshots = [
        number
        for number, row in enumerate(rows)
        if any(isinstance(change, Snapshot) for change in decode_entry(row.body).changes)
    ]
    return rows[snapshots[-1] :] if snapshots else rows


def _find_damage(device: Device, physical: str, name: JournalName, answering: Answering) -> str | None:
    try:
        data = device.read(physical)
    except (NotFound, Integrity) as error:
        return error.message
    except TensorkeepError as error:
        answering.failed()
        if answering.is_given_up:
            raise Unavailable(f"the device answers no more: {error.message}", device=device.url) from error
        return error.message
    answering.answered()
    if blake3_256(data) != name.digest:
        return "its bytes do not have its digest"
    try:
        entry = decode_entry(data)
    except Format as error:
        return error.message
    if (entry.epoch, entry.seq) != (name.epoch, name.seq):
        return f"it is entry {entry.epoch}-{entry.seq}, not what its name says"
    return None
