"""Writes objects to the devices that the catalog staged them on, and takes the next device where one fails.

Each batch: staged (the rows exist before any upload starts), put on all devices in parallel, flushed; once their device is
confirmed to be the one that it was (`tensorkeep.store.confirming`), copies are noted to be recorded as stored with the next
staging. A device that is full or read-only gets nothing more in this push, one that does not
answer is also not counted any more; its staged rows are condemned and the objects staged again elsewhere, if the policy finds
room. Where a device says that its trouble passes, they are staged again there, under new names, after a pause.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from typing_extensions import Buffer

from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.protocol import Location, ObjectKey, ObjectRequest, Staging
from tensorkeep.errors import Capacity, NotEnoughCopies, PermissionDenied, TensorkeepError
from tensorkeep.planning.slots import keep_places
from tensorkeep.records.redundancy import ErasureCoded, fragment_bytes
from tensorkeep.runtime import Cancellation
from tensorkeep.store.confirming import Confirmations
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fragments import make_fragments
from tensorkeep.store.journal import new_ulid
from tensorkeep.store.patience import Patience
from tensorkeep.store.staging import StagingQueue
from tensorkeep.store.uploads import Upload, Uploader

_HEARTBEAT_S = 30.0


@dataclass(frozen=True, slots=True)
class NewObject:
    """An object that a push needs on ``copies`` devices: the first of ``candidates`` that can take it.

    ``code``: what is lacking of it is written as fragments, the i-th to candidate i. ``anew``: it changes its form, see `ObjectRequest`.
    """

    key: ObjectKey
    data: Buffer
    size_bytes: int
    copies: int
    candidates: tuple[str, ...]
    model: str | None = None
    code: ErasureCoded | None = None
    anew: bool = False

    @property
    def most_bytes(self) -> int:
        """What it takes of a device at most."""
        return self.size_bytes if self.code is None else fragment_bytes(self.size_bytes, self.code.data)


@dataclass(slots=True)
class WriteTally:
    """What was written so far."""

    new_keys: set[ObjectKey] = field(default_factory=set)
    new_bytes: int = 0
    written_bytes: int = 0
    device_bytes: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class ObjectWriter:
    """Writes the objects of one push session. Thread safe; several batches may be under way at once.

    A context manager: when it is left, by an error too, everything that is durable is recorded as stored.

    Args:
        context: the store.
        session: the ulid of the push, or of what else writes.
        down: devices whose copies don't count.
        allow_soft: whether copies on devices that may not survive a power cut count.
        allow_degraded: whether objects that find too few devices are no error.
        read_back: whether each copy is read from its device before it counts.
    """

    def __init__(
        self,
        context: StoreContext,
        session: str,
        *,
        down: Sequence[str],
        allow_soft: bool,
        allow_degraded: bool,
        read_back: bool = False,
    ) -> None:
        runtime = context.runtime
        self._context = context
        self._session = session
        self._allow_degraded = allow_degraded
        self._lock = threading.Lock()
        self._down = set(down)
        self._closed: dict[str, TensorkeepError] = {}
        self._devices = context.fleet.writable()
        self._facts = {facts.id: facts for facts in context.catalog.list_devices()}
        self._epoch = context.catalog.info().epoch
        self._names = context.fleet.names()
        self._queue = StagingQueue(context.catalog, session, allow_soft=allow_soft, failpoints=runtime.failpoints)
        self._staging = threading.Lock()
        self._room = self._find_room()
        self._full: set[str] = set()
        self._patience = Patience(runtime)
        self._last_heartbeat_s = runtime.clock.monotonic_s()
        self._uploader = Uploader(self._devices, runtime=runtime, read_back=read_back)
        self._confirmations = Confirmations(self._check_device, runtime.clock)
        self._lost: list[Location] = []
        self._pool = runtime.workers.open_pool(max(4, 2 * len(self._devices)), "write")
        self.tally = WriteTally()

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        try:
            if error is None:
                self.settle()
            else:  # which says more than what goes wrong here
                with suppress(TensorkeepError):
                    self._confirm(self._confirmations.waiting())
                    self._record()
        finally:
            self._pool.__exit__(kind, error, trace)
            self._uploader.close()

    def _find_room(self) -> dict[str, int]:
        """Return what devices that have a capacity may still take. Another push at the same time is not counted."""
        used = {row.device: row.bytes for row in self._context.catalog.device_usage()}
        return {
            device: facts.capacity - used.get(device, 0)
            for device, facts in self._facts.items()
            if facts.capacity is not None
        }

    def write(self, objects: Sequence[NewObject], *, stop: Cancellation | None = None) -> None:
        """Return when every object has the copies it needs, durable; `settle` confirms and records them.

        Raises:
            Cancelled: ``stop`` says that the push was given up, and this waited for a device.
            NotEnoughCopies: too few devices are left; the message says what happened to the others.
            Capacity: the same, because they are full.
        """
        self._beat()
        pending = list(objects)
        failures: dict[str, int] = {}
        while pending:
            pending = self._write_round(pending, failures, stop)

    def settle(self) -> list[Location]:
        """Return when everything that was written is recorded as stored, but for what is on a device that is another one now.

        Those copies are given up, and the device takes nothing more. Returns them, with those that were given up since this was
        called last and not written again: a commit asks for what it lacks, all others must.
        """
        failures: dict[str, int] = {}
        while devices := self._confirmations.waiting():
            lost, errors = self._confirm(devices)
            self._note_lost(lost)
            self._patience.wait(self._judge(errors, failures), None)
        self._record()
        with self._lock:
            lost, self._lost = self._lost, []
        return lost

    def _record(self) -> None:
        self._queue.record()
        self._remove(self._queue.take_late())

    def _write_round(
        self, objects: list[NewObject], failures: dict[str, int], stop: Cancellation | None
    ) -> list[NewObject]:
        answers = self._stage(objects)
        self._remove(self._queue.take_late())
        uploads: dict[str, list[Upload]] = {}
        objects_of: dict[int, NewObject] = {}
        for new, answer in zip(objects, answers, strict=True):
            self._check_answer(new, answer)
            bodies = make_fragments(new.data, new.key.digest, answer.staged) if new.code and answer.staged else {}
            for location in answer.staged:
                body = [new.data] if location.fragment is None else bodies[location.fragment]
                uploads.setdefault(location.device, []).append(Upload(body, location))
                objects_of[location.id] = new
        tasks = {device: self._pool.submit(self._uploader.upload, device, work) for device, work in uploads.items()}
        results = {device: task.result() for device, task in tasks.items()}
        for device, result in results.items():
            if result.stored:
                self._patience.note_success(device)
                self._confirmations.add(device, [upload.location for upload in result.stored])
        self._count(objects, answers)
        failed = [upload.location for result in results.values() for upload in result.failed]
        self._give_up(failed)
        errors = {device: result.error for device, result in results.items() if result.error is not None}
        lost, unconfirmed = self._confirm([device for device in results if self._confirmations.is_due(device)])
        failed += [copy for copy in lost if copy.id in objects_of]
        self._note_lost([copy for copy in lost if copy.id not in objects_of])
        errors |= {device: error for device, error in unconfirmed.items() if not error.facts.get("passing")}
        if errors:
            self._patience.wait(self._judge(errors, failures), stop)
            self._beat()
        if failed:  # what of these objects did arrive must count when they are staged again, or all of them would be written anew
            lost, _ = self._confirm(self._confirmations.waiting())
            self._note_lost(lost)
            self._record()
        return list({id(new): new for new in (objects_of[location.id] for location in failed)}.values())

    def _confirm(self, devices: Sequence[str]) -> tuple[list[Location], dict[str, TensorkeepError]]:
        """Note the copies of devices that are what they were, to be recorded; return those that were given up, and all errors.

        Where a device in use has trouble that passes, its copies wait on.
        """
        lost: list[Location] = []
        errors: dict[str, TensorkeepError] = {}
        for task in [self._pool.submit(self._confirmations.confirm, device) for device in devices]:
            device, copies, error = task.result()
            if error is None:
                if copies:  # else it was not asked
                    self._patience.note_success(device)
                self._queue.note_stored(copies)
                self._count_stored(copies)
                continue
            errors[device] = error
            if error.facts.get("passing") and device not in self._closed:
                self._confirmations.add(device, copies)
            else:
                self._give_up(copies)
                lost += copies
        return lost, errors

    def _note_lost(self, copies: Sequence[Location]) -> None:
        with self._lock:
            self._lost += copies

    def _give_up(self, locations: Sequence[Location]) -> None:
        """Have the catalog forget copies that don't count."""
        if locations:
            self._context.catalog.forget_staged(self._session, [location.id for location in locations])
            self._take_room(locations, give_back=True)

    def _judge(self, errors: dict[str, TensorkeepError], failures: dict[str, int]) -> float:
        """Close the devices that failed for good; return for how many seconds those deserve a wait whose trouble passes."""
        pauses_s = [0.0]
        for device, error in errors.items():
            failures[device] = failures.get(device, 0) + 1
            pause_s = self._patience.pause_s(device, error, failures[device])
            if pause_s is None:
                self._close(device, error)
            else:
                pauses_s.append(pause_s)
        return max(pauses_s)

    def _stage(self, objects: Sequence[NewObject]) -> list[Staging]:
        """Ask for places for objects, in one call; one by one where that could take more of a device than the user allows."""
        if not self._room:
            return self._ask(objects)
        with self._staging:
            total = sum(new.size_bytes for new in objects)
            batches = [objects] if all(room >= total for room in self._room.values()) else [[new] for new in objects]
            answers = []
            for batch in batches:
                given = self._ask(batch)
                self._take_room([location for answer in given for location in answer.staged])
                answers += given
            return answers

    def _ask(self, objects: Sequence[NewObject]) -> list[Staging]:
        requests = [self._request(new, new_ulid(self._context.runtime)) for new in objects]
        with self._lock:
            down = frozenset(self._down)
        return self._queue.stage(requests, down=down)

    def _take_room(self, locations: Sequence[Location], *, give_back: bool = False) -> None:
        with self._lock:
            for location in locations:
                if location.device in self._room:
                    self._room[location.device] += location.length if give_back else -location.length

    def _has_room(self, device: str, size_bytes: int) -> bool:
        with self._lock:
            if self._room.get(device, size_bytes) >= size_bytes:
                return True
            self._full.add(device)
            return False

    def _request(self, new: NewObject, ulid: str) -> ObjectRequest:
        return ObjectRequest(
            key=new.key,
            size_bytes=new.size_bytes,
            copies=new.copies,
            candidates=self._candidates(new),
            ulid=ulid,
            model=new.model,
            code=new.code,
            anew=new.anew,
        )

    def _candidates(self, new: NewObject) -> tuple[str, ...]:
        """Return the devices that can take an object; of fragments the others keep their places while there are spare ones."""
        open_ = {
            d
            for d in new.candidates
            if d in self._devices and d not in self._closed and self._has_room(d, new.most_bytes)
        }
        return keep_places(new.candidates, open_, new.code.slots if new.code else 0)

    def _remove(self, locations: Sequence[Location]) -> None:
        """Delete what arrived under names that gc has given up meanwhile: it may have found them absent and forgotten them.

        The commit asks for these objects again.
        """
        for location in locations:
            with suppress(TensorkeepError):
                self._devices[location.device].delete(location.name)

    def _check_device(self, device: str) -> None:
        self._context.fleet.check_epoch(self._facts[device], self._devices[device], self._epoch)

    def _check_answer(self, new: NewObject, answer: Staging) -> None:
        if not answer.missing:
            return
        have = count_copies((*answer.existing, *answer.staged))
        if have >= new.copies:
            self._warn("some parts have fewer copies than another version that shares them owes; repair is due")
            return
        reasons = "; ".join(
            [f"{self._names[d]}: {e.message}" for d, e in self._closed.items()]
            + [
                f"{self._names[d]}: its capacity of {self._facts[d].capacity} bytes is used up"
                for d in sorted(self._full)
            ]
        )
        if have and self._allow_degraded:
            self._warn(f"some objects have only {have} of the copies they owe; repair is due")
            return
        found, wanted = have, f"{have + answer.missing} devices"
        if new.code is not None:
            found, wanted = len(answer.existing) + len(answer.staged), f"{new.code.slots} devices for its fragments"
        message = (
            f"{new.key.kind} {new.key.digest.hex()} finds only {found} of {wanted}"
            + (f" ({reasons})" if reasons else "")
            + ": free space or add devices, lower --replicas or --ec, or push with --allow-degraded"
        )
        if self._full or any(isinstance(error, Capacity) for error in self._closed.values()):
            raise Capacity(message, part=new.key.digest.hex())
        raise NotEnoughCopies(message, part=new.key.digest.hex())

    def _warn(self, warning: str) -> None:
        with self._lock:
            if warning not in self.tally.warnings:
                self.tally.warnings.append(warning)

    def _close(self, device: str, error: TensorkeepError) -> None:
        with self._lock:
            self._closed[device] = error
            if not isinstance(error, (Capacity, PermissionDenied)):
                self._down.add(device)
            warning = f"device {self._names[device]} takes nothing more in this push: {error.message}"
            if not any(w.startswith(f"device {self._names[device]} ") for w in self.tally.warnings):
                self.tally.warnings.append(warning)

    def _count(self, objects: Sequence[NewObject], answers: Sequence[Staging]) -> None:
        with self._lock:
            for new, answer in zip(objects, answers, strict=True):
                if not answer.existing and answer.staged and new.key not in self.tally.new_keys:
                    self.tally.new_keys.add(new.key)
                    self.tally.new_bytes += new.size_bytes

    def _count_stored(self, stored: Sequence[Location]) -> None:
        with self._lock:
            for location in stored:
                name = self._names[location.device]
                self.tally.written_bytes += location.length
                self.tally.device_bytes[name] = self.tally.device_bytes.get(name, 0) + location.length

    def _beat(self) -> None:
        clock = self._context.runtime.clock
        with self._lock:
            now_s = clock.monotonic_s()
            if now_s - self._last_heartbeat_s < _HEARTBEAT_S:
                return
            self._last_heartbeat_s = now_s
        self._context.catalog.heartbeat(self._session, now=clock.now())
