"""A store with devices to work on, and what may happen to both: the one place that knows which backend the suite runs on.

The suite asks a `Workshop` for everything that is done behind the store's back. A backend is a kind of catalog (``catalog_homes.py``)
and a kind of device for each number (``shelves.py``), chosen in ``conftest.py``.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tensorkeep
from tensorkeep.runtime import Runtime, SystemClock
from tensorkeep.store.store import Store
from tests.e2e.catalog_homes import CatalogHome, SqliteHome
from tests.e2e.shelves import OBJECT_FOLDERS, FolderShelf, Shelf
from tests.faults.store_world import known_places

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Backend:
    """What stores and devices of a run are made of; each function gets the folder of the workshop."""

    name: str
    home: Callable[[Path], CatalogHome]
    shelf: Callable[[Path, int], Shelf]


def folder_shelf(folder: Path, number: int) -> Shelf:
    """Return the place of a device in a folder of its own."""
    return FolderShelf(folder / f"disk{number}")


SQLITE_LOCAL = Backend("sqlite-local", SqliteHome, folder_shelf)


class Workshop:
    """A store with its devices. ``store`` is open; `open` gives another process's view."""

    def __init__(
        self,
        folder: Path,
        *,
        devices: int,
        replicas: int | None = None,
        runtime: Runtime | None = None,
        backend: Backend = SQLITE_LOCAL,
    ) -> None:
        self.folder = folder
        self._backend = backend
        self.catalog = backend.home(folder)
        self.location = self.catalog.location
        self._opened: list[Store] = []
        self._runtime = runtime or Runtime()
        self.store = self._keep(tensorkeep.init(self.location, replicas=replicas, runtime=_in_environment(runtime)))
        self.devices: list[str] = []
        self._shelves: dict[str, Shelf] = {}
        for _ in range(devices):
            self.add_device()

    def add_device(
        self,
        *,
        zone: str | None = None,
        capacity: int | None = None,
        bandwidth: int = GIB,
        untrusted: bool = False,
    ) -> str:
        """Add a device, at a place of its own, and return its name. The bandwidth is given: nobody measures."""
        number = len(self._shelves)
        name = f"disk{number}"
        self._shelves[name] = self._backend.shelf(self.folder, number)
        with known_places():
            self._adder(name).devices.add(
                name, self.url(name), zone=zone, capacity=capacity, bandwidth=bandwidth, untrusted=untrusted
            )
        self.devices.append(name)
        return name

    def open(self, *, runtime: Runtime | None = None) -> Store:
        """Return the store as a process sees it that starts now."""
        return self._keep(tensorkeep.open(self.location, runtime=_in_environment(runtime)))

    def sources(self) -> list[str]:
        """Return the URLs of devices that a rebuild must be told: none where the store's folder remembers them."""
        return [] if self.catalog.remembers_devices else [self.url(name) for name in self.devices]

    def close(self) -> None:
        """Close every store that was opened here."""
        while self._opened:
            self._opened.pop().close()

    def remove(self) -> None:
        """Close everything and leave nothing outside the folder."""
        self.close()
        self.catalog.remove()
        for shelf in self._shelves.values():
            shelf.clear_away()

    def url(self, name: str) -> str:
        """Return the URL of a device's place."""
        return self._shelves[name].url

    def is_empty(self, name: str) -> bool:
        """Return whether nothing at all lies in a device's place."""
        return self._shelves[name].is_empty()

    def has_place(self, name: str) -> bool:
        """Return whether a device's place is there, be it empty."""
        return self._shelves[name].exists()

    # ---------------------------------------------------- what may happen to devices

    def destroy(self, name: str) -> None:
        """Delete a device with all that it holds."""
        self._shelves[name].destroy()

    def unmount(self, name: str) -> None:
        """Take a device away and leave an empty place, as an unmounted disk does."""
        self._shelves[name].take_away()

    def mount(self, name: str) -> None:
        """Bring a device back."""
        self._shelves[name].bring_back()

    def remove_place(self, name: str) -> None:
        """Remove the empty place of an unmounted device, where a place is something apart from what lies there."""
        self._shelves[name].remove_place()

    def swap(self, name: str, other: str) -> None:
        """Exchange the disks of two devices."""
        self._shelves[name].swap(self._shelves[other])

    def put_foreign(self, name: str, foreign: "Workshop", foreign_name: str) -> None:
        """Put a device of another store where a device of this one is expected."""
        self._shelves[name].put_copy_of(foreign._shelves[foreign_name])

    def damage(self, name: str, kind: str = "parts") -> list[str]:
        """Flip a byte in the middle of each object of a kind on a device; return the names of the objects."""
        damaged = []
        for path, size in self._shelves[name].objects([kind]).items():
            if size:
                self.flip(name, path, size // 2)
                damaged.append(path)
        assert damaged
        return damaged

    def flip(self, name: str, path: str, offset: int) -> None:
        """Flip a bit of one byte of an object."""
        data = bytearray(self.read(name, path))
        data[offset] ^= 0x40
        self.replace(name, path, bytes(data))

    def read(self, name: str, path: str) -> bytes:
        """Return an object of a device as it lies there."""
        return self._shelves[name].read(path)

    def replace(self, name: str, path: str, data: bytes) -> None:
        """Write over an object of a device."""
        self._shelves[name].replace(path, data)

    def delete(self, name: str, path: str) -> None:
        """Delete an object of a device."""
        self._shelves[name].delete(path)

    # ------------------------------------------------------------ what devices hold

    def objects(self, name: str, folders: Sequence[str] = OBJECT_FOLDERS) -> dict[str, int]:
        """Return the objects of a device and their sizes in bytes, journal apart."""
        return self._shelves[name].objects(folders)

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes of all objects on each device."""
        return {name: sum(self.objects(name).values()) for name in self.devices}

    def unfinished(self) -> list[str]:
        """Return the unfinished writes on all devices."""
        return [f"{name}:{path}" for name in self.devices for path in self.objects(name, ["tmp"])]

    # ------------------------------------------------------------ who may write

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Make the store's catalog and devices read-only, for root too."""
        with ExitStack() as stack:
            stack.enter_context(self.catalog.read_only())
            for shelf in self._shelves.values():
                stack.enter_context(shelf.read_only())
            yield

    @contextmanager
    def unwritable(self, name: str | None = None) -> Iterator[None]:
        """Take away the permission to write on one device, or on all and in the catalog; root may have it still."""
        with ExitStack() as stack:
            if name is None:
                stack.enter_context(self.catalog.forbid_writing())
            for device in self.devices if name is None else [name]:
                stack.enter_context(self._shelves[device].forbid_writing())
            yield

    def _adder(self, name: str) -> Store:
        """Return the store that adds a device: one with the right time where the device would refuse the clock of a test."""
        if self._shelves[name].has_a_clock and not isinstance(self._runtime.clock, SystemClock):
            return self.open(runtime=replace(self._runtime, clock=SystemClock()))
        return self.store

    def _keep(self, store: Store) -> Store:
        self._opened.append(store)
        return store


def _in_environment(runtime: Runtime | None) -> Runtime | None:
    """Give a test's runtime the credentials that devices look up."""
    return runtime and replace(runtime, environment=os.environ)
