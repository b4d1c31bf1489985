"""The functions and classes that a pickle of ``torch.save`` may name, and the inert records that they make here.

The list holds what ``torch.load(weights_only=True)`` allows by default, as far as it can be described by a byte range of the
file, and a few classes of plain values besides that checkpoints often hold. It is a table of names: nothing in it refers to
torch, which need not be installed.

Source: ``_weights_only_unpickler.py``, ``_utils.py``, ``storage.py`` and ``serialization.py`` of torch 2.13.0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tensorkeep.errors import Format
from tensorkeep.formats.pickle_machine import Known, Pairs, Plain

_MAX_SHOWN = 80


@dataclass(frozen=True, slots=True, eq=False)
class TorchDtype(Known):
    """A dtype of torch: our name for it, and the bytes of one element."""

    dtype: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class StorageType(Known):
    """A class of storages, and the dtype of what lies in them (bytes, where it has none)."""

    element: TorchDtype = TorchDtype("torch.uint8", dtype="U8", size_bytes=1)


class Storage(NamedTuple):
    """The bytes of one or more tensors: the member of the archive that holds them, and their number in elements."""

    key: str
    kind: StorageType
    numel: int


class Tensor(NamedTuple):
    """A tensor as the pickle describes it, unchecked: ``offset`` and ``strides`` in elements.

    ``rest`` is what else it holds: hooks, attributes. What is made here never copies what it is made from: a pickle can
    name the same long list a million times.
    """

    storage: Storage
    dtype: TorchDtype
    offset: object
    shape: object
    strides: object
    rest: tuple[object, ...]


def find_global(module: str, name: str) -> Known:
    """Return the entry of a name.

    Raises:
        Format: it is not on the list; half a sentence that names it.
    """
    if (found := _GLOBALS.get((module, name))) is not None:
        return found
    if (reason := _REASONS.get((module, name))) is not None:
        raise Format(reason)
    raise Format(f"its pickle needs {show(f'{module}.{name}')}")


def find_storage(reference: object) -> Storage:
    """Return the storage that a persistent id refers to: ``("storage", type, key, location, number of elements)``.

    Raises:
        Format: it is no such reference, or the storage has no bytes.
    """
    if type(reference) is tuple and len(reference) == 5:
        word, kind, key, location, count = reference
        if type(word) is type(key) is type(location) is str and word == "storage" and isinstance(kind, StorageType):
            if location == "meta":
                raise Format("it holds tensors without data (on the device 'meta')")
            if type(count) is int and count >= 0:
                return Storage(key, kind, count)
    raise Format("its pickle refers to something that is no storage of torch.save")


def show(text: str, *, limit: int = _MAX_SHOWN) -> str:
    """Return a text of a hostile file as it may stand in a message: printable, and not too long."""
    shown = "".join(character if character.isprintable() else "?" for character in text[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + "..."


# ---------------------------------------------------------------------- what the names make

_Arguments = tuple[object, ...]


def _plain(arguments: _Arguments) -> Plain:
    return Plain((arguments,))


def _pairs(arguments: _Arguments) -> Pairs:
    """A dictionary of a class: made empty and filled later, or of another one."""
    match arguments:
        case () | (Known(),) | (None,):  # defaultdict names what makes its values
            return Pairs()
        case (Pairs() as items,):
            return items
    raise _unusual("a dictionary")


def _size(arguments: _Arguments) -> tuple[object, ...]:
    match arguments:
        case (tuple() as sizes,):
            return sizes
    raise _unusual("torch.Size")


def _tensor(arguments: _Arguments) -> Tensor:
    match arguments:
        case (Storage() as storage, offset, shape, strides):
            return Tensor(storage, storage.kind.element, offset, shape, strides, ())
    raise _unusual("_rebuild_tensor")


def _tensor_v2(arguments: _Arguments) -> Tensor:
    match arguments:
        case (Storage() as storage, offset, shape, strides, _, hooks):
            return Tensor(storage, storage.kind.element, offset, shape, strides, (hooks,) if hooks else ())
        case (Storage(), _, _, _, _, _, metadata):
            _check_metadata(metadata)
            return _tensor_v2(arguments[:-1])
    raise _unusual("_rebuild_tensor_v2")


def _tensor_v3(arguments: _Arguments) -> Tensor:
    match arguments:
        case (Storage() as storage, offset, shape, strides, _, hooks, TorchDtype() as dtype):
            return Tensor(storage, dtype, offset, shape, strides, (hooks,) if hooks else ())
        case (Storage(), _, _, _, _, _, TorchDtype(), metadata):
            _check_metadata(metadata)
            return _tensor_v3(arguments[:-1])
    raise _unusual("_rebuild_tensor_v3")


def _parameter(arguments: _Arguments) -> Tensor:
    match arguments:
        case (Tensor() as data, _, hooks):
            return data._replace(rest=(data.rest, hooks)) if hooks else data
        case (Tensor() as data, _, hooks, state):
            return data._replace(rest=(data.rest, hooks, state)) if hooks or state else data
    raise _unusual("_rebuild_parameter")


def _typed(arguments: _Arguments) -> Tensor:
    """A tensor with attributes; of torch's own classes only, because others say themselves what their bytes mean."""
    match arguments:
        case (Known(make=make), Known() as kind, tuple() as inner, state) if make in _TENSORS and kind in _TENSOR_TYPES:
            assert make is not None
            made = make(inner)
            assert isinstance(made, Tensor)
            return made._replace(rest=(made.rest, state)) if state else made
    raise _unusual("_rebuild_from_type_v2")


