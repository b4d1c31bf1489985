"""Faults on the wire while a store writes: a push finishes or fails typed, and what it acknowledged is there, byte for byte."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tensorkeep.errors import TensorkeepError
from tensorkeep.store.reports import Version
from tensorkeep.store.store import Store
from tensorkeep.transfer.left_reads import has_left_reads
from tests.faults.wire_proxy import Fault, tenths
from tests.faults.wire_world import MIB, Arrays, Wire, check_stored, in_time, same, weights

GIB = 1 << 30
KINDS_OF_OBJECTS = ["/parts/", "/manifests/", "/checks/", "/versions/", "/journal/"]


@dataclass
class Flaky:
    """A store whose first device is behind the proxy, and the versions that its pushes acknowledged."""

    store: Store
    wire: Wire
    prefix: str
    acknowledged: list[tuple[str, Arrays]] = field(default_factory=list)
    seeds: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def push(self, *faults: Fault) -> Version | TensorkeepError:
        """Push a new model under faults; then without any, which must finish."""
        seed = next(self.seeds)
        arrays, model = weights(seed, 2), f"m{seed}"
        self.wire.proxy.script(*faults)
        answer = in_time(lambda: self.store.push(arrays, model, part_size=MIB))
        self.happened = [happened.kind for happened in self.wire.proxy.done]
        self.wire.proxy.script()
        if isinstance(answer, Version):
            self.acknowledged.append((model, arrays))
        else:
            assert "Signature" not in str(answer)
            assert self.wire.account.secret_key not in str(answer)
            again = in_time(lambda: self.store.push(arrays, model, part_size=MIB))
            assert isinstance(again, Version), again
            self.acknowledged.append((model, arrays))
        self.check(self.acknowledged[-1:])
        return answer

    def check(self, models: list[tuple[str, Arrays]]) -> None:
        """Assert that models load as they were pushed, and that what the catalog counts is on Ceph."""
        for model, arrays in models:
            assert same(self.store.model(model).load(verify="digest"), arrays), model


@pytest.fixture(scope="module")
def flaky(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flaky]:
    folder = tmp_path_factory.mktemp("flaky")
    with wire.open_store(folder / "store") as store:
        store.devices.add("wire", wire.url("pushes"), bandwidth=GIB)
        world = Flaky(store, wire, "pushes")
        yield world
        wire.proxy.script()
        store.verify()  # what flipped bits made look bad is good again
        world.check(world.acknowledged)
        assert check_stored(store, wire, "pushes") >= 2 * len(world.acknowledged)


@pytest.mark.parametrize("fault", tenths("request", "cut", ["PUT"]) + tenths("request", "reset", ["PUT"]), ids=str)
def test_a_put_that_breaks_at_any_tenth_is_made_again_under_a_new_name(flaky: Flaky, fault: Fault) -> None:
    answer = flaky.push(replace(fault, times=2))
    assert isinstance(answer, Version), answer
    assert flaky.happened


@pytest.mark.parametrize("path", KINDS_OF_OBJECTS)
@pytest.mark.parametrize(
    "fault",
    [
        Fault("lose_answer", methods=("PUT",)),
        Fault("cut", methods=("PUT",)),
        Fault("reset", methods=("PUT",)),
        Fault("cut", side="request", methods=("PUT",)),
        Fault("refuse", methods=("PUT",), times=3, status=503, retry_after="1"),
        Fault("refuse", methods=("PUT",), times=3, status=500),
        Fault("refuse", methods=("PUT",), times=3, status=429, retry_after="1"),
    ],
    ids=str,
)
def test_a_push_outlasts_lost_answers_and_a_busy_store(flaky: Flaky, path: str, fault: Fault) -> None:
    answer = flaky.push(replace(fault, path=path))
    assert isinstance(answer, Version), answer
    assert flaky.happened


@pytest.mark.parametrize("fault", tenths("request", "flip", ["PUT"])[::2], ids=str)
@pytest.mark.parametrize("path", KINDS_OF_OBJECTS)
def test_a_bit_that_flips_on_its_way_to_the_store_is_refused_there(flaky: Flaky, path: str, fault: Fault) -> None:
    flaky.push(replace(fault, path=path))
    assert flaky.happened == ["flip"]


@pytest.mark.parametrize("side", ["request", "answer"])
def test_a_put_that_stalls_ends_at_its_deadline_and_is_made_again(flaky: Flaky, side: str) -> None:
    answer = flaky.push(Fault("stall", side=side, methods=("PUT",)))  # type: ignore[arg-type]
    assert isinstance(answer, Version), answer
    assert flaky.happened == ["stall"]


@pytest.mark.parametrize("path", ["/parts/", "/versions/", "/journal/"])
@pytest.mark.parametrize("kind", ["cut", "lose_answer", "refuse"])
def test_a_store_that_takes_nothing_ends_a_push_in_an_error_and_the_next_one_resumes(
    flaky: Flaky, path: str, kind: str
) -> None:
    side = "request" if kind == "cut" else "answer"
    fault = Fault(kind, path=path, side=side, methods=("PUT",), times=None)  # type: ignore[arg-type]
    answer = flaky.push(fault)
    if kind != "lose_answer":
        assert isinstance(answer, TensorkeepError), answer
    assert flaky.happened


@pytest.mark.parametrize("path", KINDS_OF_OBJECTS[:3])
@pytest.mark.parametrize(
    "fault", [*tenths("answer", "flip", ["GET"])[::3], Fault("stall"), Fault("cut"), Fault("refuse")], ids=str
)
def test_a_load_under_a_fault_is_right_or_a_typed_error(flaky: Flaky, path: str, fault: Fault) -> None:
    flaky.push()
    model, arrays = flaky.acknowledged[-1]
    for times in (1, 2):
        flaky.wire.proxy.script(replace(fault, path=path, times=times))
        answer = in_time(lambda: flaky.store.model(model).load())
        if isinstance(answer, TensorkeepError):
            assert "Signature" not in str(answer)
        else:
            assert same(answer, arrays)


def test_bits_that_always_flip_are_never_taken_for_right(flaky: Flaky) -> None:
    flaky.push()
    model, _ = flaky.acknowledged[-1]
    flaky.wire.proxy.script(Fault("flip", times=None))
    answer = in_time(lambda: flaky.store.model(model).load())
    assert isinstance(answer, TensorkeepError), "a wrong byte was handed out"
    flaky.wire.proxy.script()
    flaky.check(flaky.acknowledged[-1:])


FAULTS_OF_READS = [
    *tenths("answer", "flip", ["GET"])[::2],
    *tenths("answer", "cut", ["GET"])[::3],
    *tenths("answer", "reset", ["GET"])[::3],
    *tenths("answer", "strip_length", ["GET"])[::3],
    Fault("stall", at=0.4),
    Fault("drop_range"),
    Fault("shift_range"),
    Fault("refuse", status=503, retry_after="100"),
    Fault("refuse", status=500),
]


@pytest.fixture(scope="module")
def doubled(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flaky]:
    """A store with a second good copy of everything on a local disk."""
    folder = tmp_path_factory.mktemp("doubled")
    with wire.open_store(folder / "store") as store:
        store.devices.add("wire", wire.url("doubled"), bandwidth=100 * GIB)
        store.devices.add("disk", str(Path(folder / "disk")), bandwidth=1 << 20)
        arrays = weights(1)
        store.push(arrays, "m", part_size=MIB, replicas=2)
        yield Flaky(store, wire, "doubled", [("m", arrays)])


@pytest.mark.parametrize("times", [1, None])
@pytest.mark.parametrize("fault", FAULTS_OF_READS, ids=str)
def test_a_second_good_copy_heals_any_fault_of_the_wire_in_the_same_load(
    doubled: Flaky, fault: Fault, times: int | None
) -> None:
    [(model, arrays)] = doubled.acknowledged
    urls = [device.url for device in doubled.store._context.fleet.readable().values()]
    while any(map(has_left_reads, urls)):  # of a fault before: their device would be asked last
        time.sleep(0.01)
    doubled.wire.proxy.script(replace(fault, times=times))
    answer = in_time(lambda: doubled.store.model(model).load(mode="read"))  # else only the local copies are used
    assert not isinstance(answer, TensorkeepError), answer
    assert same(answer, arrays)
    assert doubled.wire.proxy.count(fault.kind) > 0
    # A bit that flipped on the wire makes its copy look damaged: the next verification finds it good again.
    doubled.wire.proxy.script()
    report = in_time(doubled.store.verify)
    assert not isinstance(report, TensorkeepError), report
    rows = doubled.store._context.catalog.locate_all(after=0, limit=1000)
    assert {row.state for row in rows} == {"live"}
