"""How far values moved between two versions: read from devices, verified, in bounded memory."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from tensorkeep import Integrity, NotFound
from tensorkeep.store.reports import Diff, TensorStats
from tests.e2e.conftest import CommandLine
from tests.e2e.trees import safetensors_bytes, seeded_bytes, write_tree
from tests.e2e.workshop import Workshop

MIB = 1 << 20
PEAK_OF_A_COMMAND = """
import sys
from tensorkeep.cli.main import main
code = main(sys.argv[1:])
sys.stderr.writelines(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
sys.exit(code)
"""
"""Not ``ru_maxrss`` of the child: that starts with what its parent had."""


def stats_of(diff: Diff) -> dict[str, TensorStats | None]:
    return {change.name: change.stats for change in diff.tensors}


def test_changed_tensors_are_measured_as_numpy_measures_them(workshop: Workshop) -> None:
    random = np.random.default_rng(3)
    old = {
        "f32": random.normal(size=(700, 1500)).astype(np.float32),
        "bf16": random.normal(size=(64, 64)).astype(ml_dtypes.bfloat16),
        "i64": random.integers(-(2**62), 2**62, size=(50, 3)),
        "scalar": np.array(2.5),
        "same": np.ones(8),
    }
    new = dict(old)
    new["f32"] = old["f32"].copy()
    new["f32"][::7] += np.float32(0.25)
    new["bf16"] = (old["bf16"].astype(np.float32) * 2).astype(ml_dtypes.bfloat16)
    new["i64"] = old["i64"][::-1].copy()
    new["scalar"] = np.array(-2.5)
    workshop.store.push(old, "acme/m", tag="v1", part_size=MIB)
    workshop.store.push(new, "acme/m", tag="v2", part_size=MIB)
    told: list[int] = []
    found = workshop.open().diff("acme/m@v1", "acme/m@v2", stats=True, progress=lambda p: told.append(p.done_bytes))
    assert list(stats_of(found)) == ["bf16", "f32", "i64", "scalar"]
    for name, stats in stats_of(found).items():
        assert stats is not None
        apart = [abs(b - a) for a, b in zip(old[name].ravel().tolist(), new[name].ravel().tolist(), strict=True)]
        assert stats.max_change == max(apart)
        assert stats.l2_change == pytest.approx(np.sqrt(float(sum(d * d for d in apart))), rel=1e-12)
        assert stats.compared == old[name].size
        assert stats.changed == np.count_nonzero(old[name] != new[name])
        assert (stats.unit, stats.not_finite, stats.note) == ("elements", 0, "")
    assert told[-1] == sum(old[name].nbytes + new[name].nbytes for name in stats_of(found))
    plain = workshop.store.diff("acme/m@v1", "acme/m@v2")
    assert set(stats_of(plain).values()) == {None}
    assert plain == dataclasses.replace(
        found, tensors=tuple(dataclasses.replace(change, stats=None) for change in found.tensors)
    )


def test_what_can_not_be_compared_says_why(workshop: Workshop, tmp_path: Path) -> None:
    def file(*, value: int, shape: tuple[int, ...], dtype: str) -> bytes:
        tensors = {
            "shape": ("F32", shape, bytes(4 * shape[0])),
            "packed": ("F4", (4, 8), bytes([value] * 4 + [0] * 12)),
            "dtype": (dtype, (2,), np.array([1, value], "<f4" if dtype == "F32" else "<i4").tobytes()),
            "gone": ("F4", (2,), b"\1") if value == 1 else ("U8", (2,), b"\1\1"),
        }
        return safetensors_bytes(tensors)

    for number, shape, dtype in ((1, (2,), "F32"), (2, (3,), "I32")):
        source = write_tree(tmp_path / f"s{number}", {"m.safetensors": file(value=number, shape=shape, dtype=dtype)})
        workshop.store.push(source, "acme/odd", tag=f"v{number}")
    assert stats_of(workshop.store.diff("acme/odd@v1", "acme/odd@v2", stats=True)) == {
        "dtype": TensorStats("elements", 2, 1, 1.0, 1.0, 0, "F32 and I32 compared as float64"),
        "gone": TensorStats("elements", 0, 0, None, None, 0, "F4 has no numbers to compare"),
        "packed": TensorStats("bytes", 16, 4, None, None, 0, "bytes of F4"),
        "shape": TensorStats("elements", 0, 0, None, None, 0, "shapes differ"),
    }


def test_numbers_of_other_formats_are_measured_and_their_blocks_counted(workshop: Workshop, tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    wide = random.normal(size=(40, 30))
    for number in (1, 2):
        moved = wide + (number - 1)
        source = tmp_path / f"s{number}"
        source.mkdir()
        np.savez(
            source / "a.npz",
            big=wide.astype(">f4") * number,
            fortran=np.asfortranarray(moved),
            half=wide.astype(np.float16 if number == 1 else ">f4"),
            long=moved.astype(np.longdouble),
            times=np.array([number, 2, 3], "M8[s]"),
            turned=wide if number == 1 else np.asfortranarray(wide),
        )
        blocks = random.bytes(144) + bytes([number]) * 144 + bytes(288)
        writer = gguf.GGUFWriter(source / "b.gguf", "llama")
        writer.add_tensor(
            "q", np.frombuffer(blocks, np.uint8).reshape(2, 288), raw_dtype=gguf.GGMLQuantizationType.Q4_K
        )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        workshop.store.push(source, "acme/more", tag=f"v{number}")
    found = stats_of(workshop.store.diff("acme/more@v1", "acme/more@v2", stats=True))
    big = np.abs(wide.astype(np.float32).astype(np.float64))
    moved_by: Any = pytest.approx(np.linalg.norm(big))
    assert found.pop("big") == TensorStats("elements", 1200, 1200, float(big.max()), moved_by, 0, "")
    half = found.pop("half")
    assert half is not None
    assert half.note == "F16 and NPY:>f4 compared as float64"
    assert half.max_change == np.abs(wide.astype(np.float32) - wide.astype(np.float16).astype(np.float64)).max()
    one: Any = pytest.approx(1)
    norm: Any = pytest.approx(np.sqrt(1200))
    assert found == {
        "fortran": TensorStats("elements", 1200, 1200, one, norm, 0, ""),
        "long": TensorStats("elements", 1200, 1200, one, norm, 0, "rounded to float64"),
        "q": TensorStats("blocks", 4, 2, None, None, 0, "blocks of GGUF:Q4_K"),
        "times": TensorStats("elements", 3, 1, None, None, 0, "elements of NPY:<M8[s]"),
        "turned": TensorStats("elements", 1200, 0, 0, 0.0, 0, ""),
    }


def test_a_tensor_whose_bytes_are_the_same_in_another_order_changed(workshop: Workshop, tmp_path: Path) -> None:
    square = np.arange(9.0).reshape(3, 3)
    for tag, order in (("c", square), ("f", square.T)):
        np.save(tmp_path / "square.npy", order)
        workshop.store.push(tmp_path / "square.npy", "acme/square", tag=tag)
    (change,) = workshop.store.diff("acme/square@c", "acme/square@f", stats=True).tensors
    assert change.kind == "changed"
    assert change.stats is not None
    assert (change.stats.changed, change.stats.max_change) == (6, 4.0)


def test_only_what_is_included_is_listed_and_read(workshop: Workshop, tmp_path: Path) -> None:
    for number in (1, 2):
        weights = {
            name: ("F32", (MIB,), seeded_bytes(4 * MIB, seed)) for name, seed in (("a.w", number), ("b.w", number + 9))
        }
        files = {"m.safetensors": safetensors_bytes(weights), "config.json": str(number).encode()}
        workshop.store.push(write_tree(tmp_path / f"s{number}", files), "acme/m", tag=f"v{number}")
    told: list[int] = []
    found = workshop.store.diff(
        "acme/m@v1", "acme/m@v2", stats=True, include="a.*", progress=lambda p: told.append(p.total_bytes)
    )
    assert (found.files, list(stats_of(found))) == ((), ["a.w"])
    assert set(told) == {8 * MIB}
    both = workshop.store.diff("acme/m@v1", "acme/m@v2", include=["*.json", "b.w"])
    assert [change.path for change in both.files] == ["config.json"]
    assert list(stats_of(both)) == ["b.w"]
    with pytest.raises(NotFound, match=r"'c\.\*'"):
        workshop.store.diff("acme/m@v1", "acme/m@v2", include="c.*")


def test_damaged_bytes_are_an_error_and_never_measured(workshop: Workshop) -> None:
    for number in (1, 2):
        workshop.store.push({"w": np.full(MIB, number, np.float32)}, "acme/m", tag=f"v{number}")
    for device in workshop.devices:
        if workshop.objects(device):
            workshop.damage(device)
    with pytest.raises(Integrity):
        workshop.open().diff("acme/m@v1", "acme/m@v2", stats=True)


def test_a_large_tensor_is_measured_in_bounded_memory(
    workshop: Workshop, command_line: CommandLine, tmp_path: Path
) -> None:
    # Holes in a file of zeros: 320 MiB that cost the disk two parts.
    count = 80 * MIB
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [1024, count // 1024], "data_offsets": [0, 4 * count]}}
    ).encode()
    for number in (1, 2):
        path = tmp_path / f"s{number}.safetensors"
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 4 * count)
            for position in (0, count - 1) if number == 2 else ():
                file.seek(8 + len(header) + 4 * position)
                file.write(np.float32(3 + position % 2).tobytes())
        workshop.store.push(path, "acme/large", tag=f"v{number}")
    words = ("diff", "acme/large@v1", "acme/large@v2", "--stats", "--json")
    ran = command_line(*words, store=workshop.location, program=("-c", PEAK_OF_A_COMMAND))
    document = ran.json
    (change,) = document["tensors"]
    assert change["stats"] == {
        "unit": "elements",
        "compared": count,
        "changed": 2,
        "max_change": 4.0,
        "l2_change": 5.0,
        "not_finite": 0,
        "note": "",
        "changed_fraction": 2 / count,
    }
    peak_kib = int(ran.err.split()[-2])  # the interpreter with all its libraries included
    assert peak_kib < 200 * 1024  # 110 MiB measured
