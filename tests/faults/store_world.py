"""A store of a few megabytes with devices in folders, what is done behind its back, and what must hold whatever was done."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

import tensorkeep
from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.devices import local_path
from tensorkeep.devices.conformance import check_place
from tensorkeep.devices.object_names import FIXED_FOLDERS
from tensorkeep.devices.protocol import Device
from tensorkeep.records.conformance import CheckForm
from tensorkeep.records.conformance_report import ConformanceReport
from tensorkeep.records.device import IDENTITY_NAME, DeviceFacts
from tensorkeep.records.naming import parse_physical_name
from tensorkeep.records.redundancy import Replicas
from tensorkeep.runtime import Failpoints, Runtime
from tensorkeep.store import device_admin
from tensorkeep.store.fleet import DeviceOpener, open_by_facts
from tensorkeep.store.opening import open_store
from tensorkeep.store.store import Store
from tensorkeep.testing.devices import FaultyDevice

MODEL = "acme/llama"
MIB = 1 << 20
GIB = 1 << 30
OBJECT_FOLDERS = ("parts", "manifests", "checks", "versions")

_SPARE: list[Path] = []
"""Empty folders of devices, for tests to come."""

_MADE: list["World"] = []
"""Worlds that were made and not ended."""

_FOUND: dict[tuple[object, ...], ConformanceReport] = {}
"""What the check of a place found, by file system or bucket."""

Arrays = dict[str, npt.NDArray[np.generic]]


class Hooks:
    """Failpoints that call back. ``on[name]`` is called at each hit of that name; ``hits`` counts all."""

    def __init__(self, **on: Callable[[], None]) -> None:
        self.on = {name.replace("__", "."): call for name, call in on.items()}
        self.hits: dict[str, int] = {}

    def hit(self, name: str) -> None:
        """Count, then call back."""
        self.hits[name] = self.hits.get(name, 0) + 1
        if name in self.on:
            self.on[name]()


class FaultyFleet:
    """An opener of devices that wraps each one, once, in a `FaultyDevice`: ``by_name[name]`` is there to be scripted."""

    def __init__(self) -> None:
        self.by_name: dict[str, FaultyDevice] = {}

    def open(self, facts: DeviceFacts, runtime: Runtime) -> Device:
        """Return the device's wrapper."""
        if facts.name not in self.by_name:
            self.by_name[facts.name] = FaultyDevice(open_by_facts(facts, runtime))
        return self.by_name[facts.name]


