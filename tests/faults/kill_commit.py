"""Run by test_catalog_crash: commits to copies of a catalog, each killed (SIGKILL) one statement later than the one before.

Arguments: the catalog to copy, the file with the request, the folder for the copies. Copy number N is killed before its N-th
statement; the last one commits, says so in a file, and is killed then.
"""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import event

from tensorkeep.catalog.access import open_catalog
from tensorkeep.catalog.protocol import CommitRequest, Committed
from tensorkeep.testing.catalog_scene import seeded_runtime


def commit_until(path: Path, request: CommitRequest, statement: int) -> None:
    """Commit, and be killed before that statement or after the last."""
    catalog = open_catalog(f"sqlite:///{path}", runtime=seeded_runtime(), snapshot_every=SNAPSHOT_EVERY)
    executed = 0

    def count(*_: Any) -> None:
        nonlocal executed
        executed += 1
        if executed == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(catalog._db.engine, "before_cursor_execute", count)
    event.listen(catalog._db.engine, "commit", count)
    assert isinstance(catalog.commit(request), Committed)
    (path.parent / "acknowledged").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def main(template: Path, request_file: Path, folder: Path) -> None:
    """Fork one child for every statement of the commit."""
    request = msgspec.json.decode(request_file.read_bytes(), type=CommitRequest)
    for statement in range(1, 200):
        copy = folder / f"{statement:03d}"
        copy.mkdir()
        shutil.copy(template, copy / "catalog.sqlite")
        child = os.fork()
        if child == 0:
            commit_until(copy / "catalog.sqlite", request, statement)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        if (copy / "acknowledged").exists():
            return


SNAPSHOT_EVERY = 4

if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
