"""A disk whose power can be cut: a file system in an image file, mounted through a loop device. Needs root.

The cut is the file system's own shutdown call, without a flush of its log: what was not made durable is gone, as after a
crash of the system or a power cut with a disk that is honest about its cache. It does not reorder writes that the disk
had acknowledged. Source: Linux, fs/ext4/ioctl.c and fs/xfs (``FS_IOC_SHUTDOWN``).
"""

import fcntl
import os
import shutil
import struct
import subprocess
from types import TracebackType
from typing import Self

_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_LOG_FLUSH = 2

_FORCE = {"ext4": "-F", "xfs": "-f"}


class CutDisk:
    """A mounted file system that loses power when told. A context manager; `close` unmounts and removes the image.

    Nothing may hold a file open on it when the power comes back, nor when it is closed.

    Args:
        image_path: where the image file is made; must not exist.
        mount_point: a folder that exists.
        file_system: ``ext4`` or ``xfs``.
        size: of the image, as ``truncate`` takes it; XFS needs at least 300M.
    """

    def __init__(self, image_path: str, mount_point: str, file_system: str = "ext4", size: str = "96M") -> None:
        self.image_path = image_path
        self.file_system = file_system
        self.mount_point = mount_point
        self._run("truncate", "-s", size, image_path)
        self._run(f"mkfs.{file_system}", "-q", _FORCE[file_system], image_path)
        self._mount()

    def power_off(self) -> None:
        """Cut the power: from now on every call on the disk fails, and what is not durable is lost."""
        shut_down(self.mount_point)

    def power_on(self) -> None:
        """Mount again, as after a start of the machine: the log is replayed."""
        self._run("umount", self.mount_point)
        self._mount()

    def cut(self) -> None:
        """Cut the power and bring it back."""
        self.power_off()
        self.power_on()

    def close(self) -> None:
        """Unmount, and remove the image."""
        if os.path.ismount(self.mount_point):
            self._run("umount", self.mount_point)
        if os.path.exists(self.image_path):
            os.unlink(self.image_path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def _mount(self) -> None:
        self._run("mount", "-o", "loop", self.image_path, self.mount_point)

    def _run(self, *command: str) -> None:
        # Tools of the administrator lie outside many users' PATH.
        tool = shutil.which(command[0], path=os.defpath + ":/usr/sbin:/sbin:/usr/local/sbin") or command[0]
        done = subprocess.run([tool, *command[1:]], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def shut_down(mount_point: str | os.PathLike[str]) -> None:
    """Have a file system answer EIO to every call from now on, what it has not written yet lost. Needs root."""
    descriptor = os.open(mount_point, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _IOC_SHUTDOWN, struct.pack("I", _WITHOUT_LOG_FLUSH))
    finally:
        os.close(descriptor)
