"""The catalog's contract: the journal, stale catalogs, rebuilding."""

# ruff: noqa: D102 - a test's name is its sentence

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tensorkeep.catalog.protocol import Catalog, CatalogImage, DeviceHead, JournalRow
from tensorkeep.errors import AlreadyExists, Conflict, Integrity, InvalidInput, NotFound
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.history import Snapshot, StoreState, decode_entry, fold_entries
from tensorkeep.runtime import Runtime
from tensorkeep.testing.catalog_fixtures import STORE, CatalogFixtures
from tensorkeep.testing.catalog_scene import Scene, part_key


def told_state(rows: list[JournalRow]) -> StoreState:
    """Return what entries, oldest first, add up to."""
    return fold_entries(decode_entry(row.body) for row in rows)


def kept_state(catalog: Catalog) -> StoreState:
    """Return what a catalog's own methods say, in the form of the journal."""
    versions = [v for model in catalog.list_models() for v in reversed(catalog.list_versions(model.id))]
    return StoreState(
        policy=catalog.info().policy,
        devices={facts.id: facts for facts in catalog.list_devices()},
        models={facts.id: facts for facts in catalog.list_models()},
        versions={version.id: version for version in versions},
        refs=[ref for model in catalog.list_models() for ref in catalog.list_refs(model.id)],
    )


def same_state(one: StoreState, other: StoreState) -> bool:
    """Return whether two states are equal; refs have no order, and versions only within their model."""

    def normal(state: StoreState) -> tuple[Any, ...]:
        of_model = {model: [v for v in state.versions.values() if v.model == model] for model in state.models}
        refs = sorted((ref.model, ref.kind, ref.name, ref.version) for ref in state.refs)
        return state.policy, list(state.devices.values()), state.models, of_model, refs

    return normal(one) == normal(other)


def image_of(catalog: Catalog, device: str) -> CatalogImage:
    """Return the image of a catalog as a rebuild would find it on a device that holds the whole journal."""
    rows = catalog.journal_backlog(device, limit=10_000)
    state = told_state(rows)
    info = catalog.info()
    return CatalogImage(
        store=info.store,
        epoch=info.epoch + 1,
        state=state,
        entries=rows,
        flushed={device: rows[-1].seq},
        objects={version: catalog.version_objects(version) for version in state.versions},
        locations=[row for row in catalog.locate_all(after=0, limit=10_000) if row.state in ("live", "stored", "bad")],
        manifests={
            facts.manifest: body
            for facts in state.versions.values()
            if (body := catalog.find_manifest(facts.manifest)) is not None
        },
    )


