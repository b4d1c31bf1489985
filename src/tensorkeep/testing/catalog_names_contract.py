"""The catalog's contract: devices, models, branches, tags, versions, policies."""

# ruff: noqa: D102 - a test's name is its sentence

import msgspec
import pytest

from tensorkeep.catalog.protocol import DeviceUsage
from tensorkeep.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.history import PolicyChanged, decode_entry
from tensorkeep.records.names import parse_model_name
from tensorkeep.records.naming import ObjectKind
from tensorkeep.testing.catalog_fixtures import STORE, CatalogFixtures
from tensorkeep.testing.catalog_scene import PART_BYTES, Scene, part_key


class DeviceRules(CatalogFixtures):
    """Devices are added, changed by compare-and-swap, lost for ever."""

    def test_a_new_catalog_knows_its_store_and_its_first_entry(self, scene: Scene) -> None:
        info = scene.catalog.info()
        assert (info.store, info.epoch, info.last_seq, info.policy) == (STORE, 1, 1, "replicas=1")
        assert info.head is not None
        assert scene.catalog.check() == []
        assert scene.catalog.list_devices() == []
        assert scene.catalog.list_models() == []

    def test_devices_are_listed_in_order_of_being_added(self, scene: Scene) -> None:
        added = [scene.add_device(name) for name in ("zz", "aa", "mm")]
        assert scene.catalog.list_devices() == added
        assert scene.catalog.flushed() == {facts.id: 0 for facts in added}

    def test_every_change_of_a_device_gets_the_next_seq(self, scene: Scene) -> None:
        facts = scene.add_device("a")
        changed = msgspec.structs.replace(facts, bandwidth=5, capacity=1 << 50, untrusted=True)
        assert scene.catalog.change_device(facts, changed, heads=(), now=scene.clock.now()) == 3
        assert scene.catalog.list_devices() == [changed]
        assert scene.catalog.info().last_seq == 3

    def test_a_device_changes_only_from_what_the_caller_saw(self, scene: Scene) -> None:
        facts = scene.add_device("a")
        faster = msgspec.structs.replace(facts, bandwidth=5)
        scene.catalog.change_device(facts, faster, heads=(), now=scene.clock.now())
        with pytest.raises(Conflict):
            scene.catalog.change_device(facts, faster, heads=(), now=scene.clock.now())
        stranger = msgspec.structs.replace(facts, id=scene.ulid())
        with pytest.raises(NotFound):
            scene.catalog.change_device(stranger, stranger, heads=(), now=scene.clock.now())
        with pytest.raises(InvalidInput):
            scene.catalog.change_device(faster, stranger, heads=(), now=scene.clock.now())
        assert scene.catalog.list_devices() == [faster]

    @pytest.mark.parametrize("same", ["id", "name", "url"])
    def test_a_device_shares_neither_id_nor_name_nor_url_with_another(self, scene: Scene, same: str) -> None:
        facts = scene.add_device("a")
        fresh = {"id": scene.ulid(), "name": "b", "url": "file:///b"}
        other = msgspec.structs.replace(facts, **{**fresh, same: getattr(facts, same)})
        with pytest.raises(AlreadyExists):
            scene.catalog.change_device(None, other, heads=(), now=scene.clock.now())
        assert scene.catalog.list_devices() == [facts]
        assert scene.catalog.info().last_seq == 2

    def test_a_lost_device_stays_lost_and_its_place_can_be_taken_under_another_name(self, scene: Scene) -> None:
        facts = scene.add_device("a")
        lost = scene.lose_device(facts)
        with pytest.raises(InvalidInput):
            scene.catalog.change_device(lost, facts, heads=(), now=scene.clock.now())
        again = msgspec.structs.replace(facts, id=scene.ulid())
        with pytest.raises(AlreadyExists):
            scene.catalog.change_device(None, again, heads=(), now=scene.clock.now())
        fresh = msgspec.structs.replace(again, name="a2")
        scene.catalog.change_device(None, fresh, heads=(), now=scene.clock.now())
        assert scene.catalog.list_devices() == [lost, fresh]
        assert scene.catalog.flushed() == {fresh.id: 0}

    def test_usage_names_every_device_and_counts_what_is_not_condemned(self, scene: Scene) -> None:
        one, two = scene.add_device("one"), scene.add_device("two")
        session = scene.begin()
        answers = scene.store(session, [part_key(1), part_key(2), part_key(3)], candidates=[one.id])
        rows = [answer.staged[0].id for answer in answers]
        scene.catalog.record_checked(good=(), bad=rows[:1])
        [staged] = scene.stage(session, [part_key(4)], candidates=[one.id])
        scene.catalog.forget_staged(session, [staged.staged[0].id])
        assert scene.catalog.device_usage() == [
            DeviceUsage(device=one.id, locations=3, bytes=3 * PART_BYTES, bad_locations=1, bad_bytes=PART_BYTES),
            DeviceUsage(device=two.id, locations=0, bytes=0, bad_locations=0, bad_bytes=0),
        ]


