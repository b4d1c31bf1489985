"""The chain of journal entries inside a catalog: how the next one is made, and what is wrong with a chain. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tensorkeep.catalog.protocol import JournalRow
from tensorkeep.errors import Format, InvalidInput
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.history import (
    Change,
    JournalEntry,
    StoreState,
    decode_entry,
    encode_entry,
    fold_entries,
)
from tensorkeep.records.json_text import format_time


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """Where the journal stands: ``head`` is the last entry's digest in hex, ``last_snapshot`` a seq or 0."""

    store: str
    epoch: int
    last_seq: int
    head: str | None
    last_snapshot: int


def next_row(end: ChainEnd, changes: Sequence[Change], now: datetime) -> JournalRow:
    """Return the entry that follows the chain's end."""
    entry = JournalEntry(
        store=end.store,
        epoch=end.epoch,
        seq=end.last_seq + 1,
        prev=end.head,
        created_at=format_time(now),
        changes=tuple(changes),
    )
    digest, body = encode_entry(entry)
    return JournalRow(epoch=entry.epoch, seq=entry.seq, digest=digest.hex(), body=body)


def extend(end: ChainEnd, row: JournalRow, *, snapshot: bool) -> ChainEnd:
    """Return the chain's end after a row."""
    return ChainEnd(end.store, row.epoch, row.seq, row.digest, row.seq if snapshot else end.last_snapshot)


def find_chain_problems(rows: Iterable[JournalRow], end: ChainEnd) -> list[str]:
    """Return what is wrong with the journal's rows, oldest first; nothing where they chain up to the end."""
    problems: list[str] = []
    previous: JournalRow | None = None
    for row in rows:
        problems += _row_problems(row, previous, end)
        previous = row
    last = (previous.seq, previous.digest) if previous else (0, None)
    if last != (end.last_seq, end.head):
        problems.append(f"the journal ends at entry {last[0]}, the store says {end.last_seq} ({end.head})")
    return problems


def _row_problems(row: JournalRow, previous: JournalRow | None, end: ChainEnd) -> list[str]:
    name = f"journal entry {row.seq}"
    # A damaged row may hold text where bytes were.
    if blake3_256(row.body if isinstance(row.body, bytes) else str(row.body).encode()).hex() != row.digest:
        return [f"{name} does not fit its digest {row.digest}"]
    try:
        entry = decode_entry(row.body)
    except Format as error:
        return [f"{name}: {error.message}"]
    problems = []
    if (entry.store, entry.epoch, entry.seq) != (end.store, row.epoch, row.seq):
        problems.append(f"{name} says that it is entry {entry.seq} of epoch {entry.epoch} of store {entry.store}")
    if previous and (row.seq != previous.seq + 1 or row.epoch < previous.epoch or entry.prev != previous.digest):
        problems.append(f"{name} does not follow entry {previous.seq}")
    if previous is None and row.seq == 1 and entry.prev is not None:
        problems.append(f"{name} is the first and names a predecessor")
    return problems


def check_tail(rows: Sequence[JournalRow], *, store: str, epoch: int) -> None:
    """Return if rows, oldest first, are one unbroken chain of a store, none newer than the epoch.

    Raises:
        InvalidInput: they are not; a catalog can't continue such a history.
    """
    if not rows:
        return
    end = ChainEnd(store, rows[-1].epoch, rows[-1].seq, rows[-1].digest, 0)
    problems = find_chain_problems(rows, end)
    if rows[-1].epoch > epoch:
        problems.append(f"journal entry {rows[-1].seq} is of epoch {rows[-1].epoch}, the image of {epoch}")
    if problems:
        raise InvalidInput(f"the journal of the image is broken: {'; '.join(problems)}")


def find_catalog_problems(rows: Sequence[JournalRow], end: ChainEnd, kept: StoreState) -> list[str]:
    """Return what is wrong with a catalog's journal, or else where the tables differ from what it tells.

    ``rows`` are all that the catalog has, oldest first, ``kept`` is the state that its tables hold.
    """
    problems = find_chain_problems(rows, end)
    if problems:
        return problems
    tail = [row for row in rows if row.seq >= end.last_snapshot]
    if not tail:
        return []
    if tail[0].seq != (end.last_snapshot or 1):
        return [f"the journal begins at entry {rows[0].seq} and has no snapshot"]
    return _state_problems(fold_entries(decode_entry(row.body) for row in tail), kept)


def _state_problems(told: StoreState, kept: StoreState) -> list[str]:
    problems = []
    if told.policy != kept.policy:
        problems.append(f"the store's policy is {kept.policy}, its journal says {told.policy}")
    pairs: dict[str, tuple[Mapping[str, object], Mapping[str, object]]] = {
        "devices": (told.devices, kept.devices),
        "models": (told.models, kept.models),
        "versions": (told.versions, kept.versions),
    }
    for what, (one, other) in pairs.items():
        differing = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
        if differing:
            problems.append(f"{what} differ from what the journal says: {', '.join(differing[:10])}")
    for what, order, kept_order in (
        ("devices", list(told.devices), list(kept.devices)),
        ("versions", list(told.versions), list(kept.versions)),
    ):
        if not problems and order != kept_order:
            problems.append(f"{what} are in another order than the journal says")
    told_refs = {(ref.model, ref.kind, ref.name): ref.version for ref in told.refs}
    kept_refs = {(ref.model, ref.kind, ref.name): ref.version for ref in kept.refs}
    if told_refs != kept_refs:
        names = sorted({name for _, _, name in dict(told_refs.items() ^ kept_refs.items())})
        problems.append(f"branches and tags differ from what the journal says: {', '.join(names[:10])}")
    return problems
