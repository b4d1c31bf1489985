"""``kill -9`` of a pusher at the system calls it makes: strace counts them from outside and kills it as it enters the N-th.

A killed process leaves what its calls did until then, so every state that a push can leave is the one before some call that
changes something. Those are killed at here, whoever makes them (SQLite, Python, this library), and every fsync and connect.

strace counts the calls of each thread by themselves. With all work in one thread each push makes the same calls in the same
order, so that every single one is killed at; with threads, as users run it, the first thread to enter its N-th call ends all.
"""

import ctypes
import json
import os
import random
import re
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
from typing_extensions import Buffer

from tensorkeep.devices import LocalDevice, local_path
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import TensorkeepError
from tensorkeep.records.device import DeviceFacts
from tensorkeep.runtime import Failpoints, InlineWorkers, NoFailpoints, Runtime, ThreadWorkers, Workers
from tensorkeep.store.fleet import open_by_facts
from tensorkeep.store.store import Store
from tests.faults.store_driver import weaken_catalogs
from tests.faults.store_world import (
    MIB,
    MODEL,
    Arrays,
    Hooks,
    World,
    assert_loads,
    assert_no_orphans,
    usable,
    write_source,
)

ROOT = Path(__file__).resolve().parents[2]
KILLED = -signal.SIGKILL
SEED = 20
POINTS = 100
BATCHES = 10
NOT_THERE = "a version was acknowledged and is not there"

# Under every name that an architecture or a C library has for them; a push makes about half of these.
CALLS = (
    *(
        "fsync",
        "fdatasync",
        "rename",
        "renameat",
        "renameat2",
        "link",
        "linkat",
        "unlink",
        "unlinkat",
        "mkdir",
        "mkdirat",
    ),
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "truncate", "ftruncate", "fallocate", "connect"),
)
WORKERS: dict[str, Callable[[], Workers]] = {"one thread": InlineWorkers, "threads": ThreadWorkers}


class Point(NamedTuple):
    """Where a push is killed: as one of its threads enters that call for that time, counted from 1."""

    workers: str
    call: str
    number: int


class Ended(NamedTuple):
    """How a push ended: its status, or minus the signal that killed it, and what it had said of its success, if it had."""

    status: int
    acknowledged: dict[str, Any] | None


# --------------------------------------------------------------------------- strace


@contextmanager
def traced(pid: int, *options: str) -> Iterator[None]:
    """Trace a waiting process and all threads it will have; wait until it is gone when left."""
    command = ["strace", "-f", "-p", str(pid), *options]
    try:
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        pytest.fail("there is no strace here, which this test needs: run scripts/setup.sh dev")
    with strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            pytest.fail(f"strace can't trace here, this test needs ptrace to be allowed: {said}{strace.stderr.read()}")
        yield
        strace.communicate()


def killing(point: Point) -> list[str]:
    """Return the options that kill at a point, before the call does anything."""
    inject = f"inject={point.call}:signal=SIGKILL:when={point.number}"
    return ["-o", os.devnull, "-e", f"trace={point.call}", "-e", inject]


def counting(file: Path) -> list[str]:
    """Return the options that write every call to a file."""
    return ["-o", str(file), "-s", "0", "-e", "signal=none", "-e", "trace=" + ",".join(f"?{call}" for call in CALLS)]


def count_calls(file: Path) -> dict[str, int]:
    """Return how many of each call the thread made that made the most of them."""
    calls = Counter(re.findall(r"^(\d+) +(\w+)\(", file.read_text(), re.MULTILINE))
    most: dict[str, int] = {}
    for (_, call), count in calls.items():
        most[call] = max(count, most.get(call, 0))
    return most


# ------------------------------------------------------------------- store and pusher


