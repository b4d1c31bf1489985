"""The store's devices as this process sees them: opened once, identity checked at first use, never believed blindly.

A device is used only when its ``tensorkeep.json`` says that it is this store's and this very device: an empty mount point,
another store's disk or two swapped disks are refused by name. A device that can't be used is *unreachable*, which is never
the same as *absent*: nothing is deleted or called lost because of it.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tensorkeep.catalog.protocol import Catalog, DeviceHead
from tensorkeep.devices.opening import open_device
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Format, Integrity, PermissionDenied, TensorkeepError, Unavailable
from tensorkeep.records.device import (
    IDENTITY_NAME,
    DeviceFacts,
    DeviceIdentity,
    decode_identity,
    encode_identity,
    is_gone,
)
from tensorkeep.records.json_text import format_time
from tensorkeep.records.naming import JournalName, parse_physical_name
from tensorkeep.runtime import Runtime

UNSEEN = "unseen_by_rebuild"
"""``reason`` of a device that was away when the catalog was rebuilt: what it holds is not in the catalog."""

_SLOW_S = 1.0
"""A device that takes longer to say that it can't be used is not asked again at once: who goes through many steps would wait at each."""

_LEFT_ALONE_S = 10.0
"""For how long at most it is left alone; else for as long as it has taken."""

DeviceOpener = Callable[[DeviceFacts, Runtime], Device]


def open_by_facts(facts: DeviceFacts, runtime: Runtime) -> Device:
    """Return the device that a catalog row describes, rate limited where the user asked for it."""
    return open_device(facts.url, runtime=runtime, rate_limit_bytes_per_s=facts.rate_limit)


@dataclass(frozen=True, slots=True)
class Member:
    """A device of the store: its row, its handle, and why it can't be used (None where it can).

    ``readable`` alone may hold where only the identity is damaged: objects are verified by themselves, so reading stays safe.
    """

    facts: DeviceFacts
    device: Device | None
    problem: TensorkeepError | None

    @property
    def readable(self) -> bool:
        """Whether objects may be read from it."""
        return self.device is not None and (self.problem is None or isinstance(self.problem, Integrity))

    @property
    def writable(self) -> bool:
        """Whether objects may be written to it."""
        return self.device is not None and self.problem is None


class _Handle(NamedTuple):
    """What an open device hangs on. All else of a row may change, and the open one still knows what is not durable yet."""

    device: str
    url: str
    rate_limit: int | None


def _handle(facts: DeviceFacts) -> _Handle:
    return _Handle(facts.id, facts.url, facts.rate_limit)


