"""Reading a folder of this machine as a device: what `LocalDevice` does without changing anything.

Objects are read with ``preadv``: a file that shrinks under a mapping kills the process, here it is an `Integrity` error. Who
maps one (`open_to_map`) and verifies it there has the system keep its length (`OpenObject.keep_length`). Absence is told from a disk that is not there: an empty mount point is `Unavailable`, not `NotFound`.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import cached_property, partial

from tensorkeep.devices import mounts
from tensorkeep.devices.buffers import byte_views, count_bytes, move_all
from tensorkeep.devices.object_names import UNFINISHED_FOLDER, check_object_name, folders_to_list
from tensorkeep.devices.os_errors import translate_os_error, translated_os_errors
from tensorkeep.devices.protocol import FileIdentity, ObjectInfo, identity_of
from tensorkeep.devices.system_calls import SystemCalls
from tensorkeep.errors import Integrity, InvalidInput, NotFound, TensorkeepError, Unavailable
from tensorkeep.records.device import IDENTITY_NAME, Durability

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # NONBLOCK: whatever lies under the name, opening it does not hang


class LocalReader:
    """The reading half of `tensorkeep.devices.local.LocalDevice`; thread safe, without state.

    Args:
        path: absolute path of the folder.
        url: its canonical URL, for messages and records.
        system: the system calls.
    """

    def __init__(self, path: str, *, url: str, system: SystemCalls) -> None:
        if not os.path.isabs(path):
            raise InvalidInput(f"a local device needs an absolute path, not {path!r}", path=path)
        self._root = path
        self._url = url
        self._system = system

    @property
    def url(self) -> str:
        """The canonical ``file:`` URL."""
        return self._url

    @property
    def durability(self) -> Durability:
        """What the mount under the folder promises; looked up at the first use."""
        return self._durability

    @cached_property
    def _durability(self) -> Durability:
        with translated_os_errors("looking up the mount", url=self._url):
            self._check_root()
            return mounts.durability_of(self._root)

    def read_identity(self) -> bytes | None:
        """Return the bytes of ``tensorkeep.json``; None where the folder is there without one."""
        with translated_os_errors(f"reading {IDENTITY_NAME}", url=self._url, name=IDENTITY_NAME):
            try:
                descriptor = self._system.open(self._path(IDENTITY_NAME), _READ)
            except FileNotFoundError:
                self._check_root()
                return None
            return self._read_open(descriptor, IDENTITY_NAME)

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers with ``preadv``; the object's size is checked before the first byte."""
        with closing(self.open_object(name)) as opened:
            opened.read_into(offset, buffers)

    def open_object(self, name: str) -> "_OpenFile":
        """Return an object to read; its file is opened, and its size looked at, by the first read."""
        return _OpenFile(name, url=self._url, system=self._system, open_file=self._open_file)

    def read(self, name: str) -> bytes:
        """Return a whole object."""
        check_object_name(name)
        with translated_os_errors(f"reading {name}", url=self._url, name=name):
            return self._read_open(self._open_object(name), name)

    @cached_property
    def maps_files(self) -> bool:
        """Whether objects may be mapped: on file systems of this machine; looked up at the first use."""
        try:
            return mounts.can_map(self._root)
        except OSError:
            return False

    def open_to_map(self, name: str, size_bytes: int) -> "_OpenFile":
        """Return an object that has exactly that many bytes, opened."""
        opened = self.open_object(name)
        size = opened.open()
        if size != size_bytes:
            text = f"{name} on {self._url} has {size} bytes, not {size_bytes}"
            raise _wrong_size(text, name, self._url, size_bytes, size)
        return opened

    def size_of(self, name: str) -> int:
        """Return the size of an object in bytes."""
        check_object_name(name)
        with translated_os_errors(f"looking at {name}", url=self._url, name=name):
            try:
                return self._object_size(os.lstat(self._path(name)), name)
            except FileNotFoundError as error:
                raise self._absent(name) from error

    def iter_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the regular files under a folder prefix; ``""`` is every folder of the layout but ``tmp``."""
        return self._iter_folders(folders_to_list(prefix))

    def free_bytes(self) -> int | None:
        """Return what the file system has for users without privileges."""
        with translated_os_errors("asking for free space", url=self._url):
            self._check_root()
            found = os.statvfs(self._root)
            return found.f_bavail * found.f_frsize

    def drop_cached(self, name: str) -> None:
        """Ask the kernel to forget an object's pages, so that the next read comes from the disk: a hint, no promise."""
        with translated_os_errors(f"dropping {name} from the cache", url=self._url, name=name):
            descriptor = self._open_object(name)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                self._system.close(descriptor)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _check_root(self) -> None:
        """Return if the folder is there; else raise `Unavailable`."""
        if not os.path.isdir(self._root):
            raise Unavailable(
                f"the folder of {self._url} is missing: is the disk mounted?", device=self._url, reason="missing_root"
            )

    def _check_prepared(self) -> None:
        """Return if the folder is there and is a device's; else raise `Unavailable`: nothing can be said of any object."""
        self._check_root()
        if not os.path.isdir(self._path(UNFINISHED_FOLDER)):
            raise Unavailable(
                f"the folder of {self._url} has no {UNFINISHED_FOLDER!r} in it: is the disk mounted?",
                device=self._url,
                reason="not_prepared",
            )

    def _open_object(self, name: str) -> int:
        try:
            return self._system.open(self._path(name), _READ)
        except FileNotFoundError as error:
            raise self._absent(name) from error

    def _open_file(self, name: str) -> tuple[int, os.stat_result]:
        """Return a descriptor of an object, and what the system says of its file, a regular one."""
        check_object_name(name)
        descriptor = self._open_object(name)
        try:
            found = self._system.fstat(descriptor)
            self._object_size(found, name)
            return descriptor, found
        except BaseException:
            self._system.close(descriptor)
            raise

    def _absent(self, name: str) -> NotFound:
        """Return the error for an absent object, if the disk is there at all."""
        self._check_prepared()
        return NotFound(f"{name} is not on {self._url}", device=self._url, object=name)

    def _object_size(self, found: os.stat_result, name: str) -> int:
        if not stat.S_ISREG(found.st_mode):
            raise Integrity(f"{name} on {self._url} is not a regular file", device=self._url, object=name)
        return found.st_size

    def _read_open(self, descriptor: int, name: str) -> bytes:
        """Return the whole content, and close the descriptor."""
        try:
            size = self._object_size(self._system.fstat(descriptor), name)
            chunks: list[bytes] = []
            reached = 0
            while reached < size:
                chunk = self._system.pread(descriptor, size - reached, reached)
                if not chunk:
                    raise _too_short(name, self._url, size, reached)
                chunks.append(chunk)
                reached += len(chunk)
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        finally:
            self._system.close(descriptor)

    def _iter_folders(self, folders: Sequence[str]) -> Iterator[ObjectInfo]:
        with translated_os_errors("listing", url=self._url):
            for folder in folders:
                yield from self._iter_folder(folder)
            # A disk that went away looks like empty folders: whoever reads the list to its end knows that it stayed.
            self._check_prepared()

    def _iter_folder(self, folder: str) -> Iterator[ObjectInfo]:
        try:
            entries = os.scandir(self._path(folder))
        except FileNotFoundError:
            return  # `_iter_folders` tells a folder that is not there from a disk that is not
        with entries:
            for entry in entries:
                name = f"{folder}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    yield from self._iter_folder(name)
                elif entry.is_file(follow_symlinks=False):
                    try:
                        size = entry.stat(follow_symlinks=False).st_size
                    except FileNotFoundError:
                        continue  # deleted meanwhile
                    yield ObjectInfo(name, size)


