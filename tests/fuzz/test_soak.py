"""A million inputs: each target's by a seeded mutator, then by coverage, in processes whose memory is limited.

A crash is reported with its input in hex; ``python -m tests.fuzz.run_seeded`` and ``run_atheris`` run one target by hand.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.examples import EXAMPLES
from tests.fuzz.limits import MEMORY_BYTES
from tests.fuzz.planted import PLANTED, PLANTED_EXAMPLE
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]

SEEDED = 25_000
BY_COVERAGE = 40_000
"""Inputs for each target."""

SLOW = {"hdf5": 4000, "keras": 4000}
"""Those that ask another process, whose branches nobody counts: fewer, and only by the seeded mutator."""


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", f"tests.fuzz.{module}", *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def _folder(path: Path, examples: list[bytes]) -> str:
    path.mkdir()
    for number, example in enumerate(examples):
        (path / str(number)).write_bytes(example)
    return str(path)


def _run_seeded(name: str, examples: str, runs: int) -> dict[str, int]:
    ended = _run("run_seeded", name, examples, str(runs), "1")
    assert ended.returncode == 0, ended.stderr[-20_000:]
    found: dict[str, int] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _run_atheris(name: str, corpus: str, artifacts: Path, runs: int) -> dict[str, int]:
    artifacts.mkdir()
    ended = _run("run_atheris", name, corpus, str(artifacts), str(runs))
    assert ended.returncode == 0, ended.stderr[-20_000:]
    stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", ended.stderr))
    return {"inputs": int(stats["number_of_executed_units"]), "kept": int(stats["new_units_added"])}


def test_these_are_a_million_inputs() -> None:
    seeded = sum(SLOW.get(name, SEEDED) for name in TARGETS)
    assert seeded + BY_COVERAGE * (len(TARGETS) - len(SLOW)) >= 1_000_000


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_crashes_a_reader_or_takes_its_memory(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None], capfd: pytest.CaptureFixture[str]
) -> None:
    examples = EXAMPLES[name]()
    runs = SLOW.get(name, SEEDED)
    seeded = _run_seeded(name, _folder(tmp_path / "examples", examples), runs)
    assert seeded["inputs"] == runs
    assert seeded["grown_bytes"] < MEMORY_BYTES
    line = f"{name}: {runs} seeded inputs, {seeded['believed']} believed, {seeded['grown_bytes'] >> 20} MiB"
    if name not in SLOW:
        guided = _run_atheris(name, _folder(tmp_path / "corpus", examples), tmp_path / "crashes", BY_COVERAGE)
        assert guided["inputs"] >= BY_COVERAGE
        line += f"; {guided['inputs']} by coverage, {guided['kept']} with new branches"
    record_property("fuzz", line)
    with capfd.disabled():
        print(line)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "problem"),
    [("planted index", "IndexError"), ("planted memory", "MemoryError"), ("planted loop", "TimeoutError")],
)
def test_planted_bugs_are_found_in_a_process_of_their_own(name: str, problem: str, tmp_path: Path) -> None:
    assert name in PLANTED
    ended = _run("run_seeded", name, _folder(tmp_path / "examples", [PLANTED_EXAMPLE]), "5000", "1")
    assert ended.returncode != 0
    assert re.search(rf"crashed with {problem}: .* bytes 54[0-9a-f]*\n", ended.stderr), ended.stderr[-2000:]


@pytest.mark.soak
@pytest.mark.parametrize(("name", "problem"), [("planted index", "IndexError"), ("planted memory", "MemoryError")])
def test_planted_bugs_are_found_by_coverage(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "crashes").mkdir()
    corpus = _folder(tmp_path / "corpus", [PLANTED_EXAMPLE])
    ended = _run("run_atheris", name, corpus, str(tmp_path / "crashes"), "50000")
    assert ended.returncode != 0
    assert re.search(rf"crashed with {problem}: .* bytes 54[0-9a-f]*\n", ended.stderr), ended.stderr[-2000:]
    assert list((tmp_path / "crashes").iterdir())
