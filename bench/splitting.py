"""How do I choose a split? Every method on every model: parts, what versions share, balance, and the time of three loads.

    scripts/bench.sh splitting [--models tiny,small] [--methods tensor,layer]

Three devices, limited so that an even load of all takes two seconds or more: a time is bytes / rate, not this machine's mood. Prints one table a model and
writes ``bench/results/splitting.json``; ``docs/splitting.md`` shows the tables.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

import tensorkeep
from bench.rounds import files_under
from bench.work import RESULTS, get_model, new_store, remove
from tensorkeep.planning.layers import Layer, usual_role
from tensorkeep.records.manifest import Manifest
from tensorkeep.store.model import Model
from tensorkeep.transfer.boxes import Box

MODEL = "bench/model"
DEVICES = 3
LOAD_SECONDS = 2.0
"""What a whole load takes from devices that are read evenly: long beside what is not reading. Large models take longer."""

MOST_RATE = 120_000_000
"""Bytes per second of a device: few enough that the devices are slower than this machine."""
RANKS = 4
METHODS = ("tensor", "layer", "size", "parts=3")

CHILDREN = {"small": "frozen", "tiny": None, "minilm": None, "moe": None, "finetune": None, "steps": None}
"""Models, and the version that is pushed after them, to see what the two share; ``steps`` are versions of each other."""


class Row(NamedTuple):
    """What was measured of one method on one model."""

    model: str
    method: str
    parts: int
    child_share: float | None
    balance: float
    layer_balance: float
    all_seconds: float
    layer_seconds: float
    layer_overread: float
    rank_seconds: float
    rank_overread: float


def measure_method(name: str, method: str) -> Row:
    """Return what one method gives on one model, in a new store."""
    first, second = _versions(name)
    size = sum(path.stat().st_size for path in files_under(first))
    rate = min(int(size / (DEVICES * LOAD_SECONDS)), MOST_RATE)
    with new_store("splitting", devices=DEVICES, rate_limit=rate) as store:
        store.push(first, MODEL, split=method, tag="first")
        model = store.model(f"{MODEL}@first")
        on_device, by_layer = _balance(store, model)
        model.load()
        assert model.report is not None
        everything = model.report.seconds
        layer_seconds, layer_overread = _load_layer(model)
        rank_seconds, rank_overread = _load_rank(model)
        child_share = None
        if second is not None:
            report = store.push(second, MODEL).report
            assert report is not None
            child_share = report.new_bytes / report.bytes
        return Row(
            name,
            method,
            len(set(_part_digests(model))),
            child_share,
            on_device,
            by_layer,
            everything,
            layer_seconds,
            layer_overread,
            rank_seconds,
            rank_overread,
        )


def _versions(name: str) -> tuple[Path, Path | None]:
    if name == "steps":
        checkpoints = sorted(get_model(name).iterdir())
        return checkpoints[0], checkpoints[1]
    child = CHILDREN[name]
    return get_model(name), get_model(child) if child else None


def _part_digests(model: Model) -> list[bytes]:
    checks = model._open_checks()  # the bench looks inside
    return [checks.digest(part) for part in range(len(model.manifest.parts))]


def _balance(store: tensorkeep.Store, model: Model) -> tuple[float, float]:
    """Return how much more than its share the fullest device holds, of all bytes and of the worst layer: 1.0 is even."""
    holders = _holders(store, model)
    total: dict[str, int] = defaultdict(int)
    layers: dict[Layer, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for part, size in enumerate(model.manifest.parts):
        total[holders[part]] += size
    for layer, part, length in _layer_bytes(model.manifest):
        layers[layer][holders[part]] += length
    # A layer of a few parts can't be even, whatever the method: only those that could be are asked.
    wide = [spread for spread in layers.values() if sum(spread.values()) >= 8 * model.manifest.part_size]
    return _unevenness(total), max((_unevenness(spread) for spread in wide or layers.values()), default=1.0)


def _holders(store: tensorkeep.Store, model: Model) -> list[str]:
    from tensorkeep.catalog.protocol import ObjectKey  # noqa: PLC0415
    from tensorkeep.records.naming import ObjectKind  # noqa: PLC0415

    keys = [ObjectKey(ObjectKind.PART, digest) for digest in _part_digests(model)]
    found = store._context.catalog.locate(list(dict.fromkeys(keys)))  # the bench looks inside
    return [found[key][0].device for key in keys]


def _layer_bytes(manifest: Manifest) -> list[tuple[Layer, int, int]]:
    """Return (layer, part, bytes) of every piece of a tensor that has a layer."""
    rows = []
    for file in manifest.files:
        starts = np.cumsum([0, *(extent.length for extent in file.extents)]).tolist()
        for tensor in file.tensors:
            layer = usual_role(tensor.name).layer
            if layer is None or not tensor.length:
                continue
            first = int(np.searchsorted(starts, tensor.start, side="right")) - 1
            while first < len(file.extents) and starts[first] < tensor.start + tensor.length:
                low, high = max(starts[first], tensor.start), min(starts[first + 1], tensor.start + tensor.length)
                rows.append((layer, file.extents[first].part, high - low))
                first += 1
    return rows


def _unevenness(spread: dict[str, int]) -> float:
    return max(spread.values()) * DEVICES / sum(spread.values())


def _load_layer(model: Model) -> tuple[float, float]:
    """Return the seconds of loading the largest layer, and bytes read / bytes needed."""
    sizes: dict[Layer, int] = defaultdict(int)
    names: dict[Layer, list[str]] = defaultdict(list)
    for name, info in model.tensors.items():
        layer = usual_role(name).layer
        if layer is not None:
            sizes[layer] += info.size_bytes
            names[layer].append(name)
    model.load(include=names[max(sizes, key=lambda layer: sizes[layer])])
    assert model.report is not None
    return model.report.seconds, model.report.bytes_read / model.report.bytes_needed


def _load_rank(model: Model) -> tuple[float, float]:
    """Return the same of rank 1 of 4's rows of every matrix, as tensor parallelism asks for them."""
    boxes = []
    for file, tensor in model.manifest.iter_tensors():
        if len(tensor.shape) != 2 or tensor.shape[0] < RANKS:
            continue
        rows = tensor.shape[0] // RANKS
        sizes = (rows, tensor.shape[1])
        box_array = np.empty(sizes, _numpy_dtype(tensor.dtype))
        boxes.append(Box(file, tensor, (rows, 0), sizes, box_array))
    report = model.read_boxes(boxes)
    return report.seconds, report.bytes_read / report.bytes_needed


