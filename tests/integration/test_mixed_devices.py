"""Real pushes to devices of unequal rate, zone and class: bytes by rate, layer by layer, and copies as the highest policy asks."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

import tensorkeep
from bench.make_models import make_model
from tensorkeep.errors import Capacity, InvalidInput, NotEnoughCopies
from tensorkeep.planning.read_plan import ExtentMap
from tensorkeep.records.names import parse_revision
from tensorkeep.records.naming import ObjectKind
from tensorkeep.store.revisions import get_version
from tensorkeep.store.store import Store
from tensorkeep.store.structure import open_checks, open_manifest
from tests.e2e.trees import check_same_tree

MIB = 1 << 20
RATES = {"fast": 400_000_000, "middle": 200_000_000, "slow": 100_000_000}
SHARES = {"fast": 4 / 7, "middle": 2 / 7, "slow": 1 / 7}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store without devices."""
    with tensorkeep.init(tmp_path / "store") as store:
        yield store


def add(store: Store, tmp_path: Path, name: str, *, zone: str | None = None, rate: int = 1 << 30) -> None:
    store.devices.add(name, str(tmp_path / name), zone=zone, bandwidth=rate, rate_limit=rate)


def holders(store: Store, model: str) -> dict[bytes, list[str]]:
    """Return the names of the devices that keep good copies of each part of a model's main, by digest."""
    context = store._context
    _, version = get_version(context, parse_revision(model))
    names = context.fleet.names()
    keys = [key for key, _ in context.catalog.version_objects(version.id) if key.kind is ObjectKind.PART]
    return {
        key.digest: sorted(names[row.device] for row in rows if row.state in ("live", "stored"))
        for key, rows in context.catalog.locate(keys).items()
    }


def bytes_by_layer(store: Store, model: str) -> dict[str, Counter[str]]:
    """Return for every layer the bytes of its tensors that each device keeps."""
    context = store._context
    _, version = get_version(context, parse_revision(model))
    manifest = open_manifest(context, version)
    checks, of_part = open_checks(context, version, manifest), holders(store, model)
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for file in manifest.files:
        extents = ExtentMap(file.extents)
        for tensor in file.tensors:
            if ".layers." in tensor.name:
                layer = tensor.name.split(".layers.")[1].split(".")[0]
                for piece in extents.pieces(tensor.start, tensor.length, 0):
                    [device] = of_part[checks.digest(piece.part)]
                    found[layer][device] += piece.length
    return found


def test_three_devices_of_unequal_rate_keep_bytes_by_their_rate(store: Store, tmp_path: Path) -> None:
    for name, rate in RATES.items():
        add(store, tmp_path, name, rate=rate)
    version = store.push(make_model("tiny", tmp_path / "tiny"), "acme/tiny")
    assert version.report is not None
    given = version.report.device_bytes
    for name, share in SHARES.items():
        assert given[name] / sum(given.values()) == pytest.approx(share, rel=0.05)
    model = store.model("acme/tiny")
    model.load()
    assert model.report is not None
    read = {device.name: device.bytes for device in model.report.devices}
    for name, share in SHARES.items():
        assert read[name] / sum(read.values()) == pytest.approx(share, rel=0.05)


def test_every_layer_is_spread_by_rate_where_its_parts_are_many(store: Store, tmp_path: Path) -> None:
    for name, rate in RATES.items():
        add(store, tmp_path, name, rate=rate)
    rng = np.random.default_rng(0)
    sizes = {"q": 8, "k": 1, "v": 1, "o": 8, "gate": 11, "up": 11, "down": 11}
    arrays = {
        f"model.layers.{layer}.{name}.weight": rng.integers(0, 256, (mib, MIB), dtype=np.uint8)
        for layer in range(3)
        for name, mib in sizes.items()
    }
    arrays |= {f"model.layers.{layer}.norm.weight": rng.integers(0, 256, 4096, dtype=np.uint8) for layer in range(3)}
    (tmp_path / "model").mkdir()
    save_file(arrays, tmp_path / "model" / "model.safetensors")
    store.push(tmp_path / "model", "acme/layers", part_size=MIB)
    layers = bytes_by_layer(store, "acme/layers")
    assert len(layers) == 3
    for given in layers.values():
        for name, share in SHARES.items():
            assert given[name] / given.total() == pytest.approx(share, rel=0.1)
    store.pull("acme/layers", tmp_path / "out")
    check_same_tree(tmp_path / "out", tmp_path / "model")


def arrays(seed: int, count: int = 6) -> dict[str, npt.NDArray[np.uint8]]:
    """Return matrices of 2 MiB, each a part of its own with parts of 2 MiB."""
    rng = np.random.default_rng(seed)
    return {f"m.layers.{n}.w": rng.integers(0, 256, (2, MIB), dtype=np.uint8) for n in range(count)}


