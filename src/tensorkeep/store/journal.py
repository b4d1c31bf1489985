"""The journal on devices: what the catalog's outbox holds goes out in order, and a verb succeeds when enough devices have it.

Whoever flushes sends all older entries first, so a device's newest entry says that it has every earlier one since the last
snapshot. After the entries are durable the device's identity is read again: a catalog that a rebuild has replaced in
between learns it here, before the verb is acknowledged.
"""

from collections.abc import Callable, Sequence
from functools import partial

from tensorkeep.catalog.protocol import Catalog, DeviceHead, JournalRow
from tensorkeep.catalog.rules import check_heads
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Conflict, NotEnoughCopies, TensorkeepError
from tensorkeep.records.device import DeviceFacts, counted_devices
from tensorkeep.records.naming import JournalName, parse_physical_name, physical_name
from tensorkeep.records.redundancy import metadata_copies, parse_policy
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid
from tensorkeep.runtime import Runtime
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import Fleet
from tensorkeep.store.patience import put_patiently

_BATCH = 500


def new_ulid(runtime: Runtime) -> str:
    """Return a fresh ulid of now."""
    return make_ulid(runtime.clock.now(), runtime.randomness.random_bytes(RANDOM_BYTES))


def owed_devices(devices: Sequence[DeviceFacts], policy: str) -> int:
    """Return how many devices an entry must be on: as many as a manifest owes, of the durable ones where there are any."""
    count = len(counted_devices(devices))
    return metadata_copies(parse_policy(policy), count) if count else 0


def refuse_stale(context: StoreContext) -> None:
    """Return if no device is ahead of the catalog or tells another history; for verbs that may end without a transaction.

    Raises:
        Conflict: one is (``reason="stale_catalog"``).
    """
    heads = context.fleet.heads()  # first: what they hold by now, the catalog has
    info = context.catalog.info()
    digests = {(row.epoch, row.seq): row.digest for row in context.catalog.journal_rows()}
    check_heads(
        heads, epoch=info.epoch, last_seq=info.last_seq, find_digest=lambda epoch, seq: digests.get((epoch, seq))
    )


def record_change(
    context: StoreContext, change: Callable[[tuple[DeviceHead, ...]], int], *, policy: str | None = None
) -> None:
    """Make a change in the catalog, and return when its entry is durable on as many devices as it owes.

    Args:
        context: the store.
        change: one transaction of the catalog; it is handed what the devices say, and returns the entry's seq.
        policy: whose debt counts: the model's that is changed, the store's if None.

    Raises:
        NotEnoughCopies: committed, but on too few devices.
        Conflict: the catalog is stale, or was rebuilt meanwhile.
    """
    epoch = context.catalog.info().epoch
    seq = change(context.fleet.heads())
    flush_journal(context.catalog, context.fleet, seq, epoch=epoch, runtime=context.runtime, policy=policy)


def flush_journal(
    catalog: Catalog,
    fleet: Fleet,
    seq: int,
    *,
    epoch: int,
    runtime: Runtime,
    policy: str | None = None,
    need: int | None = None,
) -> None:
    """Return when the entry ``seq`` and all before it are durable on as many devices as they owe.

    Args:
        catalog: whose outbox is sent.
        fleet: where to.
        seq: the entry that the verb appended.
        epoch: the catalog's, read before the verb changed anything: a rebuild may have put another catalog in its place since.
        runtime: clock, randomness, workers.
        policy: whose debt counts; the store's if None.
        need: how many devices are enough, where the caller knows better than the policy (a degraded push).

    Raises:
        NotEnoughCopies: committed, but on fewer devices; the next verb sends the rest.
        Conflict: the catalog was rebuilt meanwhile (``reason="catalog_rebuilt"``); the entry may be lost with the old one.
    """
    members = fleet.members()
    failures: list[str] = [f"{m.facts.name}: {m.problem}" for m in members if not m.writable]
    targets = [(m.facts, m.device) for m in members if m.writable and m.device is not None]
    with runtime.workers.open_pool(max(1, len(targets)), "journal") as pool:
        tasks = [
            (facts, pool.submit(_send_backlog, catalog, fleet, facts, device, epoch, runtime))
            for facts, device in targets
        ]
        for facts, task in tasks:
            try:
                task.result()
            except TensorkeepError as error:
                failures.append(f"{facts.name}: {error.message}")
    owed = owed_devices(catalog.list_devices(), policy or catalog.info().policy) if need is None else need
    _check_copies(catalog, seq, owed, failures, epoch)
    trim_journal(catalog, fleet, runtime=runtime)


def trim_journal(catalog: Catalog, fleet: Fleet, *, runtime: Runtime) -> None:
    """Remove entries older than a snapshot that every device has, from the catalog and from the devices."""
    seq = catalog.trim_journal()
    if not seq:
        return
    for device in fleet.writable().values():
        try:
            _trim_device(device, seq)
        except TensorkeepError:
            continue  # the verb is done: what could not be removed now is removed by the next
    runtime.failpoints.hit("journal.trimmed")


def _trim_device(device: Device, seq: int) -> None:
    for info in list(device.iter_objects("journal/")):
        name = parse_physical_name(info.name)
        if isinstance(name, JournalName) and name.seq < seq:
            device.delete(info.name)
    device.flush()


def _send_backlog(
    catalog: Catalog, fleet: Fleet, facts: DeviceFacts, device: Device, epoch: int, runtime: Runtime
) -> None:
    while rows := catalog.journal_backlog(facts.id, limit=_BATCH):
        for row in rows:
            put_patiently(device, partial(_fresh_name, row, runtime), [row.body], runtime=runtime)
        runtime.failpoints.hit("journal.written")
        device.flush()
        runtime.failpoints.hit("journal.flushed")
        fleet.check_epoch(facts, device, epoch)
        catalog.record_flushed(facts.id, rows[-1].seq)
        runtime.failpoints.hit("journal.recorded")
        if len(rows) < _BATCH:
            return


def _fresh_name(row: JournalRow, runtime: Runtime) -> str:
    return entry_name(row, new_ulid(runtime))


def entry_name(row: JournalRow, ulid: str) -> str:
    """Return the physical name of a journal entry."""
    return physical_name(JournalName(row.epoch, row.seq, bytes.fromhex(row.digest), ulid))


def _check_copies(catalog: Catalog, seq: int, owed: int, failures: Sequence[str], epoch: int) -> None:
    flushed = catalog.flushed()
    have = sum(flushed.get(facts.id, 0) >= seq for facts in counted_devices(catalog.list_devices()))
    # Read last: then the numbers above are of no newer catalog than this.
    if catalog.info().epoch != epoch:
        raise Conflict(
            "the catalog was rebuilt while this ran, and may lack what was just committed: look again, then retry",
            reason="catalog_rebuilt",
            seq=seq,
        )
    if have < owed:
        raise NotEnoughCopies(
            f"committed, not yet on devices: journal entry {seq} is on {have} of the {owed} devices it owes"
            + (f" ({'; '.join(failures)})" if failures else "")
            + "; bring the device back or run `tensorkeep device lost NAME`, any later command sends the rest",
            seq=seq,
            have=have,
            owed=owed,
        )
