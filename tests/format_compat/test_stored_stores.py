"""Stores of each layout version that were stored once must load for ever, from their devices alone and by their old catalogs.

``make_store.py`` made them. Where one of these tests fails, the code is wrong: a stored store is never made again.
"""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from blake3 import blake3

import tensorkeep
from tensorkeep.catalog import schema
from tensorkeep.catalog.access import open_catalog
from tensorkeep.devices import local_path, normalize_url, open_device
from tensorkeep.devices.protocol import Device
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.naming import parse_physical_name
from tensorkeep.runtime import Runtime
from tensorkeep.store.opening import open_store
from tensorkeep.store.store import Store

HERE = Path(__file__).resolve().parent
DEVICES = {
    "layout-v1": ("first", "second"),
    "layout-v1-blocks": ("first", "second"),
    "layout-v1-fragments": ("first", "second", "third"),
}
STORES = tuple(DEVICES)
SIZE_LIMIT_BYTES = 200_000

EXPECTED: dict[str, dict[str, Any]] = json.loads((HERE / "expected.json").read_text("utf-8"))


def unpack(name: str, folder: Path) -> list[str]:
    """Put the devices of a stored store into a folder, ready to be written to, and return their URLs."""
    if (HERE / name).is_dir():
        shutil.copytree(HERE / name, folder, dirs_exist_ok=True)
    else:
        data = zstandard.decompress((HERE / f"{name}.tar.zst").read_bytes())
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(folder, filter="data")
    urls = [normalize_url(str(folder / device)) for device in DEVICES[name]]
    for url in urls:
        open_device(url, runtime=Runtime()).prepare()  # git keeps no empty folders
    return urls


def check_store(store: Store, expected: dict[str, Any], folder: Path) -> None:
    """Assert that a store holds what was put into it, to the last byte."""
    assert {model.name for model in store.models()} == set(expected["names"])
    for model, names in expected["names"].items():
        for kind in ("branches", "tags"):
            summary = next(summary for summary in store.models() if summary.name == model)
            assert sorted(getattr(summary, kind)) == sorted(names[kind])
            for name, version in names[kind].items():
                assert store.model(f"{model}@{name}").version.id == version
    for number, (spec, version) in enumerate(expected["versions"].items()):
        check_version(store, spec, version, folder / f"out{number}")


def check_version(store: Store, spec: str, expected: dict[str, Any], folder: Path) -> None:
    model = store.model(spec)
    for fact in ("id", "parent", "message", "author", "created_at", "policy"):
        assert getattr(model.version, fact) == expected[fact]
    assert model.manifest.split == expected["split"]
    store.pull(spec, folder)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {
        path: {"size_bytes": len(data), "blake3": blake3(data).hexdigest()} for path, data in files.items()
    } == expected["files"]
    for verify in ("blocks", "digest"):
        arrays = model.load(verify=verify)
        assert {
            name: {
                "dtype": model.tensors[name].dtype,
                "shape": list(array.shape),
                "blake3": blake3(array.tobytes()).hexdigest(),
            }
            for name, array in arrays.items()
        } == expected["tensors"]


@pytest.mark.parametrize("name", STORES)
def test_a_stored_store_is_rebuilt_from_its_devices_and_loads(name: str, tmp_path: Path) -> None:
    expected = EXPECTED[name]
    report = tensorkeep.rebuild_catalog(tmp_path / "store", sources=unpack(name, tmp_path))
    assert report.store == expected["store"]
    assert (report.missing, report.unreachable) == ((), ())
    with tensorkeep.open(tmp_path / "store") as store:
        assert store.verify().problems == ()
        check_store(store, expected, tmp_path)


