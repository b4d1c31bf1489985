"""The operating system's errors as ours: by what the caller does next."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tensorkeep.errors import Capacity, InvalidInput, PermissionDenied, TensorkeepError, Unavailable

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What file systems answer to a call that they do not have."""

NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What ``link`` answers where a file system (FAT, exFAT, some of FUSE) has no hard links."""


def translate_os_error(error: OSError, doing: str, *, url: str, name: str | None = None) -> TensorkeepError:
    """Return our error for one of the system's; ``doing`` says what failed, as in "writing parts/…".

    Absence is not decided here: whoever knows the device tells an absent object from an absent disk.
    """
    number = error.errno or 0
    reason = f"{doing} on {url} failed: {os.strerror(number) if number else error} ({_symbol(number)})"
    facts = {"device": url, "object": name, "errno": number}
    if number in NO_ROOM:
        return Capacity(f"{reason}: free some space, raise the quota, or add a device", **facts)
    if number in NOT_ALLOWED:
        return PermissionDenied(
            f"{reason}: check the folder's owner and rights, and that it is not mounted read-only", **facts
        )
    if number == errno.EXDEV:
        return InvalidInput(f"{reason}: all folders of a device must lie on one file system", **facts)
    return Unavailable(f"{reason}: check the disk and its mount, then try again", **facts)


@contextmanager
def translated_os_errors(doing: str, *, url: str, name: str | None = None) -> Iterator[None]:
    """Raise our errors for the system's that the block raises."""
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, doing, url=url, name=name) from error


def _symbol(number: int) -> str:
    return errno.errorcode.get(number, "no errno")
