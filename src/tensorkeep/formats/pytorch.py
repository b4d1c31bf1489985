"""The PyTorch format: zip files of ``torch.save``, whose ``data.pkl`` tells what lies in the members ``data/0`` and so on.

The pickle is read as data (`pickle_machine`), its tensors get the keys on the way to them as names (`torch_tree`), and each
becomes a range of the member that holds its storage. Nothing is executed or imported, torch included. A file that can't be
described so is opaque, with a note that says why: a pickle has no end of ways to be something else, and most are no damage.

Source: ``serialization.py`` of torch 2.13.0; ``caffe2/serialize/inline_container.cc`` for the archive.
"""

import math
import posixpath
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from tensorkeep.errors import Format
from tensorkeep.formats.opaque import opaque_structure
from tensorkeep.formats.pickle_machine import read_pickle
from tensorkeep.formats.protocol import ByteSource, FileStructure, TensorLayout
from tensorkeep.formats.torch_globals import Storage, Tensor, find_global, find_storage, show
from tensorkeep.formats.torch_tree import list_tensors
from tensorkeep.formats.zip_archive import Member, read_members

PYTORCH = "pytorch"
"""The format's name in manifests."""

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")

MAX_PICKLE_BYTES = 64 << 20
"""Most bytes of ``data.pkl``: 60,000 tensors need 7.5 MB."""

MAX_SHARING = 16
"""How often each byte of a file may be hashed on average, because ranges of tensors overlap."""

MAX_SPREADING = 64
"""How many times a file's size one tensor may take in memory, over `_SPREAD_BYTES`: ``expand`` makes much of little."""

_SPREAD_BYTES = 1 << 30
_MAX_RANK = 64
_MAX_BYTES = 1 << 60
_MAX_NOTE = 200
_ZIP_START = b"PK"
_LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch.save before 1.6, pickled
_TAR_MAGIC = (257, b"ustar")


class PyTorchReader:
    """Reads the structure of ``.pt``, ``.pth``, ``.bin`` and ``.ckpt`` files: the archive's directory and its pickle."""

    name = PYTORCH

    def claims(self, path: str) -> bool:
        """Return whether the path ends as files of ``torch.save`` do, in any case."""
        return path.lower().endswith(SUFFIXES)

    def read_structure(self, path: str, source: ByteSource) -> FileStructure:
        """Return the tensors of a file, ordered by start, or that it is opaque and why.

        Raises:
            InvalidInput: the source ended early (it shrank).
        """
        try:
            return FileStructure(PYTORCH, _read_tensors(path, source))
        except Format as error:
            return opaque_structure(show(error.message, limit=_MAX_NOTE))


def _read_tensors(path: str, source: ByteSource) -> tuple[TensorLayout, ...]:
    _check_archive(source)
    members = {member.name: member for member in read_members(source)}
    root = _find_root(members)
    _check_byte_order(members.get(f"{root}/byteorder"), source)
    pickle = members[f"{root}/data.pkl"]
    if pickle.length > MAX_PICKLE_BYTES:
        raise Format(f"its pickle has {pickle.length} bytes; the limit is {MAX_PICKLE_BYTES}")
    checkpoint = read_pickle(_read_member(pickle, source), find_global, find_storage)
    stem = posixpath.splitext(posixpath.basename(path))[0]
    storages = _Storages(members, f"{root}/data/", source.size_bytes)
    layouts = [_lay_out(name, tensor, storages) for name, tensor in list_tensors(checkpoint, stem)]
    _check_sharing(layouts, source.size_bytes)
    return tuple(sorted(layouts, key=lambda layout: (layout.start, layout.length, layout.name)))


def _check_archive(source: ByteSource) -> None:
    """Return if the file starts as an archive does; say what it is where that is known."""
    start = source.read(0, min(source.size_bytes, 512))
    at, magic = _TAR_MAGIC
    if start.startswith(_LEGACY_START) or start[at : at + len(magic)] == magic:
        raise Format("it has PyTorch's format from before 1.6: load it and save it again with torch.save")
    if not start.startswith(_ZIP_START):
        raise Format("it is no zip file of torch.save")


def _find_root(members: Mapping[str, Member]) -> str:
    """Return the one folder of the archive, whatever it is called: it holds ``data.pkl``."""
    roots = {name.partition("/")[0] for name in members if "/" in name}
    found = [root for root in roots if f"{root}/data.pkl" in members]
    if len(found) != 1:
        raise Format("it is a zip file, and not of torch.save: data.pkl is not in one folder of it")
    root = found[0]
    if f"{root}/constants.pkl" in members or any(name.startswith(f"{root}/code/") for name in members):
        raise Format("it is a TorchScript program, not a checkpoint of torch.save")
    return root


def _check_byte_order(member: Member | None, source: ByteSource) -> None:
    """Return if the numbers are little-endian, as they are where nothing is said (files from before 2.1)."""
    if member is None:
        return
    order = _read_member(member, source) if member.length <= 16 else b""
    if order != b"little":
        raise Format(f"the byte order of its tensors is {show(order.decode('latin-1'))!r}, not 'little'")


