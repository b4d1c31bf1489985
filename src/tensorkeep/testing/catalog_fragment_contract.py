"""The catalog's contract: parts that are kept as fragments."""

# ruff: noqa: D102 - a test's name is its sentence

from collections.abc import Sequence

from tensorkeep.catalog.protocol import CommitRequest, Location, ObjectKey, Staging
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.layout import BLOCK_BYTES, MIB
from tensorkeep.records.naming import FragmentName, parse_physical_name
from tensorkeep.records.redundancy import ErasureCoded
from tensorkeep.testing.catalog_fixtures import CatalogFixtures
from tensorkeep.testing.catalog_scene import Scene, part_key

CODE = ErasureCoded(4, 2)
SIZE = 4 * MIB
PART = part_key(1)


class FragmentRules(CatalogFixtures):
    """Fragments go to a device each, and count as many copies as devices must be lost to lose their part."""

    def stage(
        self,
        scene: Scene,
        session: str,
        *,
        code: ErasureCoded | None = CODE,
        copies: int = 3,
        size_bytes: int = SIZE,
        candidates: Sequence[str] | None = None,
        key: ObjectKey = PART,
        anew: bool = False,
    ) -> Staging:
        """Stage a part."""
        request = scene.request(key, copies=copies, size_bytes=size_bytes, candidates=candidates, code=code, anew=anew)
        [answer] = scene.catalog.stage(session, [request])
        return answer

    def store(self, scene: Scene, session: str, **words: object) -> tuple[Location, ...]:
        """Stage a part and record that it is stored; return the new rows."""
        answer = self.stage(scene, session, **words)  # type: ignore[arg-type]  # as in `stage`
        scene.catalog.record_stored(session, [row.id for row in answer.staged])
        return answer.staged

    def commit_request(self, scene: Scene, session: str, policy: str = "ec=4+2") -> CommitRequest:
        """Return a commit of one version that has the part; its metadata is stored."""
        model = scene.model()
        version = scene.version(model, policy=policy)
        scene.prepare(model, version, [], session=session)
        return scene.commit_request(session, model, version, [PART])

    def test_fragment_i_goes_to_candidate_i(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abcdefgh"]
        order = [devices[i].id for i in (7, 2, 4, 0, 6, 1, 3, 5)]
        answer = self.stage(scene, scene.begin(), candidates=order)
        assert (answer.existing, answer.missing) == ((), 0)
        assert [row.device for row in answer.staged] == order[:6]
        for number, row in enumerate(answer.staged):
            assert (row.form, row.fragment, row.needed, row.length) == ("ec-4-2", number, 4, MIB)
            assert (row.key, row.size_bytes, row.offset, row.state) == (PART, SIZE, 0, "staged")
            name = parse_physical_name(row.name)
            assert isinstance(name, FragmentName)
            assert (name.digest, name.data, name.parity, name.index) == (PART.digest, 4, 2, number)
        assert scene.catalog.locate_all(after=0, limit=9) == list(answer.staged)

    def test_data_fragments_without_bytes_are_not_staged(self, scene: Scene) -> None:
        for name in "abcdef":
            scene.add_device(name)
        size = 4 * BLOCK_BYTES + 1
        answer = self.stage(scene, scene.begin(), size_bytes=size)
        assert [row.fragment for row in answer.staged] == [0, 1, 2, 4, 5]
        assert [row.length for row in answer.staged] == [
            2 * BLOCK_BYTES,
            2 * BLOCK_BYTES,
            1,
            2 * BLOCK_BYTES,
            2 * BLOCK_BYTES,
        ]
        assert {row.needed for row in answer.staged} == {3}
        assert answer.missing == 0

    def test_a_version_commits_with_all_fragments_and_not_with_one_less(self, scene: Scene) -> None:
        for name in "abcdef":
            scene.add_device(name)
        session = scene.begin()
        rows = self.stage(scene, session).staged
        request = self.commit_request(scene, session)
        scene.catalog.record_stored(session, [row.id for row in rows[:5]])
        assert scene.needs(request) == (PART,)
        scene.catalog.record_stored(session, [rows[5].id])
        version = scene.commit(request).version
        assert scene.catalog.count_short([version.id]) == {}
        assert {row.state for row in scene.catalog.locate([PART])[PART]} == {"live"}

    def test_only_the_fragments_that_are_lacking_are_staged_again(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abcdefgh"]
        session = scene.begin()
        rows = self.store(scene, session)
        version = scene.commit(self.commit_request(scene, session)).version
        scene.lose_device(devices[0])
        scene.catalog.record_checked(good=(), bad=[rows[4].id])
        assert scene.catalog.count_short([version.id])[version.id] > 0
        answer = self.stage(scene, scene.begin(), copies=1, candidates=[facts.id for facts in devices])
        assert sorted(row.fragment or 0 for row in answer.existing) == [1, 2, 3, 5]
        assert [(row.fragment, row.device) for row in answer.staged] == [(0, devices[6].id), (4, devices[4].id)]
        assert answer.missing == 0

    def test_no_device_gets_two_fragments_and_zones_are_spread(self, scene: Scene) -> None:
        devices = [scene.add_device(name, zone=f"r{number % 4}") for number, name in enumerate("abcdefgh")]
        session = scene.begin()
        self.store(scene, session, candidates=[facts.id for facts in devices[:6]])
        scene.lose_device(devices[2])
        answer = self.stage(scene, scene.begin())
        assert [(row.fragment, row.device) for row in answer.staged] == [(2, devices[6].id)]  # the zone of the lost one

    def test_where_too_few_devices_are_left_nothing_is_staged(self, scene: Scene) -> None:
        for name in "abc":
            scene.add_device(name)
        answer = self.stage(scene, scene.begin())
        assert (answer.existing, answer.staged, answer.missing) == ((), (), 3)
        scene.add_device("d")
        scene.add_device("e")
        answer = self.stage(scene, scene.begin())
        assert ([row.fragment for row in answer.staged], answer.missing) == ([0, 1, 2, 3, 4], 1)

    def test_copies_and_fragments_count_together(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abcdefg"]
        session = scene.begin()
        self.store(scene, session)
        answer = self.stage(scene, session, code=None, copies=3)
        assert (len(answer.existing), answer.staged, answer.missing) == (6, (), 0)
        # One more copy: on the device that has no fragment, since beside one it would add nothing.
        answer = self.stage(scene, session, code=None, copies=4)
        assert ([row.device for row in answer.staged], answer.missing) == ([devices[6].id], 0)
        scene.catalog.record_stored(session, [row.id for row in answer.staged])
        for facts in devices[:3]:
            scene.lose_device(facts)
        request = self.commit_request(scene, session, "replicas=1")
        assert scene.commit(request).version.policy == "replicas=1"

    def test_a_whole_copy_beside_a_fragment_is_lost_with_it(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abcdef"]
        session = scene.begin()
        self.store(scene, session, code=None, copies=1, candidates=[devices[0].id])
        rows = self.store(scene, session)
        assert [row.device for row in rows] == [facts.id for facts in devices[1:]]
        with_copy = self.stage(scene, session, copies=4)
        assert with_copy.missing == 1
        assert self.commit_request(scene, session).copies == 3
        assert scene.commit(self.commit_request(scene, session)).version.policy == "ec=4+2"

    def test_fragments_of_two_codes_are_not_added(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abcdefg"]
        session = scene.begin()
        rows = self.store(scene, session)
        scene.catalog.record_checked(good=(), bad=[row.id for row in rows[:3]])
        answer = self.stage(scene, session, code=ErasureCoded(2, 1), copies=2)
        assert {row.form for row in answer.existing} == {"ec-4-2"}
        assert [(row.form, row.fragment) for row in answer.staged] == [("ec-2-1", 0), ("ec-2-1", 1), ("ec-2-1", 2)]
        free = {facts.id for facts in devices} - {row.device for row in answer.existing}
        assert {row.device for row in answer.staged} <= free
        scene.catalog.record_stored(session, [row.id for row in answer.staged])
        assert scene.commit(self.commit_request(scene, session, "ec=2+1")).version.policy == "ec=2+1"

    def test_a_repeated_request_gets_the_rows_it_has_staged(self, scene: Scene) -> None:
        for name in "abcdef":
            scene.add_device(name)
        session, request = scene.begin(), scene.request(PART, copies=3, size_bytes=SIZE, code=CODE)
        first = scene.catalog.stage(session, [request])
        assert scene.catalog.stage(session, [request]) == first
        scene.catalog.forget_staged(session, [first[0].staged[2].id])
        [again] = scene.catalog.stage(session, [request])
        assert [row.id for row in again.staged] == [row.id for n, row in enumerate(first[0].staged) if n != 2]
        assert again.missing == 1  # its name is taken on the one device that is left

    def test_a_bad_fragment_goes_once_another_took_its_place(self, scene: Scene) -> None:
        for name in "abcdefg":
            scene.add_device(name)
        session = scene.begin()
        rows = self.store(scene, session)
        scene.commit(self.commit_request(scene, session))
        scene.catalog.record_checked(good=(), bad=[rows[1].id])
        assert self.condemned(scene) == []
        self.store(scene, session)
        assert self.condemned(scene) == [rows[1].id]

    def condemned(self, scene: Scene) -> list[int]:
        """Condemn, and return which rows are condemned."""
        now = scene.clock.now()
        scene.catalog.condemn(grace_s=0, dry_run=False, heads=(), now=now)
        return [row.id for row in scene.catalog.list_condemned(grace_s=0, now=now, after=0, limit=99)]

    def soft(self, scene: Scene, names: str) -> list[DeviceFacts]:
        """Add soft devices."""
        return [scene.add_device(name, durability="soft") for name in names]

    def test_fragments_on_soft_devices_count_only_when_allowed(self, scene: Scene) -> None:
        for name in "abcde":
            scene.add_device(name)
        self.soft(scene, "f")
        session = scene.begin()
        request = scene.request(PART, copies=3, size_bytes=SIZE, code=CODE)
        [answer] = scene.catalog.stage(session, [request], allow_soft=True)
        scene.catalog.record_stored(session, [row.id for row in answer.staged])
        assert len(answer.staged) == 6
        commit = self.commit_request(scene, session)
        assert scene.needs(commit) == (PART,)

    def test_a_device_gets_no_other_number_than_it_ever_had(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abcdefgh"]
        session = scene.begin()
        rows = self.store(scene, session, candidates=[facts.id for facts in devices[:6]])
        scene.commit(self.commit_request(scene, session))
        scene.catalog.record_checked(good=(), bad=[rows[0].id])
        scene.lose_device(devices[1])
        other = [devices[i].id for i in (7, 0, 2, 3, 4, 5, 6)]
        answer = self.stage(scene, scene.begin(), candidates=other)
        assert [(row.fragment, row.device) for row in answer.staged] == [(0, devices[0].id), (1, devices[7].id)]
        again = self.stage(scene, scene.begin(), candidates=[devices[i].id for i in (6, 7, 0, 2, 3, 4, 5)])
        assert [(row.fragment, row.device) for row in again.staged] == [(0, devices[0].id), (1, devices[7].id)]

    def test_what_two_lost_devices_had_is_staged_on_others(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abcdef"]
        code = ErasureCoded(2, 1)
        session = scene.begin()
        self.store(scene, session, code=code, copies=2, candidates=[devices[0].id, devices[1].id, devices[2].id])
        scene.lose_device(devices[0])
        scene.lose_device(devices[1])
        answer = self.stage(scene, session, code=code, copies=2)
        assert [row.fragment for row in answer.staged] == [0, 1]
        assert answer.missing == 0

    def test_a_part_that_changes_its_form_gets_all_of_the_new_one_beside_the_old(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abcdef"]
        session = scene.begin()
        whole = self.store(scene, session, code=None, copies=3)
        assert [row.device for row in whole] == [facts.id for facts in devices[:3]]
        beside = self.stage(scene, session)
        assert ([row.id for row in beside.existing], beside.staged) == (
            [row.id for row in whole],
            (),
        )  # what is owed is there, in whatever form
        answer = self.stage(scene, session, anew=True)
        assert (answer.existing, answer.missing) == ((), 0)
        assert [(row.device, row.fragment) for row in answer.staged] == [
            (facts.id, number) for number, facts in enumerate(devices)
        ]
        scene.catalog.record_stored(session, [row.id for row in answer.staged])
        again = self.stage(scene, session, anew=True)
        assert ({row.id for row in again.existing}, again.staged) == ({row.id for row in answer.staged}, ())
        other = self.stage(scene, session, code=ErasureCoded(2, 1), copies=2, anew=True)
        assert [(row.form, row.device) for row in other.staged] == [
            ("ec-2-1", devices[number].id) for number in range(3)
        ]
        back = self.stage(scene, session, code=None, copies=4, anew=True)
        assert [row.id for row in back.existing] == [row.id for row in whole]
        assert [row.device for row in back.staged] == [devices[3].id]

    def test_what_a_part_that_changes_its_form_cannot_get_is_missing(self, scene: Scene) -> None:
        for name in "abcde":
            scene.add_device(name)
        session = scene.begin()
        self.store(scene, session, code=None, copies=3)
        answer = self.stage(scene, session, anew=True)
        assert (len(answer.staged), answer.missing) == (5, 1)
