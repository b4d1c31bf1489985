"""The contract of a format reader: it finds the tensors of somebody else's file by reading its header.

A reader decides, it moves no tensor data: it is given a `ByteSource` and returns a `FileStructure` of byte ranges.
"""

from typing import NamedTuple, Protocol


class ByteSource(Protocol):
    """A file that can be read by range."""

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly those bytes.

        Raises:
            InvalidInput: the source ends earlier (it shrank).
        """


class TensorLayout(NamedTuple):
    """Where a tensor lies in its file. ``shape`` and ``strides`` in elements (None: C order), ``start``, ``length`` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    start: int
    length: int


class FileStructure(NamedTuple):
    """What a reader found: the format's name and its tensors, ordered by start."""

    format: str
    tensors: tuple[TensorLayout, ...]


class FormatReader(Protocol):
    """Reads the structure of one format."""

    @property
    def name(self) -> str:
        """The format's name, as in the manifest."""

    def claims(self, path: str) -> bool:
        """Return whether a file of this path should be of this format."""

    def read_structure(self, source: ByteSource) -> FileStructure:
        """Return the file's structure.

        Raises:
            Format: the file breaks the format's rules; the message says which rule and where.
        """
