"""What the PyTorch reader finds in files of torch, and what it says of the others."""

import collections
import io
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.formats import pickle_machine, pytorch, torch_tree
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.formats.protocol import TensorLayout
from tensorkeep.formats.pytorch import PyTorchReader
from tests.unit.formats.torch_files import (
    a_dict,
    a_list,
    a_tuple,
    archive,
    call,
    name,
    number,
    numbers,
    program,
    read,
    saved,
    storage,
    tensor,
    text,
    zip_file,
)

DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
    "complex128": "NPY:<c16",
}


def layouts(value: Any, **options: Any) -> dict[str, TensorLayout]:
    """Return the layouts by name of what torch saves for a value; each holds the tensor's bytes."""
    structure = read(saved(value, **options))
    assert structure.format == "pytorch", structure.note
    return {layout.name: layout for layout in structure.tensors}


@pytest.mark.parametrize(
    ("path", "claimed"),
    [("a/b.pt", True), ("B.PTH", True), ("pytorch_model.bin", True), ("x.ckpt", True), ("x.pt2", False), ("pt", False)],
)
def test_files_are_claimed_by_their_ending(path: str, claimed: bool) -> None:
    assert PyTorchReader().claims(path) is claimed


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_checkpoint_of_any_protocol_gives_its_tensors_by_their_keys(protocol: int) -> None:
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    value = {
        "model": collections.OrderedDict({"0.weight": weight, "0.bias": torch.zeros(3)}),
        "optimizer": {
            "state": {0: {"step": torch.tensor(1.0)}, 11: {"step": torch.tensor(2.0)}},
            "param_groups": [{"lr": 0.1}],
        },
        "many": [torch.ones(1), (torch.ones(2), {"x": torch.ones(3)})],
        "epoch": 3,
        "text": "größe",
        "big": 1 << 100,
        "nothing": None,
        "bytes": b"abc",
    }
    data = saved(value, pickle_protocol=protocol)
    structure = read(data)
    assert sorted(layout.name for layout in structure.tensors) == [
        "many.0",
        "many.1.0",
        "many.1.1.x",
        "model.0.bias",
        "model.0.weight",
        "optimizer.state.0.step",
        "optimizer.state.11.step",
    ]
    found = next(layout for layout in structure.tensors if layout.name == "model.0.weight")
    assert found[1:4] == ("F32", (2, 3), None)
    assert data[found.start : found.start + found.length] == weight.numpy().tobytes()
    assert list(structure.tensors) == sorted(
        structure.tensors, key=lambda layout: (layout.start, layout.length, layout.name)
    )


