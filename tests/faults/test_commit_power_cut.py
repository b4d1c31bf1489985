"""Power cuts aimed at the catalog's COMMIT: what SQLite said is committed is there afterwards, the rest is whole or absent.

The catalog alone lies on the disk that loses power. Its writer, another process, tells of the COMMIT that a cut is aimed at: the cut
comes right before it while it is held back, right after it before anything else happens, or a random time of microseconds into it.

The controls make the same cuts, right after the COMMIT, with settings a little weaker than ours (``journal_mode=TRUNCATE,
synchronous=FULL``), and see committed versions lost. With ``synchronous=NORMAL`` the truncation of the rollback journal is not
synced, with ``journal_mode=DELETE`` its removal is not (before SQLite's EXTRA): the journal is back after the cut, and undoes the
commit. In WAL mode the log itself is not synced with ``NORMAL``.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, event

from tensorkeep.catalog.database import MODE
from tensorkeep.catalog.sql import SqlCatalog
from tensorkeep.errors import TensorkeepError, Unavailable
from tensorkeep.runtime import SeededRandomness
from tensorkeep.store.store import Store
from tensorkeep.testing.power_cut import CutDisk
from tests.faults import store_driver
from tests.faults.store_driver import ROOT, Driver, weaken_catalogs
from tests.faults.store_world import MODEL, Arrays, Hooks, World, assert_loads

pytestmark = pytest.mark.root

Place = Literal["before", "within", "after"]
PLACES: tuple[Place, ...] = ("before", "within", "within", "within", "after")


class Committer(Driver):
    """The process that commits, see `_commit_on`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        self.pid = 0

    def read(self) -> dict[str, Any]:
        answer = super().read()
        if "exit" in answer:
            self.pid = 0
        return answer

    def end_job(self) -> None:
        """End the job that a failed test has left."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.finish()


@pytest.fixture(scope="module")
def committer() -> Iterator[Committer]:
    with Committer() as committer:
        yield committer


@pytest.fixture(params=["ext4", "xfs"])
def disk(tmp_path: Path, request: pytest.FixtureRequest, committer: Committer) -> Iterator[CutDisk]:
    mount_point = tmp_path / "world" / "store"
    mount_point.mkdir(parents=True)
    with CutDisk(str(tmp_path / "disk.img"), str(mount_point), request.param, size="320M") as disk:
        if request.param == "ext4":
            (mount_point / "lost+found").rmdir()  # a store's folder is empty at first
        yield disk
        committer.end_job()  # it has files open there


def arrays_of(turn: int) -> Arrays:
    return {"shared": np.arange(500), "own": np.full(99, turn)}


@dataclass
class Cuts:
    """A store whose catalog is on the disk, and what has been said to be committed in it."""

    disk: CutDisk
    committer: Committer
    pragmas: tuple[str, ...] = ()
    versions: dict[int, str] = field(default_factory=dict)  # turn → version id
    tags: set[int] = field(default_factory=set)  # turns
    seq: int = 0  # of the last change that SQLite said is committed
    begun: int = 0  # turns
    commit_s: float = 0.005  # what a COMMIT took last
    amid: int = 0  # cuts that a COMMIT was under way at

    def __post_init__(self) -> None:
        self.world = World(Path(self.disk.mount_point).parent, devices=1, replicas=1)
        self.world.create().push(arrays_of(0), MODEL)
        self.world.close()
        self.disk.cut()

    def cut(self, place: Place, *, change: int, share: float = 0) -> None:
        """Have versions pushed and tagged, and cut the power at a COMMIT.

        Args:
            place: before, within or after the COMMIT.
            change: which: the n-th of those that make versions and tags, or, negative, the n-th of all that write.
            share: within: after which part of the time that a COMMIT takes.
        """
        job = {"folder": str(self.world.folder), "first": self.begun + 1, "pragmas": self.pragmas}
        self.committer.start(verb="commit_on", place=place, change=change, **job)
        while "aimed" not in (answer := self.committer.read()):
            self.note(answer)
        while time.monotonic() < answer["at"] + share * self.commit_s:
            pass
        off = time.monotonic()
        self.disk.power_off()
        if place != "within":
            os.kill(self.committer.pid, signal.SIGKILL)  # it holds still
        ended, said = self.committer.finish()
        assert ended == (1 if place == "within" else -signal.SIGKILL), "it went on without a disk"
        self.amid += place == "within" and not any("seq" in answer and answer["at"] < off for answer in said)
        for answer in said:
            # An fsync that is under way when XFS is shut down may return without an error, and without what it was for. Where the
            # power really goes nobody is told so; what was told before counts.
            if self.disk.file_system != "xfs" or answer["at"] < off:
                self.note(answer)
            self.begun = max(self.begun, answer.get("begun", 0))
        self.disk.power_on()

    def note(self, answer: dict[str, Any]) -> None:
        """Keep what the process says: that it begins a turn, that SQLite has committed, that a verb has returned."""
        assert "exit" not in answer, "it ended before the cut"
        self.begun = max(self.begun, answer.get("begun", 0))
        self.seq = max(self.seq, answer.get("seq", 0))
        self.commit_s = answer.get("took_s", self.commit_s)
        if "pushed" in answer:
            self.versions[answer["pushed"]] = answer["version"]
        if "tagged" in answer:
            self.tags.add(answer["tagged"])

    def losses(self) -> list[str]:
        """Return what is wrong with the store after a cut; opens it as a process does that starts now."""
        try:
            store = self.world.open()
            catalog = store._context.catalog
            lost = catalog.check()
            if (seq := catalog.info().last_seq) < self.seq:
                lost.append(f"change {self.seq} was committed, and {seq} is the last")
            found = {tag: entry.version.id for entry in store.log(MODEL) if entry.version for tag in entry.version.tags}
            acknowledged = {f"v{turn}": version for turn, version in self.versions.items()}
            acknowledged |= {f"t{turn}": self.versions[turn] for turn in self.tags}
            lost += [f"{tag} is lost" for tag, version in acknowledged.items() if found.get(tag) != version]
            for turn in (self.begun - 1, self.begun):
                if f"v{turn}" in found:
                    assert_loads(store, f"{MODEL}@v{turn}", arrays_of(turn))
        except TensorkeepError as error:
            return [f"the store can't be used: {error}"]
        else:
            return lost
        finally:
            self.world.close()


def cut_often(cuts: Cuts, numbers: range) -> None:
    for number in numbers:
        chance = SeededRandomness(number)
        change = 1 + int(3 * chance.uniform()) if number % 4 else -1 - int(20 * chance.uniform())
        cuts.cut(PLACES[number % len(PLACES)], change=change, share=1.2 * chance.uniform())
        assert cuts.losses() == []
    assert cuts.amid >= len(numbers) / 10, "the cuts miss the COMMIT"
    with cuts.world.open() as store:
        assert store.push(arrays_of(cuts.begun + 1), MODEL).report is not None
        assert store.verify().problems == ()
        for turn in cuts.versions:
            assert_loads(store, f"{MODEL}@v{turn}", arrays_of(turn))
    cuts.world.close()


def test_nothing_committed_is_lost_in_20_power_cuts_at_the_commit(disk: CutDisk, committer: Committer) -> None:
    cut_often(Cuts(disk, committer), range(20))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(1000, 1300, 50))
def test_nothing_committed_is_lost_in_300_power_cuts_at_the_commit(
    disk: CutDisk, committer: Committer, first: int
) -> None:
    cut_often(Cuts(disk, committer), range(first, first + 50))


@pytest.mark.parametrize(
    ("journal_mode", "synchronous"), [("TRUNCATE", "NORMAL"), ("DELETE", "FULL"), ("WAL", "NORMAL")]
)
def test_with_weaker_settings_the_same_check_sees_committed_versions_lost(
    disk: CutDisk, committer: Committer, journal_mode: str, synchronous: str
) -> None:
    cuts = Cuts(disk, committer, (f"journal_mode={journal_mode}", f"synchronous={synchronous}"))
    for _ in range(5):
        cuts.cut("after", change=1)
        if cuts.losses():
            return
    pytest.fail("five power cuts right after a COMMIT, and nothing was lost: this test sees no losses")


# ------------------------------------------------------------------ inside the process


@pytest.mark.parametrize("moment", ["before", "push.before_commit"])
def test_a_dead_disk_of_the_catalog_is_unavailable_and_nobody_is_told_to_rebuild(disk: CutDisk, moment: str) -> None:
    world = World(Path(disk.mount_point).parent, devices=1, replicas=1)
    world.create().push(arrays_of(0), MODEL)
    world.close()
    hooks = Hooks()
    hooks.on[moment] = disk.power_off
    store = world.open(failpoints=hooks)
    store.status()
    if moment == "before":
        disk.power_off()
    verbs: list[Callable[[], object]] = [lambda: store.push(arrays_of(1), MODEL), store.status, world.open]
    try:
        for verb in verbs:
            with pytest.raises(Unavailable, match="disk") as told:
                verb()
            assert "rebuild" not in str(told.value)
    finally:
        world.close()
        disk.power_on()


class Aim:
    """Watches the COMMITs of a catalog: tells of each change that SQLite has committed, and holds the one aimed at."""

    def __init__(self, store: Store, place: Place, change: int) -> None:
        engine = engine_of(store)
        self._place = place
        self._all = change < 0
        self._left = abs(change)
        self._seq = store._context.catalog.info().last_seq
        self._do_commit = engine.dialect.do_commit
        setattr(engine.dialect, "do_commit", self.commit)  # noqa: B010 - mypy lets no method be assigned
        event.listen(engine, "commit", self.note)

    def note(self, connection: Connection) -> None:
        """Keep whether the transaction writes, for `commit`, which gets the driver's connection only."""
        connection.info["writes"] = connection.get_execution_options().get(MODE) == "write"

    def commit(self, connection: Any) -> None:
        """Commit a transaction of the catalog's."""
        if not connection.info["writes"]:
            self._do_commit(connection)
            return
        [seq] = connection.execute("SELECT last_seq FROM store").fetchone()
        changes, self._seq = seq != self._seq, seq
        self._left -= changes or self._all
        aimed = self._left == 0 and (changes or self._all)
        if aimed and self._place != "after":
            self._told(hold=self._place == "before")
        began = time.monotonic()
        self._do_commit(connection)
        now = time.monotonic()
        store_driver._say(seq=seq, took_s=now - began, at=now)
        if aimed and self._place == "after":
            self._told(hold=True)

    def _told(self, *, hold: bool) -> None:
        store_driver._say(aimed=True, at=time.monotonic())
        if hold:
            os.kill(os.getpid(), signal.SIGSTOP)


def _commit_on(store: Store, job: dict[str, Any]) -> None:
    """Push and tag version after version until the power goes."""
    weaken_catalogs(*job["pragmas"])
    engine_of(store).dispose()
    Aim(store, job["place"], job["change"])
    for turn in range(job["first"], job["first"] + 1000):
        store_driver._say(begun=turn, at=time.monotonic())
        version = store.push(arrays_of(turn), MODEL, tag=f"v{turn}")
        store_driver._say(pushed=turn, version=version.id, at=time.monotonic())
        store.tag(MODEL, f"t{turn}")
        store_driver._say(tagged=turn, at=time.monotonic())


def engine_of(store: Store) -> Engine:
    catalog = store._context.catalog
    assert isinstance(catalog, SqlCatalog)
    return catalog._db.engine


if __name__ == "__main__":
    store_driver._VERBS["commit_on"] = _commit_on
    store_driver._serve()
