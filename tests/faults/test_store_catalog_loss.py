"""The catalog lost, damaged, put back from a copy, or replaced while somebody else works: nothing acknowledged is lost."""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorkeep
from tensorkeep.devices import LocalDevice
from tensorkeep.errors import (
    AlreadyExists,
    Conflict,
    InvalidInput,
    NotEnoughCopies,
    NotFound,
    TensorkeepError,
    Unavailable,
)
from tensorkeep.records.digest import blake3_256
from tensorkeep.store.store import Store
from tests.faults.store_world import (
    GIB,
    MIB,
    MODEL,
    OBJECT_FOLDERS,
    Hooks,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    flip,
    journal_names,
    small_weights,
)
from tests.mounts import read_only_mount

OTHER = "other"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.end()


def fill(world: World) -> Store:
    """Make a store with a past: two models, branches, tags, a model's policy, a removed version, a removed tag."""
    store = world.create()
    for turn in range(3):
        store.push(small_weights(turn), MODEL, part_size=MIB, tag=f"v{turn}", message=f"turn {turn}")
    store.push(small_weights(9), OTHER, part_size=MIB, replicas=3)
    store.branch(MODEL, "prod", to="v1")
    gone = store.push(small_weights(50), MODEL, part_size=MIB, branch="trial")
    store.delete_branch(MODEL, "trial")
    store.rm(f"{MODEL}@{gone.id}")
    store.delete_tag(MODEL, "v0")
    return store


def everything(store: Store) -> dict[str, Any]:
    """Return all that users see of a store: models, policies, versions, branches, tags, devices."""
    catalog = store._context.catalog
    models = catalog.list_models()
    return {
        "models": store.models(),
        "facts": models,
        "refs": {model.id: catalog.list_refs(model.id) for model in models},
        "versions": {model.id: catalog.list_versions(model.id) for model in models},
        "devices": catalog.list_devices(),
        "policy": catalog.info().policy,
    }


def assert_all_load(store: Store) -> None:
    for turn in (1, 2):
        assert_loads(store, f"{MODEL}@v{turn}", small_weights(turn))
    assert_loads(store, f"{MODEL}@prod", small_weights(1))
    assert_loads(store, OTHER, small_weights(9))


def assert_whole(world: World, before: dict[str, Any]) -> None:
    """Assert that the store is what it was, to the last byte, also after a gc, and that it can be written to."""
    store = world.open()
    assert everything(store) == before
    assert_clean(store)
    assert_all_load(store)
    assert_no_orphans(world, store)
    assert_all_load(store)
    store.push(small_weights(3), MODEL, part_size=MIB, tag="next")
    assert_loads(store, f"{MODEL}@next", small_weights(3))
    assert_clean(world.open())


# --------------------------------------------------------------------------- lost


def test_a_store_without_its_catalog_says_what_to_do(world: World) -> None:
    fill(world)
    world.lose_catalog()
    with pytest.raises(NotFound, match="rebuild-catalog"):
        tensorkeep.open(world.location)
    with pytest.raises(NotFound, match="rebuild-catalog"):
        tensorkeep.init(world.location)
    assert not world.catalog.exists()


def test_a_lost_catalog_is_rebuilt_from_the_devices(world: World) -> None:
    before = everything(fill(world))
    world.lose_catalog()
    report = tensorkeep.rebuild_catalog(world.location)
    assert (report.models, report.versions, report.replaced) == (2, 4, None)
    assert (report.missing, report.unreachable) == ((), ())
    assert sorted(report.devices) == world.names
    assert_whole(world, before)


def test_a_lost_catalog_is_rebuilt_after_its_journal_was_trimmed(tmp_path: Path) -> None:
    world = World(tmp_path, snapshot_every=3)
    before = everything(fill(world))
    assert len(journal_names(world, "d0")) < 6
    world.lose_catalog()
    tensorkeep.rebuild_catalog(world.location)
    assert_whole(world, before)
    world.close()


