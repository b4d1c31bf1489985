"""Rounds alternate, and files are as warm or cold as the bench says."""

import mmap
import os
from functools import partial
from pathlib import Path

import pytest

from bench import rounds
from bench.rounds import (
    Contender,
    ContenderFailed,
    Round,
    Turn,
    alternate,
    cached_share,
    disk_bytes,
    make_cold,
    make_warm,
    measure,
)


def test_contenders_take_turns_each_after_its_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "fetch_memory", lambda: None)  # it takes half a second
    seen: list[str] = []
    contenders = [
        Contender(name, partial(seen.append, name), partial(seen.append, f"prepare {name}")) for name in ("A", "B")
    ]
    measure(contenders, rounds=6)
    turns = [tuple(seen[at : at + 2]) for at in range(0, len(seen), 2)]
    assert turns[:2] == [("prepare A", "A"), ("prepare B", "B")]
    assert {*turns} == {*turns[:2]}
    orders = [(turns[at], turns[at + 1]) for at in range(0, len(turns), 2)]
    assert [{*order} for order in orders] == [{*turns[:2]}] * 6
    assert len({*orders}) == 2  # nobody always follows the same neighbour
    again: list[str] = []
    measure([Contender(name, partial(again.append, name)) for name in ("A", "B")], rounds=6)
    assert again == seen[1::2]


def test_memory_is_fetched_after_the_preparation_and_before_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(rounds, "allocate", lambda size: seen.append("fetch") or bytearray(size))  # type: ignore[func-returns-value]
    contenders = [Contender(name, partial(seen.append, name), partial(seen.append, "prepare")) for name in ("A", "B")]
    measure(contenders, rounds=1)
    assert seen == ["prepare", "fetch", "A", "prepare", "fetch", "B"]


def test_at_most_half_of_the_free_memory_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    monkeypatch.setattr(rounds, "allocate", lambda size: fetched.append(size) or bytearray(size))  # type: ignore[func-returns-value]
    for free in (1 << 30, 1 << 20):
        monkeypatch.setattr(rounds, "free_memory_bytes", lambda free=free: free)
        rounds.fetch_memory()
    assert fetched == [1 << 20, 1 << 19]


def test_free_memory_is_some_and_less_than_all() -> None:
    assert 0 < rounds.free_memory_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_every_round_is_kept_and_memory_is_that_of_the_greediest() -> None:
    rounds = iter([Round(3.0, 1.0, 10), Round(1.0, 2.0, 30), Round(2.0, 0.5, 20)])
    timing = alternate([Turn("A", lambda: next(rounds))], rounds=3)["A"]
    assert timing.seconds == [3.0, 1.0, 2.0]
    assert timing.cpu_seconds == [1.0, 2.0, 0.5]
    assert (timing.median, timing.spread, timing.peak_bytes) == (2.0, "1.00-3.00", 30)


def _fail() -> Round:
    raise ContenderFailed("A", "broken")


def test_a_failure_stops_the_bench_unless_it_is_to_be_noted() -> None:
    with pytest.raises(ContenderFailed, match="A: broken"):
        alternate([Turn("A", _fail)], rounds=1)
    failures: dict[str, str] = {}
    assert not alternate([Turn("A", _fail)], rounds=2, failures=failures)
    assert failures == {"A": "broken"}


def test_memory_that_a_contender_takes_is_seen() -> None:
    timing = measure([Contender("A", lambda: bytearray(b"x") * (64 << 20))], rounds=1)["A"]
    assert timing.peak_bytes > 60 << 20


def test_warm_files_lie_in_memory(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x" * (1 << 20))
    make_warm(tmp_path)
    assert cached_share(tmp_path) == 1.0


def test_files_that_stay_warm_are_not_passed_off_as_cold(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * (1 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096])  # each page is mapped now, and the kernel keeps it
        with pytest.raises(RuntimeError, match="still in the page cache"):
            make_cold(tmp_path)


def test_disk_bytes_count_blocks_once_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5000)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert disk_bytes(tmp_path) == (tmp_path / "a").stat().st_blocks * 512
