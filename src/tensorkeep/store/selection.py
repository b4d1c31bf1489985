"""Which tensors of a version a user means: by name, dtype, shape, size and layer; pure functions over `TensorInfo`."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.layers import layer_path, usual_role
from tensorkeep.store.reports import TensorInfo

ShapePattern = tuple[int | None, ...]
"""A shape in which None stands for any size."""

_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True)
class TensorFilter:
    """What a tensor must be to be meant.

    Of the values of one field one must fit; all fields that are not empty must. ``names`` and ``dtypes`` are globs, dtypes
    without regard to case. ``layers`` are layers' numbers, or globs over their names (``model.layers.*``). Sizes are
    inclusive.
    """

    names: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    shapes: Sequence[ShapePattern] = ()
    layers: Sequence[str] = ()
    min_size_bytes: int | None = None
    max_size_bytes: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every tensor fits."""
        lists = (self.names, self.dtypes, self.shapes, self.layers)
        return not any(lists) and self.min_size_bytes is None and self.max_size_bytes is None

    def fits(self, tensor: TensorInfo) -> bool:
        """Return whether a tensor is meant."""
        dtype = tensor.dtype.upper()
        return (
            (self.min_size_bytes is None or tensor.size_bytes >= self.min_size_bytes)
            and (self.max_size_bytes is None or tensor.size_bytes <= self.max_size_bytes)
            and (not self.names or any(fnmatchcase(tensor.name, glob) for glob in self.names))
            and (not self.dtypes or any(fnmatchcase(dtype, glob.upper()) for glob in self.dtypes))
            and (not self.shapes or any(_fits_shape(tensor.shape, pattern) for pattern in self.shapes))
            and (not self.layers or any(_fits_layer(tensor, wanted) for wanted in self.layers))
        )


def select_tensors(tensors: Iterable[TensorInfo], wanted: TensorFilter, *, sort: str | None = None) -> list[TensorInfo]:
    """Return the tensors that are meant: in their order, or sorted by ``name`` (numbers as such) or ``size`` (largest first).

    Raises:
        InvalidInput: there is no such way to sort.
    """
    chosen = [tensor for tensor in tensors if wanted.fits(tensor)]
    if sort is None:
        return chosen
    if sort not in _SORTS:
        raise InvalidInput(f"tensors can't be sorted by {sort!r}: use {' or '.join(_SORTS)}", sort=sort)
    return sorted(chosen, key=_SORTS[sort])


def layer_name(tensor: TensorInfo) -> str | None:
    """Return the name of a tensor's layer: its own up to the number, like ``model.layers.0``; None where it has none."""
    prefix, name = _split_path(tensor)
    path = layer_path(name)
    return None if path is None else prefix + path


def natural_key(name: str) -> list[Any]:
    """Return what sorts names as people do: ``layers.2`` before ``layers.10``."""
    # Numbers by length, then digit by digit: a name may have more digits than Python turns into an int.
    parts = [(part, part.lstrip("0")) for part in _DIGITS.split(name) if part]
    return [(0, len(n), n, part) if _DIGITS.match(part) else (1, 0, "", part) for part, n in parts]


def _fits_shape(shape: Sequence[int], pattern: ShapePattern) -> bool:
    return len(shape) == len(pattern) and all(
        size == wanted for size, wanted in zip(shape, pattern, strict=True) if wanted is not None
    )


def _fits_layer(tensor: TensorInfo, wanted: str) -> bool:
    name = layer_name(tensor)
    if name is None:
        return False
    if wanted.isdecimal() and wanted.isascii():
        layer = usual_role(_split_path(tensor)[1]).layer
        return layer is not None and layer.number == int(wanted)
    return fnmatchcase(name, wanted)


def _split_path(tensor: TensorInfo) -> tuple[str, str]:
    """Return the ``path::`` that a name may start with, and the name in the file."""
    prefix = f"{tensor.file}::"
    return (prefix, tensor.name.removeprefix(prefix)) if tensor.name.startswith(prefix) else ("", tensor.name)


_SORTS: dict[str, Callable[[TensorInfo], Any]] = {
    "name": lambda tensor: natural_key(tensor.name),
    "size": lambda tensor: (-tensor.size_bytes, natural_key(tensor.name)),
}
