"""The demo's models, and what it holds tensorkeep to: other programs' view of the same bytes."""

import filecmp
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import deserialize


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def same_trees(left: Path, right: Path) -> bool:
    """Return whether two folders hold the same files, byte for byte."""
    names = _files(left)
    if names != _files(right):
        return False
    _, differing, unreadable = filecmp.cmpfiles(left, right, names, shallow=False)
    return not differing and not unreadable


def tensors_of_library(folder: Path) -> dict[str, tuple[tuple[int, ...], npt.NDArray[np.uint8]]]:
    """Return shape and bytes of every tensor in a folder, as the safetensors library reads them."""
    return {
        name: (tuple(facts["shape"]), np.frombuffer(facts["data"], np.uint8))
        for path in sorted(folder.rglob("*.safetensors"))
        for name, facts in deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    }


def same_tensors(arrays: Mapping[str, npt.NDArray[Any]], folder: Path) -> bool:
    """Return whether arrays are, bit for bit, what the safetensors library reads from a folder."""
    wanted = tensors_of_library(folder)
    return arrays.keys() == wanted.keys() and all(
        arrays[name].shape == shape and np.array_equal(_bytes_of(arrays[name]), data)
        for name, (shape, data) in wanted.items()
    )


def changed_tensors(old: Path, new: Path) -> set[str]:
    """Return the names of tensors whose bytes differ between two folders, as the safetensors library reads them."""
    before = tensors_of_library(old)
    return {name for name, (_, data) in tensors_of_library(new).items() if not np.array_equal(data, before[name][1])}


def flip_byte(path: Path) -> int:
    """Flip every bit of the middle byte of a file that nobody should write, and return where it lies."""
    mode = path.stat().st_mode
    offset = path.stat().st_size // 2
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))
    path.chmod(mode)
    return offset


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _bytes_of(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