def test_a_tensor_alone_has_the_name_of_its_file() -> None:
    data = saved(torch.ones(2, 3))
    assert [layout.name for layout in read(data, "sub/folder/mask.v2.pt").tensors] == ["mask.v2"]
    assert [layout.name for layout in read(data, "vector.pth").tensors] == ["vector"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_its_name(dtype: str) -> None:
    data = torch.arange(48, dtype=torch.uint8)
    found = layouts({"x": data.view(getattr(torch, dtype)) if dtype != "bool" else data > 7})["x"]
    assert found.dtype == DTYPES[dtype]
    assert found.length == 48


def test_float4_counts_elements_and_torch_counts_bytes() -> None:
    packed = torch.arange(24, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(4, 6)
    found = layouts({"x": packed})["x"]
    assert found[1:4] == ("F4", (4, 12), None)
    assert found.length == 24
    assert "4-bit" in read(saved({"x": packed.t()})).note
    assert "4-bit" in read(saved({"x": packed[0, 0]})).note


def test_views_share_bytes_and_keep_their_strides() -> None:
    base = torch.arange(24, dtype=torch.int32).reshape(4, 6)
    found = layouts(
        {
            "base": base,
            "tied": base,
            "transposed": base.t(),
            "rows": base[1:3],
            "columns": base[:, 2:4],
            "stepped": base[::2, ::3],
            "expanded": base[0, :1].expand(5, 3),
            "one": base[3, 5],
            "ones": base[1:2, 4:5],
            "empty": base[2:2],
        }
    )
    start = found["base"].start
    facts = {
        name: (layout.shape, layout.strides, layout.start - start, layout.length) for name, layout in found.items()
    }
    assert facts == {
        "base": ((4, 6), None, 0, 96),
        "tied": ((4, 6), None, 0, 96),
        "transposed": ((6, 4), (1, 6), 0, 96),
        "rows": ((2, 6), None, 24, 48),
        "columns": ((4, 2), (6, 1), 8, 80),
        "stepped": ((2, 2), (12, 3), 0, 64),
        "expanded": ((5, 3), (0, 0), 0, 4),
        "one": ((), None, 92, 4),
        "ones": ((1, 1), None, 40, 4),
        "empty": ((0, 6), None, 48, 0),
    }


def test_parameters_buffers_and_tensors_with_attributes_are_tensors() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    marked = torch.nn.Parameter(torch.ones(4))
    marked.note = "of no concern"  # type: ignore[attr-defined]
    tagged = torch.ones(5)
    tagged.note = {"lr": 0.1}  # type: ignore[attr-defined]
    buffer = torch.nn.Buffer(torch.ones(6))
    found = layouts({"parameter": parameter, "marked": marked, "tagged": tagged, "buffer": buffer})
    assert {name: layout.shape for name, layout in found.items()} == {
        "parameter": (3,),
        "marked": (4,),
        "tagged": (5,),
        "buffer": (6,),
    }


def test_values_that_are_no_tensors_are_left_out() -> None:
    value = {
        "args": Namespace(lr=0.1, betas=(0.9, 0.99)),
        "counter": collections.Counter("abca"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "set": {1, 2},
        "frozen": frozenset({1}),
        "complex": 1j,
        "dtype": torch.bfloat16,
        "device": torch.device("cuda:1"),
        "size": torch.Size([2, 3]),
        "scalar": np.float64(0.5),
        "bytes": bytearray(b"xyz"),
        (1, "two"): True,
        "x": torch.ones(1),
    }
    for protocol in (2, 4):
        assert list(layouts(value, pickle_protocol=protocol)) == ["x"]


def test_a_module_state_with_its_metadata_is_read() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    assert sorted(layouts(model.state_dict())) == sorted(model.state_dict())


def test_a_checkpoint_without_tensors_is_one() -> None:
    values: list[Any] = [{}, [], None, 7, "text"]
    for value in values:
        assert layouts(value) == {}


def test_the_folder_of_the_archive_may_have_any_name() -> None:
    assert [x.name for x in read(archive(program(a_dict(x=tensor())), root="größe (1)")).tensors] == ["x"]


# ---------------------------------------------------------------------- files that are something else


def tar_file() -> bytes:
    return bytes(257) + b"ustar\0" + bytes(300)


ZIP = archive(program(a_dict(x=tensor())))

FOREIGN = {
    "empty": (b"", "no zip file of torch.save"),
    "short": (b"P", "no zip file of torch.save"),
    "image": (b"\x89PNG\r\n\x1a\n", "no zip file of torch.save"),
    "zeros": (bytes(100_000), "no zip file of torch.save"),
    "legacy": (saved({"x": torch.ones(2)}, _use_new_zipfile_serialization=False), "from before 1.6"),
    "tar": (tar_file(), "from before 1.6"),
    "bare pickle": (pickle.dumps({"x": 1}), "no zip file of torch.save"),
    "cut": (ZIP[:-30], "end record"),
    "half": (ZIP[: len(ZIP) // 2], "end record"),
    "no folder": (zip_file({"data.pkl": b"N."}), "not of torch.save"),
    "no pickle": (zip_file({"archive/data/0": b"N."}), "not of torch.save"),
    "two roots": (zip_file({"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "not of torch.save"),
    "script": (archive(b"N.", {"constants.pkl": b"N."}), "TorchScript"),
    "script code": (archive(b"N.", {"code/__torch__.py": b""}), "TorchScript"),
    "big-endian": (archive(b"N.", {"byteorder": b"big"}), "'big', not 'little'"),
    "odd order": (archive(b"N.", {"byteorder": b"middle\n"}), "'middle?'"),
    "long order": (archive(b"N.", {"byteorder": b"little" * 100}), "not 'little'"),
    "compressed": (archive(b"N." * 100, method=zipfile.ZIP_DEFLATED), "compressed"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_opaque_and_says_what_it_is(kind: str) -> None:
    data, words = FOREIGN[kind]
    structure = read(data)
    assert structure.format == OPAQUE
    assert words in structure.note
    assert len(structure.note) < 250


def test_a_compressed_storage_is_opaque() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("a/data.pkl", program(a_dict(x=tensor())))
        written.writestr("a/data/0", bytes(64), compress_type=zipfile.ZIP_DEFLATED)
    assert "storage '0' is compressed" in read(file.getvalue()).note


def test_a_file_that_shrinks_is_an_error_of_the_push_not_a_note() -> None:
    class Shrinking:
        size_bytes = 1000

        def read(self, offset: int, length: int) -> bytes:
            raise InvalidInput("it shrank")

    with pytest.raises(InvalidInput, match="shrank"):
        PyTorchReader().read_structure("x.pt", Shrinking())


TORCH_VALUES: dict[str, tuple[Callable[[], Any], str]] = {
    "numpy array": (lambda: {"a": np.arange(3)}, "numpy arrays"),
    "sparse": (lambda: {"a": torch.eye(3).to_sparse()}, "sparse"),
    "csr": (lambda: {"a": torch.eye(3).to_sparse_csr()}, "sparse"),
    "quantized": (lambda: {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "quantized"),
    "nested": (lambda: {"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, "nested"),
    "jagged": (lambda: {"a": torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged)}, "nested"),
    "meta": (lambda: {"a": torch.ones(3, device="meta")}, "without data"),
    "conjugate": (lambda: {"a": torch.ones(3, dtype=torch.complex64).conj()}, "conjugated or negated"),
    "negative": (lambda: {"a": torch.ones(3, dtype=torch.complex64).conj().imag}, "conjugated or negated"),
    "complex32": (lambda: {"a": torch.zeros(2, dtype=torch.complex32)}, "complex32"),
    "bits": (lambda: {"a": torch.zeros(4, dtype=torch.uint8).view(torch.bits8)}, "torch.bits8"),
    "storage": (lambda: {"a": torch.ones(3).untyped_storage()}, "storage that is no tensor"),
    "storage alone": (lambda: torch.ones(3).untyped_storage(), "storage that is no tensor"),
    "class": (lambda: {"a": torch.nn.ReLU(), "b": torch.ones(2)}, "needs torch.nn.modules.activation.ReLU"),
    "tensor in a set": (lambda: {"a": {torch.ones(2)}}, "no name"),
    "tensor as a key": (lambda: {torch.ones(2): 1}, "no name"),
    "key of many": (lambda: {(1, 2): torch.ones(2)}, "no name"),
    "key of a fraction": (lambda: {1.5: torch.ones(2)}, "no name"),
    "key of truth": (lambda: {True: torch.ones(2)}, "no name"),
    "namespace": (lambda: Namespace(x=torch.ones(2)), "no name"),
    "one name twice": (lambda: {"a.b": torch.ones(2), "a": {"b": torch.ones(3)}}, "tensors have the name 'a.b'"),
    "1 and '1'": (lambda: {1: torch.ones(2), "1": torch.ones(3)}, "tensors have the name '1'"),
    "surrogate": (lambda: {"\ud800": torch.ones(2)}, "not valid Unicode"),
}


@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning"
)  # torch says which of these are in beta
@pytest.mark.parametrize("kind", TORCH_VALUES)
def test_what_byte_ranges_cannot_describe_is_opaque_and_says_why(kind: str) -> None:
    make, words = TORCH_VALUES[kind]
    structure = read(saved(make()))
    assert structure.format == OPAQUE
    assert words in structure.note


def test_a_tensor_that_hangs_on_a_tensor_is_not_lost_silently() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.other = torch.ones(4)  # type: ignore[attr-defined]
    assert "no name" in read(saved({"a": parameter})).note
    assert "no name" in read(saved(parameter)).note
    state = collections.OrderedDict({"x": torch.ones(1)})
    state._metadata = {"y": torch.ones(2)}  # type: ignore[attr-defined]
    assert "no name" in read(saved(state)).note


# ---------------------------------------------------------------------- pickles that lie

HUGE = 1 << 62

LIES = {
    "reaches out": (tensor(shape=(4, 5), strides=(5, 1)), "reaches to element 20 of a storage that has 16"),
    "starts out": (tensor(offset=1), "reaches to element 17"),
    "strides out": (tensor(strides=(5, 1)), "reaches to element 19"),
    "huge offset": (tensor(offset=1 << 70), "reaches"),
    "huge shape": (tensor(shape=(1 << 40, 1 << 40), strides=(0, 0)), "overflows"),
    "huge empty shape": (tensor(shape=(0, 1 << 40, 1 << 40), strides=(1, 1, 1)), "overflows"),
    "huge stride": (tensor(strides=(HUGE, 1)), "no possible shape or strides"),
    "expanded": (tensor(shape=(1 << 40,), strides=(0,)), "expanded to 4398046511104 bytes"),
    "negative offset": (tensor(offset=-1), "no possible offset"),
    "offset of truth": (tensor(offset=b"\x88"), "no possible offset"),
    "negative shape": (tensor(shape=(-4, 4)), "no possible shape"),
    "negative stride": (tensor(strides=(-4, 1)), "no possible shape or strides"),
    "too few strides": (tensor(strides=(1,)), "no possible shape or strides"),
    "rank 65": (tensor(shape=(1,) * 65, strides=(1,) * 65), "no possible shape"),
    "shape of floats": (tensor(shape=a_tuple(b"G" + bytes(8))), "no possible shape"),
    "shape is a list": (tensor(shape=a_list(number(4))), "no possible shape"),
    "shape is a storage": (tensor(shape=storage()), "no possible shape"),
    "no such storage": (tensor(storage("9")), "storage '9' is not in the archive"),
    "storage outside": (tensor(storage("../data.pkl")), "is not in the archive"),
    "short storage": (tensor(storage(numel=17)), "fewer bytes than its pickle says"),
    "two sizes": (a_tuple(tensor(), tensor(storage(numel=15), shape=(1,), strides=(1,))), "two different things"),
    "two types": (a_tuple(tensor(), tensor(storage(kind=("torch", "IntStorage")))), "two different things"),
    "negative storage": (tensor(storage(numel=-1)), "no storage of torch.save"),
    "storage of truth": (
        tensor(a_tuple(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), b"\x88") + b"Q"),
        "no storage",
    ),
    "other reference": (tensor(storage(word="module")), "no storage"),
    "reference to a number": (number(1) + b"Q", "no storage"),
    "storage of a class": (tensor(storage(kind=("torch", "device"))), "no storage"),
    "meta storage": (tensor(storage(location="meta")), "without data"),
    "not of a storage": (tensor(number(1)), "_rebuild_tensor_v2 in a way"),
    "too many arguments": (tensor(more=(b"N", b"N")), "_rebuild_tensor_v2 in a way"),
    "metadata of a text": (tensor(more=(text("conj"),)), "conjugated"),
    "metadata": (tensor(more=(a_dict(conj=b"\x88"),)), "conjugated"),
    "no dtype": (
        call("torch._utils", "_rebuild_tensor_v3", storage(), number(0), numbers(), numbers(), b"\x89", b"N", b"N"),
        "_rebuild_tensor_v3 in a way",
    ),
    "parameter of a text": (
        call("torch._utils", "_rebuild_parameter", text("x"), b"\x88", b"N"),
        "_rebuild_parameter in a way",
    ),
    "subclass": (
        call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            name("torch._utils", "_rebuild_tensor_v2"),
            name("torch", "device"),
            b")",
            b"N",
        ),
        "_rebuild_from_type_v2 in a way",
    ),
    "size of a number": (call("torch", "Size", number(3)), "torch.Size in a way"),
    "dictionary of a number": (call("collections", "OrderedDict", number(3)), "a dictionary in a way"),
    "called dtype": (call("torch", "float32"), "calls torch.float32"),
    "called number": (number(1) + b")R", "calls what is no function"),
    "called with a list": (name("torch", "Size") + b"]R", "calls torch.Size"),
    "hooks": (
        a_dict(
            x=call(
                "torch._utils",
                "_rebuild_tensor_v2",
                storage(),
                number(0),
                numbers(4),
                numbers(1),
                b"\x89",
                a_list(tensor()),
            )
        ),
        "no name",
    ),
    "circle of a dict": (b"}q\0" + text("self") + b"h\0s", "holds itself"),
    "circle of lists": (b"]q\0](h\0ea", "holds itself"),
    "depth": (b"]" * 200 + b"a" * 199, "over 100 deep"),
    "state of a number": (number(1) + b"}b", "sets the state"),
    "state of a tensor": (tensor() + b"}b", "sets the state"),
    "items of a tuple": (b")" + number(1) + b"a", "adds items"),
    "keys of a list": (b"]" + number(1) + number(2) + b"s", "adds items"),
    "long integer": (b"\x8b" + (300).to_bytes(4, "little") + bytes(300), "integer of 300 bytes"),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_pickle_that_lies_is_opaque_and_says_about_what(kind: str) -> None:
    code, words = LIES[kind]
    structure = read(archive(program(code)))
    assert structure.format == OPAQUE
    assert words in structure.note


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"\x80",
        b"\x80\x02",
        b".",
        b"\x80\x02.",
        b"0.",
        b"t.",
        b"(((.",
        b"h\0.",
        b"q\0.",
        b"j\0\0\0\0.",
        b"X\xff\xff\xff\xffabc.",
        b"X\x02\0\0\0\xff\xfe.",
        b"\x8d" + b"\xff" * 8 + b".",
        b"G\0\0.",
        b"cos\n",
        b"c" + b"a" * 1000 + b"\nb\n.",
        b"}(Nu.",
        b"R.",
        b"NR.",
        b"b.",
        b"Q.",
        b"K\x01K\x02\x93.",
    ],
)
def test_a_broken_pickle_is_opaque_and_says_where(code: bytes) -> None:
    assert "broken near byte" in read(archive(code)).note


def test_opcodes_that_torch_does_not_write_are_named() -> None:
    assert "the opcode EXT1" in read(archive(b"\x80\x02\x82\x01.")).note
    assert "the opcode STRING" in read(archive(b"S'x'\n.")).note
    assert "unknown opcode at byte 2" in read(archive(b"\x80\x02\xff.")).note
    assert "protocol 9" in read(archive(b"\x80\x09N.")).note


def test_what_a_pickle_needs_is_named_readably() -> None:
    assert read(archive(program(name("os", "system")))).note == "its pickle needs os.system"
    long = read(archive(program(name("a" * 200, "\x1b[31m\r")))).note
    assert long.startswith("its pickle needs aaa")
    assert long.isprintable()
    assert len(long) < 120


# ---------------------------------------------------------------------- bounds


def test_endless_pickles_end_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MAX_OPCODES", 1000)
    monkeypatch.setattr(pickle_machine, "MAX_OBJECTS", 100)
    monkeypatch.setattr(pytorch, "MAX_PICKLE_BYTES", 5000)
    assert "more than 1000 opcodes" in read(archive(b"\x80\x02" + b"N" * 2000 + b".")).note
    for code in (b"]", b"}", b"(", b"\x8f", b")\x85", b"N\x85", b"(t", b"(\x91"):
        assert "more than 100 objects" in read(archive(b"\x80\x02" + code * 150 + b".")).note
    assert "the limit is 5000" in read(archive(b"N" * 6000)).note


def test_endless_walks_end_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    doubled = b"]q\0" + b"".join(
        b"](h" + bytes([at]) + b"h" + bytes([at]) + b"eq" + bytes([at + 1]) for at in range(60)
    )
    monkeypatch.setattr(torch_tree, "MAX_STEPS", 10_000)
    assert "very often" in read(archive(program(doubled))).note
    monkeypatch.setattr(torch_tree, "MAX_TENSORS", 10)
    many = a_list(*[tensor()] * 11)
    assert "more than 10 tensors" in read(archive(program(many))).note
    monkeypatch.setattr(torch_tree, "MAX_NAME_CHARACTERS", 1000)
    long = text("k" * 300) + b"q\0"
    assert (
        "too long"
        in read(
            archive(
                program(b"}(" + long + a_dict(h=a_list(b"N"), i=a_list(b"N"), j=a_list(b"N"), k=a_list(b"N")) + b"u")
            )
        ).note
    )


def test_a_shared_dictionary_gives_each_of_its_names() -> None:
    shared = b"}" + text("w") + tensor() + b"sq\1"
    structure = read(archive(program(a_tuple(shared, b"h\1", a_dict(again=b"h\1")))))
    assert [layout.name for layout in structure.tensors] == ["0.w", "1.w", "2.again.w"]
    assert len({layout[1:] for layout in structure.tensors}) == 1


def test_views_whose_bytes_would_be_hashed_too_often_are_refused() -> None:
    views = [tensor(storage(numel=99_000), offset=at, shape=(99_000 - at,), strides=(1,)) for at in range(100)]
    members = {"data/0": bytes(4 * 99_000)}
    assert read(archive(program(a_list(*views[:10])), members)).format == "pytorch"
    assert "overlap so much" in read(archive(program(a_list(*views)), members)).note
    assert read(archive(program(a_list(*[views[0]] * 100)), members)).format == "pytorch"  # one range, hashed once


def test_the_reader_refuses_by_notes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise Format("member " + "x" * 10_000 + "\x1b")

    monkeypatch.setattr(pytorch, "read_members", refuse)
    note = read(ZIP).note
    assert len(note) < 250
    assert note.isprintable()