def _read_member(member: Member, source: ByteSource) -> bytes:
    if member.compressed:
        raise Format(f"its member {show(member.name)!r} is compressed: save it again with torch.save")
    return source.read(member.start, member.length)


class _Storages:
    """The members that hold storages, each looked up and checked once."""

    def __init__(self, members: Mapping[str, Member], folder: str, size_bytes: int) -> None:
        self._members = members
        self._folder = folder
        self.size_bytes = size_bytes
        self._found: dict[str, tuple[Storage, int]] = {}

    def find_start(self, storage: Storage) -> int:
        """Return where the bytes of a storage start in the file; all of them lie in it.

        Raises:
            Format: they don't, or the pickle contradicts itself about them.
        """
        known = self._found.get(storage.key)
        if known is None:
            known = self._found[storage.key] = storage, self._check(storage)
        if known[0] != storage:
            raise Format(f"its pickle says two different things of the storage {show(storage.key)!r}")
        return known[1]

    def _check(self, storage: Storage) -> int:
        member = self._members.get(self._folder + storage.key)
        if member is None:
            raise Format(f"its storage {show(storage.key)!r} is not in the archive")
        if member.compressed:
            raise Format(f"its storage {show(storage.key)!r} is compressed: save it again with torch.save")
        if _size_of(storage) > member.length or member.start + member.length > self.size_bytes:
            raise Format(f"its storage {show(storage.key)!r} has fewer bytes than its pickle says")
        return member.start


def _size_of(storage: Storage) -> int:
    return storage.numel * storage.kind.element.size_bytes


def _lay_out(name: str, tensor: Tensor, storages: _Storages) -> TensorLayout:
    """Return where a tensor lies in the file; all that the pickle says of it is checked here."""
    _check_name(name)
    shape, strides = _read_shape(name, tensor)
    item = tensor.dtype.size_bytes
    start = storages.find_start(tensor.storage)
    held = _size_of(tensor.storage) // item
    offset = tensor.offset
    if type(offset) is not int or offset < 0:
        raise _broken(name, "has no possible offset")
    count = math.prod(shape)
    if count * item > MAX_SPREADING * storages.size_bytes + _SPREAD_BYTES:
        raise _broken(name, f"is expanded to {count * item} bytes")
    reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else 0
    if reach and offset + reach > held:
        raise _broken(name, f"reaches to element {offset + reach} of a storage that has {held}")
    contiguous = not reach or strides == _c_strides(shape)
    start += min(offset, held) * item
    if tensor.dtype.dtype == "F4":
        return _lay_out_packed(name, shape, start, contiguous=contiguous)
    return TensorLayout(name, tensor.dtype.dtype, shape, None if contiguous else strides, start, reach * item)


def _lay_out_packed(name: str, shape: tuple[int, ...], start: int, *, contiguous: bool) -> TensorLayout:
    """Return a tensor of ``float4_e2m1fn_x2``: an element of torch is a byte, which holds two of ours."""
    if not shape or not contiguous:
        raise _broken(name, "of 4-bit elements is not a contiguous array of at least one dimension")
    return TensorLayout(name, "F4", (*shape[:-1], 2 * shape[-1]), None, start, math.prod(shape))


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise Format(f"the name of its tensor {show(ascii(name))} is not valid Unicode") from error


def _read_shape(name: str, tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return shape and strides; the stride of a dimension of one element says nothing, and is what C order would have."""
    shape, strides = tensor.shape, tensor.strides
    if not _are_counts(shape) or not _are_counts(strides) or len(shape) != len(strides):
        raise _broken(name, "has no possible shape or strides")
    if math.prod(size for size in shape if size) * tensor.dtype.size_bytes > _MAX_BYTES:
        raise _broken(name, f"has a shape whose product overflows: {list(shape)}")
    plain = _c_strides(shape)
    return shape, tuple(plain[axis] if size == 1 else strides[axis] for axis, size in enumerate(shape))


def _are_counts(value: object) -> TypeGuard[tuple[int, ...]]:
    return (
        type(value) is tuple
        and len(value) <= _MAX_RANK
        and all(type(count) is int and 0 <= count <= _MAX_BYTES for count in value)
    )


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of C order, in elements."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _check_sharing(layouts: Sequence[TensorLayout], size_bytes: int) -> None:
    """Return if hashing the tensors takes work that fits the file: views can share its bytes without end."""
    hashed = sum(length for _, length in {(layout.start, layout.length) for layout in layouts})
    if hashed > MAX_SHARING * size_bytes:
        raise Format(f"its tensors overlap so much that they have over {MAX_SHARING} times the bytes of the file")


def _broken(name: str, problem: str) -> Format:
    return Format(f"its tensor {show(name)!r} {problem}")
