"""What `plan` says is what `push` then does: method, parts, and the bytes of each device."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.tensors import TensorSpec, filled, write_safetensors
from tensorkeep.errors import Capacity, InvalidInput, NotFound
from tensorkeep.runtime import Runtime
from tensorkeep.store.reports import PushForecast, Version
from tensorkeep.transfer import schedule
from tests.e2e.conftest import CommandLine, StoreFactory
from tests.e2e.trees import seeded_bytes, write_tree
from tests.e2e.workshop import Workshop

MIB = 1 << 20
SPLITS = ("auto", "tensor", "layer", "size", "parts=1", "parts=5")
BANDWIDTHS = (900_000_000, 200_000_000, 450_000_000)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models in which no part is there twice: experts in files of their own, opaque bytes, small files only."""
    made = tmp_path_factory.mktemp("sources")
    experts = made / "experts"
    experts.mkdir()
    for expert in range(4):
        specs = [
            TensorSpec(f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight", "F32", shape)
            for layer in range(3)
            for name, shape in (("gate_proj", (256, 700)), ("up_proj", (16, 700)), ("down_proj", (700, 900)))
        ]
        write_safetensors(experts / f"expert-{expert}.safetensors", specs, lambda spec: filled(spec, 1))
    write_safetensors(
        experts / "rest.safetensors",
        [TensorSpec("model.embed_tokens.weight", "F32", (3000, 700))],
        lambda s: filled(s, 2),
    )
    (experts / "config.json").write_text('{"experts": 4}')
    opaque = write_tree(
        made / "opaque", {"a.onnx": seeded_bytes(7 * MIB + 5, 1), "b.bin.gz": seeded_bytes(3 * MIB, 2), "c": b"c"}
    )
    small = write_tree(made / "small", {f"{number}.txt": seeded_bytes(100 + number, number) for number in range(20)})
    return {"experts": experts, "opaque": opaque, "small": small}


def add_devices(workshop: Workshop, count: int, *, zones: tuple[str, ...] | None = None) -> None:
    for number in range(count):
        workshop.add_device(zone=zones[number] if zones else None, bandwidth=BANDWIDTHS[number])


def parts_on(workshop: Workshop) -> dict[str, tuple[int, int]]:
    """Return how many parts lie on each device, and their bytes."""
    found = {}
    for name in workshop.devices:
        sizes = [size for path, size in workshop.objects(name).items() if path.startswith("parts/")]
        found[name] = (len(sizes), sum(sizes))
    return found


def foretold(forecast: PushForecast) -> dict[str, tuple[int, int]]:
    return {device.name: (device.parts, device.bytes) for device in forecast.devices}


def check_same_choice(forecast: PushForecast, version: Version) -> None:
    report = version.report
    assert report is not None
    assert (forecast.method, forecast.part_size, forecast.why) == (report.method, report.part_size, report.why)
    assert (forecast.parts, forecast.bytes, len(forecast.files)) == (report.parts, report.bytes, report.files)
    assert forecast.new_parts == report.new_parts
    assert [(file.path, file.note) for file in forecast.files if file.note] == list(report.notes)


@pytest.mark.parametrize(
    ("split", "devices", "replicas", "zones"),
    [
        *((split, 3, 2, ("a", "a", "b")) for split in SPLITS),
        *((split, 3, 1, None) for split in ("tensor", "parts=5")),
        *((split, 2, 1, None) for split in ("layer", "size")),
        *((split, 2, 2, None) for split in ("layer", "parts=5")),
        ("auto", 1, 1, None),
    ],
)
def test_a_push_writes_to_each_device_what_the_plan_says(
    split: str,
    devices: int,
    replicas: int,
    zones: tuple[str, ...] | None,
    sources: dict[str, Path],
    store_factory: StoreFactory,
) -> None:
    workshop = store_factory(0, replicas=replicas)
    add_devices(workshop, devices, zones=zones)
    before = parts_on(workshop)
    for name, source in sources.items():
        forecast = workshop.open().plan(source, f"acme/{name}", split=split, part_size=2 * MIB)
        assert parts_on(workshop) == before, "a plan writes nothing"
        version = workshop.store.push(source, f"acme/{name}", split=split, part_size=2 * MIB)
        after = parts_on(workshop)
        written = {d: (after[d][0] - before[d][0], after[d][1] - before[d][1]) for d in workshop.devices}
        assert foretold(forecast) == written
        check_same_choice(forecast, version)
        before = after


@pytest.mark.parametrize("split", ["tensor", "parts=3"])
def test_a_load_reads_and_takes_what_the_plan_says(
    split: str,
    sources: dict[str, Path],
    store_factory: StoreFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "is_worth", lambda *_: False)  # no plan knows which device this machine will stall
    monkeypatch.setattr(schedule, "is_late", lambda *_: False)
    workshop = store_factory(0, replicas=2)
    add_devices(workshop, 3)
    forecast = workshop.store.plan(sources["experts"], split=split, part_size=MIB)
    workshop.store.push(sources["experts"], "acme/experts", split=split, part_size=MIB)
    report = workshop.store.pull("acme/experts", tmp_path / "out").load
    by_name = {device.name: device for device in report.devices}
    for device in forecast.devices:
        assert device.load_bytes == pytest.approx(by_name[device.name].bytes, rel=0.01, abs=64)
        assert device.load_seconds == pytest.approx(by_name[device.name].predicted_seconds, rel=0.01)
    assert forecast.load_seconds == max(device.load_seconds for device in forecast.devices)


@pytest.mark.backends("sqlite-local", "mixed")  # a store in a database makes no device by itself
def test_a_store_without_devices_is_planned_for_as_with_the_one_that_a_push_adds(
    sources: dict[str, Path], store_factory: StoreFactory
) -> None:
    workshop = store_factory(0)
    forecast = workshop.store.plan(sources["experts"])
    assert workshop.store.devices.list() == []
    assert not (Path(workshop.location) / "devices").exists()
    with pytest.raises(InvalidInput, match="2 copies asked for, 1 device"):
        workshop.store.plan(sources["experts"], replicas=2)
    version = workshop.store.push(sources["experts"], "acme/experts")
    check_same_choice(forecast, version)
    assert [device.name for device in forecast.devices] == ["local"]
    assert version.report is not None
    assert forecast.devices[0].parts == version.report.new_parts
    held = workshop.store.devices.list()[0]
    assert held.objects == forecast.devices[0].parts + 3, "manifest, checks and version record"


@pytest.mark.parametrize("split", ["tensor", "layer", "size", "parts=3"])
def test_files_that_are_known_to_be_unchanged_are_kept_and_the_rest_is_written(
    split: str, sources: dict[str, Path], store_factory: StoreFactory, later: Runtime, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    shutil.copytree(sources["opaque"], source)
    workshop = store_factory(2, runtime=later)
    workshop.store.push(source, "acme/opaque", split=split, part_size=MIB)
    before = parts_on(workshop)
    forecast = workshop.open(runtime=later).plan(source, "acme/opaque")
    assert (forecast.method, forecast.part_size, forecast.new_parts, forecast.new_bytes) == (split, MIB, 0, 0)
    assert all(file.kept for file in forecast.files)
    (source / "a.onnx").write_bytes(seeded_bytes(7 * MIB + 5, 9))
    forecast = workshop.open(runtime=later).plan(source, "acme/opaque")
    assert [file.path for file in forecast.files if not file.kept] == ["a.onnx"]
    workshop.store.push(source, "acme/opaque")
    after = parts_on(workshop)
    assert foretold(forecast) == {d: (after[d][0] - before[d][0], after[d][1] - before[d][1]) for d in before}


def test_more_copies_of_what_is_kept_are_foretold(
    sources: dict[str, Path], store_factory: StoreFactory, later: Runtime
) -> None:
    workshop = store_factory(0, runtime=later)
    add_devices(workshop, 2)
    workshop.store.push(sources["experts"], "acme/experts", part_size=MIB)
    before = parts_on(workshop)
    workshop.add_device(bandwidth=BANDWIDTHS[2])
    before["disk2"] = (0, 0)
    forecast = workshop.store.plan(sources["experts"], "acme/experts", replicas=2)
    workshop.store.push(sources["experts"], "acme/experts", replicas=2)
    after = parts_on(workshop)
    assert foretold(forecast) == {d: (after[d][0] - before[d][0], after[d][1] - before[d][1]) for d in before}
    assert forecast.new_parts == 0


@pytest.mark.parametrize("split", ["size", "parts=5"])
def test_devices_without_room_are_foretold(split: str, sources: dict[str, Path], store_factory: StoreFactory) -> None:
    workshop = store_factory(0, replicas=2)
    add_devices(workshop, 1)
    workshop.add_device(capacity=5 * MIB)
    before = parts_on(workshop)
    assert not workshop.store.plan(sources["small"], split=split).warnings
    forecast = workshop.store.plan(sources["opaque"], "acme/opaque", split=split, part_size=MIB)
    assert [warning.startswith("up to ") and "room" in warning for warning in forecast.warnings] == [True]
    with pytest.raises(Capacity):
        workshop.store.push(sources["opaque"], "acme/other", split=split, part_size=MIB)
    workshop.store.gc(grace_s=0, max_fraction=None)
    options: dict[str, Any] = {"split": split, "part_size": MIB, "allow_degraded": True}
    forecast = workshop.store.plan(sources["opaque"], "acme/opaque", exact=True, **options)
    assert forecast.devices[1].bytes <= 5 * MIB
    workshop.store.push(sources["opaque"], "acme/opaque", **options)
    after = parts_on(workshop)
    assert foretold(forecast)["disk0"] == (
        after["disk0"][0] - before["disk0"][0],
        after["disk0"][1] - before["disk0"][1],
    )


@pytest.mark.parametrize("replicas", [1, 2])
def test_equal_and_stored_parts_are_known_when_everything_is_read(
    replicas: int, store_factory: StoreFactory, tmp_path: Path
) -> None:
    block = seeded_bytes(MIB, 1)
    source = write_tree(tmp_path / "model", {"a": block * 3 + b"tail" * MIB, "b": seeded_bytes(2 * MIB, 2)})
    other = write_tree(tmp_path / "other", {"b": seeded_bytes(2 * MIB, 2)})
    workshop = store_factory(0, replicas=replicas)
    add_devices(workshop, 3)
    workshop.store.push(other, "acme/other", split="size", part_size=MIB)
    before = parts_on(workshop)
    guess = workshop.store.plan(source, split="size", part_size=MIB)
    forecast = workshop.store.plan(source, split="size", part_size=MIB, exact=True)
    assert (guess.exact, forecast.exact) == (False, True)
    assert (guess.parts, guess.new_parts) == (9, 9)
    assert (forecast.parts, forecast.new_parts) == (4, 2)
    version = workshop.store.push(source, "acme/model", split="size", part_size=MIB)
    after = parts_on(workshop)
    assert foretold(forecast) == {d: (after[d][0] - before[d][0], after[d][1] - before[d][1]) for d in before}
    assert version.report is not None
    assert (version.report.parts, version.report.new_parts) == (4, 2)
    assert workshop.store.plan(source, exact=True, split="size", part_size=MIB).new_parts == 0


def test_layers_are_told_apart_and_by_layer_they_are_balanced(
    sources: dict[str, Path], store_factory: StoreFactory
) -> None:
    workshop = store_factory(0)
    add_devices(workshop, 3)
    by_layer = workshop.store.plan(sources["experts"], split="layer", part_size=MIB).layers
    assert by_layer is not None
    assert by_layer.layers == 3
    assert by_layer.slowest.startswith("layers.")
    assert 0.5 < by_layer.balance <= 1
    whole = workshop.store.plan(sources["experts"], layer_pattern=r"experts\.(\d+)").layers
    assert whole is not None
    assert whole.layers == 4
    assert workshop.store.plan(sources["small"]).layers is None


def test_arrays_are_planned_too_and_bad_words_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    forecast = workshop.store.plan({"h.0.w": np.zeros((3, 4), np.float32)}, "zeros")
    assert forecast.model == "default/zeros", "spelled as push spells it"
    assert [(file.format, file.tensors) for file in forecast.files] == [("safetensors", 1)]
    with pytest.raises(NotFound):
        workshop.store.plan(tmp_path / "nothing")
    for words in (
        {"split": "parts=0"},
        {"part_size": 5},
        {"layer_pattern": "x"},
        {"ec": "4+2"},
        {"split": "parts=999999"},
    ):
        with pytest.raises(InvalidInput):
            workshop.store.plan({"w": np.zeros(3)}, **words)


def test_a_file_that_breaks_its_format_is_opaque_by_size_and_the_note_says_why(
    workshop: Workshop, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "model", {"m.safetensors": b"\xff" * 100})
    forecast = workshop.store.plan(source, split="size")
    assert [file.format for file in forecast.files] == ["opaque"]
    assert forecast.files[0].note.startswith("it is broken: ")
    report = workshop.store.push(source, "acme/broken", split="size").report
    assert report is not None
    assert [(note.path, note.note) for note in report.notes] == [("m.safetensors", forecast.files[0].note)]


def test_the_command_prints_the_sentence_the_files_and_the_devices(
    command_line: CommandLine, sources: dict[str, Path]
) -> None:
    answer = command_line("plan", str(sources["opaque"]), "--split", "parts=3", "--json")
    assert answer.json["method"] == "parts=3"
    assert [device["name"] for device in answer.json["devices"]] == ["local"]
    assert "local" in command_line("plan", str(sources["opaque"])).out
