"""Valid examples for each target, by the writers of this project and of the libraries whose formats are read; changes of them get deep."""

import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np
import torch

from tensorkeep.formats.writing import safetensors_header
from tensorkeep.records.checks import encode_checks
from tensorkeep.records.conformance import Conformance
from tensorkeep.records.device import DeviceFacts, DeviceIdentity, encode_identity
from tensorkeep.records.fragment import FragmentFooter, encode_footer
from tensorkeep.records.history import (
    Change,
    DeviceChanged,
    JournalEntry,
    ModelChanged,
    ModelFacts,
    RefChanged,
    StoreChanged,
    VersionCommitted,
    VersionFacts,
    VersionRemoved,
    encode_entry,
    fold_entries,
    take_snapshot,
)
from tensorkeep.records.json_text import encode_canonical
from tensorkeep.records.manifest import Extent, File, Item, Manifest, Tensor, encode_manifest
from tensorkeep.records.naming import (
    ChecksName,
    FragmentName,
    JournalName,
    ManifestName,
    PartName,
    VersionName,
    physical_name,
)
from tensorkeep.records.parts_index import PartEntry, PartsIndex, encode_index, iter_cuts, part_name
from tensorkeep.records.redundancy import ErasureCoded, fragment_length
from tensorkeep.records.version import VersionRecord, encode_version
from tests.fuzz.answers import END, START
from tests.unit.formats import gguf_bytes as gguf
from tests.unit.formats import torch_files as pickles
from tests.unit.formats.hdf5_files import hdf5_file, keras_file, some_numbers
from tests.unit.formats.zip_bytes import MAX32, Fields, MadeMember, make_zip, zip64_extra

STORE = "01JD000000STRE0000000000AA"
DEVICE = "01JD000000DEVC0000000000BB"
MODEL = "01JD000000MDEK0000000000CC"
MOMENT = "2026-01-31T23:59:59.000001Z"


def _safetensors() -> list[bytes]:
    tensors = [("a.0.w", "F32", (2, 1)), ("b", "F4", (4,)), ("ö", "U8", (0,)), ("c", "F8_E4M3", (3, 2))]
    header, layouts = safetensors_header(tensors, {"format": "pt", "größe": "1"})
    bare, _ = safetensors_header(tensors[:1])
    return [header + bytes(sum(layout.length for layout in layouts)), bare + bytes(8)]


def _gguf() -> list[bytes]:
    keys = {
        "general.architecture": gguf.string("llama"),
        "general.alignment": gguf.number(gguf.UINT32, 64),
        "split.no": gguf.number(gguf.UINT16, 0),
        "split.count": gguf.number(gguf.UINT16, 1),
        "rope": gguf.number(gguf.FLOAT64, 1e6),
        "tokens": gguf.array(gguf.STRING, [gguf.text("a"), gguf.text("bc")]),
        "scores": gguf.array(gguf.FLOAT32, [bytes(4)] * 3),
        "nested": gguf.array(gguf.ARRAY, [b"\4\0\0\0\1\0\0\0\0\0\0\0\7\0\0\0"]),
    }
    infos = [gguf.Info("blk.0.w", (32, 2), 2, 0), gguf.Info("blk.0.b", (3,), 0, 64), gguf.Info("s", (), 1, 128)]
    full = gguf.whole(gguf.header(keys, infos), bytes(130), alignment=64)
    return [full, gguf.whole(gguf.header({}, [gguf.Info("w", (2, 3), 0, 0)], version=2), bytes(24))]


def _saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def _npy() -> list[bytes]:
    arrays = (
        np.arange(6, dtype="<f4").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        np.zeros(2, "<M8[ns]"),
        np.zeros(2, [("a", "<f4"), ("b", "<i4", (2, 3))]),
    )
    return [*map(_saved, arrays), _saved(arrays[0], (2, 0))]


def _npy_inside() -> list[bytes]:
    return [data[10:] for data in _npy()[:-1]]


