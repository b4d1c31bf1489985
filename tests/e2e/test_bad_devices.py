"""Devices and stores that can't be right, or are not what they were: named, refused, and nothing that is stored is lost."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tensorkeep
from tensorkeep import (
    AlreadyExists,
    Capacity,
    Conflict,
    Format,
    InvalidInput,
    NotEnoughCopies,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from tensorkeep.errors import ERROR_TABLE
from tensorkeep.records.device import IDENTITY_NAME, decode_identity, encode_identity
from tensorkeep.runtime import Runtime
from tensorkeep.testing.power_cut import CutDisk
from tests.e2e.conftest import CommandLine, StoreFactory
from tests.e2e.test_bad_input import Once, refused, unprivileged
from tests.e2e.trees import read_tree, seeded_bytes, write_tree
from tests.e2e.workshop import Workshop

KEPT = {"weights.bin": seeded_bytes(6 << 20, seed=77), "config.json": b"{}"}
MORE = {"weights.bin": seeded_bytes(6 << 20, seed=78), "config.json": b"{ }"}


@pytest.fixture
def kept(store_factory: StoreFactory, tmp_path: Path) -> Workshop:
    """Two devices with two copies of ``kept/model@v1``."""
    workshop = store_factory(2, replicas=2)
    workshop.store.push(write_tree(tmp_path / "kept source", KEPT), "kept/model", tag="v1")
    return workshop


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A folder that is not stored yet."""
    return write_tree(tmp_path / "more", MORE)


def check_kept(workshop: Workshop, tmp_path: Path, *, verified: bool = True) -> None:
    """Assert that what was stored first still loads and, where all devices are back, that all verifies."""
    store = workshop.open()
    store.pull("kept/model@v1", tmp_path / "kept")
    assert read_tree(tmp_path / "kept") == KEPT
    shutil.rmtree(tmp_path / "kept")
    assert store.verify().ok == verified
    assert [model.name for model in store.models()] == ["kept/model"]


# ------------------------------------------------------------------------------------------------ adding devices


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://host/disk", "unknown scheme 'ftp': known are file://, s3://, gs://, az://, memory://"),
        ("nfs:/export", "unknown scheme"),
        ("disk", "not absolute"),
        ("./disk", "not absolute"),
        ("", "not absolute"),
        ("file://otherhost/disk", "names the host 'otherhost'"),
        ("file:///a?b", "malformed"),
        ("file:///a%zz", "malformed"),
        ("/a\0b", "holds a NUL"),
        ("memory://", "names no memory"),
    ],
)
def test_a_device_url_that_cannot_be(url: str, says: str, shared_workshop: Workshop) -> None:
    with refused(InvalidInput, repr(url), does=says):
        shared_workshop.store.devices.add("new", url)
    assert [device.facts.name for device in shared_workshop.store.devices.list()] == ["disk0", "disk1", "disk2"]


def test_an_unknown_scheme_has_its_exit_code(shared_workshop: Workshop, command_line: CommandLine) -> None:
    answer = command_line("device", "add", "new", "ftp://host/disk", store=shared_workshop.location, code=2)
    assert "known are file://" in answer.err


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "ä", "x" * 97])
def test_a_device_or_zone_name_that_cannot_be(name: str, shared_workshop: Workshop, tmp_path: Path) -> None:
    with refused(InvalidInput, repr(name), does="use letters, digits"):
        shared_workshop.store.devices.add(name, str(tmp_path / "new"))
    if name:
        with refused(InvalidInput, repr(name), does="use letters, digits"):
            shared_workshop.store.devices.add("new", str(tmp_path / "new"), zone=name)
    for option in ("capacity", "bandwidth", "rate_limit"):
        with refused(InvalidInput, "new", does="must be over 0"):
            shared_workshop.store.devices.add("new", str(tmp_path / "new"), **{option: 0})  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_a_name_or_place_that_is_a_device_already(shared_workshop: Workshop, tmp_path: Path) -> None:
    store = shared_workshop.store
    with refused(AlreadyExists, "disk0", does="choose another"):
        store.devices.add("DISK0", str(tmp_path / "new"))
    with refused(AlreadyExists, "disk0", does="choose another place"):
        store.devices.add("new", shared_workshop.url("disk0"))
    with refused(NotFound, "'nobody'", does="device ls"):
        store.devices.lost("nobody")


