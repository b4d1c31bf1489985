"""A process that does one thing to a store and may be killed at it.

`Driver` keeps one interpreter with everything imported, which forks for each job: a fork costs milliseconds, a new
interpreter half a second. The parent has one thread, so forking is safe. Jobs and answers are lines of JSON.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors.numpy import load_file

import tensorkeep
from tensorkeep.catalog import postgres, sqlite
from tensorkeep.devices import LocalDevice, local_path
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import TensorkeepError
from tensorkeep.records.device import DeviceFacts
from tensorkeep.runtime import Runtime
from tensorkeep.store import confirming
from tensorkeep.store.fleet import open_by_facts
from tensorkeep.store.store import Store
from tests.faults.store_world import MIB, MODEL, World, assert_loads, small_weights

ROOT = Path(__file__).resolve().parents[2]


class KillAt:
    """Failpoints that kill the process, as ``kill -9`` does, or stop it, at the n-th hit of a name."""

    def __init__(self, name: str | None, number: int, how: int = signal.SIGKILL) -> None:
        self._how = how
        self._name = name
        self._left = number
        self._lock = threading.Lock()

    def hit(self, name: str) -> None:
        """Die if it is time."""
        if name != self._name:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._how)


class Driver:
    """The process, seen from the tests. A context manager."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.store_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )
        self.pid = 0

    def start(self, **job: Any) -> None:
        """Start a job; ``pid`` is the process that does it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        self.pid = self.read()["pid"]

    def read(self) -> dict[str, Any]:
        """Return the next thing that the job says; ``exit`` comes last: a status, or minus the signal that killed it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the driver is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def finish(self) -> tuple[int, list[dict[str, Any]]]:
        """Return how the job ended, and all that it said until then."""
        said = []
        while "exit" not in (answer := self.read()):
            said.append(answer)
        return answer["exit"], said

    def run(self, **job: Any) -> int:
        """Do a job and return how it ended."""
        self.start(**job)
        return self.finish()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


# ------------------------------------------------------------------ inside the process


def _say(**answer: Any) -> None:
    os.write(1, (json.dumps(answer) + "\n").encode())  # one call: lines of two processes do not mix


def _serve() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write_end)
            os.read(read_end, 1)  # until the parent has said who this is
            _die_after(job)
        _say(pid=child)
        os.close(read_end)
        os.close(write_end)
        _, status = os.waitpid(child, 0)
        _say(exit=os.waitstatus_to_exitcode(status))


def _die_after(job: dict[str, Any]) -> None:
    status = 1
    try:
        _work(job)
        status = 0
    except BaseException:  # noqa: BLE001 - a forked child must never get out of here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _work(job: dict[str, Any]) -> None:
    lossy = bool(job.get("lossy"))
    if lossy:
        _forget_to_sync()
    if job["verb"] in _FILE_VERBS:
        _FILE_VERBS[job["verb"]](job, Runtime(failpoints=KillAt(job.get("kill"), job.get("number", 1))))
        return
    world = World(
        Path(job["folder"]),
        replicas=job.get("replicas", 2),
        snapshot_every=job.get("snapshot_every", 1000),
        database=job.get("database"),
    )
    failpoints = KillAt(job.get("kill"), job.get("number", 1), job.get("how", signal.SIGKILL))
    if job["verb"] == "rebuild":
        tensorkeep.rebuild_catalog(
            world.location, force=job.get("force", False), runtime=Runtime(failpoints=failpoints)
        )
        return
    try:
        _VERBS[job["verb"]](world.open(failpoints=failpoints, opener=_open_lossy if lossy else open_by_facts), job)
    except TensorkeepError as error:
        if not job.get("may_fail"):
            raise
        _say(failed=job["verb"], why=str(error))


def _push(store: Store, job: dict[str, Any]) -> None:
    store.push(job["source"], MODEL, part_size=MIB)


def _push_many(store: Store, job: dict[str, Any]) -> None:
    """Push version after version, and say of each one that it is acknowledged as soon as it is."""
    for turn in range(job["first"], job["first"] + job["count"]):
        version = store.push(small_weights(turn), MODEL, part_size=MIB, tag=f"v{turn}")
        _say(acknowledged=turn, version=version.id)


