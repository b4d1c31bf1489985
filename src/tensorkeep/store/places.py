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


def find_folder(location: "str | os.PathLike[str] | None", environment: Mapping[str, str]) -> Path:
    """Return the folder of the store at a location; None: where ``TENSORKEEP_STORE`` says, then ``~/.tensorkeep``.

    Raises:
        InvalidInput: a URL, which this version does not open.
    """
    text = os.fspath(location) if location is not None else environment.get("TENSORKEEP_STORE", "")
    if "://" in text:
        raise InvalidInput(f"{text!r}: this version opens stores in folders; give a path", store=text)
    return Path(text or "~/.tensorkeep").expanduser().absolute()