@pytest.mark.parametrize("name", STORES)
def test_a_stored_store_can_be_written_to(name: str, tmp_path: Path) -> None:
    expected = EXPECTED[name]
    tensorkeep.rebuild_catalog(tmp_path / "store", sources=unpack(name, tmp_path))
    with tensorkeep.open(tmp_path / "store") as store:
        spec, version = next(iter(expected["versions"].items()))
        model = spec.partition("@")[0]
        source = tmp_path / "source"
        store.pull(spec, source)
        # The same files are the same version still: equal bytes make equal parts, in equal packs, for ever.
        store.branch(model, "again", to=spec.partition("@")[2])
        assert store.push(source, model, branch="again", rehash=True).id == version["id"]
        (source / "more.txt").write_text("more")
        child = store.push(source, model, branch="again")
        assert child.parent == version["id"]
        assert child.report is not None
        assert child.report.new_parts == 1
        arrays, before = store.model(f"{model}@again").load(), store.model(spec).load()
        assert sorted(arrays) == sorted(before)
        assert all(arrays[tensor].tobytes() == before[tensor].tobytes() for tensor in before)
        store.gc(grace_s=0, max_fraction=None)
        assert store.verify().problems == ()
        check_version(store, spec, version, tmp_path / "out")


@pytest.mark.parametrize(("name", "device"), [(name, device) for name, found in DEVICES.items() for device in found])
def test_every_object_of_a_stored_store_has_a_name_of_its_layout(name: str, device: str, tmp_path: Path) -> None:
    unpack(name, tmp_path)
    names = [
        path.relative_to(tmp_path / device).as_posix() for path in (tmp_path / device).rglob("*") if path.is_file()
    ]
    assert "tensorkeep.json" in names
    assert [each for each in names if each != "tensorkeep.json" and parse_physical_name(each) is None] == []
    described = {"manifests", "checks", "versions"}  # on as many devices as the policy may lose, and one more
    found = {each.partition("/")[0] for each in names}
    assert found - described == {"tensorkeep.json", "parts", "journal"}
    assert described <= found or device == "third"
    assert any(".ec-2-1-" in each for each in names) is (name == "layout-v1-fragments")


@pytest.mark.parametrize("device", DEVICES["layout-v1-fragments"])
def test_stored_fragments_give_everything_without_any_one_device(device: str, tmp_path: Path) -> None:
    name = "layout-v1-fragments"
    urls = unpack(name, tmp_path)
    shutil.rmtree(tmp_path / device)
    left = [url for url in urls if not url.endswith(device)]
    report = tensorkeep.rebuild_catalog(tmp_path / "store", sources=left, force=True)
    assert report.missing == ()
    with tensorkeep.open(tmp_path / "store") as store:
        check_store(store, EXPECTED[name], tmp_path)


def test_the_catalog_of_the_first_schema_opens_and_loads(tmp_path: Path) -> None:
    expected = EXPECTED["layout-v1"]
    unpack("layout-v1", tmp_path)
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "catalog.sqlite").write_bytes(
        zstandard.decompress((tmp_path / "catalog-0001.sqlite.zst").read_bytes(), max_output_size=1 << 24)
    )
    catalog = open_catalog(f"sqlite:///{folder / 'catalog.sqlite'}", runtime=Runtime())
    assert catalog.check() == []
    assert catalog.info().store == expected["store"]
    assert schema.REVISIONS[0] == "0001"
    catalog.close()

    def open_here(facts: DeviceFacts, runtime: Runtime) -> Device:
        """The catalog names folders of a machine that is gone; the disks are mounted elsewhere now."""
        assert local_path(facts.url) != str(tmp_path / facts.name)
        return open_device(normalize_url(str(tmp_path / facts.name)), runtime=runtime)

    context = open_store(folder, runtime=Runtime(), cache_root=None, user="tester", opener=open_here)
    with Store(context) as store:
        check_store(store, expected, tmp_path)
        assert store.verify().problems == ()
        store.tag("acme/llama", "today")
        assert store.verify().problems == ()


def test_the_stored_stores_are_small() -> None:
    files = [path for path in HERE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert sum(path.stat().st_size for path in files) < SIZE_LIMIT_BYTES
