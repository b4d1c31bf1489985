"""What is fuzzed: each decoder of bytes that come from a file, a device, a server or a user, as a function of bytes.

A target returns where the bytes were believed, and raises a `TensorkeepError` where they were not. Anything else that comes out
is a crash. A target whose name ends with "inside" puts the bytes into what else has to be right around them (a seal, a frame of
zstd, an archive), so that a change of a byte gets past the first check. What was believed is also used, as its callers use it.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import zstandard

from tensorkeep.devices.object_names import check_object_name
from tensorkeep.errors import Format, Integrity, InvalidInput, TensorkeepError
from tensorkeep.formats import hdf5_child
from tensorkeep.formats.checking import check_structure
from tensorkeep.formats.gguf_split import check_splits
from tensorkeep.formats.hdf5_child import ask_probe
from tensorkeep.formats.hub_index import check_index, encode_weight_index, find_weight_index, is_index
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.formats.protocol import FileStructure, TensorLayout
from tensorkeep.formats.registry import find_reader, read_metadata, read_structure
from tensorkeep.records.checks import decode_checks
from tensorkeep.records.device import DeviceFacts, decode_identity, encode_identity
from tensorkeep.records.digest import parse_digest
from tensorkeep.records.dtype import get_dtype, npy_name, packed_shape
from tensorkeep.records.fragment import FragmentFooter, decode_footer, encode_footer
from tensorkeep.records.history import decode_entry, encode_entry, fold_entries, take_snapshot
from tensorkeep.records.json_text import format_time, parse_time
from tensorkeep.records.layout import PART_LIMIT_BYTES
from tensorkeep.records.manifest import Manifest, decode_manifest, encode_manifest
from tensorkeep.records.names import (
    check_device_name,
    check_ref_name,
    is_version_prefix,
    parse_model_name,
    parse_revision,
)
from tensorkeep.records.naming import (
    FragmentName,
    JournalName,
    location_form,
    object_kind,
    parse_physical_name,
    physical_name,
)
from tensorkeep.records.parts_index import decode_index, encode_index
from tensorkeep.records.paths import check_path, check_paths
from tensorkeep.records.redundancy import ErasureCoded, fragment_length, parse_form, parse_policy, stored_fragments
from tensorkeep.records.sealing import seal
from tensorkeep.records.ulid import parse_ulid, ulid_time
from tensorkeep.records.version import decode_version, encode_version
from tensorkeep.store.folder_place import FolderPlace
from tensorkeep.store.learned_rates import find_rates
from tensorkeep.store.node_config import VARIABLE, read_node_config
from tensorkeep.store.places import NOTE_FILE
from tensorkeep.store.stat_cache import StatCache
from tests.fuzz.answers import read_heads, read_object, read_range
from tests.fuzz.hdf5_server import ReplayedProbe, lend_probe
from tests.fuzz.zips import torch_archive

Target = Callable[[bytes], None]


class Source:
    """A byte source over bytes in memory, which holds a reader to reading inside them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size_bytes = len(data)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size_bytes, "read outside the file"
        return self.data[offset : offset + length]


# ------------------------------------------------------------------------------ files of other programs


def _read_file(path: str, data: bytes) -> FileStructure:
    """Read a file as a push does, then what ``show --metadata`` reads; what is opaque for a reason was not believed."""
    try:
        structure = read_structure(path, Source(data))
    except Format:
        opaque = read_structure(path, Source(data), strict=False)
        assert opaque.format == OPAQUE
        assert opaque.note
        raise
    check_structure(structure, len(data))
    if structure.note:
        assert structure.note.isprintable()
    if structure.format == OPAQUE and structure.note:
        raise Format(structure.note)
    read_metadata(path, structure.format, Source(data))
    return structure


def _file_target(path: str) -> Target:
    def read(data: bytes) -> None:
        _read_file(path, data)

    return read


def _gguf(data: bytes) -> None:
    path = "m-00001-of-00001.gguf"
    structure = _read_file(path, data)
    check_splits({path: Source(data)}, {path: structure})


def _safetensors_inside(data: bytes) -> None:
    """The header up to its last brace, then the tensors' bytes, of which none is a space."""
    header, brace, rest = data.rpartition(b"}")
    text = header + brace
    _read_file("m.safetensors", len(text).to_bytes(8, "little") + text + rest.lstrip(b" "))


def _npy_inside(data: bytes) -> None:
    """The header up to a line end, then the array's bytes."""
    text, _, rest = data.partition(b"\n")
    text = text[:0xFFFF]
    _read_file("w.npy", b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + rest)


