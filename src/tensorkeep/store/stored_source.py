"""A stored file as bytes by range, for format readers: each range comes from the devices, verified like any load."""

import numpy as np

from tensorkeep.errors import InvalidInput
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.store.reading import VersionReader
from tensorkeep.transfer.boxes import Box


class StoredSource:
    """One file of a version as a `ByteSource`."""

    def __init__(self, file: File, reader: VersionReader) -> None:
        self._file = file
        self._reader = reader

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""
        return self._file.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly those bytes.

        Raises:
            InvalidInput: they lie outside the file.
            Integrity: they are damaged on every device that has them.
            NotEnoughCopies: no device that has some of them can be read.
        """
        file = self._file
        if offset < 0 or length < 0 or offset + length > file.size_bytes:
            raise InvalidInput(
                f"bytes {offset} to {offset + length} lie outside the {file.size_bytes} of {file.path!r}"
            )
        data = np.empty(length, np.uint8)
        if length:
            run = Tensor(name=file.path, dtype="U8", shape=(length,), start=offset, length=length, digest="")
            self._reader.read_boxes([Box(file, run, (0,), (length,), data)])
        return data.tobytes()
