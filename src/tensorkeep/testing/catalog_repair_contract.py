"""The catalog's contract: what lacks copies, what can be given up, devices that drain and are removed."""

# ruff: noqa: D102 - a test's name is its sentence

import msgspec
import pytest

from tensorkeep.catalog.protocol import DeviceHead, Location, ScrubState, ShortObject
from tensorkeep.catalog.rules import version_keys
from tensorkeep.errors import Conflict, InvalidInput
from tensorkeep.records.device import DeviceFacts, DeviceState
from tensorkeep.records.json_text import format_time
from tensorkeep.records.layout import MIB
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import ErasureCoded
from tensorkeep.testing.catalog_fixtures import CatalogFixtures
from tensorkeep.testing.catalog_scene import PART_BYTES, Scene, part_key


class RepairRules(CatalogFixtures):
    """What lacks copies is listed, and nothing is given up that an object needs."""

    def change(self, scene: Scene, facts: DeviceFacts, state: DeviceState) -> DeviceFacts:
        """Give a device another state."""
        new = msgspec.structs.replace(facts, state=state)
        scene.catalog.change_device(facts, new, heads=(), now=scene.clock.now())
        return new

    def retire(self, scene: Scene, *rows: Location, down: tuple[str, ...] = ()) -> list[int]:
        """Give up rows."""
        return scene.catalog.retire([row.id for row in rows], down=down, heads=(), now=scene.clock.now())

    def rows(self, scene: Scene, number: int = 1) -> list[Location]:
        """Return the rows of a part that can be read."""
        return scene.catalog.locate([part_key(number)])[part_key(number)]

    def lacking(self, scene: Scene, *, down: tuple[str, ...] = ()) -> list[tuple[object, int, int]]:
        """Return (key, have, owed) of the parts that lack copies."""
        found = scene.catalog.list_short(down=down, after=0, limit=99)
        return sorted((each.key, each.have, each.owed) for each in found if each.key.kind.value == "part")

    def test_what_lacks_copies_is_listed_page_by_page(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abc"]
        version = scene.push(scene.model(), [part_key(1), part_key(2)], policy="replicas=2")
        assert scene.catalog.list_short(after=0, limit=99) == []
        scene.lose_device(devices[0])
        whole = scene.catalog.list_short(after=0, limit=99)
        assert {each.key for each in whole} == {part_key(1), part_key(2), *version_keys(version)}
        assert {(each.size_bytes, each.have, each.owed) for each in whole} == {(PART_BYTES, 1, 2)}
        paged: list[ShortObject] = []
        while page := scene.catalog.list_short(after=paged[-1].id if paged else 0, limit=2):
            paged += page
        assert paged == whole
        assert {each.key for each in scene.catalog.list_short(parts=False, after=0, limit=9)} == {
            *version_keys(version)
        }
        assert scene.catalog.count_short([version.id]) == {version.id: 5}

    def test_copies_on_devices_that_are_down_need_not_count(self, scene: Scene) -> None:
        a, b = scene.add_device("a"), scene.add_device("b")
        scene.push(scene.model(), [part_key(1)], policy="replicas=2")
        assert self.lacking(scene) == []
        assert self.lacking(scene, down=(a.id,)) == [(part_key(1), 1, 2)]
        assert self.lacking(scene, down=(a.id, b.id)) == [(part_key(1), 0, 2)]

    def test_bad_copies_do_not_count_and_what_no_version_needs_lacks_nothing(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.push(scene.model(), [part_key(1)])
        scene.store(scene.begin(), [part_key(2)], copies=1)
        scene.catalog.record_checked(good=(), bad=[self.rows(scene)[0].id, self.rows(scene, 2)[0].id])
        assert self.lacking(scene) == [(part_key(1), 0, 1)]

    def test_fragments_are_counted_as_the_devices_that_must_be_lost(self, scene: Scene) -> None:
        devices = [scene.add_device(name) for name in "abcdef"]
        session, model = scene.begin(), scene.model()
        version = scene.version(model, policy="ec=4+2")
        scene.prepare(model, version, [], session=session)
        request = scene.request(part_key(1), copies=3, size_bytes=4 * MIB, code=ErasureCoded(4, 2))
        [answer] = scene.catalog.stage(session, [request])
        scene.catalog.record_stored(session, [row.id for row in answer.staged])
        scene.commit(scene.commit_request(session, model, version, [part_key(1)]))
        for lost, have in ((0, 2), (1, 1), (2, 0)):
            scene.lose_device(devices[lost])
            assert self.lacking(scene) == [(part_key(1), have, 3)]
        down = tuple(facts.id for facts in devices[3:])
        assert self.lacking(scene, down=down) == [(part_key(1), 0, 3)]

    def test_a_copy_goes_only_where_enough_others_count(self, scene: Scene) -> None:
        a, b, c = (scene.add_device(name) for name in "abc")
        scene.push(scene.model(), [part_key(1)], policy="replicas=2")
        assert self.retire(scene, *self.rows(scene)) == []
        scene.store(scene.begin(), [part_key(1)], copies=3)
        rows = self.rows(scene)
        assert [row.device for row in rows] == [a.id, b.id, c.id]
        assert self.retire(scene, rows[0], down=(b.id,)) == []
        assert self.retire(scene, *rows) == [rows[0].id]  # one after the other: then two are left
        assert [row.id for row in self.rows(scene)] == [rows[1].id, rows[2].id]
        assert self.lacking(scene) == []
        condemned = scene.catalog.list_condemned(grace_s=0, now=scene.clock.now(), after=0, limit=9)
        assert [row.id for row in condemned] == [rows[0].id]
        assert self.retire(scene, rows[0]) == []

    def test_durable_copies_are_not_given_up_for_soft_ones(self, scene: Scene) -> None:
        a, b = scene.add_device("a"), scene.add_device("b", durability="soft")
        scene.push(scene.model(), [part_key(1)])
        scene.store(scene.begin(), [part_key(1)], copies=2, candidates=[b.id], allow_soft=True)
        durable, soft = self.rows(scene)
        assert (durable.device, soft.device) == (a.id, b.id)
        assert self.retire(scene, durable) == []
        assert self.retire(scene, soft) == [soft.id]

    def test_what_no_version_needs_and_what_is_staged_is_left_to_gc(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.add_device("b")
        scene.push(scene.model(), [part_key(1)])
        session = scene.begin()
        scene.store(session, [part_key(2)], copies=2)
        [staged] = scene.stage(session, [part_key(1)], copies=2)
        assert self.retire(scene, *self.rows(scene, 2), *staged.staged) == []

    def test_a_bad_copy_goes_once_there_are_enough_good_ones(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.add_device("b")
        scene.push(scene.model(), [part_key(1)])
        [row] = self.rows(scene)
        scene.catalog.record_checked(good=(), bad=[row.id])
        assert self.retire(scene, row) == []
        scene.store(scene.begin(), [part_key(1)])
        assert self.retire(scene, row) == [row.id]

    def test_a_stale_catalog_gives_up_nothing(self, scene: Scene) -> None:
        a = scene.add_device("a")
        scene.add_device("b")
        scene.push(scene.model(), [part_key(1)])
        scene.store(scene.begin(), [part_key(1)], copies=2)
        [row, _] = self.rows(scene)
        ahead = DeviceHead(device=a.id, epoch=1, entry_epoch=1, seq=10_000, digest="0" * 64)
        with pytest.raises(Conflict) as failure:
            scene.catalog.retire([row.id], heads=(ahead,), now=scene.clock.now())
        assert failure.value.facts["reason"] == "stale_catalog"
        assert len(self.rows(scene)) == 2

    def test_rows_found_good_are_live_where_a_version_refers_to_them(self, scene: Scene) -> None:
        scene.add_device("a")
        scene.add_device("b")
        scene.push(scene.model(), [part_key(1)])
        session = scene.begin()
        scene.store(session, [part_key(1)], copies=2)
        scene.store(session, [part_key(2)])
        numbers = [row.id for number in (1, 2) for row in self.rows(scene, number)]
        scene.catalog.record_checked(good=numbers, bad=())
        assert [row.state for row in self.rows(scene)] == ["live", "live"]
        assert [row.state for row in self.rows(scene, 2)] == ["stored"]

    def test_copies_on_a_draining_device_are_read_but_do_not_count(self, scene: Scene) -> None:
        a, b, c = (scene.add_device(name) for name in "abc")
        version = scene.push(scene.model(), [part_key(1)], policy="replicas=2")
        a = self.change(scene, a, "draining")
        assert len(self.rows(scene)) == 2
        assert self.lacking(scene) == [(part_key(1), 1, 2)]
        assert scene.catalog.count_short([version.id])[version.id] >= 1
        # Nothing new goes there, and nothing that is there is offered.
        [answer] = scene.stage(scene.begin(), [part_key(1)], copies=2, candidates=[a.id, b.id])
        assert ([row.device for row in answer.existing], answer.staged, answer.missing) == ([b.id], (), 1)
        scene.store(scene.begin(), [part_key(1)], copies=2, candidates=[c.id])
        on_a = [row for row in self.rows(scene) if row.device == a.id]
        assert self.retire(scene, *on_a) == [on_a[0].id]
        assert self.change(scene, a, "active").state == "active"

    def test_of_two_drains_the_one_that_leaves_too_few_devices_is_refused(self, scene: Scene) -> None:
        a, b, _ = (scene.add_device(name) for name in "abc")
        scene.push(scene.model(), [part_key(1)], policy="replicas=2")
        self.change(scene, a, "draining")
        with pytest.raises(InvalidInput, match="without device b the others can't keep what is stored: 2 copies"):
            self.change(scene, b, "draining")
        assert [facts.state for facts in scene.catalog.list_devices()] == ["draining", "active", "active"]

    def test_the_last_device_is_not_drained(self, scene: Scene) -> None:
        with pytest.raises(InvalidInput, match="without device a the others can't keep"):
            self.change(scene, scene.add_device("a"), "draining")

    def test_only_an_empty_device_is_removed_and_for_good(self, scene: Scene) -> None:
        a, b = scene.add_device("a"), scene.add_device("b")
        session = scene.begin()
        [answer] = scene.store(session, [part_key(1)], candidates=[a.id])
        a = self.change(scene, a, "draining")
        with pytest.raises(Conflict) as failure:
            self.change(scene, a, "removed")
        assert failure.value.facts["reason"] == "filled_device"
        scene.catalog.end_push(session)
        scene.catalog.condemn(grace_s=0, dry_run=False, heads=(), now=scene.clock.now())
        with pytest.raises(Conflict):  # condemned, not deleted yet
            self.change(scene, a, "removed")
        scene.catalog.drop([row.id for row in answer.staged])
        a = self.change(scene, a, "removed")
        with pytest.raises(InvalidInput, match="removed and never used again"):
            self.change(scene, a, "active")
        assert set(scene.catalog.flushed()) == {b.id}
        again = msgspec.structs.replace(a, id=scene.ulid(), name="again", state="active")
        scene.catalog.change_device(None, again, heads=(), now=scene.clock.now())  # its place is free again

    def test_the_rows_of_a_device_are_listed_in_any_state(self, scene: Scene) -> None:
        a, b = scene.add_device("a"), scene.add_device("b")
        session = scene.begin()
        keys = [part_key(number) for number in range(4)]
        staged = [answer.staged[0] for answer in scene.stage(session, keys, candidates=[a.id])]
        scene.store(session, [part_key(9)], candidates=[b.id])
        scene.catalog.record_stored(session, [staged[1].id, staged[2].id])
        scene.catalog.record_checked(good=(), bad=[staged[2].id])
        scene.catalog.forget_staged(session, [staged[3].id])
        rows = scene.catalog.list_on(a.id, after=0, limit=99)
        assert [row.id for row in rows] == [row.id for row in staged]
        assert [row.state for row in rows] == ["staged", "stored", "bad", "condemned"]
        assert scene.catalog.list_on(a.id, after=staged[0].id, limit=2) == rows[1:3]

    def test_how_far_scrubs_are_is_kept_for_each_device_and_depth(self, scene: Scene) -> None:
        a, b = scene.add_device("a"), scene.add_device("b")
        scene.push(scene.model(), [part_key(1)], policy="replicas=2")
        assert scene.catalog.list_scrubs() == []
        rows = self.rows(scene)
        now = format_time(scene.clock.now())
        deep = ScrubState(device=b.id, depth="deep", after=7, begun_at=now, objects=3, bytes=3000, bad=1)
        light = ScrubState(device=b.id, depth="light", begun_at=now, ended_at=now)
        scene.catalog.record_scrub(deep, good=(), bad=[rows[0].id])
        scene.catalog.record_scrub(light, good=(), bad=())
        assert scene.catalog.list_scrubs() == [deep, light]
        assert [row.state for row in self.rows(scene)] == ["bad", "live"]
        further = msgspec.structs.replace(deep, after=9, objects=4)
        scene.catalog.record_scrub(further, good=[rows[0].id], bad=())
        assert scene.catalog.list_scrubs() == [further, light]
        assert [row.state for row in self.rows(scene)] == ["live", "live"]
        scene.catalog.record_scrub(msgspec.structs.replace(deep, device=a.id), good=(), bad=())
        assert [state.device for state in scene.catalog.list_scrubs()] == sorted([a.id, b.id, b.id])
        scene.lose_device(b)
        assert [state.device for state in scene.catalog.list_scrubs()] == [a.id]

    def test_rows_are_listed_by_the_first_byte_of_their_digest(self, scene: Scene) -> None:
        a, b = scene.add_device("a"), scene.add_device("b")
        keys = [part_key(number) for number in range(300)]
        session = scene.begin()
        scene.store(session, keys, candidates=[a.id])
        scene.store(session, keys[:5], copies=2, candidates=[b.id])
        total = 0
        for first in range(0, 256, 5):
            last = min(first + 4, 255)
            rows = scene.catalog.list_named(a.id, ObjectKind.PART, first, last)
            assert {row.key for row in rows} == {key for key in keys if first <= key.digest[0] <= last}
            total += len(rows)
        assert total == 300
        assert len(scene.catalog.list_named(a.id, ObjectKind.PART, 0, 255)) == 300
        assert len(scene.catalog.list_named(b.id, ObjectKind.PART, 0, 255)) == 5
        assert scene.catalog.list_named(a.id, ObjectKind.MANIFEST, 0, 255) == []

    def test_what_no_row_tells_of_is_noted_once(self, scene: Scene) -> None:
        a = scene.add_device("a")
        session = scene.begin()
        [answer] = scene.stage(session, [part_key(1)])
        [staged] = answer.staged
        found = [(staged.name, PART_BYTES), ("parts/00/late", 7), ("parts/00/later", 8)]
        note = scene.catalog.note_orphans
        assert note(a.id, found[:2], heads=(), now=scene.clock.now()) == 1
        scene.clock.advance(3600)
        assert note(a.id, found, heads=(), now=scene.clock.now()) == 1
        assert note(a.id, found, heads=(), now=scene.clock.now()) == 0

        def listed(grace_s: float, after: int = 0) -> list[tuple[str, int]]:
            orphans = scene.catalog.list_orphans(grace_s=grace_s, now=scene.clock.now(), after=after, limit=9)
            return [(orphan.name, orphan.size_bytes) for orphan in orphans]

        assert listed(0) == found[1:]
        assert listed(3600) == [found[1]]
        assert listed(3601) == []
        first = scene.catalog.list_orphans(grace_s=0, now=scene.clock.now(), after=0, limit=1)
        assert listed(0, after=first[0].id) == [found[2]]
        scene.catalog.drop_orphans([first[0].id])
        assert listed(0) == [found[2]]
        scene.lose_device(a)
        assert listed(0) == []

    def test_a_stale_catalog_notes_no_orphans(self, scene: Scene) -> None:
        a = scene.add_device("a")
        ahead = DeviceHead(device=a.id, epoch=1, entry_epoch=1, seq=10_000, digest="0" * 64)
        with pytest.raises(Conflict):
            scene.catalog.note_orphans(a.id, [("parts/00/late", 7)], heads=(ahead,), now=scene.clock.now())
        assert scene.catalog.list_orphans(grace_s=0, now=scene.clock.now(), after=0, limit=9) == []