def _numpy_dtype(name: str) -> np.dtype[Any]:
    from tensorkeep.records.dtype import get_dtype  # noqa: PLC0415

    return get_dtype(name).numpy


def as_markdown(rows: list[Row]) -> str:
    """Return the rows as one Markdown table."""
    headings = ["model", "method", "parts", "next version: new bytes", "fullest device / even", "worst layer / even"]
    headings += ["load all", "one layer (read / needed)", "rank 1 of 4 (read / needed)"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in rows:
        child = "" if row.child_share is None else f"{100 * row.child_share:.1f} %"
        lines.append(
            f"| {row.model} | {row.method} | {row.parts:,} | {child} | {row.balance:.2f} | {row.layer_balance:.2f} "
            f"| {row.all_seconds:.2f} s | {row.layer_seconds:.2f} s ({row.layer_overread:.2f}) "
            f"| {row.rank_seconds:.2f} s ({row.rank_overread:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description="measure every split method on every model")
    parser.add_argument("--models", default=",".join(CHILDREN))
    parser.add_argument("--methods", default=",".join(METHODS))
    words = parser.parse_args()
    rows = [measure_method(name, method) for name in words.models.split(",") for method in words.methods.split(",")]
    remove("splitting")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "splitting.json").write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n", "utf-8")
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
