"""Models with a retention: each gc lets go of what nothing keeps, and of nothing else."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorkeep
from tensorkeep.catalog import expiring
from tensorkeep.cli.main import main
from tensorkeep.errors import Conflict, InvalidInput, NotEnoughCopies, NotFound
from tensorkeep.planning.retention import choose_expired
from tensorkeep.records.history import VersionFacts
from tensorkeep.store.store import Store
from tests.faults.store_world import Arrays, Hooks, World, assert_clean, assert_no_orphans

MODEL = "acme/llama"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A store with a model of six versions, of which the second has the tag v1 and the third the tag x, and another model."""
    world = World(tmp_path)
    store = world.create()
    for turn in range(6):
        store.push(arrays_of(turn), MODEL, tag={1: "v1", 2: "x"}.get(turn))
    store.push(arrays_of(9), "other")
    yield world
    world.end()


def arrays_of(turn: int) -> Arrays:
    return {"shared": np.arange(500), "own": np.full(999, turn)}


def too_few(*words: object, **named: object) -> None:
    """Stand in for what puts journal entries on devices, as where most are away."""
    raise NotEnoughCopies("committed, but on too few devices")


def ids(store: Store, model: str = MODEL) -> list[str]:
    """Return the ids of a model's versions, oldest first."""
    catalog = store._context.catalog
    (found,) = [each for each in catalog.list_models() if each.name.endswith(model)]
    return [version.id for version in reversed(catalog.list_versions(found.id))]


def assert_all_load(store: Store, kept: dict[str, int]) -> None:
    for version, turn in kept.items():
        loaded = store.model(f"{MODEL}@{version}").load()
        assert {name: value.tolist() for name, value in loaded.items()} == {
            name: value.tolist() for name, value in arrays_of(turn).items()
        }


def test_gc_lets_go_of_what_the_retention_does_not_keep_and_frees_its_bytes(world: World) -> None:
    store = world.open()
    before = ids(store)
    report = store.retain(MODEL, last=2)
    assert (report.old, report.new, report.versions) == (None, "last=2", 6)
    assert [version.id for version in reversed(report.expired)] == [before[0], before[3]]
    assert ids(store) == before, "gc does it"
    stored = store.du().stored_bytes
    done = store.gc(grace_s=0)
    assert done.expired == 2
    assert done.deleted > 0
    assert store.du().stored_bytes < stored
    assert ids(store) == [before[n] for n in (1, 2, 4, 5)]
    assert len(ids(store, "other")) == 1
    assert_all_load(store, {before[n]: n for n in (1, 2, 4, 5)})
    assert store.gc(grace_s=0).expired == 0
    for turn in (6, 7):
        store.push(arrays_of(turn), MODEL)
    assert store.gc(grace_s=0).expired == 2, "it goes on to hold"
    assert_clean(store)
    assert_no_orphans(world, store)


def test_tags_that_are_not_protected_go_with_their_versions(world: World) -> None:
    store = world.open()
    before = ids(store)
    report = store.retain(MODEL, last=3, protect=["v*"])
    assert report.new == "last=3 protect=v*"
    assert [version.tags for version in reversed(report.expired)] == [(), ("x",)]
    assert store.gc(grace_s=0).expired == 2
    assert ids(store) == [before[n] for n in (1, 3, 4, 5)]
    with pytest.raises(NotFound):
        store.model(f"{MODEL}@x")
    assert_all_load(store, {"v1": 1})
    assert_clean(store)


def test_days_are_counted_from_when_gc_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.open()
    before = ids(store)
    assert store.retain(MODEL, days=3).expired == ()
    assert store.gc().expired == 0
    now = datetime.now(UTC)
    monkeypatch.setattr(type(store._context.runtime.clock), "now", lambda _: now + timedelta(days=2.9))
    assert store.gc().expired == 0
    monkeypatch.setattr(type(store._context.runtime.clock), "now", lambda _: now + timedelta(days=3.1))
    assert store.gc().expired == 3
    assert ids(store) == [before[n] for n in (1, 2, 5)], "tags and the head"


