"""The names in a store, at hand at once and without opening it: see `catalog.known_names`."""

from pathlib import Path

from tensorkeep.catalog.known_names import KnownNames, read_known_names
from tensorkeep.store.places import CATALOG_FILE

__all__ = ["KnownNames", "find_known_names"]


def find_known_names(folder: Path) -> KnownNames:
    """Return the names in the store in a folder; nothing is made or written.

    Raises:
        NotFound: there is no store.
        Unavailable: its catalog can't be read now.
    """
    return read_known_names(folder / CATALOG_FILE)
