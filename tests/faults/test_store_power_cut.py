"""Power cuts amid pushes, catalog and devices on the disk that loses power: no acknowledged version is lost or wrong.

A negative control runs the same check with fsync switched off, on the devices and in the catalog, and sees losses.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorkeep.errors import TensorkeepError
from tensorkeep.runtime import SeededRandomness
from tensorkeep.store.store import Store
from tensorkeep.testing.power_cut import CutDisk
from tests.faults.store_driver import Driver
from tests.faults.store_world import MODEL, World, small_weights

pytestmark = pytest.mark.root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[CutDisk]:
    mount_point = tmp_path / "mount"
    mount_point.mkdir()
    with CutDisk(str(tmp_path / "disk.img"), str(mount_point), size="512M") as disk:
        yield disk


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


class Cuts:
    """A store on a disk, what it has acknowledged (turn → version id), and the next turn."""

    def __init__(self, disk: CutDisk, driver: Driver, *, lossy: bool = False) -> None:
        self.disk = disk
        self.driver = driver
        self.lossy = lossy
        self.world = World(Path(disk.mount_point, "store"), devices=2)
        self.acknowledged: dict[int, str] = {}
        self.next = 0
        self.world.folder.mkdir()
        self.world.create()
        self.world.close()
        if lossy:
            disk.power_on()  # what was made so far is whole; only the pushes are not synced

    def cut(self, number: int) -> None:
        """Push version after version in another process, and cut the power at a moment that the number decides."""
        chance = SeededRandomness(number)
        job = {"folder": str(self.world.folder), "first": self.next, "count": 10_000, "lossy": self.lossy}
        self.driver.start(verb="push_many", **job)
        for _ in range(1 + int(3 * chance.uniform())):
            self.note(self.driver.read())
        until = time.monotonic() + 0.08 * chance.uniform()
        while time.monotonic() < until:
            pass
        self.disk.power_off()
        ended, said = self.driver.finish()
        assert ended == 1, "the push went on without a disk"
        for answer in said:
            self.note(answer)  # also what was acknowledged when the power was off: nothing may have been
        self.disk.power_on()

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
def test_no_acknowledged_version_is_lost_in_100_power_cuts(disk: CutDisk, driver: Driver) -> None:
    cut_often(Cuts(disk, driver), range(100, 200))


def cut_often(cuts: Cuts, numbers: range) -> None:
    for number in numbers:
        cuts.cut(number)
        assert cuts.losses() == []
        cuts.skip_unacknowledged()
    assert len(cuts.acknowledged) >= len(numbers)
    with cuts.world.open() as store:
        store.gc(grace_s=0)
    assert cuts.losses() == []


def test_without_fsync_the_same_check_sees_acknowledged_versions_lost(disk: CutDisk, driver: Driver) -> None:
    cuts = Cuts(disk, driver, lossy=True)
    for number in range(5):
        cuts.cut(number)
        if cuts.losses():
            return
        cuts.skip_unacknowledged()
    pytest.fail("five power cuts without fsync, and nothing was lost: this test sees no losses")
