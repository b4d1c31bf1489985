"""What a push reads: files of a folder, one file, or arrays in memory, each as bytes by range.

Files are read with ``pread``, never mapped: a file that shrinks under a mapping kills the process. A source remembers what
it looked like when it was scanned, and says so when it changed since.
"""

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tensorkeep.errors import InvalidInput, NotFound, PermissionDenied, TensorkeepError, Unavailable
from tensorkeep.formats.writing import safetensors_header
from tensorkeep.records.dtype import NAMES_BY_NUMPY
from tensorkeep.records.paths import check_paths
from tensorkeep.store.frameworks import to_numpy

ARRAYS_FILE = "model.safetensors"


class Stamp(NamedTuple):
    """What tells a file apart from its later selves: device number, inode, size, and times in nanoseconds."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


class PushSource(Protocol):
    """One file of a version to be."""

    @property
    def path(self) -> str:
        """Its path in the version, relative and POSIX."""

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""

    @property
    def identity(self) -> tuple[str, Stamp] | None:
        """The absolute path and stamp of a file; None for arrays in memory."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly those bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from ``offset``."""

    def check_unchanged(self) -> None:
        """Return if it is what it was when it was scanned.

        Raises:
            InvalidInput: it changed, so what was read may be two things at once.
        """


@dataclass(frozen=True, slots=True)
class FileSource:
    """A regular file, followed through links."""

    path: str
    real_path: str
    stamp: Stamp

    @property
    def size_bytes(self) -> int:
        """How many bytes it had when it was scanned."""
        return self.stamp.size_bytes

    @property
    def identity(self) -> tuple[str, Stamp] | None:
        """Its absolute path and stamp."""
        return self.real_path, self.stamp

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly those bytes."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from ``offset``."""
        try:
            descriptor = os.open(self.real_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while buffer:
                    count = os.preadv(descriptor, [buffer], offset)
                    if count == 0:
                        raise _changed(self.path)
                    buffer = buffer[count:]
                    offset += count
            finally:
                os.close(descriptor)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise _changed(self.path) from error  # it was a file when it was scanned
        except OSError as error:
            raise translate_read_error(error, self.real_path) from error

    def check_unchanged(self) -> None:
        """Return if the file is what it was when it was scanned."""
        try:
            now = stamp_of(os.stat(self.real_path))
        except OSError as error:
            raise _changed(self.path) from error
        if now != self.stamp:
            raise _changed(self.path)


class MemorySource:
    """A file that exists only in memory: a header and arrays behind it."""

    def __init__(self, path: str, buffers: Sequence[memoryview]) -> None:
        self.path = path
        self._buffers = [buffer for buffer in buffers if len(buffer)]
        self._starts = np.cumsum([0, *(len(buffer) for buffer in self._buffers)]).tolist()
        self.size_bytes = int(self._starts[-1])
        self.identity: tuple[str, Stamp] | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly those bytes."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from ``offset``."""
        index = int(np.searchsorted(self._starts, offset, side="right")) - 1
        while buffer:
            if index >= len(self._buffers):
                raise _changed(self.path)
            piece = self._buffers[index][offset - self._starts[index] :][: len(buffer)]
            buffer[: len(piece)] = piece
            buffer = buffer[len(piece) :]
            offset += len(piece)
            index += 1

    def check_unchanged(self) -> None:
        """Return: arrays are the caller's, who must not change them during the push."""


def open_sources(source: str | os.PathLike[str] | Mapping[str, Any]) -> list[PushSource]:
    """Return what a push of ``source`` reads, sorted by path.

    Args:
        source: a folder, a file, or arrays by name (numpy, or any framework with an entry point).

    Raises:
        NotFound: the path doesn't exist.
        InvalidInput: it is empty, or holds something that is not a regular file.
        PermissionDenied: something in it can't be read.
        Format: a path in it can't be stored.
    """
    if isinstance(source, Mapping):
        return [_source_of_arrays(source)]
    root = os.path.abspath(os.fspath(source))
    if "\0" in root:
        raise InvalidInput(f"the path {root!r} holds a NUL", path=root)
    try:
        status = os.stat(root)
    except OSError as error:
        raise translate_read_error(error, root) from error
    if stat.S_ISDIR(status.st_mode):
        found: list[PushSource] = sorted(_walk(root, ""), key=lambda file: file.path)
        if not found:
            raise InvalidInput(f"the folder {root} holds no files: nothing to push", path=root)
    else:
        found = [_file_source(root, os.path.basename(root), status)]
    check_paths([file.path for file in found])
    return found


def _walk(folder: str, prefix: str) -> Iterator[FileSource]:
    try:
        with os.scandir(folder) as entries:
            listing = list(entries)
    except OSError as error:
        raise translate_read_error(error, folder) from error
    for entry in listing:
        path = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, path + "/")
            continue
        try:
            status = entry.stat(follow_symlinks=True)
        except OSError as error:
            raise translate_read_error(error, entry.path) from error
        if stat.S_ISDIR(status.st_mode):
            raise InvalidInput(
                f"{entry.path} is a link to a folder: push the folder itself, or copy it in", path=entry.path
            )
        yield _file_source(entry.path, path, status)


def _file_source(real_path: str, path: str, status: os.stat_result) -> FileSource:
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput(f"{real_path} is not a regular file: remove it from what is pushed", path=real_path)
    if not os.access(real_path, os.R_OK):
        raise PermissionDenied(f"{real_path} can't be read: change its permissions", path=real_path)
    return FileSource(path, real_path, stamp_of(status))


def _source_of_arrays(arrays: Mapping[str, Any]) -> MemorySource:
    if not arrays:
        raise InvalidInput("no arrays were given: nothing to push")
    contiguous: dict[str, np.ndarray[Any, Any]] = {}
    names: list[tuple[str, str, tuple[int, ...]]] = []
    for name, value in arrays.items():
        array = to_numpy(value)
        dtype = array.dtype.newbyteorder("=") if array.dtype.byteorder == ">" else array.dtype
        if not isinstance(name, str) or dtype not in NAMES_BY_NUMPY:
            raise InvalidInput(
                f"array {name!r} has dtype {array.dtype}, which safetensors does not have", name=str(name)
            )
        contiguous[name] = np.ascontiguousarray(array, dtype=dtype).reshape(array.shape)
        names.append((name, NAMES_BY_NUMPY[dtype], array.shape))
    header, layouts = safetensors_header(names)
    bodies = [contiguous[layout.name].reshape(-1).view(np.uint8) for layout in layouts]
    return MemorySource(ARRAYS_FILE, [memoryview(header), *(body.data for body in bodies)])


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what tells a file apart from its later selves."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _changed(path: str) -> InvalidInput:
    return InvalidInput(
        f"{path} changed while it was pushed: nothing was committed, push again when it is still", path=path
    )


def translate_read_error(error: OSError, path: str) -> TensorkeepError:
    """Return our error for what the system said when a file was to be read."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if Path(path).is_symlink():
            return InvalidInput(f"{path} is a link to nothing: remove it or mend it", path=path)
        return NotFound(f"{path} does not exist", path=path)
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"{path} can't be read: change its permissions", path=path)
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
        return InvalidInput(f"{path}: {error.strerror}", path=path)
    return Unavailable(f"{path} can't be read: {error.strerror}", path=path)
