"""The contract of a format reader: it finds the tensors of somebody else's file by reading its header.

A reader decides, it moves no tensor data: it is given a `ByteSource` and returns a `FileStructure` of byte ranges. A package
adds a format with a class of this shape under the entry point group ``tensorkeep.formats`` (see ``docs/formats.md``).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tensorkeep.errors import InvalidInput


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
    """What a reader found: the format's name and its tensors, ordered by start, no name twice.

    Every numeric array of the file is among the tensors, or the file is opaque: half a model would load without a word.
    ``note`` says in half a sentence what the user should know of the file: why it is opaque, or what in it is no tensor.
    """

    format: str
    tensors: tuple[TensorLayout, ...]
    note: str = ""


class RangeSource:
    """Bytes ``[start, start + size_bytes)`` of another source, as a source of their own: a file inside a file."""

    def __init__(self, source: ByteSource, start: int, size_bytes: int) -> None:
        self._source = source
        self._start = start
        self.size_bytes = size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly those bytes.

        Raises:
            InvalidInput: the range ends past this source, or the other one ends earlier.
        """
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise InvalidInput(f"bytes {offset} to {offset + length} lie outside {self.size_bytes} bytes")
        return self._source.read(self._start + offset, length)


class FormatReader(Protocol):
    """Reads the structure of one format."""

    @property
    def name(self) -> str:
        """The format's name, as in the manifest."""

    def claims(self, path: str) -> bool:
        """Return whether a file of this path should be of this format."""

    def read_structure(self, path: str, source: ByteSource) -> FileStructure:
        """Return the file's structure; ``path`` is the file's in the version, to name what has no name of its own.

        Raises:
            Format: the file breaks the format's rules; the message says which rule and where.
            InvalidInput: the source ended early (it shrank).
        """


@runtime_checkable
class MetadataReader(Protocol):
    """What a reader may do besides: tell what its files say of themselves, for ``tensorkeep show --metadata``."""

    def read_metadata(self, path: str, source: ByteSource) -> Mapping[str, Any]:
        """Return the file's own metadata: texts, numbers, booleans, lists of them, in the file's order.

        Raises:
            Format: the file breaks the format's rules.
        """
