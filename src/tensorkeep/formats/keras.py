"""The format of Keras 3: a zip archive of ``config.json``, ``metadata.json``, ``model.weights.h5`` and assets.

Keras stores the members as they are, so the HDF5 file inside is a range of this one, and so is each of its datasets. A name
is the dataset's own (``layers/dense/vars/0``).

Source: https://github.com/keras-team/keras, ``keras/src/saving/saving_lib.py``.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from tensorkeep.errors import Format
from tensorkeep.formats.hdf5 import HDF5, read_hdf5, starts_as_hdf5
from tensorkeep.formats.opaque import opaque_structure
from tensorkeep.formats.protocol import ByteSource, FileStructure, RangeSource
from tensorkeep.formats.zip_archive import Member, read_members

KERAS = "keras"
"""The format's name in manifests."""

WEIGHTS = "model.weights.h5"
METADATA = "metadata.json"
METADATA_LIMIT_BYTES = 1 << 20
_ARRAYS = (".h5", ".hdf5", ".npz", ".npy")


class KerasReader:
    """Reads the structure of ``*.keras`` files. What can't be read is opaque, with a note that says why."""

    name = KERAS

    def claims(self, path: str) -> bool:
        """Return whether the path ends with ``.keras``, in any case."""
        return path.lower().endswith(".keras")

    def read_structure(self, path: str, source: ByteSource) -> FileStructure:  # noqa: ARG002 - datasets have names
        """Return the datasets of the weights, ordered by start; starts count from the archive's first byte.

        Raises:
            InvalidInput: the source ended early (it shrank).
        """
        if starts_as_hdf5(source):
            return read_hdf5(HDF5, source)  # Keras 2 wrote that under any name
        try:
            members = read_members(source)
            weights = _find_weights(members)
        except Format as error:
            return opaque_structure(error.message)
        inner = read_hdf5(KERAS, RangeSource(source, weights.start, weights.length))
        shift = weights.start
        tensors = tuple(
            tensor._replace(start=tensor.start + shift) if tensor.length else tensor for tensor in inner.tensors
        )
        return inner._replace(tensors=tensors)

    def read_metadata(self, path: str, source: ByteSource) -> Mapping[str, Any]:  # noqa: ARG002 - the file has no others
        """Return what ``metadata.json`` says: Keras's version and when it was saved.

        Raises:
            Format: it is no zip archive, or that member is no JSON object of plain values.
        """
        found = next((member for member in read_members(source) if member.name == METADATA), None)
        if found is None or found.compressed or found.length > METADATA_LIMIT_BYTES:
            return {}
        try:
            return msgspec.json.decode(source.read(found.start, found.length), type=dict[str, str | int | float | bool])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Format(f"its {METADATA} is no JSON object of plain values: {error}") from error


def _find_weights(members: tuple[Member, ...]) -> Member:
    """Return the member with all arrays.

    Raises:
        Format: there is none, it is compressed, or there are others.
    """
    arrays = {member.name: member for member in members if member.name.lower().endswith(_ARRAYS)}
    if (weights := arrays.pop(WEIGHTS, None)) is None:
        raise Format(f"there is no {WEIGHTS} in it")
    if arrays:
        raise Format(f"there are arrays in its {min(arrays)!r} too, beside {WEIGHTS}")
    if weights.compressed:
        raise Format(f"its {WEIGHTS} is compressed")
    return weights
