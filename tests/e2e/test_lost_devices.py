"""A device goes: what has another copy is served, what is missing is named, and pushing again heals."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tensorkeep import AlreadyExists, Integrity, InvalidInput, NotEnoughCopies, Unavailable
from tensorkeep.transfer import lateness
from tests.e2e.conftest import CommandLine, Models, StoreFactory
from tests.e2e.trees import check_same_tree, seeded_bytes, write_tree
from tests.e2e.workshop import Workshop


@pytest.fixture
def doubled(store_factory: StoreFactory, models: Models) -> Workshop:
    """Three devices with two copies of each part of ``acme/tiny``."""
    workshop = store_factory(3)
    workshop.store.push(models.tiny, "acme/tiny", replicas=2, tag="v1")
    return workshop


def check_loads(workshop: Workshop, models: Models) -> None:
    expected: dict[str, object] = {}
    for path in sorted(models.tiny.glob("*.safetensors")):
        expected |= safetensors.numpy.load_file(path)
    arrays = workshop.open().model("acme/tiny@v1").load()
    assert sorted(arrays) == sorted(expected)
    assert all(arrays[name].tobytes() == expected[name].tobytes() for name in expected)  # type: ignore[attr-defined]


@pytest.mark.every_backend
@pytest.mark.parametrize("number", [0, 1, 2])
def test_with_two_copies_any_device_may_be_deleted(
    number: int, doubled: Workshop, models: Models, command_line: CommandLine
) -> None:
    name = doubled.devices[number]
    held = doubled.objects(name)
    doubled.destroy(name)

    check_loads(doubled, models)
    pulled = command_line("pull", "acme/tiny@v1", "out", store=doubled.location)
    assert f"device {name}" in pulled.err
    check_same_tree(models.tiny, command_line.home / "out")

    loaded = command_line("load", "acme/tiny@v1", store=doubled.location)
    assert loaded.err.startswith("warning: ")
    assert f"device {name}" in loaded.err

    status = command_line("status", "--json", store=doubled.location)
    row = next(device for device in status.json["devices"] if device["name"] == name)
    assert row["state"] != "active" or row["problem"]
    assert (row["objects"], row["bytes"]) == (len(held), sum(held.values()))
    assert f"device {name}" in status.err
    assert f"{len(held)} objects" in status.err

    verified = command_line("verify", "--json", store=doubled.location, code=6)
    problems = verified.json["problems"]
    assert {problem["device"] for problem in problems} == {name}
    assert not any(problem["lost"] for problem in problems)
    assert not verified.json["ok"]


def test_a_device_that_comes_back_is_as_good_as_before(doubled: Workshop, models: Models) -> None:
    doubled.unmount("disk1")
    check_loads(doubled, models)
    assert not doubled.open().verify().ok
    doubled.mount("disk1")
    assert doubled.open().verify().problems == ()
    assert doubled.open().status().ok


def test_a_device_that_goes_while_the_store_is_open_is_unreachable_and_not_empty(
    doubled: Workshop, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = doubled.store
    doubled.unmount("disk1")
    model = store.model("acme/tiny@v1")
    monkeypatch.setattr(lateness, "LATE_S", 60.0)  # else the others may be done before it has failed for good
    model.load(mode="read")  # what lies on other disks is mapped, and need not ask this one
    assert model.report is not None
    assert {(damage.device_name, damage.kind) for damage in model.report.damaged} == {("disk1", "unreachable")}
    assert not store.verify().ok
    assert doubled.is_empty("disk1")  # nothing was written where the disk should be
    doubled.mount("disk1")
    assert store.verify().problems == ()


def test_pushing_again_heals_what_a_lost_device_held(doubled: Workshop, models: Models) -> None:
    doubled.destroy("disk2")
    store = doubled.open()
    with pytest.raises(Unavailable, match=r"disk2.*device lost"):
        store.push(models.tiny, "acme/tiny")
    store.devices.lost("disk2")
    version = store.push(models.tiny, "acme/tiny")
    assert version.report is not None
    assert (version.report.created, version.report.new_parts) == (False, 0)
    assert version.report.written_bytes > 0
    assert store.verify().problems == ()
    assert store.status().ok
    # Every copy that is owed lies on the two that are left.
    doubled.devices.remove("disk2")
    first, second = ({path.split(".")[0] for path in doubled.objects(name)} for name in ("disk0", "disk1"))
    assert first == second
    check_loads(doubled, models)


def test_a_lost_device_can_be_replaced_by_a_new_one(doubled: Workshop, models: Models) -> None:
    doubled.destroy("disk0")
    store = doubled.open()
    store.devices.lost("disk0")
    with pytest.raises(InvalidInput, match="marked lost already"):
        store.devices.lost("disk0")
    with pytest.raises(AlreadyExists, match=r"disk0 exists .*lost.*choose another name"):
        store.devices.add("disk0", doubled.url("disk0"))
    assert not doubled.has_place("disk0")
    store.devices.add(
        "disk0b", doubled.url("disk0"), bandwidth=1 << 30
    )  # the new disk is mounted where the dead one was
    store.push(models.tiny, "acme/tiny")
    assert store.verify().problems == ()
    assert {device.facts.name: device.facts.state for device in store.devices.list()} == {
        "disk0": "lost",
        "disk0b": "active",
        "disk1": "active",
        "disk2": "active",
    }
    check_loads(doubled, models)


def test_a_degraded_push_writes_what_it_can_and_a_later_one_the_rest(
    store_factory: StoreFactory, models: Models
) -> None:
    workshop = store_factory(2, replicas=2)
    workshop.unmount("disk1")
    store = workshop.open()
    version = store.push(models.tiny, "acme/tiny", tag="v1", allow_degraded=True)
    assert version.report is not None
    assert version.report.warnings
    check_loads(workshop, models)
    assert not store.verify().ok
    assert [short.version for short in store.status().short] == [version.id]
    workshop.mount("disk1")
    store = workshop.open()
    assert not store.verify().ok
    assert store.push(models.tiny, "acme/tiny").id == version.id
    assert store.verify().problems == ()
    assert store.status().ok


def test_without_another_copy_a_load_says_what_is_missing_where(store_factory: StoreFactory, models: Models) -> None:
    workshop = store_factory(3)
    workshop.store.push(models.tiny, "acme/tiny", tag="v1")
    workshop.unmount("disk1")
    with pytest.raises(
        NotEnoughCopies, match=r"part [0-9a-f]{64} of model-0000.-of-00002\.safetensors.*disk1"
    ) as raised:
        workshop.open().model("acme/tiny@v1").load()
    assert "push the same files again" in str(raised.value)
    workshop.mount("disk1")
    check_loads(workshop, models)


def test_damaged_copies_are_served_from_the_others_and_healed_by_a_push(doubled: Workshop, models: Models) -> None:
    damaged = doubled.damage("disk0")
    check_loads(doubled, models)
    store = doubled.open()
    report = store.verify()
    assert sorted(problem.object for problem in report.problems if problem.kind == "corrupt") == sorted(damaged)
    assert store.status().devices[0].bad_objects == len(damaged)
    store.push(models.tiny, "acme/tiny")
    assert store.status().short == ()
    store.gc(grace_s=0, max_fraction=None)
    assert store.verify().problems == ()


@pytest.mark.parametrize("kind", ["manifests", "checks", "versions"])
def test_a_damaged_description_is_read_from_its_other_copy(kind: str, doubled: Workshop, models: Models) -> None:
    name = next(name for name in doubled.devices if any(o.startswith(kind) for o in doubled.objects(name)))
    damaged = doubled.damage(name, kind)
    check_loads(doubled, models)
    store = doubled.open()
    assert {problem.object for problem in store.verify().problems if problem.kind == "corrupt"} == set(damaged)
    store.push(models.tiny, "acme/tiny")
    store.gc(grace_s=0, max_fraction=None)
    assert store.verify().problems == ()


def test_damage_without_another_copy_is_an_error_and_never_a_wrong_byte(
    store_factory: StoreFactory, models: Models, command_line: CommandLine
) -> None:
    workshop = store_factory(2)
    workshop.store.push(models.tiny, "acme/tiny", tag="v1")
    workshop.damage("disk1")
    with pytest.raises(Integrity, match="disk1") as raised:
        workshop.open().model("acme/tiny@v1").load()
    assert raised.value.facts["devices"] == ["disk1"]
    assert raised.value.facts["file"].split(",")[0] in {path.name for path in models.tiny.iterdir()}
    refused = command_line("load", "acme/tiny", "--json", store=workshop.location, code=6)
    assert refused.error["code"] == "integrity"
    assert "verify" in refused.error["message"]
    assert not workshop.open().verify().ok
    healed = workshop.open().push(models.tiny, "acme/tiny", rehash=True)
    assert healed.report is not None
    assert not healed.report.created
    check_loads(workshop, models)


def test_a_load_that_fails_leaves_word_of_the_damage_for_the_next_push(
    store_factory: StoreFactory, tmp_path: Path
) -> None:
    workshop = store_factory(1)
    source = write_tree(tmp_path / "source", {"one.bin": seeded_bytes(2 << 20)})
    workshop.store.push(source, "acme/one")
    workshop.damage("disk0")
    with pytest.raises(Integrity, match="disk0"):
        workshop.open().pull("acme/one", tmp_path / "out")
    workshop.open().push(source, "acme/one")
    workshop.open().pull("acme/one", tmp_path / "out")
    check_same_tree(source, tmp_path / "out")


def test_a_second_device_gets_what_describes_the_versions_that_are_there(store_factory: StoreFactory) -> None:
    workshop = store_factory(1)
    workshop.store.push({"w": np.arange(9)}, "acme/early")
    assert workshop.store.verify().ok
    workshop.add_device()
    assert workshop.store.verify().ok
    assert workshop.store.status().ok
    assert [device.objects for device in workshop.store.devices.list()] == [4, 3]