class JournalRules(CatalogFixtures):
    """Every change is one entry of a chain; devices get it in order; what every device has from a snapshot on is enough."""

    @pytest.fixture
    def short(self, tmp_path: Path, runtime: Runtime) -> Scene:
        """Return a scene whose journal takes a snapshot after every four entries."""
        folder = tmp_path / "short"
        folder.mkdir()
        return Scene(self.make_catalog(folder, runtime, snapshot_every=4), runtime)

    def tick(self, scene: Scene) -> int:
        """Append one entry."""
        return scene.catalog.set_policy(None, "replicas=1", heads=(), now=scene.clock.now())

    def test_entries_chain_and_tell_the_catalogs_own_state(self, scene: Scene) -> None:
        a = scene.add_device("a")
        scene.add_device("b")
        model = scene.model()
        one = scene.push(model, [part_key(1)], tag="v1")
        two = scene.push(model, [part_key(2)], expected_head=one.id)
        now = scene.clock.now()
        scene.catalog.set_ref(model.id, "tag", "v1", None, expected=one.id, heads=(), now=now)
        scene.catalog.set_ref(model.id, "branch", "main", one.id, expected=two.id, heads=(), now=now)
        scene.catalog.remove_version(model.id, two.id, heads=(), now=now)
        scene.catalog.set_policy(model.id, "replicas=2", heads=(), now=now)
        rows = scene.catalog.journal_backlog(a.id, limit=100)
        assert scene.catalog.journal_rows() == rows
        entries = [decode_entry(row.body) for row in rows]
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
        assert [entry.prev for entry in entries] == [None, *(row.digest for row in rows[:-1])]
        assert all(blake3_256(row.body).hex() == row.digest for row in rows)
        assert {entry.store for entry in entries} == {STORE}
        info = scene.catalog.info()
        assert (info.last_seq, info.head) == (rows[-1].seq, rows[-1].digest)
        assert same_state(told_state(rows), kept_state(scene.catalog))
        assert scene.catalog.check() == []

    def test_a_refused_change_leaves_no_entry(self, scene: Scene) -> None:
        before = scene.catalog.info()
        with pytest.raises(NotFound):
            scene.catalog.remove_model(scene.ulid(), heads=(), now=scene.clock.now())
        assert scene.catalog.info() == before

    def test_a_device_lacks_what_was_not_recorded_as_flushed(self, scene: Scene) -> None:
        a = scene.add_device("a")
        self.tick(scene)
        catalog = scene.catalog
        assert [row.seq for row in catalog.journal_backlog(a.id, limit=2)] == [1, 2]
        catalog.record_flushed(a.id, 2)
        assert [row.seq for row in catalog.journal_backlog(a.id, limit=9)] == [3]
        catalog.record_flushed(a.id, 3)
        catalog.record_flushed(a.id, 1)
        assert catalog.flushed() == {a.id: 3}
        assert catalog.journal_backlog(a.id, limit=9) == []
        with pytest.raises(InvalidInput):
            catalog.record_flushed(a.id, 4)
        with pytest.raises(NotFound):
            catalog.record_flushed(scene.ulid(), 1)
        with pytest.raises(NotFound):
            catalog.journal_backlog(scene.ulid(), limit=1)

    def test_a_snapshot_follows_every_so_many_entries(self, short: Scene) -> None:
        a = short.add_device("a")
        assert self.tick(short) == 3
        assert self.tick(short) == 4
        assert short.catalog.info().last_seq == 5
        entries = [decode_entry(row.body) for row in short.catalog.journal_backlog(a.id, limit=99)]
        # A new device begins at the snapshot: that chain alone tells everything.
        assert [entry.seq for entry in entries] == [5]
        assert isinstance(entries[0].changes[0], Snapshot)
        assert same_state(fold_entries(entries), kept_state(short.catalog))
        assert self.tick(short) == 6
        assert short.catalog.check() == []

    def test_a_snapshot_keeps_the_order_of_devices_and_commits(self, short: Scene) -> None:
        a = short.add_device("zz")
        short.add_device("aa")
        model = short.model()
        head = None
        for number in range(6):
            head = short.push(model, [part_key(number)], expected_head=head).id
        rows = short.catalog.journal_backlog(a.id, limit=99)
        assert isinstance(decode_entry(rows[0].body).changes[0], Snapshot)
        assert same_state(told_state(rows), kept_state(short.catalog))
        assert short.catalog.check() == []

    def test_a_device_that_has_entries_gets_the_ones_after_them_across_a_snapshot(self, short: Scene) -> None:
        a = short.add_device("a")
        short.catalog.record_flushed(a.id, 2)
        for _ in range(4):
            self.tick(short)
        assert [row.seq for row in short.catalog.journal_backlog(a.id, limit=99)] == [3, 4, 5, 6, 7]

    def test_old_entries_go_when_every_device_has_a_newer_snapshot(self, short: Scene) -> None:
        catalog = short.catalog
        a, b = short.add_device("a"), short.add_device("b")
        for _ in range(5):
            self.tick(short)
        assert catalog.info().last_seq == 10  # snapshots are 5 and 10
        assert catalog.trim_journal() == 0
        catalog.record_flushed(a.id, 10)
        assert catalog.trim_journal() == 0
        catalog.record_flushed(b.id, 7)
        assert catalog.trim_journal() == 5
        assert catalog.trim_journal() == 5
        assert [row.seq for row in catalog.journal_backlog(b.id, limit=99)] == [8, 9, 10]
        assert [row.seq for row in catalog.journal_rows()] == [5, 6, 7, 8, 9, 10]
        assert catalog.check() == []
        late = short.add_device("late")
        rows = catalog.journal_backlog(late.id, limit=99)
        assert [row.seq for row in rows] == [10, 11]
        assert same_state(told_state(rows), kept_state(catalog))
        assert catalog.trim_journal() == 0

    def test_lost_devices_hold_no_entry_back(self, short: Scene) -> None:
        a, b = short.add_device("a"), short.add_device("b")
        short.lose_device(b)
        last = short.catalog.info().last_seq
        assert last == 5
        short.catalog.record_flushed(a.id, last)
        assert short.catalog.flushed() == {a.id: 5}
        assert short.catalog.trim_journal() == 5
        assert short.catalog.check() == []

    def test_without_devices_nothing_is_forgotten(self, short: Scene) -> None:
        for _ in range(5):
            self.tick(short)
        assert short.catalog.trim_journal() == 0


