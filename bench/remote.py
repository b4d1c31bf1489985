"""Loads and pushes against an S3-compatible store on loopback, beside what people load models from S3 with today.

    python bench/remote.py [--rounds 5] [--model small] [--files 2]

Starts a Ceph of its own (one OSD, one gateway) and stops it. Every contender is a process of its own that lives through all
rounds, with the defaults of its makers; rounds alternate. Ours verifies every block, the others verify nothing. Needs
``.bench/contenders``, which it has `scripts/contenders.sh` make. Prints tables and writes ``bench/results/remote.json``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `bench` is found when this is run as a file

import tensorkeep
from bench.far_and_near import far_and_near_figures
from bench.figures import Figure
from bench.rounds import fetch_memory
from bench.work import RESULTS, ROOT, WORK, get_model, remove
from tensorkeep.store.node_config import VARIABLE
from tests.engines.ceph import Ceph
from tests.engines.servers import S3Account

BUCKET = "bench"
MODEL = "bench/model"
CONTENDERS = WORK / "contenders" / "bin" / "python"
CEILINGS = ("obstore", "ceiling")
LOADERS = ("tensorkeep", "runai", "s3torch", "boto3", *CEILINGS)
NAMES = {
    "tensorkeep": "tensorkeep, verified",
    "runai": "runai-model-streamer[s3]",
    "s3torch": "s3torchconnector",
    "boto3": "boto3 transfer manager",
    "obstore": "ceiling: ranges through obstore, 8 at once",
    "ceiling": "ceiling: sockets, 4 at once",
}
_MORE_ROUNDS = 6
"""Rounds more than were asked for: client and server share the processors, so that five rounds differ by a seventh from run to run."""


class Round(NamedTuple):
    """One contender in one round."""

    seconds: float
    cpu_seconds: float


Rounds = dict[str, list[Round]]


class Child:
    """A contender's process, which takes jobs one after the other."""

    def __init__(self, kind: str, account: S3Account) -> None:
        python = sys.executable if kind in ("tensorkeep", *CEILINGS) else str(CONTENDERS)
        environment = {
            **os.environ,
            **account.environment(),
            "AWS_REGION": account.region,
            "AWS_DEFAULT_REGION": account.region,
            "AWS_ENDPOINT_URL": account.endpoint,
            "RUNAI_STREAMER_S3_ENDPOINT": account.endpoint,
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "RUNAI_STREAMER_LOG_LEVEL": "WARNING",
        }
        self.kind = kind
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("remote_contender.py")), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, job: dict[str, Any], size_bytes: int) -> Round:
        """Return what a job cost; it must have moved at least that many bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        fetch_memory()
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or "{}")
        if answer.get("bytes", 0) < size_bytes:
            raise RuntimeError(f"{self.kind} did not do its job: {answer}")
        return Round(answer["seconds"], answer["cpu_seconds"])

    def close(self) -> None:
        """End it."""
        self._process.communicate()


class Scene(NamedTuple):
    """A store in the bucket, the same files beside it, and what a job needs to know of them."""

    ceph: Ceph
    paths: list[Path]
    folder: Path
    store: Path

    @property
    def account(self) -> S3Account:
        """How the bucket is reached."""
        return self.ceph.s3

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)

    def job(self, **facts: Any) -> dict[str, Any]:
        """Return a job with all that any contender needs."""
        keys = [f"plain/{path.name}" for path in self.paths]
        return {
            "bucket": BUCKET,
            "endpoint": self.account.endpoint,
            "region": self.account.region,
            "keys": keys,
            "sizes": [path.stat().st_size for path in self.paths],
            "urls": [
                self.account.client().generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": key}, 36_000)
                for key in keys
            ],
            "paths": [str(path) for path in self.paths],
            "source": str(self.folder),
            "store": str(self.store),
            "model": MODEL,
            "verify": "blocks",
            **facts,
        }


@contextmanager
def remote_scene(model: str, files: int) -> Iterator[Scene]:
    """Give a Ceph with a store and the same files in one bucket; it ends with the block."""
    subprocess.run([str(ROOT / "scripts" / "contenders.sh")], check=True)
    with Ceph.running() as ceph:
        account = ceph.s3
        os.environ.update(account.environment())  # whoever opens the store finds the keys
        account.make_bucket(BUCKET)
        folder = remove("remote-model")
        folder.mkdir()
        for path in sorted(get_model(model).glob("*.safetensors"))[:files]:
            os.link(path, folder / path.name)
        scene = Scene(ceph, sorted(folder.iterdir()), folder, remove("remote"))
        client = account.client()
        for path in scene.paths:
            client.upload_file(str(path), BUCKET, f"plain/{path.name}")
        with _new_store(scene.store, account, "load") as store:
            store.push(folder, MODEL)
        yield scene
    remove("remote")
    remove("remote-model")


def _new_store(folder: Path, account: S3Account, prefix: str) -> tensorkeep.Store:
    store = tensorkeep.init(folder)
    store.devices.add("s3", account.device_url(BUCKET, prefix), bandwidth=10**9)
    return store


def bench_load(scene: Scene, rounds: int, kinds: Sequence[str] = LOADERS) -> Rounds:
    """Return what loads cost each contender, after one round that isn't counted: imports, pools, first connections."""
    found: Rounds = {kind: [] for kind in kinds}
    tensors = scene.size_bytes - sum(_header_bytes(path) for path in scene.paths)
    with ExitStack() as stack:
        children = [_child(kind, scene, stack) for kind in kinds]
        for number in range(rounds + 1):
            for child in children:
                cost = child.ask(scene.job(do="load"), tensors)
                if number:
                    found[child.kind].append(cost)
    return found