def _check_metadata(bits: object) -> None:
    """Return if a tensor's bytes are its values: no conjugation or negation is still to be done."""
    harmless = type(bits) is Pairs and len(bits) <= 4 and all(bit is False for bit in bits[1::2])
    if bits is not None and not harmless:
        raise Format("it holds a tensor that is stored conjugated or negated")


def _unusual(what: str) -> Format:
    return Format(f"its pickle calls {what} in a way that torch.save does not write")


# ---------------------------------------------------------------------- the list

_DTYPES = {
    "bool": ("BOOL", 1),
    "uint8": ("U8", 1),
    "int8": ("I8", 1),
    "float4_e2m1fn_x2": ("F4", 1),  # an element of torch is two of ours
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
    "int16": ("I16", 2),
    "uint16": ("U16", 2),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int32": ("I32", 4),
    "uint32": ("U32", 4),
    "float32": ("F32", 4),
    "complex64": ("C64", 8),
    "float64": ("F64", 8),
    "int64": ("I64", 8),
    "uint64": ("U64", 8),
    "complex128": ("NPY:<c16", 16),
}

_STORAGES = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}

_DICTIONARIES = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")

_PLAIN = (
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "complex", "bytearray")
    ),
    "_codecs.encode",
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "torch.device",
)
"""Classes of values that hold no array; ``_codecs.encode`` makes the bytes of a pickle of protocol 2."""

_ONLY_NAMED = tuple(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("dict", "list", "tuple", "int", "float", "bool", "str", "object")
)

_REBUILD: dict[str, Callable[[_Arguments], object]] = {
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
}

_TENSORS = (_tensor, _tensor_v2, _tensor_v3, _parameter)
_TENSOR_TYPES = tuple(
    Known(name) for name in ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
)


def _entries() -> list[Known]:
    dtypes = {name: TorchDtype(f"torch.{name}", None, *facts) for name, facts in _DTYPES.items()}
    return [
        *dtypes.values(),
        *(
            StorageType(f"{module}.{name}", None, dtypes[element])
            for module in ("torch", "torch.cuda", "torch.storage")
            for name, element in _STORAGES.items()
        ),
        *(StorageType(f"{module}.UntypedStorage") for module in ("torch", "torch.storage")),
        *(Known(name, _pairs) for name in _DICTIONARIES),
        *(Known(name, _plain) for name in _PLAIN),
        *(Known(name) for name in _ONLY_NAMED),
        *(Known(name, make) for name, make in _REBUILD.items()),
        *_TENSOR_TYPES,
    ]


def _split(name: str) -> tuple[str, str]:
    module, _, last = name.rpartition(".")
    return module, last


_GLOBALS: dict[tuple[str, str], Known] = {_split(entry.name): entry for entry in _entries()}

_QUANTIZED = "it holds quantized tensors, whose scales lie in its pickle"
_REASONS: dict[tuple[str, str], str] = {
    _split(name): reason
    for reason, names in {
        _QUANTIZED: (
            "torch._utils._rebuild_qtensor",
            *(f"torch.{name}" for name in ("qint8", "qint32", "quint8", "quint4x2", "quint2x4")),
            *(f"torch.{name}Storage" for name in ("QInt8", "QInt32", "QUInt8", "QUInt4x2", "QUInt2x4")),
        ),
        "it holds sparse tensors": ("torch._utils._rebuild_sparse_tensor", "torch.serialization._get_layout"),
        "it holds nested tensors": (
            "torch._utils._rebuild_nested_tensor",
            "torch.nested._internal.nested_tensor._rebuild_njt",
            "torch.nested._internal.nested_tensor.NestedTensor",
        ),
        "it holds tensors without data (on the device 'meta')": ("torch._utils._rebuild_meta_tensor_no_storage",),
        "it holds numpy arrays, whose bytes lie in its pickle": (
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.numeric._frombuffer",
            "numpy.core.numeric._frombuffer",
        ),
        "it holds tensors of complex32, which has no name outside torch": ("torch.complex32",),
    }.items()
    for name in names
}
"""Why a name is not on the list, where that says more than the name."""
