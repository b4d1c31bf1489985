"""A file of 1 GB into parts and back, in a process of its own whose memory is measured."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

MIB = 1 << 20
SIZE = 10**9 + 7
PEAK_LIMIT_BYTES = 200 * MIB
NAME = "model.bin"

# VmHWM, not ru_maxrss: the latter is inherited from the process that started this one.
PROGRAM = """
import sys
import tensorkeep

def say_peak(what):
    peak, = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print(what, 1024 * int(peak))

folder, count = sys.argv[1], int(sys.argv[2])
tensorkeep.split_file(f"{folder}/model.bin", parts=count, to=[f"{folder}/a", f"{folder}/b"])
say_peak("split")
tensorkeep.join_file(f"{folder}/a/model.bin.parts.json", f"{folder}/again.bin")
say_peak("join")
"""

MISHAPS = """
import os, sys
import tensorkeep

folder, count = sys.argv[1], int(sys.argv[2])
def part(number):
    return f"{folder}/{'ab'[(number - 1) % 2]}/model.bin.part-{number}-of-{count}"

with open(part(2), "r+b") as file:
    file.seek(100_000_000)
    byte = file.read(1)[0]
    file.seek(100_000_000)
    file.write(bytes([byte ^ 1]))
os.unlink(part(5))
os.rename(part(3), part(3) + "x"), os.rename(part(4), part(3)), os.rename(part(3) + "x", part(4))
try:
    tensorkeep.join_file(f"{folder}/a/model.bin.parts.json", f"{folder}/never.bin")
except tensorkeep.Integrity as error:
    print(error)
assert not os.path.exists(f"{folder}/never.bin")
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file; it is large, so it goes when the module is done."""
    path = tmp_path_factory.mktemp("large") / NAME
    random = np.random.default_rng(7)
    with path.open("wb") as file:
        for start in range(0, SIZE, 50_000_000):
            file.write(random.bytes(min(50_000_000, SIZE - start)))
    yield path
    path.unlink()


def run(program: str, folder: Path, count: int) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(count)], check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_a_file_of_1_gb_comes_back_in_bounded_memory(source: Path, tmp_path: Path, count: int) -> None:
    (tmp_path / NAME).symlink_to(source)
    peaks = dict(line.split() for line in run(PROGRAM, tmp_path, count).splitlines())
    assert peaks.keys() == {"split", "join"}
    assert max(map(int, peaks.values())) <= PEAK_LIMIT_BYTES, peaks
    subprocess.run(["cmp", source, tmp_path / "again.bin"], check=True)
    assert sorted(path.stat().st_size for path in tmp_path.rglob("*.part-*")) == sorted(
        (i + 1) * SIZE // count - i * SIZE // count for i in range(count)
    )
    if count == 7:
        (tmp_path / "again.bin").unlink()
        told = run(MISHAPS, tmp_path, count).splitlines()
        assert [line.split(":")[0] for line in told] == [
            f"{NAME} can't be joined, 4 of its 7 parts are not right",
            "part 2 is damaged",
            "parts 3 and 4 are swapped",
            "part 5 is missing",
        ]
