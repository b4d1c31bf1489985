"""The names in a store, at hand at once and without opening it: see `catalog.known_names`."""

from pathlib import Path

from tensorkeep.catalog.known_names import KnownNames, read_known_names
from tensorkeep.errors import Unavailable
from tensorkeep.store.places import CATALOG_FILE

__all__ = ["KnownNames", "find_known_names"]


def find_known_names(location: Path | str) -> KnownNames:
    """Return the names in the store at a location; nothing is made or written.

    Raises:
        NotFound: there is no store.
        Unavailable: its catalog can't be read now, or a server would have to be asked, for which nobody waits.
    """
    if not isinstance(location, Path):
        raise Unavailable("the names in a database are not at hand at once")
    return read_known_names(location / CATALOG_FILE)
