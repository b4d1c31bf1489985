"""The system calls through which a local device touches its disk: one small seam, so that tests can make them fail.

Every method is the plain call of ``os``, which retries EINTR by itself; nothing here decides anything.
"""

import ctypes
import errno
import fcntl
import os
import signal
import sys
from collections.abc import Sequence

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


class SystemCalls:
    """The real calls. Tests subclass it and replace the one that shall fail."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        """Return a descriptor that a child process does not inherit."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def fstat(self, descriptor: int) -> os.stat_result:
        """Return what a descriptor refers to."""
        return os.fstat(descriptor)

    def allocate(self, descriptor: int, size_bytes: int) -> None:
        """Reserve room for a file from its start (``posix_fallocate``)."""
        os.posix_fallocate(descriptor, 0, size_bytes)

    def pwritev(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        """Write views at an offset; return how many bytes were written."""
        return os.pwritev(descriptor, views, offset)

    def set_direct(self, descriptor: int, *, direct: bool) -> None:
        """Let writes of a descriptor go past the page cache (``O_DIRECT``), or through it again."""
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)

    def preadv(self, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        """Fill views from an offset; return how many bytes were read, 0 at the end."""
        return os.preadv(descriptor, views, offset)

    def pread(self, descriptor: int, size_bytes: int, offset: int) -> bytes:
        """Return at most that many bytes from an offset, none at the end."""
        return os.pread(descriptor, size_bytes, offset)

    def keep_length(self, descriptor: int) -> None:
        """Take a read lease: until `release_length` whoever wants to shorten the file, or to write to it, has to wait.

        At most 45 s (``/proc/sys/fs/lease-break-time``). The kernel tells the holder by a signal: SIGURG here, which does nothing
        unless a program asks for it. Source: fcntl(2), "Leases".

        Raises:
            OSError: somebody writes to the file, it is another user's, or the system has no leases.
        """
        if sys.platform != "linux":
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)

    def keeps_length(self, descriptor: int) -> bool:
        """Return whether the lease of `keep_length` is there, and nobody waits for its end. Source: fcntl(2), F_GETLEASE."""
        return fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK

    def release_length(self, descriptor: int) -> None:
        """Give the lease back. To close the descriptor is not enough: a process forked meanwhile would go on holding it."""
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def make_read_only(self, descriptor: int) -> None:
        """Take all rights to write from a file."""
        os.fchmod(descriptor, 0o444)

    def fsync(self, descriptor: int) -> None:
        """Return when a file's bytes, or a folder's entries, are on the disk."""
        os.fsync(descriptor)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; never replaces one."""
        os.link(source, target, follow_symlinks=False)

    def rename_new(self, source: str, target: str) -> None:
        """Rename, never replacing a name (``renameat2`` with ``RENAME_NOREPLACE``).

        Raises:
            FileExistsError: the target is taken.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "renameat2"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
        if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), target)

    def replace(self, source: str, target: str) -> None:
        """Rename, replacing the target."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        """Remove a name."""
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        """Make a folder with the rights that the user's umask leaves."""
        os.mkdir(path)
