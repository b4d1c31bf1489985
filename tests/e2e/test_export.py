"""Tensors of a version leave as safetensors: one file, or a folder, whatever format they came in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from tensorkeep import AlreadyExists, Integrity, InvalidInput, NotFound, PermissionDenied, Unavailable
from tensorkeep.formats import registry
from tensorkeep.formats.protocol import ByteSource, FileStructure, TensorLayout
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.store import saving
from tensorkeep.store.reports import Progress
from tests.e2e.conftest import CommandLine, Models, StoreFactory
from tests.e2e.trees import read_tree, safetensors_bytes, tensor_data, write_tree
from tests.e2e.workshop import Workshop


class StubReader:
    """A reader of files whose structure the test says: path → structure."""

    name = "stub"

    def __init__(self, structures: Mapping[str, FileStructure]) -> None:
        self.structures = structures

    def claims(self, path: str) -> bool:
        return path in self.structures

    def read_structure(self, path: str, source: ByteSource) -> FileStructure:
        return self.structures[path]


def know(monkeypatch: pytest.MonkeyPatch, structures: Mapping[str, FileStructure]) -> None:
    """Make these files of known formats."""
    monkeypatch.setattr(registry, "READERS", (StubReader(structures), *registry.READERS))


@pytest.fixture
def workshop(shared_workshop: Workshop) -> Workshop:
    """One store for all tests here that do not harm it."""
    return shared_workshop


def test_a_sharded_model_becomes_one_file_that_the_library_loads(
    models: Models, workshop: Workshop, tmp_path: Path
) -> None:
    workshop.store.push(models.tiny, "export/tiny")
    model = workshop.store.model("export/tiny")
    report = model.save(tmp_path / "new" / "out.safetensors")
    expected: dict[str, Any] = {}
    for path in models.tiny.glob("*.safetensors"):
        expected |= safetensors.numpy.load_file(path)
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "new/out.safetensors"), expected)
    assert (report.tensors, report.aliases) == (len(expected), {})
    assert report.bytes == (tmp_path / "new/out.safetensors").stat().st_size
    assert 0 <= report.load.bytes_needed - sum(array.nbytes for array in expected.values()) < 100_000  # headers
    assert {device.name for device in report.load.devices} == set(workshop.devices)
    assert model.report == report.load
    assert read_tree(tmp_path / "new").keys() == {"out.safetensors"}


def test_what_all_files_say_of_themselves_is_said_of_the_one(workshop: Workshop, tmp_path: Path) -> None:
    first = safetensors_bytes({"a": tensor_data("F32", (3,), 1)}, {"format": "pt", "step": "1", "x": "y"})
    second = safetensors_bytes({"b": tensor_data("F32", (3,), 1)}, {"format": "pt", "step": "2"})
    files = {"a.safetensors": first, "b.safetensors": second}
    workshop.store.push(write_tree(tmp_path / "in", files), "export/metadata")
    model = workshop.store.model("export/metadata")
    model.save(tmp_path / "both.safetensors")
    assert metadata(tmp_path / "both.safetensors") == {"format": "pt", "x": "y"}
    model.save(tmp_path / "one.safetensors", include="b")
    assert metadata(tmp_path / "one.safetensors") == {"format": "pt", "step": "2"}


@pytest.mark.parametrize("split", ["tensor", "size"])
def test_batches_of_any_size_give_the_file_that_the_library_writes(
    split: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    kinds: list[np.dtype[Any]] = [np.dtype(kind) for kind in ("f4", "f2", "i8", "u1", "?")]
    arrays = {f"{index}.w": rng.integers(0, 2, (index * 7, 1000)).astype(kinds[index % 5]) for index in range(40)}
    workshop.store.push(arrays, f"export/{split}", split=split, part_size=1 << 20)
    expected = safetensors.numpy.save(arrays)
    for batch in (300_000, 9_000):
        monkeypatch.setattr(saving, "BATCH_BYTES", batch)
        workshop.store.model(f"export/{split}").save(tmp_path / f"{batch}.safetensors")
        assert (tmp_path / f"{batch}.safetensors").read_bytes() == expected


def test_globs_choose_tensors_and_a_name_without_any_is_an_error(workshop: Workshop, tmp_path: Path) -> None:
    workshop.store.push({"a.w": np.arange(3), "b.w": np.arange(4)}, "export/globs")
    model = workshop.store.model("export/globs")
    assert model.save(tmp_path / "a.safetensors", include="a.*").tensors == 1
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "a.safetensors"), {"a.w": np.arange(3)})
    with pytest.raises(NotFound, match=r"'c\.\*'"):
        model.save(tmp_path / "c.safetensors", include="c.*")
    workshop.store.push(write_tree(tmp_path / "texts", {"notes.txt": b"no tensors"}), "export/texts")
    with pytest.raises(NotFound, match="no tensors are known"):
        workshop.store.model("export/texts").save(tmp_path / "texts.safetensors")
    array = safetensors_bytes({"w": tensor_data("F32", (3,), 1)})
    files = {"a.safetensors": array, "b.onnx": b"opaque", "c.txt": b"text"}
    workshop.store.push(write_tree(tmp_path / "mixed", files), "export/mixed")
    (warning,) = workshop.store.model("export/mixed").save(tmp_path / "mixed.safetensors").warnings
    assert warning == "'b.onnx' may be a model, but no tensors of it are known: it is left out"
    assert workshop.store.model("export/mixed").save(tmp_path / "w.safetensors", include="w").warnings == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.safetensors",
        "mixed",
        "mixed.safetensors",
        "texts",
        "w.safetensors",
    ]


def test_a_file_that_is_there_is_kept_unless_forced(workshop: Workshop, tmp_path: Path) -> None:
    workshop.store.push({"w": np.arange(5)}, "export/force")
    model = workshop.store.model("export/force")
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(AlreadyExists, match="exists: move it away, or save with --force"):
        model.save(out)
    assert out.read_bytes() == b"mine"
    model.save(out, force=True)
    assert_same_arrays(safetensors.numpy.load_file(out), {"w": np.arange(5)})
    with pytest.raises(InvalidInput, match="is a folder"):
        model.save(tmp_path, force=True)
    with pytest.raises((PermissionDenied, NotFound, InvalidInput, Unavailable), match="/proc"):
        model.save("/proc/tensorkeep/out.safetensors")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_paths_that_no_file_can_have_are_refused(name: str, workshop: Workshop, tmp_path: Path) -> None:
    workshop.store.push({"w": np.arange(5)}, "export/names")
    with pytest.raises(InvalidInput):
        workshop.store.model("export/names").save(tmp_path / name)
    for format_name in (None, "safetensors"):
        with pytest.raises(InvalidInput):
            workshop.store.pull("export/names", tmp_path / name, format=format_name)
    assert read_tree(tmp_path) == {}


def test_a_file_made_meanwhile_is_kept(workshop: Workshop, tmp_path: Path) -> None:
    workshop.store.push({"w": np.arange(5)}, "export/race")
    out = tmp_path / "out.safetensors"

    def interfere(_: Progress) -> None:
        out.write_bytes(b"theirs")

    with pytest.raises(AlreadyExists, match="was made during the save"):
        workshop.store.model("export/race").save(out, progress=interfere)
    assert read_tree(tmp_path) == {"out.safetensors": b"theirs"}


class SlowClock(ManualClock):
    """A clock on which every look costs a second."""

    def monotonic_s(self) -> float:
        self.advance(1.0)
        return super().monotonic_s()


def test_a_deadline_ends_a_save_that_reads_more_than_once(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    know(monkeypatch, {"pytorch_model.bin": TIED})
    workshop.store.push(write_tree(tmp_path / "in", {"pytorch_model.bin": TIED_BYTES}), "export/deadline")
    model = workshop.open(runtime=Runtime(clock=SlowClock())).model("export/deadline")
    took_s = model.save(tmp_path / "out.safetensors", deadline_s=1e6).load.seconds
    (tmp_path / "out.safetensors").unlink()
    for deadline_s in (0.5, took_s / 2):  # in the first read, and in it or after it
        with pytest.raises(Unavailable, match="deadline of"):
            model.save(tmp_path / "out.safetensors", deadline_s=deadline_s)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_progress_of_a_save_reaches_the_end(models: Models, workshop: Workshop, tmp_path: Path) -> None:
    workshop.store.push(models.tiny, "export/progress")
    seen: list[Progress] = []
    model = workshop.store.model("export/progress")
    model.save(tmp_path / "out.safetensors", progress=seen.append)
    assert {progress.step for progress in seen} == {"save"}
    done = [progress.done_bytes for progress in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes == sum(tensor.size_bytes for tensor in model.tensors.values())


def test_a_damaged_copy_is_replaced_and_named_and_a_lost_one_leaves_no_file(
    store_factory: StoreFactory, tmp_path: Path
) -> None:
    workshop = store_factory(2, replicas=2)
    array = np.random.default_rng(1).integers(0, 256, 20 << 20, np.uint8)
    np.savez(tmp_path / "w.npz", w=array, v=array[::2])
    workshop.store.push(tmp_path / "w.npz", "acme/w")
    workshop.damage("disk0")
    report = workshop.open().model("acme/w").save(tmp_path / "out.safetensors")
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "out.safetensors"), {"w": array, "v": array[::2]})
    assert {damage.device_name for damage in report.load.damaged} == {"disk0"}
    assert len({damage.location for damage in report.load.damaged}) == len(report.load.damaged)
    workshop.damage("disk1")
    with pytest.raises(Integrity):
        workshop.open().model("acme/w").save(tmp_path / "lost" / "out.safetensors")
    assert list((tmp_path / "lost").iterdir()) == []


MATRIX = np.random.default_rng(4).standard_normal((300, 200)).astype(np.float32)
TIED = FileStructure(
    "pytorch",
    (
        TensorLayout("wte", "F32", (300, 200), None, 64, MATRIX.nbytes),
        TensorLayout("lm_head", "F32", (300, 200), None, 64, MATRIX.nbytes),
        TensorLayout("transposed", "F32", (200, 300), (1, 200), 64, MATRIX.nbytes),
        TensorLayout("rows", "F32", (10, 200), None, 64 + 8000, 8000),
        TensorLayout("every_second", "F32", (150, 100), (400, 2), 64 + 4, MATRIX.nbytes - 804),
        TensorLayout("broadcast", "F32", (7, 200), (0, 1), 64 + 800, 800),
    ),
)
ARRAYS = {
    "wte": MATRIX,
    "lm_head": MATRIX,
    "transposed": MATRIX.T,
    "rows": MATRIX[10:20],
    "every_second": MATRIX[::2, 1::2],
    "broadcast": np.broadcast_to(MATRIX[1], (7, 200)),
}
TIED_BYTES = bytes(64) + MATRIX.tobytes() + b"the end"


@pytest.mark.parametrize("batch", [128 << 20, 100_000, 4_000])
def test_ties_are_written_once_and_views_in_c_order(
    batch: int, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    know(monkeypatch, {"pytorch_model.bin": TIED})
    workshop.store.push(write_tree(tmp_path / "in", {"pytorch_model.bin": TIED_BYTES}), "export/tied")
    monkeypatch.setattr(saving, "BATCH_BYTES", batch)
    report = workshop.store.model("export/tied").save(tmp_path / "out.safetensors")
    assert report.aliases == {"wte": "lm_head"}
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "out.safetensors"), without(ARRAYS, "wte"))
    assert metadata(tmp_path / "out.safetensors") == {"format": "pt", "wte": "lm_head"}
    pulled = workshop.store.pull("export/tied", tmp_path / "pulled", format="safetensors")
    assert read_tree(tmp_path / "pulled") == {"model.safetensors": (tmp_path / "out.safetensors").read_bytes()}
    assert (pulled.files, pulled.converted_files, pulled.written_files) == (1, 1, 1)
    assert pulled.load.bytes_needed == sum(array.nbytes for array in without(ARRAYS, "wte").values())


def array_file(arrays: Mapping[str, np.ndarray], format_name: str = "npz") -> tuple[FileStructure, bytes]:
    """Return the structure and the bytes of a file that holds arrays one after the other."""
    names = {np.dtype("f4"): "F32", np.dtype("i8"): "I64", np.dtype("u1"): "U8"}
    data, layouts = b"stub", []
    for name, array in arrays.items():
        layouts.append(TensorLayout(name, names[array.dtype], array.shape, None, len(data), array.nbytes))
        data += array.tobytes()
    return FileStructure(format_name, tuple(layouts)), data


def test_a_folder_of_shards_becomes_one_that_its_index_fits(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rest = {"ln": np.arange(9, dtype=np.int64)}
    structure, data = array_file(rest, "npz")  # push checks the names in shards of PyTorch
    first, second = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    know(monkeypatch, {f"sub/{first}": TIED, f"sub/{second}": structure})
    weight_map = dict.fromkeys(ARRAYS, first) | {"ln": second, "_extra_state": second}
    index = {"metadata": {"total_size": 1, "dtype": "float32"}, "weight_map": weight_map}
    same = safetensors_bytes({"v": tensor_data("F32", (3,), 1)})
    files = {
        f"sub/{first}": TIED_BYTES,
        f"sub/{second}": data,
        "sub/pytorch_model.bin.index.json": json.dumps(index).encode(),
        "sub/other.safetensors": same,
        "training_args.bin": b"opaque",
        "config.json": b"{}",
        "broken.bin.index.json": b"{",
    }
    workshop.store.push(write_tree(tmp_path / "in", files), "export/sharded")
    out = tmp_path / "out"
    report = workshop.store.pull("export/sharded", out, format="safetensors")
    pulled = read_tree(out)
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert pulled.keys() == {
        *(f"sub/{name}" for name in names),
        "sub/model.safetensors.index.json",
        "sub/other.safetensors",
        "training_args.bin",
        "config.json",
        "broken.bin.index.json",
    }
    assert pulled["sub/other.safetensors"] == same
    assert pulled["training_args.bin"] == b"opaque"
    assert_same_arrays(safetensors.numpy.load(pulled[f"sub/{names[1]}"]), rest)
    written = json.loads(pulled["sub/model.safetensors.index.json"])
    kept = without(ARRAYS, "wte")
    assert written["weight_map"] == dict.fromkeys(kept, names[0]) | {"ln": names[1]}
    total = sum(array.nbytes for array in kept.values()) + 72
    assert written["metadata"] == {"total_size": total, "dtype": "float32"}
    assert pulled["sub/model.safetensors.index.json"] == json.dumps(written, indent=2, sort_keys=True).encode() + b"\n"
    assert len(report.warnings) == 2
    assert "'training_args.bin' may be a model" in report.warnings[0]
    assert "1 tensors that its shards do not have, such as '_extra_state'" in report.warnings[1]
    # What came out goes in again: the index is checked by push.
    workshop.store.push(out, "export/again")
    assert_same_arrays(workshop.store.model("export/again").load(include="ln"), rest)


def test_without_a_format_everything_comes_as_it_was(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    know(monkeypatch, {"pytorch_model.bin": TIED})
    workshop.store.push(write_tree(tmp_path / "in", {"pytorch_model.bin": TIED_BYTES}), "export/plain")
    report = workshop.store.pull("export/plain", tmp_path / "out")
    assert read_tree(tmp_path / "out") == {"pytorch_model.bin": TIED_BYTES}
    assert (report.converted_files, report.warnings) == (0, ())
    with pytest.raises(InvalidInput, match="'gguf' can't be written: use 'safetensors'"):
        workshop.store.pull("export/plain", tmp_path / "other", format="gguf")


def test_a_second_pull_finds_what_is_there_and_overwrites_nothing_that_differs(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arrays: dict[str, np.ndarray] = {
        "a": np.arange(1000, dtype=np.int64),
        "b": MATRIX,
        "none": np.zeros((0, 3), np.float32),
    }
    structure, data = array_file(arrays)
    know(monkeypatch, {"w.npz": structure, "strided.npz": TIED})
    index = json.dumps({"weight_map": {"a": "w.npz", "b": "w.npz"}}).encode()
    files = {"w.npz": data, "w.npz.index.json": index, "config.json": b"{}"}
    workshop.store.push(write_tree(tmp_path / "in", files), "export/twice")
    out = tmp_path / "out"
    assert workshop.store.pull("export/twice", out, format="safetensors").written_files == 3
    first = read_tree(out)
    inodes = {path.name: path.stat().st_ino for path in out.iterdir()}
    again = workshop.store.pull("export/twice", out, format="safetensors")
    assert (again.files, again.unchanged_files, again.converted_files) == (3, 3, 1)
    assert {path.name: path.stat().st_ino for path in out.iterdir()} == inodes
    assert "__metadata__" not in safetensors_header(out / "w.safetensors")
    for position in (3, 20, len(first["w.safetensors"]) - 1):
        changed = bytearray(first["w.safetensors"])
        changed[position] ^= 1
        (out / "w.safetensors").write_bytes(changed)
        with pytest.raises(AlreadyExists, match=r"w\.safetensors exists and differs"):
            workshop.store.pull("export/twice", out, format="safetensors")
        assert (out / "w.safetensors").read_bytes() == changed
    workshop.store.pull("export/twice", out, format="safetensors", force=True)
    assert read_tree(out) == first


@pytest.mark.parametrize("dtype", ["GGUF:Q4_K", "NPY:>f4", "NPY:<c16"])
def test_what_safetensors_lacks_is_refused_and_nothing_is_written(
    dtype: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layouts = (TensorLayout("good", "U8", (4,), None, 0, 4), TensorLayout("odd", dtype, (256,), None, 4, 144))
    know(monkeypatch, {"m.stub": FileStructure("gguf", layouts)})
    files = {"m.stub": bytes(148), "config.json": b"{}"}
    name = f"export/{dtype[-3:].strip('<>_')}"
    workshop.store.push(write_tree(tmp_path / "in", files), name)
    for _ in range(2):
        with pytest.raises(InvalidInput, match=f"'odd' of 'm.stub' has the dtype {dtype}"):
            workshop.store.pull(name, tmp_path / "out", format="safetensors")
        with pytest.raises(InvalidInput, match=f"'odd' of 'm.stub' has the dtype {dtype}"):
            workshop.store.model(name).save(tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    workshop.store.pull(name, tmp_path / "out", format="safetensors", include="*.json")
    workshop.store.model(name).save(tmp_path / "out.safetensors", include="good")
    assert read_tree(tmp_path / "out") == {"config.json": b"{}"}


def test_two_files_of_one_name_are_refused_and_one_of_them_can_be_chosen(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    structure, data = array_file({"w": MATRIX}, "pytorch")
    know(monkeypatch, {"pytorch_model.bin": structure})
    other = safetensors_bytes({"w": tensor_data("F32", (3,), 1), "v": tensor_data("F32", (2,), 2)})
    files = {"pytorch_model.bin": data, "model.safetensors": other}
    workshop.store.push(write_tree(tmp_path / "in", files), "export/both")
    with pytest.raises(InvalidInput, match=r"'model\.safetensors' and 'pytorch_model\.bin' would both be written"):
        workshop.store.pull("export/both", tmp_path / "out", format="safetensors")
    model = workshop.store.model("export/both")
    with pytest.raises(InvalidInput, match=r"'model\.safetensors' and 'pytorch_model\.bin' both have a tensor 'w'"):
        model.save(tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    workshop.store.pull("export/both", tmp_path / "out", format="safetensors", include="*.bin")
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "out/model.safetensors"), {"w": MATRIX})
    model.save(tmp_path / "out.safetensors", include="pytorch_model.bin::*")
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "out.safetensors"), {"w": MATRIX})
    model.save(tmp_path / "one.safetensors", include=["v", "model.safetensors::v"])
    assert safetensors.numpy.load_file(tmp_path / "one.safetensors").keys() == {"v"}


def test_the_command_line_writes_a_file_and_a_folder(
    workshop: Workshop, command_line: CommandLine, tmp_path: Path
) -> None:
    workshop.store.push({"w": MATRIX}, "export/cli")
    answer = command_line("load", "export/cli", "out.safetensors", "--to", "safetensors", store=workshop.location)
    assert "1 tensor, 240 kB" in answer.out
    assert_same_arrays(safetensors.numpy.load_file(command_line.home / "out.safetensors"), {"w": MATRIX})
    words = ("load", "export/cli", "--to", "safetensors", "out.safetensors", "--json")
    assert command_line(*words, store=workshop.location, code=4).error["code"] == "already_exists"
    document = command_line(*words, "--force", store=workshop.location).json
    assert (document["tensors"], document["path"], document["aliases"]) == (1, "out.safetensors", {})
    pulled = command_line("pull", "export/cli", tmp_path / "out", "--format", "safetensors", store=workshop.location)
    assert "converted" not in pulled.out
    assert list(read_tree(tmp_path / "out")) == ["model.safetensors"]


def without(arrays: Mapping[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name not in names}


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        found: dict[str, str] = file.metadata()
    return found


def safetensors_header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def assert_same_arrays(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name
