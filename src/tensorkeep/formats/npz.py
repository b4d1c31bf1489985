"""The npz format of ``numpy.savez``: a zip archive of npy files, each an array named by its member without ``.npy``.

Arrays are loaded by byte range, so the archive must be stored, not compressed: one compressed array makes the whole file
opaque, since half a model must not load as if it were all. Members without numbers (pickles, texts, other files) are left
out, and the note says so.

Source: ``numpy.savez``; ``numpy.lib.npyio.NpzFile``, which takes any member that starts with npy's magic for an array.
"""

import zlib
from collections.abc import Sequence

from tensorkeep.errors import Format
from tensorkeep.formats.npy import NPY_SUFFIX, NoTensor, read_array
from tensorkeep.formats.npy_header import MAGIC
from tensorkeep.formats.opaque import opaque_structure
from tensorkeep.formats.protocol import ByteSource, FileStructure, RangeSource, TensorLayout
from tensorkeep.formats.torch_globals import show
from tensorkeep.formats.zip_archive import Member, read_members

NPZ = "npz"
"""The format's name in manifests."""

_NAMED_IN_NOTE = 3
_START_BYTES = 1024
"""Read of members that may be arrays: the tables of deflate take up to 320 bytes before the first byte of data."""


class NpzReader:
    """Reads the structure of ``*.npz`` files: the zip directory and the header of each array."""

    name = NPZ

    def claims(self, path: str) -> bool:
        """Return whether the path ends with ``.npz``, in any case."""
        return path.lower().endswith(".npz")

    def read_structure(self, path: str, source: ByteSource) -> FileStructure:  # noqa: ARG002 - members have all names
        """Return the arrays of an archive, ordered by start, or an opaque structure that says which can't be loaded.

        Raises:
            Format: the archive or an array of it breaks a rule; the message says which.
            InvalidInput: the source ended early (it shrank).
        """
        tensors: list[TensorLayout] = []
        left_out: list[str] = []
        for member in read_members(source):
            if not _is_array(member, source):
                left_out.append(show(member.name))
                continue
            if member.compressed:
                return opaque_structure("it is compressed (np.savez_compressed)")
            found = _read_member(member, source)
            if isinstance(found, TensorLayout):
                tensors.append(found)
            elif found.maybe_numeric:
                return opaque_structure(f"{show(member.name)!r} in it holds {found.reason}")
            else:
                left_out.append(f"{show(member.name)} ({found.reason})")
        if len({tensor.name for tensor in tensors}) != len(tensors):
            return opaque_structure("two arrays in it have one name, with and without .npy")
        return FileStructure(NPZ, tuple(tensors), _note(left_out))


def _is_array(member: Member, source: ByteSource) -> bool:
    """Return whether numpy would load a member as an array; True too where that can't be known."""
    if member.name.endswith(NPY_SUFFIX):
        return True
    start = source.read(member.start, min(member.length, _START_BYTES if member.compressed else len(MAGIC)))
    return _may_inflate_to_array(start, member.length) if member.compressed else start.startswith(MAGIC)


def _may_inflate_to_array(start: bytes, length: int) -> bool:
    """Return whether deflated bytes, of which these are the first, may begin with numpy's magic."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        begins = inflater.decompress(start, len(MAGIC))
    except zlib.error:
        return True  # compressed in another way
    ended = inflater.eof or len(start) == length
    return begins == MAGIC or (len(begins) < len(MAGIC) and not ended)


def _read_member(member: Member, source: ByteSource) -> TensorLayout | NoTensor:
    try:
        found = read_array(member.name.removesuffix(NPY_SUFFIX), RangeSource(source, member.start, member.length))
    except Format as error:
        raise Format(f"member {member.name!r}: {error.message}", member=member.name) from error
    return found._replace(start=member.start + found.start) if isinstance(found, TensorLayout) else found


def _note(left_out: Sequence[str]) -> str:
    if not left_out:
        return ""
    more = f" and {len(left_out) - _NAMED_IN_NOTE} more" if len(left_out) > _NAMED_IN_NOTE else ""
    return f"left out, being no arrays of numbers: {', '.join(left_out[:_NAMED_IN_NOTE])}{more}"