def _push_to(store: Store, job: dict[str, Any]) -> None:
    """Push turns of a model of its own; a push that fails typed is told, and not made again. ``early``: acknowledge before that."""
    for turn in job["turns"]:
        if job["early"]:
            _say(acknowledged=turn)
        try:
            store.push(small_weights(turn), job["model"], part_size=MIB, tag=f"v{turn}")
        except TensorkeepError as error:
            _say(failed=turn, why=str(error))
        else:
            _say(acknowledged=turn)


def _read_back(store: Store, job: dict[str, Any]) -> None:
    """Load a version and pull it; any byte that is wrong ends the process with an error."""
    spec = f"{job['model']}@v{job['turn']}"
    assert_loads(store, spec, small_weights(job["turn"]))
    store.pull(spec, job["to"], force=True)
    pulled = load_file(Path(job["to"], "model.safetensors"))
    assert {name: array.tobytes() for name, array in pulled.items()} == {
        name: array.tobytes() for name, array in small_weights(job["turn"]).items()
    }


def _remove(store: Store, job: dict[str, Any]) -> None:
    version = store.model(f"{job['model']}@v{job['turn']}").version.id
    store.delete_tag(job["model"], f"v{job['turn']}")
    store.rm(f"{job['model']}@{version}")


def _undrain(store: Store, job: dict[str, Any]) -> None:
    store.devices.undrain(job["device"])


def _collect(store: Store, job: dict[str, Any]) -> None:
    store.gc(grace_s=0, max_fraction=None)


def _scrub(store: Store, job: dict[str, Any]) -> None:
    store.scrub(deep=True)


def _repair(store: Store, job: dict[str, Any]) -> None:
    store.repair()


def _drain(store: Store, job: dict[str, Any]) -> None:
    store.devices.drain(job["device"], grace_s=0)


def _rebalance(store: Store, job: dict[str, Any]) -> None:
    store.rebalance()
    store.gc(grace_s=0, max_fraction=None)


def _convert(store: Store, job: dict[str, Any]) -> None:
    store.set_policy(MODEL, ec=job["ec"])


def _split(job: dict[str, Any], runtime: Runtime) -> None:
    tensorkeep.split_file(
        job["source"], parts=job["parts"], to=job["to"], force=job.get("force", False), runtime=runtime
    )


def _join(job: dict[str, Any], runtime: Runtime) -> None:
    tensorkeep.join_file(job["index"], job["out"], force=job.get("force", False), runtime=runtime)


_FILE_VERBS = {"split": _split, "join": _join}
_VERBS = {
    "push": _push,
    "push_many": _push_many,
    "push_to": _push_to,
    "read": _read_back,
    "remove": _remove,
    "undrain": _undrain,
    "gc": _collect,
    "scrub": _scrub,
    "repair": _repair,
    "drain": _drain,
    "rebalance": _rebalance,
    "policy": _convert,
}


def _open_lossy(facts: DeviceFacts, runtime: Runtime) -> Device:
    return LocalDevice(local_path(facts.url), runtime=runtime, url=facts.url, fsync=False)


def _forget_to_sync() -> None:
    """Make every catalog that is opened from now on trust the system's cache."""
    weaken_catalogs("synchronous=OFF")
    accept_any_server()


def weaken_catalogs(*pragmas: str) -> None:
    """Give SQLite these settings in every connection that this process makes from now on, after ours."""
    configure = sqlite._configure

    def configure_weaker(connection: sqlite3.Connection, *, read_only: bool) -> None:
        configure(connection, read_only=read_only)
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    setattr(sqlite, "_configure", configure_weaker)  # noqa: B010 - mypy lets no function be assigned


def accept_any_server() -> None:
    """Let this process open a catalog on a server that does not sync, which is refused otherwise."""
    setattr(postgres, "_check_server", lambda _cursor, _url: None)  # noqa: B010


if __name__ == "__main__":
    confirming._INTERVAL_S = (
        0.0  # each batch is confirmed, and recorded with the next: so every step is there to be killed at
    )
    _serve()
