"""Where a check works: a device of its own below ``tmp`` of the place, made for it and removed with all that it holds.

A device in use is checked without touching what it holds, a place that is refused is left as it was. A site of a folder is
locked while its check lives, so that the next check removes what a killed one left.
"""

import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tensorkeep.devices.conformance.probe import Site
from tensorkeep.devices.memory import forget_memory
from tensorkeep.devices.object_names import FAN_OUT_FOLDERS, UNFINISHED_FOLDER
from tensorkeep.devices.object_store_url import is_object_store_url, parse_object_store_url
from tensorkeep.devices.opening import local_path, normalize_url, open_device
from tensorkeep.devices.os_errors import translated_os_errors
from tensorkeep.errors import InvalidInput
from tensorkeep.records.conformance import CheckForm
from tensorkeep.records.device import IDENTITY_NAME
from tensorkeep.records.naming import ROOT_FOLDERS
from tensorkeep.records.ulid import RANDOM_BYTES, make_ulid
from tensorkeep.runtime import Runtime

_PREFIX = "check-"

_FOLDERS = (*ROOT_FOLDERS, *(f"{parent}/00" for parent in FAN_OUT_FOLDERS))
"""What a site needs of the folders of a device: all 770 would take most of a check's time."""


@contextmanager
def open_site(url: str, *, runtime: Runtime, form: CheckForm, rate_limit_bytes_per_s: int | None) -> Iterator[Site]:
    """Give the site of a check of a place; when the block is left nothing of it is there any more.

    Args:
        url: the place's canonical URL.
        runtime: clock, randomness, workers.
        form: how much will be asked.
        rate_limit_bytes_per_s: of the device.

    Raises:
        InvalidInput: there is a file, not a folder.
        NotFound: there is no such bucket.
        Unavailable, PermissionDenied: the place can't be written to.
    """
    name = _PREFIX + make_ulid(runtime.clock.now(), runtime.randomness.random_bytes(RANDOM_BYTES))
    if is_object_store_url(url):
        with _bucket_site(url, name, runtime, form, rate_limit_bytes_per_s) as site:
            yield site
    elif url.startswith("memory://"):
        with _memory_site(url, name, runtime, form, rate_limit_bytes_per_s) as site:
            yield site
    else:
        with _folder_site(url, name, runtime, form, rate_limit_bytes_per_s) as site:
            yield site


@contextmanager
def _bucket_site(url: str, name: str, runtime: Runtime, form: CheckForm, rate_limit: int | None) -> Iterator[Site]:
    # Only here: they bring http.client, and a local store must not load it.
    from tensorkeep.devices.conformance.raw_http import HttpStore  # noqa: PLC0415
    from tensorkeep.devices.conformance.removal import NotingDevice, remove_objects  # noqa: PLC0415

    home = parse_object_store_url(url)
    prefix = "/".join(filter(None, (home.prefix, UNFINISHED_FOLDER, name)))
    place = dataclasses.replace(home, prefix=prefix)
    open_device(url, runtime=runtime).prepare()
    written = {IDENTITY_NAME}
    device, other = (
        NotingDevice(open_device(place.url, runtime=runtime, rate_limit_bytes_per_s=rate_limit), written)
        for _ in range(2)
    )
    raw = HttpStore(place, runtime=runtime, written=written)
    try:
        yield Site("object_store", place.url, url, device, other, runtime, form, raw=raw)
    finally:
        remove_objects(place, written, runtime=runtime)


@contextmanager
def _memory_site(url: str, name: str, runtime: Runtime, form: CheckForm, rate_limit: int | None) -> Iterator[Site]:
    device, other = (
        open_device(f"memory://{name}", runtime=runtime, rate_limit_bytes_per_s=rate_limit) for _ in range(2)
    )
    try:
        yield Site("memory", device.url, url, device, other, runtime, form)
    finally:
        forget_memory(name)


@contextmanager
def _folder_site(url: str, name: str, runtime: Runtime, form: CheckForm, rate_limit: int | None) -> Iterator[Site]:
    root = local_path(url)
    if os.path.lexists(root) and not os.path.isdir(root):
        raise InvalidInput(f"{url} is not a folder: give another path", device=url)
    folder = os.path.join(root, UNFINISHED_FOLDER, name)
    with translated_os_errors("making a folder for the check", url=url):
        made = _make_folders(folder)
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            _remove_abandoned(os.path.dirname(folder))
            with translated_os_errors("making folders", url=url):
                for path in _FOLDERS:
                    os.mkdir(os.path.join(folder, path))
            device, other = (
                open_device(normalize_url(folder), runtime=runtime, rate_limit_bytes_per_s=rate_limit) for _ in range(2)
            )
            yield Site("folder", device.url, url, device, other, runtime, form, folder=folder, root=root)
        finally:
            os.close(lock)
    finally:
        with translated_os_errors("removing the folder of the check", url=url):
            shutil.rmtree(folder)
        with suppress(OSError):  # somebody has put something there meanwhile: it is not the check's any more
            for path in reversed(made[:-1]):
                os.rmdir(path)


def _make_folders(path: str) -> list[str]:
    """Make a folder and what leads to it; return what was made, outermost first."""
    missing = [path]
    while not os.path.isdir(os.path.dirname(missing[-1])):
        missing.append(os.path.dirname(missing[-1]))
    made: list[str] = []
    try:
        for folder in reversed(missing):
            os.mkdir(folder)
            made.append(folder)
    except OSError:
        for folder in reversed(made):
            os.rmdir(folder)
        raise
    return made


def _remove_abandoned(folder: str) -> None:
    """Remove the sites of checks that were killed: nobody holds them."""
    with os.scandir(folder) as entries:
        found = [
            entry.path for entry in entries if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
        ]
    for path in found:
        with suppress(OSError):  # held by a living check, or removed by another
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(lock)
