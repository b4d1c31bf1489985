"""What style alone can't hold: names of modules, time and threads from outside only, failpoints named and hit."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorkeep.runtime import FAILPOINTS

SOURCE = Path(__file__).parents[2] / "src" / "tensorkeep"
MODULES = sorted(SOURCE.rglob("*.py"))
BANNED_NAMES = {"utils", "util", "core", "helpers", "helper", "common", "misc"}

# Doors read arguments and environment; the room runtime is where the real clock, threads and randomness are.
DOORS = {"cli", "server", "runtime", "__init__.py", "__main__.py"}
OUTSIDE = (
    "time.time",
    "time.time_ns",
    "time.monotonic",
    "time.monotonic_ns",
    "time.perf_counter",
    "time.sleep",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "date.today",
    "threading.Thread",
    "threading.Timer",
    "concurrent.futures.ThreadPoolExecutor",
    "concurrent.futures.ProcessPoolExecutor",
    "os.environ",
    "os.getenv",
    "os.urandom",
    "random.",
    "secrets.",
    "uuid.uuid",
    "sys.argv",
    "numpy.random.",
)


def _room_modules() -> list[Path]:
    return [path for path in MODULES if path.relative_to(SOURCE).parts[0] not in DOORS]


def _full_names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each dotted name that a module uses, with imports resolved: ``from time import time as t; t()`` is ``time.time``."""
    tree = ast.parse(path.read_text("utf-8"))
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                origin[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                origin[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        dotted = _dotted(node)
        if dotted and dotted.partition(".")[0] in origin:
            first, dot, rest = dotted.partition(".")
            yield getattr(node, "lineno", 0), origin[first] + dot + rest


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return None


def _outside_uses(path: Path) -> list[str]:
    # The shipped test kit draws from seeded generators, which repeat.
    allowed = {"random.Random"} if "testing" in path.parts else set[str]()
    return [
        f"{path.name}:{line}: {name}"
        for line, name in _full_names(path)
        if name not in allowed
        and any(name.startswith(banned) if banned.endswith((".", "uuid")) else name == banned for banned in OUTSIDE)
    ]


def _failpoints_hit(path: Path) -> Iterator[str]:
    """Yield the names that a module hits: the first argument of every call of ``….hit(…)``."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "hit":
            assert node.args, f"{path.name}:{node.lineno}: hit() without a name"
            name = node.args[0]
            assert isinstance(name, ast.Constant), (
                f"{path.name}:{node.lineno}: write the failpoint's name out, for grep"
            )
            yield str(name.value)


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(SOURCE)) for path in MODULES])
def test_no_room_or_module_has_a_name_that_says_nothing(path: Path) -> None:
    names = {part.removesuffix(".py") for part in path.relative_to(SOURCE).parts}
    assert not names & BANNED_NAMES


def test_rooms_take_time_randomness_threads_and_environment_from_the_runtime() -> None:
    uses = [use for path in _room_modules() for use in _outside_uses(path)]
    assert not uses, "\n".join(uses)


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.time()",
        "import time as t\nt.sleep(1)",
        "from time import monotonic\nmonotonic()",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.now()",
        "import threading\nthreading.Thread()",
        "from concurrent.futures import ThreadPoolExecutor as Pool\nPool()",
        "import os\nos.environ['HOME']",
        "from os import environ\nenviron.get('HOME')",
        "import random\nrandom.random()",
        "import numpy as np\nnp.random.default_rng()",
    ],
)
def test_a_use_of_the_outside_is_seen_however_it_is_imported(code: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(code, "utf-8")
    assert _outside_uses(tmp_path / "planted.py")


def test_locks_and_durations_are_no_use_of_the_outside(tmp_path: Path) -> None:
    code = "import threading\nfrom datetime import UTC, datetime\nthreading.Lock()\ndatetime.fromtimestamp(0, UTC)\n"
    (tmp_path / "planted.py").write_text(code, "utf-8")
    assert not _outside_uses(tmp_path / "planted.py")


def test_every_failpoint_in_the_code_is_named_in_the_set() -> None:
    assert {name for path in MODULES for name in _failpoints_hit(path)} <= FAILPOINTS


def test_every_failpoint_of_the_set_is_hit_in_the_code() -> None:
    hit = {name for path in MODULES for name in _failpoints_hit(path)}
    assert not FAILPOINTS - hit


def test_the_repository_has_nothing_at_its_top_but_what_it_needs() -> None:
    """A command that a test ran in the wrong folder once left a device there, and it was committed."""
    root = SOURCE.parents[1]
    ignored = {line.strip("/") for line in (root / ".gitignore").read_text().splitlines()}
    top = {path.name for path in root.iterdir() if not path.name.startswith(".")} - ignored
    files = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"}
    assert top == {*files, "bench", "docs", "scripts", "src", "tests"}