def _pytorch_inside(data: bytes) -> None:
    """A pickle, in an archive with two storages."""
    _read_file("model.pt", torch_archive(data))


def _hdf5(data: bytes) -> None:
    with patch.object(hdf5_child, "Probe", lend_probe):
        _read_file("model.weights.h5", data)


def _keras(data: bytes) -> None:
    with patch.object(hdf5_child, "Probe", lend_probe):
        _read_file("model.keras", data)


def _hdf5_answers(data: bytes) -> None:
    """What the process that reads HDF5 may say, once a file has taken it over."""
    ask_probe(ReplayedProbe(data.split(b"\n")), "hdf5", Source(bytes(4096)))


_SHARD = FileStructure(
    "safetensors", (TensorLayout("a", "F32", (1,), None, 8, 4), TensorLayout("b", "F32", (), None, 12, 4))
)


def _hub_index(data: bytes) -> None:
    found = find_weight_index(data)
    if found is not None:
        encode_weight_index(found, found.weight_map, total_size=8)
    files = {"x/one.safetensors": _SHARD, "x/two.safetensors": _SHARD, "two.h5": FileStructure("hdf5", ())}
    check_index("x/pytorch_model.bin.index.json", data, files)
    check_index("x/model.safetensors.index.json", data, files)


def _opaque(data: bytes) -> None:
    """A file of any name: the first line is the name."""
    name, _, rest = data.partition(b"\n")
    path = name.decode("utf-8", "surrogateescape")
    check_path(path)
    if find_reader(path).name not in (
        "hdf5",
        "keras",
    ):  # they have targets of their own, which start one process for many files
        _read_file(path, rest)
    is_index(path)


# ------------------------------------------------------------------------------ records on devices


def _manifest(data: bytes) -> None:
    _use_manifest(decode_manifest(data))


def _manifest_inside(data: bytes) -> None:
    _use_manifest(decode_manifest(zstandard.ZstdCompressor(level=1).compress(data)))


def _use_manifest(manifest: Manifest) -> None:
    assert manifest.total_bytes == sum(file.size_bytes for file in manifest.files)
    for _, tensor in manifest.iter_tensors():
        packed_shape(tensor.shape, get_dtype(tensor.dtype))
    assert decode_manifest(encode_manifest(manifest)) == manifest


def _checks(data: bytes) -> None:
    """How many parts, four bytes for the size of each, then the object."""
    count = data[0] if data else 0
    sizes = [
        1 + int.from_bytes(data[1 + 4 * at : 5 + 4 * at], "little") % (PART_LIMIT_BYTES - 1)
        for at in range(min(count, 40))
    ]
    checks = decode_checks(data[1 + 4 * len(sizes) :], sizes)
    for part in range(len(sizes)):
        assert len(checks.digest(part)) == 32
        assert checks.block_checks(part).dtype == np.uint64


def _identity(data: bytes) -> None:
    identity = decode_identity(data, device="nvme0")
    assert decode_identity(encode_identity(identity), device="nvme0") == identity


def _sealed(data: bytes, field: str) -> bytes:
    return seal(data if data.endswith(b"}") else data + b"}", field)


def _identity_inside(data: bytes) -> None:
    _identity(_sealed(data, "blake3"))


def _footer(data: bytes) -> None:
    _use_footer(decode_footer(data, what="a fragment"))


def _footer_inside(data: bytes) -> None:
    body = _sealed(data, "blake3")
    _footer(body + len(body).to_bytes(4, "little") + b"tkf1")


def _use_footer(footer: FragmentFooter) -> None:
    assert len(footer.block_checks) >= 0
    length = fragment_length(footer.policy, footer.size_bytes, footer.index)
    assert 0 <= length < PART_LIMIT_BYTES + (1 << 20)
    stored_fragments(footer.policy, footer.size_bytes)
    assert decode_footer(encode_footer(footer), what="a fragment") == footer


def _version(data: bytes) -> None:
    record = decode_version(data)
    assert decode_version(encode_version(record)[1]) == record


def _entry(data: bytes) -> None:
    """An entry or a snapshot of the journal; twice in a row it still adds up."""
    entry = decode_entry(data)
    state = fold_entries([entry, entry])
    take_snapshot(state)
    assert decode_entry(encode_entry(entry)[1]) == entry


def _parts_index(data: bytes) -> None:
    index = decode_index(data, what="w.parts.json")
    assert decode_index(encode_index(index), what="w.parts.json") == index


def _parts_index_inside(data: bytes) -> None:
    _parts_index(_sealed(data, "index_blake3"))


# ------------------------------------------------------------------------------ texts: names, policies, values