def _npz() -> list[bytes]:
    plain, mixed = io.BytesIO(), io.BytesIO()
    np.savez(plain, a=np.arange(3), b=np.ones((2, 2), order="F"))
    with zipfile.ZipFile(mixed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"a comment"
        archive.writestr("a", b"a" * 21)
        archive.writestr("ö.npy", _npy()[0], zipfile.ZIP_STORED)
    array = _npy()[1]
    wide: Fields = {"size": MAX32, "full_size": MAX32, "extra": zip64_extra(len(array), len(array))}
    after: Fields = {"flags": 8, "crc": 0, "size": 0, "full_size": 0}
    made = make_zip(
        MadeMember(b"a.npy", array, central=dict(wide)),
        MadeMember(b"b.npy", array, local=dict(after), central={"flags": 8}, after=bytes(16)),
        zip64=True,
    )
    return [plain.getvalue(), mixed.getvalue(), made]


def _torch_values() -> list[Any]:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = OrderedDict({"a.weight": base, "a.bias": base.t()[1:], "tied": base})
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return [
        state,
        {"model": state, "optimizer": optimizer},
        [torch.nn.Parameter(torch.ones(2, 3)), ({"x": None, "y": 1 << 40}, {1, 2}), torch.Size([2])],
        {"half": torch.ones(4, 2, dtype=torch.bfloat16), "text": "größe", "device": torch.device("cpu")},
    ]


def _pytorch() -> list[bytes]:
    return [
        pickles.saved(value, pickle_protocol=4 if number == 3 else 2) for number, value in enumerate(_torch_values())
    ]


def _pytorch_inside() -> list[bytes]:
    found = [
        pickles.program(
            pickles.a_dict(w=pickles.tensor(), v=pickles.a_list(pickles.tensor(offset=2, shape=(3,), strides=(2,))))
        )
    ]
    for data in _pytorch():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found.append(archive.read("archive/data.pkl"))
    return found


def _fill(file: Any) -> None:
    file["a/w"] = some_numbers("f4", (3, 2))
    file["c"] = some_numbers("<c16", (2,))
    file["soft"] = h5py.SoftLink("/a/w")
    file.create_dataset("chunk", data=some_numbers("i8", (3, 2)), chunks=(3, 2))
    file["records"] = np.zeros(2, [("a", "f4"), ("b", "i8")])
    file["outside"] = h5py.ExternalLink("other.h5", "/w")
    file["half"] = np.zeros(3, "V2")
    file["half"].attrs["dtype"] = "bfloat16"


def _hdf5() -> list[bytes]:
    return [
        hdf5_file(_fill, **options)
        for options in ({}, {"userblock_size": 512}, {"libver": "latest"}, {"track_order": True})
    ]


def _hdf5_answers() -> list[bytes]:
    read, tensor = b'["read",0,512]', b'["tensor","a/w","<f4",[3,2],2048,24]'
    return [
        b"\n".join((read, tensor, b'["tensor","h","bfloat16",[2],2072,4]', b'["done","left out: x (strings)"]')),
        b"\n".join((read, tensor, tensor.replace(b"a/w", b"b"), b'["done",""]')),
        b"\n".join((read, b'["opaque","the dataset is compressed (gzip)"]')),
    ]


def _keras() -> list[bytes]:
    return [keras_file(_hdf5()[0]), keras_file(_hdf5()[2], others={"assets/a.txt": b"x" * 50})]


def _hub_index() -> list[bytes]:
    index = {
        "metadata": {"total_size": 8, "größe": [1, None]},
        "weight_map": {"a": "one.safetensors", "b": "two.safetensors"},
    }
    return [json.dumps(index).encode(), json.dumps(index, indent=2, ensure_ascii=False).encode()]


def _opaque() -> list[bytes]:
    return [
        b"README.md\n# A model\n",
        "config/größe.json\n{}".encode(),
        b"a/m.SAFETENSORS\n" + _safetensors()[0],
        b"m.gguf\n" + _gguf()[1],
    ]


MANIFEST = Manifest(
    split="tensor",
    part_size=4 << 20,
    files=(
        File(
            path="poids/é.safetensors",
            size_bytes=16,
            format="safetensors",
            extents=(Extent(0, 0, 8), Extent(1, 64, 8)),
            tensors=(
                Tensor(name="w", dtype="BF16", shape=(2, 2), start=8, length=8, digest="ab" * 32),
                Tensor(name="t", dtype="NPY:>f4", shape=(1, 2), strides=(1, 2), start=8, length=8, digest="ab" * 32),
            ),
            items=(Item(0, 8, "cd" * 32),),
            sha256="ef" * 32,
            git_sha1="01" * 20,
        ),
        File(path="empty", size_bytes=0, format="opaque", extents=(), tensors=(), items=(), sha256="00" * 32),
    ),
    parts=(8, 72),
    checks="12" * 32,
)


def _checks() -> list[bytes]:
    sizes = (1, 262_145, 524_288)
    head = bytes([len(sizes)]) + b"".join((size - 1).to_bytes(4, "little") for size in sizes)
    return [head + encode_checks([b"\1" * 32] * 3, [[1], [2, 3], [4, 5]]), b"\0"]


IDENTITY = DeviceIdentity(layout=1, store=STORE, device=DEVICE, epoch=3, created_at=MOMENT)


def footers() -> list[FragmentFooter]:
    policy = ErasureCoded(4, 2)
    made = []
    for index in (0, 5):
        size = 5_000_000
        checks = b"\7" * (8 * -(-fragment_length(policy, size, index) // 262_144))
        made.append(
            FragmentFooter(
                part="ab" * 32,
                size_bytes=size,
                data=4,
                parity=2,
                index=index,
                digest="cd" * 32,
                blocks=checks.hex() if index else None,
            )
        )
    return made


VERSION = VersionRecord(
    model=MODEL, parent=None, manifest="ab" * 32, message="première", author="ann", created_at=MOMENT, total_bytes=16
)


def _entries() -> list[bytes]:
    conformance = Conformance(
        checked_at=MOMENT, form="full", verdict="accepted", conditional_create="exact", refused_checksums=("md5",)
    )
    device = DeviceFacts(
        id=DEVICE, name="nvme0", url="s3:b", zone="rack1", durability="durable", bandwidth=5, conformance=conformance
    )
    model = ModelFacts(id=MODEL, name="acme/llama", policy=None, created_at=MOMENT)
    version = VersionFacts(
        id="aa" * 20, model=MODEL, parent="bb" * 20, manifest="ab" * 32, checks="12" * 32, message="m", author="ann",
        created_at=MOMENT, total_bytes=16, policy="replicas=2",
    )  # fmt: skip
    changes: tuple[Change, ...] = (
        StoreChanged(old=None, new="replicas=1"),
        DeviceChanged(old=None, new=device),
        ModelChanged(old=None, new=model),
        VersionCommitted(version=version),
        RefChanged(model=MODEL, ref="branch", name="main", old=None, new="aa" * 20),
    )
    first = JournalEntry(store=STORE, epoch=1, seq=7, prev="99" * 32, created_at=MOMENT, changes=changes)
    removed = JournalEntry(
        store=STORE, epoch=1, seq=8, prev=None, created_at=MOMENT, changes=(VersionRemoved(version=version),)
    )
    whole = take_snapshot(fold_entries([first]))
    snapshot = JournalEntry(store=STORE, epoch=2, seq=0, prev=None, created_at=MOMENT, changes=(whole,))
    return [encode_entry(entry)[1] for entry in (first, removed, snapshot)]


def parts_index() -> PartsIndex:
    parts = tuple(
        PartEntry(
            name=part_name("w.bin", at + 1, 3),
            folder="/mnt/a" if at else ".",
            start=start,
            size_bytes=length,
            blake3="ab" * 32,
            sha256="cd" * 32,
        )
        for at, (start, length) in enumerate(iter_cuts(100, 3))
    )
    return PartsIndex(name="w.bin", size_bytes=100, blake3="ab" * 32, sha256="cd" * 32, parts=parts)


def _physical_names() -> list[bytes]:
    digest = bytes(range(32))
    names = (
        PartName(digest, MODEL),
        PartName(digest, MODEL, "zstd"),
        FragmentName(digest, MODEL, 4, 2, 5),
        ManifestName(digest, MODEL),
        ChecksName(digest, MODEL),
        VersionName(MODEL, digest[:20], MODEL),
        JournalName(1, 7, digest, MODEL),
    )
    return [physical_name(name).encode() for name in names]


def answer(status: int, headers: Mapping[str, object], body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _refusals() -> list[bytes]:
    missing = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>no</Message></Error>"
    return [
        answer(404, {"Content-Length": len(missing), "Date": "Sun, 06 Nov 2094 08:49:37 GMT"}, missing),
        answer(503, {"Retry-After": "2", "Connection": "close", "Content-Length": 0}),
        answer(
            503,
            {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT", "Transfer-Encoding": "chunked"},
            b"5\r\nabcde\r\n0\r\n\r\n",
        ),
        answer(301, {"Location": "https://user:key@other.invalid:9000/bucket?sig=x", "Content-Length": 0}),
        answer(403, {"x-ms-error-code": "AuthenticationFailed", "Content-Length": 17}, b'{"code":"denied"}'),
        answer(416, {"Content-Range": "bytes */50", "Content-Length": 0}),
    ]


def _range_answers() -> list[bytes]:
    body = bytes(range(END - START))
    right = {"Content-Length": len(body), "Content-Range": f"bytes {START}-{END - 1}/1000", "ETag": '"1"'}
    found = [
        answer(206, right, body),
        b"HTTP/1.1 100 Continue\r\n\r\n" + answer(206, {**right, "Connection": "keep-alive"}, body),
    ]
    return [*found, answer(206, right, body[:20]), *_refusals()]


def _object_answers() -> list[bytes]:
    found = [
        answer(200, {"Content-Length": 30, "ETag": '"1"', "Content-Encoding": "identity"}, bytes(30)),
        answer(200, {"Content-Length": 0}),
    ]
    return [*found, answer(200, {"Content-Length": 3000}, bytes(2000)), *_refusals()]


def _texts(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


EXAMPLES: Mapping[str, Callable[[], list[bytes]]] = {
    "safetensors": _safetensors,
    "safetensors inside": lambda: [data[8:] for data in _safetensors()],
    "gguf": _gguf,
    "npy": _npy,
    "npy inside": _npy_inside,
    "npz": _npz,
    "pytorch": _pytorch,
    "pytorch inside": _pytorch_inside,
    "hdf5": _hdf5,
    "hdf5 answers": _hdf5_answers,
    "keras": _keras,
    "hub index": _hub_index,
    "opaque": _opaque,
    "manifest": lambda: [encode_manifest(MANIFEST)],
    "manifest inside": lambda: [encode_canonical(MANIFEST)],
    "checks": _checks,
    "identity": lambda: [encode_identity(IDENTITY)],
    "identity inside": lambda: [encode_canonical(IDENTITY)],
    "footer": lambda: [encode_footer(footer) for footer in footers()],
    "footer inside": lambda: [encode_canonical(footer) for footer in footers()],
    "version": lambda: [encode_version(VERSION)[1]],
    "entry": _entries,
    "parts index": lambda: [encode_index(parts_index())],
    "parts index inside": lambda: [encode_canonical(parts_index())],
    "physical name": _physical_names,
    "names": _texts("acme/llama-3.1_8b@main", "llama@0123456789", "feature/x.y-z", "nvme0"),
    "policy": _texts("replicas=2", "ec=4+2", "ec=10+4", "replicas=999"),
    "ulid": _texts(MODEL, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ", "0" * 26),
    "paths": _texts("a/b/c.bin\na/B.json\nREADME.md", "größe/模型.safetensors\nx\ny/z"),
    "values": _texts(
        "ab" * 32, MOMENT, "0026" + MOMENT[4:], "BF16", "GGUF:Q4_K", "NPY:>f4", "NPY:<M8[3D]", ">c16", "<M8[ns]", "|b1"
    ),
    "stat cache": lambda: [b'{"/a/w.bin":[1,2,3,4,5,"%s"],"/b":[1,2,3,4,5,"%s"]}' % (b"ab" * 32, b"cd" * 32)],
    "learned rates": lambda: [b'{"%s":[5,1000000.5],"01JD000000DEVC0000000000CC":[null,7.0]}' % DEVICE.encode()],
    "store note": _texts('{"store":"01JD000000STRE0000000000AA","devices":["file:///a","s3:b"]}'),
    "node config": _texts('[cache]\nfolder = "/nvme/cache"\nlimit_bytes = 500_000_000_000\n', "# nothing\n"),
    "answer heads": lambda: [*_range_answers(), *_object_answers()],
    "answer to a range": _range_answers,
    "answer with an object": _object_answers,
}
"""What makes the valid examples of each target."""
