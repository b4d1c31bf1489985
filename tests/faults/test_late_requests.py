"""Requests to Ceph that are carried out long after their sender gave up on them: rows 8 and 9 of the fault matrix.

A network or a gateway may keep a request, and nobody can take it back. A late PUT must never count nor replace anything, and a late
DELETE must never meet what was stored since.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.store.reports import Version
from tests.faults.store_world import GIB, known_places
from tests.faults.test_wire_pushes import KINDS_OF_OBJECTS
from tests.faults.test_wire_upkeep import Scene
from tests.faults.wire_proxy import Fault
from tests.faults.wire_world import MIB, Wire, check_stored, in_time, same, weights

_PREFIXES = itertools.count()

PARTS = 7
"""Of two models: three each, and the header of their files, which is the same."""


@pytest.fixture
def scene(wire: Wire, tmp_path: Path) -> Iterator[Scene]:
    """A store of one device, behind the proxy, with a model."""
    prefix = f"late-{next(_PREFIXES)}"
    with wire.open_store(tmp_path / "store") as store:
        with known_places():
            store.devices.add("wire", wire.url(prefix), bandwidth=GIB)
        kept = weights(1)
        store.push(kept, "kept", part_size=MIB)
        yield Scene(store, wire, tmp_path, prefix, kept)
        wire.proxy.script()


@pytest.mark.parametrize(("path", "collected"), [*((path, True) for path in KINDS_OF_OBJECTS), ("/parts/", False)])
def test_a_put_that_lands_after_its_push_gave_up_on_it_counts_for_nothing(
    scene: Scene, path: str, collected: bool
) -> None:
    """It is made again under another name. The late one is garbage, which gc deletes: by its row, or once a scrub has met it."""
    store, proxy = scene.store, scene.wire.proxy
    before = scene.names()
    proxy.script(Fault("hold", methods=("PUT",), path=path))
    pushed = in_time(lambda: store.push(weights(2), "late", part_size=MIB))
    assert isinstance(pushed, Version), pushed
    assert proxy.count("hold") == 1
    proxy.script()
    during = scene.names()
    if collected:
        store.gc(grace_s=0, max_fraction=None)
    assert proxy.release() == [200]
    (late,) = scene.names() - during
    assert f"/{late}".startswith(path)
    assert late not in before, "no name is used twice"
    assert same(store.model("late").load(verify="digest"), weights(2))
    assert store.verify().ok
    if path != "/journal/":
        store.scrub()
        store.gc(grace_s=0, max_fraction=None)
        assert late not in scene.names()
    assert during <= scene.names()
    assert same(store.model("late").load(verify="digest"), weights(2))
    assert scene.check() == PARTS


def _push_again_what_is_being_deleted(scene: Scene, *, revive: bool) -> set[str]:
    """Remove a model, have the deletions of its objects held, push the same bytes again, let the deletions land; return what they met."""
    store, proxy = scene.store, scene.wire.proxy
    before = scene.names()
    store.push(weights(2), "gone", part_size=MIB)
    store.rm_model("gone")
    old = scene.names() - before
    proxy.script(Fault("hold", methods=("DELETE", "POST"), path="/", times=None))
    collected = in_time(lambda: store.gc(grace_s=0, max_fraction=None))
    assert collected.unreachable == ("wire",)  # type: ignore[union-attr]
    held = proxy.count("hold")
    assert held > 0
    proxy.script()
    assert old <= scene.names()
    if revive:
        catalog = store._context.catalog
        assert isinstance(catalog, SqlCatalog)
        catalog._db.writing(
            lambda connection: connection.execute(
                text("UPDATE locations SET state = 'stored', condemned_at = NULL WHERE state = 'condemned'")
            )
        )
    store.push(weights(2), "again", part_size=MIB)
    present = scene.names()
    assert set(proxy.release()) <= {200, 204}
    return present - scene.names()


def test_a_deletion_that_lands_after_the_same_bytes_were_pushed_again_meets_only_what_it_meant(scene: Scene) -> None:
    met = _push_again_what_is_being_deleted(scene, revive=False)
    assert met, "something was deleted late"
    names = {row.name for row in scene.store._context.catalog.locate_all(after=0, limit=10_000)}
    assert not met & names
    assert same(scene.store.model("again").load(verify="digest"), weights(2))
    assert scene.check() == PARTS
    collected = scene.store.gc(grace_s=0)
    assert (collected.unreachable, collected.waiting) == ((), 0), "what is gone is seen to be gone"
    assert check_stored(scene.store, scene.wire, scene.prefix) == PARTS


def test_the_negative_control_of_what_was_condemned_and_is_offered_again_bytes_are_lost(scene: Scene) -> None:
    assert _push_again_what_is_being_deleted(scene, revive=True)
    report = scene.store.verify()
    assert sum(problem.kind == "missing" and problem.device == "wire" for problem in report.problems) >= 3
    assert any(problem.lost for problem in report.problems)