class NameRules(CatalogFixtures):
    """Names are unique without regard to case, refs move by compare-and-swap, revisions are looked up in one order."""

    @pytest.fixture
    def device(self, scene: Scene) -> DeviceFacts:
        """Return the scene's one device."""
        return scene.add_device("a")

    def test_models_are_found_without_regard_to_case_and_listed_by_name(
        self, scene: Scene, device: DeviceFacts
    ) -> None:
        assert device.state == "active"
        zebra, llama = scene.model("acme/Zebra"), scene.model("acme/llama")
        scene.push(zebra, [part_key(1)])
        scene.push(llama, [part_key(1)])
        assert scene.catalog.list_models() == [llama, zebra]
        assert scene.catalog.find_model(parse_model_name("ACME/zebra")) == zebra
        assert scene.catalog.find_model(parse_model_name("acme/lama")) is None

    def test_a_second_model_of_that_name_in_another_case_is_refused(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        scene.push(scene.model("acme/llama"), [part_key(1)])
        other = scene.model("Acme/Llama")
        version = scene.version(other)
        session = scene.prepare(other, version, [part_key(1)])
        with pytest.raises(Conflict, match="acme/llama"):
            scene.catalog.commit(scene.commit_request(session, other, version, [part_key(1)]))
        assert len(scene.catalog.list_models()) == 1

    def test_versions_are_listed_newest_commit_first_and_refs_by_kind_and_name(
        self, scene: Scene, device: DeviceFacts
    ) -> None:
        assert device.state == "active"
        model, other = scene.model(), scene.model("acme/other")
        first = scene.push(model, [part_key(1)], tag="z")
        second = scene.push(model, [part_key(2)], expected_head=first.id, tag="a")
        third = scene.push(model, [part_key(3)], branch="dev")
        scene.push(other, [part_key(3)])
        assert scene.catalog.list_versions(model.id) == [third, second, first]
        refs = [(ref.kind, ref.name, ref.version) for ref in scene.catalog.list_refs(model.id)]
        assert refs == [
            ("branch", "dev", third.id),
            ("branch", "main", second.id),
            ("tag", "a", second.id),
            ("tag", "z", first.id),
        ]
        assert scene.catalog.list_versions(scene.ulid()) == []
        assert scene.catalog.list_refs(scene.ulid()) == []

    def test_a_revision_is_branch_then_tag_then_id_then_prefix(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        catalog, model = scene.catalog, scene.model()
        first = scene.push(model, [part_key(1)], tag="both")
        second = scene.push(model, [part_key(2)], branch="both")
        assert catalog.get_version(model.id, "both") == second
        assert catalog.get_version(model.id, "main") == first
        catalog.set_ref(model.id, "branch", "both", None, expected=second.id, heads=(), now=scene.clock.now())
        assert catalog.get_version(model.id, "both") == first
        for revision in (second.id, second.id[:7], second.id[:39]):
            assert catalog.get_version(model.id, revision) == second

    def test_values_are_taken_as_they_are_whatever_signs_are_in_them(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        other = scene.add_device("other")
        version = scene.push(scene.model(), [part_key(1)], policy="replicas=2")
        scene.lose_device(other)
        odd = ['"', "\\", "{}", "a,b", "NULL", "", '\\"', f'{version.id}","x']
        assert scene.catalog.count_short(odd) == {}
        assert list(scene.catalog.count_short([*odd, version.id])) == [version.id]

    def test_a_name_and_a_revision_find_model_and_version_at_once(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        catalog, model = scene.catalog, scene.model()
        version = scene.push(model, [part_key(1)], tag="v1")
        for revision in ("main", "v1", version.id[:7]):
            assert catalog.find_version(parse_model_name(model.name.upper()), revision) == (model, version)
        assert catalog.find_version(parse_model_name("acme/none"), "main") is None
        with pytest.raises(NotFound, match="acme/llama"):
            catalog.find_version(parse_model_name(model.name), "nothing")

    @pytest.mark.parametrize("revision", ["nothing", "%", "_______", "1234567", "f" * 40])
    def test_an_unknown_revision_is_not_found(self, scene: Scene, device: DeviceFacts, revision: str) -> None:
        assert device.state == "active"
        model = scene.model()
        version = scene.push(model, [part_key(1)])
        with pytest.raises(NotFound, match="acme/llama"):
            scene.catalog.get_version(model.id, revision)
        with pytest.raises(NotFound):
            scene.catalog.get_version(model.id, version.id[:6])
        with pytest.raises(NotFound):
            scene.catalog.get_version(model.id, version.id.upper())
        with pytest.raises(NotFound):
            scene.catalog.get_version(scene.ulid(), "main")

    def test_an_ambiguous_prefix_lists_its_candidates(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        model = scene.model()
        ids = ["abcdef0" + digit * 33 for digit in "12"]
        for number, version_id in enumerate(ids):
            version = msgspec.structs.replace(scene.version(model, label=str(number)), id=version_id)
            session = scene.prepare(model, version, [part_key(1)])
            scene.commit(scene.commit_request(session, model, version, [part_key(1)], branch=f"b{number}"))
        with pytest.raises(InvalidInput) as caught:
            scene.catalog.get_version(model.id, "abcdef0")
        assert all(version_id in caught.value.message for version_id in ids)
        assert scene.catalog.get_version(model.id, "abcdef01").id == ids[0]

    def test_a_ref_is_made_moved_and_deleted_by_compare_and_swap(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        catalog, model, now = scene.catalog, scene.model(), scene.clock.now()
        one = scene.push(model, [part_key(1)]).id
        two = scene.push(model, [part_key(2)], expected_head=one).id
        seq = catalog.info().last_seq
        assert catalog.set_ref(model.id, "branch", "prod", one, expected=None, heads=(), now=now) == seq + 1
        with pytest.raises(AlreadyExists):
            catalog.set_ref(model.id, "branch", "prod", two, expected=None, heads=(), now=now)
        with pytest.raises(Conflict):
            catalog.set_ref(model.id, "branch", "prod", two, expected=two, heads=(), now=now)
        with pytest.raises(Conflict):
            catalog.set_ref(model.id, "branch", "new", two, expected=one, heads=(), now=now)
        assert catalog.set_ref(model.id, "branch", "prod", two, expected=one, heads=(), now=now) == seq + 2
        with pytest.raises(Conflict):
            catalog.set_ref(model.id, "branch", "prod", None, expected=one, heads=(), now=now)
        with pytest.raises(Conflict):
            catalog.set_ref(model.id, "branch", "prod", None, expected=None, heads=(), now=now)
        assert catalog.set_ref(model.id, "branch", "prod", None, expected=two, heads=(), now=now) == seq + 3
        with pytest.raises(NotFound):
            catalog.set_ref(model.id, "branch", "prod", None, expected=two, heads=(), now=now)
        with pytest.raises(NotFound):
            catalog.set_ref(model.id, "branch", "prod", None, expected=None, heads=(), now=now)
        assert catalog.info().last_seq == seq + 3

    def test_a_tag_that_exists_is_not_made_again(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        model = scene.model()
        one = scene.push(model, [part_key(1)], tag="v1").id
        with pytest.raises(AlreadyExists, match="v1"):
            scene.catalog.set_ref(model.id, "tag", "v1", one, expected=None, heads=(), now=scene.clock.now())

    def test_a_ref_points_only_at_versions_of_its_model(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        model, other, now = scene.model(), scene.model("acme/other"), scene.clock.now()
        scene.push(model, [part_key(1)])
        foreign = scene.push(other, [part_key(1)]).id
        for version in (foreign, "0" * 40):
            with pytest.raises(NotFound):
                scene.catalog.set_ref(model.id, "tag", "t", version, expected=None, heads=(), now=now)
        with pytest.raises(NotFound):
            scene.catalog.set_ref(scene.ulid(), "tag", "t", foreign, expected=None, heads=(), now=now)

    @pytest.mark.parametrize("name", ["abcdef0", "", "a b", "../x", "x" * 201])
    def test_an_illegal_ref_name_is_refused(self, scene: Scene, device: DeviceFacts, name: str) -> None:
        assert device.state == "active"
        model = scene.model()
        version = scene.push(model, [part_key(1)]).id
        with pytest.raises(InvalidInput):
            scene.catalog.set_ref(model.id, "branch", name, version, expected=None, heads=(), now=scene.clock.now())

    def test_a_version_that_a_ref_points_at_is_not_removed(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        catalog, model, now = scene.catalog, scene.model(), scene.clock.now()
        one = scene.push(model, [part_key(1)], tag="v1")
        two = scene.push(model, [part_key(2)], expected_head=one.id)
        with pytest.raises(Conflict, match="tag v1") as caught:
            catalog.remove_version(model.id, one.id, heads=(), now=now)
        assert caught.value.facts["reason"] == "referenced"
        catalog.set_ref(model.id, "tag", "v1", None, expected=one.id, heads=(), now=now)
        seq = catalog.info().last_seq
        assert catalog.remove_version(model.id, one.id, heads=(), now=now) == seq + 1
        assert catalog.list_versions(model.id) == [two]
        assert two.parent == one.id
        assert catalog.find_manifest(one.manifest) is None
        with pytest.raises(NotFound):
            catalog.remove_version(model.id, one.id, heads=(), now=now)
        with pytest.raises(NotFound):
            catalog.version_objects(one.id)

    def test_a_version_is_removed_only_from_its_own_model(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        model, other = scene.model(), scene.model("acme/other")
        version = scene.push(model, [part_key(1)])
        scene.push(other, [part_key(1)])
        with pytest.raises(NotFound):
            scene.catalog.remove_version(other.id, version.id, heads=(), now=scene.clock.now())

    def test_removing_a_model_is_one_entry(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        catalog, model, other = scene.catalog, scene.model(), scene.model("acme/other")
        one = scene.push(model, [part_key(1)], tag="v1")
        scene.push(model, [part_key(2)], expected_head=one.id)
        kept = scene.push(other, [part_key(1)])
        seq = catalog.info().last_seq
        assert catalog.remove_model(model.id, heads=(), now=scene.clock.now()) == seq + 1
        assert catalog.info().last_seq == seq + 1
        assert catalog.list_models() == [other]
        assert catalog.list_versions(model.id) == []
        assert catalog.list_refs(model.id) == []
        assert catalog.list_versions(other.id) == [kept]
        with pytest.raises(NotFound):
            catalog.remove_model(model.id, heads=(), now=scene.clock.now())
        assert catalog.check() == []

    def test_policies_of_store_and_model_are_set_for_later_pushes(self, scene: Scene, device: DeviceFacts) -> None:
        assert device.state == "active"
        catalog, model, now = scene.catalog, scene.model(), scene.clock.now()
        version = scene.push(model, [part_key(1)])
        catalog.set_policy(None, "replicas=3", heads=(), now=now)
        catalog.set_policy(model.id, "ec=4+2", heads=(), now=now)
        assert catalog.info().policy == "replicas=3"
        assert catalog.list_models() == [msgspec.structs.replace(model, policy="ec=4+2")]
        assert catalog.list_versions(model.id) == [version]
        with pytest.raises(InvalidInput):
            catalog.set_policy(None, "replicas=0", heads=(), now=now)
        with pytest.raises(NotFound):
            catalog.set_policy(scene.ulid(), "replicas=1", heads=(), now=now)
        assert catalog.check() == []

    def test_the_versions_of_a_model_may_owe_its_new_policy_too(self, scene: Scene) -> None:
        for name in "abc":
            scene.add_device(name)
        catalog, model, now = scene.catalog, scene.model(), scene.clock.now()
        old = scene.push(model, [part_key(1), part_key(2)])
        new = scene.push(model, [part_key(2)], policy="replicas=2", expected_head=old.id)
        other = scene.push(scene.model("acme/other"), [part_key(3)])
        before = catalog.info().last_seq
        catalog.set_policy(model.id, "replicas=2", versions=True, heads=(), now=now)
        assert catalog.info().last_seq == before + 1
        changes = decode_entry(catalog.journal_rows()[-1].body).changes
        assert changes[1:] == (PolicyChanged(version=old.id, old="replicas=1", new="replicas=2"),)
        assert catalog.list_versions(model.id) == [new, msgspec.structs.replace(old, policy="replicas=2")]
        assert catalog.list_versions(other.model) == [other]
        keys = [part_key(number) for number in (1, 2, 3)]
        assert catalog.copies_owed(keys) == {part_key(1): 2, part_key(2): 2, part_key(3): 1}
        short = {each.key for each in catalog.list_short(after=0, limit=99) if each.key.kind is ObjectKind.PART}
        assert short == {part_key(1)}
        assert catalog.check() == []