def ahead_in_epoch(head: DeviceHead) -> DeviceHead:
    """Return a device of a newer epoch that has no newer entry."""
    return msgspec.structs.replace(head, epoch=head.epoch + 1)


def ahead_in_seq(head: DeviceHead) -> DeviceHead:
    """Return a device with one entry more."""
    return msgspec.structs.replace(head, seq=head.seq + 1, digest="0" * 64)


def ahead_in_entry_epoch(head: DeviceHead) -> DeviceHead:
    """Return a device whose entry of a newer epoch has a lower seq."""
    return msgspec.structs.replace(head, entry_epoch=head.entry_epoch + 1, seq=1, digest="0" * 64)


def another_history(head: DeviceHead) -> DeviceHead:
    """Return a device whose newest entry has the same number and other bytes."""
    return msgspec.structs.replace(head, digest="0" * 64)


class StaleRules(CatalogFixtures):
    """A catalog that is behind a device, or tells another history, changes nothing."""

    @pytest.mark.parametrize("harm", [ahead_in_epoch, ahead_in_seq, ahead_in_entry_epoch, another_history])
    def test_every_change_is_refused_while_a_device_is_ahead(
        self, scene: Scene, harm: Callable[[DeviceHead], DeviceHead]
    ) -> None:
        a, catalog, now = scene.add_device("a"), scene.catalog, scene.clock.now()
        model = scene.model()
        version = scene.push(model, [part_key(1)])
        new = scene.version(model)
        session = scene.prepare(model, new, [part_key(1)])
        good = scene.head_of(a.id)
        heads = (good, harm(good))
        request = scene.commit_request(session, model, new, [part_key(1)], expected_head=version.id)
        faster = msgspec.structs.replace(a, bandwidth=1)
        changes: list[Callable[[tuple[DeviceHead, ...]], object]] = [
            lambda heads: catalog.commit(msgspec.structs.replace(request, heads=heads)),
            lambda heads: catalog.change_device(a, faster, heads=heads, now=now),
            lambda heads: catalog.set_ref(model.id, "tag", "t", new.id, expected=None, heads=heads, now=now),
            lambda heads: catalog.remove_version(model.id, version.id, heads=heads, now=now),
            lambda heads: catalog.set_policy(None, "replicas=2", heads=heads, now=now),
            lambda heads: catalog.condemn(grace_s=0, dry_run=False, heads=heads, now=now),
            lambda heads: catalog.remove_model(model.id, heads=heads, now=now),
        ]
        before = catalog.info()
        for change in changes:
            with pytest.raises(Conflict, match="rebuild-catalog") as caught:
                change(heads)
            assert caught.value.facts == {"reason": "stale_catalog", "device": a.id}
        assert catalog.info() == before
        for change in changes:
            change((good,))

    def test_devices_that_are_behind_or_have_nothing_are_no_reason_to_refuse(self, scene: Scene) -> None:
        a, now = scene.add_device("a"), scene.clock.now()
        old = scene.head_of(a.id)
        scene.add_device("b")
        heads = (
            old,
            DeviceHead(device=a.id, epoch=1),
            DeviceHead(device=a.id, epoch=0, entry_epoch=0, seq=99, digest="1" * 64),
        )
        scene.catalog.set_policy(None, "replicas=2", heads=heads, now=now)

    def test_an_older_entry_of_another_history_is_seen_while_the_catalog_has_its_own(self, scene: Scene) -> None:
        a = scene.add_device("a")
        fork = another_history(scene.head_of(a.id))
        scene.add_device("b")
        with pytest.raises(Conflict):
            scene.catalog.set_policy(None, "replicas=2", heads=(fork,), now=scene.clock.now())


