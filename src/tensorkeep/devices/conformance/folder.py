"""Probes of a folder of this machine: what is mounted there, and whether its calls keep what they promise."""

import os

from tensorkeep.devices import mounts
from tensorkeep.devices.conformance.objects import RACERS, ROUNDS, SHORT_ROUNDS
from tensorkeep.devices.conformance.probe import Finding, Refused, Site
from tensorkeep.devices.os_errors import NOT_SUPPORTED, translated_os_errors
from tensorkeep.records.naming import ROOT_FOLDERS


def file_system(site: Site) -> Finding:
    """What is mounted there, and so whether an fsync means anything."""
    with translated_os_errors("looking up the mount", url=site.url):
        mount = mounts.mount_of(site.folder)
    if mount is None:
        return Finding("what is mounted there can't be told: its copies do not count (soft)")
    durable = mounts.is_durable(mount)
    return Finding(
        f"{mount.file_system} on {mount.mount_point}"
        + ("" if durable else ": what is synced there may not survive a power cut (soft)"),
        {"mount_point": mount.mount_point, "durable": durable},
        {"file_system": mount.file_system},
    )


def one_file_system(site: Site) -> Finding:
    """All folders of the device lie on one file system: an object gets its name by a link, which can't cross one."""
    with translated_os_errors("looking at the folders", url=site.url):
        home = os.stat(site.root).st_dev
        folders = [os.path.join(base, folder) for base in (site.root, site.folder) for folder in ROOT_FOLDERS]
        strangers = [path for path in folders if os.path.isdir(path) and os.stat(path).st_dev != home]
    if strangers:
        raise Refused(
            f"lies on several file systems: {strangers[0]} is on another than {site.root}. Mount one disk, and nothing below"
        )
    return Finding("all folders lie on one file system")


def fsync(site: Site) -> Finding:
    """A file and a folder can be synced."""
    path = os.path.join(site.folder, "tmp", f"fsync-{site.ulid()}")
    with translated_os_errors("fsync of a file", url=site.url):
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, b"x" * 4096)
            file_s = site.timed(lambda: os.fsync(file))
        finally:
            os.close(file)
    with translated_os_errors("fsync of a folder", url=site.url):
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            folder_s = site.timed(lambda: os.fsync(folder))
        except OSError as error:
            if error.errno not in NOT_SUPPORTED or site.device.durability == "durable":
                raise
            return Finding("files can be synced, folders can't (soft)", {"file_seconds": file_s})
        finally:
            os.close(folder)
    facts = {"file_seconds": round(file_s, 6), "folder_seconds": round(folder_s, 6)}
    return Finding(f"files and folders can be synced ({file_s * 1000:.1f} and {folder_s * 1000:.1f} ms)", facts)


def exclusive_create(site: Site) -> Finding:
    """Of many that create one file exclusively one succeeds (NFS of before version 3 let several)."""
    count = ROUNDS if site.full else SHORT_ROUNDS
    for _ in range(count):
        path = os.path.join(site.folder, "tmp", f"exclusive-{site.ulid()}")
        with translated_os_errors("creating a file", url=site.url):
            won = site.at_once(RACERS, lambda _, path=path: _create(path))  # type: ignore[misc]
        if sum(won) != 1:
            raise Refused(f"lets {sum(won)} of {RACERS} create one file exclusively (O_EXCL)")
    return Finding(f"of {RACERS} that create one file exclusively one succeeds, {count} times of {count}")


def inodes(site: Site) -> Finding:
    """How many more files there can be."""
    with translated_os_errors("asking for free space", url=site.url):
        found = os.statvfs(site.folder)
    if not found.f_files:
        return Finding("files are not limited in number")
    return Finding(f"{found.f_favail:,} more files can be made", {"free_files": found.f_favail, "files": found.f_files})


def _create(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True