def test_a_dry_run_changes_nothing(world: World) -> None:
    store = world.open()
    before, seq = ids(store), store._context.catalog.info().last_seq
    report = store.retain(MODEL, last=1, dry_run=True)
    assert (report.dry_run, len(report.expired)) == (True, 3)
    assert store.retention(MODEL).new is None
    store.retain(MODEL, last=1)
    assert store.gc(dry_run=True).expired == 3
    assert ids(store) == before
    assert store._context.catalog.info().last_seq == seq + 1
    assert [version.id for version in reversed(store.retention(MODEL).expired)] == [before[n] for n in (0, 3, 4)]


def test_more_than_half_of_all_versions_do_not_go_at_once_unasked(world: World) -> None:
    store = world.open()
    before = ids(store)
    store.retain(MODEL, last=1, protect=["none"])
    with pytest.raises(Conflict, match="acme/llama lets 5 of all 7 versions go") as told:
        store.gc(grace_s=0)
    assert told.value.facts["reason"] == "gc_brake"
    assert ids(store) == before
    assert store.gc(grace_s=0, max_fraction=None).expired == 5
    assert ids(store) == before[5:]


def test_every_version_stays_once_there_is_no_retention_any_more(world: World) -> None:
    store = world.open()
    store.retain(MODEL, last=1)
    report = store.retain(MODEL)
    assert (report.old, report.new, report.expired) == ("last=1", None, ())
    assert store.gc(grace_s=0).expired == 0
    assert len(ids(store)) == 6


def test_a_retention_outlives_the_catalog(world: World) -> None:
    store = world.open()
    store.retain(MODEL, last=2, days=40, protect=["v*", "rel/*"])
    world.close()
    world.lose_catalog()
    tensorkeep.rebuild_catalog(world.location)
    with world.open() as store:
        assert store.retention(MODEL).new == "last=2 days=40 protect=v*,rel/*"


