"""Small inputs that claim to be huge: counts, lengths and sizes up to 2^64 in the places of each format that have one."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import zstandard

from tensorkeep.records.json_text import encode_canonical
from tests.fuzz.answers import END, START
from tests.fuzz.examples import DEVICE, IDENTITY, MANIFEST, answer, footers, parts_index
from tests.unit.formats import gguf_bytes as gguf
from tests.unit.formats import torch_files as pickles
from tests.unit.formats.hdf5_files import hdf5_file
from tests.unit.formats.zip_bytes import MAX16, MAX32, MadeMember, make_zip, zip64_extra

HUGE = (1 << 31, (1 << 32) - 1, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
DEEP = b"[" * 5000 + b"]" * 5000

BEYOND = (1 << 64, 10**400, 10**4299)
"""Numbers that only text can hold."""

POISON = (
    b"",
    b"\xff" * 64,
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b"9" * 100_000,
    b'{"format":' + b"9" * 5000 + b"}",
    b'{"format":1e999}',
    b'"\xed\xa0\x80"',
    b'{"a":"\\ud800"}',
    b"a/" * 50_000,
)
"""For every target."""


def _u64(value: int) -> bytes:
    return (value % (1 << 64)).to_bytes(8, "little")


def _safetensors_inside() -> list[bytes]:
    return [
        b'{"a":{"dtype":"F64","shape":%s,"data_offsets":[0,%d]}}' % (json.dumps(shape).encode(), size)
        for size in (*HUGE, *BEYOND)
        for shape in ([size], [size] * 64, [0, size], [1] * 10_000)
    ]


def _gguf() -> list[bytes]:
    made = []
    for size in (1 << 18, *HUGE):
        made += [gguf.header(tensor_count=size), gguf.header(key_count=size), gguf.header() + _u64(size)]
        made.append(gguf.header({"a": struct.pack("<I", gguf.STRING) + _u64(size)}))
        made += [gguf.header({"a": gguf.array(kind, [], size)}) for kind in (gguf.UINT8, gguf.STRING, gguf.ARRAY)]
        made.append(gguf.whole(gguf.header({}, [gguf.Info("w", (size, size, size, size), 0, 0)])))
        made.append(gguf.whole(gguf.header({}, [gguf.Info("w", (32,), 0, size)])))
        made.append(gguf.whole(gguf.header({"general.alignment": gguf.number(gguf.UINT32, size % (1 << 32))})))
    return made


def _npy_inside() -> list[bytes]:
    shapes = [f"({size},)" for size in HUGE] + ["(" + "1," * 9000 + ")", f"({'2,' * 64})", f"(0, {1 << 62})"]
    return [f"{{'descr': '<f8', 'fortran_order': True, 'shape': {shape}}}\n".encode() for shape in shapes]


def _zips() -> list[bytes]:
    made = [
        make_zip(end={"here": MAX16, "count": MAX16}),
        make_zip(end={"size": MAX32}),
        make_zip(end={"start": MAX32 - 1}),
    ]
    for size in HUGE:
        member = MadeMember(b"a.npy", central={"size": MAX32, "full_size": MAX32, "extra": zip64_extra(size, size)})
        made.append(make_zip(member, zip64=True))
        made += [
            make_zip(MadeMember(b"a.npy"), zip64=True, end64={key: size}) for key in ("here", "count", "size", "start")
        ]
        made.append(make_zip(zip64=True, end64={"here": size, "count": size}, end={"here": MAX16, "count": MAX16}))
        made.append(make_zip(zip64=True, locator={"at": size}))
    return made


def _pytorch_inside() -> list[bytes]:
    made = [pickles.PROTO + code + b"\xff\xff\xff\x7f" for code in (b"X", b"B", b"\x8b", b"r", b"j")]
    for size in HUGE:
        made += [pickles.PROTO + code + _u64(size) + b"a." for code in (b"\x8d", b"\x8e", b"\x96", b"\x95")]
        made += [
            pickles.program(pickles.a_dict(w=pickles.tensor(shape=shape, strides=(0,))))
            for shape in ((size,), (0,), (size, 0))
        ]
        made.append(pickles.program(pickles.a_dict(w=pickles.tensor(shape=(size, size), strides=(0, 0)))))
        made.append(pickles.program(pickles.a_dict(w=pickles.tensor(pickles.storage(numel=size), offset=size))))
    made.append(pickles.program(pickles.a_dict(w=pickles.tensor(shape=(1 << 255,), strides=(1 << 255,)))))
    return made


def _hdf5() -> list[bytes]:
    def file_of(size: int) -> bytes:
        return hdf5_file(lambda file: file.create_dataset("w", (size,), "u1"))

    return [file_of(1 << 40), file_of(1 << 60)]


def _hdf5_answers() -> list[bytes]:
    made = []
    for size in (*HUGE, *BEYOND, -1):
        made += [b'["read",0,%d]' % size, b'["read",%d,1]' % size]
        made.append(b'["tensor","w","<f8",[%d],0,%d]\n["done",""]' % (size, size))
        made.append(b'["tensor","w","<f8",[%d],%d,8]\n["done",""]' % (size, size))
    return [
        *made,
        b'["opaque","' + b"x" * 60_000 + b'"]',
        b'["tensor","w","<f8",[' + b"1," * 20_000 + b'1],0,8]\n["done",""]',
    ]


def _frame(size: int) -> bytes:
    """Return a frame of zstd that says that it unpacks to so many bytes, and holds none."""
    return b"\x28\xb5\x2f\xfd\xe0" + _u64(size) + b"\1\0\0"


def _manifest() -> list[bytes]:
    bombs = [zstandard.compress(b" " * size) for size in (16 << 20, 64 << 20)]
    return [*map(_frame, (*HUGE, 4 << 30, (4 << 30) + 1, 1 << 28, 0)), *bombs, b"\x28\xb5\x2f\xfd\0\x88\1\0\0"]


def _changed(record: Any, **changes: object) -> bytes:
    """Return the JSON of a record with other values."""
    return json.dumps(json.loads(encode_canonical(record)) | changes).encode()


def _manifest_inside() -> list[bytes]:
    made = []
    file = json.loads(encode_canonical(MANIFEST))["files"][0]
    tensor = file["tensors"][0]
    for size in (*HUGE, *BEYOND, -1):
        made += [_changed(MANIFEST, parts=[size]), _changed(MANIFEST, part_size=size), _changed(MANIFEST, format=size)]
        for change in (
            {"size_bytes": size},
            {"extents": [[0, 0, size]]},
            {"extents": [[size, 0, 1]]},
            {"items": [[0, size, ""]]},
            {"tensors": [tensor | {"shape": [size] * 64}]},
            {"tensors": [tensor | {"start": size, "length": size}]},
        ):
            made.append(_changed(MANIFEST, files=[file | change]))
    return made


def _footer_inside() -> list[bytes]:
    made = []
    for size in (*HUGE, *BEYOND, -1):
        changes: Sequence[dict[str, object]] = (
            {"size_bytes": size},
            {"data": size},
            {"parity": size},
            {"index": size},
            {"format": size},
        )
        made += [_changed(footers()[1], **change) for change in changes]
    return [*made, _changed(footers()[1], blocks="0" * 100_000)]


def _identity_inside() -> list[bytes]:
    return [_changed(IDENTITY, **{key: size}) for size in (*HUGE, *BEYOND, -1) for key in ("layout", "epoch")]


def _parts_index_inside() -> list[bytes]:
    index = parts_index()
    part = json.loads(encode_canonical(index.parts[0]))
    made = []
    for size in (*HUGE, *BEYOND, -1):
        made += [
            _changed(index, size_bytes=size, parts=[part | {"size_bytes": size}]),
            _changed(index, parts=[part | {"start": size}]),
        ]
    return made


def _answers() -> list[bytes]:
    made = []
    for size in (*HUGE, 1 << 20, (1 << 20) + 1, 10**18 - 1, 10**30, 10**4000):
        made += [answer(status, {"Content-Length": size}, b"x") for status in (200, 206, 404, 503)]
        made.append(answer(206, {"Content-Length": END - START, "Content-Range": f"bytes {START}-{END - 1}/{size}"}))
        made.append(
            answer(206, {"Content-Length": size, "Content-Range": f"bytes {START}-{START + size - 1}/{START + size}"})
        )
        made += [answer(416, {"Content-Range": f"bytes */{size}"}), answer(503, {"Retry-After": size})]
    return [
        *made,
        b"HTTP/1.1 200 x\r\n" + b"a: b\r\n" * 20_000,
        b"HTTP/1.1 100 x\r\n\r\n" * 5000,
        b"HTTP/1.1 200 " + b"x" * 100_000,
    ]


CLAIMS: Mapping[str, list[bytes]] = {
    "safetensors": [_u64(size) + b"{}" for size in (99_999_999, 100_000_001, *HUGE)],
    "safetensors inside": _safetensors_inside(),
    "gguf": _gguf(),
    "npy": [b"\x93NUMPY" + bytes([major, 0]) + b"\xff" * 4 for major in (1, 2, 3)],
    "npy inside": _npy_inside(),
    "npz": _zips(),
    "pytorch": _zips(),
    "pytorch inside": _pytorch_inside(),
    "hdf5": _hdf5(),
    "hdf5 answers": _hdf5_answers(),
    "keras": _zips(),
    "manifest": _manifest(),
    "manifest inside": _manifest_inside(),
    "checks": [bytes([255]) + b"\xff" * 160, bytes([40]) + b"\xfe\xff\xff\xff" * 40],
    "footer": [b"{}" + size.to_bytes(4, "little") + b"tkf1" for size in (1, 2, 3, (1 << 32) - 1)],
    "footer inside": _footer_inside(),
    "identity inside": _identity_inside(),
    "parts index inside": _parts_index_inside(),
    "version": [b'{"format":%d}' % size for size in (*HUGE, *BEYOND)],
    "entry": [b'{"format":1,"seq":%d}' % size for size in (*HUGE, *BEYOND)],
    "stat cache": [
        *(b'{"/a":[%d,2,3,4,5,"a"]}' % size for size in (*HUGE, *BEYOND)),
        b'{"/a":[1,2,3,4,5,"a",' + DEEP + b"]}",
    ],
    "learned rates": [
        *(b'{"%s":[5,%d]}' % (DEVICE.encode(), size) for size in (*HUGE, *BEYOND)),
        b'{"a":[1,2.0,' + DEEP + b"]}",
    ],
    "store note": [b'{"store":"a","devices":[],"x":' + DEEP + b"}", b'{"store":"\xff","devices":[]}'],
    "node config": [b"a = " + b"9" * 5000, b"a = " + DEEP],
    "policy": [b"replicas=%d" % size for size in (*HUGE, *BEYOND)],
    "answer heads": _answers(),
    "answer to a range": _answers(),
    "answer with an object": _answers(),
}
"""By target; those that are not here have no place for a number."""
