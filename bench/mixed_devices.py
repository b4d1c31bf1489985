"""Three devices of rates 4 : 2 : 1, throttled: whether bytes lie by rate, and whether a load takes what its bytes take.

Parts are of 1 MiB: a layer's share of the slowest device must be ten parts or more to be told within 10 %.
"""

from collections import Counter, defaultdict
from pathlib import Path

import tensorkeep
from bench.figures import Figure
from bench.rounds import Contender, measure
from bench.work import remove
from tensorkeep.planning.layers import parse_layer_pattern
from tensorkeep.planning.read_plan import ExtentMap
from tensorkeep.records.layout import MIB
from tensorkeep.records.names import parse_revision
from tensorkeep.records.naming import ObjectKind
from tensorkeep.store.revisions import get_version
from tensorkeep.store.structure import open_checks, open_manifest

NAME, MODEL = "mixed", "bench/model"
SLOWEST_BYTES_PER_S = 30_000_000
PARTS_OF_RATE = {"fast": 4, "middle": 2, "slow": 1}
RATES = {name: parts * SLOWEST_BYTES_PER_S for name, parts in PARTS_OF_RATE.items()}


def mixed_device_figures(source: Path, rounds: int) -> list[Figure]:
    """Return how far bytes are from shares by rate, over all and in the worst layer, and load time over bytes / rate."""
    folder = remove(NAME)
    with tensorkeep.init(folder / "store") as store:
        for name, rate in RATES.items():
            store.devices.add(name, str(folder / name), bandwidth=rate, rate_limit=rate)
        version = store.push(source, MODEL, part_size=MIB)
        assert version.report is not None
        given = version.report.device_bytes
        figures = [
            Figure("bytes on devices of 4 : 2 : 1, farthest from its share", _farthest(given) * 100, 5, "%"),
            Figure(
                "the same in the worst layer, parts of 1 MiB",
                max(_farthest(layer) for layer in _bytes_by_layer(store).values()) * 100,
                10,
                "%",
            ),
        ]
        model = store.model(MODEL)
        [seconds] = [t.median for t in measure([Contender("load", model.load)], rounds=rounds).values()]
        assert model.report is not None
        for device in model.report.devices:
            ideal_s = device.bytes / RATES[device.name]
            figures.append(
                Figure(
                    f"load time / (bytes / rate) of the {device.name} device, off 1 by",
                    abs(seconds / ideal_s - 1) * 100,
                    10,
                    "%",
                )
            )
    remove(NAME)
    return figures


def _farthest(given: dict[str, int] | Counter[str]) -> float:
    total, rates = sum(given.values()), sum(RATES.values())
    return max(abs(given[name] / total / (rate / rates) - 1) for name, rate in RATES.items())


def _bytes_by_layer(store: tensorkeep.Store) -> dict[str, Counter[str]]:
    context, naming = store._context, parse_layer_pattern(None)
    _, version = get_version(context, parse_revision(MODEL))
    manifest = open_manifest(context, version)
    checks, names = open_checks(context, version, manifest), context.fleet.names()
    keys = [key for key, _ in context.catalog.version_objects(version.id) if key.kind is ObjectKind.PART]
    found = {key.digest: names[rows[0].device] for key, rows in context.catalog.locate(keys).items()}
    layers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for file in manifest.files:
        extents = ExtentMap(file.extents)
        for tensor in file.tensors:
            layer = naming.role_of(tensor.name).layer
            if layer is not None:
                for piece in extents.pieces(tensor.start, tensor.length, 0):
                    layers[str(layer)][found[checks.digest(piece.part)]] += piece.length
    return layers
