"""Devices are asked what they can do before they are believed, and left as they were."""

import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tensorkeep
from tensorkeep.devices import conformance, forget_memory, normalize_url
from tensorkeep.devices.conformance import check_place, objects
from tensorkeep.devices.conformance.probe import Finding, Probe, Refused, Site
from tensorkeep.errors import Integrity, InvalidInput, NotFound, PermissionDenied, Unavailable
from tensorkeep.records.conformance_report import ConformanceReport
from tensorkeep.runtime import InlineWorkers, Runtime
from tensorkeep.store.store import Store

IN_MEMORY = Path("/dev/shm")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with tensorkeep.open(tmp_path / "store") as opened:
        yield opened


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def outcomes(report: ConformanceReport) -> dict[str, str]:
    return {probe.name: probe.outcome for probe in report.probes}


def refuse_all(_: Site) -> Finding:
    raise Refused("gives other bytes back", Integrity)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place is refused, after it was written to."""
    monkeypatch.setattr(conformance, "PROBES", (Probe("put_get", objects.put_get), Probe("wrong", refuse_all)))


def test_a_local_disk_passes_every_probe_of_the_full_form(tmp_path: Path) -> None:
    report = check_place(normalize_url(str(tmp_path / "disk")), runtime=Runtime(), form="full")
    passed = {name for name, outcome in outcomes(report).items() if outcome == "passed"}
    assert passed == {probe.name for probe in conformance.PROBES if "folder" in probe.kinds}
    assert set(outcomes(report).values()) == {"passed", "not_applicable"}
    assert report.ok
    assert report.refusal is None
    found = report.conformance
    assert (found.form, found.verdict, found.conditional_create) == ("full", "accepted", "exact")
    assert found.file_system
    assert found.read_p99_us >= found.read_p50_us > 0  # type: ignore[operator]
    assert found.write_p99_us >= found.write_p50_us > 0  # type: ignore[operator]
    assert report.free_bytes > 0  # type: ignore[operator]
    assert os.listdir(tmp_path) == []  # the place was not there before


def test_threads_are_not_needed(tmp_path: Path) -> None:
    report = check_place(normalize_url(str(tmp_path)), runtime=Runtime(workers=InlineWorkers()), form="full")
    assert report.ok


def test_a_folder_in_memory_passes_and_is_soft(home: Path) -> None:
    place = IN_MEMORY / f"tensorkeep-{os.getpid()}"
    report = check_place(normalize_url(str(place)), runtime=Runtime(), form="short")
    assert report.ok
    assert report.durability == "soft"
    assert report.conformance.file_system == "tmpfs"
    assert not place.exists()


def test_memory_passes_and_is_soft() -> None:
    forget_memory("checked")
    report = check_place("memory://checked", runtime=Runtime(), form="full")
    assert report.ok
    assert report.durability == "soft"
    assert outcomes(report)["fsync"] == "not_applicable"
    assert outcomes(report)["overwrite"] == "passed"


def test_a_device_keeps_what_its_first_check_found(store: Store, tmp_path: Path) -> None:
    facts = store.devices.add("disk", str(tmp_path / "disk"))
    assert facts.conformance
    assert facts.conformance.form == "short"
    assert facts.bandwidth == facts.conformance.read_rate
    assert store.devices.list()[0].facts == facts
    assert os.listdir(tmp_path / "disk" / "tmp") == []


def test_rates_are_not_measured_where_the_bandwidth_is_given(store: Store, tmp_path: Path) -> None:
    facts = store.devices.add("disk", str(tmp_path / "disk"), bandwidth=7)
    assert facts.bandwidth == 7
    assert facts.conformance
    assert facts.conformance.read_rate is None


def test_a_later_check_is_kept_instead_and_survives_the_catalog(store: Store, tmp_path: Path) -> None:
    store.devices.add("disk", str(tmp_path / "disk"))
    report = store.devices.check("DISK")
    assert (report.name, report.conformance.form) == ("disk", "full")
    assert store.devices.list()[0].facts.conformance == report.conformance
    again = store.devices.check(str(tmp_path / "disk"))
    assert (again.name, again.conformance.form) == ("disk", "full")
    tensorkeep.rebuild_catalog(tmp_path / "other", sources=[str(tmp_path / "disk")])
    with tensorkeep.open(tmp_path / "other") as rebuilt:
        assert rebuilt.devices.list()[0].facts.conformance == again.conformance


def test_a_check_leaves_a_device_in_use_as_it_was(store: Store, tmp_path: Path) -> None:
    store.devices.add("disk", str(tmp_path / "disk"))
    store.push({"w": np.arange(1000)}, "acme/llama")
    before = {name: data for name, data in tree(tmp_path / "disk").items() if not name.startswith("journal/")}
    store.devices.check("disk")
    after = {name: data for name, data in tree(tmp_path / "disk").items() if not name.startswith("journal/")}
    assert after == before
    assert store.verify().problems == ()


def test_nothing_is_kept_of_a_place_that_is_no_device(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"one")
    report = store.devices.check(str(tmp_path / "photos"))
    assert report.ok
    assert report.name is None
    assert store.devices.list() == []
    assert tree(tmp_path / "photos") == {"one.jpg": b"one"}


def test_an_unknown_device_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="device ls"):
        store.devices.check("nvme7")


def test_a_lost_device_and_one_that_is_away_are_not_checked(store: Store, tmp_path: Path) -> None:
    store.devices.add("disk", str(tmp_path / "disk"))
    store.devices.add("other", str(tmp_path / "other"))
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(Unavailable, match="is the disk mounted"):
        store.devices.check("disk")
    assert not (tmp_path / "disk").exists()
    store.devices.lost("disk")
    with pytest.raises(InvalidInput, match="given up"):
        store.devices.check("disk")


@pytest.mark.usefixtures("refused")
def test_a_refused_place_is_left_as_it_was_and_no_device(store: Store, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "notes").write_bytes(b"mine")
    for place in ("disk", "deep/er/disk"):
        with pytest.raises(Integrity, match="can't be a device: it gives other bytes back") as caught:
            store.devices.add("disk", str(tmp_path / place))
        assert caught.value.facts["probe"] == "wrong"
    assert store.devices.list() == []
    assert tree(tmp_path / "disk") == {"notes": b"mine"}
    assert not (tmp_path / "deep").exists()


def test_a_device_that_a_check_refuses_stays_a_device_and_is_marked(
    store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    facts = store.devices.add("disk", str(tmp_path / "disk"))
    request.getfixturevalue("refused")
    report = store.devices.check("disk")
    assert not report.ok
    assert isinstance(report.refusal, Integrity)
    kept = store.devices.list()[0]
    assert kept.facts.conformance
    assert kept.facts.conformance.verdict == "refused"
    assert kept.facts.durability == facts.durability
    assert kept.reachable


def test_the_folder_of_a_check_that_was_killed_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    killed, living = tmp_path / "tmp" / "check-1", tmp_path / "tmp" / "check-2"
    for folder in (killed, living):
        (folder / "parts").mkdir(parents=True)
    held = os.open(living, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    try:
        assert check_place(normalize_url(str(tmp_path)), runtime=Runtime(), form="short").ok
    finally:
        os.close(held)
    assert os.listdir(tmp_path / "tmp") == ["check-2"]


def test_a_file_is_no_place_for_a_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInput, match="not a folder"):
        check_place(normalize_url(str(tmp_path / "file")), runtime=Runtime(), form="short")


def test_a_place_that_cannot_be_written_to_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_mkdir(path: str, mode: int = 0o777) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "mkdir", refuse_mkdir)
    with pytest.raises(PermissionDenied, match="Permission denied"):
        check_place(normalize_url(str(tmp_path)), runtime=Runtime(), form="short")
    assert os.listdir(tmp_path) == []


def test_an_fsync_that_fails_refuses_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def fail_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    for form in ("short", "full"):
        report = check_place(normalize_url(str(tmp_path)), runtime=Runtime(), form=form)
        assert not report.ok
        assert isinstance(report.refusal, Unavailable)
        assert report.conformance.refusal
        assert "fsync" in report.conformance.refusal
        assert report.probes[-1].name == "fsync"  # a disk that fails is asked no more
    assert os.listdir(tmp_path) == []
