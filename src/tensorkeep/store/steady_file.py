"""A file that is read as what it was when it was opened, and says so when it changed since.

Read with ``pread``, never mapped: a file that shrinks under a mapping kills the process.
"""

import os
import stat
from types import TracebackType
from typing import Self

from tensorkeep.errors import InvalidInput
from tensorkeep.store.sources import Stamp, stamp_of, translate_read_error


class SteadyFile:
    """An open regular file, followed through links; a context manager. Reading is thread safe.

    Args:
        path: of the file.
        verb: what is done with it, for messages: "split".

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is a folder or anything else that is no regular file.
        PermissionDenied: it may not be read.
    """

    def __init__(self, path: str, *, verb: str) -> None:
        self.path = path
        self._verb = verb
        try:
            # Looked at before it is opened: opening a pipe waits, opening some devices does things.
            self._check_regular(os.stat(path))
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise translate_read_error(error, path) from error
        try:
            status = os.fstat(self._descriptor)
            self._check_regular(status)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.stamp: Stamp = stamp_of(status)

    @property
    def size_bytes(self) -> int:
        """How many bytes it had when it was opened."""
        return self.stamp.size_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from ``offset``.

        Raises:
            InvalidInput: it is shorter now.
            Unavailable: the disk can't read it.
        """
        try:
            while buffer:
                count = os.preadv(self._descriptor, [buffer], offset)
                if count == 0:
                    raise self._changed()
                buffer = buffer[count:]
                offset += count
        except OSError as error:
            raise translate_read_error(error, self.path) from error

    def check_unchanged(self) -> None:
        """Return if the file, and what its path leads to, is what was opened.

        Raises:
            InvalidInput: it changed, so what was read may be two things at once.
        """
        try:
            now = stamp_of(os.stat(self.path))
            # A byte past the end tells of growth that times are too coarse for, and of files that only seem empty (/proc).
            longer = os.pread(self._descriptor, 1, self.size_bytes)
        except OSError as error:
            raise self._changed() from error
        if now != self.stamp or stamp_of(os.fstat(self._descriptor)) != self.stamp or longer:
            raise self._changed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        os.close(self._descriptor)

    def _check_regular(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput(f"{self.path} is not a regular file: there is nothing to {self._verb}", path=self.path)

    def _changed(self) -> InvalidInput:
        return InvalidInput(
            f"{self.path} changed during the {self._verb}: nothing was kept, {self._verb} it again when it is still",
            path=self.path,
        )
