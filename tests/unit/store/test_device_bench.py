"""What a bench measures becomes the device's bandwidth, unless a user gave one; the device is left as it was."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tensorkeep
from tensorkeep.devices import Device
from tensorkeep.errors import Capacity, InvalidInput, NotFound, PermissionDenied, Unavailable
from tensorkeep.records.conformance import Conformance
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import Runtime
from tensorkeep.store.fleet import open_by_facts
from tensorkeep.store.opening import open_store
from tensorkeep.store.store import Store
from tensorkeep.testing.devices import FaultyDevice
from tests.unit.devices.modelled import Modelled, manual_runtime

SIZE = 8 * MIB
RATE = 200_000_000  # of two readers and more


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store without devices, for adding some by the real clock."""
    with tensorkeep.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def modelled(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """The same store, whose devices take the time that a formula says."""
    opened: list[Store] = []

    def open_modelled(wrap: Callable[[Device], Device] = lambda device: device) -> Store:
        runtime, clock, workers = manual_runtime()

        def open_it(facts: DeviceFacts, runtime: Runtime) -> Device:
            inner = open_by_facts(facts, runtime)
            return wrap(
                Modelled(inner, clock, workers, read_rate=lambda n: RATE / 2 * min(n, 2), write_rate=5e7, flush_s=0.1)
            )

        opened.append(
            Store(open_store(tmp_path / "store", runtime=runtime, cache_root=None, user="tester", opener=open_it))
        )
        return opened[-1]

    yield open_modelled
    for each in opened:
        each.close()


def facts_of(store: Store) -> DeviceFacts:
    return store.devices.list()[0].facts


def tmp_of(folder: Path) -> list[str]:
    return os.listdir(folder / "tmp")


def test_what_is_measured_becomes_the_bandwidth_and_survives_the_catalog(
    store: Store, modelled: Callable[..., Store], tmp_path: Path
) -> None:
    store.devices.add("disk", str(tmp_path / "disk"))
    report = modelled().devices.bench("DISK", size=SIZE)
    assert (report.name, report.size_bytes, report.saved, report.given) == ("disk", SIZE, True, False)
    assert report.best_readers == 2
    assert report.best_rate == report.bandwidth == pytest.approx(RATE, rel=1e-6)
    assert report.write_rate == pytest.approx(SIZE / (SIZE / 5e7 + 0.1), rel=1e-6)
    facts = facts_of(store)
    assert facts.bandwidth == report.best_rate
    assert isinstance(facts.conformance, Conformance)
    assert (facts.conformance.best_rate, facts.conformance.best_readers) == (report.best_rate, 2)
    assert tmp_of(tmp_path / "disk") == []
    tensorkeep.rebuild_catalog(tmp_path / "other", sources=[str(tmp_path / "disk")])
    with tensorkeep.open(tmp_path / "other") as rebuilt:
        assert facts_of(rebuilt) == facts


def test_a_bench_is_repeated_and_replaces_what_the_last_one_saved(
    store: Store, modelled: Callable[..., Store], tmp_path: Path
) -> None:
    store.devices.add("disk", str(tmp_path / "disk"))
    assert modelled().devices.bench("disk", size=SIZE).saved
    assert modelled().devices.bench("disk", size=SIZE).saved


def test_a_bandwidth_that_was_given_stays_unless_asked(
    store: Store, modelled: Callable[..., Store], tmp_path: Path
) -> None:
    before = store.devices.add("disk", str(tmp_path / "disk"), bandwidth=7)
    report = modelled().devices.bench("disk", size=SIZE)
    assert (report.saved, report.given, report.bandwidth) == (False, True, 7)
    assert facts_of(store) == before
    asked = modelled().devices.bench("disk", size=SIZE, save=True)
    assert (asked.saved, asked.given, asked.bandwidth) == (True, False, asked.best_rate)
    assert facts_of(store).bandwidth == asked.best_rate
    assert modelled().devices.bench("disk", size=SIZE).saved  # it is no user's any more


def test_without_saving_the_catalog_is_left_as_it_was(
    store: Store, modelled: Callable[..., Store], tmp_path: Path
) -> None:
    before = store.devices.add("disk", str(tmp_path / "disk"))
    entries = store.status().journal_seq
    report = modelled().devices.bench("disk", size=SIZE, save=False)
    assert (report.saved, report.given, report.bandwidth) == (False, False, before.bandwidth)
    assert facts_of(store) == before
    assert store.status().journal_seq == entries


def test_a_later_check_measures_anew_what_a_check_measured_and_keeps_what_a_bench_or_a_user_said(
    store: Store, modelled: Callable[..., Store], tmp_path: Path
) -> None:
    for name, bandwidth in (("checked", None), ("benched", None), ("given", 7)):
        store.devices.add(name, str(tmp_path / name), bandwidth=bandwidth)
    best = modelled().devices.bench("benched", size=SIZE).best_rate
    reports = {name: store.devices.check(name) for name in ("checked", "benched", "given")}
    facts = {status.facts.name: status.facts for status in store.devices.list()}
    assert facts["checked"].bandwidth == reports["checked"].conformance.read_rate
    assert facts["benched"].bandwidth == best
    assert facts["given"].bandwidth == 7
    assert isinstance(facts["benched"].conformance, Conformance)
    assert facts["benched"].conformance.best_rate == best
    assert facts["benched"].conformance.form == "full"


def test_unknown_lost_and_absent_devices_are_named(store: Store, tmp_path: Path) -> None:
    store.devices.add("disk", str(tmp_path / "disk"))
    store.devices.add("other", str(tmp_path / "other"))
    with pytest.raises(NotFound, match="device ls"):
        store.devices.bench("nvme7")
    (tmp_path / "disk").rename(tmp_path / "away")
    with tensorkeep.open(tmp_path / "store") as again, pytest.raises(Unavailable, match="is the disk mounted"):
        again.devices.bench("disk", size=SIZE)
    assert not (tmp_path / "disk").exists()
    store.devices.lost("disk")
    with pytest.raises(InvalidInput, match="given up"):
        store.devices.bench("disk")


def test_a_device_without_room_is_not_written_to(
    store: Store, modelled: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.devices.add("disk", str(tmp_path / "disk"), capacity=SIZE - 1)
    with pytest.raises(Capacity, match="smaller --size") as caught:
        modelled().devices.bench("disk", size=SIZE)
    assert caught.value.facts["needed_bytes"] == SIZE
    store.devices.add("full", str(tmp_path / "full"))
    full = modelled(FaultyDevice)
    monkeypatch.setattr(FaultyDevice, "free_bytes", lambda _: SIZE - 1)
    with pytest.raises(Capacity, match="device full has room for"):
        full.devices.bench("full", size=SIZE)
    assert tmp_of(tmp_path / "disk") == tmp_of(tmp_path / "full") == []


def test_a_device_that_can_not_be_written_is_an_error_and_nothing_is_saved(
    store: Store, modelled: Callable[..., Store], tmp_path: Path
) -> None:
    before = store.devices.add("disk", str(tmp_path / "disk"))

    def read_only(device: Device) -> Device:
        faulty = FaultyDevice(device)
        faulty.fail("put", PermissionDenied)
        return faulty

    with pytest.raises(PermissionDenied):
        modelled(read_only).devices.bench("disk", size=SIZE)
    assert facts_of(store) == before
    assert tmp_of(tmp_path / "disk") == []


def test_a_store_that_can_not_be_written_writes_to_no_device(store: Store, tmp_path: Path) -> None:
    store.devices.add("disk", str(tmp_path / "disk"))
    reading = Store(dataclasses.replace(store._context, read_only=True))
    with pytest.raises(PermissionDenied, match="can't be written"):
        reading.devices.bench("disk", size=SIZE, save=False)
