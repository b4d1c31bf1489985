"""What a path is mounted on, and whether what is fsynced there survives a power cut.

Source: proc_pid_mountinfo(5). Not seen: a disk or controller that lies about its cache, a loop device on a tmpfs.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from tensorkeep.records.device import Durability

MOUNT_TABLE = "/proc/self/mountinfo"

SOFT_FILE_SYSTEMS = frozenset(
    {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"}  # memory
    | {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "virtiofs"}  # another machine's promise, not known here
    | {"vboxsf", "vmhgfs", "prl_fs"}  # shared folders of virtual machines
)
"""Beside everything of FUSE: its server may answer an fsync without doing one."""

MAPPED_FILE_SYSTEMS = frozenset(
    {
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "zfs",
        "f2fs",
        "bcachefs",
        "erofs",
        "squashfs",
        "overlay",
        "tmpfs",
        "ramfs",
    }
)
"""Where a file's pages are this machine's own: over a network a page may take seconds, or a server change it under a mapping."""

SOFT_OPTIONS = frozenset({"volatile", "nobarrier", "barrier=0"})
"""Mount options that take the meaning from fsync: overlayfs without any sync, ext4 and XFS without cache flushes."""

_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of the mount table: ``device_number`` as ``st_dev`` has it, mount and super block options together."""

    mount_point: str
    file_system: str
    options: frozenset[str]
    device_number: int


def durability_of(path: str) -> Durability:
    """Return the durability class of the file system that holds an existing path.

    ``soft`` where the mount table can't be read: nothing is promised that is not known.

    Raises:
        OSError: the path can't be looked at.
    """
    mount = mount_of(path)
    return "durable" if mount is not None and is_durable(mount) else "soft"


def can_map(path: str) -> bool:
    """Return whether files under an existing path may be mapped; not where the mount table does not tell.

    Raises:
        OSError: the path can't be looked at.
    """
    mount = mount_of(path)
    return mount is not None and mount.file_system in MAPPED_FILE_SYSTEMS


def mount_of(path: str) -> Mount | None:
    """Return the mount that holds an existing path, or None where the mount table can't be read or does not tell.

    Raises:
        OSError: the path can't be looked at.
    """
    resolved = os.path.realpath(path)
    device_number = os.stat(resolved).st_dev
    try:
        with open(MOUNT_TABLE, "rb") as table:
            mounts = parse_mounts(os.fsdecode(table.read()))
    except OSError:
        return None
    return find_mount(mounts, resolved, device_number)


def is_durable(mount: Mount) -> bool:
    """Return whether an fsync on this mount reaches a disk, as far as the system tells."""
    soft = mount.file_system in SOFT_FILE_SYSTEMS or mount.file_system.startswith("fuse")
    return not soft and not (mount.options & SOFT_OPTIONS)


def find_mount(mounts: Sequence[Mount], path: str, device_number: int) -> Mount | None:
    """Return the mount that holds an absolute path without links, or None.

    Mounts that others hide stay in the table, so one whose number fits is preferred; btrfs gives its subvolumes numbers
    that are not in the table, so the deepest mount point must do there.
    """
    above = [mount for mount in mounts if _holds(mount.mount_point, path)]
    fitting = [mount for mount in above if mount.device_number == device_number] or above
    # Of two mounts on one point the later lies on top: max() would return the first.
    return max(reversed(fitting), key=lambda mount: len(mount.mount_point), default=None)


def parse_mounts(text: str) -> list[Mount]:
    """Return the mounts of a mount table, in its order; lines of another shape are left out."""
    return [mount for line in text.splitlines() if (mount := _parse_line(line)) is not None]


def _parse_line(line: str) -> Mount | None:
    left, separator, right = line.partition(" - ")
    fields = left.split(" ")
    details = right.split(" ")
    if not separator or len(fields) < 6 or len(details) < 3:
        return None
    major, _, minor = fields[2].partition(":")
    return Mount(
        mount_point=_ESCAPE.sub(lambda found: chr(int(found[1], 8)), fields[4]),
        file_system=details[0],
        options=frozenset(fields[5].split(",")) | frozenset(details[2].split(",")),
        device_number=os.makedev(int(major), int(minor)),
    )


def _holds(mount_point: str, path: str) -> bool:
    return mount_point in ("/", path) or path.startswith(f"{mount_point}/")
