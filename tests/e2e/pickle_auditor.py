"""Handles files in a process of its own and reports what happened in it, by the interpreter's own audit hook.

A hook can't be removed, and sees what Python does however it comes to it: imports, compiling, executing, processes, sockets,
files opened. Run as ``pickle_auditor.py MODE FOLDER STORE``; prints, as JSON, for each step the events and what it returned.
``unpickle`` stands in for a reader that does execute, so that a test can see that the hook would have told.
"""

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import tensorkeep
from tensorkeep.cli.main import main
from tensorkeep.formats.registry import read_structure
from tensorkeep.store.sources import open_sources

events: list[str] | None = None


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if events is not None:
        events.append(f"{event} {_shown(event, arguments)}")


def _shown(event: str, arguments: tuple[Any, ...]) -> str:
    if event == "open":
        path, _mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return f"{'write' if writes else 'read'} {path}"
    return repr(arguments)[:200]


def audited(work: Callable[[], Any]) -> dict[str, Any]:
    """Return the events of some work, and its result."""
    global events
    events = []
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - also SystemExit: the events are wanted
        result = repr(error)
    seen, events = events, None
    return {"events": seen, "result": result}


def structure(path: Path) -> Any:
    (source,) = open_sources(path)
    return read_structure(path.name, source)


def unpickle(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return str(pickle.loads(archive.read("archive/data.pkl")))


def command(*words: object) -> Any:
    out = io.StringIO()
    with redirect_stdout(out):
        code = main([str(word) for word in words])
    return code, out.getvalue()


def run(mode: str, folder: Path, store: Path) -> dict[str, Any]:
    files = sorted(folder.glob("bad/*.pt"))
    if mode == "unpickle":
        return {path.name: audited(partial(unpickle, path)) for path in files}
    for kind in ("good", "good", "again"):  # what Python imports and compiles only once, and what a new version needs
        assert command("--store", store, "push", folder / kind, f"acme/{kind}")[0] == 0
        assert command("--store", store, "show", f"acme/{kind}", "--tensors")[0] == 0
    report = {path.name: audited(partial(structure, path)) for path in files}
    report["push"] = audited(lambda: command("--store", store, "push", folder / "bad", "acme/bad"))
    report["show"] = audited(lambda: command("--store", store, "show", "acme/bad", "--tensors"))
    report["load"] = audited(lambda: len(tensorkeep.open(store).model("acme/bad").tensors))
    return report


if __name__ == "__main__":
    sys.addaudithook(hook)
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
