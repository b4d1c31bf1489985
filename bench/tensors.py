"""Tensors made from a seed, and the safetensors files that they are streamed into.

Weights look like trained ones to a compressor: bf16 values of a normal distribution with deviation 0.02. Each tensor's
bytes follow from the seed and its name alone, in chunks of bounded memory, at about 1 GB/s a core.

Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 4 << 20
ITEM_BYTES = {"BF16": 2, "F32": 4}
_LAYER = re.compile(r"\.layers\.(\d+)\.")

Chunk = npt.NDArray[np.uint8]


class TensorSpec(NamedTuple):
    """A tensor without its bytes; dtype as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def layer(self) -> int | None:
        """The number of its layer, or None."""
        return int(found[1]) if (found := _LAYER.search(self.name)) else None


def filled(spec: TensorSpec, seed: int) -> Iterator[Chunk]:
    """Yield a tensor's bytes, chunk by chunk: normal weights, or about one where it is a norm."""
    random = _random(spec, seed)
    table = _norm_weights() if spec.name.endswith("norm.weight") else _normal_weights()
    for size in _chunk_sizes(spec.size_bytes):
        if spec.dtype == "BF16":
            yield table[_uint16(random, size // 2)].view(np.uint8)
        else:
            high = table[_uint16(random, size // 4)].astype("<u4") << 16
            yield (high | _uint16(random, size // 4)).view(np.uint8)


def altered(spec: TensorSpec, chunks: Iterator[Chunk], seed: int) -> Iterator[Chunk]:
    """Yield a tensor's bytes with a small change on every element: 1 to 3 flipped into the last two bits."""
    random = _random(spec, seed)
    width = 8 * ITEM_BYTES[spec.dtype]
    ones = np.uint64(sum(1 << bit for bit in range(0, 64, width)))
    for chunk in chunks:
        flips = random.random_raw(-(-chunk.nbytes // 8)) & (ones * np.uint64(3))
        flips |= ~(flips | flips >> np.uint64(1)) & ones  # none stays zero, so that every element changes
        yield chunk ^ flips.view(np.uint8)[: chunk.nbytes]


def stored(spec: TensorSpec, path: Path, start: int) -> Iterator[Chunk]:
    """Yield a tensor's bytes as they lie in a file from ``start``."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        for size in _chunk_sizes(spec.size_bytes):
            chunk = np.empty(size, np.uint8)
            if file.readinto(chunk.data) != size:
                raise EOFError(f"{path} ends inside tensor {spec.name}")
            yield chunk


def write_safetensors(
    path: Path, specs: Sequence[TensorSpec], content: Callable[[TensorSpec], Iterator[Chunk]]
) -> None:
    """Write a safetensors file, tensors in the order of names, as the reference library does."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    ordered = sorted(specs, key=lambda spec: (-ITEM_BYTES[spec.dtype], spec.name))
    for spec in ordered:
        end = start + spec.size_bytes
        header[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=1 << 20) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in ordered:
            for chunk in content(spec):
                file.write(chunk.data)


def read_header(path: Path) -> dict[TensorSpec, int]:
    """Return the tensors of a safetensors file that this module wrote, and where in the file each starts, in order."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        TensorSpec(name, facts["dtype"], tuple(facts["shape"])): 8 + length + facts["data_offsets"][0]
        for name, facts in header.items()
        if name != "__metadata__"
    }


def _random(spec: TensorSpec, seed: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(spec.name.encode())]))


def _uint16(random: np.random.PCG64, count: int) -> npt.NDArray[np.uint16]:
    return random.random_raw(-(-count // 4)).view("<u2")[:count]


def _chunk_sizes(size_bytes: int) -> Iterator[int]:
    for start in range(0, size_bytes, CHUNK_BYTES):
        yield min(CHUNK_BYTES, size_bytes - start)


@cache
def _normal_weights() -> npt.NDArray[np.uint16]:
    """Return the bits of 65,536 bf16 values, each as likely as the other: drawing a number draws a weight."""
    return _bfloat16_bits(_normal_values())


@cache
def _norm_weights() -> npt.NDArray[np.uint16]:
    return _bfloat16_bits(_normal_values() + np.float32(1))


@cache
def _normal_values() -> npt.NDArray[np.float32]:
    normal = NormalDist(0.0, 0.02)
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32)


def _bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits: npt.NDArray[np.uint16] = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return bits
