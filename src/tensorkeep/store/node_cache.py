"""A folder of this machine that keeps parts of remote models, by their digest, for all processes and all stores.

A part is one file, ``parts/ab/<digest>``, read-only, which appears whole. Until then it is ``tmp/<digest>``, locked (``flock``) by the
process that fetches it: others wait for it, and where that process and the children that it forked meanwhile die, the lock is free at
once and the file anyone's. Room is
made by removing what was used longest ago, under one lock of the folder; whoever has such a file mapped keeps its pages.

Nothing here is fsynced, and nothing believed: what is read from the folder is verified like a copy on any device, and removed
where it is bad.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from tensorkeep.devices import LocalDevice
from tensorkeep.runtime import Runtime

_TOUCH_EVERY_S = 60.0
"""A use is noted in the file's mtime at most so often."""

_LOCK_STEP_S = 0.01

_PARTS, _UNFINISHED, _LOCK = "parts", "tmp", "lock"


class CachedPart(NamedTuple):
    """A part that the cache has or may get: its digest and its length."""

    digest: bytes
    size_bytes: int


class Claim:
    """A part that this process alone fetches now. Thread safe where ranges don't overlap; `finish` or `drop` ends it."""

    def __init__(self, descriptor: int, unfinished: Path, final: Path) -> None:
        self._descriptor = descriptor
        self._unfinished = unfinished
        self._final = final

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes of the part; raises `OSError`."""
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written

    def reserve(self, size_bytes: int) -> bool:
        """Empty the file and take its bytes from the disk; return whether there was room."""
        try:
            os.ftruncate(self._descriptor, 0)
            os.posix_fallocate(self._descriptor, 0, size_bytes)
            self._final.parent.mkdir(exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return False
            raise
        return True

    def finish(self) -> None:
        """Give the part, which is whole, its name."""
        try:
            os.fchmod(self._descriptor, 0o444)
            self._unfinished.rename(self._final)
        finally:
            _unlock(self._descriptor)

    def drop(self) -> None:
        """Remove what was written."""
        with suppress(OSError):
            self._unfinished.unlink()
        _unlock(self._descriptor)


Answer = Claim | Literal["there", "busy", "refused"]
"""What a process gets that wants to fetch a part: the right to; or it is there; or another is at it; or there is no room."""


class NodeCache:
    """The folder. Thread safe; safe for many processes.

    Args:
        folder: absolute; made where it is missing.
        limit_bytes: the most that all files together take; None is half of the file system.
        runtime: its clock says when a part was used; the rest is for the device that reads the folder.
    """

    def __init__(self, folder: Path, limit_bytes: int | None, runtime: Runtime) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._clock = runtime.clock
        self.device = LocalDevice(str(folder), runtime=runtime, url=folder.as_uri())

    @staticmethod
    def name_of(digest: bytes) -> str:
        """Return the name of a part's file, relative to the folder."""
        text = digest.hex()
        return f"{_PARTS}/{text[:2]}/{text}"

    def holds(self, wanted: CachedPart) -> bool:
        """Whether a part is there in its full length; notes that it is used."""
        path = self._folder / self.name_of(wanted.digest)
        try:
            found = path.stat()
        except OSError:
            return False
        now_s = self._clock.now().timestamp()
        if now_s - found.st_mtime > _TOUCH_EVERY_S:
            with suppress(OSError):  # another user's file is used all the same
                os.utime(path, (now_s, now_s))
        return found.st_size == wanted.size_bytes

    def remove(self, digest: bytes) -> None:
        """Remove a part that was found bad."""
        with suppress(OSError):
            (self._folder / self.name_of(digest)).unlink()

    def claim(
        self, wanted: Sequence[CachedPart], keep: Collection[bytes], may_wait: Callable[[], bool]
    ) -> list[Answer]:
        """Return for each part what became of the wish to fetch it. Room is made without removing any part of ``keep``.

        The folder's lock is waited for as long as ``may_wait`` says so; without it all parts are refused.

        Raises:
            OSError: the folder can't be used.
        """
        (self._folder / _UNFINISHED).mkdir(parents=True, exist_ok=True)
        (self._folder / _PARTS).mkdir(exist_ok=True)
        answers: list[Answer] = []
        with self._locked(may_wait) as locked:
            if not locked:
                return ["refused"] * len(wanted)
            room = _LazyRoom(lambda: self._room(keep))
            try:
                answers.extend(
                    self._claim(each, room) for each in wanted
                )  # where one raises, those before it are there
            except BaseException:
                for answer in answers:
                    if isinstance(answer, Claim):
                        answer.drop()
                raise
        return answers

    def is_settled(self, wanted: CachedPart) -> bool:
        """Whether nobody fetches a part at this moment: it is there, or anyone's."""
        if self.holds(wanted):
            return True
        try:
            descriptor = os.open(self._folder / _UNFINISHED / wanted.digest.hex(), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            return _try_lock(descriptor)
        finally:
            _unlock(descriptor)

    @contextmanager
    def _locked(self, may_wait: Callable[[], bool]) -> Iterator[bool]:
        descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while not (locked := _try_lock(descriptor)) and may_wait():
                self._clock.sleep(_LOCK_STEP_S)
            yield locked
        finally:
            _unlock(descriptor)

    def _claim(self, wanted: CachedPart, room: "_LazyRoom") -> Answer:
        if self.holds(wanted):
            return "there"
        unfinished = self._folder / _UNFINISHED / wanted.digest.hex()
        try:
            descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except PermissionError:  # another user is at it, or was
            return "refused"
        try:
            mine = _try_lock(descriptor) and _is_same(descriptor, unfinished)
        except BaseException:
            os.close(descriptor)
            raise
        if not mine:  # another has it; or it got its name, or was removed, between the two calls
            _unlock(descriptor)
            return "there" if self.holds(wanted) else "busy"
        claim = Claim(descriptor, unfinished, self._folder / self.name_of(wanted.digest))
        try:
            if self.holds(wanted):  # it got its name before this file was made
                claim.drop()
                return "there"
            if not (room.take(wanted.size_bytes) and claim.reserve(wanted.size_bytes)):
                claim.drop()
                return "refused"
        except BaseException:
            claim.drop()
            raise
        return claim

    def _room(self, keep: Collection[bytes]) -> "_Room":
        parts = sorted(self._files(_PARTS), key=lambda each: each[2])
        used = sum(size for _, size, _ in parts)
        for path, size, _ in self._files(_UNFINISHED):
            used += 0 if _remove_if_orphaned(path) else size
        found = os.statvfs(self._folder)
        limit = self._limit if self._limit is not None else found.f_blocks * found.f_frsize // 2
        kept = {digest.hex() for digest in keep}
        free = min(limit - used, found.f_bavail * found.f_frsize)
        return _Room(free, [(path, size) for path, size, _ in parts if path.name not in kept])

    def _files(self, folder: str) -> Iterator[tuple[Path, int, float]]:
        """Yield the path, size and mtime of the files of a folder and of those in it; what goes away meanwhile is left out."""
        with suppress(OSError), os.scandir(self._folder / folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._files(f"{folder}/{entry.name}")
                    elif entry.is_file(follow_symlinks=False):
                        found = entry.stat(follow_symlinks=False)
                        yield Path(entry.path), found.st_size, found.st_mtime


class _Room:
    """How many bytes may still come, and what may go for them, the oldest first."""

    def __init__(self, free_bytes: int, removable: list[tuple[Path, int]]) -> None:
        self._free = free_bytes
        self._removable = removable[::-1]
        self._removable_bytes = sum(size for _, size in removable)

    def take(self, size_bytes: int) -> bool:
        """Make room, and return whether there is."""
        if size_bytes > self._free + self._removable_bytes:
            return False
        while self._free < size_bytes and self._removable:
            path, size = self._removable.pop()
            self._removable_bytes -= size
            with suppress(OSError):  # another user's stays
                path.unlink(missing_ok=True)
                self._free += size
        if self._free < size_bytes:
            return False
        self._free -= size_bytes
        return True


class _LazyRoom:
    """Room that is counted at the first wish for some: that looks at every file."""

    def __init__(self, count: Callable[[], _Room]) -> None:
        self._count = count
        self._room: _Room | None = None

    def take(self, size_bytes: int) -> bool:
        self._room = self._room or self._count()
        return self._room.take(size_bytes)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    """Give up a lock and close: a child that was forked meanwhile has the file open too, and would keep the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_if_orphaned(path: Path) -> bool:
    """Remove an unfinished file whose process is gone; return whether it was."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if _try_lock(descriptor):
                path.unlink()
                return True
        finally:
            _unlock(descriptor)
    return False