def _text(data: bytes) -> str:
    """Return the text of bytes; names in a listing or of a folder may have bytes that are not UTF-8."""
    return data.decode("utf-8", "surrogateescape")


def _physical_name(data: bytes) -> None:
    text = _text(data)
    name = parse_physical_name(text)
    if name is None:
        check_object_name(text)
        raise InvalidInput("the layout names nothing so")
    assert physical_name(name) == text
    check_object_name(text)
    form = location_form(name)
    if isinstance(name, FragmentName):
        assert parse_form(form) == ErasureCoded(name.data, name.parity)
    if not isinstance(name, JournalName):
        object_kind(name)


def _names(data: bytes) -> None:
    """A revision as a user types it, a branch, a device."""
    text = _text(data)
    _first_of(
        lambda: parse_model_name(str(parse_revision(text).model)).folded,
        lambda: check_ref_name(text, kind="branch"),
        lambda: check_device_name(text),
    )
    is_version_prefix(text)


def _policy(data: bytes) -> None:
    text = _text(data)
    assert str(parse_policy(text)) == text


def _ulid(data: bytes) -> None:
    ulid_time(parse_ulid(_text(data)))


def _paths(data: bytes) -> None:
    check_paths(_text(data).split("\n"))


def _values(data: bytes) -> None:
    """A digest, a time, a dtype of a manifest, a dtype of numpy: whichever it is."""
    text = _text(data)

    def packed() -> None:
        packed_shape((3, 256), get_dtype(text))

    def numpy_dtype() -> None:
        name = npy_name(text)
        if name is None:
            raise Format("no dtype of numbers")
        get_dtype(name)

    def time() -> None:
        assert format_time(parse_time(text)) == text

    _first_of(lambda: parse_digest(text), time, packed, numpy_dtype)


def _first_of(*readers: Callable[[], object]) -> None:
    """Call all; raise the last refusal where none believes the text."""
    refusals: list[TensorkeepError] = []
    for read in readers:
        try:
            read()
        except TensorkeepError as error:
            refusals.append(error)
    if len(refusals) == len(readers):
        raise refusals[-1]


# ------------------------------------------------------------------------------ files of this machine


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, in memory where that can be; removed when it ends."""
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def _put(name: str, data: bytes) -> Path:
    path = Path(_folder().name) / name
    path.unlink(missing_ok=True)  # some file systems wait for the disk when a file is overwritten
    path.write_bytes(data)
    return path


def _stat_cache(data: bytes) -> None:
    """A cache that can't be read is an empty one."""
    if not StatCache(_put("files.json", data).parent)._known:
        raise Integrity("nothing is known")


def _learned_rates(data: bytes) -> None:
    device = DeviceFacts(
        id="01JD000000DEVC0000000000BB", name="a", url="s3:b", zone="z", durability="durable", bandwidth=5
    )
    if not find_rates(_put("rates.json", data).parent, [device]):
        raise Integrity("nothing was learned")


def _store_note(data: bytes) -> None:
    if FolderPlace(_put(NOTE_FILE, data).parent).find_note() is None:
        raise Integrity("there is no note that can be read")


def _node_config(data: bytes) -> None:
    read_node_config({VARIABLE: os.fspath(_put("node.toml", data))})


TARGETS: Mapping[str, Target] = {
    "safetensors": _file_target("m.safetensors"),
    "safetensors inside": _safetensors_inside,
    "gguf": _gguf,
    "npy": _file_target("w.npy"),
    "npy inside": _npy_inside,
    "npz": _file_target("w.npz"),
    "pytorch": _file_target("model.pt"),
    "pytorch inside": _pytorch_inside,
    "hdf5": _hdf5,
    "hdf5 answers": _hdf5_answers,
    "keras": _keras,
    "hub index": _hub_index,
    "opaque": _opaque,
    "manifest": _manifest,
    "manifest inside": _manifest_inside,
    "checks": _checks,
    "identity": _identity,
    "identity inside": _identity_inside,
    "footer": _footer,
    "footer inside": _footer_inside,
    "version": _version,
    "entry": _entry,
    "parts index": _parts_index,
    "parts index inside": _parts_index_inside,
    "physical name": _physical_name,
    "names": _names,
    "policy": _policy,
    "ulid": _ulid,
    "paths": _paths,
    "values": _values,
    "stat cache": _stat_cache,
    "learned rates": _learned_rates,
    "store note": _store_note,
    "node config": _node_config,
    "answer heads": read_heads,
    "answer to a range": read_range,
    "answer with an object": read_object,
}
"""Every target by its name."""
