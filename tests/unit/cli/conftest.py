"""The command line, run in this process on a fake store."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tensorkeep.cli.main import main
from tests.unit.cli.fake_store import FakeDoors, FakeStore


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str
    doors: FakeDoors

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The JSON error on standard error."""
        error: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return error

    @property
    def call(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """The last call of the store, without the progress callback."""
        name, args, kwargs = self.doors.store.calls[-1]
        return name, args, {k: v for k, v in kwargs.items() if k != "progress"}


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with these words on a store with these answers."""

    def run_words(*words: str, **answers: Any) -> Ran:
        doors = FakeDoors(store=FakeStore(answers={k.replace("__", "."): v for k, v in answers.items()}))
        code = main(words, doors=doors)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err, doors)

    return run_words
