"""Push of a local model into a new store, beside copying it and beside what saves tensors today; and pushing it again.

A push reads files, hashes everything and is durable when it returns; `cp` and `sync` is what the disk allows. The savers have
their tensors in memory before the timer starts, hash nothing (tensorizer apart) and are synced, so they are shown beside a push
of tensors that lie in memory too.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.loading import MODEL, weights
from bench.results import Kind, Options, Row, Table, timing_rows
from bench.rounds import (
    Contender,
    ContenderFailed,
    alternate,
    copy_and_sync,
    disk_bytes,
    in_process,
    make_warm,
    size_of,
)
from bench.work import WORK, get_model, new_store, remove
from bench.workers import Worker, doing, ours, running

PUSH, PUSH_HELD = "tensorkeep push", "tensorkeep push, tensors in memory"
COPY = "ceiling: cp -r + sync"
WRITE = "ceiling: write + sync of memory"
UNCHANGED, CHANGED = "tensorkeep, unchanged", "tensorkeep, 5 % of bytes changed"
COPY_AGAIN = "cp -r + sync, again"
WRITE_BYTES = 8 << 20
SETTLED_S = 2.5
"""Files younger than two seconds are read again by a push, because their times say nothing yet."""
SAVERS = {
    "safetensors save_file + fsync": "safetensors_mmap",
    "torch.save + fsync": "torch_mmap",
    "torch DCP + fsync": "torch_dcp",
    "tensorizer + fsync": "tensorizer",
}
KINDS: dict[str, Kind] = {
    PUSH: "ours",
    PUSH_HELD: "ours",
    UNCHANGED: "ours",
    CHANGED: "ours",
    COPY: "ceiling",
    WRITE: "ceiling",
}


def push_tables(options: Options) -> list[Table]:
    """Return the tables ``push/new`` and ``push/again``."""
    return [_new(*options), _again(*options)]


def _new(model: str, rounds: int) -> Table:
    source = get_model(model)
    store, folders = WORK / "push", {name: f"saved-{actions}" for name, actions in SAVERS.items()}
    us, holding = ours(PUSH), ours(PUSH_HELD)
    savers = {name: Worker(name, f"bench.contenders.local:{actions}") for name, actions in SAVERS.items()}
    failures: dict[str, str] = {}
    stored: dict[str, float] = {}

    def empty_store() -> None:
        new_store("push").close()
        make_warm(source)

    def other_store() -> None:
        note(PUSH, store / "devices")
        empty_store()

    def note(name: str, folder: Path) -> None:
        if folder.exists():
            stored[name] = disk_bytes(folder)

    with running(us, holding, *savers.values()):
        holding.ask("hold", source=source)
        _hold(savers, source, failures)
        turns = [
            doing(us, "push", empty_store, {"store": store, "source": source}),
            in_process(Contender(COPY, lambda: copy_and_sync(source, WORK / "copy"), lambda: _warm_copy(source))),
            doing(holding, "push_held", other_store, {"store": store}),
        ]
        turns += [
            doing(worker, "save", _remover(folders[name]), {"folder": WORK / folders[name]})
            for name, worker in savers.items()
            if name not in failures
        ]
        written = Contender(WRITE, lambda: _write(source, WORK / "written"), lambda: _remove_file(source))
        turns.append(in_process(written))
        timings = alternate(turns, rounds=rounds, failures=failures)
        note(PUSH_HELD, store / "devices")
        note(COPY, WORK / "copy")
        for name, folder in folders.items():
            note(name, WORK / folder)
    for name in ("push", "copy", *folders.values()):
        remove(name)
    (WORK / "written").unlink(missing_ok=True)
    rows = [_with_stored(row, stored) for row in timing_rows(timings, KINDS)]
    return Table(
        key="push/new",
        title="Push or save of a new model, durable",
        command="scripts/bench.sh run push",
        rows=rows,
        yardstick=COPY,
        size_bytes=size_of(source),
        failures=failures,
    )


def _again(model: str, rounds: int) -> Table:
    source, changed = get_model(model), changed_model(model)
    again, other = ours(UNCHANGED), ours(CHANGED)
    new: dict[str, list[float]] = {}

    def once() -> None:
        with new_store("push-again") as store:
            store.push(source, MODEL)
        make_warm(changed)

    with running(again, other):
        once()
        time.sleep(SETTLED_S)
        again.ask("push", store=WORK / "push-again", source=source)  # fills the cache of files that look unchanged
        unchanged = doing(again, "push", lambda: None, {"store": WORK / "push-again", "source": source})
        timings = alternate([unchanged], rounds=rounds)
        facts = again.ask("push", store=WORK / "push-again", source=source)["facts"]
        new[UNCHANGED] = [facts["new_bytes"]]
        words = {"store": WORK / "push-again", "source": changed}
        copy = in_process(
            Contender(COPY_AGAIN, lambda: copy_and_sync(changed, WORK / "copy"), lambda: _warm_copy(changed))
        )
        timings |= alternate([doing(other, "push", once, words), copy], rounds=rounds)
        once()
        new[CHANGED] = [other.ask("push", **words)["facts"]["new_bytes"]]
    new[COPY_AGAIN] = [float(size_of(changed))]
    remove("push-again")
    remove("copy")
    rows = [Row(row.name, row.kind, row.figures | {"new_bytes": new[row.name]}) for row in timing_rows(timings, KINDS)]
    return Table(
        key="push/again",
        title="Push of what is there already, and of a version with few changes",
        command="scripts/bench.sh run push",
        rows=rows,
        yardstick=COPY_AGAIN,
        size_bytes=size_of(source),
    )


def changed_model(model: str) -> Path:
    """Return the model with at most 5 % of its bytes changed."""
    if model == "small":
        return get_model("frozen")
    from bench.make_models import make_model  # noqa: PLC0415

    folder = WORK / "models" / f"frozen-{model}"
    return folder if folder.exists() else make_model("frozen", folder, base=get_model(model))


def _hold(savers: dict[str, Worker], source: Path, failures: dict[str, str]) -> None:
    for name, worker in savers.items():
        try:
            worker.ask("hold", source=source)
        except ContenderFailed as error:
            failures[name] = error.reason


def _warm_copy(source: Path) -> None:
    remove("copy")
    make_warm(source)


def _remover(name: str) -> Callable[[], object]:
    return lambda: remove(name)


def _remove_file(source: Path) -> None:
    (WORK / "written").unlink(missing_ok=True)
    make_warm(source)


def _write(source: Path, path: Path) -> None:
    """Write what lies in the page cache already into one file, and sync it."""
    with path.open("wb", buffering=0) as file:
        for weight in weights(source):
            view = np.memmap(weight, np.uint8, "r").data
            while view:
                view = view[file.write(view[:WRITE_BYTES]) :]
        os.fsync(file.fileno())


def _with_stored(row: Row, stored: dict[str, float]) -> Row:
    return Row(row.name, row.kind, row.figures | ({"stored_bytes": [stored[row.name]]} if row.name in stored else {}))
