"""The names in a catalog on SQLite, read with the standard library alone, for shell completion.

Opening a store takes longer than a user waits for a key (1.0 s of CPU time here, most of it imports; this takes 5 ms). It reads
one file, never waits for a writer, and writes nothing: no store is made, no journal is rolled back.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tensorkeep.errors import NotFound, Unavailable

_BUSY_TIMEOUT_S = 0.1


class KnownNames(NamedTuple):
    """Names that users may type: branches and tags by their model's name, and devices that are not lost."""

    branches: dict[str, list[str]]
    tags: dict[str, list[str]]
    devices: list[str]


def read_known_names(path: Path) -> KnownNames:
    """Return the names in the catalog in a file; every model is in ``branches`` and in ``tags``.

    Raises:
        NotFound: there is no such file.
        Unavailable: it can't be read now, or is no catalog that is known here.
    """
    if not path.is_file():
        raise NotFound(f"{path} is no catalog", path=str(path))
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_BUSY_TIMEOUT_S)
        ) as connection:
            models = dict(connection.execute("SELECT id, name FROM models ORDER BY folded"))
            refs = connection.execute("SELECT model, kind, name FROM refs ORDER BY name").fetchall()
            devices = connection.execute(
                "SELECT name FROM devices WHERE state NOT IN ('lost', 'removed') ORDER BY name"
            ).fetchall()
    except (sqlite3.Error, UnicodeError) as error:
        raise Unavailable(f"the catalog {path} can't be read now: {error}", path=str(path)) from error
    found: dict[str, dict[str, list[str]]] = {
        kind: {name: [] for name in models.values()} for kind in ("branch", "tag")
    }
    for model, kind, name in refs:
        if model in models and kind in found:
            found[kind][models[model]].append(name)
    return KnownNames(found["branch"], found["tag"], [name for (name,) in devices])
