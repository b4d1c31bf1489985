"""The journal in the database: entries are appended by the transaction that changes, and kept until devices have them."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, func, select, update

from tensorkeep.catalog import rules, schema
from tensorkeep.catalog.chain import ChainEnd, extend, find_catalog_problems, next_row
from tensorkeep.catalog.database import Transaction
from tensorkeep.catalog.protocol import CatalogInfo, DeviceHead, JournalRow
from tensorkeep.catalog.sql_rows import read_state, values_of
from tensorkeep.errors import Integrity, InvalidInput, NotFound
from tensorkeep.records.device import GONE
from tensorkeep.records.history import Change, take_snapshot

_ROW = (schema.journal.c.epoch, schema.journal.c.seq, schema.journal.c.digest, schema.journal.c.body)

_STORE = schema.store.c
_INFO = select(_STORE.store, _STORE.epoch, _STORE.last_seq, _STORE.head, _STORE.policy)
_END = select(_STORE.store, _STORE.epoch, _STORE.last_seq, _STORE.head, _STORE.last_snapshot)


def read_info(connection: Connection) -> CatalogInfo:
    """Return the store's identity and the journal's head."""
    row = connection.execute(_INFO).first()
    if row is None:
        raise Integrity("the catalog has lost its store row: run `tensorkeep rebuild-catalog`")
    return CatalogInfo(**row._mapping)


def read_end(connection: Connection, *, lock: bool = False) -> ChainEnd:
    """Return where the journal stands; ``lock`` keeps other transactions from appending (SQLite: they can't anyway)."""
    row = connection.execute(_END.with_for_update() if lock else _END).first()
    if row is None:
        raise Integrity("the catalog has lost its store row: run `tensorkeep rebuild-catalog`")
    return ChainEnd(**row._mapping)


def refuse_stale(connection: Connection, heads: Sequence[DeviceHead]) -> None:
    """Return if no device is ahead of this catalog or tells another history.

    Raises:
        Conflict: one is (``reason="stale_catalog"``).
    """
    end = read_end(connection)

    def find_digest(epoch: int, seq: int) -> str | None:
        table = schema.journal
        query = select(table.c.digest).where(table.c.seq == seq, table.c.epoch == epoch)
        return connection.execute(query).scalar()

    rules.check_heads(heads, epoch=end.epoch, last_seq=end.last_seq, find_digest=find_digest)


def append(tx: Transaction, changes: Sequence[Change], now: datetime) -> int:
    """Append the entry of this transaction's changes, after they were made in the tables; return its seq.

    Where enough entries have passed since the last one, a snapshot of the tables follows as an entry of its own.
    """
    end = _append_row(tx.connection, read_end(tx.connection, lock=True), changes, now)
    seq = end.last_seq
    if seq - end.last_snapshot >= tx.snapshot_every:
        append_snapshot(tx.connection, end, now)
    return seq


def append_snapshot(connection: Connection, end: ChainEnd, now: datetime) -> int:
    """Append an entry that holds the whole state of the tables; return its seq."""
    return _append_row(connection, end, [take_snapshot(read_state(connection))], now, snapshot=True).last_seq


def backlog(connection: Connection, device: str, limit: int) -> list[JournalRow]:
    """Return the entries that a device lacks, oldest first.

    A device that has entries gets the ones after them. One that has none, or whose next entry was trimmed, begins at the
    newest snapshot (at the first entry while there is none): that chain alone tells the whole state.
    """
    table = schema.journal
    flushed = connection.execute(select(schema.devices.c.flushed_seq).where(schema.devices.c.id == device)).scalar()
    if flushed is None:
        raise NotFound(f"there is no device {device}", device=device)
    end = read_end(connection)
    oldest = connection.execute(select(func.min(table.c.seq))).scalar() or 1
    first = flushed + 1 if flushed and flushed + 1 >= oldest else max(end.last_snapshot, 1)
    rows = connection.execute(select(*_ROW).where(table.c.seq >= first).order_by(table.c.seq).limit(limit))
    return [JournalRow(**row._mapping) for row in rows]


def read_rows(connection: Connection) -> list[JournalRow]:
    """Return every entry that the catalog keeps, oldest first."""
    rows = connection.execute(select(*_ROW).order_by(schema.journal.c.seq))
    return [JournalRow(**row._mapping) for row in rows]


def record_flushed(connection: Connection, device: str, seq: int) -> None:
    """Note that a device holds every entry up to this seq; never goes back."""
    table = schema.devices
    end = read_end(connection)
    if seq > end.last_seq:
        raise InvalidInput(f"the journal ends at entry {end.last_seq}: no device can hold entry {seq}", device=device)
    if connection.execute(select(table.c.number).where(table.c.id == device)).scalar() is None:
        raise NotFound(f"there is no device {device}", device=device)
    connection.execute(update(table).where(table.c.id == device, table.c.flushed_seq < seq).values(flushed_seq=seq))


def read_flushed(connection: Connection) -> dict[str, int]:
    """Return the last seq that each device (that is not gone) holds."""
    table = schema.devices
    rows = connection.execute(
        select(table.c.id, table.c.flushed_seq).where(table.c.state.not_in(GONE)).order_by(table.c.number)
    )
    return {row.id: row.flushed_seq for row in rows}


def trim(connection: Connection) -> int:
    """Forget entries older than the newest snapshot that every device (that is not gone) holds; return its seq or 0.

    Without any device nothing is forgotten: the catalog is then the only one that has the history.
    """
    table = schema.journal
    read_end(connection, lock=True)  # no device may be added meanwhile
    everywhere = min(read_flushed(connection).values(), default=0)
    query = select(func.max(table.c.seq)).where(table.c.snapshot, table.c.seq <= everywhere)
    snapshot: int = connection.execute(query).scalar() or 0
    connection.execute(delete(table).where(table.c.seq < snapshot))
    return snapshot


def find_problems(connection: Connection) -> list[str]:
    """Return what is wrong with the journal's chain, or where the tables differ from what it tells."""
    return find_catalog_problems(read_rows(connection), read_end(connection), read_state(connection))


def insert_row(connection: Connection, row: JournalRow, *, snapshot: bool) -> None:
    """Insert an entry as it is; ``snapshot`` says whether it holds a whole state."""
    connection.execute(schema.journal.insert().values(**values_of(row), snapshot=snapshot))


def _append_row(
    connection: Connection, end: ChainEnd, changes: Sequence[Change], now: datetime, *, snapshot: bool = False
) -> ChainEnd:
    row = next_row(end, changes, now)
    insert_row(connection, row, snapshot=snapshot)
    after = extend(end, row, snapshot=snapshot)
    connection.execute(
        update(schema.store).values(last_seq=after.last_seq, head=after.head, last_snapshot=after.last_snapshot)
    )
    return after
