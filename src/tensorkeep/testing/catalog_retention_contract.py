"""The catalog's contract: which versions stay, and letting go of the others."""

# ruff: noqa: D102 - a test's name is its sentence

import threading
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from tensorkeep.catalog.protocol import Catalog, Expiry
from tensorkeep.errors import Conflict, InvalidInput, NotFound
from tensorkeep.records.history import ModelChanged, RefChanged, VersionFacts, VersionRemoved, decode_entry
from tensorkeep.runtime import ThreadWorkers
from tensorkeep.testing.catalog_fixtures import CatalogFixtures
from tensorkeep.testing.catalog_scene import PART_BYTES, Scene, part_key


class RetentionRules(CatalogFixtures):
    """What a retention keeps is never removed, whatever others do meanwhile, and the journal tells what was."""

    @pytest.fixture
    def line(self, scene: Scene) -> list[VersionFacts]:
        """Return five versions of a model on its branch, the oldest first; they have a part each and share one."""
        scene.add_device("a")
        model = scene.model()
        versions: list[VersionFacts] = []
        for number in range(5):
            head = versions[-1].id if versions else None
            versions.append(scene.push(model, [part_key(number), part_key(99)], expected_head=head))
        return versions

    def keep(self, scene: Scene, version: VersionFacts, retention: str | None) -> None:
        """Set the retention of a version's model."""
        scene.catalog.set_retention(version.model, retention, heads=(), now=scene.clock.now())

    def expire(
        self, scene: Scene, *, dry_run: bool = False, max_fraction: float | None = None, catalog: Catalog | None = None
    ) -> Expiry:
        """Let go, without a grace and without heads."""
        return (catalog or scene.catalog).expire(
            grace_s=0, dry_run=dry_run, max_fraction=max_fraction, heads=(), now=scene.clock.now()
        )

    def tag_if_there(self, scene: Scene, version: VersionFacts, name: str) -> None:
        """Give a version a tag, after which it must be there; or else it has gone before, as it may."""
        try:
            scene.catalog.set_ref(
                version.model, "tag", name, version.id, expected=None, heads=(), now=scene.clock.now()
            )
        except NotFound:
            return
        assert version in scene.catalog.list_versions(version.model)

    def left(self, scene: Scene, model: str) -> list[VersionFacts]:
        """Return the versions of a model, the oldest first."""
        return list(reversed(scene.catalog.list_versions(model)))

    def test_the_retention_of_a_model_is_kept_and_told_by_the_journal(self, scene: Scene) -> None:
        scene.add_device("a")
        catalog, model, now = scene.catalog, scene.model(), scene.clock.now()
        scene.push(model, [part_key(1)])
        (known,) = catalog.list_models()
        assert known.retention is None
        for retention in ("last=3", "last=1 days=30 protect=v*,rel/*", None):
            catalog.set_retention(model.id, retention, heads=(), now=now)
            old, known = known, msgspec.structs.replace(known, retention=retention)
            assert catalog.list_models() == [known]
            (change,) = decode_entry(catalog.journal_rows()[-1].body).changes
            assert change == ModelChanged(old=old, new=known)
        catalog.set_retention(model.id, "days=7", heads=(), now=now)
        catalog.set_policy(model.id, "replicas=2", heads=(), now=now)
        assert catalog.list_models() == [msgspec.structs.replace(known, retention="days=7", policy="replicas=2")]
        with pytest.raises(InvalidInput):
            catalog.set_retention(model.id, "last=0", heads=(), now=now)
        with pytest.raises(NotFound):
            catalog.set_retention(scene.ulid(), "last=1", heads=(), now=now)
        assert catalog.check() == []

    def test_what_no_retention_keeps_goes_in_one_entry_with_its_tags(
        self, scene: Scene, line: list[VersionFacts]
    ) -> None:
        catalog, model, now = scene.catalog, line[0].model, scene.clock.now()
        other = scene.push(scene.model("acme/other"), [part_key(7)])
        for name, version in (("v1", line[1]), ("old", line[0]), ("new", line[4])):
            catalog.set_ref(model, "tag", name, version.id, expected=None, heads=(), now=now)
        seq = catalog.info().last_seq
        assert self.expire(scene) == Expiry(versions=(), seq=seq)
        self.keep(scene, line[0], "last=2 protect=v*")
        assert self.expire(scene, dry_run=True) == Expiry(versions=(line[2], line[0]), seq=seq + 1)
        assert self.left(scene, model) == line
        assert self.expire(scene) == Expiry(versions=(line[2], line[0]), seq=seq + 2)
        assert self.left(scene, model) == [line[1], line[3], line[4]]
        assert [ref.name for ref in catalog.list_refs(model)] == ["main", "new", "v1"]
        assert decode_entry(catalog.journal_rows()[-1].body).changes == (
            RefChanged(model=model, ref="tag", name="old", old=line[0].id, new=None),
            VersionRemoved(version=line[2]),
            VersionRemoved(version=line[0]),
        )
        assert self.expire(scene) == Expiry(versions=(), seq=seq + 2)
        assert catalog.list_versions(other.model) == [other]
        assert catalog.check() == []
        assert catalog.condemn(grace_s=0, dry_run=False, heads=(), now=now).locations == 8

    def test_of_several_models_all_go_in_one_entry(self, scene: Scene, line: list[VersionFacts]) -> None:
        model = scene.model("acme/a")
        first = scene.push(model, [part_key(7)])
        second = scene.push(model, [part_key(8)], expected_head=first.id)
        for version in (line[0], first):
            self.keep(scene, version, "last=1")
        seq = scene.catalog.info().last_seq
        assert self.expire(scene) == Expiry(versions=(first, *line[3::-1]), seq=seq + 1)
        assert self.left(scene, model.id) == [second]
        assert self.left(scene, line[0].model) == [line[4]]
        assert scene.catalog.check() == []

    def test_days_are_counted_from_the_moment_that_is_given(self, scene: Scene, line: list[VersionFacts]) -> None:
        self.keep(scene, line[0], "days=3")
        scene.clock.advance(timedelta(days=3).total_seconds())
        assert self.expire(scene).versions == ()
        scene.clock.advance(1)
        assert self.expire(scene).versions == tuple(line[3::-1])
        assert self.left(scene, line[0].model) == [line[4]]

    def test_more_versions_than_that_fraction_do_not_go(self, scene: Scene, line: list[VersionFacts]) -> None:
        self.keep(scene, line[0], "last=2")
        seq = scene.catalog.info().last_seq
        for fraction in (0.0, 0.5, 0.59):
            with pytest.raises(Conflict, match="acme/llama lets 3 of all 5 versions go") as caught:
                self.expire(scene, max_fraction=fraction)
            assert caught.value.facts["reason"] == "gc_brake"
        assert (self.left(scene, line[0].model), scene.catalog.info().last_seq) == (line, seq)
        assert len(self.expire(scene, dry_run=True, max_fraction=0.0).versions) == 3
        assert len(self.expire(scene, max_fraction=0.6).versions) == 3

    def test_few_versions_that_leave_more_bytes_than_that_fraction_unused_do_not_go(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        large = scene.push(model, [part_key(number) for number in range(20)], tag="x")
        head = large
        for number in range(3):
            head = scene.push(model, [part_key(20 + number)], expected_head=head.id)
        self.keep(scene, large, "last=3 protect=v*")
        before, seq = self.left(scene, model.id), scene.catalog.info().last_seq
        stored = sum(row.length for row in scene.catalog.locate_all(after=0, limit=99))
        unused = 23 * PART_BYTES  # its parts, and what describes it
        with pytest.raises(Conflict, match=f"give up {unused} of the {stored} bytes") as caught:
            self.expire(scene, max_fraction=0.5)
        assert caught.value.facts["reason"] == "gc_brake"
        assert (self.left(scene, model.id), scene.catalog.info().last_seq) == (before, seq)
        assert [ref.name for ref in scene.catalog.list_refs(model.id)] == ["main", "x"]
        assert scene.catalog.condemn(grace_s=0, dry_run=True, heads=(), now=scene.clock.now()).locations == 0
        assert scene.catalog.check() == []
        assert self.expire(scene, max_fraction=unused / stored).versions == (large,)
        assert scene.catalog.condemn(grace_s=0, dry_run=False, heads=(), now=scene.clock.now()).bytes == unused

    def test_a_stale_catalog_lets_nothing_go(self, scene: Scene, line: list[VersionFacts]) -> None:
        self.keep(scene, line[0], "last=1")
        (device,) = scene.catalog.list_devices()
        head = scene.head_of(device.id)
        ahead = msgspec.structs.replace(head, seq=head.seq + 1, digest="0" * 64)
        for dry_run in (False, True):
            with pytest.raises(Conflict) as caught:
                scene.catalog.expire(grace_s=0, dry_run=dry_run, heads=(ahead,), now=scene.clock.now())
            assert caught.value.facts["reason"] == "stale_catalog"
        assert self.left(scene, line[0].model) == line

    def test_whatever_is_pushed_tagged_or_branched_meanwhile_is_kept_by_the_rules(
        self, scene: Scene, line: list[VersionFacts], tmp_path: Path
    ) -> None:
        """While one lets go again and again, what a retention keeps at the end of each change is there."""
        model = scene.catalog.list_models()[0]
        other = self.other_handle(scene.catalog, tmp_path, scene.runtime)
        self.keep(scene, line[0], "last=2")
        ended = threading.Event()

        def let_go() -> None:
            while not ended.is_set():
                self.expire(scene, catalog=other)

        head, kept = line[4], [line[3], line[4]]
        with ThreadWorkers().open_pool(1, "expire") as pool:
            task = pool.submit(let_go)
            try:
                for number in range(5, 25):
                    pushed = scene.push(model, [part_key(number), part_key(99)], expected_head=head.id)
                    kept = [head, pushed]
                    head = pushed
                    assert set(kept) <= set(scene.catalog.list_versions(model.id))
                    self.tag_if_there(scene, line[3], f"t{number}")
            finally:
                ended.set()
            task.result()
        self.expire(scene)
        tagged = {ref.version for ref in scene.catalog.list_refs(model.id)}
        assert {each.id for each in scene.catalog.list_versions(model.id)} == {*tagged, *(each.id for each in kept)}
        assert scene.catalog.count_short([each.id for each in kept]) == {}
        assert scene.catalog.check() == []