class _OpenFile:
    """A file of a device, opened by its first read, and closed with its last reference at the latest.

    Args:
        name: the object's.
        url: the device's, for messages.
        system: the system calls.
        open_file: opens an object, and returns the descriptor and what the system says of the file.
    """

    def __init__(
        self, name: str, *, url: str, system: SystemCalls, open_file: Callable[[str], tuple[int, os.stat_result]]
    ) -> None:
        self._name = name
        self._url = url
        self._system = system
        self._open_file = open_file
        self._descriptor: int | None = None
        self._size = 0
        self._identity: FileIdentity = (0, 0)
        self._is_kept = False
        self._keeper = 0

    def open(self) -> int:
        """Open it, and return its size in bytes."""
        try:
            self._open()
        except OSError as error:
            raise translate_os_error(error, f"opening {self._name}", url=self._url, name=self._name) from error
        return self._size

    @property
    def descriptor(self) -> int:
        """What the system calls it; only of one that is open."""
        assert self._descriptor is not None
        return self._descriptor

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        if offset < 0:
            raise InvalidInput(
                f"reading {self._name} from the negative offset {offset}", object=self._name, offset=offset
            )
        views = byte_views(buffers)
        end = offset + count_bytes(views)
        try:
            descriptor = self._open()
            if end > self._size:
                raise self._too_short(end, self._size)
            reached = offset + move_all(partial(self._system.preadv, descriptor), views, offset)
        except OSError as error:
            raise translate_os_error(error, f"reading {self._name}", url=self._url, name=self._name) from error
        if reached != end:
            raise self._too_short(end, reached)

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):  # all that was asked for has been read
                if self._is_kept and self._keeper == os.getpid():  # what a child inherits is its parent's to give back
                    self._system.release_length(descriptor)
            with suppress(OSError):
                self._system.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def keep_length(self, size_bytes: int) -> bool:
        try:
            descriptor = self._open()
            self._system.keep_length(descriptor)
            self._is_kept, self._keeper = True, os.getpid()
            return self._system.fstat(descriptor).st_size >= size_bytes  # asked anew: it may have been cut before
        except (OSError, TensorkeepError):
            return False  # reading it says why

    def keeps_length(self) -> bool:
        try:
            return self._is_kept and self._system.keeps_length(self.descriptor)
        except OSError:
            return False

    def file_identity(self) -> FileIdentity:
        self.open()
        return self._identity

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor, found = self._open_file(self._name)
            self._size, self._identity = found.st_size, identity_of(found)
        return self._descriptor

    def _too_short(self, needed: int, size: int) -> Integrity:
        return _too_short(self._name, self._url, needed, size)


def _too_short(name: str, url: str, needed: int, size: int) -> Integrity:
    text = f"{name} on {url} is shorter than expected: {size} bytes where {needed} are needed"
    return _wrong_size(text, name, url, needed, size)


def _wrong_size(text: str, name: str, url: str, needed: int, size: int) -> Integrity:
    return Integrity(text, device=url, object=name, size_bytes=size, needed_bytes=needed)
