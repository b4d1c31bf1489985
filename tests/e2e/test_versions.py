"""What is the same is stored once: unchanged pushes, changed models, other branches, other models."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.make_models import make_model
from tensorkeep.formats import registry
from tensorkeep.formats.safetensors import SafetensorsReader
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.store.reports import PushReport, Version
from tensorkeep.store.sources import FileSource
from tests.e2e.conftest import Models, StoreFactory
from tests.e2e.trees import check_same_tree, read_tree, seeded_bytes, write_tree
from tests.e2e.workshop import Workshop


def report_of(version: Version) -> PushReport:
    assert version.report is not None
    return version.report


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of files that pushes read, one for each read."""
    seen: list[str] = []
    original = FileSource.read_into

    def read_into(self: FileSource, offset: int, buffer: memoryview) -> None:
        seen.append(self.path)
        original(self, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", read_into)
    return seen


@pytest.mark.parametrize("split", ["tensor", "layer", "size", "parts=3"])
def test_an_unchanged_push_stores_nothing_and_makes_no_version(
    split: str, models: Models, store_factory: StoreFactory, later: Runtime, home: Path, reads: list[str]
) -> None:
    workshop = store_factory(2, runtime=later)
    store = workshop.store
    first = store.push(models.odd, "acme/odd", split=split)
    held = workshop.held_bytes()

    def check(*, known: bool, **options: Any) -> None:
        reads.clear()
        again = store.push(models.odd, "acme/odd", **options)
        assert again.id == first.id
        report = report_of(again)
        assert (report.created, report.new_parts, report.new_bytes, report.written_bytes) == (False, 0, 0, 0)
        assert report.parts == report_of(first).parts
        assert workshop.held_bytes() == held
        assert (reads == []) == known

    check(known=True)
    check(known=False, rehash=True)
    check(known=True)
    shutil.rmtree(home / ".cache")
    check(known=False)
    check(known=True)
    assert len(store.log("acme/odd")) == 1
    assert store.verify().problems == ()


@pytest.mark.parametrize("split", ["tensor", "layer", "size", "parts=3"])
def test_a_changed_file_gives_the_same_structure_whether_the_others_are_read_again_or_known(
    split: str, models: Models, store_factory: StoreFactory, tmp_path: Path
) -> None:
    later = [Runtime(clock=ManualClock(datetime.now(UTC) + timedelta(hours=1))) for _ in range(2)]
    structures = []
    for rehash, runtime in zip((False, True), later, strict=True):
        store = store_factory(2, runtime=runtime).store
        source = tmp_path / f"source-{rehash}"
        shutil.copytree(models.odd, source)
        store.push(source, "acme/odd", split=split)
        (source / "empty").write_bytes(b"no more")
        store.push(source, "acme/odd", rehash=rehash)
        structures.append(store.model("acme/odd").manifest)
    assert structures[0] == structures[1]
    assert structures[0].split == split


def test_an_unchanged_push_stores_nothing_though_a_format_is_known_by_now(
    store_factory: StoreFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    chance = np.random.default_rng(1)
    save_file({"layers.0.w": chance.random((1000, 1000))}, source / "model.safetensors")
    np.savez(source / "more.npz", a=chance.random((400, 400)), b=chance.random((500, 400)), c=chance.random(3))
    workshop = store_factory(2)
    with monkeypatch.context() as patched:
        patched.setattr(registry, "READERS", (SafetensorsReader(),))
        first = workshop.store.push(source, "acme/model")
    assert [file.format for file in workshop.store.model("acme/model").files] == ["safetensors", "opaque"]
    held = workshop.held_bytes()
    forecast = workshop.store.plan(source, "acme/model", rehash=True, exact=True)
    assert (forecast.new_parts, forecast.parts) == (0, report_of(first).parts)
    again = workshop.store.push(source, "acme/model", rehash=True)
    assert (again.id, report_of(again).new_parts, workshop.held_bytes()) == (first.id, 0, held)
    assert workshop.store.verify().problems == ()


def test_an_unchanged_push_can_tag_the_head(models: Models, workshop: Workshop) -> None:
    first = workshop.store.push(models.odd, "acme/odd")
    again = workshop.store.push(models.odd, "acme/odd", tag="v1")
    assert (again.id, again.tags) == (first.id, ("v1",))
    assert workshop.open().model("acme/odd@v1").version.id == first.id


def test_a_broken_cache_costs_only_time(
    models: Models, store_factory: StoreFactory, later: Runtime, home: Path, reads: list[str]
) -> None:
    workshop = store_factory(1, runtime=later)
    first = workshop.store.push(models.odd, "acme/odd")
    (cache,) = (home / ".cache").rglob("*.json")
    for garbage in (b"", b"{", b"[1]", b"\xff\xfe", b'{"x": [1]}', b"null"):
        cache.write_bytes(garbage)
        reads.clear()
        assert workshop.store.push(models.odd, "acme/odd").id == first.id
        assert reads


def test_files_changed_just_now_are_read_although_they_look_known(workshop: Workshop, tmp_path: Path) -> None:
    # Written within two seconds of the push: the same times may hide another content.
    source = write_tree(tmp_path / "source", {"a.bin": b"first"})
    first = workshop.store.push(source, "acme/a")
    (source / "a.bin").write_bytes(b"other")
    assert workshop.store.push(source, "acme/a").id != first.id
    workshop.store.pull("acme/a", tmp_path / "out")
    assert read_tree(tmp_path / "out") == {"a.bin": b"other"}


@pytest.mark.parametrize("split", ["tensor", "size"])
def test_the_same_bytes_parent_method_and_part_size_give_the_same_parts_with_and_without_the_cache(
    split: str, models: Models, store_factory: StoreFactory, later: Runtime, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(models.odd, source)
    manifests = []
    for options in ({}, {}, {"rehash": True}):
        workshop = store_factory(2, runtime=later)
        workshop.store.push(models.odd, "acme/odd", split=split, part_size=2 << 20)
        workshop.store.push(source, "acme/other")  # its files are known to the cache from here on
        (source / "README.md").write_bytes(b"# Another text\n")
        version = workshop.store.push(source, "acme/odd", **options)  # type: ignore[arg-type]
        manifests.append(workshop.store.model(f"acme/odd@{version.id}").manifest)
        (source / "README.md").write_bytes((models.odd / "README.md").read_bytes())
    assert manifests[0] == manifests[1] == manifests[2]


@pytest.mark.parametrize("split", ["tensor", "size"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_file_that_was_opaque_gets_its_tensors_once_its_format_is_known_and_the_version_changes(
    split: str,
    cached: bool,
    store_factory: StoreFactory,
    later: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(7)
    values = {"large": rng.normal(size=(400, 500)), "small": rng.normal(size=(3, 4)).T}
    source = write_tree(tmp_path / "source", {"notes.txt": b"first"})
    np.savez(source / "old.npz", **values)  # type: ignore[arg-type]
    store = store_factory(2, runtime=later).store
    with monkeypatch.context() as patch:
        patch.setattr("tensorkeep.formats.registry.READERS", ())  # of a tensorkeep before these formats
        first = store.push(source, "acme/old", split=split)
    assert not store.model("acme/old").tensors
    again = store.push(source, "acme/old", rehash=not cached)
    assert again.id == first.id
    (source / "notes.txt").write_bytes(b"other")
    store.push(source, "acme/old", rehash=not cached)
    loaded = store.model("acme/old").load()
    assert loaded.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(loaded[name], value)
    store.pull("acme/old", tmp_path / "out")
    check_same_tree(source, tmp_path / "out")


def test_packs_hold_zeros_between_their_items_whatever_memory_held(
    models: Models, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = workshop.store.push(models.odd, "acme/odd")

    def allocate(size_bytes: int) -> memoryview:
        return memoryview(bytearray(b"\xaa" * size_bytes))

    monkeypatch.setattr("tensorkeep.store.push_read.allocate", allocate)
    copy = workshop.store.push(models.odd, "acme/copy", rehash=True)
    assert report_of(copy).new_parts == 0
    manifests = [workshop.store.model(f"{version.model}@{version.id}").manifest for version in (first, copy)]
    assert manifests[0] == manifests[1]


def test_a_frozen_model_stores_only_what_changed(models: Models, workshop: Workshop, tmp_path: Path) -> None:
    first = workshop.store.push(models.tiny, "acme/tiny", tag="v1")
    frozen = make_model("frozen", tmp_path / "frozen", base=models.tiny)
    before = workshop.held_bytes()
    second = workshop.store.push(frozen, "acme/tiny", tag="v2")
    grown = sum(workshop.held_bytes().values()) - sum(before.values())
    assert grown <= 0.07 * first.total_bytes
    assert report_of(second).new_bytes <= grown
    assert report_of(second).written_bytes == grown
    assert second.parent == first.id
    for tag, folder in (("v1", models.tiny), ("v2", frozen)):
        workshop.store.pull(f"acme/tiny@{tag}", tmp_path / tag)
        check_same_tree(folder, tmp_path / tag)


def test_one_changed_line_of_text_costs_one_small_pack(models: Models, workshop: Workshop, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(models.minilm, source)
    workshop.store.push(source, "acme/minilm")
    (source / "config.json").write_text("{}")
    version = workshop.store.push(source, "acme/minilm")
    assert report_of(version).new_parts == 1
    assert report_of(version).new_bytes < 100_000
    workshop.store.pull("acme/minilm", tmp_path / "out")
    check_same_tree(source, tmp_path / "out")


def test_another_model_with_the_same_files_stores_no_part_again(models: Models, workshop: Workshop) -> None:
    first = workshop.store.push(models.odd, "acme/odd")
    copy = workshop.store.push(models.odd, "acme/copy")
    assert copy.id != first.id
    assert (report_of(copy).created, report_of(copy).new_parts) == (True, 0)


def test_a_base_gives_another_model_the_same_parts(models: Models, workshop: Workshop, tmp_path: Path) -> None:
    workshop.store.push(models.odd, "acme/odd", split="size", part_size=3 << 20)
    source = tmp_path / "source"
    shutil.copytree(models.odd, source)
    (source / "more.txt").write_text("more")
    version = workshop.store.push(source, "acme/tuned", base="acme/odd")
    report = report_of(version)
    assert (report.method, report.part_size) == ("size", 3 << 20)
    assert report.new_parts == 1
    assert version.parent is None


def test_a_renamed_and_moved_file_is_stored_once(workshop: Workshop, tmp_path: Path) -> None:
    data = {"weights.bin": seeded_bytes(5 << 20), "note": b"n"}
    workshop.store.push(write_tree(tmp_path / "a", data), "acme/a")
    moved = write_tree(tmp_path / "b", {"deep/er/weights 2.bin": data["weights.bin"], "note": b"n"})
    version = workshop.store.push(moved, "acme/a")
    assert report_of(version).new_parts == 0
    workshop.store.pull("acme/a", tmp_path / "out")
    check_same_tree(moved, tmp_path / "out")


def test_later_pushes_keep_the_copies_and_the_split_of_the_model(models: Models, store_factory: StoreFactory) -> None:
    workshop = store_factory(3)
    store = workshop.store
    assert store.push(models.odd, "acme/odd", replicas=2, split="size", part_size=2 << 20).policy == "replicas=2"
    again = store.push({"w": np.ones(3)}, "acme/odd")
    assert again.policy == "replicas=2"
    assert report_of(again).part_size == 2 << 20
    more = store.push(models.odd, "acme/odd", branch="three", replicas=3)
    assert more.policy == "replicas=3"
    digests = [
        {path.split(".")[0] for path in workshop.objects(name) if path.startswith("parts/")}
        for name in workshop.devices
    ]
    manifest = store.model("acme/odd@three").manifest
    assert all(len(held) >= len(manifest.parts) for held in digests)
    assert store.verify().problems == ()


def test_a_store_says_how_many_copies_a_model_gets(models: Models, store_factory: StoreFactory) -> None:
    workshop = store_factory(3, replicas=2)
    version = workshop.store.push(models.odd / "shapes.safetensors", "acme/shapes")
    assert version.policy == "replicas=2"
    assert report_of(version).written_bytes >= 2 * report_of(version).new_bytes


def test_copies_go_to_different_zones(store_factory: StoreFactory, models: Models) -> None:
    workshop = store_factory(0)
    for zone in ("east", "east", "west"):
        workshop.add_device(zone=zone)
    workshop.store.push(models.odd, "acme/odd", replicas=2)
    held = [{path.split(".")[0] for path in workshop.objects(name)} for name in workshop.devices]
    assert not {path for path in held[0] & held[1] if path.startswith("parts/")}
    assert held[0]
    assert held[1]


def test_a_push_run_again_with_the_tag_that_it_made_succeeds(models: Models, workshop: Workshop) -> None:
    first = workshop.store.push({"w": np.ones(4)}, "acme/again", tag="v1")
    again = workshop.store.push({"w": np.ones(4)}, "acme/again", tag="v1")
    assert again.id == first.id
    assert again.tags == ("v1",)
