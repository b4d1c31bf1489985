"""HDF5 and Keras files in memory, as h5py and Keras write them, and what h5py itself reads in them."""

import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import numpy.typing as npt

NUMBERS = ("?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8")
OTHER_NUMBERS = (">i2", ">u4", ">i8", ">f2", ">f4", ">f8", ">c8", "<c16", ">c16", "<f16", "<c32")


class Bytes:
    """A byte source over bytes in memory, which counts what is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.bytes_read = 0

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self.data), "a reader must not read past the end"
        self.bytes_read += length
        return self.data[offset : offset + length]


class _Growing(io.BytesIO):
    """A file in memory that `truncate` can make longer, as a file on disk."""

    def truncate(self, size: int | None = None, /) -> int:
        missing = (self.tell() if size is None else size) - len(self.getbuffer())
        if missing > 0:
            self.seek(0, io.SEEK_END)
            self.write(bytes(missing))
        return super().truncate(size)


def hdf5_file(fill: Callable[[Any], None], **options: Any) -> bytes:
    """Return an HDF5 file that ``fill`` wrote into."""
    file = _Growing()
    with h5py.File(file, "w", **options) as opened:
        fill(opened)
    return file.getvalue()


def some_numbers(dtype: npt.DTypeLike, shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[Any]:
    """Return seeded numbers of any dtype and shape."""
    kind = np.dtype(dtype)
    return np.random.default_rng(seed).integers(0, 100, shape).astype(kind)


def write_everything(file: Any) -> None:
    """Write every kind of dataset that is a tensor, and what is none beside it."""
    for seed, dtype in enumerate(NUMBERS + OTHER_NUMBERS):
        group = file.create_group(f"layers/{seed}")
        name = np.dtype(dtype).str
        group.create_dataset(f"matrix {name}", data=some_numbers(dtype, (7, 5), seed))
        group.create_dataset(f"scalar {name}", data=some_numbers(dtype, (), seed))
        group.create_dataset(f"empty {name}", data=some_numbers(dtype, (0, 5), seed))
        group.attrs["weights"] = some_numbers(dtype, (3,))
    file.attrs["keras_version"] = "3.9.0"
    file["one chunk"] = file.create_dataset("chunked", data=some_numbers("f4", (6, 4)), chunks=(6, 4))
    file["größe/模型"] = some_numbers("i8", (3, 1, 2))
    file["of rows"] = _rows(file)
    file["names"] = ["a", "bc"]


def _rows(file: Any) -> Any:
    rows = file.create_dataset("rows", (3,), np.dtype(("<f4", (2, 2))))
    rows[...] = some_numbers("<f4", (3, 2, 2))
    return rows


def write_weights(file: Any) -> None:
    """Write what Keras 3 writes for two layers and an optimizer: ``…/vars/0``."""
    for layer in ("layers/dense", "layers/dense_1"):
        variables = file.create_group(layer).create_group("vars")
        variables["0"] = some_numbers("f4", (16, 8))
        variables["1"] = some_numbers("f4", (8,))
        file[layer].create_group("empty").create_group("vars")
    half = file.create_group("layers/half").create_group("vars")
    half.create_dataset("0", data=some_numbers(ml_dtypes.bfloat16, (4, 3)))
    half["0"].attrs["dtype"] = "bfloat16"
    file.create_group("optimizer").create_group("vars")["0"] = np.int64(12)


def keras_file(weights: bytes, *, method: int = zipfile.ZIP_STORED, others: Mapping[str, bytes] | None = None) -> bytes:
    """Return a ``.keras`` archive, its members in Keras's order."""
    file = io.BytesIO()
    members = {"metadata.json": b'{"keras_version": "3.9.0"}', "config.json": b"{}", "model.weights.h5": weights}
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in (members | dict(others or {})).items():
            archive.writestr(name, data)
    return file.getvalue()


def arrays_of(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return every dataset that h5py reads as numbers, bfloat16 as Keras reads it."""
    arrays: dict[str, npt.NDArray[Any]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            value = item[...] if item.shape is not None else np.array(None)
            if item.attrs.get("dtype") == "bfloat16":
                value = value.view(ml_dtypes.bfloat16)
            if value.dtype.kind in "biufcV":
                arrays[name] = value

    with h5py.File(io.BytesIO(data), "r") as file:
        file.visititems_links(lambda name, link: visit(name, file[name]))
    return arrays
