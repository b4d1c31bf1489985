"""Files of ``torch.save``, by torch itself and by hand: archives around pickles that are put together from opcodes."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.protocol import FileStructure
from tensorkeep.formats.pytorch import PyTorchReader


class BytesSource:
    """A byte source over bytes in memory; reading past their end is an error of the test."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        assert offset + length <= len(self.data)
        return self.data[offset : offset + length]


def read(data: bytes, path: str = "model.pt") -> FileStructure:
    """Return what the reader says of a file; what it says holds together."""
    structure = PyTorchReader().read_structure(path, BytesSource(data))
    check_structure(structure, len(data))
    assert (structure.format == "pytorch") or (structure.note and not structure.tensors)
    return structure


def saved(value: Any, **options: Any) -> bytes:
    """Return the file that torch writes for a value."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def zip_file(members: Mapping[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip file with these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression=method) as written:
        for name, data in members.items():
            written.writestr(name, data)
    return file.getvalue()


def archive(
    data_pkl: bytes,
    members: Mapping[str, bytes] | None = None,
    *,
    root: str = "archive",
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    """Return a zip file with this ``data.pkl`` and other members below ``root``; a storage of 64 bytes if none are given."""
    others = {"data/0": bytes(range(64))} if members is None else members
    return zip_file(
        {f"{root}/{name}": data for name, data in ({"data.pkl": data_pkl} | dict(others)).items()}, method=method
    )


# ---------------------------------------------------------------------- pieces of pickles: each leaves one value on the stack

PROTO = b"\x80\x02"
STOP = b"."


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Return any integer, as pickle writes it."""
    return pickle.dumps(value, 2)[2:-1]


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def a_tuple(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def a_dict(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def a_list(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def call(module: str, function: str, *arguments: bytes) -> bytes:
    return name(module, function) + a_tuple(*arguments) + b"R"


def numbers(*values: int) -> bytes:
    return a_tuple(*map(number, values))


def storage(
    key: str = "0",
    numel: int = 16,
    kind: tuple[str, str] = ("torch", "FloatStorage"),
    location: str = "cpu",
    word: str = "storage",
) -> bytes:
    return a_tuple(text(word), name(*kind), text(key), text(location), number(numel)) + b"Q"


def tensor(
    of: bytes | None = None,
    *,
    offset: bytes | int = 0,
    shape: bytes | tuple[int, ...] = (4, 4),
    strides: bytes | tuple[int, ...] = (4, 1),
    more: tuple[bytes, ...] = (),
) -> bytes:
    """Return a call of ``_rebuild_tensor_v2``, of 16 floats where nothing else is said."""
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage() if of is None else of,
        number(offset) if isinstance(offset, int) else offset,
        numbers(*shape) if isinstance(shape, tuple) else shape,
        numbers(*strides) if isinstance(strides, tuple) else strides,
        b"\x89",
        call("collections", "OrderedDict"),
        *more,
    )


def program(value: bytes) -> bytes:
    """Return a whole pickle of protocol 2 around what leaves one value."""
    return PROTO + value + STOP