class Pusher:
    """An interpreter with everything imported, which forks for each push. A context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.test_strace_kill"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )

    def push(self, *strace: str, workers: str = "threads", fault: str | None = None, **places: str) -> Ended:
        """Push in a new process, traced where strace has options, and return how that ended."""
        self._tell(workers=workers, fault=fault, **places)
        pid = self._read()["pid"]
        acknowledged = None
        with ExitStack() as stack:
            if strace:
                stack.enter_context(traced(pid, *strace))
            self._tell(go=True)
            while "exit" not in (said := self._read()):
                acknowledged = said
        return Ended(said["exit"], acknowledged)

    def _tell(self, **line: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the pusher is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


class Stage:
    """A store with one version, tagged ``base``, the source of the next one, and a process that pushes it.

    `restore` makes the store what it was at first. Nothing is copied elsewhere: the catalog knows the devices by their paths.
    """

    def __init__(self, folder: Path, pusher: Pusher) -> None:
        self.folder = folder
        self.source = write_source(folder / "source", two_parts(1))
        self.world = World(folder / "world", devices=2)
        base = write_source(folder / "base", two_parts(0))
        self._base = self.world.create().push(base, MODEL, part_size=MIB, tag="base").id
        self.world.close()
        self._pusher = pusher
        files, self._folders = self._find()
        self._files = {file: (Path(file).read_bytes(), os.stat(file).st_mode) for file in files}

    def restore(self) -> None:
        """Leave the files and folders of the beginning, no others."""
        files, folders = self._find()
        for file in files:
            os.unlink(file)
        for folder in sorted(folders - self._folders, reverse=True):
            os.rmdir(folder)
        for file, (data, mode) in self._files.items():
            Path(file).write_bytes(data)
            os.chmod(file, mode)

    def push(self, *strace: str, **job: Any) -> Ended:
        """Push the next version in a process of its own."""
        return self._pusher.push(*strace, folder=str(self.world.folder), source=str(self.source), **job)

    def kill(self, point: Point, **job: Any) -> Ended:
        """Push from the beginning and be killed."""
        self.restore()
        return self.push(*killing(point), workers=point.workers, **job)

    def find_damage(self, ended: Ended) -> list[str]:
        """Return what is wrong after a push ended like this; where nothing is, also after the same push was made again."""
        try:
            return self._look(pushed=ended.acknowledged is not None) or self._push_again()
        except TensorkeepError as error:
            return [f"the store can't be used: {error}"]
        finally:
            self.world.close()

    def _look(self, *, pushed: bool) -> list[str]:
        """Return what a process that starts now finds wrong; ``pushed``: the next version must be there."""
        with self.world.open() as store:
            wrong = [str(problem) for problem in store.verify().problems]
            is_new = store.model(MODEL).version.id != self._base
            if pushed and not is_new:
                wrong.append(NOT_THERE)
            wrong += wrong_load(store, f"{MODEL}@base", two_parts(0))
            return wrong + wrong_load(store, MODEL, two_parts(int(is_new)))

    def _push_again(self) -> list[str]:
        with self.world.open() as store:
            held = usable(store)
        status, acknowledged = self.push()
        if status or acknowledged is None:
            return [f"the same push ended with {status} and said {acknowledged}"]
        with self.world.open() as store:
            owed = store._context.catalog.version_objects(acknowledged["version"])
            missing = sum(size * max(0, 2 - len(held.get(key, ()))) for key, size in owed)
            if (sent := acknowledged["written_bytes"]) != missing:
                return [f"the same push sent {sent} bytes, and {missing} were missing"]
        return self._look(pushed=True)

    def assert_no_orphans(self) -> None:
        """Assert that gc leaves nothing of the push that was killed."""
        with self.world.open() as store:
            assert_no_orphans(self.world, store)
        self.world.close()

    def _find(self) -> tuple[set[str], set[str]]:
        """Return all files and all folders of the store and its devices."""
        files: set[str] = set()
        folders: set[str] = set()
        for where, _, names in os.walk(self.world.folder):
            folders.add(where)
            files.update(os.path.join(where, name) for name in names)
        return files, folders


def two_parts(turn: int) -> Arrays:
    """Return the arrays of a model of two parts, 1.2 MB; turns have none in common."""
    chance = np.random.default_rng(turn)
    return {f"layers.{layer}.weight": chance.standard_normal(150_000 + layer, np.float32) for layer in range(2)}


def wrong_load(store: Store, spec: str, arrays: Arrays) -> list[str]:
    """Return why a version does not load bit for bit, if it does not."""
    try:
        assert_loads(store, spec, arrays)
    except (AssertionError, TensorkeepError) as error:
        return [f"{spec} does not load: {error}"]
    return []


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Pusher() as pusher:
        stage = Stage(tmp_path_factory.mktemp("stage"), pusher)
        yield stage
        stage.world.end()


@pytest.fixture(scope="module")
def points(stage: Stage) -> list[Point]:
    """Every point that there is: a push of each kind is traced once, from the moment it opens the store."""
    found = []
    for workers in WORKERS:
        stage.restore()
        file = stage.folder / "calls"
        assert stage.push(*counting(file), workers=workers).status == 0
        counts = count_calls(file)
        found += [Point(workers, call, number) for call in CALLS for number in range(1, counts.get(call, 0) + 1)]
    return found


def draw(points: Sequence[Point]) -> list[Point]:
    """Return 100 points, of each kind of call as many as of every other while there are any left."""
    chance = random.Random(SEED)
    kinds: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        kinds.setdefault(point[:2], []).append(point)
    shuffled = [chance.sample(kind, len(kind)) for kind in kinds.values()]
    return [point for turn in zip_longest(*shuffled) for point in turn if point is not None][:POINTS]


# ---------------------------------------------------------------------------- tests


def test_a_push_makes_the_calls_that_it_is_killed_at(points: list[Point]) -> None:
    for workers in WORKERS:
        calls = {point.call for point in points if point.workers == workers}
        assert calls >= {"fsync", "ftruncate", "write"}
        # The others have two names or more, by the architecture and by how SQLite was built.
        assert calls & {"link", "linkat"}
        assert calls & {"rename", "renameat", "renameat2"}
        assert "connect" not in calls
    assert len(draw(points)) == POINTS


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_push_killed_at_a_system_call_loses_nothing_and_is_made_good(
    stage: Stage, points: list[Point], batch: int
) -> None:
    for point in draw(points)[batch::BATCHES]:
        check(stage, point)
    stage.assert_no_orphans()


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_push_killed_at_any_system_call_loses_nothing_and_is_made_good(
    stage: Stage, points: list[Point], batch: int
) -> None:
    for point in points[batch::BATCHES]:
        check(stage, point)
        stage.assert_no_orphans()


# Negative controls: pushes that leave out something which protects, and what the same check says of them.


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(
    ("fault", "damage"),
    [("objects late", "kind='missing'"), ("word early", NOT_THERE)],
    ids=["objects late", "word early"],
)
def test_a_push_that_commits_or_speaks_too_early_is_found_out(
    stage: Stage, points: list[Point], workers: str, fault: str, damage: str
) -> None:
    """Killed as it gives the first object its name, which is after its commit, or after its word."""
    first_link = next(point for point in points if point.workers == workers and point.call.startswith("link"))
    ended = stage.kill(first_link, fault=fault)
    assert ended.status == KILLED
    assert any(damage in each for each in stage.find_damage(ended))


@pytest.mark.parametrize("workers", WORKERS)
def test_a_catalog_without_a_journal_to_undo_from_is_found_damaged(
    stage: Stage, points: list[Point], workers: str
) -> None:
    """Killed amid the pages of its transactions; two of three such points show."""
    call = "pwrite64" if any(point.call == "pwrite64" for point in points) else "write"  # as SQLite was built
    damage = []
    for number in range(5, 15, 2):
        damage += stage.find_damage(stage.kill(Point(workers, call, number), fault="no undo"))
    assert any("catalog" in each for each in damage)


def check(stage: Stage, point: Point) -> None:
    """Kill a push at a point, and assert that nothing is lost or wrong."""
    ended = stage.kill(point)
    # Threads share their work out anew each time: none may make as many calls as one did in the push that was counted.
    survived = ended.status == 0 and point.workers == "threads"
    assert ended.status == KILLED or survived, f"{point} ended with {ended.status}"
    assert stage.find_damage(ended) == [], f"killed at {point}, drawn with seed {SEED}"


# --------------------------------------------------------------- inside the interpreter


class LateDevice(LocalDevice):
    """Says of objects that they are put, and puts them only when `catch_up` is called."""

    def __init__(self, facts: DeviceFacts, runtime: Runtime) -> None:
        super().__init__(local_path(facts.url), runtime=runtime, url=facts.url)
        self._is_late = True
        self._held: list[tuple[str, Sequence[Buffer]]] = []

    def put_batch(self, objects: Sequence[tuple[str, Sequence[Buffer]]]) -> tuple[int, TensorkeepError | None]:
        if not self._is_late:
            return super().put_batch(objects)
        self._held += [(name, [bytes(each) for each in data]) for name, data in objects]
        return len(objects), None

    def catch_up(self) -> None:
        self._is_late = False
        self.put_batch(self._held)
        self.flush()


def _say(**line: Any) -> None:
    os.write(1, (json.dumps(line) + "\n").encode())  # one call: the line is said or it is not


def _serve() -> None:
    while line := sys.stdin.readline():
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write_end)
            _die_after(json.loads(line), read_end)
        os.close(read_end)
        _say(pid=child)
        if sys.stdin.readline():
            os.write(write_end, b"g")
        os.close(write_end)
        _say(exit=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _die_after(job: dict[str, Any], gate: int) -> None:
    """Push once the gate opens; without a return, as in a forked child there must be none."""
    status = 1
    try:
        _allow_tracing()
        if os.read(gate, 1):
            _push(job)
            status = 0
    except BaseException:  # noqa: BLE001 - a forked child must never get out of here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _allow_tracing() -> None:
    """Let any process of this user trace this one where only a parent may (Yama). Source: prctl(2), PR_SET_PTRACER."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # an error elsewhere, where it is not needed


def _push(job: dict[str, Any]) -> None:
    late: list[LateDevice] = []

    def open_late(facts: DeviceFacts, runtime: Runtime) -> Device:
        late.append(LateDevice(facts, runtime))
        return late[-1]

    def catch_up() -> None:
        for device in late:
            device.catch_up()

    faults: dict[str | None, Failpoints] = {
        None: NoFailpoints(),
        "objects late": Hooks(push__committed=catch_up),
        "no undo": NoFailpoints(),
        "word early": Hooks(push__session_begun=lambda: _say(version="not yet")),
    }
    if job["fault"] == "no undo":
        weaken_catalogs("journal_mode=OFF")  # by which a transaction that was cut off is undone
    world = World(Path(job["folder"]), devices=2)
    store = world.open(
        runtime=Runtime(workers=WORKERS[job["workers"]](), failpoints=faults[job["fault"]]),
        opener=open_late if job["fault"] == "objects late" else open_by_facts,
    )
    version = store.push(job["source"], MODEL, part_size=MIB)
    assert version.report is not None
    _say(version=version.id, written_bytes=version.report.written_bytes)


if __name__ == "__main__":
    _serve()
