"""Real loads refine what the next plan and the next load predict; losing that is no harm."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import numpy as np
import pytest

import tensorkeep
from tensorkeep.devices import Device, MemoryDevice, RetryDevice, forget_memory
from tensorkeep.errors import Unavailable
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import Runtime
from tensorkeep.store import learned_rates
from tensorkeep.store.context import StoreContext
from tensorkeep.store.learned_rates import LEAST_BYTES, find_rates, learn_rates
from tensorkeep.store.opening import open_store
from tensorkeep.store.store import Store
from tensorkeep.store.structure import known_rates
from tensorkeep.transfer.report import DeviceLoad, LoadReport
from tests.unit.devices.modelled import Modelled, RemoteMemory, manual_runtime

FACTS = DeviceFacts(id="A", name="far", url="s3://weights", zone="z", durability="durable", bandwidth=100)
FAR: Mapping[str, Device] = {"A": RemoteMemory("far-away")}


def loaded(rate: float, *, size: int = LEAST_BYTES, seconds: float | None = None, retried: int = 0) -> LoadReport:
    took = size / rate if seconds is None else seconds
    return LoadReport(size, size, took, (DeviceLoad("A", "far", size, took, 0.0),), (), retried, "blocks")


def context_of(folder: Path | None, *rows: DeviceFacts) -> StoreContext:
    catalog = SimpleNamespace(list_devices=lambda: list(rows))
    return cast("StoreContext", SimpleNamespace(cache_folder=folder, catalog=catalog))


def test_the_first_load_is_believed_and_later_ones_move_an_average(tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    assert find_rates(folder, [FACTS]) == {}
    learn_rates(context_of(folder, FACTS), loaded(50e6), FAR)
    assert find_rates(folder, [FACTS]) == {"A": pytest.approx(50e6)}
    learn_rates(context_of(folder, FACTS), loaded(150e6), FAR)
    assert find_rates(folder, [FACTS]) == {"A": pytest.approx(80e6)}
    for _ in range(40):
        learn_rates(context_of(folder, FACTS), loaded(150e6), FAR)
    assert find_rates(folder, [FACTS])["A"] == pytest.approx(150e6, rel=1e-3)
    assert [path.name for path in folder.iterdir()] == ["rates.json"]


def test_a_wrapped_remote_device_is_one_too(tmp_path: Path) -> None:
    wrapped = RetryDevice(FAR["A"], runtime=Runtime())
    learn_rates(context_of(tmp_path, FACTS), loaded(50e6), {"A": wrapped})
    assert find_rates(tmp_path, [FACTS])


@pytest.mark.parametrize(
    ("report", "facts", "devices"),
    [
        (loaded(50e6, size=LEAST_BYTES - 1), FACTS, FAR),
        (loaded(50e6, seconds=0.09), FACTS, FAR),
        (loaded(50e6, retried=1), FACTS, FAR),
        (loaded(50e6), msgspec.structs.replace(FACTS, rate_limit=50_000_000), FAR),
        (loaded(50e6), FACTS, {"A": MemoryDevice("near")}),
        (loaded(50e6), FACTS, {}),
        (loaded(50e6), msgspec.structs.replace(FACTS, id="B"), FAR),
    ],
    ids=["few bytes", "short", "retried", "limited", "of this machine", "not open", "unknown"],
)
def test_what_says_nothing_of_a_device_is_not_learned(
    tmp_path: Path, report: LoadReport, facts: DeviceFacts, devices: Mapping[str, Device]
) -> None:
    learn_rates(context_of(tmp_path, facts), report, devices)
    assert find_rates(tmp_path, [facts, FACTS]) == {}


def test_a_bandwidth_that_changed_in_the_catalog_is_newer_than_what_was_learned(tmp_path: Path) -> None:
    learn_rates(context_of(tmp_path, FACTS), loaded(50e6), FAR)
    benched = msgspec.structs.replace(FACTS, bandwidth=101)
    assert find_rates(tmp_path, [benched]) == {}
    learn_rates(context_of(tmp_path, benched), loaded(90e6), FAR)
    assert find_rates(tmp_path, [benched]) == {"A": pytest.approx(90e6)}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b'{"A":[100,0]}', b'{"A":[100,-5.0]}', b'{"A":["x"]}'])
def test_a_file_that_is_torn_or_foreign_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rates.json").write_bytes(content)
    assert find_rates(tmp_path, [FACTS]) == {}
    learn_rates(context_of(tmp_path, FACTS), loaded(50e6), FAR)
    assert find_rates(tmp_path, [FACTS]) == {"A": pytest.approx(50e6)}


def test_nothing_of_it_makes_a_load_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    learn_rates(context_of(tmp_path / "file", FACTS), loaded(50e6), FAR)
    learn_rates(context_of(None, FACTS), loaded(50e6), FAR)
    assert find_rates(None, [FACTS]) == {}

    def refuse() -> list[DeviceFacts]:
        raise Unavailable("the catalog is away")

    away = SimpleNamespace(cache_folder=tmp_path, catalog=SimpleNamespace(list_devices=refuse))
    learn_rates(cast("StoreContext", away), loaded(50e6), FAR)
    assert find_rates(tmp_path, [FACTS]) == {}


def test_a_limit_holds_whatever_was_learned() -> None:
    limited = msgspec.structs.replace(FACTS, rate_limit=80)
    assert known_rates([limited]) == {"A": 80.0}
    assert known_rates([limited], {"A": 50.0}) == {"A": 50.0}
    assert known_rates([limited], {"A": 500.0}) == {"A": 80.0}
    assert known_rates([msgspec.structs.replace(FACTS, bandwidth=None)], {"A": 5.0}) == {"A": 5.0}


@pytest.fixture
def far_store(tmp_path: Path) -> Iterator[Store]:
    """A store with one device that seems remote and gives 40 MB/s, while its catalog says 10 GB/s."""
    forget_memory("far")
    runtime, clock, workers = manual_runtime()
    with tensorkeep.open(tmp_path / "store") as made:
        made.devices.add("far", "memory://far", bandwidth=10**10)

    def open_far(_: DeviceFacts, __: Runtime) -> Device:
        return Modelled(RemoteMemory("far"), clock, workers, read_rate=lambda _: 40e6, write_rate=40e6)

    context = open_store(
        tmp_path / "store", runtime=runtime, cache_root=tmp_path / "cache", user="tester", opener=open_far
    )
    with Store(context) as store:
        yield store


def test_a_load_refines_the_next_load_and_the_next_plan_and_not_the_catalog(
    far_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned_rates, "LEAST_BYTES", 4 * MIB)
    source = {"w": np.arange(1 << 20, dtype=np.float64)}
    far_store.push(source, "acme/llama", allow_soft=True)
    facts = far_store.devices.list()[0].facts
    model = far_store.model("acme/llama")
    model.load()
    first = model.report
    assert first is not None
    assert first.predicted_seconds == pytest.approx(first.bytes_read / 1e10, rel=0.01)
    assert first.devices[0].rate_bytes_per_s == pytest.approx(40e6, rel=1e-6)
    model.load()
    second = model.report
    assert second is not None
    assert second.predicted_seconds == pytest.approx(second.slowest_seconds, rel=0.01)
    plan = far_store.plan({"x": np.ones(1 << 20)}, allow_soft=True)
    assert plan.load_seconds == pytest.approx(plan.devices[0].load_bytes / 40e6, rel=1e-6)
    assert far_store.devices.list()[0].facts == facts