def test_a_device_whose_rate_nobody_knows_is_taken_for_as_fast_as_the_others(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        add(store, tmp_path, name)
    catalog, clock = store._context.catalog, store._context.runtime.clock
    [facts] = [facts for facts in catalog.list_devices() if facts.name == "c"]
    unknown = msgspec.structs.replace(facts, bandwidth=None, rate_limit=None)
    catalog.change_device(facts, unknown, heads=store._context.fleet.heads(), now=clock.now())
    store.push(arrays(1, 9), "m", part_size=2 * MIB)
    assert Counter(device for devices in holders(store, "m").values() for device in devices)["c"] >= 3


def test_copies_are_in_two_zones_though_one_is_much_slower(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        add(store, tmp_path, name, zone="rack1")
    add(store, tmp_path, "d", zone="rack2", rate=1 << 26)
    version = store.push(arrays(1), "m", replicas=2, part_size=2 * MIB)
    assert version.report is not None
    assert version.report.warnings == ()
    found = holders(store, "m")
    assert all("d" in devices and len(devices) == 2 for devices in found.values())
    shared = Counter(device for devices in found.values() for device in devices)
    assert max(shared[name] for name in "abc") - min(shared[name] for name in "abc") <= 1


def test_who_has_all_devices_in_one_zone_hears_of_it_before_and_after_the_push(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        add(store, tmp_path, name, zone="rack1")
    words = "not the loss of zone rack1, which gets 2 of the 2 copies of a part: add a device in another zone"
    [warning] = store.plan(arrays(1), "m", replicas=2).warnings
    assert words in warning
    version = store.push(arrays(1), "m", replicas=2)
    assert version.report is not None
    assert version.report.warnings == (warning,)
    assert store.plan(arrays(1), "other", replicas=1).warnings == ()


def test_too_many_copies_or_fragments_are_refused_before_a_byte_is_written(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        add(store, tmp_path, name)
    with pytest.raises(InvalidInput, match="3 copies asked for, 2 devices: add devices or lower --replicas"):
        store.push(arrays(1), "m", replicas=3)
    with pytest.raises(InvalidInput, match=r"ec=4\+2 needs 6 devices .* or use --replicas 2"):
        store.push(arrays(1), "m", ec="4+2")
    assert store.models() == []
    assert [path for name in "ab" for path in (tmp_path / name / "parts").rglob("*") if path.is_file()] == []


def test_a_shared_part_owes_the_highest_of_its_versions_until_that_version_goes(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        add(store, tmp_path, name)
    store.push(arrays(1), "single", part_size=2 * MIB)
    assert {len(devices) for devices in holders(store, "single").values()} == {1}
    store.push(arrays(1), "double", replicas=2, part_size=2 * MIB)
    found = holders(store, "single")
    assert {len(devices) for devices in found.values()} == {2}
    store.devices.lost("b")
    short = {version.model: version.objects for version in store.status().short}
    parts = sum("b" in devices for devices in found.values())
    assert short["default/single"] >= parts > 0, (
        "also the version that asks for one copy is short of what the other asks"
    )
    # The model of one copy is pushed again: what the other asks of its parts is restored with them.
    store.push(arrays(1), "single", part_size=2 * MIB)
    assert all(len(devices) == 2 and "b" not in devices for devices in holders(store, "single").values())


def test_gc_keeps_shared_parts_of_a_removed_model_and_all_their_copies(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        add(store, tmp_path, name)
    store.push(arrays(1), "double", replicas=2, part_size=2 * MIB)
    store.push(arrays(1), "single", part_size=2 * MIB)
    store.rm_model("double")
    store.gc(grace_s=0, max_fraction=None)
    assert {len(devices) for devices in holders(store, "single").values()} == {2}, "rebalance trims, gc does not"
    assert store.status().short == ()
    store.devices.lost("a")
    assert not [version for version in store.status().short if version.objects > 3], "one copy is all that is owed now"
    loaded = store.model("single").load()
    assert all(np.array_equal(loaded[name], array) for name, array in arrays(1).items())
    store.rm_model("single")
    store.gc(grace_s=0, max_fraction=None)
    assert not [path for path in (tmp_path / "b" / "parts").rglob("*") if path.is_file()]


def test_a_model_of_one_copy_can_be_pushed_though_another_is_owed_more_than_devices_are_left(
    store: Store, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        add(store, tmp_path, name)
    store.push(arrays(1), "double", replicas=2, part_size=2 * MIB)
    store.devices.lost("b")
    version = store.push(arrays(1), "single", part_size=2 * MIB)
    assert version.report is not None
    assert version.report.warnings == (
        "some parts have fewer copies than another version that shares them owes; repair is due",
    )
    assert {len(devices) for devices in holders(store, "single").values()} == {1}
    with pytest.raises(InvalidInput, match="2 copies asked for, 1 device"):
        store.push(arrays(2), "double")
    add(store, tmp_path, "c")
    store.push(arrays(1), "single", part_size=2 * MIB)
    assert {len(devices) for devices in holders(store, "double").values()} == {2}


def test_a_plan_counts_the_copies_that_another_version_asks_of_shared_parts(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        add(store, tmp_path, name)
    store.push(arrays(1), "double", replicas=2, part_size=2 * MIB)
    store.devices.lost("b")
    add(store, tmp_path, "c")
    forecast = store.plan(arrays(1), "single", exact=True, part_size=2 * MIB)
    version = store.push(arrays(1), "single", part_size=2 * MIB)
    assert version.report is not None
    planned = {device.name: device.bytes for device in forecast.devices}
    assert planned["c"] > 0
    assert planned["a"] == 0
    wrote = version.report.device_bytes
    assert wrote["c"] >= planned["c"], "and what describes the version"


def test_a_device_of_little_capacity_is_never_overfilled(store: Store, tmp_path: Path) -> None:
    store.devices.add("tiny", str(tmp_path / "tiny"), capacity=5 * MIB, bandwidth=1 << 40)
    for name in ("b", "c"):
        add(store, tmp_path, name)
    store.push(arrays(1, 12), "m", replicas=2, part_size=2 * MIB)
    kept = sum(path.stat().st_size for path in (tmp_path / "tiny" / "parts").rglob("*") if path.is_file())
    assert 0 < kept <= 5 * MIB
    with pytest.raises((NotEnoughCopies, Capacity)):
        store.push(arrays(2, 12), "m", replicas=3, part_size=2 * MIB)
