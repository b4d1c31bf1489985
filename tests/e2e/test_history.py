"""Names of versions and what differs between them: tag, branch, log, diff, rm, across processes."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tensorkeep import AlreadyExists, Conflict, InvalidInput, NotFound
from tensorkeep.store.reports import Version
from tests.e2e.trees import read_tree, safetensors_bytes, seeded_bytes, tensor_data, write_tree
from tests.e2e.workshop import Workshop


def files_of_version(number: int) -> dict[str, bytes]:
    return {"config.json": f'{{"version": {number}}}'.encode(), "same.bin": seeded_bytes(2 << 20)}


class Story(NamedTuple):
    """A store with one model of three versions: tagged v1 and v2, and the head."""

    workshop: Workshop
    model: str
    versions: list[Version]


@pytest.fixture
def story(shared_workshop: Workshop, tmp_path: Path, request: pytest.FixtureRequest) -> Story:
    model = f"stories/{re.sub('[^a-z0-9]+', '-', request.node.name)[-90:].strip('-')}"
    versions = []
    for number in (1, 2, 3):
        source = write_tree(tmp_path / f"source{number}", files_of_version(number))
        tag = f"v{number}" if number < 3 else None
        versions.append(shared_workshop.store.push(source, model, tag=tag, message=f"number {number}", author="ada"))
    return Story(shared_workshop, model, versions)


def check_pulls(workshop: Workshop, spec: str, number: int, out: Path) -> None:
    workshop.open().pull(spec, out)
    assert read_tree(out) == files_of_version(number)


def test_the_log_tells_the_history_newest_first(story: Story) -> None:
    entries = story.workshop.open().log(story.model)
    assert [entry.id for entry in entries] == [version.id for version in reversed(story.versions)]
    first = entries[-1].version
    assert first is not None
    assert (first.message, first.author, first.parent, first.tags) == ("number 1", "ada", None, ("v1",))
    assert first.created_at.endswith("Z")
    assert [entry.version.parent for entry in entries if entry.version] == [
        story.versions[1].id,
        story.versions[0].id,
        None,
    ]
    assert [entry.id for entry in story.workshop.store.log(f"{story.model}@v1")] == [story.versions[0].id]


@pytest.mark.parametrize("number", [1, 2])
def test_a_revision_is_a_branch_a_tag_an_id_or_a_prefix(story: Story, number: int, tmp_path: Path) -> None:
    version = story.versions[number - 1]
    for revision in (f"v{number}", version.id, version.id[:12], version.id[:7]):
        assert story.workshop.store.model(f"{story.model}@{revision}").version.id == version.id
    check_pulls(story.workshop, f"{story.model}@{version.id[:7]}", number, tmp_path / "out")
    assert story.workshop.store.model(f"{story.model}@main").version.id == story.versions[2].id
    assert story.workshop.store.model(story.model.upper()).version.id == story.versions[2].id


def test_a_tag_never_moves(story: Story, tmp_path: Path) -> None:
    store = story.workshop.store
    tagged = store.tag(story.model, "release", "v2")
    assert tagged.id == story.versions[1].id
    with pytest.raises(AlreadyExists, match="release"):
        store.tag(story.model, "release", "v1")
    check_pulls(story.workshop, f"{story.model}@release", 2, tmp_path / "out")
    store.delete_tag(story.model, "release")
    with pytest.raises(NotFound, match="release"):
        store.model(f"{story.model}@release")
    with pytest.raises(NotFound, match="release"):
        store.delete_tag(story.model, "release")


def test_a_branch_moved_back_is_a_roll_back_and_the_next_push_goes_on_from_there(story: Story, tmp_path: Path) -> None:
    store = story.workshop.store
    assert store.branch(story.model, "main", to="v1").id == story.versions[0].id
    check_pulls(story.workshop, story.model, 1, tmp_path / "rolled back")
    source = write_tree(tmp_path / "source4", files_of_version(4))
    fourth = story.workshop.open().push(source, story.model)
    assert fourth.parent == story.versions[0].id
    assert [entry.id for entry in store.log(story.model)] == [fourth.id, story.versions[0].id]
    # What the branch left is still there, by its id.
    check_pulls(story.workshop, f"{story.model}@{story.versions[2].id}", 3, tmp_path / "third")


def test_branches_are_made_moved_and_deleted(story: Story, tmp_path: Path) -> None:
    store = story.workshop.store
    store.branch(story.model, "team/prod", to="v1")
    store.branch(story.model, "team/prod", to="v2")
    check_pulls(story.workshop, f"{story.model}@team/prod", 2, tmp_path / "out")
    pushed = store.push(write_tree(tmp_path / "source5", files_of_version(5)), story.model, branch="team/prod")
    assert pushed.parent == story.versions[1].id
    assert store.model(story.model).version.id == story.versions[2].id
    store.delete_branch(story.model, "team/prod")
    with pytest.raises(NotFound, match="team/prod"):
        store.log(f"{story.model}@team/prod")
    check_pulls(story.workshop, f"{story.model}@{pushed.id}", 5, tmp_path / "by id")


def test_models_are_listed_with_their_heads(story: Story) -> None:
    row = next(row for row in story.workshop.open().models() if row.name == story.model)
    assert (row.versions, row.head, row.branches, row.tags) == (3, story.versions[2].id, ("main",), ("v1", "v2"))
    assert row.bytes == story.versions[2].total_bytes


def test_rm_refuses_what_a_name_points_at(story: Story) -> None:
    store = story.workshop.store
    for revision, name in (("main", "main"), ("v1", "v1"), (story.versions[1].id, "v2")):
        with pytest.raises(Conflict, match=name):
            store.rm(f"{story.model}@{revision}")
    assert len(store.log(story.model)) == 3


def test_children_of_a_removed_version_keep_its_id_and_the_log_shows_it(story: Story, tmp_path: Path) -> None:
    store = story.workshop.store
    store.delete_tag(story.model, "v2")
    removed = store.rm(f"{story.model}@{story.versions[1].id}")
    assert removed.id == story.versions[1].id
    entries = story.workshop.open().log(story.model)
    assert [(entry.id, entry.removed) for entry in entries] == [
        (story.versions[2].id, False),
        (story.versions[1].id, True),
    ]
    assert entries[0].version is not None
    assert entries[0].version.parent == story.versions[1].id
    with pytest.raises(NotFound, match=story.versions[1].id[:7]):
        store.model(f"{story.model}@{story.versions[1].id}")
    check_pulls(story.workshop, f"{story.model}@v1", 1, tmp_path / "first")
    check_pulls(story.workshop, story.model, 3, tmp_path / "third")
    again = store.push(write_tree(tmp_path / "source2b", files_of_version(2)), story.model)
    assert again.parent == story.versions[2].id


def test_a_removed_model_is_gone_and_its_name_is_free(story: Story, tmp_path: Path) -> None:
    store = story.workshop.store
    assert store.rm_model(story.model) == 3
    with pytest.raises(NotFound, match=story.model):
        store.log(story.model)
    with pytest.raises(NotFound, match=story.model):
        store.rm_model(story.model)
    fresh = store.push(write_tree(tmp_path / "fresh", files_of_version(9)), story.model)
    assert fresh.parent is None
    check_pulls(story.workshop, story.model, 9, tmp_path / "out")


def test_diff_names_added_removed_changed_and_renamed_files(shared_workshop: Workshop, tmp_path: Path) -> None:
    store = shared_workshop.store
    old = {"same": b"s", "gone": b"g", "changed": b"before", "moved/from": b"the same text", "b.bin": b"1"}
    new = {"same": b"s", "new": b"n", "changed": b"after!", "moved/to": b"the same text", "b.bin": b"2"}
    first = store.push(write_tree(tmp_path / "old", old), "diffs/files", tag="old")
    second = store.push(write_tree(tmp_path / "new", new), "diffs/files", tag="new")
    diff = shared_workshop.open().diff("diffs/files@old", "diffs/files@new")
    assert (diff.old, diff.new, diff.same) == (first.id, second.id, False)
    assert [(change.kind, change.path, change.old_path) for change in diff.files] == [
        ("changed", "b.bin", None),
        ("changed", "changed", None),
        ("removed", "gone", None),
        ("renamed", "moved/to", "moved/from"),
        ("added", "new", None),
    ]
    sizes = {change.path: (change.old_size_bytes, change.size_bytes) for change in diff.files}
    assert sizes == {"b.bin": (1, 1), "changed": (6, 6), "gone": (1, None), "moved/to": (13, 13), "new": (None, 1)}
    assert store.diff("diffs/files@old", "diffs/files@old").same


def test_diff_names_added_removed_changed_and_renamed_tensors(shared_workshop: Workshop, tmp_path: Path) -> None:
    store = shared_workshop.store
    same, moved = tensor_data("F32", (8, 8), 1), tensor_data("BF16", (700, 900), 2)
    value, other = tensor_data("F32", (4,), 3), tensor_data("F32", (4,), 4)
    bits = tensor_data("I16", (6,), 5)[2]
    old = {
        "same": same,
        "old name": moved,
        "gone": value,
        "changed": value,
        "retyped": ("I16", (6,), bits),
        "reshaped": ("I16", (6,), bits),
    }
    new = {
        "same": same,
        "new name": moved,
        "changed": other,
        "added": tensor_data("F64", (2, 2), 6),
        "retyped": ("U16", (6,), bits),
        "reshaped": ("I16", (2, 3), bits),
    }
    for tag, tensors in (("old", old), ("new", new)):
        source = write_tree(tmp_path / tag, {"model.safetensors": safetensors_bytes(tensors)})
        store.push(source, "diffs/tensors", tag=tag)
    diff = shared_workshop.open().diff("diffs/tensors@old", "diffs/tensors@new")
    assert [(change.kind, change.path) for change in diff.files] == [("changed", "model.safetensors")]
    assert [(change.kind, change.name, change.old_name) for change in diff.tensors] == [
        ("added", "added", None),
        ("changed", "changed", None),
        ("removed", "gone", None),
        ("renamed", "new name", "old name"),
        ("changed", "reshaped", None),
        ("changed", "retyped", None),
    ]
    reshaped = next(change for change in diff.tensors if change.name == "reshaped")
    assert (reshaped.old_shape, reshaped.shape, reshaped.dtype) == ((6,), (2, 3), "I16")


def test_diff_of_a_model_and_of_another_model(shared_workshop: Workshop) -> None:
    store = shared_workshop.store
    arrays = {"a": np.arange(9), "b": np.zeros(4)}
    store.push(arrays, "diffs/one")
    store.push(arrays | {"b": np.ones(4)}, "diffs/two")
    assert [change.name for change in store.diff("diffs/one", "diffs/two").tensors] == ["b"]


def test_revisions_that_do_not_exist_are_named(story: Story) -> None:
    store = story.workshop.store
    for call in (store.model, store.log, store.rm, store.verify, store.du):
        with pytest.raises(NotFound, match="no-such-branch"):
            call(f"{story.model}@no-such-branch")
        with pytest.raises(NotFound, match="nobody/nothing"):
            call("nobody/nothing@main")
        with pytest.raises(NotFound, match="0123456789abcdef"):
            call(f"{story.model}@0123456789abcdef")
    with pytest.raises(InvalidInput, match="nothing after '@'"):
        store.model(f"{story.model}@")


def test_space_adds_up(workshop: Workshop, tmp_path: Path) -> None:
    versions = [
        workshop.store.push(write_tree(tmp_path / str(number), files_of_version(number)), "acme/m", tag=f"v{number}")
        for number in (1, 2, 3)
    ]
    store = workshop.open()
    usage = store.du("acme/m")
    assert {row.version: row.logical_bytes for row in usage.rows} == {
        version.id: version.total_bytes for version in versions
    }
    assert usage.logical_bytes == sum(version.total_bytes for version in versions)
    for row in usage.rows:  # each has a pack of its own with its config.json, and shares the rest
        assert 0 < row.exclusive_bytes < 10_000
        assert row.part_bytes >= 2 << 20
    whole = store.du()
    assert whole.rows == usage.rows
    assert whole.device_bytes == workshop.held_bytes()
    assert whole.stored_bytes == sum(workshop.held_bytes().values())
    parts = {
        path.split(".")[0]: size
        for name in workshop.devices
        for path, size in workshop.objects(name).items()
        if path.startswith("parts/")
    }
    shared = usage.rows[0].shared_bytes
    assert sum(parts.values()) == shared + sum(row.exclusive_bytes for row in usage.rows)
    assert [row.version for row in store.du("acme/m@v1").rows] == [versions[0].id]
