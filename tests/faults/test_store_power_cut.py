"""Power cuts amid pushes, catalog and devices on the disk that loses power: no acknowledged version is lost or wrong.

The catalog is SQLite, or PostgreSQL with its data on that disk; then the whole machine stops, its server and the pusher too.

A negative control runs the same check with fsync switched off, on the devices and in the catalog, and sees losses.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tensorkeep.catalog import postgres
from tensorkeep.errors import TensorkeepError
from tensorkeep.runtime import SeededRandomness
from tensorkeep.store.store import Store
from tensorkeep.testing.power_cut import CutDisk
from tests.engines.postgres import Postgres
from tests.engines.servers import EngineError, children_of, make_folder, wait_until_gone
from tests.faults.store_driver import Driver
from tests.faults.store_world import MODEL, World, small_weights

pytestmark = pytest.mark.root


@pytest.fixture(params=["ext4", "xfs"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[CutDisk]:
    mount_point = tmp_path / "mount"
    mount_point.mkdir()
    with CutDisk(str(tmp_path / "disk.img"), str(mount_point), request.param, size="512M") as disk:
        yield disk


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


class Cuts:
    """A store on a disk, what it has acknowledged (turn → version id), and the next turn."""

    def __init__(self, disk: CutDisk, driver: Driver, *, lossy: bool = False, database: str | None = None) -> None:
        self.disk = disk
        self.driver = driver
        self.lossy = lossy
        self.world = World(Path(disk.mount_point, "store"), devices=2)
        self.acknowledged: dict[int, str] = {}
        self.next = 0
        self.lose_power: Callable[[], None] = disk.power_off
        self.regain_power: Callable[[], None] = disk.power_on
        self.world.database = database
        self.world.folder.mkdir()
        self.world.create()
        self.world.close()
        if lossy and database is None:
            disk.power_on()  # what was made so far is whole; only the pushes are not synced

    def cut(self, number: int) -> None:
        """Push version after version in another process, and cut the power at a moment that the number decides."""
        chance = SeededRandomness(number)
        job = {"folder": str(self.world.folder), "first": self.next, "count": 10_000, "lossy": self.lossy}
        self.driver.start(verb="push_many", database=self.world.database, **job)
        for _ in range(1 + int(3 * chance.uniform())):
            self.note(self.driver.read())
        until = time.monotonic() + 0.08 * chance.uniform()
        while time.monotonic() < until:
            pass
        self.lose_power()
        ended, said = self.driver.finish()
        assert ended in (1, -signal.SIGKILL), "the push went on without a disk"
        for answer in said:
            self.note(answer)  # also what was acknowledged when the power was off: nothing may have been
        self.regain_power()

    def note(self, answer: dict[str, int]) -> None:
        assert "acknowledged" in answer, answer
        self.acknowledged[answer["acknowledged"]] = str(answer["version"])
        self.next = answer["acknowledged"] + 1

    def losses(self) -> list[str]:
        """Return what is wrong with the store after a cut; opens it as a process does that starts now."""
        try:
            with self.world.open() as store:
                return [str(problem) for problem in store.verify().problems] + self._lost_versions(store)
        except TensorkeepError as error:
            return [f"the store can't be opened: {error}"]
        finally:
            self.world.close()

    def _lost_versions(self, store: Store) -> list[str]:
        lost = []
        for turn, version in self.acknowledged.items():
            try:
                model = store.model(f"{MODEL}@v{turn}")
                arrays = model.load()
            except TensorkeepError as error:
                lost.append(f"v{turn}: {error}")
                continue
            expected = small_weights(turn)
            if model.version.id != version or any(
                arrays[name].tobytes() != expected[name].tobytes() for name in expected
            ):
                lost.append(f"v{turn} is another one")
        return lost

    def skip_unacknowledged(self) -> None:
        """A push that was cut off may have committed: its tag is taken then, so the next turn begins after it."""
        with self.world.open() as store:
            tags = {tag for entry in store.log(MODEL) if entry.version for tag in entry.version.tags}
        self.world.close()
        while f"v{self.next}" in tags:
            self.next += 1


def test_no_acknowledged_version_is_lost_in_20_power_cuts(disk: CutDisk, driver: Driver) -> None:
    cut_often(Cuts(disk, driver), range(20))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(100, 400, 50))
def test_no_acknowledged_version_is_lost_in_300_power_cuts(disk: CutDisk, driver: Driver, first: int) -> None:
    cut_often(Cuts(disk, driver), range(first, first + 50))


def cut_often(cuts: Cuts, numbers: range) -> None:
    for number in numbers:
        cuts.cut(number)
        assert cuts.losses() == []
        cuts.skip_unacknowledged()
    assert len(cuts.acknowledged) >= len(numbers)
    check_at_the_end(cuts)


def check_at_the_end(cuts: Cuts) -> None:
    with cuts.world.open() as store:
        store.gc(grace_s=0, max_fraction=None)
    assert cuts.losses() == []


def test_without_fsync_the_same_check_sees_acknowledged_versions_lost(disk: CutDisk, driver: Driver) -> None:
    cuts = Cuts(disk, driver, lossy=True)
    for number in range(5):
        cuts.cut(number)
        if cuts.losses():
            return
        cuts.skip_unacknowledged()
    pytest.fail("five power cuts without fsync, and nothing was lost: this test sees no losses")


# ----------------------------------------------------------------------- PostgreSQL


class Machine:
    """A machine that loses power as a whole: PostgreSQL's data and the devices on one disk, the server and the pusher die."""

    def __init__(self, driver: Driver) -> None:
        self.folder = make_folder("cut")  # PostgreSQL runs as another user, who must get there
        mount_point = self.folder / "mount"
        mount_point.mkdir()
        self.driver = driver
        self.disk = CutDisk(str(self.folder / "disk.img"), str(mount_point), size="2G")
        try:
            mount_point.chmod(0o711)
            self.server = Postgres(data=mount_point / "postgres")
        except BaseException:
            self.close()
            raise

    def begin(self, *, lossy: bool = False) -> Cuts:
        """Return a store on it; what was made until then is whole."""
        database = self.server.make_database("store")
        if lossy:
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")
                connection.execute("SELECT pg_reload_conf()")
        os.sync()  # initdb left it to us
        cuts = Cuts(self.disk, self.driver, lossy=lossy, database=database)
        cuts.lose_power, cuts.regain_power = self.power_off, self.power_on
        return cuts

    def power_off(self) -> None:
        """Cut the power of the disk, and end at once what ran on it."""
        children = children_of(self.server.server.pid)
        self.disk.power_off()
        for pid in (self.driver.pid, self.server.server.pid):
            with suppress(ProcessLookupError):  # it has seen that its disk is gone
                os.kill(pid, signal.SIGKILL)
        wait_until_gone([self.server.server.pid, *children])

    def power_on(self) -> None:
        """Mount the disk and start the server, which recovers."""
        self.disk.power_on()
        self.server.start()

    def close(self) -> None:
        if hasattr(self, "server"):
            self.server.stop()
        self.disk.close()
        shutil.rmtree(self.folder)


@pytest.fixture
def machine(driver: Driver) -> Iterator[Machine]:
    machine = Machine(driver)
    yield machine
    machine.close()


@pytest.mark.timeout(300)
def test_with_postgresql_on_the_disk_too_no_acknowledged_version_is_lost_in_4_power_cuts(machine: Machine) -> None:
    cut_often(machine.begin(), range(4))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(1000, 1060, 20))
def test_with_postgresql_no_acknowledged_version_is_lost_in_60_power_cuts(machine: Machine, first: int) -> None:
    cut_often(machine.begin(), range(first, first + 20))


@pytest.mark.timeout(300)
def test_with_postgresql_and_without_fsync_the_same_check_sees_acknowledged_versions_lost(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_check_server", lambda _cursor, _url: None)  # it would refuse such a server
    cuts = machine.begin(lossy=True)
    for number in range(5):
        try:
            cuts.cut(number)
        except EngineError:
            return  # it can't even start: everything is lost
        if cuts.losses():
            return
        cuts.skip_unacknowledged()
    pytest.fail("five power cuts without fsync in PostgreSQL, and nothing was lost: this test sees no losses")