@dataclass
class World:
    """A store under ``folder`` with devices ``d0``, ``d1``…, each a folder beside it.

    `open` gives the store as a process sees it that starts now; `close` closes all that were opened.
    """

    folder: Path
    devices: int = 3
    replicas: int = 2
    snapshot_every: int = 1000
    database: str | None = None  # the URL of the catalog's; None: SQLite in `location`
    _opened: list[Store] = field(default_factory=list)

    @property
    def location(self) -> Path:
        return self.folder / "store"

    @property
    def names(self) -> list[str]:
        return [f"d{number}" for number in range(self.devices)]

    def create(self) -> Store:
        """Make the store and its devices."""
        self.folder.mkdir(exist_ok=True)
        _MADE.append(self)
        for name in self.names:
            take_spare(self.place(name))
        if self.database:
            tensorkeep.init(self.database, replicas=self.replicas).close()
        store = self.open()
        with known_places():
            for name in self.names:
                store.devices.add(name, str(self.place(name)), bandwidth=GIB)  # given, so that nobody measures
        return store

    def open(
        self,
        *,
        failpoints: Failpoints | None = None,
        opener: DeviceOpener = open_by_facts,
        runtime: Runtime | None = None,
        cache: bool = True,
    ) -> Store:
        """Return a new handle on the store."""
        if runtime is None:
            runtime = Runtime(failpoints=failpoints) if failpoints else Runtime()
        context = open_store(
            self.database or self.location,
            runtime=runtime,
            cache_root=self.folder / "cache" if cache else None,
            user="tester",
            policy=Replicas(self.replicas),
            opener=opener,
            snapshot_every=self.snapshot_every,
        )
        store = Store(context)
        self._opened.append(store)
        return store

    def close(self) -> None:
        """Close every handle."""
        while self._opened:
            self._opened.pop().close()

    def end(self) -> None:
        """Close every handle, and keep the devices' empty folders for the next world."""
        self.close()
        if self in _MADE:
            _MADE.remove(self)
        for name in self.names:
            give_spare(self.place(name), self.folder.parent)

    def place(self, name: str) -> Path:
        """Return the folder of a device."""
        return self.folder / name

    # ------------------------------------------------------ behind the store's back

    @property
    def catalog(self) -> Path:
        return self.location / "catalog.sqlite"

    def lose_catalog(self) -> None:
        """Delete the catalog, as a broken disk would."""
        self.close()
        for path in self.location.glob("catalog.sqlite*"):
            path.unlink()

    def keep_copy(self) -> Path:
        """Return a copy of the catalog as it is now."""
        copy = self.folder / "catalog.copy"
        shutil.copyfile(self.catalog, copy)
        return copy

    def put_back(self, copy: Path) -> None:
        """Put a copy of the catalog in place of the present one."""
        self.close()
        self.lose_catalog()
        shutil.copyfile(copy, self.catalog)

    def unmount(self, name: str) -> None:
        """Take a device away; an empty folder stays, as where a disk is not mounted."""
        self.place(name).rename(self.folder / f"{name}.aside")
        self.place(name).mkdir()

    def mount(self, name: str) -> None:
        """Bring a device back."""
        self.place(name).rmdir()
        (self.folder / f"{name}.aside").rename(self.place(name))

    # ------------------------------------------------------------ what devices hold

    def files(self, name: str) -> Iterator[Path]:
        """Yield every file on a device."""
        for where, _, files in os.walk(self.place(name)):
            yield from (Path(where, file) for file in sorted(files))

    def part_files(self) -> Iterator[Path]:
        """Yield the file of every copy of a part."""
        for name in self.names:
            yield from (path for path in self.files(name) if "parts" in path.parts)

    def objects(self) -> set[tuple[str, str]]:
        """Return every object on devices, as (device name, physical name), journals and identities apart."""
        found = set()
        for name in self.names:
            for path in self.files(name):
                physical = str(path.relative_to(self.place(name)))
                if physical != IDENTITY_NAME and not physical.startswith("journal/"):
                    found.add((name, physical))
        return found


@contextmanager
def known_places() -> Iterator[None]:
    """Have devices that are added be taken for what the first one on the same file system, or in the same bucket, was found to be.

    To ask each for what it can do takes longer than most tests do; `tests/unit/store/test_device_check.py` and others ask.
    """

    def check(
        url: str, *, runtime: Runtime, form: CheckForm, name: str | None = None, **words: Any
    ) -> ConformanceReport:
        parts = urlsplit(url)
        where = os.stat(Path(local_path(url)).parent).st_dev if parts.scheme == "file" else (parts.netloc, parts.query)
        key = (parts.scheme, where, form, *sorted(words.items()))
        if key not in _FOUND:
            report = check_place(url, runtime=runtime, form=form, name=name, **words)
            if not report.ok:
                return report
            _FOUND[key] = report
        return replace(_FOUND[key], name=name, url=url)

    with patch.object(device_admin, "check_place", check):
        yield


def take_spare(place: Path) -> None:
    """Put the empty folders of a device in its place, where any are left over: making 768 costs half a second."""
    while _SPARE and not _SPARE[-1].exists():  # it lay in the folder of a test, which is gone
        _SPARE.pop()
    if _SPARE and _SPARE[-1].stat().st_dev == place.parent.stat().st_dev:
        _SPARE.pop().rename(place)


def give_spare(place: Path, parent: Path) -> None:
    """Empty a device that nobody uses any more, and keep its folders under ``parent`` for who comes next."""
    if place.is_symlink() or not (place / "versions").is_dir():
        return
    for path in [path for path in place.rglob("*") if path.is_file()]:
        path.unlink()
    for folder in (place / "versions").iterdir():
        folder.rmdir()
    if _is_as_made(place):
        spare = parent / f"spare-{os.urandom(8).hex()}"
        place.rename(spare)
        _SPARE.append(spare)


def recycle(folder: Path) -> None:
    """End the worlds in a folder that is removed next."""
    for world in [each for each in _MADE if each.folder.is_relative_to(folder)]:
        with suppress(OSError):
            world.end()


