"""A folder of this machine as a device (``file:///abs/path``): the local write protocol of layout v1.

An object is written under a name in ``tmp``, checked for its length, made read-only, fsynced, and only then given its own
name, by a call that never replaces one. `flush` makes the names durable: it fsyncs the folders, once for all threads that
wait.

A failed fsync is never tried again: the kernel may have dropped the bytes and would call the next one a success
(PostgreSQL's "fsyncgate", 2018). The device becomes suspect in this process: it is still read, no longer written.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from typing_extensions import Buffer

from tensorkeep.devices.buffers import byte_views, count_bytes, move_all
from tensorkeep.devices.folder_sync import FolderSync
from tensorkeep.devices.local_reading import LocalReader
from tensorkeep.devices.object_names import FIXED_FOLDERS, UNFINISHED_FOLDER, check_object_name
from tensorkeep.devices.os_errors import NO_HARD_LINKS, NOT_SUPPORTED, translated_os_errors
from tensorkeep.devices.system_calls import SystemCalls
from tensorkeep.devices.unfinished import sweep_folder, unfinished_file
from tensorkeep.errors import AlreadyExists, InvalidInput, Unavailable
from tensorkeep.records.device import IDENTITY_NAME
from tensorkeep.runtime import Runtime


class LocalDevice(LocalReader):
    """Objects as read-only files under one folder. See `tensorkeep.devices.protocol.Device`; thread safe.

    Args:
        path: absolute path of the folder. Where it is missing only `prepare` works, the rest is `Unavailable`.
        runtime: clock and randomness for the names of unfinished writes.
        url: the canonical URL of that folder, for messages and records.
        fsync: False leaves out every fsync. ONLY for the negative controls of the power-cut tests: it breaks the promise
            of `flush`, while `durability` still says what the mount is.
        system: the system calls; tests replace one to make it fail.
    """

    def __init__(
        self,
        path: str,
        *,
        runtime: Runtime,
        url: str,
        fsync: bool = True,
        system: SystemCalls | None = None,
    ) -> None:
        super().__init__(path, url=url, system=system or SystemCalls())
        self._runtime = runtime
        self._fsync = fsync
        self._suspect: str | None = None
        self._folders = FolderSync(self._sync_folder)

    def prepare(self) -> None:
        """Make the root and the fixed folders, durably. Idempotent.

        Only for a device that is being added: everywhere else a missing folder means a disk that is not mounted, and its
        mount point must not fill up with objects.
        """
        self._check_writable()
        with translated_os_errors("making the folders", url=self._url):
            self._make_root()
            if not os.path.isdir(self._root):
                raise InvalidInput(f"{self._url} is not a folder: give another path", device=self._url)
            for folder in sorted(FIXED_FOLDERS):  # a parent sorts before what lies in it
                self._make_folder(self._path(folder))
            # Even where nothing was made: a run before this one may have been cut off before its fsyncs.
            for folder in sorted({folder.rpartition("/")[0] for folder in FIXED_FOLDERS}):
                self._sync_folder(folder)

    def replace_identity(self, data: bytes) -> None:
        """Write ``tensorkeep.json`` aside, fsync it, rename it into place, fsync the root."""
        self._check_writable()
        with self._unfinished(IDENTITY_NAME) as path:
            self._write_file(path, byte_views([data]), IDENTITY_NAME)
            self._system.replace(path, self._path(IDENTITY_NAME))
        self._sync_folder("")

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Write a new object: whole and fsynced before it has its name, its name durable once `flush` has returned.

        Where an interrupt cuts it short the object may be there nevertheless, whole: its name is not used again.
        """
        folder = check_object_name(name)
        views = byte_views(data)
        self._check_writable()
        with self._unfinished(name) as path:
            self._write_file(path, views, name)
            self._publish(path, name, folder)
        # After the name is there, never before: a flush under way may have passed the folder already.
        self._folders.mark(_folders_to_sync(folder))

    def flush(self) -> None:
        """Return when the names of all objects put before are durable. One thread fsyncs for all that wait."""
        self._check_writable()
        if self._fsync:
            self._folders.flush()

    def adopt_names(self) -> None:
        """Fsync every folder that holds objects; their files were fsynced before they got their names."""
        self._check_writable()
        with translated_os_errors("listing the models", url=self._url):
            models = [f"versions/{entry.name}" for entry in os.scandir(self._path("versions")) if entry.is_dir()]
        self._folders.mark([*FIXED_FOLDERS, *models])
        self.flush()

    def delete(self, name: str) -> None:
        """Remove an object; absence is no error, but a missing disk is."""
        folder = check_object_name(name)
        self._check_writable()
        with translated_os_errors(f"deleting {name}", url=self._url, name=name):
            try:
                self._system.unlink(self._path(name))
            except FileNotFoundError:
                self._check_prepared()
        # Absent or not: who removed it may have died before the fsync of the folder.
        if os.path.isdir(self._path(folder)):
            self._folders.mark([folder])

    def sweep_unfinished(self, older_than_s: float) -> int:
        """Remove what dead writers left in ``tmp``; return how many files."""
        with translated_os_errors("sweeping unfinished writes", url=self._url):
            self._check_prepared()
            return sweep_folder(
                self._path(UNFINISHED_FOLDER),
                now_s=self._runtime.clock.now().timestamp(),
                older_than_s=older_than_s,
                system=self._system,
            )

    # ------------------------------------------------------------------ files

    @contextmanager
    def _unfinished(self, name: str) -> Iterator[str]:
        """Give the path of an unfinished file, for the object that it will become."""
        with translated_os_errors(f"writing {name}", url=self._url, name=name):
            try:
                with unfinished_file(self._path(UNFINISHED_FOLDER), runtime=self._runtime, system=self._system) as path:
                    yield path
            except FileNotFoundError:
                self._check_prepared()
                raise

    def _write_file(self, path: str, views: Sequence[memoryview], name: str) -> None:
        """Write a file whole: room first, then bytes; length checked, read-only, fsynced, closed."""
        descriptor = self._system.open(path, os.O_WRONLY)
        try:
            self._write_whole(descriptor, views, name)
            self._system.make_read_only(descriptor)
            self._sync(descriptor, name)
        except BaseException:
            with suppress(OSError):  # the error that is on its way says more
                self._system.close(descriptor)
            raise
        self._system.close(descriptor)  # its error counts: NFS reports lost writes here

    def _write_whole(self, descriptor: int, views: Sequence[memoryview], name: str) -> None:
        size = count_bytes(views)
        if size:
            self._allocate(descriptor, size)
        written = move_all(partial(self._system.pwritev, descriptor), views, 0)
        found = self._system.fstat(descriptor).st_size
        if not written == found == size:
            raise Unavailable(
                f"writing {name} on {self._url} stopped: {written} of {size} bytes written, the file has {found}",
                device=self._url,
                object=name,
            )

    def _allocate(self, descriptor: int, size_bytes: int) -> None:
        try:
            self._system.allocate(descriptor, size_bytes)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise

    def _publish(self, path: str, name: str, folder: str) -> None:
        """Give a finished file its name, never replacing one; a model's folder under ``versions`` is made on demand."""
        if folder not in FIXED_FOLDERS:
            self._make_folder(self._path(folder))
        try:
            self._link(path, self._path(name))
        except FileExistsError as error:
            raise AlreadyExists(
                f"{name} is already on {self._url}: physical names are never used twice", device=self._url, object=name
            ) from error

    def _link(self, path: str, target: str) -> None:
        try:
            self._system.link(path, target)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            self._system.rename_new(path, target)

    # ---------------------------------------------------------------- folders

    def _make_root(self) -> None:
        missing = []
        folder = self._root
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for new in reversed(missing):
            self._make_folder(new)
            self._sync_path(os.path.dirname(new))

    def _make_folder(self, path: str) -> None:
        with suppress(FileExistsError):
            self._system.mkdir(path)

    # ------------------------------------------------------------------ fsync

    def _check_writable(self) -> None:
        if self._suspect is not None:
            raise Unavailable(
                f"{self._url} is suspect and takes no more writes: {self._suspect}. "
                "Check the disk (dmesg), then start again",
                device=self._url,
                suspect=True,
            )

    def _sync(self, descriptor: int, name: str) -> None:
        """Fsync a file, once. Any error makes the device suspect: a lack of room, too, may have lost more than this file."""
        if not self._fsync:
            return
        try:
            self._system.fsync(descriptor)
        except OSError as error:
            self._suspect_after(error, name)
            raise

    def _sync_folder(self, folder: str) -> None:
        """Make the entries of a folder of the device durable; a suspect device's are not tried again."""
        self._check_writable()
        with translated_os_errors(f"fsync of the folder {folder or '.'!r}", url=self._url):
            self._sync_path(self._path(folder))

    def _sync_path(self, path: str) -> None:
        descriptor = self._system.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if self._fsync:
                self._system.fsync(descriptor)
        except OSError as error:
            # CIFS and some of FUSE have no fsync of folders; they are soft and promise nothing.
            if error.errno in NOT_SUPPORTED and self.durability == "soft":
                return
            self._suspect_after(error, path)
            raise
        finally:
            self._system.close(descriptor)

    def _suspect_after(self, error: OSError, what: str) -> None:
        self._suspect = f"the fsync of {what} failed ({errno.errorcode.get(error.errno or 0, error)})"


def _folders_to_sync(folder: str) -> list[str]:
    """Return the folders whose entries lead to an object in ``folder``, up to one that `prepare` made durable.

    Also where this put did not make the folder itself: who did may be another process, which died before its flush.
    """
    folders = [folder]
    while folders[-1] not in FIXED_FOLDERS:
        folders.append(folders[-1].rpartition("/")[0])
    return folders
