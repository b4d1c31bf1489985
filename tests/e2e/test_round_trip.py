"""What is pulled is what was pushed, byte for byte, however it was split."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bench.make_models import make_model
from tests.e2e.conftest import Models, StoreFactory
from tests.e2e.trees import check_same_tree, odd_files, write_tree
from tests.e2e.workshop import Workshop

SPLITS = ("tensor", "layer", "size", "parts=7", "auto")


@pytest.mark.every_backend
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["minilm", "tiny", "odd"])
def test_a_pulled_model_is_byte_for_byte_the_pushed_one(
    name: str, split: str, models: Models, workshop: Workshop, tmp_path: Path
) -> None:
    source: Path = getattr(models, name)
    version = workshop.store.push(source, "acme/model", split=split)
    report = workshop.open().pull("acme/model", tmp_path / "out")
    assert version.report is not None
    assert version.report.bytes == report.bytes == report.load.bytes_needed == version.total_bytes
    assert (report.written_files, report.unchanged_files) == (version.report.files, 0)
    check_same_tree(source, tmp_path / "out")


def test_diff_is_silent_on_a_pulled_folder(models: Models, workshop: Workshop, tmp_path: Path) -> None:
    workshop.store.push(models.odd, "acme/odd")
    workshop.store.pull("acme/odd", tmp_path / "out")
    assert diff(models.odd, tmp_path / "out") == ""


@pytest.mark.parametrize(
    ("part_mib", "split"), [(1, "tensor"), (1, "layer"), (1, "size"), (1, "parts=3"), (64, "auto")]
)
def test_every_part_size_gives_the_bytes_back(
    part_mib: int, split: str, models: Models, store_factory: StoreFactory, tmp_path: Path
) -> None:
    workshop = store_factory(2)
    workshop.store.push(models.odd, "odd", split=split, part_size=part_mib << 20)
    workshop.store.pull("odd", tmp_path / "out")
    check_same_tree(models.odd, tmp_path / "out")


@pytest.mark.parametrize("path", ["empty", "nested/größe/模型 ☃.txt", "sizes/part+1.bin", "shapes.safetensors"])
def test_a_single_file_is_a_model(path: str, workshop: Workshop, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {path: odd_files()[path]})
    workshop.store.push(source / path, "acme/single")
    workshop.store.pull("acme/single", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [Path(path).name]
    check_same_tree((source / path).parent, tmp_path / "out")


def test_a_model_of_empty_files_only_is_stored(workshop: Workshop, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", {"a": b"", "b/c": b""})
    version = workshop.store.push(source, "acme/empty", split="size")
    assert version.total_bytes == 0
    workshop.store.pull("acme/empty", tmp_path / "out")
    check_same_tree(source, tmp_path / "out")
    assert workshop.store.verify().ok


def test_everything_that_was_pushed_verifies(models: Models, workshop: Workshop) -> None:
    workshop.store.push(models.odd, "acme/odd", replicas=2)
    report = workshop.open().verify()
    assert report.problems == ()
    assert report.bytes == sum(workshop.held_bytes().values())
    assert report.objects == sum(len(workshop.objects(name)) for name in workshop.devices)


@pytest.mark.timeout(1800)
def test_a_model_of_2_gigabytes_comes_back_and_its_frozen_sister_costs_7_percent(
    workshop: Workshop, tmp_path: Path
) -> None:
    small = make_model("small", tmp_path / "small")
    first = workshop.store.push(small, "acme/small")
    workshop.store.pull("acme/small", tmp_path / "out")
    assert diff(small, tmp_path / "out") == ""
    shutil.rmtree(tmp_path / "out")
    before = sum(workshop.held_bytes().values())
    workshop.store.push(make_model("frozen", tmp_path / "frozen", base=small), "acme/small")
    assert sum(workshop.held_bytes().values()) - before <= 0.07 * first.total_bytes
    workshop.store.pull("acme/small", tmp_path / "out")
    assert diff(tmp_path / "frozen", tmp_path / "out") == ""


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("split", ["tensor", "size"])
def test_a_model_of_2_gigabytes_comes_back(split: str, workshop: Workshop, tmp_path: Path) -> None:
    source = make_model("small", tmp_path / "small")
    workshop.store.push(source, "acme/small", split=split)
    workshop.store.pull("acme/small", tmp_path / "out")
    assert diff(source, tmp_path / "out") == ""


def diff(folder: Path, other: Path) -> str:
    """Return what ``diff -r`` says."""
    found = subprocess.run(["diff", "-r", folder, other], check=False, capture_output=True, text=True)
    assert (found.returncode == 0) == (found.stdout + found.stderr == "")
    return found.stdout + found.stderr
