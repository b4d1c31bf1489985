"""Makes the stored stores of layout v1 that must load for ever. Each was made once; a stored store is never made again.

    python tests/format_compat/make_store.py

Everything comes from seeds. ``layout-v1`` is a store as it lies on its two devices: two models, three versions, a removed one,
tags and branches, every kind of dtype, a journal that begins with a snapshot; beside the devices its catalog of schema 0001.
``layout-v1-blocks.tar.zst`` is one with parts of many blocks, tensors cut in several parts, and a pack for each layer; its
bytes repeat, so that it is small when compressed. ``layout-v1-fragments.tar.zst`` is the same with ``ec=2+1`` on three devices.
``expected.json`` says what must come out of them. The device URLs that they hold are paths of a machine that is gone.
"""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import zstandard
from blake3 import blake3
from safetensors.numpy import save

from tensorkeep.records.redundancy import ErasureCoded, Policy, Replicas
from tensorkeep.runtime import InlineWorkers, ManualClock, Runtime, SeededRandomness
from tensorkeep.store.opening import open_store
from tensorkeep.store.store import Store

HERE = Path(__file__).resolve().parent
WORK = Path("/var/tmp/tensorkeep-layout-v1")
DEVICES = ("first", "second", "third")
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int16", "uint8", "bool", "float8_e4m3fn", "complex64")

Files = dict[str, bytes]


class Kind(NamedTuple):
    """How a stored store is made: ``seed`` of its ulids, ``blocks`` or something of everything, policy, number of devices."""

    seed: int
    blocks: bool
    policy: Policy
    devices: int


KINDS = {
    "layout-v1": Kind(1, False, Replicas(2), 2),
    "layout-v1-blocks": Kind(2, True, Replicas(2), 2),
    "layout-v1-fragments": Kind(3, True, ErasureCoded(2, 1), 3),
}


class Made(NamedTuple):
    """A version that was pushed, and the files that it must give back."""

    spec: str
    files: Files


def small_files(turn: int) -> Files:
    """Return the files of a little model of many dtypes at a turn, by path."""
    chance = np.random.default_rng(20260101)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for layer, name in enumerate(DTYPES):
        dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
        values = chance.integers(0, 2, (7, 5 + layer)) if name == "bool" else chance.standard_normal((7, 5 + layer)) * 9
        tensors[f"layers.{layer}.weight"] = values.astype(dtype)
    tensors["scalar"] = np.full((), 2.5, np.float32)
    tensors["nothing"] = np.empty((0, 4), np.float32)
    if turn:
        tensors["layers.1.weight"] = chance.standard_normal((7, 6), dtype=np.float32)
        tensors["added"] = np.arange(12, dtype=np.int32).reshape(3, 4)
    files = {
        "model.safetensors": save(tensors, metadata={"format": "np"}),
        "config.json": b'{"hidden_size": 7, "turn": %d}\n' % turn,
        "empty": b"",
        "nested/folder/\u00fcber \u6a21\u578b.txt": "Gr\u00fc\u00dfe\n".encode() * (1 + turn),
        "tokenizer.bin": np.random.default_rng(7).bytes(5000),
    }
    if turn:
        files["added.txt"] = b"a file of the second version\n"
    return files


