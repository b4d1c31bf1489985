"""``kill -9`` of a split and a join, at every named step and at random moments: nothing half is ever taken for whole."""

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tensorkeep
from tensorkeep.errors import Integrity, NotFound
from tensorkeep.runtime import FAILPOINTS, SeededRandomness
from tests.faults.store_driver import Driver

KILLED = -signal.SIGKILL
NAME = "model.bin"
INDEX = "model.bin.parts.json"
PARTS = 5
SIZE = (24 << 20) + 11

# Which hits of each name kill.
SPLIT = {
    "split.reserved": (1,),
    "split.part_written": (1, PARTS),
    "split.part_published": (1, PARTS),
    "split.parts_durable": (1,),
    "split.copy_published": (1, 2),
    "split.index_published": (1,),
}
JOIN = {
    "join.reserved": (1,),
    "join.part_taken": (1, PARTS),
    "join.verified": (1,),
    "join.published": (1,),
}
SPLIT_STEPS = [(name, number) for name, numbers in SPLIT.items() for number in numbers]
JOIN_STEPS = [(name, number) for name, numbers in JOIN.items() for number in numbers]


class Desk:
    """A file, two folders for its parts; perhaps a split of an older file of the same name in them."""

    def __init__(self, folder: Path, *, older: bool) -> None:
        self.folder = folder
        self.older = older
        self.source = folder / NAME
        self.to = [folder / "a", folder / "b"]
        self.data = SeededRandomness(1).random_bytes(SIZE)
        self.old = SeededRandomness(2).random_bytes(SIZE)
        folder.mkdir()
        if older:
            self.source.write_bytes(self.old)
            tensorkeep.split_file(self.source, parts=PARTS, to=self.to)
        self.source.write_bytes(self.data)

    @property
    def job(self) -> dict[str, Any]:
        return {
            "verb": "split",
            "source": str(self.source),
            "parts": PARTS,
            "to": [str(folder) for folder in self.to],
            "force": self.older,
        }

    def indexes(self) -> list[Path]:
        return [path for folder in (self.folder, *self.to) if (path := folder / INDEX).exists()]

    def check(self) -> None:
        """Assert that each index that is there leads to a whole file or to an error, and that splitting again does."""
        assert self.source.read_bytes() == self.data
        out = self.folder / "out.bin"
        for index in self.indexes():
            try:
                tensorkeep.join_file(index, out, force=True)
            except (Integrity, NotFound):
                assert self.older  # its parts were replaced; a new one comes after all its parts
                assert not out.exists()
            else:
                assert out.read_bytes() in ((self.data, self.old) if self.older else (self.data,))
                out.unlink()
        report = tensorkeep.split_file(self.source, parts=PARTS, to=self.to, force=True)
        assert report.sha256 == hashlib.sha256(self.data).hexdigest()
        for index in self.indexes():
            tensorkeep.join_file(index, out, force=True)
            assert out.read_bytes() == self.data
        assert len(self.indexes()) == 3


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


def test_every_failpoint_of_single_files_is_killed_at() -> None:
    assert {*SPLIT, *JOIN} == {name for name in FAILPOINTS if name.startswith(("split.", "join."))}


@pytest.mark.parametrize("older", [False, True], ids=["first", "over an older one"])
@pytest.mark.parametrize(("name", "number"), SPLIT_STEPS)
def test_a_split_killed_at_a_step_leaves_nothing_that_is_taken_for_whole(
    driver: Driver, tmp_path: Path, name: str, number: int, older: bool
) -> None:
    desk = Desk(tmp_path / "desk", older=older)
    assert driver.run(**desk.job, kill=name, number=number) == KILLED
    if not older and name != "split.copy_published":
        assert bool(desk.indexes()) == (name == "split.index_published")
    desk.check()


@pytest.mark.parametrize(("name", "number"), JOIN_STEPS)
def test_a_join_killed_at_a_step_leaves_no_file_or_the_whole_one(
    driver: Driver, tmp_path: Path, name: str, number: int
) -> None:
    desk = Desk(tmp_path / "desk", older=False)
    tensorkeep.split_file(desk.source, parts=PARTS, to=desk.to)
    out = desk.folder / "out.bin"
    job = {"verb": "join", "index": str(desk.folder / INDEX), "out": str(out)}
    assert driver.run(**job, kill=name, number=number) == KILLED
    assert out.exists() == (name == "join.published")
    if out.exists():
        assert out.read_bytes() == desk.data
    tensorkeep.join_file(desk.folder / INDEX, out, force=True)
    assert out.read_bytes() == desk.data


@pytest.mark.parametrize("moment", range(8))
def test_a_split_killed_at_a_random_moment_leaves_nothing_that_is_taken_for_whole(
    driver: Driver, tmp_path: Path, moment: int
) -> None:
    desk = Desk(tmp_path / "desk", older=moment % 2 == 1)
    driver.start(**desk.job)
    # Such a split takes about 0.1 s.
    until = time.monotonic() + 0.15 * SeededRandomness(moment).uniform()
    while time.monotonic() < until:
        os.sched_yield()
    with suppress(ProcessLookupError):
        os.kill(driver.pid, signal.SIGKILL)
    ended, _ = driver.finish()
    assert ended in (0, KILLED)
    desk.check()
