"""Folders to push, made from a seed, and folders compared byte by byte."""

import json
import random
from collections.abc import Mapping
from pathlib import Path

from tensorkeep.records.dtype import DTYPES
from tensorkeep.records.layout import BLOCK_BYTES, MIB

PART_BYTES = 4 * MIB
"""The part size that small models get by themselves."""


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file under a folder, by its relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_same_tree(folder: Path, other: Path) -> None:
    """Assert that two folders hold the same files with the same bytes."""
    first, second = read_tree(folder), read_tree(other)
    assert sorted(first) == sorted(second)
    assert [path for path in first if first[path] != second[path]] == []


def write_tree(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files by relative path under a new folder and return it."""
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def seeded_bytes(size: int, seed: int = 0) -> bytes:
    """Return bytes that do not compress, and that differ from any other seed's."""
    return random.Random(seed).randbytes(size)


def safetensors_bytes(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return a safetensors file: name → (dtype, shape, bytes), laid out in that order."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def tensor_data(dtype: str, shape: tuple[int, ...], seed: int) -> tuple[str, tuple[int, ...], bytes]:
    """Return a tensor of a dtype with seeded content; booleans hold 0 and 1."""
    bits = DTYPES[dtype].bits
    for size in shape:
        bits *= size
    data = seeded_bytes(bits // 8, seed)
    return dtype, shape, bytes(byte & 1 for byte in data) if dtype == "BOOL" else data


def every_dtype() -> dict[str, bytes]:
    """Return one safetensors file for each dtype: a matrix, a large one, a 0-d and a zero-size tensor."""
    files = {}
    for seed, (name, dtype) in enumerate(DTYPES.items()):
        tensors = {
            "layers.0.matrix": tensor_data(name, (24, 40), seed),
            "layers.1.large": tensor_data(name, (MIB // dtype.bits + 16, 16), seed + 100),
            "empty": tensor_data(name, (0, 8), seed),
        }
        if dtype.bits >= 8:
            tensors["scalar"] = tensor_data(name, (), seed + 200)
        files[f"dtypes/{name}.safetensors"] = safetensors_bytes(tensors, {"format": "pt"})
    return files


def odd_files() -> dict[str, bytes]:
    """Return files of all sizes and names that are easily got wrong."""
    files = {
        "empty": b"",
        "README.md": b"# A model\n",
        "nested/deeper/still deeper/notes.txt": b"a\r\nb\n",
        "nested/größe/模型 ☃.txt": "ein Schneemann ☃".encode(),
        ".hidden": b"dot",
        "no tensors.safetensors": safetensors_bytes({}),
    }
    for label, size in (("block", BLOCK_BYTES), ("part", PART_BYTES), ("item", MIB)):
        for more in (-1, 0, 1):
            files[f"sizes/{label}{more:+d}.bin"] = seeded_bytes(size + more, seed=size + more)
    one = seeded_bytes(PART_BYTES, seed=7)
    files["shapes.safetensors"] = safetensors_bytes(
        {
            "layers.0.exact": ("U8", (PART_BYTES,), one),
            "layers.0.less": ("U8", (PART_BYTES - 1,), one[1:]),
            "layers.1.more": ("U8", (PART_BYTES + 1,), one + b"\1"),
            "layers.1.block": ("U8", (BLOCK_BYTES,), one[:BLOCK_BYTES]),
        }
    )
    return files
