"""Contenders in processes of their own: what they load is checked, and none can take the bench down with it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.make_models import make_model
from bench.rounds import ContenderFailed, alternate
from bench.workers import Worker, expected_checksum, loading

Start = Callable[[str], Worker]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps = make_model("steps", tmp_path_factory.mktemp("models") / "steps", size_bytes=100_000)
    return steps / "checkpoint-0100"


@pytest.fixture
def start() -> Iterator[Start]:
    workers: list[Worker] = []

    def start(actions: str) -> Worker:
        workers.append(Worker(actions, f"tests.unit.bench.fakes:{actions}", Path(sys.executable)))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def test_an_honest_contender_is_measured(start: Start, source: Path) -> None:
    turn = loading(start("honest"), expected_checksum(source), lambda: None, {"folder": source})
    taken = turn.take()
    assert taken.seconds > 0
    assert taken.peak_bytes > 0


def test_what_an_action_found_out_comes_back(start: Start) -> None:
    assert start("honest").ask("push")["facts"] == {"new_bytes": 7}


@pytest.mark.parametrize("actions", ["flips", "swaps", "leaves_out", "returns_nothing"])
def test_a_contender_that_loads_other_bytes_is_not_measured(start: Start, source: Path, actions: str) -> None:
    turn = loading(start(actions), expected_checksum(source), lambda: None, {"folder": source})
    with pytest.raises(ContenderFailed, match="wrong bytes"):
        turn.take()


def test_a_contender_that_raises_says_why_and_can_be_asked_again(start: Start, source: Path) -> None:
    worker = start("raises")
    for _ in range(2):
        with pytest.raises(ContenderFailed, match=f"load: OSError: can't read {source.name}"):
            worker.ask("load", folder=source)


def test_a_contender_that_dies_says_its_last_words(start: Start, source: Path) -> None:
    with pytest.raises(ContenderFailed, match="died: Segmentation fault"):
        start("dies").ask("load", folder=source)


def test_a_contender_that_does_not_answer_is_ended(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = start("honest")
    monkeypatch.setattr("bench.workers.TIMEOUT_S", 0.0)
    with pytest.raises(ContenderFailed, match="did not answer"):
        worker.ask("push")


def test_one_that_lies_is_left_out_and_named_while_the_others_go_on(start: Start, source: Path) -> None:
    expected = expected_checksum(source)
    turns = [loading(start(actions), expected, lambda: None, {"folder": source}) for actions in ("flips", "honest")]
    failures: dict[str, str] = {}
    timings = alternate(turns, rounds=2, failures=failures)
    assert list(timings) == ["honest"]
    assert len(timings["honest"].seconds) == 2
    assert "wrong bytes" in failures["flips"]
