"""The files and folders that one job makes: all of them stay, or none.

A job that was killed leaves at most files whose names begin with ``.tensorkeep-``, and files that were whole already.
"""

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorkeep.errors import AlreadyExists
from tensorkeep.runtime import Runtime
from tensorkeep.store.local_files import UnfinishedFile, name_unfinished, sync_folder, translate_os_error


class NewFiles:
    """What a job made so far. A context manager: what was not kept is gone when it is left.

    Args:
        verb: the job, for messages: "split".
        runtime: names temporary files.
    """

    def __init__(self, *, verb: str, runtime: Runtime) -> None:
        self._verb = verb
        self._runtime = runtime
        self._files: list[UnfinishedFile] = []
        self._published: list[UnfinishedFile] = []
        self._folders: list[str] = []

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it, where they are missing.

        Raises:
            TensorkeepError: the system refuses.
        """
        missing = []
        folder = path
        while not os.path.lexists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        try:
            for new in reversed(missing):
                self._folders.append(new)  # before it is there: an interrupt may come right after
                os.mkdir(new)
            if not os.path.isdir(path):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        except OSError as error:
            raise translate_os_error(error, Path(path)) from error

    def check_free(self, paths: Iterable[str], *, force: bool) -> None:
        """Return if these names can be given; with ``force`` files of these names may be there.

        Raises:
            AlreadyExists: one is taken, by a folder or without ``force``.
            InvalidInput: one is too long.
        """
        taken = []
        for path in paths:
            try:
                os.lstat(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise translate_os_error(error, Path(path)) from error
            if os.path.isdir(path) and not os.path.islink(path):
                raise AlreadyExists(f"{path} is a folder: move it away", path=path)
            taken.append(path)
        if taken and not force:
            there = f"{taken[0]} and {len(taken) - 1} more exist" if len(taken) > 1 else f"{taken[0]} exists"
            raise AlreadyExists(f"{there}: move away, or {self._verb} with --force", path=taken[0], paths=taken)

    def create(self, path: str, size_bytes: int) -> UnfinishedFile:
        """Return a new file, its room reserved, under a temporary name.

        Raises:
            TensorkeepError: the system refuses: `Capacity` where there is no room.
        """
        self._files.append(name_unfinished(Path(path), self._runtime))
        try:
            self._files[-1].create(size_bytes)
        except OSError as error:
            raise translate_os_error(error, Path(path)) from error
        return self._files[-1]

    def publish(self, file: UnfinishedFile, *, force: bool) -> None:
        """Give a whole file its name.

        Raises:
            AlreadyExists: somebody else made it meanwhile.
            TensorkeepError: the system refuses.
        """
        try:
            file.publish(force=force, verb=self._verb)
        except OSError as error:
            raise translate_os_error(error, file.path) from error
        self._published.append(file)

    def sync_new_folders(self) -> None:
        """Return when the names of the folders that were made are on the disk."""
        for folder in self._folders:
            sync_folder(Path(os.path.dirname(folder)))

    def keep(self) -> None:
        """Let stay what was published."""
        self._published = []
        self._folders = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        for file in self._files:
            with suppress(OSError):  # the error that is on its way says more
                file.discard()
        for file in reversed(self._published):  # an index goes before its parts
            with suppress(OSError):
                file.path.unlink()
        for folder in reversed(self._folders):
            with suppress(OSError):  # somebody else put something there
                os.rmdir(folder)
