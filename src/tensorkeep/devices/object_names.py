"""Which names a device accepts, and the folders of layout v1 that hold them.

Names are built by `tensorkeep.records.naming` alone; what is checked here is defence in depth, so that no bug above can
reach outside a device's folder, or replace its identity.
"""

import re
from itertools import chain

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.records.naming import ROOT_FOLDERS
from tensorkeep.records.paths import check_path

FAN_OUT_FOLDERS = ("parts", "manifests", "checks")
"""They have 256 folders each, ``00`` to ``ff``."""

UNFINISHED_FOLDER = "tmp"
"""Where writes lie until they are whole; never listed unless asked for."""

FIXED_FOLDERS: frozenset[str] = frozenset(
    chain(ROOT_FOLDERS, (f"{folder}/{fan:02x}" for folder in FAN_OUT_FOLDERS for fan in range(256)))
)
"""Every folder that `prepare` makes. Only ``versions/<model>`` is made later, on demand."""

_PLAIN = re.compile(rf"((?:{'|'.join(FAN_OUT_FOLDERS)})/[0-9a-f]{{2}})/[0-9A-Za-z][0-9A-Za-z._-]{{0,254}}\Z")


def check_object_name(name: str) -> str:
    """Return the folder of an object's name, if layout v1 can have an object there.

    Raises:
        InvalidInput: the name is absolute, holds ``..``, or lies in no folder of the layout.
    """
    plain = _PLAIN.match(name)
    if plain:  # as nearly all are: each load asks for every part
        return plain[1]
    try:
        check_path(name)
    except Format as error:
        raise InvalidInput(f"{name!r} can't be an object's name: {error.message}", name=name) from error
    folder = name.rpartition("/")[0]
    parent, _, _ = folder.rpartition("/")
    if parent == "versions" or (folder in FIXED_FOLDERS and folder not in (*FAN_OUT_FOLDERS, "versions")):
        return folder
    raise InvalidInput(
        f"{name!r} can't be an object's name: layout v1 keeps no objects in {folder or '.'!r}", name=name
    )


def folders_to_list(prefix: str) -> tuple[str, ...]:
    """Return the folders, relative to a device's root, that a folder prefix covers: ``""`` is all but ``tmp``.

    Raises:
        InvalidInput: the prefix does not end with a slash, or is no folder of the layout.
    """
    if not prefix:
        return tuple(folder for folder in ROOT_FOLDERS if folder != UNFINISHED_FOLDER)
    folder = prefix.removesuffix("/")
    if prefix.endswith("/") and (folder in FIXED_FOLDERS or _is_version_folder(folder)):
        return (folder,)
    raise InvalidInput(f"{prefix!r} is no folder prefix of the layout: write for example 'parts/' or ''", prefix=prefix)


def _is_version_folder(folder: str) -> bool:
    parent, _, last = folder.rpartition("/")
    return parent == "versions" and last not in ("", ".", "..") and "\0" not in last
