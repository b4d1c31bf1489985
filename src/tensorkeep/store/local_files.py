"""Files that are written for the user: under a temporary name beside their own, which they get only when whole.

Nothing that differs is overwritten unless it is asked for, and what was begun and not published is removed. What the
operating system refuses becomes a typed error that names the path.
"""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tensorkeep.devices.os_errors import NO_HARD_LINKS, NO_ROOM, NOT_ALLOWED, NOT_SUPPORTED
from tensorkeep.devices.system_calls import SystemCalls
from tensorkeep.errors import (
    AlreadyExists,
    Capacity,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)
from tensorkeep.runtime import Runtime
from tensorkeep.store.journal import new_ulid

_NO_SUCH_NAME = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})


@dataclass(frozen=True, slots=True)
class UnfinishedFile:
    """A file being written: its final path, and the temporary one. Writes may come from several threads at once."""

    path: Path
    temporary: Path

    def create(self, size_bytes: int) -> None:
        """Make it under its temporary name, its space reserved.

        Raises:
            OSError: the system refuses, for the path that the user knows; nothing is left.
        """
        try:
            descriptor = os.open(self.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                _reserve(descriptor, size_bytes)
            except BaseException:
                self.temporary.unlink()
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def write_at(self, data: memoryview, offset: int) -> None:
        """Write all bytes at an offset; see `write_all`."""
        self.write_all([(data, offset)])

    def write_all(self, pieces: Iterable[tuple[memoryview, int]]) -> None:
        """Write each piece whole at its offset.

        Raises:
            Capacity: the disk is full.
            TensorkeepError: whatever else the system refuses.
        """
        # Opened for each call: a version may have more files than a process may have descriptors.
        try:
            descriptor = os.open(self.temporary, os.O_WRONLY | os.O_CLOEXEC)
            try:
                for data, offset in pieces:
                    _write_whole(descriptor, data, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise translate_os_error(error, self.path) from error

    def sync(self) -> None:
        """Return when what was written is on the disk; after an error it may never be.

        Raises:
            TensorkeepError: the disk can't keep it.
        """
        try:
            _sync(self.temporary)
        except OSError as error:
            raise translate_os_error(error, self.path) from error

    def publish(self, *, force: bool, verb: str) -> None:
        """Give the whole file its name; without ``force`` never in the place of one that somebody else made meanwhile.

        Raises:
            AlreadyExists: there is one; the message says how to run ``verb`` again.
            OSError: the system refuses.
        """
        if force:
            self.temporary.replace(self.path)
            return
        try:
            _take_name(self.temporary, self.path)
        except FileExistsError as error:
            raise AlreadyExists(
                f"{self.path} was made during the {verb}: move it away, or {verb} with --force", path=str(self.path)
            ) from error
        self.discard()

    def discard(self) -> None:
        """Remove the temporary name: the bytes with it, unless they were published."""
        self.temporary.unlink(missing_ok=True)


def open_unfinished(path: Path, size_bytes: int, runtime: Runtime) -> UnfinishedFile:
    """Return a new file of that size under a temporary name, its space reserved; folders are made.

    Raises:
        OSError: the system refuses; nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = name_unfinished(path, runtime)
    file.create(size_bytes)
    return file


def check_path(path: Path) -> None:
    """Return if the system can be asked about a path.

    Raises:
        InvalidInput: it holds a NUL.
    """
    if "\0" in str(path):
        raise InvalidInput(f"the path {str(path)!r} holds a NUL", path=str(path))


def name_unfinished(path: Path, runtime: Runtime) -> UnfinishedFile:
    """Return a file that is still to be created, with a temporary name that nothing else has."""
    return UnfinishedFile(path, path.parent / f".tensorkeep-{new_ulid(runtime)}")


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk.

    Raises:
        TensorkeepError: the disk can't keep them.
    """
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:  # CIFS and some of FUSE have no fsync of folders
            raise translate_os_error(error, folder) from error


def translate_os_error(error: OSError, place: Path | None) -> TensorkeepError:
    """Return the typed error for what the system refused, at the path that it names or else at ``place``."""
    where = str(error.filename or place or "the destination")
    if error.errno in NO_ROOM:
        return Capacity(f"{where} does not fit, its disk is full: free space or write somewhere else", path=where)
    if error.errno in NOT_ALLOWED:
        return PermissionDenied(f"{where} can't be written: {error.strerror}", path=where)
    if error.errno in _NO_SUCH_NAME:
        return InvalidInput(f"{where}: {error.strerror}", path=where)
    if error.errno == errno.ENOENT:
        return NotFound(f"{where} can't be written: its folder is gone", path=where)
    return Unavailable(f"{where}: {error.strerror}", path=where)


def _write_whole(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data = data[count:]
        offset += count


def _reserve(descriptor: int, size_bytes: int) -> None:
    if not size_bytes:
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        os.ftruncate(descriptor, size_bytes)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_name(source: Path, target: Path) -> None:
    """Give a file a new name, never one that is taken; the old one may stay."""
    try:
        os.link(source, target)
        return
    except OSError as error:
        if error.errno not in {*NO_HARD_LINKS, errno.EMLINK}:
            raise
    # A file system without hard links: FAT, some of FUSE.
    try:
        SystemCalls().rename_new(str(source), str(target))
        return
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.replace(target)