def block_files(turn: int) -> Files:
    """Return the files of a model of some megabytes, whose bytes repeat."""

    def repeated(seed: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        pattern = np.random.default_rng(seed).standard_normal(1000, dtype=np.float32)
        return np.resize(pattern, shape)

    tensors = {
        "embed.weight": repeated(1, (1100, 600)),  # 2.5 MiB: two parts of 1 MiB, and a tail that joins the second
        "layers.0.weight": repeated(2, (512, 512)),  # 1 MiB exactly
        "layers.0.bias": repeated(3, (512,)),
        "layers.1.weight": repeated(4 + turn, (512, 513)),
        "layers.1.bias": repeated(5, (513,)),
    }
    return {
        "model.safetensors": save(tensors),
        "data.bin": np.resize(np.frombuffer(b"tensorkeep", "u1"), 600_001).tobytes(),
    }


def make_small(folder: Path, store: Store, clock: ManualClock) -> list[Made]:
    """Fill the store that has something of everything."""
    for turn in (0, 1):
        write_files(folder / f"source{turn}", small_files(turn))
        clock.advance(3600)
        store.push(folder / f"source{turn}", "acme/llama", tag=f"v{turn + 1}", message=f"turn {turn}", split="tensor")
    clock.advance(3600)
    gone = store.push({"weights": np.arange(100.0)}, "acme/llama", branch="trial", message="to be removed")
    store.delete_branch("acme/llama", "trial")
    store.rm(f"acme/llama@{gone.id}")
    store.branch("acme/llama", "prod", to="v1")
    clock.advance(3600)
    store.push(folder / "source1", "opaque", split="size", message="cut by size")
    store.gc(grace_s=0, max_fraction=None)
    return [
        Made("acme/llama@v1", small_files(0)),
        Made("acme/llama@v2", small_files(1)),
        Made("opaque@main", small_files(1)),
    ]


def make_blocks(folder: Path, store: Store, clock: ManualClock) -> list[Made]:
    """Fill the store of many blocks."""
    for turn in (0, 1):
        write_files(folder / f"source{turn}", block_files(turn))
        clock.advance(3600)
        store.push(folder / f"source{turn}", "blocks", tag=f"v{turn + 1}", split="tensor", part_size=1 << 20)
    return [Made("blocks@v1", block_files(0)), Made("blocks@v2", block_files(1))]


def write_files(folder: Path, files: Files) -> None:
    """Write files under a folder."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def make_store(folder: Path, kind: Kind) -> dict[str, Any]:
    """Make a store under a folder, and return what must come out of it."""
    clock = ManualClock()
    runtime = Runtime(clock=clock, randomness=SeededRandomness(kind.seed), workers=InlineWorkers())
    context = open_store(
        folder / "store", runtime=runtime, cache_root=None, user="ada", policy=kind.policy, snapshot_every=8
    )
    with Store(context) as store:
        for name in DEVICES[: kind.devices]:
            store.devices.add(name, str(folder / name), bandwidth=1 << 30, zone=f"rack-{name}")
        made = (make_blocks if kind.blocks else make_small)(folder, store, clock)
        assert store.verify().ok
        return {
            "store": context.catalog.info().store,
            "names": {
                model.name: {
                    "branches": {name: store.model(f"{model.name}@{name}").version.id for name in model.branches},
                    "tags": {name: store.model(f"{model.name}@{name}").version.id for name in model.tags},
                }
                for model in store.models()
            },
            "versions": {each.spec: expect(store, each) for each in made},
        }


def expect(store: Store, made: Made) -> dict[str, Any]:
    """Return what must come out of a version: files as they were given, tensors as they are loaded today."""
    model = store.model(made.spec)
    version = model.version
    return {
        "id": version.id,
        "parent": version.parent,
        "message": version.message,
        "author": version.author,
        "created_at": version.created_at,
        "policy": version.policy,
        "split": model.manifest.split,
        "files": {
            path: {"size_bytes": len(data), "blake3": blake3(data).hexdigest()} for path, data in made.files.items()
        },
        "tensors": {
            name: {
                "dtype": model.tensors[name].dtype,
                "shape": list(model.tensors[name].shape),
                "blake3": blake3(array.tobytes()).hexdigest(),
            }
            for name, array in model.load().items()
        },
    }


def copy_devices(work: Path, out: Path) -> None:
    """Copy what lies on the devices; empty folders are left out, as git would."""
    for path in sorted(path for name in DEVICES for path in (work / name).rglob("*") if path.is_file()):
        copy = out / path.relative_to(work)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def pack(folder: Path) -> bytes:
    """Return a folder's files as a compressed tar, the same bytes each time."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = tarfile.TarInfo(str(path.relative_to(folder)))
            info.size = path.stat().st_size
            tar.addfile(info, io.BytesIO(path.read_bytes()))
    return zstandard.compress(stream.getvalue(), 19)


def main() -> None:
    """Make those that are not there yet."""
    expected = json.loads((HERE / "expected.json").read_text("utf-8")) if (HERE / "expected.json").exists() else {}
    for name, kind in KINDS.items():
        if name in expected:
            continue  # never again
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)
        expected[name] = make_store(WORK, kind)
        if kind.blocks:
            copy_devices(WORK, WORK / "copy")
            (HERE / f"{name}.tar.zst").write_bytes(pack(WORK / "copy"))
        else:
            copy_devices(WORK, HERE / name)
            catalog = (WORK / "store" / "catalog.sqlite").read_bytes()
            (HERE / name / "catalog-0001.sqlite.zst").write_bytes(zstandard.compress(catalog, 19))
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", "utf-8")
    shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
