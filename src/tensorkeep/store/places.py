"""Where a store is, and what its files are called. Imports nothing that is slow: shell completion waits for it."""

import os
from collections.abc import Mapping
from pathlib import Path

from tensorkeep.errors import InvalidInput

CATALOG_FILE = "catalog.sqlite"
NOTE_FILE = "store.json"
LOCAL_NAME = "local"
LOCAL_DEVICE = Path("devices") / LOCAL_NAME
"""Name and place, in the store's folder, of the device that the first push adds where there is none."""

DATABASE_SCHEMES = ("postgresql", "postgres")


def find_location(location: "str | os.PathLike[str] | None", environment: Mapping[str, str]) -> Path | str:
    """Return the folder of the store at a location, or the URL of its database.

    Without a location: where ``TENSORKEEP_STORE`` says, then ``~/.tensorkeep``.

    Raises:
        InvalidInput: a URL of a kind that this version does not open.
    """
    text = os.fspath(location) if location is not None else environment.get("TENSORKEEP_STORE", "")
    if "://" in text:
        scheme = text.partition("://")[0].lower()
        if scheme in DATABASE_SCHEMES:
            return text
        raise InvalidInput(
            f"a store can't be at a {scheme}:// URL: give a folder, or postgresql://user@host/database", scheme=scheme
        )
    return Path(text or "~/.tensorkeep").expanduser().absolute()
