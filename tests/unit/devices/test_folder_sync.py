import threading

import pytest

from tensorkeep.devices.folder_sync import FolderSync
from tensorkeep.runtime import ThreadWorkers

WAIT_S = 30


class Disk:
    """Notes the fsyncs that began, and holds back those of one folder until told."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.held: dict[str, threading.Event] = {}
        self.entered = threading.Semaphore(0)
        self.failing: set[str] = set()

    def sync(self, folder: str) -> None:
        self.began.append(folder)
        self.entered.release()
        if folder in self.held:
            assert self.held[folder].wait(WAIT_S)
        if folder in self.failing:
            raise OSError(folder)


def test_a_flush_syncs_each_dirty_folder_once() -> None:
    disk = Disk()
    folders = FolderSync(disk.sync)
    folders.flush()
    folders.mark(["b", "a"])
    folders.mark(["a"])
    folders.flush()
    folders.flush()
    assert disk.began == ["a", "b"]


def test_a_flush_that_comes_during_a_round_waits_for_one_that_began_after_it() -> None:
    disk = Disk()
    disk.held["a"] = threading.Event()
    folders = FolderSync(disk.sync)
    folders.mark(["a"])
    with ThreadWorkers().open_pool(3, "test") as pool:
        first = pool.submit(folders.flush)
        assert disk.entered.acquire(timeout=WAIT_S)
        folders.mark(["a"])  # after the fsync of the first round began: it may have missed this entry
        later = [pool.submit(folders.flush) for _ in range(2)]
        assert disk.began == ["a"]
        assert not any(flush.done() for flush in later)
        disk.held.pop("a").set()
        for flush in [first, *later]:
            flush.result(WAIT_S)
    # One more round for both at least: a third if one of them came when the second was under way.
    assert disk.began[:2] == ["a", "a"]


def test_threads_that_mark_and_flush_always_find_a_sync_that_began_after_their_mark() -> None:
    disk = Disk()
    lock = threading.Lock()
    clock = {"now": 0}
    synced: dict[str, int] = {}

    def sync(folder: str) -> None:
        with lock:
            clock["now"] += 1
            began = clock["now"]
        disk.sync(folder)
        with lock:
            synced[folder] = began

    folders = FolderSync(sync)

    def work(worker: int) -> None:
        for step in range(200):
            folder = str((worker + step) % 5)
            with lock:
                clock["now"] += 1
                marked = clock["now"]
            folders.mark([folder])
            folders.flush()
            with lock:
                assert synced[folder] > marked

    with ThreadWorkers().open_pool(8, "test") as pool:
        for task in [pool.submit(work, worker) for worker in range(8)]:
            task.result()


def test_a_failed_round_fails_everyone_who_waits_for_it_and_leaves_its_folders_dirty() -> None:
    disk = Disk()
    disk.failing.add("a")
    disk.held["a"] = threading.Event()
    folders = FolderSync(disk.sync)
    folders.mark(["a"])
    with ThreadWorkers().open_pool(3, "test") as pool:
        flushes = [pool.submit(folders.flush) for _ in range(3)]
        assert disk.entered.acquire(timeout=WAIT_S)
        disk.held.pop("a").set()
        for flush in flushes:
            with pytest.raises(OSError, match="a"):
                flush.result(WAIT_S)
    disk.failing.clear()
    disk.began.clear()
    folders.flush()
    assert disk.began == ["a"]
