import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tensorkeep.devices import LocalDevice
from tensorkeep.devices.system_calls import SystemCalls
from tensorkeep.devices.unfinished import sweep_folder, unfinished_file
from tensorkeep.errors import Internal
from tensorkeep.runtime import ManualClock, Runtime, SeededRandomness

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def runtime(seed: int = 1) -> Runtime:
    return Runtime(clock=ManualClock(NOON), randomness=SeededRandomness(seed))


def test_an_unfinished_file_is_gone_when_its_block_is_left(tmp_path: Path) -> None:
    with unfinished_file(str(tmp_path), runtime=runtime(), system=SystemCalls()) as path:
        assert os.listdir(tmp_path) == [os.path.basename(path)]
    with pytest.raises(KeyboardInterrupt), unfinished_file(str(tmp_path), runtime=runtime(), system=SystemCalls()):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_name_that_lies_about_is_passed_over(tmp_path: Path) -> None:
    with (
        unfinished_file(str(tmp_path), runtime=runtime(), system=SystemCalls()) as first,
        unfinished_file(str(tmp_path), runtime=runtime(), system=SystemCalls()) as second,
    ):
        assert first != second


def test_randomness_that_repeats_itself_is_a_bug_and_not_a_hang(tmp_path: Path) -> None:
    class Stuck(SeededRandomness):
        def random_bytes(self, count: int) -> bytes:
            return bytes(count)

    stuck = Runtime(clock=ManualClock(NOON), randomness=Stuck(0))
    with (
        unfinished_file(str(tmp_path), runtime=stuck, system=SystemCalls()),
        pytest.raises(Internal),
        unfinished_file(str(tmp_path), runtime=stuck, system=SystemCalls()),
    ):
        pass


def test_a_sweep_between_the_creation_and_the_lock_makes_the_writer_take_another_name(tmp_path: Path) -> None:
    class Racing(SystemCalls):
        swept = 0

        def open(self, path: str, flags: int, mode: int = 0o600) -> int:
            descriptor = super().open(path, flags, mode)
            if flags & os.O_EXCL and not self.swept:
                self.swept = sweep_folder(str(tmp_path), now_s=0, older_than_s=0, system=SystemCalls())
            return descriptor

    system = Racing()
    with unfinished_file(str(tmp_path), runtime=runtime(), system=system) as path:
        assert system.swept == 1
        assert os.listdir(tmp_path) == [os.path.basename(path)]
        assert sweep_folder(str(tmp_path), now_s=0, older_than_s=0, system=SystemCalls()) == 0


def test_only_files_of_the_given_age_are_swept(tmp_path: Path) -> None:
    device = LocalDevice(str(tmp_path / "disk"), runtime=runtime(), url=f"file://{tmp_path}/disk")
    device.prepare()
    for age_s in (10, 100, 1000, -50):
        path = tmp_path / "disk" / "tmp" / f"age{age_s}"
        path.write_bytes(b"x")
        os.utime(path, (0, NOON.timestamp() - age_s))
    assert device.sweep_unfinished(1001) == 0
    assert device.sweep_unfinished(100) == 2
    assert sorted(os.listdir(tmp_path / "disk" / "tmp")) == ["age-50", "age10"]
    assert device.sweep_unfinished(0) == 2


def test_a_sweep_leaves_alone_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert sweep_folder(str(tmp_path), now_s=0, older_than_s=0, system=SystemCalls()) == 0
    assert len(os.listdir(tmp_path)) == 3
