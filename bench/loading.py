"""Load of a local model: warm and cold, verified and not, beside every loader in use and what the machine can give.

Each contender reads the model in its own format from its own folder of the same disk, in a process of its own that has loaded
it once before the rounds, so that imports and first calls are outside. Ours verifies every block; the others verify nothing.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.results import Kind, Options, Table, timing_rows
from bench.rounds import (
    Contender,
    ContenderFailed,
    Turn,
    alternate,
    cached_share,
    files_under,
    in_process,
    make_cold,
    make_warm,
)
from bench.work import WORK, get_model, new_store, remove
from bench.workers import Worker, checked, expected_checksum, loading, ours, running

MODEL = "bench/model"
READERS = 4
READ_BYTES = 8 << 20
MOSTLY_CACHED = 0.98
"""How much of a store lies in the page cache after a load at least: not what a load does not read, such as the journal."""

VERIFIED = "tensorkeep, verified"
UNVERIFIED = "tensorkeep, verify=off"
RAW_READ = f"ceiling: pread into fresh memory, {READERS} threads"
KINDS: dict[str, Kind] = {
    VERIFIED: "ours",
    UNVERIFIED: "ours",
    RAW_READ: "ceiling",
    "ceiling: pread into memory in use": "ceiling",
    "ceiling: memory copy": "ceiling",
}


class Loader(NamedTuple):
    """Another loader: its name in tables, its actions, whether it reads a format of its own, and whether its tensors are in memory of their own."""

    name: str
    actions: str
    converts: bool = False
    copies: bool = False


MAPPED = "safetensors (mmap)"
TENSORIZER = "tensorizer"
PASSED_OVER = "safetensors (mmap), then a pass over every byte"

LOADERS = (
    Loader(MAPPED, "safetensors_mmap"),
    Loader(PASSED_OVER, "safetensors_pass"),
    Loader("safetensors (pread)", "safetensors_pread", copies=True),
    Loader("runai-model-streamer", "runai", copies=True),
    Loader("fastsafetensors (nogds)", "fastsafetensors", copies=True),
    Loader(TENSORIZER, "tensorizer", converts=True, copies=True),
    Loader("torch.load(mmap=True)", "torch_mmap", converts=True),
    Loader("torch.load", "torch_read", converts=True, copies=True),
    Loader("torch DCP", "torch_dcp", converts=True, copies=True),
    Loader("transformers from_pretrained", "transformers"),
)


def load_tables(options: Options) -> list[Table]:
    """Return the tables ``load/warm`` and ``load/cold``."""
    source = get_model(options.model)
    expected = expected_checksum(source)
    with new_store("load") as store:
        store.push(source, MODEL)
    make_cold(WORK / "load")  # else warm loads would find the parts as the push left them, and not as a load does
    failures: dict[str, str] = {}
    us = [ours(VERIFIED), ours(UNVERIFIED)]
    others = {loader: Worker(loader.name, f"bench.contenders.local:{loader.actions}") for loader in LOADERS}
    with running(*us, *others.values()):
        folders = _prepare(others, source, failures)
        plays = [(us[0], WORK / "load", {"store": WORK / "load", "verify": "blocks"})]
        plays += [(us[1], WORK / "load", {"store": WORK / "load", "verify": "off"})]
        plays += [(others[loader], folder, {"folder": folder}) for loader, folder in folders.items()]
        _warm_up(plays, expected, failures)
        tables = [
            _measure(cache, plays, source, expected, options.rounds, dict(failures)) for cache in ("warm", "cold")
        ]
    for name in ("load", *(f"as-{loader.actions}" for loader in LOADERS)):
        remove(name)
    return tables


Play = tuple[Worker, Path, dict[str, object]]


def _prepare(others: dict[Loader, Worker], source: Path, failures: dict[str, str]) -> dict[Loader, Path]:
    """Return the folder that each loader reads, written by itself where it has a format of its own."""
    folders = {}
    for loader, worker in others.items():
        folder = source
        try:
            if loader.converts:
                folder = remove(f"as-{loader.actions}")
                worker.ask("hold", source=source)
                worker.ask("save", folder=folder)
                worker.close()  # with the tensors that it held
        except ContenderFailed as error:
            failures[loader.name] = error.reason
            continue
        folders[loader] = folder
    return folders


def _warm_up(plays: Sequence[Play], expected: str, failures: dict[str, str]) -> None:
    for worker, _, words in plays:
        try:
            checked(worker, expected, worker.ask("load", **words))
        except ContenderFailed as error:
            if KINDS.get(worker.name) == "ours":
                raise
            failures[worker.name] = error.reason


def _measure(
    cache: str,
    plays: Sequence[Play],
    source: Path,
    expected: str,
    rounds: int,
    failures: dict[str, str],
) -> Table:
    warm = cache == "warm"
    make = make_warm if warm else make_cold
    turns = [
        loading(worker, expected, _preparation(worker, folder, words, make), words)
        for worker, folder, words in plays
        if worker.name not in failures
    ]
    timings = alternate([*turns, *_ceilings(source, make, warm=warm)], rounds=rounds, failures=failures)
    return Table(
        key=f"load/{cache}",
        title=f"Load from one local device, {'files in the page cache' if cache == 'warm' else 'files not in memory'}",
        command="scripts/bench.sh run load",
        rows=timing_rows(timings, KINDS),
        yardstick=RAW_READ,
        size_bytes=size_of_weights(source),
        failures=failures,
    )


def _preparation(
    worker: Worker, folder: Path, words: dict[str, object], make: Callable[[Path], None]
) -> Callable[[], object]:
    """Return what is done before a load: the page cache is emptied of its files, or filled with them.

    Who loads again finds our parts in the page cache as our own load brought them, 2 MiB at a time. All that the contenders read
    is more than the page cache of a machine of 24 GB holds, so that parts fall out of it between two turns; a load that is not
    timed brings them back. `make_warm` reads files from one end to the other, which is the best for the large files of the
    others, and would leave parts of 12 MB in smaller pieces than a load does.
    """
    if make is make_warm and KINDS.get(worker.name) == "ours":
        return partial(_load_untimed, worker, folder, words)
    return partial(make, folder)


def _load_untimed(worker: Worker, folder: Path, words: dict[str, object]) -> None:
    if cached_share(folder) < MOSTLY_CACHED:
        make_cold(folder)
    worker.ask("load", **words)


def _ceilings(source: Path, make: Callable[[Path], None], *, warm: bool) -> list[Turn]:
    used = [np.ones(path.stat().st_size, np.uint8) for path in weights(source)]
    contenders = [
        Contender(RAW_READ, lambda: read_all(weights(source), fresh_memory(source)), lambda: make(source)),
        Contender("ceiling: pread into memory in use", lambda: read_all(weights(source), used), lambda: make(source)),
    ]
    if warm:
        contenders.append(Contender("ceiling: memory copy", lambda: [memory.copy() for memory in used]))
    return [in_process(contender) for contender in contenders]


def weights(source: Path) -> list[Path]:
    """Return the files of tensors of a model."""
    return [path for path in files_under(source) if path.suffix == ".safetensors"]


def size_of_weights(source: Path) -> int:
    """Return the bytes of the files of tensors."""
    return sum(path.stat().st_size for path in weights(source))


def fresh_memory(source: Path) -> list[npt.NDArray[np.uint8]]:
    """Return memory for each file that nobody has touched yet."""
    return [np.empty(path.stat().st_size, np.uint8) for path in weights(source)]


def read_all(paths: Sequence[Path], buffers: Sequence[npt.NDArray[np.uint8]]) -> Sequence[npt.NDArray[np.uint8]]:
    """Read files into memory with several threads: what the disk, the page cache and the memory can give."""

    def read(path: Path, view: memoryview, start: int) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while view:
                count = os.preadv(descriptor, [view], start)
                if not count:
                    raise EOFError(f"{path} ends before byte {start + len(view)}")
                view, start = view[count:], start + count
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(READERS) as pool:
        tasks = [
            pool.submit(read, path, buffer[start : start + READ_BYTES].data, start)
            for path, buffer in zip(paths, buffers, strict=True)
            for start in range(0, len(buffer), READ_BYTES)
        ]
        for task in tasks:
            task.result()
    return buffers
