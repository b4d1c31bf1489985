"""What the end-to-end tests share: stores with devices, real and made models, and the command line as a process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from bench.make_models import find_minilm, make_model
from tensorkeep.runtime import ManualClock, Runtime
from tests.e2e.backends import BACKENDS, CREDENTIALS, USUAL_BACKEND, open_backend
from tests.e2e.trees import every_dtype, odd_files, write_tree
from tests.e2e.workshop import Backend, Workshop

_REPOSITORY = Path(__file__).resolve().parents[2]
_DOWNLOADS = _REPOSITORY / ".bench" / "models"
"""Beside what `make bench` keeps: downloaded once for a clone, ignored by git."""


class StoreFactory(Protocol):
    """Makes stores, each with its own devices."""

    def __call__(
        self, devices: int = 2, *, replicas: int | None = None, runtime: Runtime | None = None
    ) -> Workshop: ...


@contextmanager
def _open_factory(base: Path, backend: Backend) -> Iterator[StoreFactory]:
    """Give a factory of stores of a backend in folders under ``base``."""
    made: list[Workshop] = []

    def make(devices: int = 2, *, replicas: int | None = None, runtime: Runtime | None = None) -> Workshop:
        folder = base / f"workshop{len(made)}"
        folder.mkdir()
        made.append(Workshop(folder, devices=devices, replicas=replicas, runtime=runtime, backend=backend))
        return made[-1]

    yield make
    for workshop in made:
        workshop.remove()


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """What the stores of the tests are made of: each backend of ``--backend`` in turn (`pytest_generate_tests`)."""
    with pytest.MonkeyPatch.context() as patch:
        yield open_backend(request.param, request, patch)


@pytest.fixture
def store_factory(tmp_path: Path, backend: Backend) -> Iterator[StoreFactory]:
    """Makes stores of the test's own."""
    with _open_factory(tmp_path, backend) as factory:
        yield factory


@pytest.fixture
def workshop(store_factory: StoreFactory) -> Workshop:
    """A store of the test's own, with two devices and one copy of each part."""
    return store_factory()


@pytest.fixture(scope="module")
def shared_workshop(tmp_path_factory: pytest.TempPathFactory, backend: Backend) -> Iterator[Workshop]:
    """A store with three devices for all tests of a module, which push under names of their own: making one is slow."""
    base = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch, _open_factory(base, backend) as factory:
        patch.setenv("XDG_CACHE_HOME", str(base / "caches"))
        yield factory(3)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have what makes stores be there once for each backend that it is about.

    The first backend is for every run; `make test` runs what is marked ``every_backend`` on the others too, `make soak` all.
    """
    if "backend" in metafunc.fixturenames:
        own = metafunc.definition.get_closest_marker("backends")
        often = metafunc.config.getoption("--backend") or metafunc.definition.get_closest_marker("every_backend")
        parameters = []
        for name in own.args if own else BACKENDS:
            marks = [getattr(pytest.mark, mark) for mark in BACKENDS[name]]
            if not often and name != USUAL_BACKEND:
                marks.append(pytest.mark.soak)
            parameters.append(pytest.param(name, marks=marks))
        metafunc.parametrize("backend", parameters, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the backends that were asked for; without a word of them, those for every run or those for a soak."""
    asked = config.getoption("--backend")
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        backend = _backend_of(item)
        if asked:
            keep = backend in {None, *asked}
        else:  # left out here, so that they are counted: thousands of names would hide what else was left out
            keep = config.getoption("--soak") or backend in {None, USUAL_BACKEND} or not item.get_closest_marker("soak")
        (kept if keep else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def _backend_of(item: pytest.Item) -> str | None:
    called = getattr(item, "callspec", None)
    return None if called is None else called.params.get("backend")


class Models(NamedTuple):
    """Folders of models, made once. Tests must not write in them."""

    minilm: Path
    tiny: Path
    odd: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A real model (91 MB), a Llama-shaped one (101 MB), and a folder of files that are easily got wrong."""
    made = tmp_path_factory.mktemp("models")
    return Models(
        find_minilm(_DOWNLOADS),
        make_model("tiny", made / "tiny"),
        write_tree(made / "odd", odd_files() | every_dtype()),
    )


@pytest.fixture
def later() -> Runtime:
    """A runtime whose clock is an hour ahead: files written just now are old enough for the cache of known files."""
    return Runtime(clock=ManualClock(datetime.now(UTC) + timedelta(hours=1)))


class Answer(NamedTuple):
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on standard output."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a command that ran with ``--json``: code, message, facts."""
        found: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return found


class CommandLine:
    """The command line in processes of its own, with a home folder of the test's."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a command."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", *CREDENTIALS) if name in os.environ}
        return kept | {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "caches"), "COLUMNS": "200"} | more

    def start(
        self,
        *words: object,
        store: str | Path | None = None,
        program: tuple[str, ...] = ("-m", "tensorkeep"),
        more: Mapping[str, str] | None = None,
        talk: bool = False,
    ) -> "subprocess.Popen[str]":
        """Start a command and return its process.

        Args:
            words: its arguments.
            store: the store that its environment names; None: the one in its home.
            program: what Python runs.
            more: of its environment.
            talk: whether it gets a standard input that the test writes to.
        """
        named = {} if store is None else {"TENSORKEEP_STORE": str(store)}
        return subprocess.Popen(
            [sys.executable, *program, *map(str, words)],
            env=self.environment(**named, **(more or {})),
            cwd=self.home,
            stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self,
        *words: object,
        store: str | Path | None = None,
        program: tuple[str, ...] = ("-m", "tensorkeep"),
        more: Mapping[str, str] | None = None,
        code: int | None = 0,
    ) -> Answer:
        """Run a command; it must end with ``code`` (None: any)."""
        with self.start(*words, store=store, program=program, more=more) as process:
            out, err = process.communicate(timeout=120)
        answer = Answer(process.returncode, out, err)
        assert code is None or answer.code == code, f"{words} ended with {answer.code}: {out}{err}"
        assert "Traceback" not in err
        return answer


@pytest.fixture
def command_line(home: Path) -> CommandLine:
    """The command line, each call a process."""
    return CommandLine(home)
