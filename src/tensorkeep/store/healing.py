"""Giving objects the copies that they owe: read from a good copy or put together from fragments, written, read back, counted.

Repair and drain do this, and a change of policy, which writes them in another form. What a run that was killed has written counts;
the next one does the rest. The objects that may lose fewest more devices come first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby

from tensorkeep.catalog.counting import best_form, is_of_code
from tensorkeep.catalog.protocol import Location, ObjectKey, ShortObject
from tensorkeep.catalog.rules import USABLE
from tensorkeep.devices.rate_limit import TokenBucket, open_bucket
from tensorkeep.errors import TensorkeepError
from tensorkeep.planning.placement import DeviceShare, place_parts
from tensorkeep.records.device import counted_devices
from tensorkeep.records.layout import MIB
from tensorkeep.records.naming import ObjectKind, VersionName, parse_physical_name
from tensorkeep.records.redundancy import ErasureCoded, Policy, Replicas, fragment_bytes, parse_form
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fragments import code_of, held_part
from tensorkeep.store.object_writer import NewObject, ObjectWriter
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.push_target import device_shares
from tensorkeep.store.reports import ProgressCallback
from tensorkeep.store.sessions import new_session
from tensorkeep.store.structure import read_object

_PAGE = 2000
_BATCH_BYTES = 64 * MIB
_BATCH_OBJECTS = 64
_WORKERS = 4


@dataclass(slots=True)
class Healed:
    """What became of objects that lacked copies: ``failed`` says why some still do, ``warnings`` what devices had."""

    keys: set[ObjectKey] = field(default_factory=set)
    failed: dict[ObjectKey, str] = field(default_factory=dict)
    warnings: set[str] = field(default_factory=set)
    written_bytes: int = 0
    device_bytes: dict[str, int] = field(default_factory=dict)


def find_short(context: StoreContext, *, down: Sequence[str] = (), parts: bool = True) -> list[ShortObject]:
    """Return objects with fewer copies than they owe, those that may lose fewest more devices first.

    Args:
        context: the store.
        down: devices whose copies don't count. One that only can't be reached now is not among them: its copies are there.
        parts: False leaves out the parts, so that only what describes versions is found.
    """
    found: list[ShortObject] = []
    after = 0
    while page := context.catalog.list_short(down=down, parts=parts, after=after, limit=_PAGE):
        after = page[-1].id
        found += page
    return sorted(found, key=lambda short: (short.have, short.id))


def heal(
    context: StoreContext,
    short: Sequence[ShortObject],
    *,
    down: Sequence[str] = (),
    rate_limit: int | None = None,
    progress: ProgressCallback | None = None,
    into: Policy | None = None,
) -> Healed:
    """Give objects the copies that they owe, as far as devices can be read and written; return what became of them.

    Each new copy is read back from its device before it counts. Nothing is removed.

    Args:
        context: the store.
        short: what lacks copies, in the order in which it is to be healed.
        down: devices whose copies don't count.
        rate_limit: bytes of objects per second that are never exceeded; None: no limit.
        progress: told of the bytes of objects that are done.
        into: the form that objects are given, all of it, whatever else there is of them; None: each keeps its own.
    """
    healed = Healed()
    if not short:
        return healed
    with writing_copies(context, down=down) as writer:
        work = _Healing(context, writer, healed, open_bucket(rate_limit, context.runtime.clock), into)
        step = "repair" if into is None else "convert"
        work.run(short, ByteProgress(progress, step, sum(each.size_bytes for each in short)))
    healed.written_bytes = writer.tally.written_bytes
    healed.warnings = {warning for warning in writer.tally.warnings if warning.startswith("device ")}
    healed.device_bytes = dict(writer.tally.device_bytes)
    return healed


@contextmanager
def writing_copies(context: StoreContext, *, down: Sequence[str]) -> Iterator[ObjectWriter]:
    """Yield a writer, in a session of its own, of copies that are read back before they count.

    Copies on soft devices count as in the versions that have them; where new ones go is for the caller to choose.
    """
    with (
        new_session(context) as session,
        ObjectWriter(context, session, down=down, allow_soft=True, allow_degraded=True, read_back=True) as writer,
    ):
        yield writer


def settle_states(context: StoreContext, keys: Sequence[ObjectKey]) -> None:
    """Have new copies of what versions refer to be live, so that gc need not look at them each time."""
    found = context.catalog.locate(keys)
    stored = [row.id for rows in found.values() for row in rows if row.state == "stored"]
    if stored:
        context.catalog.record_checked(good=stored, bad=[])


class _Healing:
    """One run over what lacks copies, page by page; the objects of a page are healed in parallel."""

    def __init__(
        self,
        context: StoreContext,
        writer: ObjectWriter,
        healed: Healed,
        bucket: TokenBucket | None,
        into: Policy | None,
    ) -> None:
        self._context = context
        self._writer = writer
        self._healed = healed
        self._bucket = bucket
        self._into = into
        # What devices hold counts as given, so that a new one gets most; read once, since it takes a look at every row.
        self._held = {row.device: row.bytes - row.bad_bytes for row in context.catalog.device_usage()}

    def run(self, short: Sequence[ShortObject], counter: ByteProgress) -> None:
        failpoints = self._context.runtime.failpoints
        with self._context.runtime.workers.open_pool(_WORKERS, "heal") as pool:
            for start in range(0, len(short), _PAGE):
                page = short[start : start + _PAGE]
                objects = self._plan(page)
                failpoints.hit("repair.planned")
                tasks = [pool.submit(self._heal_batch, batch, counter) for batch in _batches(objects)]
                for task in tasks:
                    task.result()
                for lost in self._writer.settle():
                    self._healed.keys.discard(lost.key)
                    self._healed.failed[lost.key] = "its device was another one when it was written"
                failpoints.hit("repair.written")
                settle_states(self._context, [each.key for each in page])
                failpoints.hit("repair.recorded")

    def _plan(self, page: Sequence[ShortObject]) -> list["_Planned"]:
        """Return what is to be restored, with the devices for it: those of one form are placed together, by bandwidth and room."""
        devices = counted_devices(self._context.catalog.list_devices())
        shares = device_shares(self._context, devices, allow_soft=True)
        located = self._context.catalog.locate([each.key for each in page])
        planned = []
        for each in page:
            rows = located[each.key]
            if not shares:
                self._healed.failed[each.key] = "no device can be written"
            elif not rows:
                self._healed.failed[each.key] = "no copy is known"
            else:
                planned.append(self._choose_form(each, rows))
        planned.sort(key=lambda plan: (plan.short.have, plan.policy_name))
        for _, group in groupby(planned, key=lambda plan: (plan.short.have, plan.policy_name)):
            self._place(list(group), shares)
        return planned

    def _choose_form(self, short: ShortObject, rows: Sequence[Location]) -> "_Planned":
        good = [row for row in rows if row.state in USABLE]
        if self._into is None:
            return _Planned(short, rows, good, _code_of(rows, short.owed))
        code = code_of(self._into, short.size_bytes)
        return _Planned(short, rows, [row for row in good if is_of_code(row, code)], code, anew=True)

    def _place(self, group: Sequence["_Planned"], shares: Sequence[DeviceShare]) -> None:
        """Find devices for objects of one form; what they get counts as given to them from then on."""
        given = [replace(share, given_bytes=self._held.get(share.id, 0)) for share in shares]
        policy = group[0].code or Replicas(group[0].short.owed)
        wanted = []
        for plan in group:
            good = [row for row in plan.rows if row.state in USABLE]  # what has another form keeps its device as well
            wanted.append(held_part(good, plan.short.size_bytes, plan.code))
        for plan, candidates in zip(group, place_parts(wanted, given, policy=policy, short=True), strict=True):
            plan.candidates = candidates
            holders = {row.device for row in plan.kept}
            size = fragment_bytes(plan.short.size_bytes, plan.code.data) if plan.code else plan.short.size_bytes
            for device in [each for each in candidates if each not in holders][: plan.lacking]:
                self._held[device] = self._held.get(device, 0) + size

    def _heal_batch(self, batch: Sequence["_Planned"], counter: ByteProgress) -> None:
        objects = []
        for plan in batch:
            if self._bucket is not None:
                self._bucket.take(plan.short.size_bytes)
            try:
                data = read_object(self._context, plan.short.key)
            except TensorkeepError as error:
                self._healed.failed[plan.short.key] = error.message
                continue
            objects.append(plan.to_write(data))
        self._write(objects)
        for plan in batch:
            counter.count(plan.short.size_bytes)

    def _write(self, objects: Sequence[NewObject]) -> None:
        try:
            self._writer.write(objects)
            self._healed.keys.update(new.key for new in objects)
        except TensorkeepError as error:
            if len(objects) <= 1:
                self._healed.failed.update({new.key: error.message for new in objects})
                return
            for new in objects:  # one that finds no place must not keep the others from theirs
                self._write([new])


@dataclass(slots=True)
class _Planned:
    """An object to restore: its rows, those that count, the code it is kept in (None: whole copies), where new copies may go."""

    short: ShortObject
    rows: Sequence[Location]
    kept: Sequence[Location]
    code: ErasureCoded | None
    anew: bool = False
    candidates: tuple[str, ...] = ()

    @property
    def lacking(self) -> int:
        """How many copies, or fragments, are to be written."""
        if self.anew and self.code is not None:
            return self.code.slots - len({row.fragment for row in self.kept})
        return self.short.owed - self.short.have

    @property
    def policy_name(self) -> str:
        return str(self.code or Replicas(self.short.owed))

    def to_write(self, data: bytes) -> NewObject:
        model = None
        if self.short.key.kind is ObjectKind.VERSION:
            name = parse_physical_name(self.rows[0].name)
            assert isinstance(name, VersionName)
            model = name.model
        return NewObject(
            self.short.key,
            data,
            len(data),
            self.short.owed,
            self.candidates,
            model=model,
            code=self.code,
            anew=self.anew,
        )


def _code_of(rows: Sequence[Location], owed: int) -> ErasureCoded | None:
    """Return the code that an object is kept in: of the fragments that are good, else of those that are bad.

    None where it has no fragments, or owes more copies than all fragments of the code are: whole copies make up for it.
    """
    fragments = [row for row in rows if row.fragment is not None]
    best = best_form([row for row in fragments if row.state in USABLE]) or best_form(fragments)
    code = parse_form(best[0].form) if best else None
    return code if code is not None and code.losses + 1 >= owed else None


def _batches(planned: Sequence[_Planned]) -> Iterator[list[_Planned]]:
    """Yield runs of objects that are read and written together."""
    batch: list[_Planned] = []
    size = 0
    for plan in planned:
        if batch and (size + plan.short.size_bytes > _BATCH_BYTES or len(batch) == _BATCH_OBJECTS):
            yield batch
            batch, size = [], 0
        batch.append(plan)
        size += plan.short.size_bytes
    if batch:
        yield batch
