"""The catalog's contract: commit and reading."""

# ruff: noqa: D102 - a test's name is its sentence

import msgspec
import pytest

from tensorkeep.catalog.protocol import Committed
from tensorkeep.catalog.rules import version_keys
from tensorkeep.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.history import ModelChanged, RefChanged, VersionCommitted, decode_entry
from tensorkeep.records.layout import CATALOG_MANIFEST_BYTES
from tensorkeep.testing.catalog_fixtures import CatalogFixtures
from tensorkeep.testing.catalog_scene import PART_BYTES, Scene, part_key


class CommitRules(CatalogFixtures):
    """A version exists only when its objects are durable, and then all of it in one entry."""

    def test_a_commit_makes_version_branch_tag_model_and_one_entry(self, scene: Scene) -> None:
        a = scene.add_device("a")
        model = scene.model()
        version = scene.version(model, label="x")
        parts = [part_key(1), part_key(2), part_key(1)]
        session = scene.prepare(model, version, parts)
        body = scene.manifest_body(b"x")
        request = scene.commit_request(
            session, model, version, parts, tag="v1", model_policy="replicas=2", manifest_body=body
        )
        assert scene.catalog.commit(request) == Committed(version=version, seq=3)
        kept = msgspec.structs.replace(model, policy="replicas=2")
        assert scene.catalog.list_models() == [kept]
        assert scene.catalog.list_versions(model.id) == [version]
        assert scene.catalog.find_manifest(version.manifest) == body
        assert scene.catalog.find_manifest("0" * 64) is None
        assert [key for key, _ in scene.catalog.version_objects(version.id)] == sorted(
            [part_key(1), part_key(2), *version_keys(version)]
        )
        rows = [row for found in scene.catalog.locate([part_key(1), *version_keys(version)]).values() for row in found]
        assert [row.state for row in rows] == ["live"] * 4
        entry = decode_entry(scene.catalog.journal_backlog(a.id, limit=9)[-1].body)
        assert entry.seq == 3
        assert entry.changes == (
            ModelChanged(old=None, new=kept),
            VersionCommitted(version=version),
            RefChanged(model=model.id, ref="branch", name="main", old=None, new=version.id),
            RefChanged(model=model.id, ref="tag", name="v1", old=None, new=version.id),
        )

    def test_a_repeated_commit_answers_as_the_first_did(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        version = scene.version(model)
        session = scene.prepare(model, version, [part_key(1)])
        request = scene.commit_request(session, model, version, [part_key(1)], tag="v1")
        first = scene.catalog.commit(request)
        scene.push(model, [part_key(2)], expected_head=version.id)
        seq = scene.catalog.info().last_seq
        assert scene.catalog.commit(request) == first
        assert scene.catalog.info().last_seq == seq
        other = scene.commit_request(session, model, scene.version(model), [part_key(1)])
        with pytest.raises(InvalidInput, match=version.id):
            scene.catalog.commit(other)

    def test_what_lacks_copies_is_needed_and_nothing_happens(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.add_device("b")
        model = scene.model()
        version = scene.version(model, policy="replicas=2")
        session = scene.prepare(model, version, [part_key(1)])
        scene.store(session, [part_key(2)], copies=1)
        scene.stage(session, [part_key(3)], copies=2)
        request = scene.commit_request(session, model, version, [part_key(n) for n in (1, 2, 3, 4)])
        assert scene.needs(request) == tuple(sorted([part_key(2), part_key(3), part_key(4)]))
        assert scene.catalog.list_models() == []
        assert scene.catalog.info().last_seq == 3
        scene.store(session, [part_key(n) for n in (2, 3, 4)], copies=2)
        assert scene.commit(request).seq == 4

    def test_metadata_must_be_durable_too(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        version = scene.version(model)
        session = scene.begin()
        scene.store(session, [part_key(1)])
        assert scene.needs(scene.commit_request(session, model, version, [part_key(1)])) == tuple(
            sorted(version_keys(version))
        )

    def test_two_rows_on_one_device_are_one_copy(self, scene: Scene) -> None:
        a = scene.add_device("a")
        scene.add_device("b")
        model = scene.model()
        version = scene.version(model, policy="replicas=2")
        session = scene.prepare(model, version, [])
        for answers in [scene.stage(session, [part_key(1)], candidates=[a.id]) for _ in range(2)]:
            scene.catalog.record_stored(session, [answers[0].staged[0].id])
        assert scene.needs(scene.commit_request(session, model, version, [part_key(1)])) == (part_key(1),)

    @pytest.mark.parametrize("harm", ["bad", "lost", "condemned", "soft"])
    def test_copies_that_are_bad_lost_condemned_or_soft_do_not_count(self, scene: Scene, harm: str) -> None:
        scene.add_device("b")
        scene.add_device("c")
        worse = scene.add_device("a", durability="soft" if harm == "soft" else "durable")
        model = scene.model()
        version = scene.version(model)
        session = scene.prepare(model, version, [])
        [answer] = scene.store(session, [part_key(1)], candidates=[worse.id], allow_soft=True)
        row = answer.staged[0].id
        if harm == "bad":
            scene.catalog.record_checked(good=(), bad=[row])
        elif harm == "lost":
            scene.lose_device(worse)
        elif harm == "condemned":
            scene.catalog.condemn(grace_s=0, dry_run=False, heads=(), now=scene.clock.now())
            scene.prepare(model, version, [], session=session)
        request = scene.commit_request(session, model, version, [part_key(1)])
        assert scene.needs(request) == (part_key(1),)
        assert scene.catalog.list_versions(model.id) == []
        if harm == "soft":
            allowed = msgspec.structs.replace(request, allow_soft=True)
            assert scene.commit(allowed).version == version

    def test_the_branch_must_be_where_the_push_saw_it(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        first = scene.push(model, [part_key(1)])
        version = scene.version(model)
        session = scene.prepare(model, version, [part_key(1)])
        for expected in (None, "0" * 40):
            request = scene.commit_request(session, model, version, [part_key(1)], expected_head=expected)
            with pytest.raises(Conflict, match="main"):
                scene.catalog.commit(request)
        request = scene.commit_request(session, model, version, [part_key(1)], branch="dev", expected_head=first.id)
        with pytest.raises(Conflict, match="dev"):
            scene.catalog.commit(request)

    def test_a_tag_or_version_that_exists_is_not_made_again(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        first = scene.push(model, [part_key(1)], tag="v1")
        version = scene.version(model)
        session = scene.prepare(model, version, [part_key(1)])
        request = scene.commit_request(session, model, version, [part_key(1)], expected_head=first.id, tag="v1")
        with pytest.raises(AlreadyExists, match="v1"):
            scene.catalog.commit(request)
        same = scene.commit_request(session, model, first, [part_key(1)], expected_head=first.id)
        with pytest.raises(AlreadyExists, match=first.id):
            scene.catalog.commit(same)

    def test_a_request_that_does_not_fit_together_is_refused(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        version = scene.version(model)
        session = scene.prepare(model, version, [part_key(1)])
        good = scene.commit_request(session, model, version, [part_key(1)])
        for harm in (
            {"parts": bytes(31)},
            {"manifest_body": b"another"},
            {"branch": "a b"},
            {"tag": "abcdef0"},
            {"model_policy": "many"},
            {"copies": 0},
            {"model": scene.model("acme/other")},
        ):
            with pytest.raises(InvalidInput):
                scene.catalog.commit(msgspec.structs.replace(good, **harm))
        assert scene.catalog.info().last_seq == 2
        assert scene.commit(good).seq == 3

    def test_a_manifest_too_large_for_the_catalog_is_left_to_the_devices(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        body = bytes(CATALOG_MANIFEST_BYTES + 1)
        version = msgspec.structs.replace(scene.version(model), manifest=blake3_256(body).hex())
        session = scene.prepare(model, version, [part_key(1)])
        scene.commit(scene.commit_request(session, model, version, [part_key(1)], manifest_body=body))
        assert scene.catalog.find_manifest(version.manifest) is None

    def test_a_model_policy_is_changed_by_a_later_push(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        first = scene.push(model, [part_key(1)])
        version = scene.version(model)
        session = scene.prepare(model, version, [part_key(1)])
        scene.commit(
            scene.commit_request(
                session, model, version, [part_key(1)], expected_head=first.id, model_policy="replicas=2"
            )
        )
        assert scene.catalog.list_models()[0].policy == "replicas=2"
        assert scene.catalog.check() == []

    def test_stored_copies_beyond_what_is_owed_become_live_too(self, scene: Scene) -> None:
        for name in "abc":
            scene.add_device(name)
        model = scene.model()
        version = scene.version(model)
        session = scene.begin()
        scene.store(session, [part_key(1)], copies=3)
        scene.prepare(model, version, [part_key(1)], session=session)
        scene.commit(scene.commit_request(session, model, version, [part_key(1)]))
        assert [row.state for row in scene.catalog.locate([part_key(1)])[part_key(1)]] == ["live"] * 3

    def test_a_version_without_parts_is_a_version(self, scene: Scene) -> None:
        scene.add_device("a")
        version = scene.push(scene.model(), [])
        assert len(scene.catalog.version_objects(version.id)) == 3


class ReadRules(CatalogFixtures):
    """Where objects are, what versions weigh, what is short."""

    def test_locate_answers_for_every_key_and_tells_bad_copies(self, scene: Scene) -> None:
        a, b, c = (scene.add_device(name) for name in "abc")
        scene.store(scene.begin(), [part_key(1)], copies=3)
        rows = scene.catalog.locate([part_key(1)])[part_key(1)]
        scene.catalog.record_checked(good=(), bad=[rows[0].id])
        scene.lose_device(b)
        found = scene.catalog.locate([part_key(1), part_key(9)])
        assert scene.catalog.survey([part_key(1), part_key(9)]) == (scene.catalog.list_devices(), found)
        assert [(row.device, row.state) for row in found[part_key(1)]] == [(a.id, "bad"), (c.id, "stored")]
        assert found[part_key(9)] == []

    def test_a_row_found_good_again_is_live_or_stored_as_it_is_used(self, scene: Scene) -> None:
        scene.add_device("a")
        catalog = scene.catalog
        scene.push(scene.model(), [part_key(1)])
        scene.store(scene.begin(), [part_key(2)])
        one, two = (catalog.locate([part_key(n)])[part_key(n)][0].id for n in (1, 2))
        catalog.record_checked(good=(), bad=[one, two])
        assert [row.state for row in catalog.locate_all(after=0, limit=99) if row.id in (one, two)] == ["bad", "bad"]
        catalog.record_checked(good=[one, two], bad=())
        assert [row.state for row in catalog.locate_all(after=0, limit=99) if row.id in (one, two)] == [
            "live",
            "stored",
        ]

    def test_a_check_changes_neither_staged_nor_condemned_rows(self, scene: Scene) -> None:
        scene.add_device("a")
        session = scene.begin()
        [one, two] = [answer.staged[0].id for answer in scene.stage(session, [part_key(1), part_key(2)])]
        scene.catalog.forget_staged(session, [two])
        scene.catalog.record_checked(good=[one, two], bad=[one, two])
        assert [row.state for row in scene.catalog.locate_all(after=0, limit=9)] == ["staged"]
        assert len(scene.catalog.list_condemned(grace_s=0, now=scene.clock.now(), after=0, limit=9)) == 1

    def test_the_whole_store_is_walked_by_id(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.store(scene.begin(), [part_key(n) for n in range(5)])
        first = scene.catalog.locate_all(after=0, limit=2)
        rest = scene.catalog.locate_all(after=first[-1].id, limit=99)
        ids = [row.id for row in (*first, *rest)]
        assert len(first) == 2
        assert ids == sorted(ids)
        assert {row.key for row in (*first, *rest)} == {part_key(n) for n in range(5)}

    def test_usage_counts_each_part_once_and_what_is_exclusive(self, scene: Scene) -> None:
        scene.add_device("a")
        model = scene.model()
        one = scene.push(model, [part_key(1), part_key(2), part_key(1)])
        two = scene.push(model, [part_key(2), part_key(3), part_key(4)], expected_head=one.id)
        usage = scene.catalog.version_usage([two.id, one.id])
        assert [(u.version, u.part_count, u.part_bytes, u.exclusive_bytes) for u in usage] == [
            (two.id, 3, 3 * PART_BYTES, 2 * PART_BYTES),
            (one.id, 2, 2 * PART_BYTES, PART_BYTES),
        ]
        with pytest.raises(NotFound):
            scene.catalog.version_usage(["0" * 40])
        with pytest.raises(NotFound):
            scene.catalog.version_objects("0" * 40)

    def test_an_object_owes_the_most_that_any_version_asks_of_it(self, scene: Scene) -> None:
        for name in "abcd":
            scene.add_device(name)
        model = scene.model()
        asked = [part_key(number) for number in (1, 2, 3, 4)]
        one = scene.push(model, [part_key(1), part_key(2)], policy="replicas=2")
        two = scene.push(model, [part_key(2), part_key(3)], policy="ec=2+3", branch="dev")
        assert scene.catalog.copies_owed(asked) == {part_key(1): 2, part_key(2): 4, part_key(3): 4}
        assert set(scene.catalog.copies_owed(version_keys(one)).values()) == {2}
        assert set(scene.catalog.copies_owed(version_keys(two)).values()) == {4}
        now = scene.clock.now()
        scene.catalog.set_ref(model.id, "branch", "dev", None, expected=two.id, heads=(), now=now)
        scene.catalog.remove_version(model.id, two.id, heads=(), now=now)
        assert scene.catalog.copies_owed(asked) == {part_key(1): 2, part_key(2): 2}
        assert scene.catalog.copies_owed([]) == {}

    def test_versions_are_short_by_the_objects_that_lack_copies(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abc"]
        model = scene.model()
        one = scene.push(model, [part_key(1), part_key(2)], policy="replicas=2")
        two = scene.push(model, [part_key(2)], expected_head=one.id, policy="replicas=1")
        asked = [two.id, one.id, "0" * 40]
        assert scene.catalog.count_short(asked) == {}
        [row] = [row for row in scene.catalog.locate([part_key(1)])[part_key(1)] if row.device == devices[0].id]
        scene.catalog.record_checked(good=(), bad=[row.id])
        assert scene.catalog.count_short(asked) == {one.id: 1}
        scene.lose_device(devices[0])
        # Part 2 owes the two copies of version one also where version two is asked; metadata has one copy of two left.
        assert scene.catalog.count_short(asked) == {two.id: 4, one.id: 5}
        assert scene.catalog.count_short([]) == {}