class Fleet:
    """All devices of a store that are not gone. Thread safe."""

    def __init__(self, catalog: Catalog, *, runtime: Runtime, opener: DeviceOpener = open_by_facts) -> None:
        self._catalog = catalog
        self._runtime = runtime
        self._opener = opener
        self._lock = threading.Lock()
        self._opened: dict[_Handle, Device] = {}
        self._checked: set[str] = set()
        self._silent: dict[str, tuple[float, TensorkeepError]] = {}  # until when it is left alone, and what it said

    def members(self, known: Sequence[DeviceFacts] | None = None) -> list[Member]:
        """Return every device that is not gone, opened and checked where that was not done.

        Args:
            known: the catalog's rows of all devices, just read; None reads them.
        """
        rows = self._catalog.list_devices() if known is None else known
        return [self._member(facts) for facts in rows if not is_gone(facts)]

    def readable(self, known: Sequence[DeviceFacts] | None = None) -> dict[str, Device]:
        """Return the devices that can be read now, by id; ``known`` is as for `members`."""
        return {m.facts.id: m.device for m in self.members(known) if m.readable and m.device is not None}

    def writable(self) -> dict[str, Device]:
        """Return the devices that can be written now, by id; draining ones too, which take journal entries and deletions only."""
        return {m.facts.id: m.device for m in self.members() if m.writable and m.device is not None}

    def names(self) -> dict[str, str]:
        """Return the user's name of every device, those that are gone too, by id."""
        return {facts.id: facts.name for facts in self._catalog.list_devices()}

    def heads(self) -> tuple[DeviceHead, ...]:
        """Return what every reachable device says of its epoch and journal, read now."""
        heads = []
        for member in self.members():
            if member.writable and member.device is not None:
                try:
                    identity = _read_identity(member.facts, member.device)
                    self._check_same(member.facts, identity, self._catalog.info().store)
                    heads.append(_read_head(member.facts, member.device, identity))
                except TensorkeepError:
                    self._distrust(member.facts.id)  # it can't tell any more; its next use finds out why
        return tuple(heads)

    def check_epoch(self, facts: DeviceFacts, device: Device, epoch: int) -> None:
        """Return if a device is still the one that it was, and has not been taken over by a newer catalog.

        Raises:
            Unavailable: another disk is there now, or its identity has a higher epoch.
        """
        identity = _read_identity(facts, device)
        try:
            self._check_same(facts, identity, self._catalog.info().store)
        except Unavailable:
            self._distrust(facts.id)
            raise
        if identity.epoch > epoch:
            raise Unavailable(
                f"device {facts.name} belongs to a newer catalog (epoch {identity.epoch}, this one has {epoch}): "
                "run `tensorkeep rebuild-catalog`",
                device=facts.name,
            )

    def recheck(self) -> None:
        """Check every identity again at its next use: disks come and go while a process lives."""
        with self._lock:
            self._checked.clear()
            self._silent.clear()

    def forget(self, device_id: str) -> None:
        """Close what is known of a device, so that its next use opens and checks it again."""
        with self._lock:
            self._checked.discard(device_id)
            self._silent.pop(device_id, None)
            for handle in [handle for handle in self._opened if handle.device == device_id]:
                del self._opened[handle]

    def _distrust(self, device_id: str) -> None:
        # The handle stays: it knows whether an fsync failed, and what it has not made durable yet.
        with self._lock:
            self._checked.discard(device_id)

    def _member(self, facts: DeviceFacts) -> Member:
        with self._lock:
            device = self._opened.get(_handle(facts))
            checked = facts.id in self._checked
            until_s, silence = self._silent.get(facts.id, (0.0, None))
        if silence is not None and not checked and self._runtime.clock.monotonic_s() < until_s:
            return Member(facts, device, silence)
        try:
            if device is None:
                device = self._opener(facts, self._runtime)
                with self._lock:
                    device = self._opened.setdefault(_handle(facts), device)
            if not checked:
                self._check_identity(facts, self._ask_identity(facts, device))
                with self._lock:
                    self._checked.add(facts.id)
                    self._silent.pop(facts.id, None)
        except TensorkeepError as error:
            return Member(facts, device, error)
        return Member(facts, device, None)

    def _ask_identity(self, facts: DeviceFacts, device: Device) -> DeviceIdentity:
        """Return a device's identity; remember for a while that it was slow to say that it has none to give."""
        started_s = self._runtime.clock.monotonic_s()
        try:
            return _read_identity(facts, device)
        except TensorkeepError as error:
            now_s = self._runtime.clock.monotonic_s()
            if now_s - started_s > _SLOW_S:
                with self._lock:
                    self._silent[facts.id] = now_s + min(now_s - started_s, _LEFT_ALONE_S), error
            raise

    def _check_identity(self, facts: DeviceFacts, identity: DeviceIdentity) -> None:
        info = self._catalog.info()
        self._check_same(facts, identity, info.store)
        if identity.epoch < info.epoch:
            raise Unavailable(
                f"device {facts.name} was away when the catalog was rebuilt, so that nothing is known of what it holds: run "
                f"`tensorkeep rebuild-catalog` again to take it in, or mark it with `tensorkeep device lost {facts.name}`",
                device=facts.name,
                reason=UNSEEN,
            )

    @staticmethod
    def _check_same(facts: DeviceFacts, identity: DeviceIdentity, store: str) -> None:
        """Return if an identity is this store's and this very device's; raises `Unavailable`."""
        if identity.store != store:
            raise Unavailable(
                f"{facts.url} belongs to another store ({identity.store}), not to this one ({store}): "
                f"mount the right disk as device {facts.name}",
                device=facts.name,
            )
        if identity.device != facts.id:
            raise Unavailable(
                f"{facts.url} is another device of this store than {facts.name}: were two disks swapped?",
                device=facts.name,
            )


def write_identity(device: Device, device_id: str, *, store: str, epoch: int, runtime: Runtime) -> None:
    """Give a device its identity in an epoch, durably."""
    identity = DeviceIdentity(
        layout=1, store=store, device=device_id, epoch=epoch, created_at=format_time(runtime.clock.now())
    )
    device.replace_identity(encode_identity(identity))


def newest_entry(device: Device) -> JournalName | None:
    """Return the name of a device's newest journal entry, or None where it has none."""
    newest: JournalName | None = None
    for info in device.iter_objects("journal/"):
        name = parse_physical_name(info.name)
        if isinstance(name, JournalName) and (newest is None or (name.epoch, name.seq) > (newest.epoch, newest.seq)):
            newest = name
    return newest


def _read_head(facts: DeviceFacts, device: Device, identity: DeviceIdentity) -> DeviceHead:
    newest = newest_entry(device)
    if newest is None:
        return DeviceHead(device=facts.id, epoch=identity.epoch)
    return DeviceHead(
        device=facts.id,
        epoch=identity.epoch,
        entry_epoch=newest.epoch,
        seq=newest.seq,
        digest=newest.digest.hex(),
    )


def _read_identity(facts: DeviceFacts, device: Device) -> DeviceIdentity:
    try:
        data = device.read_identity()
    except PermissionDenied as error:
        raise Unavailable(f"device {facts.name} can't be read: {error.message}", device=facts.name) from error
    if data is None:
        raise Unavailable(
            f"device {facts.name} has no {IDENTITY_NAME} at {facts.url}: is its disk mounted?", device=facts.name
        )
    try:
        return decode_identity(data, device=facts.name)
    except Format as error:
        if error.facts.get("layout") is not None:
            raise Unavailable(error.message, device=facts.name) from error
        raise Integrity(error.message, device=facts.name) from error
