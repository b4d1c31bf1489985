"""The catalog's contract: condemn, delete elsewhere, drop."""

# ruff: noqa: D102 - a test's name is its sentence

import pytest

from tensorkeep.catalog.protocol import GcSummary
from tensorkeep.catalog.rules import version_keys
from tensorkeep.errors import Conflict
from tensorkeep.records.history import VersionFacts
from tensorkeep.testing.catalog_fixtures import CatalogFixtures
from tensorkeep.testing.catalog_scene import PART_BYTES, Scene, part_key

DAY_S = 24 * 3600.0


class GcRules(CatalogFixtures):
    """What no version refers to is condemned, what a living push has written is spared, and nothing is un-condemned."""

    def remove(self, scene: Scene, version: VersionFacts) -> None:
        """Remove a version and the branch that points at it."""
        now = scene.clock.now()
        scene.catalog.set_ref(version.model, "branch", "main", None, expected=version.id, heads=(), now=now)
        scene.catalog.remove_version(version.model, version.id, heads=(), now=now)

    def condemn(self, scene: Scene, *, grace_s: float = 0, dry_run: bool = False) -> GcSummary:
        """Condemn without heads."""
        return scene.catalog.condemn(grace_s=grace_s, dry_run=dry_run, heads=(), now=scene.clock.now())

    def test_objects_in_versions_are_kept(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.add_device("b")
        version = scene.push(scene.model(), [part_key(1)], policy="replicas=2")
        assert self.condemn(scene) == GcSummary(locations=0, bytes=0, condemned_before=0)
        assert len(scene.catalog.locate_all(after=0, limit=99)) == 8
        assert scene.catalog.count_short([version.id]) == {}

    def test_objects_of_removed_versions_go_unless_others_share_them(self, scene: Scene) -> None:
        scene.add_device("a")
        model, other = scene.model(), scene.model("acme/other")
        gone = scene.push(model, [part_key(1), part_key(2)])
        kept = scene.push(other, [part_key(2)])
        self.remove(scene, gone)
        assert self.condemn(scene, dry_run=True) == GcSummary(locations=4, bytes=4 * PART_BYTES, condemned_before=0)
        assert scene.catalog.list_condemned(grace_s=0, now=scene.clock.now(), after=0, limit=9) == []
        assert self.condemn(scene) == GcSummary(locations=4, bytes=4 * PART_BYTES, condemned_before=0)
        assert self.condemn(scene) == GcSummary(locations=0, bytes=0, condemned_before=4)
        condemned = scene.catalog.list_condemned(grace_s=0, now=scene.clock.now(), after=0, limit=9)
        assert {row.key for row in condemned} == {part_key(1), *version_keys(gone)}
        assert all(row.state == "condemned" for row in condemned)
        assert [key for key, _ in scene.catalog.version_objects(kept.id)][-2] == part_key(2)

    def test_what_was_referred_to_when_gc_looked_is_found_when_its_last_version_goes(self, scene: Scene) -> None:
        scene.add_device("a")
        versions = [scene.push(scene.model(f"acme/{name}"), [part_key(1)]) for name in "abc"]
        self.remove(scene, versions[0])
        assert self.condemn(scene).locations == 3
        self.remove(scene, versions[1])
        again = scene.push(scene.model("acme/d"), [part_key(1)])
        self.remove(scene, versions[2])
        assert self.condemn(scene).locations == 6
        assert scene.catalog.count_short([again.id]) == {}
        scene.catalog.remove_model(again.model, heads=(), now=scene.clock.now())
        assert self.condemn(scene, dry_run=True).locations == 4
        assert self.condemn(scene, grace_s=DAY_S).locations == 4
        assert self.condemn(scene).locations == 0

    def test_a_manifest_goes_with_the_last_version_that_has_it(self, scene: Scene) -> None:
        scene.add_device("a")
        versions = []
        for label in "ab":
            model = scene.model(f"acme/{label}")
            versions.append(version := scene.version(model, label=label))
            session = scene.prepare(model, version, [part_key(1)])
            body = scene.manifest_body(label.encode())
            scene.commit(scene.commit_request(session, model, version, [part_key(1)], manifest_body=body))
        self.remove(scene, versions[0])
        assert scene.catalog.find_manifest(versions[0].manifest) is None
        assert scene.catalog.find_manifest(versions[1].manifest) == scene.manifest_body(b"b")

    def test_condemned_rows_wait_for_the_grace_and_are_dropped_when_gone(self, scene: Scene) -> None:
        scene.add_device("a")
        catalog = scene.catalog
        self.remove(scene, scene.push(scene.model(), [part_key(1)]))
        self.condemn(scene, grace_s=DAY_S)
        assert catalog.list_condemned(grace_s=DAY_S, now=scene.clock.now(), after=0, limit=9) == []
        scene.clock.advance(DAY_S)
        rows = catalog.list_condemned(grace_s=DAY_S, now=scene.clock.now(), after=0, limit=9)
        assert len(rows) == 4
        assert catalog.list_condemned(grace_s=DAY_S, now=scene.clock.now(), after=rows[0].id, limit=2) == rows[1:3]
        catalog.drop([row.id for row in rows[:2]])
        left = catalog.list_condemned(grace_s=DAY_S, now=scene.clock.now(), after=0, limit=9)
        assert left == rows[2:]
        assert self.condemn(scene).condemned_before == 2

    def test_only_condemned_rows_are_dropped(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.push(scene.model(), [part_key(1)])
        rows = scene.catalog.locate_all(after=0, limit=99)
        scene.catalog.drop([row.id for row in rows])
        assert scene.catalog.locate_all(after=0, limit=99) == rows

    def test_an_object_that_was_dropped_may_come_back_with_another_size(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.store(scene.begin(), [part_key(1)])
        assert scene.collect() == 1
        [answer] = scene.catalog.stage(scene.begin(), [scene.request(part_key(1), size_bytes=7)])
        assert answer.staged[0].size_bytes == 7

    def test_row_ids_are_never_used_again(self, scene: Scene) -> None:
        scene.add_device("a")
        [old] = scene.store(scene.begin(), [part_key(1)])
        scene.collect()
        [new] = scene.stage(scene.begin(), [part_key(1)])
        assert new.staged[0].id > old.staged[0].id

    def test_rows_of_living_pushes_are_spared_within_the_grace(self, scene: Scene) -> None:
        scene.add_device("a")
        living, ended, silent = scene.begin(), scene.begin(), scene.begin()
        for number, session in enumerate((living, ended, silent)):
            scene.store(session, [part_key(number)])
            scene.stage(session, [part_key(10 + number)])
        scene.catalog.end_push(ended)
        scene.clock.advance(DAY_S)
        scene.catalog.heartbeat(living, now=scene.clock.now())
        assert self.condemn(scene, grace_s=DAY_S).locations == 4
        assert {row.key for row in scene.catalog.locate_all(after=0, limit=99)} == {part_key(0), part_key(10)}
        scene.clock.advance(DAY_S - 1)
        assert self.condemn(scene, grace_s=DAY_S).locations == 0
        scene.clock.advance(1)
        assert self.condemn(scene, grace_s=DAY_S).locations == 2

    def test_a_grace_of_zero_spares_nobody_even_with_clocks_ahead(self, scene: Scene) -> None:
        scene.add_device("a")
        session = scene.begin()
        scene.store(session, [part_key(1)])
        now = scene.clock.now()
        scene.clock.advance(DAY_S)
        scene.catalog.heartbeat(session, now=scene.clock.now())
        assert scene.catalog.condemn(grace_s=0, dry_run=False, heads=(), now=now).locations == 1

    @pytest.mark.parametrize("grace_s", [1e12, 1e300])
    def test_an_endless_grace_is_no_error(self, scene: Scene, grace_s: float) -> None:
        scene.add_device("a")
        scene.store(scene.begin(), [part_key(1)])
        assert self.condemn(scene, grace_s=grace_s).locations == 0

    def test_live_rows_of_a_living_push_go_with_their_version(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        version = scene.version(model)
        session = scene.prepare(model, version, [part_key(1)])
        scene.commit(scene.commit_request(session, model, version, [part_key(1)]))
        self.remove(scene, version)
        assert self.condemn(scene, grace_s=DAY_S).locations == 4

    def test_what_a_dead_push_staged_goes_even_where_the_object_lives(self, scene: Scene) -> None:
        scene.add_device("a")
        dead = scene.begin()
        [answer] = scene.stage(dead, [part_key(1)])
        version = scene.push(scene.model(), [part_key(1)])
        scene.catalog.end_push(dead)
        assert self.condemn(scene, grace_s=DAY_S).locations == 1
        rows = scene.catalog.list_condemned(grace_s=0, now=scene.clock.now(), after=0, limit=9)
        assert rows[0].id == answer.staged[0].id
        scene.catalog.record_stored(dead, [answer.staged[0].id])
        assert len(scene.catalog.locate([part_key(1)])[part_key(1)]) == 1
        assert scene.catalog.count_short([version.id]) == {}

    def test_bad_rows_go_once_their_object_has_what_it_owes_without_them(self, scene: Scene) -> None:
        a, b = scene.add_device("a"), scene.add_device("b")
        version = scene.push(scene.model(), [part_key(1)], policy="replicas=2")
        rows = scene.catalog.locate([part_key(1)])[part_key(1)]
        scene.catalog.record_checked(good=(), bad=[rows[0].id])
        assert self.condemn(scene).locations == 0
        [answer] = scene.store(scene.begin(), [part_key(1)], copies=2)
        assert [row.device for row in answer.existing] == [b.id]
        assert [row.device for row in answer.staged] == [a.id]
        assert self.condemn(scene).locations == 1
        left = scene.catalog.locate([part_key(1)])[part_key(1)]
        assert [row.id for row in left] == [rows[1].id, answer.staged[0].id]
        assert scene.catalog.count_short([version.id]) == {}

    def test_rows_on_lost_devices_go_when_nothing_refers_to_them(self, scene: Scene) -> None:
        a = scene.add_device("a")
        scene.store(scene.begin(), [part_key(1)])
        scene.lose_device(a)
        assert scene.collect() == 1
        assert scene.catalog.device_usage()[0].locations == 0

    def test_a_condemned_copy_makes_the_commit_ask_again_and_the_push_heals(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        version = scene.version(model)
        session = scene.prepare(model, version, [part_key(1), part_key(2)])
        self.condemn(scene)
        request = scene.commit_request(session, model, version, [part_key(1), part_key(2)])
        needed = scene.needs(request)
        assert set(needed) == {part_key(1), part_key(2), *version_keys(version)}
        scene.store(session, needed, model=model.id)
        assert scene.commit(request).version == version
        assert scene.collect() == 5
        assert scene.catalog.count_short([version.id]) == {}

    def test_a_committed_copy_is_not_condemned_by_who_looked_before(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        version = scene.version(model)
        session = scene.prepare(model, version, [part_key(1)])
        assert self.condemn(scene, dry_run=True).locations == 4
        scene.commit(scene.commit_request(session, model, version, [part_key(1)]))
        scene.catalog.end_push(session)
        assert self.condemn(scene).locations == 0

    def test_more_than_a_fraction_of_all_bytes_is_not_condemned_at_once(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.push(scene.model(), [part_key(1)])  # four objects of one size
        scene.store(scene.begin(), [part_key(number) for number in range(2, 8)])  # six more, which no version uses
        catalog, now = scene.catalog, scene.clock.now()
        for fraction in (0.0, 0.5, 0.59):
            with pytest.raises(Conflict, match="60%") as caught:
                catalog.condemn(grace_s=0, dry_run=False, max_fraction=fraction, heads=(), now=now)
            assert caught.value.facts["reason"] == "gc_brake"
        assert catalog.list_condemned(grace_s=0, now=now, after=0, limit=9) == []
        assert catalog.condemn(grace_s=0, dry_run=True, max_fraction=0.0, heads=(), now=now).locations == 6
        assert catalog.condemn(grace_s=0, dry_run=False, max_fraction=0.6, heads=(), now=now).locations == 6
        assert catalog.condemn(grace_s=0, dry_run=False, max_fraction=0.0, heads=(), now=now).locations == 0

    def test_a_stale_catalog_collects_nothing(self, scene: Scene) -> None:
        a = scene.add_device("a")
        scene.store(scene.begin(), [part_key(1)])
        head = scene.head_of(a.id)
        ahead = type(head)(device=a.id, epoch=1, entry_epoch=1, seq=head.seq + 1, digest="0" * 64)
        for dry_run in (False, True):
            with pytest.raises(Conflict) as caught:
                scene.catalog.condemn(grace_s=0, dry_run=dry_run, heads=(ahead,), now=scene.clock.now())
            assert caught.value.facts["reason"] == "stale_catalog"
        assert scene.catalog.list_condemned(grace_s=0, now=scene.clock.now(), after=0, limit=9) == []
