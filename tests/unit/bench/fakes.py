"""Contenders for the harness's tests: one honest, and each way not to be."""

import os
from pathlib import Path

import numpy as np

from bench.contenders.worker import Tensors
from bench.tensors import read_header


def _tensors(folder: str) -> dict[str, np.ndarray]:
    tensors = {}
    for path in Path(folder).glob("*.safetensors"):
        data = np.fromfile(path, np.uint8)
        for spec, start in read_header(path).items():
            tensors[spec.name] = data[start : start + spec.size_bytes]
    return tensors


def _honest(folder: str) -> Tensors:
    print("what a library prints is no answer")
    return Tensors(_tensors(folder))


def _flips(folder: str) -> Tensors:
    tensors = _tensors(folder)
    tensors[max(tensors)][-1] ^= 1
    return Tensors(tensors)


def _swaps(folder: str) -> Tensors:
    names = sorted(tensors := _tensors(folder))
    return Tensors(dict(zip(names, [tensors[name] for name in names[::-1]], strict=True)))


def _leaves_out(folder: str) -> Tensors:
    tensors = _tensors(folder)
    del tensors[min(tensors)]
    return Tensors(tensors)


def _raises(folder: str) -> Tensors:
    raise OSError(f"can't read {Path(folder).name}")


def _dies(folder: str) -> Tensors:
    os.write(2, b"Segmentation fault\n")
    os._exit(1)


def _returns_nothing(folder: str) -> None:
    return None


honest = {"load": _honest, "push": lambda: {"new_bytes": 7}}
flips = {"load": _flips}
swaps = {"load": _swaps}
leaves_out = {"load": _leaves_out}
raises = {"load": _raises}
dies = {"load": _dies}
returns_nothing = {"load": _returns_nothing}
