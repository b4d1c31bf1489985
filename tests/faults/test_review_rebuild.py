"""What a rebuild must not lose: changes that only absent devices hold, parts whose use it does not know, a journal with a gap."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import tensorkeep
from tensorkeep import Conflict, InvalidInput, NotEnoughCopies, NotFound, TensorkeepError

GIB = 1 << 30


def arrays(seed: int, rows: int = 200) -> Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    chance = np.random.default_rng(seed)
    return {
        "w": chance.standard_normal((rows, 200), dtype=np.float32),
        "b": chance.standard_normal(70, dtype=np.float32),
    }


@dataclass
class Site:
    """A store and its devices ``d0``, ``d1``… in folders beside it."""

    folder: Path
    devices: int

    @property
    def location(self) -> Path:
        return self.folder / "store"

    @property
    def catalog(self) -> Path:
        return self.location / "catalog.sqlite"

    def create(self) -> tensorkeep.Store:
        store = tensorkeep.init(self.location)
        for number in range(self.devices):
            store.devices.add(f"d{number}", str(self.folder / f"d{number}"), bandwidth=GIB)
        return store

    def open(self) -> tensorkeep.Store:
        return tensorkeep.open(self.location)

    def take_away(self, name: str) -> None:
        (self.folder / name).rename(self.folder / f"{name}.aside")

    def bring_back(self, name: str) -> None:
        (self.folder / f"{name}.aside").rename(self.folder / name)

    def rebuild(self, *, force: bool = False) -> tensorkeep.RebuildReport:
        return tensorkeep.rebuild_catalog(self.location, force=force)


def branches(store: tensorkeep.Store) -> tuple[str, ...]:
    return store.models()[0].branches


def test_a_rebuild_that_may_miss_acknowledged_changes_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path, 3)
    with site.create() as store:
        store.push(arrays(1), "m")
        site.take_away("d0")
        store.branch("m", "acknowledged")  # on d1 and d2: as many as it owes
    site.catalog.unlink()
    site.bring_back("d0")
    site.take_away("d1")
    site.take_away("d2")
    with pytest.raises(NotEnoughCopies, match="2 of 3 devices"):
        site.rebuild()
    site.bring_back("d1")
    site.rebuild()
    with site.open() as store:
        assert branches(store) == ("acknowledged", "main")


def test_what_a_device_held_that_was_away_in_a_forced_rebuild_is_merged_by_the_next(tmp_path: Path) -> None:
    site = Site(tmp_path, 3)
    with site.create() as store:
        store.push(arrays(1), "m")
        site.take_away("d0")
        store.branch("m", "acknowledged")
        kept = store.push(arrays(2), "other", allow_degraded=True)
    site.catalog.unlink()
    site.bring_back("d0")
    site.take_away("d1")
    site.take_away("d2")
    with pytest.raises(NotEnoughCopies, match="not yet on devices"):
        site.rebuild(force=True)
    site.bring_back("d1")
    site.bring_back("d2")
    with site.open() as store:
        assert branches(store) == ("main",)
        with pytest.raises(TensorkeepError, match="was away when the catalog was rebuilt"):
            store.push(arrays(3), "third")
        with pytest.raises(Conflict, match="rebuild-catalog"):
            store.gc(grace_s=0, max_fraction=None)
    assert site.rebuild().missing == ()
    with site.open() as store:
        assert branches(store) == ("acknowledged", "main")
        assert store.model("other").version.id == kept.id
        assert store.model("other").load()["w"].tobytes() == arrays(2)["w"].tobytes()
        store.rm_model("other")
    site.rebuild(force=True)
    with site.open() as store:  # merged once: what was removed since stays removed
        assert [model.name for model in store.models()] == ["default/m"]


def test_a_device_that_was_away_in_a_rebuild_is_taken_in_by_running_it_again(tmp_path: Path) -> None:
    site = Site(tmp_path, 2)
    with site.create() as store:
        store.push(arrays(1, rows=30_000), "m", part_size=4 << 20)
    site.catalog.unlink()
    site.take_away("d1")
    with pytest.raises(NotEnoughCopies, match="not yet on devices"):
        site.rebuild()
    site.bring_back("d1")
    assert site.rebuild().missing == ()
    with site.open() as store:
        assert store.verify().ok
        assert store.model("m").load()["w"].tobytes() == arrays(1, rows=30_000)["w"].tobytes()
        store.gc(grace_s=0, max_fraction=None)
        assert store.verify().ok


def test_gc_waits_for_devices_that_a_rebuild_has_not_seen(tmp_path: Path) -> None:
    site = Site(tmp_path, 3)
    with site.create() as store:
        store.push(arrays(1, rows=30_000), "m", part_size=4 << 20)  # described on d0 and d1, parts on all
    site.catalog.unlink()
    site.take_away("d0")
    site.take_away("d1")
    with pytest.raises(NotEnoughCopies):
        site.rebuild(force=True)
    with site.open() as store, pytest.raises(Conflict, match="d0, d1"):
        store.gc(grace_s=0, max_fraction=None)
    site.bring_back("d0")
    site.bring_back("d1")
    assert site.rebuild().missing == ()
    with site.open() as store:
        assert store.model("m").load()["w"].tobytes() == arrays(1, rows=30_000)["w"].tobytes()


@pytest.mark.parametrize("entry", [1, 2, 3, 4])
def test_a_damaged_journal_entry_costs_no_more_than_what_it_told(entry: int, tmp_path: Path) -> None:
    site = Site(tmp_path, 1)
    with site.create() as store:  # entry 1 is the store's, 2 the device's, 3 makes the model
        for seed in range(3):
            store.push(arrays(seed), "m")
    site.catalog.unlink()
    path = sorted((site.folder / "d0" / "journal").iterdir())[entry - 1]
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"', b"'", 1))
    report = site.rebuild()
    assert any(f"entry {entry} " in what or f"from {entry} up to {entry}" in what for what in report.missing)
    with site.open() as store:
        assert store._context.catalog.check() == []
        (model,) = store.models()
        assert model.versions == (3 if entry < 3 else 2)
        assert store.model(model.name).load()["w"].tobytes() == arrays(2)["w"].tobytes()


def test_gc_spares_the_parts_of_versions_whose_structure_a_rebuild_could_not_read(tmp_path: Path) -> None:
    site = Site(tmp_path, 1)
    with site.create() as store:
        store.push(arrays(1), "m")
        store.push(arrays(2), "other")
    site.catalog.unlink()
    manifests = [path for path in (site.folder / "d0" / "manifests").rglob("*") if path.is_file()]
    for path in manifests:
        path.rename(site.folder / path.name)
    assert len(site.rebuild().missing) == 2
    with site.open() as store:
        with pytest.raises(Conflict, match="rebuild-catalog --force"):
            store.gc(grace_s=0, max_fraction=None)
        store.rm_model("other")
    for path in manifests:
        (site.folder / path.name).rename(path)
    site.rebuild(force=True)
    with site.open() as store:
        store.gc(grace_s=0, max_fraction=None)
        assert store.verify().ok
        assert store.model("m").load()["w"].tobytes() == arrays(1)["w"].tobytes()


def test_a_torn_copy_of_what_no_version_uses_does_not_stop_a_rebuild(tmp_path: Path) -> None:
    site = Site(tmp_path, 2)
    with site.create() as store:
        store.push(arrays(1), "m", replicas=2)
        store.push(arrays(2), "other", replicas=2)
        store.rm_model("other")
    site.catalog.unlink()
    for path in (site.folder / "d1" / "parts").rglob("*"):
        if path.is_file():
            os.truncate(path, 10)
    assert any("torn copy" in what for what in site.rebuild().missing)
    with site.open() as store:
        assert store.model("m").load()["w"].tobytes() == arrays(1)["w"].tobytes()
        store.push(arrays(2), "other", replicas=2)
        assert store.model("other").load()["w"].tobytes() == arrays(2)["w"].tobytes()


def test_a_rebuild_takes_devices_where_they_are_found(tmp_path: Path) -> None:
    site = Site(tmp_path / "old", 1)
    with tensorkeep.open(tmp_path / "old" / "store") as store:  # its device lies inside it
        store.push(arrays(1), "m")
    site.catalog.unlink()
    (tmp_path / "old" / "store").rename(tmp_path / "new")
    tensorkeep.rebuild_catalog(tmp_path / "new")
    with tensorkeep.open(tmp_path / "new") as store:
        assert store.model("m").load()["w"].tobytes() == arrays(1)["w"].tobytes()
        assert store.push(arrays(2), "m").parent


def test_a_rebuild_never_takes_over_another_store(tmp_path: Path) -> None:
    mine, other = Site(tmp_path / "mine", 1), Site(tmp_path / "other", 1)
    for site in (mine, other):
        with site.create() as store:
            store.push(arrays(1), "m")
    shutil.rmtree(mine.folder / "d0")
    os.rename(other.folder / "d0", mine.folder / "d0")
    mine.catalog.unlink()
    with pytest.raises(NotFound, match="another store"):
        mine.rebuild()
    with pytest.raises(InvalidInput, match="this store's devices"):
        tensorkeep.rebuild_catalog(mine.location, sources=[f"file://{mine.folder / 'd0'}"])
    os.rename(mine.folder / "d0", other.folder / "d0")
    with other.open() as store:
        assert store.status().epoch == 1
        assert store.push(arrays(2), "m").parent


def test_a_disk_that_is_swapped_while_the_store_is_open_acknowledges_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, 2)
    with site.create() as store:
        store.push(arrays(1), "m")
        site.take_away("d0")
        shutil.copytree(site.folder / "d1", site.folder / "d0")
        with pytest.raises(NotEnoughCopies, match="another device"):
            store.tag("m", "v1")
        shutil.rmtree(site.folder / "d0")
        site.bring_back("d0")
        store.branch("m", "again")
        assert store.verify().ok
