"""A store with devices to work on, and what may happen to devices: the one place that knows which backend the suite runs on.

The suite asks a `Workshop` for everything that is done behind the store's back. Another catalog or another kind of device is
another class with these methods, chosen in ``conftest.py``.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorkeep
from tensorkeep.runtime import Runtime
from tensorkeep.store.store import Store

GIB = 1 << 30
_OBJECT_FOLDERS = ("parts", "manifests", "checks", "versions")


class Workshop:
    """A store in a folder, with its devices in folders beside it. ``store`` is open; `open` gives another process's view."""

    def __init__(
        self, folder: Path, *, devices: int, replicas: int | None = None, runtime: Runtime | None = None
    ) -> None:
        self.folder = folder
        self.location = folder / "store"
        self._opened: list[Store] = []
        self.store = self._keep(tensorkeep.init(self.location, replicas=replicas, runtime=runtime))
        self.devices: list[str] = []
        for _ in range(devices):
            self.add_device()

    def add_device(self, *, zone: str | None = None, capacity: int | None = None, place: Path | None = None) -> str:
        """Add a device, at a place of its own, and return its name."""
        name = f"disk{len(self.devices)}"
        self.store.devices.add(
            name, str(place or self.folder / name), zone=zone, capacity=capacity, bandwidth=GIB
        )  # the bandwidth is given: nobody measures
        self.devices.append(name)
        return name

    def open(self, *, runtime: Runtime | None = None) -> Store:
        """Return the store as a process sees it that starts now."""
        return self._keep(tensorkeep.open(self.location, runtime=runtime))

    def close(self) -> None:
        """Close every store that was opened here."""
        while self._opened:
            self._opened.pop().close()

    def url(self, name: str) -> str:
        """Return the URL of a device's place."""
        return f"file://{self.place(name)}"

    def place(self, name: str) -> Path:
        """Return the folder of a device."""
        return self.folder / name

    # ---------------------------------------------------- what may happen to devices

    def destroy(self, name: str) -> None:
        """Delete a device with all that it holds."""
        shutil.rmtree(self.place(name))

    def unmount(self, name: str) -> None:
        """Take a device away and leave an empty folder, as an unmounted disk does."""
        self.place(name).rename(self._aside(name))
        self.place(name).mkdir()

    def mount(self, name: str) -> None:
        """Bring a device back."""
        self.place(name).rmdir()
        self._aside(name).rename(self.place(name))

    def swap(self, name: str, other: str) -> None:
        """Exchange the disks of two devices."""
        self.place(name).rename(self._aside(name))
        self.place(other).rename(self.place(name))
        self._aside(name).rename(self.place(other))

    def put_foreign(self, name: str, foreign: "Workshop", foreign_name: str) -> None:
        """Put a device of another store where a device of this one is expected."""
        self.place(name).rename(self._aside(name))
        shutil.copytree(foreign.place(foreign_name), self.place(name))

    def damage(self, name: str, kind: str = "parts") -> list[str]:
        """Flip a byte in the middle of each object of a kind on a device; return the names of the objects."""
        damaged = []
        for path in self._files(name, [kind]):
            data = bytearray(path.read_bytes())
            if not data:
                continue
            data[len(data) // 2] ^= 0x40
            path.chmod(0o600)
            path.write_bytes(data)
            path.chmod(0o444)
            damaged.append(str(path.relative_to(self.place(name))))
        assert damaged
        return damaged

    # ------------------------------------------------------------ what devices hold

    def objects(self, name: str) -> dict[str, int]:
        """Return the objects of a device and their sizes in bytes, journal apart."""
        return {str(path.relative_to(self.place(name))): path.stat().st_size for path in self._files(name)}

    def held_bytes(self) -> dict[str, int]:
        """Return the bytes of all objects on each device."""
        return {name: sum(self.objects(name).values()) for name in self.devices}

    def unfinished(self) -> list[str]:
        """Return the unfinished writes on all devices."""
        return [str(path) for name in self.devices for path in self._files(name, ["tmp"])]

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Make the store's catalog and devices read-only; as root too, by a mount."""
        with read_only_mount(self.folder):
            yield

    def _files(self, name: str, folders: list[str] | tuple[str, ...] = _OBJECT_FOLDERS) -> Iterator[Path]:
        for folder in folders:
            for where, _, files in os.walk(self.place(name) / folder):
                yield from (Path(where) / file for file in sorted(files))

    def _aside(self, name: str) -> Path:
        return self.folder / f"{name}.aside"

    def _keep(self, store: Store) -> Store:
        self._opened.append(store)
        return store


@contextmanager
def read_only_mount(folder: Path) -> Iterator[None]:
    """Mount a folder read-only over itself for a while. Needs root."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