@pytest.mark.parametrize("name", ["d0", "d1", "d2"])
def test_the_url_of_any_one_device_is_enough(world: World, name: str) -> None:
    before = everything(fill(world))
    world.lose_catalog()
    (world.location / "store.json").unlink()
    with pytest.raises(NotFound, match="--from"):
        tensorkeep.rebuild_catalog(world.location)
    report = tensorkeep.rebuild_catalog(world.location, sources=[f"file://{world.place(name)}"])
    assert sorted(report.devices) == world.names
    assert_whole(world, before)


def test_the_store_can_be_rebuilt_in_another_folder(world: World, tmp_path: Path) -> None:
    before = everything(fill(world))
    world.close()
    shutil.rmtree(world.location)
    tensorkeep.rebuild_catalog(world.location, sources=[str(world.place("d1"))])
    assert_whole(world, before)


def test_a_rebuilt_catalog_that_is_lost_again_is_rebuilt_again(world: World) -> None:
    before = everything(fill(world))
    for epoch in (2, 3, 4):
        world.lose_catalog()
        assert tensorkeep.rebuild_catalog(world.location).epoch == epoch
    assert_whole(world, before)


def test_a_device_that_is_away_loses_nothing_and_is_taken_in_when_it_is_back(world: World) -> None:
    before = everything(fill(world))
    objects = world.objects()
    world.lose_catalog()
    world.unmount("d1")
    report = tensorkeep.rebuild_catalog(world.location)
    assert sorted(report.devices) == ["d0", "d2"]
    assert report.unreachable
    assert all("d1" in reason for reason in report.unreachable)
    store = world.open()
    assert everything(store) == before
    assert_all_load(store)
    # What the absent device holds is not known: nothing may be taken for garbage.
    with pytest.raises(Conflict, match="d1"):
        store.gc(grace_s=0, max_fraction=None)
    with pytest.raises(Unavailable, match="d1"):
        store.push(small_weights(3), MODEL, part_size=MIB)
    world.close()

    world.mount("d1")
    assert world.objects() >= objects
    assert_all_load(world.open())
    world.close()
    tensorkeep.rebuild_catalog(world.location)
    assert_whole(world, before)


def test_a_journal_that_is_damaged_on_one_device_is_read_from_the_others(world: World) -> None:
    before = everything(fill(world))
    world.lose_catalog()
    for number, physical in enumerate(journal_names(world, "d0")):
        flip(world.place("d0") / physical, 20 + number, 0x04)
    for physical in journal_names(world, "d1")[2:5]:
        (world.place("d1") / physical).unlink()
    report = tensorkeep.rebuild_catalog(world.location)
    assert report.missing == ()
    assert_whole(world, before)