def _is_as_made(place: Path) -> bool:
    """Return whether a folder holds what an empty device does, no more and no less, and may be written."""
    found = {os.path.relpath(where, place) for where, _, _ in os.walk(place)} - {"."}
    modes = {os.stat(where).st_mode for where in (place, *place.iterdir())}
    return found == FIXED_FOLDERS and len(modes) == 1 and not os.path.ismount(place)


def flip(path: Path, offset: int, mask: int) -> None:
    """Change a byte of a file in place: what a disk does that goes bad."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        (byte,) = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([byte ^ mask]), offset)
    finally:
        os.close(descriptor)


def locations(store: Store) -> list[Location]:
    """Return every row that the catalog has, condemned ones and those on lost devices apart."""
    catalog = store._context.catalog
    active = {facts.id for facts in catalog.list_devices() if facts.state == "active"}
    return [row for row in catalog.locate_all(after=0, limit=1_000_000) if row.device in active]


def usable(store: Store) -> dict[ObjectKey, set[str]]:
    """Return on which devices each object has a copy that counts."""
    held: dict[ObjectKey, set[str]] = {}
    for location in locations(store):
        if location.state in ("live", "stored"):
            held.setdefault(location.key, set()).add(location.device)
    return held


def device_path(store: Store, location: Location) -> Path:
    """Return where the bytes of a row lie."""
    urls = {facts.id: facts.url for facts in store._context.catalog.list_devices()}
    return Path(local_path(urls[location.device]), location.name)


# -------------------------------------------------------------------- what is stored


def weights(turn: int) -> Arrays:
    """Return the arrays of a little model, 6.6 MB; turns differ in one large tensor and one small one."""
    chance, fresh = np.random.default_rng(1), np.random.default_rng((1, turn))
    arrays: Arrays = {
        f"layers.{layer}.weight": chance.standard_normal((640, 640 + layer), dtype=np.float32) for layer in range(4)
    }
    arrays |= {f"layers.{layer}.bias": chance.standard_normal(70 + layer, dtype=np.float32) for layer in range(4)}
    arrays["scale"] = np.full((), 3, np.float32)
    arrays["layers.1.weight"] = fresh.standard_normal((640, 641), dtype=np.float32)
    arrays["layers.2.bias"] = fresh.standard_normal(72, dtype=np.float32)
    return arrays


def small_weights(turn: int) -> Arrays:
    """Return arrays of 0.4 MB, most of which a version shares with the one before."""
    arrays: Arrays = {}
    for layer in range(3):
        last = turn - (turn - layer) % 3  # the last turn that changed this layer
        arrays[f"layers.{layer}.weight"] = np.random.default_rng((layer, last + 3)).standard_normal(
            (100 + layer, 330), dtype=np.float32
        )
    return arrays


def write_source(folder: Path, arrays: Arrays) -> Path:
    """Write arrays as a folder with a safetensors file and two others, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "test"}\n')
    (folder / "empty").touch()
    return folder


# --------------------------------------------------------------------- what must hold


def assert_loads(store: Store, spec: str, arrays: Arrays) -> None:
    """Assert that a version loads, bit for bit."""
    loaded = store.model(spec).load()
    assert sorted(loaded) == sorted(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype, name
        assert loaded[name].shape == array.shape, name
        assert loaded[name].tobytes() == array.tobytes(), name


def assert_clean(store: Store) -> None:
    """Assert that every byte on every device is as it should be."""
    assert store.verify().problems == ()


def assert_no_orphans(world: World, store: Store) -> None:
    """Assert that gc leaves on the devices exactly what the catalog knows, and no unfinished write."""
    store.gc(grace_s=0, max_fraction=None)
    report = store.gc(grace_s=0, max_fraction=None)
    assert (report.waiting, report.unreachable) == (0, ())
    names = store._context.fleet.names()
    assert {(names[location.device], location.name) for location in locations(store)} == world.objects()


def journal_names(world: World, name: str) -> list[str]:
    """Return the physical names of the journal entries on a device, in order."""
    return sorted(f"journal/{path.name}" for path in (world.place(name) / "journal").iterdir())


def is_known_name(physical: str) -> bool:
    """Return whether layout v1 names such an object."""
    return physical == IDENTITY_NAME or parse_physical_name(physical) is not None