class RebuildRules(CatalogFixtures):
    """A catalog filled from an image answers as the one that was lost, in a higher epoch."""

    def rebuild(self, image: CatalogImage, folder: Path, runtime: Runtime) -> Scene:
        """Return a scene around a catalog filled from an image."""
        folder.mkdir()
        catalog = self.make_catalog(folder, runtime, policy=None)
        scene = Scene(catalog, runtime)
        assert catalog.load_image(image, now=scene.clock.now()) == catalog.info().last_seq
        return scene

    def populate(self, scene: Scene) -> str:
        """Give the scene devices, versions, refs and damage; return the first device's id."""
        a, b = scene.add_device("zz"), scene.add_device("aa")
        lost = scene.add_device("lost")
        model, other = scene.model(), scene.model("acme/Other")
        one = scene.push(model, [part_key(1), part_key(2)], tag="v1", policy="replicas=2", label="one")
        scene.push(model, [part_key(2), part_key(3)], expected_head=one.id, label="two")
        scene.push(other, [part_key(4)])
        scene.lose_device(lost)
        row = scene.catalog.locate([part_key(2)])[part_key(2)][0]
        scene.catalog.record_checked(good=(), bad=[row.id])
        scene.catalog.set_policy(other.id, "replicas=2", heads=(), now=scene.clock.now())
        assert b.id != a.id
        return a.id

    def test_a_rebuilt_catalog_answers_as_the_lost_one(self, scene: Scene, tmp_path: Path, runtime: Runtime) -> None:
        device = self.populate(scene)
        image = image_of(scene.catalog, device)
        new, old = self.rebuild(image, tmp_path / "rebuilt", runtime).catalog, scene.catalog
        assert kept_state(new) == kept_state(old)
        versions = list(image.state.versions)
        assert {v: new.version_objects(v) for v in versions} == {v: old.version_objects(v) for v in versions}
        assert new.version_usage(versions) == old.version_usage(versions)
        assert new.count_short(versions) == old.count_short(versions)
        assert new.device_usage() == old.device_usage()
        keys = sorted({key for v in versions for key, _ in old.version_objects(v)})

        def shown(catalog: Catalog) -> list[Any]:
            return [[(r.device, r.name, r.state) for r in rows] for rows in catalog.locate(keys).values()]

        assert shown(new) == shown(old)
        assert new.check() == []
        info = new.info()
        assert (info.epoch, info.last_seq) == (2, old.info().last_seq + 1)

    def test_what_versions_refer_to_is_live_in_a_rebuilt_catalog_and_damage_stays_damage(
        self, scene: Scene, tmp_path: Path, runtime: Runtime
    ) -> None:
        image = image_of(scene.catalog, self.populate(scene))
        stray = msgspec.structs.replace(image.locations[0], key=part_key(77), name="parts/stray", state="stored")
        found = [row if row.state == "bad" else msgspec.structs.replace(row, state="stored") for row in image.locations]
        image = msgspec.structs.replace(image, locations=[*found, stray])
        rebuilt = self.rebuild(image, tmp_path / "rebuilt", runtime).catalog.locate_all(after=0, limit=1000)
        states = [row.state for row in rebuilt]
        assert states == ["bad" if row.state == "bad" else "live" for row in found] + ["stored"]
        assert {"bad", "live"} <= {*states}

    def test_a_rebuilt_catalog_continues_the_chain_with_a_snapshot(
        self, scene: Scene, tmp_path: Path, runtime: Runtime
    ) -> None:
        device = self.populate(scene)
        image = image_of(scene.catalog, device)
        rebuilt = self.rebuild(image, tmp_path / "rebuilt", runtime)
        last = image.entries[-1]
        [row] = rebuilt.catalog.journal_backlog(device, limit=9)
        entry = decode_entry(row.body)
        assert (entry.epoch, entry.seq, entry.prev) == (2, last.seq + 1, last.digest)
        assert same_state(told_state([row]), kept_state(scene.catalog))
        old_head = scene.head_of(device)
        model = rebuilt.catalog.list_models()[0]
        rebuilt.catalog.set_policy(model.id, "replicas=1", heads=(old_head,), now=scene.clock.now())
        with pytest.raises(Conflict):
            scene.catalog.set_policy(None, "replicas=1", heads=(rebuilt.head_of(device),), now=scene.clock.now())
        assert rebuilt.catalog.check() == []

    def test_work_goes_on_in_a_rebuilt_catalog(self, scene: Scene, tmp_path: Path, runtime: Runtime) -> None:
        device = self.populate(scene)
        rebuilt = self.rebuild(image_of(scene.catalog, device), tmp_path / "rebuilt", runtime)
        model = rebuilt.catalog.list_models()[0]
        head = rebuilt.catalog.get_version(model.id, "main").id
        version = rebuilt.push(model, [part_key(1), part_key(9)], expected_head=head)
        assert rebuilt.catalog.list_versions(model.id)[0] == version
        rebuilt.collect()
        assert rebuilt.catalog.check() == []

    def test_an_image_without_any_journal_begins_a_new_one(
        self, scene: Scene, tmp_path: Path, runtime: Runtime
    ) -> None:
        device = self.populate(scene)
        image = msgspec.structs.replace(image_of(scene.catalog, device), entries=[], flushed={device: 7})
        rebuilt = self.rebuild(image, tmp_path / "rebuilt", runtime)
        assert rebuilt.catalog.info().last_seq == 1
        assert set(rebuilt.catalog.flushed().values()) == {0}
        assert rebuilt.catalog.check() == []

    def test_only_an_empty_catalog_is_filled(self, scene: Scene, tmp_path: Path, runtime: Runtime) -> None:
        device = self.populate(scene)
        image = image_of(scene.catalog, device)
        rebuilt = self.rebuild(image, tmp_path / "rebuilt", runtime)
        for catalog in (scene.catalog, rebuilt.catalog):
            with pytest.raises(AlreadyExists):
                catalog.load_image(image, now=scene.clock.now())

    def test_an_image_that_does_not_fit_together_is_refused(
        self, scene: Scene, tmp_path: Path, runtime: Runtime
    ) -> None:
        device = self.populate(scene)
        image = image_of(scene.catalog, device)
        (tmp_path / "empty").mkdir()
        empty = self.make_catalog(tmp_path / "empty", runtime, policy=None)
        version = next(iter(image.state.versions))
        key, size = image.objects[version][0]
        harms: list[tuple[type[Exception], dict[str, Any]]] = [
            (InvalidInput, {"store": scene.ulid()}),
            (InvalidInput, {"entries": [image.entries[0], *image.entries[2:]]}),
            (InvalidInput, {"entries": [msgspec.structs.replace(image.entries[0], body=b"{}")]}),
            (InvalidInput, {"epoch": 0}),
            (InvalidInput, {"objects": {}}),
            (InvalidInput, {"locations": [msgspec.structs.replace(image.locations[0], device=scene.ulid())]}),
            (InvalidInput, {"locations": [msgspec.structs.replace(image.locations[0], state="condemned")]}),
            (Integrity, {"objects": {**image.objects, version: [(key, size), (key, size + 1)]}}),
        ]
        for error, harm in harms:
            with pytest.raises(error):
                empty.load_image(msgspec.structs.replace(image, **harm), now=scene.clock.now())
        assert empty.info().last_seq == 0
        empty.load_image(image, now=scene.clock.now())
        assert empty.check() == []
