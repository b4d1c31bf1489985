"""A store on the wire that is cut off, or fails a fifth of its requests: what each verb makes of it.

Nobody hangs, what cannot be reached is named and never taken for absent, and afterwards every copy still counts.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tensorkeep.errors import TensorkeepError
from tensorkeep.store.reports import Version
from tensorkeep.store.store import Store
from tests.faults.store_world import GIB, give_spare, known_places, take_spare
from tests.faults.wire_proxy import Fault
from tests.faults.wire_world import IMPATIENT, LIMITS, MIB, Arrays, Wire, check_stored, in_time, same, weights

METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")
CUT_OFF = Fault("reset", at=0.0, methods=METHODS, path="/", times=None)
STANDS_STILL = Fault("stall", at=0.0, methods=METHODS, path="/", times=None)
ANY_FIFTH = [
    replace(fault, methods=METHODS, path="/", times=None, chance=0.045)
    for fault in (Fault("cut"), Fault("reset", at=0.0), *(Fault("refuse", status=status) for status in (500, 503, 429)))
]
"""Each exchange is offered to all of them: together they strike a fifth."""

_PREFIXES = itertools.count()


@dataclass
class Scene:
    """A store with copies on two disks and behind the proxy, its models, and a model that was removed."""

    store: Store
    wire: Wire
    folder: Path
    prefix: str
    kept: Arrays

    def names(self) -> set[str]:
        """Return what lies on Ceph."""
        return {found.name for found in self.wire.direct(self.prefix).iter_objects("")}

    def check(self) -> int:
        """Assert that what was there counts and is right, once nothing fails any more; return how many parts Ceph has."""
        self.wire.proxy.script()
        report = self.store.verify()
        assert report.problems == ()
        assert same(self.store.model("kept").load(verify="digest"), self.kept)
        rows = self.store._context.catalog.locate_all(after=0, limit=100_000)
        assert {row.state for row in rows} <= {"live", "condemned"}
        return check_stored(self.store, self.wire, self.prefix)


@pytest.fixture
def scene(request: pytest.FixtureRequest, wire: Wire, tmp_path: Path) -> Iterator[Scene]:
    wire = replace(wire, limits=getattr(request, "param", LIMITS))
    prefix = f"upkeep-{next(_PREFIXES)}"
    with wire.open_store(tmp_path / "store") as store:
        with known_places():
            store.devices.add("wire", wire.url(prefix), bandwidth=GIB)
            for name in ("d0", "d1"):
                take_spare(tmp_path / name)
                store.devices.add(name, str(tmp_path / name), bandwidth=GIB)
        kept = weights(1)
        store.push(kept, "kept", part_size=MIB, replicas=2)
        store.push(kept, "twin", part_size=MIB, replicas=2)
        store.push(weights(2), "gone", part_size=MIB, replicas=2)
        store.rm_model("gone")
        yield Scene(store, wire, tmp_path, prefix, kept)
        wire.proxy.script()
    for name in ("d0", "d1"):
        give_spare(tmp_path / name, tmp_path.parent)


VERBS: dict[str, Callable[[Scene], Any]] = {
    "load": lambda scene: scene.store.model("kept").load(mode="read"),
    "pull": lambda scene: scene.store.pull("kept", scene.folder / "pulled"),
    "verify": lambda scene: scene.store.verify(),
    "scrub": lambda scene: scene.store.scrub(),
    "deep scrub": lambda scene: scene.store.scrub(deep=True),
    "repair": lambda scene: scene.store.repair(),
    "gc": lambda scene: scene.store.gc(grace_s=0, max_fraction=None),
    "rebalance": lambda scene: scene.store.rebalance(),
    "drain": lambda scene: scene.store.devices.drain("wire"),
    "push": lambda scene: scene.store.push(weights(3), "new", part_size=MIB, replicas=2),
    "push that needs it": lambda scene: scene.store.push(weights(4), "wide", part_size=MIB, replicas=3),
    "policy": lambda scene: scene.store.set_policy("kept", replicas=3),
    "tag": lambda scene: scene.store.tag("kept", "t"),
    "rm": lambda scene: scene.store.rm_model("twin"),
    "status": lambda scene: scene.store.status(),
    "du": lambda scene: scene.store.du(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_hangs_or_takes_a_store_that_is_cut_off_for_empty(scene: Scene, verb: str) -> None:
    _check_verb(scene, verb, CUT_OFF)


@pytest.mark.parametrize("scene", [IMPATIENT], indirect=True, ids=["impatient"])
@pytest.mark.parametrize(
    "verb", [verb if verb in ("verify", "drain") else pytest.param(verb, marks=pytest.mark.soak) for verb in VERBS]
)
def test_no_verb_hangs_or_takes_a_store_that_stands_still_for_empty(scene: Scene, verb: str) -> None:
    """It takes connections and answers nothing: who asks it for each of many objects waits for each, unless he gives it up."""
    _check_verb(scene, verb, STANDS_STILL)


def _check_verb(scene: Scene, verb: str, fault: Fault) -> None:
    names = scene.names()
    scene.wire.proxy.script(fault)
    answer = in_time(lambda: VERBS[verb](scene))
    if verb == "load":
        assert not isinstance(answer, TensorkeepError), answer
        assert same(answer, scene.kept)
    if isinstance(answer, TensorkeepError):
        assert "wire" in str(answer) or f"/{scene.prefix}?" in str(answer), "by its name or its URL"
        assert "device lost" not in str(answer) or "device lost wire" in str(answer)
        assert scene.wire.account.secret_key not in str(answer)
    elif hasattr(answer, "unreachable"):
        assert answer.unreachable == ("wire",)
    elif verb == "verify":
        assert {problem.device for problem in answer.problems} == {"wire"}
    assert names <= scene.names()
    if verb == "drain":
        scene.wire.proxy.script()
        scene.store.devices.undrain("wire")
    assert scene.check() > 0 or verb == "drain"  # which gives up what has its copies elsewhere, and deletes it later


def test_with_a_fifth_of_all_requests_failing_every_verb_does_its_work(scene: Scene) -> None:
    store, proxy = scene.store, scene.wire.proxy
    pushed = {f"m{seed}": weights(seed) for seed in range(10, 16)}
    proxy.script(*ANY_FIFTH)
    before = proxy.exchanges
    for model, arrays in pushed.items():
        answer = in_time(partial(store.push, arrays, model, part_size=MIB, replicas=3))
        assert isinstance(answer, Version), answer
    for verb in ("verify", "deep scrub", "gc", "repair", "status"):
        done = in_time(partial(VERBS[verb], scene))
        assert not isinstance(done, TensorkeepError), (verb, done)
    for model, arrays in pushed.items():
        loaded = in_time(partial(store.model(model).load, mode="read"))
        assert not isinstance(loaded, TensorkeepError), loaded
        assert same(loaded, arrays)
    assert 0.1 < len(proxy.done) / (proxy.exchanges - before) < 0.35
    assert scene.check() > 0
