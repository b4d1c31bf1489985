"""The rooms' law is enforced: each kind of forbidden import, planted in a copy of the source, is caught."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tensorkeep"

# Rooms from the top down, one for each line of the contract.
LINES = [
    ["cli"],
    ["server"],
    ["testing"],
    ["integrations"],
    ["store"],
    ["catalog", "transfer"],
    ["planning", "devices"],
    ["codecs", "formats"],
    ["records"],
    ["runtime"],
    ["errors"],
]
UPWARD = [(low, high) for upper, lower in itertools.pairwise(LINES) for high in upper for low in lower]
SIDEWAYS = [pair for line in LINES if len(line) == 2 for pair in (tuple(line), tuple(reversed(line)))]
TOPICS = {
    "the store imports torch": ("store", "import torch"),
    "a format imports torch": ("formats", "from torch import Tensor"),
    "the store imports jax": ("store", "import jax"),
    "the command line imports the test kit": ("cli", "import tensorkeep.testing"),
    "the server imports the test kit": ("server", "import tensorkeep.testing"),
    "the store imports the test kit": ("store", "import tensorkeep.testing"),
    "the command line imports the catalog": ("cli", "from tensorkeep.catalog import protocol"),
    "the command line imports devices": ("cli", "from tensorkeep.devices import protocol"),
    "an import inside a function": ("records", "def f() -> None:\n    import tensorkeep.store"),
    "an import by one level up": ("records", "from .. import store"),
}


def _lint(folder: Path) -> "subprocess.CompletedProcess[str]":
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package, found before the installed one."""
    shutil.copytree(SOURCE, tmp_path / "tensorkeep", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def _plant(folder: Path, room: str, line: str) -> None:
    place = folder / "tensorkeep" / room
    place = place / "planted.py" if place.is_dir() else place.with_suffix(".py")
    with place.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")


def _assert_caught(folder: Path, *names: str) -> None:
    result = _lint(folder)
    assert result.returncode != 0, result.stdout
    assert "BROKEN" in result.stdout, result.stdout + result.stderr
    for name in names:
        assert f"tensorkeep.{name}" in result.stdout


def test_the_untouched_source_keeps_the_law(copy: Path) -> None:
    result = _lint(copy)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(("low", "high"), UPWARD, ids=[f"{low}-{high}" for low, high in UPWARD])
def test_an_import_upward_is_caught(copy: Path, low: str, high: str) -> None:
    _plant(copy, low, f"import tensorkeep.{high}")
    _assert_caught(copy, low, high)


@pytest.mark.parametrize(("one", "other"), SIDEWAYS, ids=[f"{one}-{other}" for one, other in SIDEWAYS])
def test_an_import_between_rooms_of_one_line_is_caught(copy: Path, one: str, other: str) -> None:
    _plant(copy, one, f"import tensorkeep.{other}")
    _assert_caught(copy, one, other)


@pytest.mark.parametrize("topic", TOPICS)
def test_caught(copy: Path, topic: str) -> None:
    room, line = TOPICS[topic]
    _plant(copy, room, line)
    _assert_caught(copy, room)


@pytest.mark.parametrize("name", ["utils", "vault"])
def test_a_new_room_is_caught(copy: Path, name: str) -> None:
    (copy / "tensorkeep" / name).mkdir()
    (copy / "tensorkeep" / name / "__init__.py").write_text('"""A room that nobody decided on."""\n', "utf-8")
    result = _lint(copy)
    assert result.returncode != 0, result.stdout
    assert f"tensorkeep.{name}" in result.stdout + result.stderr
