"""The catalog's contract: sessions and staging."""

# ruff: noqa: D102 - a test's name is its sentence

import pytest

from tensorkeep.catalog.protocol import ObjectKey
from tensorkeep.catalog.rules import version_keys
from tensorkeep.errors import Integrity, InvalidInput, NotFound
from tensorkeep.records.naming import ObjectKind, PartName, VersionName, parse_physical_name
from tensorkeep.testing.catalog_fixtures import CatalogFixtures
from tensorkeep.testing.catalog_scene import Scene, part_key


class StageRules(CatalogFixtures):
    """What exists is offered, what does not is staged on other devices and zones; nothing doubtful is ever offered."""

    def test_a_new_object_is_staged_where_the_caller_prefers(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abc"]
        session = scene.begin()
        request = scene.request(part_key(1), copies=2, candidates=[devices[2].id, devices[0].id, devices[1].id])
        [answer] = scene.catalog.stage(session, [request])
        assert answer.existing == ()
        assert answer.missing == 0
        assert [row.device for row in answer.staged] == [devices[2].id, devices[0].id]
        for row in answer.staged:
            assert (row.key, row.size_bytes, row.form, row.offset, row.length) == (part_key(1), 1000, "raw", 0, 1000)
            assert row.state == "staged"
            assert parse_physical_name(row.name) == PartName(part_key(1).digest, request.ulid)
        assert scene.catalog.locate([part_key(1)]) == {part_key(1): []}
        assert scene.catalog.locate_all(after=0, limit=10) == list(answer.staged)

    def test_a_version_record_is_named_by_its_model(self, scene: Scene) -> None:
        scene.add_device("a")
        key, session = ObjectKey(ObjectKind.VERSION, bytes(20)), scene.begin()
        request = scene.request(key, model=scene.ulid())
        [answer] = scene.catalog.stage(session, [request])
        assert request.model is not None
        assert parse_physical_name(answer.staged[0].name) == VersionName(request.model, bytes(20), request.ulid)
        with pytest.raises(InvalidInput, match="model"):
            scene.catalog.stage(session, [scene.request(key)])

    def test_a_digest_of_another_length_is_refused(self, scene: Scene) -> None:
        scene.add_device("a")
        for key in (ObjectKey(ObjectKind.PART, bytes(20)), ObjectKey(ObjectKind.VERSION, bytes(32))):
            with pytest.raises(InvalidInput):
                scene.catalog.stage(scene.begin(), [scene.request(key, model=scene.ulid())])

    def test_stored_copies_are_offered_to_everybody_even_when_their_push_is_dead(self, scene: Scene) -> None:
        scene.add_device("a")
        dead = scene.begin()
        [first] = scene.store(dead, [part_key(1)])
        scene.clock.advance(10**7)
        [again] = scene.stage(scene.begin(), [part_key(1)])
        assert [row.id for row in again.existing] == [first.staged[0].id]
        assert [row.state for row in again.existing] == ["stored"]
        assert again.staged == ()

    def test_a_row_that_is_only_staged_is_never_offered(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.stage(scene.begin(), [part_key(1)])
        [answer] = scene.stage(scene.begin(), [part_key(1)])
        assert answer.existing == ()
        assert len(answer.staged) == 1

    def test_copies_that_are_lacking_go_to_other_devices(self, scene: Scene) -> None:
        a, b, _ = (scene.add_device(name) for name in "abc")
        scene.store(scene.begin(), [part_key(1)])
        [answer] = scene.stage(scene.begin(), [part_key(1)], copies=2)
        assert [row.device for row in answer.existing] == [a.id]
        assert [row.device for row in answer.staged] == [b.id]

    def test_copies_go_to_other_zones_while_zones_suffice(self, scene: Scene) -> None:
        a, b = scene.add_device("a", zone="r1"), scene.add_device("b", zone="r1")
        c = scene.add_device("c", zone="r2")
        [answer] = scene.stage(scene.begin(), [part_key(1)], copies=2)
        assert [row.device for row in answer.staged] == [a.id, c.id]
        [answer] = scene.stage(scene.begin(), [part_key(2)], copies=3)
        assert [row.device for row in answer.staged] == [a.id, c.id, b.id]
        scene.store(scene.begin(), [part_key(3)], candidates=[b.id])
        [answer] = scene.stage(scene.begin(), [part_key(3)], copies=2)
        assert [row.device for row in answer.staged] == [c.id]

    def test_copies_that_find_no_device_are_missing(self, scene: Scene) -> None:
        a = scene.add_device("a")
        [answer] = scene.stage(scene.begin(), [part_key(1)], copies=3)
        assert (len(answer.staged), answer.missing) == (1, 2)
        [answer] = scene.catalog.stage(scene.begin(), [scene.request(part_key(2))], down=[a.id])
        assert (answer.existing, answer.staged, answer.missing) == ((), (), 1)
        with pytest.raises(NotFound):
            scene.stage(scene.begin(), [part_key(1)], candidates=[scene.ulid()])

    def test_down_lost_bad_and_condemned_copies_are_never_offered(self, scene: Scene) -> None:
        catalog = scene.catalog
        a, b, c, d, e = (scene.add_device(name) for name in "abcde")
        rows = {}
        for facts in (a, b, c, d):
            [answer] = scene.store(scene.begin(), [part_key(1)], copies=9, candidates=[facts.id])
            rows[facts.name] = answer.staged[0].id
        catalog.record_checked(good=(), bad=[rows["a"]])
        scene.lose_device(b)
        request = scene.request(part_key(1), copies=9)
        [answer] = catalog.stage(scene.begin(), [request], down=[c.id])
        assert [row.device for row in answer.existing] == [d.id]
        assert [row.device for row in answer.staged] == [a.id, e.id]
        catalog.condemn(grace_s=0, dry_run=False, heads=(), now=scene.clock.now())
        [answer] = scene.stage(scene.begin(), [part_key(1)], copies=9)
        assert answer.existing == ()

    def test_soft_copies_count_only_when_allowed(self, scene: Scene) -> None:
        soft, hard = scene.add_device("soft", durability="soft"), scene.add_device("hard")
        [answer] = scene.store(scene.begin(), [part_key(1)], allow_soft=True)
        assert [row.device for row in answer.staged] == [soft.id]
        [answer] = scene.stage(scene.begin(), [part_key(1)], allow_soft=True)
        assert [row.device for row in answer.existing] == [soft.id]
        [answer] = scene.stage(scene.begin(), [part_key(1)], copies=2)
        assert answer.existing == ()
        assert [row.device for row in answer.staged] == [hard.id]
        assert answer.missing == 1

    def test_an_object_owes_the_highest_of_what_versions_ask(self, scene: Scene) -> None:
        for name in "abc":
            scene.add_device(name)
        version = scene.push(scene.model(), [part_key(1)], policy="replicas=2")
        scene.lose_device(scene.catalog.list_devices()[0])
        [answer] = scene.stage(scene.begin(), [part_key(1)], copies=1)
        assert (len(answer.existing), len(answer.staged)) == (1, 1)
        scene.catalog.set_ref(
            version.model, "branch", "main", None, expected=version.id, heads=(), now=scene.clock.now()
        )
        scene.catalog.remove_version(version.model, version.id, heads=(), now=scene.clock.now())
        [answer] = scene.stage(scene.begin(), [part_key(1)], copies=1)
        assert (len(answer.existing), len(answer.staged)) == (1, 0)

    def test_metadata_owes_two_copies_where_two_devices_are(self, scene: Scene) -> None:
        scene.add_device("a")
        version = scene.push(scene.model(), [part_key(1)])
        scene.add_device("b")
        answers = scene.stage(scene.begin(), [part_key(1), *version_keys(version)], model=version.model)
        assert [len(answer.staged) for answer in answers] == [0, 1, 1, 1]

    def test_an_object_of_another_size_is_refused(self, scene: Scene) -> None:
        scene.add_device("a")
        session = scene.begin()
        scene.stage(session, [part_key(1)])
        with pytest.raises(Integrity, match=part_key(1).digest.hex()):
            scene.catalog.stage(session, [scene.request(part_key(2)), scene.request(part_key(1), size_bytes=7)])
        assert [row.key for row in scene.catalog.locate_all(after=0, limit=9)] == [part_key(1)]

    def test_a_repeated_request_gets_the_rows_it_has_staged(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.add_device("b")
        session, request = scene.begin(), scene.request(part_key(1), copies=2)
        first = scene.catalog.stage(session, [request])
        assert scene.catalog.stage(session, [request]) == first
        assert scene.catalog.stage(session, [request, request]) == [*first, *first]
        other = scene.catalog.stage(scene.begin(), [request])
        assert other[0].missing == 2

    def test_a_name_is_not_used_again_after_its_upload_failed(self, scene: Scene) -> None:
        a, b = scene.add_device("a"), scene.add_device("b")
        session, request = scene.begin(), scene.request(part_key(1))
        [answer] = scene.catalog.stage(session, [request])
        assert [row.device for row in answer.staged] == [a.id]
        scene.catalog.forget_staged(session, [answer.staged[0].id])
        [answer] = scene.catalog.stage(session, [request])
        assert [row.device for row in answer.staged] == [b.id]

    def test_rows_change_only_by_their_own_session_and_only_from_staged(self, scene: Scene) -> None:
        scene.add_device("a")
        catalog, session = scene.catalog, scene.begin()
        [one, two, three] = [answer.staged[0] for answer in scene.stage(session, [part_key(n) for n in (1, 2, 3)])]
        other = scene.begin()
        assert catalog.record_stored(other, [one.id]) == []
        catalog.forget_staged(other, [one.id])
        assert catalog.locate([part_key(1)])[part_key(1)] == []
        catalog.forget_staged(session, [two.id])
        assert catalog.record_stored(session, [one.id, two.id, three.id, 10**9]) == [two.id, 10**9]
        catalog.forget_staged(session, [one.id])
        assert [row.state for row in catalog.locate([part_key(1)])[part_key(1)]] == ["stored"]
        assert catalog.locate([part_key(2)])[part_key(2)] == []
        condemned = catalog.list_condemned(grace_s=0, now=scene.clock.now(), after=0, limit=9)
        assert [row.id for row in condemned] == [two.id]

    def test_staging_and_recording_in_one_call_answer_as_the_two_do(self, scene: Scene) -> None:
        scene.add_device("a")
        catalog, session = scene.catalog, scene.begin()
        [one, two] = [answer.staged[0] for answer in scene.stage(session, [part_key(n) for n in (1, 2)])]
        catalog.forget_staged(session, [two.id])
        requests = [scene.request(part_key(n)) for n in (3, 4)]
        answers, late = catalog.stage_and_record(session, requests, [one.id, two.id])
        assert late == [two.id]
        assert [answer.staged[0].key for answer in answers] == [part_key(3), part_key(4)]
        assert [row.state for row in catalog.locate([part_key(1)])[part_key(1)]] == ["stored"]
        assert catalog.stage_and_record(session, [], [answers[0].staged[0].id]) == ([], [])
        assert [row.state for row in catalog.locate([part_key(3)])[part_key(3)]] == ["stored"]

    def test_where_staging_is_refused_nothing_is_recorded(self, scene: Scene) -> None:
        scene.add_device("a")
        catalog, session = scene.catalog, scene.begin()
        [answer] = scene.stage(session, [part_key(1)])
        refused = scene.request(part_key(2), candidates=["no such device"])
        with pytest.raises(NotFound):
            catalog.stage_and_record(session, [refused], [answer.staged[0].id])
        assert catalog.locate([part_key(1)])[part_key(1)] == []

    def test_large_batches_are_answered_in_order(self, scene: Scene) -> None:
        scene.add_device("a")
        keys = [part_key(n) for n in range(300)]
        scene.store(scene.begin(), keys[::2])
        answers = scene.stage(scene.begin(), keys)
        assert [bool(answer.existing) for answer in answers] == [n % 2 == 0 for n in range(300)]
        assert [(*answer.existing, *answer.staged)[0].key for answer in answers] == keys