def test_a_manifest_and_checks_that_are_damaged_on_one_device_are_read_from_another(world: World) -> None:
    before = everything(fill(world))
    world.lose_catalog()
    damaged = [path for kind in OBJECT_FOLDERS[1:] for path in (world.place("d0") / kind).rglob("*") if path.is_file()]
    for path in damaged:
        flip(path, path.stat().st_size // 2, 0x20)
    assert damaged
    report = tensorkeep.rebuild_catalog(world.location)
    assert report.missing == ()
    store = world.open()
    assert everything(store) == before
    assert_all_load(store)
    problems = {problem.object for problem in store.verify().problems if problem.kind == "corrupt"}
    assert problems == {str(path.relative_to(world.place("d0"))) for path in damaged}


# -------------------------------------------------------------------------- stale


VERBS: dict[str, Callable[[Store], object]] = {
    "push": lambda store: store.push(small_weights(5), MODEL, part_size=MIB),
    "push of what the old head has": lambda store: store.push(small_weights(1), MODEL, part_size=MIB),
    "push to a new branch": lambda store: store.push(small_weights(5), MODEL, part_size=MIB, branch="new"),
    "push of a new model": lambda store: store.push(small_weights(5), "fresh", part_size=MIB),
    "tag": lambda store: store.tag(MODEL, "wrong", "v1"),
    "delete tag": lambda store: store.delete_tag(MODEL, "v1"),
    "branch": lambda store: store.branch(MODEL, "wrong", to="v1"),
    "branch to where it is": lambda store: store.branch(MODEL, "main", to="v1"),
    "rm": lambda store: store.rm(f"{MODEL}@{store.model(f'{MODEL}@v0').version.id}"),
    "rm model": lambda store: store.rm_model(MODEL),
    "gc": lambda store: store.gc(grace_s=0, max_fraction=None),
    "plan": lambda store: store.plan(small_weights(5), MODEL),
    "gc dry run": lambda store: store.gc(dry_run=True),
    "device lost": lambda store: store.devices.lost("d0"),
}


def day_old(world: World) -> dict[str, Any]:
    """Make a store, put yesterday's catalog in place of today's, and return what today's said."""
    store = world.create()
    for turn in range(2):
        store.push(small_weights(turn), MODEL, part_size=MIB, tag=f"v{turn}")
    store.delete_tag(MODEL, "v0")
    store.tag(MODEL, "v0", store.log(MODEL)[1].id[:9])
    copy = world.keep_copy()
    store.delete_tag(MODEL, "v0")
    store.push(small_weights(2), MODEL, part_size=MIB, tag="v2")
    store.push(small_weights(9), OTHER, part_size=MIB)
    store.branch(MODEL, "prod", to="v1")
    before = everything(store)
    world.put_back(copy)
    return before


def test_a_catalog_of_yesterday_refuses_every_change_and_still_loads(world: World) -> None:
    before = day_old(world)
    objects = world.objects()
    for name, verb in VERBS.items():
        with pytest.raises(Conflict, match="rebuild-catalog") as caught:
            verb(world.open())
        assert caught.value.facts["reason"] == "stale_catalog", name
    with pytest.raises(Conflict, match="rebuild-catalog"):
        world.open().devices.add("d9", str(world.place("d9")), bandwidth=GIB)
    assert world.objects() >= objects
    assert_loads(world.open(), f"{MODEL}@v1", small_weights(1))
    world.close()

    report = tensorkeep.rebuild_catalog(world.location)
    assert report.replaced is not None
    assert (world.location / report.replaced).stat().st_size > 0
    assert_whole(world, before)


def test_a_handle_of_before_refuses_too(world: World) -> None:
    """A process that was there all the time, on a catalog that somebody put back under it."""
    day_old(world)
    store = world.open()
    store.model(MODEL).load()
    for verb in VERBS.values():
        with pytest.raises(Conflict, match="rebuild-catalog"):
            verb(store)


def test_a_catalog_that_is_whole_is_not_rebuilt_unless_forced(world: World) -> None:
    before = everything(fill(world))
    world.close()
    with pytest.raises(AlreadyExists, match="--force"):
        tensorkeep.rebuild_catalog(world.location)
    assert world.open()._context.catalog.info().epoch == 1
    world.close()
    assert tensorkeep.rebuild_catalog(world.location, force=True).replaced is not None
    assert_whole(world, before)


# ------------------------------------------------------------------------ damaged


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def test_a_catalog_whose_first_page_is_damaged_says_so_and_is_rebuilt(world: World) -> None:
    before = everything(fill(world))
    for offset in (0, 16, 100):
        world.close()
        overwrite(world.catalog, offset, b"\xa5" * 400)
        with pytest.raises(TensorkeepError, match="rebuild-catalog"):
            world.open().verify()
        world.close()
        tensorkeep.rebuild_catalog(world.location)
        assert everything(world.open()) == before
        assert_clean(world.open())
    assert_whole(world, before)


def test_a_catalog_with_a_damaged_page_gives_no_wrong_byte_and_is_rebuilt(world: World) -> None:
    before = everything(fill(world))
    seen = 0
    for seed in range(10):
        world.close()
        chance = np.random.default_rng(seed)
        page = int(chance.integers(1, world.catalog.stat().st_size // 4096))
        overwrite(world.catalog, page * 4096, chance.bytes(4096))
        for spec, turn in ((f"{MODEL}@v1", 1), (f"{MODEL}@v2", 2), (OTHER, 9)):
            with suppress(TensorkeepError):
                assert_loads(world.open(), spec, small_weights(turn))
        found = sees_damage(world)
        seen += found
        world.close()
        # A page that nothing uses may be damaged without anybody seeing it; such a catalog is rebuilt when forced.
        tensorkeep.rebuild_catalog(world.location, force=not found)
        assert everything(world.open()) == before
        assert_clean(world.open())
    assert seen >= 5
    assert_whole(world, before)


def sees_damage(world: World) -> bool:
    """Return whether a verification reports a damaged catalog, or says what to do about one that it can't read."""
    try:
        return any(problem.kind == "catalog" for problem in world.open().verify().problems)
    except TensorkeepError as error:
        return "rebuild-catalog" in str(error)


def test_an_empty_catalog_says_so_and_is_rebuilt(world: World) -> None:
    before = everything(fill(world))
    world.close()
    world.catalog.write_bytes(b"")
    with pytest.raises(TensorkeepError, match="rebuild-catalog"):
        world.open()
    tensorkeep.rebuild_catalog(world.location)
    assert_whole(world, before)


# ---------------------------------------------------------- somebody else at work


def elsewhere(world: World) -> World:
    """Return the same store as a process sees it whose catalog the rebuild can't replace: a copy in another folder."""
    other = World(world.folder / "elsewhere")
    other.location.mkdir(parents=True)
    shutil.copyfile(world.catalog, other.catalog)
    return other


def test_a_process_with_another_catalog_is_fenced_by_a_rebuild(world: World) -> None:
    before = everything(fill(world))
    other = elsewhere(world)
    store = other.open()
    store.model(f"{MODEL}@v1").load()
    world.lose_catalog()
    tensorkeep.rebuild_catalog(world.location)
    for name in (
        "push",
        "push to a new branch",
        "push of a new model",
        "tag",
        "branch",
        "rm model",
        "gc",
        "device lost",
    ):
        with pytest.raises(Conflict):
            VERBS[name](store)
    assert_loads(store, f"{MODEL}@v1", small_weights(1))
    other.close()
    assert_whole(world, before)


@pytest.mark.parametrize(
    "step", ["push.planned", "push.before_commit", "push.committed", "journal.written", "journal.flushed"]
)
def test_a_push_with_another_catalog_is_acknowledged_only_if_the_rebuild_has_read_its_entry(
    world: World, step: str
) -> None:
    fill(world)
    other = elsewhere(world)
    done: list[int] = []

    def rebuild() -> None:
        if not done:
            done.append(1)
            tensorkeep.rebuild_catalog(world.location, force=True)

    hooks = Hooks()
    hooks.on[step] = rebuild
    try:
        acknowledged = other.open(failpoints=hooks).push(small_weights(5), MODEL, part_size=MIB, tag="heard")
    except (Conflict, NotEnoughCopies):
        acknowledged = None
    assert done
    # Once it has the entry on enough devices it may acknowledge it: then the rebuild, which began later, has read it.
    assert acknowledged is None or step.startswith("journal.")
    other.close()
    store = world.open()
    if acknowledged is not None:
        assert store.model(f"{MODEL}@heard").version.id == acknowledged.id
        assert_loads(store, f"{MODEL}@heard", small_weights(5))
    assert_clean(store)
    assert_all_load(store)
    store.tag(MODEL, "after", "v2")
    store.push(small_weights(6), MODEL, part_size=MIB)
    # What a fenced process went on writing is known from the next rebuild on, and collected then.
    world.close()
    tensorkeep.rebuild_catalog(world.location, force=True)
    assert_no_orphans(world, world.open())
    assert_clean(world.open())


@pytest.mark.parametrize(
    "step",
    ["push.planned", "push.staged", "push.part_recorded", "push.before_commit", "push.committed", "journal.written"],
)
def test_a_push_during_a_rebuild_of_its_own_catalog_is_whole_or_not_acknowledged(world: World, step: str) -> None:
    fill(world)
    done: list[int] = []

    def rebuild() -> None:
        if not done:
            done.append(1)
            tensorkeep.rebuild_catalog(world.location, force=True)

    hooks = Hooks()
    hooks.on[step] = rebuild
    try:
        acknowledged = world.open(failpoints=hooks).push(small_weights(5), MODEL, part_size=MIB, tag="v5")
    except (Conflict, NotEnoughCopies):
        acknowledged = None
    assert done
    world.close()
    world.lose_catalog()
    tensorkeep.rebuild_catalog(world.location)
    store = world.open()
    if acknowledged is not None:
        assert store.model(f"{MODEL}@v5").version.id == acknowledged.id
    store.push(small_weights(5), MODEL, part_size=MIB)
    assert_loads(store, MODEL, small_weights(5))
    assert_all_load(store)
    assert_no_orphans(world, store)
    assert_clean(world.open())


def test_a_gc_deletes_nothing_once_a_rebuild_began(world: World) -> None:
    store = fill(world)
    store.rm_model(OTHER)
    objects = world.objects()
    hooks = Hooks(gc__condemned=lambda: void(tensorkeep.rebuild_catalog(world.location, force=True)))
    report = world.open(failpoints=hooks).gc(grace_s=0, max_fraction=None)
    assert report.deleted == 0
    assert world.objects() == objects
    assert_clean(world.open())
    # What was garbage is found so again.
    again = world.open().push(small_weights(9), OTHER, part_size=MIB, replicas=3)
    assert again.report is not None
    assert again.report.new_parts == 0
    assert_no_orphans(world, world.open())
    assert_clean(world.open())
    assert_loads(world.open(), OTHER, small_weights(9))


def void(value: object) -> None:
    """Take a value that nobody needs."""


def test_a_folder_with_only_a_replaced_catalog_left_is_not_made_a_new_store(world: World) -> None:
    fill(world)
    world.close()
    tensorkeep.rebuild_catalog(world.location, force=True)
    world.catalog.unlink()
    (world.location / "store.json").unlink()
    with pytest.raises(NotFound, match="rebuild-catalog"):
        tensorkeep.open(world.location)


def test_a_rebuild_refuses_devices_of_two_stores(world: World, tmp_path: Path) -> None:
    fill(world)
    other = World(tmp_path / "second", devices=1, replicas=1)
    other.create()
    other.close()
    world.lose_catalog()
    with pytest.raises(InvalidInput):
        tensorkeep.rebuild_catalog(world.location, sources=[str(world.place("d0")), str(other.place("d0"))])
    tensorkeep.rebuild_catalog(world.location)
    assert_all_load(world.open())


# ------------------------------------------------------- devices that are not as they should be


def test_with_one_of_two_devices_away_a_rebuild_is_done_and_says_that_one_is_missing(tmp_path: Path) -> None:
    world = World(tmp_path, devices=2)
    world.create()
    world.open().push(small_weights(1), MODEL, part_size=MIB, tag="v1")
    before = everything(world.open())
    world.lose_catalog()
    world.unmount("d0")
    with pytest.raises(NotEnoughCopies, match="d0"):
        tensorkeep.rebuild_catalog(world.location)
    assert everything(world.open()) == before
    assert_loads(world.open(), f"{MODEL}@v1", small_weights(1))
    world.close()
    world.mount("d0")
    tensorkeep.rebuild_catalog(world.location)
    assert everything(world.open()) == before
    assert_clean(world.open())
    assert_no_orphans(world, world.open())
    world.end()


def test_devices_are_found_through_devices_that_are_found(world: World) -> None:
    """A device that was away when another was added knows nothing of that one; those that it knows do."""
    world.create()
    world.unmount("d0")
    store = world.open()
    store.devices.add("d3", str(world.place("d3")), bandwidth=GIB)
    store.push(small_weights(0), MODEL, part_size=MIB, allow_degraded=True)
    world.mount("d0")
    world.devices = 4
    world.lose_catalog()
    (world.location / "store.json").unlink()
    report = tensorkeep.rebuild_catalog(world.location, sources=[str(world.place("d0"))])
    assert sorted(report.devices) == ["d0", "d1", "d2", "d3"]
    assert_clean(world.open())
    assert_loads(world.open(), MODEL, small_weights(0))


def test_a_device_whose_entries_are_damaged_gets_them_again(world: World) -> None:
    before = everything(fill(world))
    world.lose_catalog()
    world.unmount("d2")  # so that nothing is trimmed
    for physical in journal_names(world, "d0")[2:4]:
        flip(world.place("d0") / physical, 30, 0x01)
    tensorkeep.rebuild_catalog(world.location)
    held = {name.split(".")[1] for name in journal_names(world, "d1")}
    assert (
        held
        == {blake3_256((world.place("d0") / name).read_bytes()).hex() for name in journal_names(world, "d0")} & held
    )
    world.mount("d2")
    tensorkeep.rebuild_catalog(world.location)
    assert_whole(world, before)


@pytest.mark.root
def test_a_device_that_is_read_only_is_left_out_and_taken_in_later(world: World) -> None:
    before = everything(fill(world))
    world.lose_catalog()
    with read_only_mount(world.place("d1")):
        report = tensorkeep.rebuild_catalog(world.location)
        assert sorted(report.devices) == ["d0", "d2"]
        assert any("d1" in reason for reason in report.unreachable)
        assert everything(world.open()) == before
        assert_all_load(world.open())
        with pytest.raises(Conflict, match="d1"):
            world.open().gc(grace_s=0, max_fraction=None)
        world.close()
    tensorkeep.rebuild_catalog(world.location)
    assert_whole(world, before)


@pytest.mark.root
def test_a_rebuild_on_devices_that_are_all_read_only_changes_nothing(world: World) -> None:
    before = everything(fill(world))
    copy = world.keep_copy()
    world.close()
    with ExitStack() as stack:
        for name in world.names:
            stack.enter_context(read_only_mount(world.place(name)))
        with pytest.raises(NotEnoughCopies, match="written"):
            tensorkeep.rebuild_catalog(world.location, force=True)
    assert world.catalog.read_bytes() == copy.read_bytes()
    assert_whole(world, before)


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_rebuild_reads_each_copy_of_a_journal_entry_once_and_from_afar_many_things_together(
    world: World, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    before = everything(fill(world))
    world.lose_catalog()
    reads: Counter[tuple[str, str]] = Counter()
    under_way, most, lock = 0, 0, threading.Lock()
    read = LocalDevice.read

    def counting(device: LocalDevice, name: str) -> bytes:
        nonlocal under_way, most
        with lock:
            reads[device.url, name] += 1
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.005)
        try:
            return read(device, name)
        finally:
            with lock:
                under_way -= 1

    if at_once > 1:
        monkeypatch.setattr(LocalDevice, "put_concurrency", at_once, raising=False)
    monkeypatch.setattr(LocalDevice, "read", counting)
    report = tensorkeep.rebuild_catalog(world.location)
    monkeypatch.undo()
    assert report.missing == ()
    assert most == at_once
    entries = {key: count for key, count in reads.items() if key[1].startswith("journal/")}
    assert entries
    assert set(entries.values()) == {1}
    store = world.open()
    assert everything(store) == before
    assert_clean(store)
