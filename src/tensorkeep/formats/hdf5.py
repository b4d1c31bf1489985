"""The HDF5 format: a file system of groups and datasets in one file, read by h5py in a process of its own.

A dataset is a tensor if its bytes lie in the file in one run, as they are in memory. If one array of numbers does not
(compressed, in chunks, compact, never written), the whole file is opaque: half a model would load without a word.
Legacy Keras models (``.h5``) and weights of Keras 3 (``.weights.h5``) are HDF5.

Source: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t4.html (HDF5 File Format Specification).
"""

from importlib.util import find_spec

from tensorkeep.errors import Format
from tensorkeep.formats.opaque import opaque_structure
from tensorkeep.formats.protocol import ByteSource, FileStructure

HDF5 = "hdf5"
"""The format's name in manifests."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"
FIRST_USER_BLOCK_BYTES = 512


class Hdf5Reader:
    """Reads the structure of ``*.h5`` and ``*.hdf5`` files. What can't be read is opaque, with a note that says why."""

    name = HDF5

    def claims(self, path: str) -> bool:
        """Return whether the path ends with ``.h5`` or ``.hdf5``, in any case."""
        return path.lower().endswith((".h5", ".hdf5"))

    def read_structure(self, path: str, source: ByteSource) -> FileStructure:  # noqa: ARG002 - datasets have names
        """Return the datasets of a file, ordered by start.

        Raises:
            InvalidInput: the source ended early (it shrank).
        """
        return read_hdf5(HDF5, source)


def read_hdf5(format_name: str, source: ByteSource) -> FileStructure:
    """Return the datasets of an HDF5 file under a format's name, or an opaque structure with the reason.

    Raises:
        InvalidInput: the source ended early (it shrank).
    """
    if not has_signature(source):
        return opaque_structure("it is no HDF5 file")
    if find_spec("h5py") is None:
        return opaque_structure("install tensorkeep[hdf5] to know its tensors")
    # Imported here: processes are needed for such files only.
    from tensorkeep.formats.hdf5_child import Probe, ask_probe  # noqa: PLC0415

    try:
        with Probe() as probe:
            return ask_probe(probe, format_name, source)
    except OSError as error:
        return opaque_structure(f"the process that reads HDF5 could not be started: {error}")
    except Format as error:
        return opaque_structure(error.message)


def starts_as_hdf5(source: ByteSource) -> bool:
    """Return whether the first bytes are HDF5's.

    Raises:
        InvalidInput: the source ended early (it shrank).
    """
    return source.read(0, min(len(SIGNATURE), source.size_bytes)) == SIGNATURE


def has_signature(source: ByteSource) -> bool:
    """Return whether a file is HDF5: its signature stands first, or after a user block of 512 bytes, 1024, 2048 and so on.

    Raises:
        InvalidInput: the source ended early (it shrank).
    """
    start = 0
    while start + len(SIGNATURE) <= source.size_bytes:
        if source.read(start, len(SIGNATURE)) == SIGNATURE:
            return True
        start = start * 2 or FIRST_USER_BLOCK_BYTES
    return False