def test_a_push_waits_while_it_is_decided_what_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.open()
    before = ids(store)
    store.retain(MODEL, last=2)
    ready = threading.Event()
    pusher = world.open(failpoints=Hooks(push__planned=ready.set))
    push = threading.Thread(target=lambda: pusher.push(arrays_of(6), MODEL, tag="late"))

    def push_meanwhile(*words: Any, **named: Any) -> list[VersionFacts]:
        push.start()
        assert ready.wait(60)
        push.join(2)
        assert push.is_alive(), "its commit must not come between reading and removing"
        return choose_expired(*words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(expiring, "choose_expired", push_meanwhile)
        assert store.gc(grace_s=0).expired == 2
    push.join()
    kept = ids(store)
    assert kept[:-1] == [before[n] for n in (1, 2, 4, 5)]
    assert_all_load(store, {before[4]: 4, before[5]: 5, "late": 6})
    assert_clean(store)


def test_without_a_branch_every_version_stays(world: World) -> None:
    store = world.open()
    before = ids(store)
    store.retain(MODEL, last=1)
    store.delete_branch(MODEL, "main")
    assert store.gc(grace_s=0, max_fraction=None).expired == 0
    assert ids(store) == before


def test_after_a_rebuild_that_lacks_an_entry_every_version_stays_until_it_is_said_again(world: World) -> None:
    """The entry that made a tag is lost on every device: what the tag keeps must not go because of that."""
    store = world.open()
    before = ids(store)
    store.retain(MODEL, last=1)
    store.tag(MODEL, "precious", before[0])
    seq = store._context.catalog.info().last_seq
    store.push(arrays_of(6), MODEL)
    store.retain("other", last=5)
    world.close()
    lost = [path for name in world.names for path in world.place(name).glob(f"journal/*-{seq:012d}.*")]
    assert lost
    for path in lost:
        path.unlink()
    world.lose_catalog()
    report = tensorkeep.rebuild_catalog(world.location)
    told = [line for line in report.missing if "retain" in line]
    assert [line.split()[1] for line in told] == [MODEL, "default/other"]
    store = world.open()
    assert store.retention(MODEL).new is None
    assert store.gc(grace_s=0).expired == 0
    assert ids(store)[:-1] == before
    store.retain(MODEL, last=1)
    assert store.gc(grace_s=0).expired == 4


def test_nothing_is_collected_before_the_devices_have_the_entry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.open()
    before = ids(store)
    store.retain(MODEL, last=1)

    with monkeypatch.context() as patch:
        patch.setattr("tensorkeep.store.retention.flush_journal", too_few)
        with pytest.raises(NotEnoughCopies):
            store.gc(grace_s=0)
    assert ids(store) == [before[n] for n in (1, 2, 5)]
    assert store.gc(dry_run=True, grace_s=0).waiting == 0, "nothing was condemned"
    with monkeypatch.context() as patch:
        patch.setattr("tensorkeep.store.retention.flush_journal", too_few)
        with pytest.raises(NotEnoughCopies):
            store.gc(grace_s=0)
    catalog = store._context.catalog
    assert set(catalog.flushed().values()) == {catalog.info().last_seq - 1}
    done = store.gc(grace_s=0)
    assert done.expired == 0
    assert done.deleted > 0
    assert set(catalog.flushed().values()) == {catalog.info().last_seq}
    assert_clean(store)
    assert_no_orphans(world, store)


def test_the_same_again_puts_the_entry_on_the_devices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.open()

    with monkeypatch.context() as patch:
        patch.setattr("tensorkeep.store.journal.flush_journal", too_few)
        with pytest.raises(NotEnoughCopies):
            store.retain(MODEL, last=2)
    catalog = store._context.catalog
    seq = catalog.info().last_seq
    assert set(catalog.flushed().values()) == {seq - 1}
    report = store.retain(MODEL, last=2)
    assert (report.old, report.new) == ("last=2", "last=2")
    assert catalog.info().last_seq == seq
    assert set(catalog.flushed().values()) == {seq}


def test_few_versions_with_most_of_the_bytes_do_not_go_unasked(world: World) -> None:
    store = world.open()
    for turn in range(4):
        large = np.full(200_000 if turn == 0 else 1, turn)
        store.push({"own": large}, "acme/big")
    store.retain("acme/big", last=3)
    with pytest.raises(Conflict, match="gc would give up") as told:
        store.gc(grace_s=0)
    assert told.value.facts["reason"] == "gc_brake"
    assert len(ids(store, "acme/big")) == 4, "it is asked before anything is removed"
    assert store.gc(grace_s=0, max_fraction=None).expired == 1
    assert_clean(store)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--last", "0"], "greater than or equal to 1"),
        (["--protect", "v*"], "give --last, --days or both"),
        (["--dry-run"], "give --last, --days or both"),
        (["--all", "--last", "3"], "--all keeps every version"),
        (["--last", "3", "--protect", "a b"], "no pattern of tags"),
    ],
)
def test_words_that_make_no_sense_are_refused(
    world: World, words: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world.close()
    assert main(["--store", str(world.location), "retain", MODEL, *words]) == 2
    assert match in capsys.readouterr().err


def test_a_model_that_is_not_there_is_told(world: World) -> None:
    store = world.open()
    with pytest.raises(NotFound, match="no model default/nobody"):
        store.retain("nobody", last=1)
    for words in (
        {"last": 0},
        {"days": 10**9},
        {"last": 3, "protect": "v*"},
        {"last": 3, "protect": []},
        {"protect": ["v*"]},
    ):
        with pytest.raises(InvalidInput):
            store.retain(MODEL, **words)
    assert store.retention(MODEL).new is None
