"""Pull writes what it should, where it should, whole or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest

from tensorkeep import AlreadyExists, InvalidInput, NotEnoughCopies, NotFound, PermissionDenied, Unavailable
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.store.reports import Progress
from tests.e2e.conftest import CommandLine, Models, StoreFactory
from tests.e2e.trees import check_same_tree, odd_files, read_tree, seeded_bytes, write_tree
from tests.e2e.workshop import Workshop

FILES = {"config.json": b"{}", "sub/weights.bin": seeded_bytes(3 << 20), "sub/more/notes.txt": b"notes"}


@pytest.fixture
def pushed(shared_workshop: Workshop, tmp_path: Path) -> Workshop:
    """A store with `FILES` as the model ``acme/files``."""
    shared_workshop.store.push(write_tree(tmp_path / "source", FILES), "acme/files")
    return shared_workshop


def test_files_that_are_there_and_equal_are_left_alone(pushed: Workshop, tmp_path: Path) -> None:
    out = write_tree(tmp_path / "out", FILES | {"mine.txt": b"not of the model"})
    before = {path: os.stat(out / path) for path in FILES}
    report = pushed.store.pull("acme/files", out)
    assert (report.files, report.written_files, report.unchanged_files) == (3, 0, 3)
    after = {path: os.stat(out / path) for path in FILES}
    assert {p: (s.st_ino, s.st_mtime_ns) for p, s in before.items()} == {
        p: (s.st_ino, s.st_mtime_ns) for p, s in after.items()
    }
    assert read_tree(out) == FILES | {"mine.txt": b"not of the model"}


@pytest.mark.parametrize("other", [b"{ }", b"[]", b""], ids=["longer", "same size", "empty"])
def test_a_file_that_differs_is_never_overwritten_without_force(other: bytes, pushed: Workshop, tmp_path: Path) -> None:
    out = write_tree(tmp_path / "out", {"config.json": other})
    with pytest.raises(AlreadyExists, match=r"config\.json exists and differs: move it away, or pull with --force"):
        pushed.store.pull("acme/files", out)
    assert read_tree(out) == {"config.json": other}
    report = pushed.store.pull("acme/files", out, force=True)
    assert report.written_files == 3
    assert read_tree(out) == FILES


def test_force_replaces_a_link_and_not_what_it_leads_to(pushed: Workshop, tmp_path: Path) -> None:
    outside = write_tree(tmp_path / "outside", {"precious": b"precious"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").symlink_to(outside / "precious")
    with pytest.raises(AlreadyExists, match="differs"):
        pushed.store.pull("acme/files", out)
    pushed.store.pull("acme/files", out, force=True)
    assert read_tree(outside) == {"precious": b"precious"}
    assert not (out / "config.json").is_symlink()
    assert read_tree(out) == FILES


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("inner", ["", "more"])
def test_a_link_in_the_destination_cannot_lead_writing_outside(
    inner: str, force: bool, pushed: Workshop, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    (out / "sub" if inner else out).mkdir(parents=True)
    (out / "sub" / inner if inner else out / "sub").symlink_to(outside)
    with pytest.raises(InvalidInput, match=r"leads outside .* through a link: remove the link"):
        pushed.store.pull("acme/files", out, force=force)
    assert list(outside.iterdir()) == []
    assert read_tree(out) == {}


def test_the_destination_itself_may_be_a_link(pushed: Workshop, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    pushed.store.pull("acme/files", tmp_path / "out")
    assert read_tree(tmp_path / "real") == FILES


def test_a_link_that_leads_to_itself_is_an_error(pushed: Workshop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "sub").symlink_to("sub")
    with pytest.raises(InvalidInput, match="sub"):
        pushed.store.pull("acme/files", out)


@pytest.mark.parametrize(
    ("files", "message"),
    [({"config.json/x": b""}, "is a folder"), ({"sub": b"a file"}, "sub"), ({"sub/more": b"a file"}, "sub/more")],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_where_a_file_must_go_is_an_error(
    files: dict[str, bytes], message: str, force: bool, pushed: Workshop, tmp_path: Path
) -> None:
    out = write_tree(tmp_path / "out", files)
    with pytest.raises((AlreadyExists, InvalidInput), match=message):
        pushed.store.pull("acme/files", out, force=force)
    assert read_tree(out) == files


def test_a_file_as_destination_is_an_error(pushed: Workshop, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(InvalidInput, match="is a file, not a folder: name another destination"):
        pushed.store.pull("acme/files", tmp_path / "out")
    with pytest.raises(InvalidInput, match="out"):
        pushed.store.pull("acme/files", tmp_path / "out" / "below")
    assert (tmp_path / "out").read_bytes() == b"a file"


def test_globs_choose_files(pushed: Workshop, tmp_path: Path) -> None:
    report = pushed.store.pull("acme/files", tmp_path / "out", include=["sub/*.bin", "*.json"])
    assert sorted(read_tree(tmp_path / "out")) == ["config.json", "sub/weights.bin"]
    assert report.files == 2
    with pytest.raises(NotFound, match=r"'\*\.gguf'"):
        pushed.store.pull("acme/files", tmp_path / "out", include="*.gguf")


def test_a_pull_that_fails_leaves_nothing_behind(store_factory: StoreFactory, tmp_path: Path) -> None:
    workshop = store_factory(2)
    workshop.store.push(write_tree(tmp_path / "source", odd_files()), "acme/odd")
    gone = max(workshop.devices, key=lambda name: len([o for o in workshop.objects(name) if o.startswith("parts/")]))
    workshop.destroy(gone)
    out = write_tree(tmp_path / "out", {"mine": b"mine"})
    with pytest.raises(NotEnoughCopies, match=gone):
        workshop.open().pull("acme/odd", out)
    assert read_tree(out) == {"mine": b"mine"}


def test_a_destination_that_cannot_be_written_is_an_error(pushed: Workshop) -> None:
    # No user may make files there, root included.
    with pytest.raises((PermissionDenied, NotFound, InvalidInput, Unavailable), match="/proc"):
        pushed.store.pull("acme/files", "/proc/tensorkeep")


class SlowClock(ManualClock):
    """A clock on which every look costs a second."""

    def monotonic_s(self) -> float:
        self.advance(1.0)
        return super().monotonic_s()


def test_a_deadline_ends_a_load_and_a_pull(pushed: Workshop, tmp_path: Path) -> None:
    store = pushed.open(runtime=Runtime(clock=SlowClock()))
    with pytest.raises(Unavailable, match=r"deadline of 0\.5 s"):
        store.pull("acme/files", tmp_path / "out", deadline_s=0.5)
    assert read_tree(tmp_path / "out") == {}
    pushed.store.push({"w": np.zeros(9)}, "acme/array")
    with pytest.raises(Unavailable, match=r"deadline of 0\.5 s"):
        store.model("acme/array").load(deadline_s=0.5)
    store.pull("acme/files", tmp_path / "out", deadline_s=1e6)
    assert read_tree(tmp_path / "out") == FILES


def test_progress_reaches_the_end_and_never_goes_back(models: Models, workshop: Workshop, tmp_path: Path) -> None:
    seen: list[Progress] = []

    def check(step: str, total_bytes: int) -> None:
        assert {progress.step for progress in seen} == {step}
        assert {progress.total_bytes for progress in seen} == {total_bytes}
        done = [progress.done_bytes for progress in seen]
        assert done == sorted(done)
        assert done[-1] == total_bytes
        seen.clear()

    store = workshop.store
    version = store.push(models.odd, "acme/odd", replicas=2, progress=seen.append)
    check("push", version.total_bytes)
    store.push(models.odd, "acme/odd", progress=seen.append)
    check("push", version.total_bytes)
    model = store.model("acme/odd")
    arrays = model.load(progress=seen.append)
    check("load", sum(array.nbytes for array in arrays.values()))
    store.pull("acme/odd", tmp_path / "out", progress=seen.append)
    check("pull", version.total_bytes)
    report = store.verify(progress=seen.append)
    check("verify", report.bytes)


def test_progress_of_a_push_that_knows_all_files_reaches_the_end(
    models: Models, store_factory: StoreFactory, later: Runtime
) -> None:
    workshop = store_factory(runtime=later)
    version = workshop.store.push(models.odd, "acme/odd")
    seen: list[Progress] = []
    workshop.store.push(models.odd, "acme/odd", progress=seen.append)
    assert seen[-1] == Progress("push", version.total_bytes, version.total_bytes)


def test_an_error_of_a_progress_callback_reaches_the_caller(models: Models, workshop: Workshop, tmp_path: Path) -> None:
    def refuse(_: Progress) -> None:
        raise RuntimeError("the bar is closed")

    with pytest.raises(RuntimeError, match="the bar is closed"):
        workshop.store.push(models.odd, "acme/odd", progress=refuse)
    assert workshop.store.models() == []
    workshop.store.push(models.odd, "acme/odd")
    with pytest.raises(RuntimeError, match="the bar is closed"):
        workshop.store.pull("acme/odd", tmp_path / "out", progress=refuse)
    assert read_tree(tmp_path / "out") == {}
    workshop.store.pull("acme/odd", tmp_path / "out")
    check_same_tree(models.odd, tmp_path / "out")


def test_the_command_line_pulls_beside_the_caller(pushed: Workshop, command_line: CommandLine) -> None:
    command_line("pull", "acme/files", store=pushed.location)
    assert read_tree(command_line.home / "files") == FILES
    command_line("pull", "acme/files", store=pushed.location)
    (command_line.home / "files" / "config.json").write_bytes(b"mine")
    refused = command_line("pull", "acme/files", "--json", store=pushed.location, code=4)
    assert refused.error["code"] == "already_exists"
    command_line("pull", "acme/files", "--force", store=pushed.location)
    assert read_tree(command_line.home / "files") == FILES
