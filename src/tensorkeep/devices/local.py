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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from typing_extensions import Buffer

from tensorkeep.devices.buffers import byte_views, count_bytes
from tensorkeep.devices.file_writing import write_views
from tensorkeep.devices.folder_sync import FolderSync
from tensorkeep.devices.local_reading import LocalReader
from tensorkeep.devices.object_names import FIXED_FOLDERS, UNFINISHED_FOLDER, check_object_name
from tensorkeep.devices.os_errors import NO_HARD_LINKS, NOT_SUPPORTED, translated_os_errors
from tensorkeep.devices.system_calls import SystemCalls
from tensorkeep.devices.unfinished import sweep_folder, unfinished_file
from tensorkeep.errors import AlreadyExists, InvalidInput, TensorkeepError, Unavailable
from tensorkeep.records.device import IDENTITY_NAME
from tensorkeep.runtime import Runtime

_TOGETHER = 32
"""Files of a batch that are open at once, by two descriptors each: a process often may have only 1,024."""


@dataclass(slots=True)
class _Unfinished:
    """A file in ``tmp`` that becomes an object: the object's name, the file's path, its descriptor and whether that is closed."""

    name: str
    path: str
    descriptor: int
    closed: bool = False


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
        with ExitStack() as unfinished:
            file = self._write_unfinished(IDENTITY_NAME, byte_views([data]), unfinished)
            self._finish(file)
            with self._translated(IDENTITY_NAME):
                self._system.replace(file.path, self._path(IDENTITY_NAME))
        self._sync_folder("")

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Write a new object: whole and fsynced before it has its name, its name durable once `flush` has returned.

        Where an interrupt cuts it short the object may be there nevertheless, whole: its name is not used again.
        """
        _, error = self.put_batch([(name, data)])
        if error is not None:
            raise error

    def put_batch(self, objects: Sequence[tuple[str, Sequence[Buffer]]]) -> tuple[int, TensorkeepError | None]:
        """Put several objects, up to 32 at a time: all are written, then all fsynced, then each is given its name.

        One fsync of ext4 or XFS commits what was written before it in other files too, so those after it cost little: 40
        batches took 1.7 s where an fsync after each of 200 files took 2.4.
        """
        done = 0
        for start in range(0, len(objects), _TOGETHER):
            count, error = self._put_together(objects[start : start + _TOGETHER])
            done += count
            if error is not None:
                return done, error
        return done, None

    def _put_together(self, objects: Sequence[tuple[str, Sequence[Buffer]]]) -> tuple[int, TensorkeepError | None]:
        done = 0
        written: list[_Unfinished] = []
        failure: TensorkeepError | None = None
        with ExitStack() as unfinished:
            try:
                self._check_writable()
                for name, data in objects:
                    check_object_name(name)
                    written.append(self._write_unfinished(name, byte_views(data), unfinished))
            except TensorkeepError as error:
                failure = error
            try:
                for file in written:
                    self._finish(file)
                for file in written:
                    self._publish(file)
                    done += 1
            except TensorkeepError as error:
                failure = error
        return done, failure

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
    def _translated(self, name: str) -> Iterator[None]:
        """Raise our errors for the system's; a folder that is not there means a disk that is not there."""
        with translated_os_errors(f"writing {name}", url=self._url, name=name):
            try:
                yield
            except FileNotFoundError:
                self._check_prepared()
                raise

    def _write_unfinished(self, name: str, views: Sequence[memoryview], stack: ExitStack) -> _Unfinished:
        """Write a file whole under a name in ``tmp``: its length checked, read-only, not fsynced; it goes with the stack."""
        with self._translated(name):
            folder = self._path(UNFINISHED_FOLDER)
            path = stack.enter_context(unfinished_file(folder, runtime=self._runtime, system=self._system))
            file = _Unfinished(name, path, self._system.open(path, os.O_WRONLY))
            stack.callback(self._abandon, file)
            self._write_whole(file.descriptor, views, name)
            self._system.make_read_only(file.descriptor)
        return file

    def _finish(self, file: _Unfinished) -> None:
        """Fsync and close a file that was written."""
        with self._translated(file.name):
            self._sync(file.descriptor, file.name)
            file.closed = True
            self._system.close(file.descriptor)  # its error counts: NFS reports lost writes here

    def _abandon(self, file: _Unfinished) -> None:
        if not file.closed:
            with suppress(OSError):  # the error that is on its way says more
                self._system.close(file.descriptor)

    def _write_whole(self, descriptor: int, views: Sequence[memoryview], name: str) -> None:
        size = count_bytes(views)
        written = write_views(self._system, descriptor, views)
        found = self._system.fstat(descriptor).st_size
        if not written == found == size:
            raise Unavailable(
                f"writing {name} on {self._url} stopped: {written} of {size} bytes written, the file has {found}",
                device=self._url,
                object=name,
            )

    def _publish(self, file: _Unfinished) -> None:
        """Give a finished file its name, never replacing one; a model's folder under ``versions`` is made on demand."""
        folder = check_object_name(file.name)
        with self._translated(file.name):
            if folder not in FIXED_FOLDERS:
                self._make_folder(self._path(folder))
            try:
                self._link(file.path, self._path(file.name))
            except FileExistsError as error:
                raise AlreadyExists(
                    f"{file.name} is already on {self._url}: physical names are never used twice",
                    device=self._url,
                    object=file.name,
                ) from error
        # After the name is there, never before: a flush under way may have passed the folder already.
        self._folders.mark(_folders_to_sync(folder))

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