def test_a_folder_that_holds_something_else(shared_workshop: Workshop, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    with pytest.raises(InvalidInput, match="not a folder"):
        shared_workshop.store.devices.add("new", str(file))
    assert file.read_bytes() == b"mine"


def test_another_stores_device_is_never_taken(store_factory: StoreFactory, kept: Workshop, tmp_path: Path) -> None:
    other = store_factory(0)
    with refused(InvalidInput, kept.url("disk0"), does="belongs to another store .*: give an empty folder"):
        other.store.devices.add("new", kept.url("disk0"))
    assert other.store.devices.list() == []
    check_kept(kept, tmp_path)


# ------------------------------------------------------------------------------------------------ devices that are not what they were


def test_an_empty_mount_point(kept: Workshop, more: Path, tmp_path: Path, command_line: CommandLine) -> None:
    kept.unmount("disk1")
    with refused(Unavailable, "disk1", kept.url("disk1"), does="is its disk mounted|is the disk mounted"):
        kept.open().push(more, "kept/model")
    command_line("push", more, "kept/model", store=kept.location, code=7)
    assert kept.is_empty("disk1")
    check_kept(kept, tmp_path, verified=False)
    kept.mount("disk1")
    check_kept(kept, tmp_path)


def test_a_missing_mount_point(kept: Workshop, more: Path, tmp_path: Path) -> None:
    kept.unmount("disk1")
    kept.remove_place("disk1")
    with refused(Unavailable, "disk1", does="device lost"):
        kept.open().push(more, "kept/model")
    assert not kept.has_place("disk1")
    check_kept(kept, tmp_path, verified=False)


def test_another_stores_device_in_the_place_of_ours(
    store_factory: StoreFactory, kept: Workshop, more: Path, tmp_path: Path
) -> None:
    other = store_factory(1)
    other.store.push({"w": np.ones(9)}, "other/model")
    kept.put_foreign("disk1", other, "disk0")
    foreign = kept.objects("disk1")
    with refused(Unavailable, "disk1", other.store.status().store, does="another store.*mount the right disk"):
        kept.open().push(more, "kept/model")
    kept.open().gc(grace_s=0, max_fraction=None)
    check_kept(kept, tmp_path, verified=False)
    assert kept.objects("disk1") == foreign


def test_two_swapped_devices(kept: Workshop, more: Path, tmp_path: Path) -> None:
    kept.swap("disk0", "disk1")
    before = {name: kept.objects(name) for name in kept.devices}
    store = kept.open()
    with refused(Unavailable, "disk0", "disk1", does="were two disks swapped"):
        store.push(more, "kept/model")
    with pytest.raises(NotEnoughCopies, match="disk0"):
        store.pull("kept/model@v1", tmp_path / "out")
    store.gc(grace_s=0, max_fraction=None)
    assert {name: kept.objects(name) for name in kept.devices} == before
    kept.swap("disk0", "disk1")
    check_kept(kept, tmp_path)


def test_a_device_of_a_newer_layout(kept: Workshop, more: Path, tmp_path: Path) -> None:
    before = kept.read("disk1", IDENTITY_NAME)
    identity = decode_identity(before, device="disk1")
    kept.replace("disk1", IDENTITY_NAME, encode_identity(msgspec.structs.replace(identity, layout=2)))
    with refused(Unavailable, "disk1", "layout version 2", does="upgrade tensorkeep"):
        kept.open().push(more, "kept/model")
    report = kept.open().verify()
    assert next(p.detail for p in report.problems if p.kind == "identity").endswith("upgrade tensorkeep")
    check_kept(kept, tmp_path, verified=False)
    kept.replace("disk1", IDENTITY_NAME, before)
    check_kept(kept, tmp_path)


def test_a_damaged_identity_is_read_from_but_not_written_to(kept: Workshop, more: Path, tmp_path: Path) -> None:
    before = kept.read("disk1", IDENTITY_NAME)
    kept.replace("disk1", IDENTITY_NAME, before.replace(b'"epoch":1', b'"epoch":7'))
    with pytest.raises(Unavailable, match=r"disk1 is damaged.*device lost"):
        kept.open().push(more, "kept/model")
    check_kept(kept, tmp_path, verified=False)


def test_a_catalog_of_a_newer_tensorkeep(kept: Workshop, tmp_path: Path, command_line: CommandLine) -> None:
    kept.close()
    revision = kept.catalog.stamp("9999")
    with refused(Format, "9999", does="upgrade tensorkeep"):
        kept.open()
    command_line("ls", store=kept.location, code=11)
    with refused(Format, "9999", does="upgrade tensorkeep"):
        tensorkeep.rebuild_catalog(kept.location, sources=kept.sources())
    kept.catalog.stamp(revision)
    check_kept(kept, tmp_path)


def test_a_manifest_of_a_newer_tensorkeep(kept: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # an older tensorkeep meets today's manifest
        patch.setattr("tensorkeep.records.manifest.MANIFEST_FORMAT", 0)
        with refused(Format, "format 1", does="upgrade it"):
            kept.open().model("kept/model")
        with refused(Format, "format 1", does="upgrade it"):
            kept.open().pull("kept/model", tmp_path / "out")
    check_kept(kept, tmp_path)


def test_a_journal_of_a_newer_tensorkeep(kept: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = kept.store.status().epoch
    with monkeypatch.context() as patch:
        patch.setattr("tensorkeep.records.history.JOURNAL_FORMAT", 0)
        with refused(Format, "format 1", does="upgrade it"):
            tensorkeep.rebuild_catalog(kept.location, sources=kept.sources(), force=True)
    assert kept.open().status().epoch == epoch
    check_kept(kept, tmp_path)


# ------------------------------------------------------------------------------------------------ room


def test_more_copies_than_devices(store_factory: StoreFactory, more: Path, command_line: CommandLine) -> None:
    workshop = store_factory(3)
    with refused(InvalidInput, "4", "3", does="add|lower|ask for"):
        workshop.store.push(more, "acme/m", replicas=4)
    assert workshop.held_bytes() == dict.fromkeys(workshop.devices, 0)
    command_line("push", more, "acme/m", "--replicas", "4", store=workshop.location, code=2)
    workshop.store.push(more, "acme/m", replicas=3)
    assert workshop.store.verify().problems == ()


def test_a_store_without_devices_that_can_be_written(store_factory: StoreFactory, more: Path) -> None:
    workshop = store_factory(1)
    workshop.store.devices.lost("disk0")
    with refused(InvalidInput, does="device add|add a device|devices"):
        workshop.store.push(more, "acme/m")


def test_soft_devices_count_only_where_the_user_says_so(store_factory: StoreFactory, more: Path) -> None:
    workshop = store_factory(0)
    workshop.store.devices.add("memory", f"memory://{more.parent.name}")
    with refused(InvalidInput, "memory", does="add a durable one, or push with --allow-soft"):
        workshop.store.push(more, "acme/m")
    workshop.store.push(more, "acme/m", allow_soft=True)
    assert workshop.store.verify().problems == ()


def test_a_capacity_is_never_exceeded(store_factory: StoreFactory, more: Path, tmp_path: Path) -> None:
    workshop = store_factory(0)
    workshop.add_device(capacity=3 << 20)
    workshop.store.push(write_tree(tmp_path / "little", {"a": seeded_bytes(1 << 20)}), "acme/little")
    with refused(Capacity, "disk0", str(3 << 20), does="free space or add devices"):
        workshop.store.push(more, "acme/m", part_size=1 << 20)
    assert workshop.held_bytes()["disk0"] <= 3 << 20
    workshop.store.gc(grace_s=0, max_fraction=None)
    assert workshop.store.verify().problems == ()
    workshop.add_device()
    workshop.add_device(capacity=2 << 20)
    version = workshop.store.push(more, "acme/m", part_size=1 << 20)  # the others take over
    held = workshop.held_bytes()
    assert held["disk0"] <= 3 << 20
    assert held["disk2"] <= 2 << 20
    assert version.report is not None
    assert version.report.device_bytes["disk1"] >= 3 << 20
    workshop.store.pull("acme/m", tmp_path / "out")
    assert read_tree(tmp_path / "out") == MORE
    with refused(Capacity, "disk0", "disk2", does="lower --replicas"):
        workshop.store.push({"w": np.ones(1 << 20)}, "acme/w", replicas=2)
    workshop.store.gc(grace_s=0, max_fraction=None)
    workshop.store.push(
        tmp_path / "little", "acme/little"
    )  # where there are two devices, what describes it owes two copies
    assert workshop.store.verify().problems == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 16 MB."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    with CutDisk(str(tmp_path / "small.img"), str(mount_point), size="16M"):
        yield mount_point


def fill(folder: Path) -> None:
    """Leave less than 1 MiB free on a file system."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with (folder / "somebody else's").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - (700 << 10))


def use_up_inodes(folder: Path) -> None:
    """Leave room on a file system, and none for another file."""
    (folder / "many").mkdir()
    with suppress(OSError):
        for number in itertools.count():
            (folder / "many" / str(number)).touch()


@pytest.mark.root
@pytest.mark.parametrize(
    ("step", "use_up"), [("push.staged", fill), ("push.part_written", fill), ("push.staged", use_up_inodes)]
)
def test_when_a_disk_fills_up_in_mid_push_another_device_takes_over(
    step: str,
    use_up: Callable[[Path], None],
    store_factory: StoreFactory,
    small_disk: Path,
    more: Path,
    tmp_path: Path,
) -> None:
    workshop = store_factory(2)
    workshop.store.devices.add("small", str(small_disk / "device"), bandwidth=1 << 32)  # the fastest gets the most
    filled = Runtime(failpoints=Once(step, lambda: use_up(small_disk)))
    with workshop.open(runtime=filled) as store:
        version = store.push(more, "acme/m", part_size=1 << 20)
        assert version.report is not None
        assert any("small takes nothing more in this push" in warning for warning in version.report.warnings)
    with workshop.open() as store:
        store.pull("acme/m", tmp_path / "out")
        assert read_tree(tmp_path / "out") == MORE
        assert list((small_disk / "device" / "tmp").iterdir()) == []
        store.gc(grace_s=0, max_fraction=None)
        assert store.verify().problems == ()
    workshop.close()


@pytest.mark.root
def test_when_a_disk_fills_up_and_no_other_may_take_over_nothing_is_lost(
    store_factory: StoreFactory, small_disk: Path, more: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    workshop = store_factory(1)
    workshop.store.devices.add("small", str(small_disk / "device"), bandwidth=1 << 30)
    workshop.store.push(write_tree(tmp_path / "kept source", KEPT), "kept/model", replicas=2, tag="v1")
    fill(small_disk)
    with workshop.open() as store, refused(Capacity, "small", does="free space or add devices, lower --replicas"):
        store.push(more, "kept/model", part_size=1 << 20)
    command_line("push", more, "kept/model", store=workshop.location, code=9)
    with workshop.open() as store:
        store.gc(grace_s=0, max_fraction=None)
    check_kept(workshop, tmp_path)
    (small_disk / "somebody else's").unlink()
    with workshop.open() as store:
        store.push(more, "kept/model")
        assert store.verify().problems == ()
    workshop.close()


# ------------------------------------------------------------------------------------------------ stores


def test_a_folder_that_is_no_store(tmp_path: Path, command_line: CommandLine) -> None:
    folder = write_tree(tmp_path / "photos", {"cat.jpg": b"cat"})
    for make in (tensorkeep.open, tensorkeep.init):
        with refused(InvalidInput, str(folder), does="is not empty and is no store: name another folder"):
            make(folder)
    with refused(InvalidInput, "cat.jpg", does="is a file"):
        tensorkeep.open(folder / "cat.jpg")
    with refused(InvalidInput, "cat.jpg", does="can't be a store's folder|is a file"):
        tensorkeep.open(folder / "cat.jpg" / "below")
    command_line("ls", "--store", folder, code=2)
    assert read_tree(folder) == {"cat.jpg": b"cat"}
    with refused(InvalidInput, "mysql://", does="give a folder, or postgresql://"):
        tensorkeep.open("mysql://host/db")


def from_devices(workshop: Workshop) -> list[str]:
    """Return the options of ``rebuild-catalog`` that name the devices, where they must be named."""
    return [word for url in workshop.sources() for word in ("--from", url)]


def test_a_store_that_exists(kept: Workshop, tmp_path: Path) -> None:
    with refused(AlreadyExists, str(kept.location), does="open it, or choose another (folder|place)"):
        tensorkeep.init(kept.location, replicas=2)
    check_kept(kept, tmp_path)


def test_a_store_whose_catalog_is_gone(kept: Workshop, tmp_path: Path, command_line: CommandLine) -> None:
    kept.close()
    kept.catalog.lose()
    with refused(NotFound, str(kept.location), does="rebuild-catalog"):
        kept.open()
    command_line("ls", store=kept.location, code=3)
    command_line("rebuild-catalog", *from_devices(kept), store=kept.location)
    check_kept(kept, tmp_path)


def test_a_catalog_that_is_damaged(kept: Workshop, tmp_path: Path, command_line: CommandLine) -> None:
    kept.close()
    kept.catalog.damage()
    with pytest.raises((tensorkeep.Integrity, Format), match="rebuild-catalog"):
        kept.open()
    assert command_line("ls", store=kept.location, code=6).err.startswith("error: ")
    command_line("rebuild-catalog", *from_devices(kept), store=kept.location)
    check_kept(kept, tmp_path)


def test_a_catalog_older_than_the_devices_journal(
    kept: Workshop, more: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    """A day-old copy of the catalog is put back."""
    kept.catalog.copy_to(tmp_path / "yesterday")
    newest = kept.store.push(more, "kept/model", tag="v2")
    kept.store.gc(grace_s=0, max_fraction=None)
    kept.close()
    kept.catalog.replace_by(tmp_path / "yesterday")

    store = kept.open()
    third = write_tree(tmp_path / "third", {"a": b"third"})
    for change in (
        lambda: store.push(third, "kept/model"),
        lambda: store.push(tmp_path / "kept source", "kept/model"),
        lambda: store.tag("kept/model", "v3"),
        lambda: store.branch("kept/model", "other"),
        lambda: store.delete_tag("kept/model", "v1"),
        lambda: store.rm_model("kept/model"),
        lambda: store.devices.add("new", str(tmp_path / "new")),
        lambda: store.devices.lost("disk0"),
        lambda: store.gc(grace_s=0, max_fraction=None),
    ):
        with refused(Conflict, does="rebuild-catalog"):
            change()
    for words in (("gc", "--grace", "0", "--yes"), ("push", third, "kept/model")):
        refusal = command_line(*words, "--json", store=kept.location, code=5)
        assert refusal.error["facts"]["reason"] == "stale_catalog"
    assert not (tmp_path / "new").exists()
    store.pull("kept/model@v1", tmp_path / "old")
    assert read_tree(tmp_path / "old") == KEPT
    kept.close()

    command_line("rebuild-catalog", *from_devices(kept), store=kept.location)
    store = kept.open()
    assert store.model("kept/model@v2").version.id == newest.id
    assert store.model("kept/model").version.id == newest.id
    store.pull("kept/model@v2", tmp_path / "new")
    assert read_tree(tmp_path / "new") == MORE
    store.gc(grace_s=0, max_fraction=None)
    check_kept(kept, tmp_path)
    store.push(third, "kept/model")


def run_unprivileged(
    command_line: CommandLine, workshop: Workshop, *words: object
) -> "subprocess.CompletedProcess[str]":
    """Run a command without root's right to write everything."""
    done = subprocess.run(
        unprivileged(sys.executable, "-m", "tensorkeep", *words),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=command_line.home,
        env=command_line.environment(TENSORKEEP_STORE=str(workshop.location)),
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.root
def test_a_store_that_is_mounted_read_only(kept: Workshop, more: Path, tmp_path: Path) -> None:
    kept.close()
    with kept.read_only(), kept.open() as store:
        store.pull("kept/model@v1", tmp_path / "out")
        assert read_tree(tmp_path / "out") == KEPT
        assert store.verify().problems == ()
        assert store.status().ok
        assert len(store.log("kept/model")) == 1
        assert store.gc(dry_run=True).condemned == 0
        for write in (
            lambda: store.push(more, "kept/model"),
            lambda: store.push(tmp_path / "kept source", "kept/model"),
            lambda: store.tag("kept/model", "v2"),
            lambda: store.delete_tag("kept/model", "v1"),
            lambda: store.branch("kept/model", "other"),
            lambda: store.rm_model("kept/model"),
            lambda: store.gc(max_fraction=None),
            lambda: store.devices.add("new", str(tmp_path / "new")),
            lambda: store.devices.lost("disk0"),
        ):
            with refused(PermissionDenied, str(kept.location), does="read-only|can't be written"):
                write()
        assert not (tmp_path / "new").exists()
    check_kept(kept, tmp_path)


def test_a_store_that_the_user_may_not_write(
    kept: Workshop, more: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    kept.close()
    with kept.unwritable():
        answers = {
            words: run_unprivileged(command_line, kept, *words)
            for words in (
                ("pull", "kept/model@v1", "out"),
                ("verify",),
                ("push", str(more), "kept/model"),
                ("tag", "kept/model", "v2"),
                ("gc", "--grace", "0", "--yes"),
            )
        }
    assert [answer.returncode for answer in answers.values()] == [0, 0, 10, 10, 10], answers
    assert read_tree(command_line.home / "out") == KEPT
    check_kept(kept, tmp_path)


def test_devices_that_may_not_be_written_refuse_a_push_by_name(
    kept: Workshop, more: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    with kept.unwritable("disk1"):
        done = run_unprivileged(command_line, kept, "push", more, "kept/model")
    assert done.returncode in {ERROR_TABLE[name].exit_code for name in ("permission_denied", "not_enough_copies")}, done
    assert "disk1" in done.stderr
    kept.open().gc(grace_s=0, max_fraction=None)
    check_kept(kept, tmp_path)