def bench_push(scene: Scene, rounds: int) -> Rounds:
    """Return what pushes into an empty store cost, beside uploads of the same files by boto3's transfer manager."""
    found: Rounds = {"tensorkeep": [], "boto3": []}
    numbers = count()
    with ExitStack() as stack:
        children = [_child(kind, scene, stack) for kind in found]
        for number in range(rounds + 1):
            for child in children:
                prefix = f"push-{next(numbers)}"
                store = remove("remote-push")
                if child.kind == "tensorkeep":
                    _new_store(store, scene.account, prefix).close()
                keys = [f"{prefix}/{path.name}" for path in scene.paths]
                cost = child.ask(scene.job(do="push", store=str(store), keys=keys), scene.size_bytes)
                if number:
                    found[child.kind].append(cost)
                _empty(scene.account, prefix)
                scene.ceph.settle()
    remove("remote-push")
    return found


def bench_cached(scene: Scene, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of loads that find all parts in the node's cache, and of loads from a disk, in turns; a first one fills it.

    Both map, and verify every block; the model is opened in the time that counts.
    """
    cache, folder = remove("remote-cache"), remove("remote-near")
    cache.mkdir()
    config = cache / "node.toml"
    config.write_text(f'[cache]\nfolder = "{cache}"\n', "utf-8")
    with tensorkeep.init(folder) as store:
        store.devices.add("disk", str(folder / "disk"))
        store.push(scene.folder, MODEL)
    found: dict[str, list[float]] = {"fill": [], "cached": [], "near": []}
    os.environ[VARIABLE] = str(config)
    try:
        for number in range(rounds + 1):
            for kind, place in (("cached", scene.store), ("near", folder)):
                began = time.perf_counter()
                with tensorkeep.open(place) as store:
                    arrays = store.model(MODEL).load()
                seconds = time.perf_counter() - began
                del arrays
                found["fill" if kind == "cached" and not number else kind].append(seconds)
    finally:
        del os.environ[VARIABLE]
        remove("remote-cache")
        remove("remote-near")
    return found


def _child(kind: str, scene: Scene, stack: ExitStack) -> Child:
    child = Child(kind, scene.account)
    stack.callback(child.close)
    return child


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _empty(account: S3Account, prefix: str) -> None:
    client = account.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
        keys = [{"Key": each["Key"]} for each in page.get("Contents", ())]
        if keys:
            client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})


def median(rounds: Sequence[Round]) -> Round:
    """Return the median of the seconds and that of the CPU seconds."""
    return Round(statistics.median(r.seconds for r in rounds), statistics.median(r.cpu_seconds for r in rounds))


def remote_figures(rounds: int, *, model: str = "small", files: int = 2) -> list[Figure]:
    """Return the figures of loads and pushes beside their bars."""
    with remote_scene(model, files) as scene:
        loads = bench_load(scene, rounds + _MORE_ROUNDS, [kind for kind in LOADERS if kind not in CEILINGS])
        pushes = bench_push(scene, rounds + _MORE_ROUNDS)
        cached = bench_cached(scene, rounds)
    return [*_figures(loads, pushes), _cached_figure(cached)]


def open_remote_figures(rounds: int, *, model: str = "small", files: int = 2) -> list[Figure]:
    """Return the rate of a load beside what obstore gives, and how devices near and far end together."""
    with remote_scene(model, files) as scene:
        loads = bench_load(scene, rounds, ("tensorkeep", "obstore"))
        mixed = far_and_near_figures(scene.account, BUCKET, rounds)
    ours, ceiling = (median(loads[kind]).seconds for kind in ("tensorkeep", "obstore"))
    question = f"load from S3, verified: rate / {NAMES['obstore']}"
    return [Figure(question, ceiling / ours, 0.9, "", at_least=True), *mixed]


def _cached_figure(found: dict[str, list[float]]) -> Figure:
    cached, near = (statistics.median(found[kind]) for kind in ("cached", "near"))
    return Figure(
        "load from S3 through the filled node cache: time / load from a disk, both mapped", cached / near, 1.25, ""
    )


def _figures(loads: Rounds, pushes: Rounds) -> list[Figure]:
    ours = median(loads["tensorkeep"])
    others = {kind: median(found) for kind, found in loads.items() if kind not in ("tensorkeep", *CEILINGS)}
    fastest = min(others, key=lambda kind: others[kind].seconds)
    least = min(others, key=lambda kind: others[kind].cpu_seconds)
    push, upload = median(pushes["tensorkeep"]), median(pushes["boto3"])
    return [
        Figure(
            f"load from S3, verified: rate / {NAMES[fastest]}",
            others[fastest].seconds / ours.seconds,
            1.4,
            "",
            at_least=True,
        ),
        Figure(f"the same: CPU seconds / {NAMES[least]}", ours.cpu_seconds / others[least].cpu_seconds, 1.0, ""),
        Figure("push to S3: rate / boto3 upload", upload.seconds / push.seconds, 1.0, "", at_least=True),
    ]


def _show(title: str, found: Rounds, size_bytes: int, console: Console) -> None:
    table = Table(title=title)
    for heading in ("contender", "median s", "spread s", "GB/s", "CPU s", "time / ours", "CPU / ours"):
        table.add_column(heading, justify="left" if heading == "contender" else "right")
    ours = median(found["tensorkeep"])
    for kind, rounds in found.items():
        middle = median(rounds)
        seconds = [each.seconds for each in rounds]
        table.add_row(
            NAMES[kind],
            f"{middle.seconds:.2f}",
            f"{min(seconds):.2f}-{max(seconds):.2f}",
            f"{size_bytes / middle.seconds / 1e9:.2f}",
            f"{middle.cpu_seconds:.2f}",
            f"{middle.seconds / ours.seconds:.2f}",
            f"{middle.cpu_seconds / ours.cpu_seconds:.2f}",
        )
    console.print(table)


def main() -> None:
    """Run the tables."""
    parser = argparse.ArgumentParser(description="measure loads and pushes over S3")
    parser.add_argument("--model", default="small")
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("load", "push"))
    words = parser.parse_args()
    console = Console(width=110)
    tables: dict[str, Rounds] = {}
    with remote_scene(words.model, words.files) as scene:
        size = scene.size_bytes
        if words.only != "push":
            tables["load"] = bench_load(scene, words.rounds)
        if words.only != "load":
            tables["push"] = bench_push(scene, words.rounds)
    for name, found in tables.items():
        _show(f"{name}, {size / 1e9:.2f} GB of {words.model}, Ceph on loopback", found, size, console)
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {
        "model": words.model,
        "bytes": size,
        "version": tensorkeep.__version__,
        "tables": {
            name: [{"name": NAMES[kind], "rounds": [r._asdict() for r in rounds]} for kind, rounds in found.items()]
            for name, found in tables.items()
        },
    }
    (RESULTS / "remote.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
