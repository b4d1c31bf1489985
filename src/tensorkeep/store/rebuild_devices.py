"""Finding a store's devices for a rebuild, and fencing every other catalog on them.

The first ones are named by the user or remembered by the note in the store's folder; their journals name the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tensorkeep.devices.opening import normalize_url, open_device
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import (
    InvalidInput,
    NotEnoughCopies,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)
from tensorkeep.records.device import DeviceIdentity, counted_devices, decode_identity, is_gone
from tensorkeep.runtime import Runtime
from tensorkeep.store.fleet import write_identity
from tensorkeep.store.journal import owed_devices
from tensorkeep.store.place import Place
from tensorkeep.store.rebuild_journal import FoundJournal, JournalReader


@dataclass(slots=True)
class FoundDevices:
    """The devices that a rebuild reads, by id, the epoch that it gives them, and what it could not find."""

    store: str
    journals: JournalReader
    epoch: int = 0
    devices: dict[str, tuple[Device, DeviceIdentity]] = field(default_factory=dict)
    unreachable: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def handles(self) -> dict[str, Device]:
        """The devices by id."""
        return {device_id: device for device_id, (device, _) in self.devices.items()}

    def read_journal(self) -> FoundJournal:
        """Return what the journals of the devices tell together by now."""
        return self.journals.read(self.handles)


def find_devices(place: Place, sources: Sequence[str], runtime: Runtime) -> FoundDevices:
    """Return the devices of a store that can be read: those named or remembered, and those that their journals name.

    Raises:
        NotFound: there is none.
        InvalidInput: a named one is another store's.
    """
    found = _open_devices(place, sources, runtime)
    _join_known_devices(found, runtime)
    return found


def _open_devices(place: Place, sources: Sequence[str], runtime: Runtime) -> FoundDevices:
    note = place.find_note()
    urls = [normalize_url(url) for url in sources]
    hints = list(note.devices) if note else []
    if place.first_device is not None and place.first_device.is_dir():
        hints.append(normalize_url(str(place.first_device)))
    store = note.store if note else None
    opened: dict[str, tuple[Device, DeviceIdentity]] = {}
    unreachable = []
    for url in dict.fromkeys([*urls, *hints]):
        try:
            device, identity = _open_one(url, runtime)
        except TensorkeepError as error:
            if url in urls:
                raise
            unreachable.append(f"{url}: {error.message}")
            continue
        if store is not None and identity.store != store:
            if url in urls:
                raise InvalidInput(
                    f"{url} belongs to store {identity.store}, not to {store}: name this store's devices"
                )
            unreachable.append(f"{url}: belongs to another store, {identity.store}")
            continue
        store = identity.store
        opened.setdefault(identity.device, (device, identity))  # what the user named comes first
    if store is None or not opened:
        reasons = f" ({'; '.join(unreachable)})" if unreachable else ""
        raise NotFound(
            f"no device of the store {place.shown} can be read{reasons}: name them with --from URL", store=place.shown
        )
    return FoundDevices(store, JournalReader(runtime.workers), devices=opened, unreachable=unreachable)


def _open_one(url: str, runtime: Runtime) -> tuple[Device, DeviceIdentity]:
    device = open_device(url, runtime=runtime)
    data = device.read_identity()
    if data is None:
        raise Unavailable(f"{url} is no device: it has no tensorkeep.json", url=url)
    return device, decode_identity(data, device=url)


def _join_known_devices(found: FoundDevices, runtime: Runtime) -> None:
    """Open devices that the journal names and nobody else did, until nobody names another one."""
    asked: set[str] = set()
    while new := [
        facts
        for facts in found.read_journal().state.devices.values()
        if facts.id not in found.devices and facts.id not in asked and not is_gone(facts)
    ]:
        for facts in new:
            asked.add(facts.id)
            try:
                device, identity = _open_one(facts.url, runtime)
            except TensorkeepError as error:
                found.unreachable.append(f"{facts.name}: {error.message}")
                continue
            if (identity.store, identity.device) == (found.store, facts.id):
                found.devices[facts.id] = (device, identity)
            else:
                found.unreachable.append(f"{facts.name}: {facts.url} is another device")


def raise_epoch(found: FoundDevices, runtime: Runtime) -> None:
    """Fence every other catalog of the store on the devices; one that takes no writes counts as away: it can't be fenced."""
    for device_id, (device, _) in list(found.devices.items()):
        try:
            write_identity(device, device_id, store=found.store, epoch=found.epoch, runtime=runtime)
            # A writer that died before its flush left names that a power cut may still take; from now on they count.
            device.adopt_names()
        except PermissionDenied as error:
            del found.devices[device_id]
            found.unreachable.append(f"{device.url} can't be written: {error.message}")
    if not found.devices:
        raise NotEnoughCopies(f"no device can be written: {'; '.join(found.unreachable)}")


def check_quorum(found: FoundDevices) -> None:
    """Return if no acknowledged change can lie on devices alone that were not found.

    Raises:
        NotEnoughCopies: one can: the rebuilt catalog would not have it, and gc would delete what it needs.
    """
    state = found.read_journal().state
    counted = counted_devices(state.devices.values())
    away = [facts.name for facts in counted if facts.id not in found.devices]
    owed = owed_devices(counted, state.policy)
    if away and len(away) >= owed:
        raise NotEnoughCopies(
            f"{len(away)} of {len(counted)} devices can't be read ({'; '.join(found.unreachable)}): changes that were "
            "acknowledged may lie on them alone. Bring them back and run it again; --force goes on without them",
            devices=away,
        )
