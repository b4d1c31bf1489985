"""Unfinished writes of a local device: files in its ``tmp`` folder, each held with a lock by the writer that lives.

The kernel drops a lock (``flock``) when its writer dies, however it dies, so that a sweep can tell a dead writer's file
from a living one's without clocks, process ids or a registry. Source: flock(2).
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tensorkeep.devices.system_calls import SystemCalls
from tensorkeep.errors import Internal
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid
from tensorkeep.runtime import Runtime

_ATTEMPTS = 1000
"""Names tried: with real randomness the first is free; with a seeded one, a killed run's names may lie about."""


@contextmanager
def unfinished_file(folder: str, *, runtime: Runtime, system: SystemCalls) -> Iterator[str]:
    """Give the path of a new empty file, ``<ulid>`` in a folder, locked; its name is gone when the block is left.

    The block writes it through a descriptor of its own, so that an error of that one's ``close`` comes before the file is
    published, while the lock, held by another, lasts until the temporary name is gone.

    Raises:
        OSError: the system's reason.
    """
    path, lock = _create_locked(folder, runtime, system)
    try:
        yield path
    finally:
        with suppress(OSError):  # renamed already; or the next sweep takes it: a name in tmp harms nobody
            system.unlink(path)
        with suppress(OSError):  # nothing was written through it
            os.close(lock)


def sweep_folder(folder: str, *, now_s: float, older_than_s: float, system: SystemCalls) -> int:
    """Remove the files that no living writer holds and that were last written before; return how many.

    Args:
        folder: the folder of unfinished writes.
        now_s: present time, in seconds of the epoch as file times have it.
        older_than_s: how long ago the last write must be; 0 or less asks no clock, the locks alone decide.
        system: the calls.

    Raises:
        OSError: the system's reason.
    """
    with os.scandir(folder) as entries:
        files = [entry.path for entry in entries if entry.is_file(follow_symlinks=False)]
    swept = 0
    for path in files:
        with suppress(FileNotFoundError):  # finished, or swept by another, meanwhile
            young = older_than_s > 0 and now_s - os.lstat(path).st_mtime < older_than_s
            if not young and _sweep_file(path, system):
                swept += 1
    return swept


def _create_locked(folder: str, runtime: Runtime, system: SystemCalls) -> tuple[str, int]:
    for _ in range(_ATTEMPTS):
        ulid = make_ulid(runtime.clock.now(), runtime.randomness.random_bytes(RANDOM_BYTES))
        path = os.path.join(folder, ulid)
        try:
            lock = system.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        except FileExistsError:
            continue
        try:
            taken = _take(lock)
        except BaseException:
            os.close(lock)
            raise
        if taken:
            return path, lock
        os.close(lock)
    raise Internal(
        f"no free name for an unfinished write in {_ATTEMPTS} tries: the source of randomness repeats itself"
    )


def _take(lock: int) -> bool:
    """Lock a new file; False where a sweep was quicker: it has locked it, or already removed it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(lock).st_nlink == 1


def _sweep_file(path: str, system: SystemCalls) -> bool:
    # NONBLOCK and the check of the type: whatever somebody put here, the sweep does not hang on it.
    descriptor = system.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        # A shared lock is enough against a writer's exclusive one, and NFS gives no other on a file open for reading.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        system.unlink(path)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
