"""Files that are written for the user: under a temporary name beside their own, which they get only when whole.

Nothing that differs is overwritten unless it is asked for, and what was begun and not published is removed. What the
operating system refuses becomes a typed error that names the path.
"""

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tensorkeep.errors import AlreadyExists, Capacity, InvalidInput, PermissionDenied, TensorkeepError, Unavailable
from tensorkeep.runtime import Runtime
from tensorkeep.store.journal import new_ulid


@dataclass(frozen=True, slots=True)
class UnfinishedFile:
    """A file being written: its final path, and the temporary one. Writes may come from several threads at once."""

    path: Path
    temporary: Path

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
            raise translate_os_error(error, self.temporary) from error

    def publish(self, *, force: bool, verb: str) -> None:
        """Give the whole file its name; without ``force`` never in the place of one that somebody else made meanwhile.

        Raises:
            AlreadyExists: there is one; the message says how to run ``verb`` again.
        """
        if force:
            self.temporary.replace(self.path)
            return
        try:
            os.link(self.temporary, self.path)
        except FileExistsError as error:
            raise AlreadyExists(
                f"{self.path} was made during the {verb}: move it away, or {verb} with --force", path=str(self.path)
            ) from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            self.temporary.replace(self.path)  # a file system without hard links

    def discard(self) -> None:
        """Remove the temporary name: the bytes with it, unless they were published."""
        self.temporary.unlink(missing_ok=True)


def open_unfinished(path: Path, size_bytes: int, runtime: Runtime) -> UnfinishedFile:
    """Return a new file of that size under a temporary name, its space reserved; folders are made.

    Raises:
        OSError: the system refuses; nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tensorkeep-{new_ulid(runtime)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _reserve(descriptor, size_bytes)
    except OSError:
        temporary.unlink()
        raise
    finally:
        os.close(descriptor)
    return UnfinishedFile(path, temporary)


def translate_os_error(error: OSError, place: Path | None) -> TensorkeepError:
    """Return the typed error for what the system refused, at the path that it names or else at ``place``."""
    where = error.filename or place or "the destination"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Capacity(f"{where} is full: free space or write somewhere else")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDenied(f"{where} can't be written: {error.strerror}")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG):
        return InvalidInput(f"{where}: {error.strerror}")
    return Unavailable(f"{where}: {error.strerror}")


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
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, size_bytes)
