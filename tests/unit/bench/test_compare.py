"""Two runs side by side: only what is worse by more than the rounds spread is named, on whatever machines they ran."""

from pathlib import Path

import pytest

from bench.compare import choose_results, comparables, compare, spread_of
from bench.results import Row, Table
from tests.unit.bench.results import load_table, result, storage_table

SECONDS = "load/warm · tensorkeep · seconds / pread"
STEADY = [1.0, 1.0, 1.0, 1.0, 1.0]


def _verdicts(before: list[float], after: list[float], ceilings: tuple[list[float], list[float]]) -> dict[str, str]:
    earlier, later = result(load_table(before, ceilings[0])), result(load_table(after, ceilings[1]))
    return {change.figure: change.verdict for change in compare(earlier, later)}


def test_a_machine_twice_as_slow_changes_nothing() -> None:
    doubled = [2 * second for second in STEADY]
    assert _verdicts(STEADY, doubled, (STEADY, doubled))[SECONDS] == "same"


def test_what_became_slower_than_the_yardstick_is_named_and_fails_beyond_its_tolerance() -> None:
    assert _verdicts(STEADY, [1.2] * 5, (STEADY, STEADY))[SECONDS] == "worse"
    assert _verdicts(STEADY, [1.3] * 5, (STEADY, STEADY))[SECONDS] == "FAILED"
    assert _verdicts(STEADY, [0.8] * 5, (STEADY, STEADY))[SECONDS] == "better"


def test_what_the_spread_of_the_rounds_explains_is_no_change() -> None:
    noisy = [0.7, 1.3, 1.0, 0.6, 1.5]
    assert _verdicts(noisy, [1.3] * 5, (STEADY, STEADY))[SECONDS] == "same"


def test_rounds_are_compared_with_the_yardstick_of_the_same_round() -> None:
    waves = [1.0, 4.0, 1.0, 4.0, 1.0]  # the machine was busy in every other round
    figure = next(each for each in comparables(result(load_table(waves, waves))) if each.name == SECONDS)
    assert figure.rounds == STEADY


def test_memory_is_compared_as_it_is_and_rows_of_others_are_not_at_all() -> None:
    names = [figure.name for figure in comparables(result(load_table(STEADY, STEADY)))]
    assert names == [
        SECONDS,
        "load/warm · tensorkeep · CPU s / pread",
        "load/warm · tensorkeep · peak memory MB",
    ]


def test_exact_figures_may_not_grow() -> None:
    (change,) = compare(result(storage_table(100.0)), result(storage_table(103.0)))
    assert (change.verdict, round(change.factor, 2)) == ("FAILED", 1.03)
    (change,) = compare(result(storage_table(100.0)), result(storage_table(101.0)))
    assert change.verdict == "worse"
    (change,) = compare(result(storage_table(0.0)), result(storage_table(1.0)))
    assert change.verdict == "FAILED"
    (change,) = compare(result(storage_table(0.0)), result(storage_table(0.0)))
    assert change.verdict == "same"


def test_more_efficiency_is_better() -> None:
    before, after = (
        result(Table("devices", "", "", [Row("8", "ours", {"efficiency": [share]})])) for share in (0.97, 0.85)
    )
    assert compare(before, after)[0].verdict == "FAILED"
    assert compare(after, before)[0].verdict == "better"


def test_a_tolerance_that_is_given_holds_for_all_figures() -> None:
    before, after = result(storage_table(100.0)), result(storage_table(103.0))
    assert compare(before, after, tolerance=0.1)[0].verdict == "worse"


def test_figures_that_only_one_run_has_are_left_out() -> None:
    assert not compare(result(storage_table(1.0)), result(load_table(STEADY, STEADY)))


def test_runs_of_different_models_are_refused() -> None:
    with pytest.raises(ValueError, match="one run is of tiny, the other of small"):
        compare(result(model="tiny"), result())


def test_the_spread_is_half_the_distance_of_the_quartiles() -> None:
    assert spread_of([1.0]) == 0.0
    assert spread_of([1.0, 1.0, 1.0]) == 0.0
    assert spread_of([0.8, 0.9, 1.0, 1.1, 1.2]) == pytest.approx(0.1)


def test_without_names_the_last_two_results_are_compared_or_the_documents_and_the_last(tmp_path: Path) -> None:
    documented = tmp_path / "result.json"
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(ValueError, match="run `make bench` first"):
        choose_results([], folder, documented)
    documented.touch()
    (folder / "splitting.json").touch()
    first, second = folder / "2026-01-01T000000Z-a.json", folder / "2026-01-02T000000Z-b.json"
    first.touch()
    assert choose_results([], folder, documented) == (documented, first)
    second.touch()
    assert choose_results([], folder, documented) == (first, second)
    assert choose_results([second, first], folder, documented) == (second, first)
    with pytest.raises(ValueError, match="name two results"):
        choose_results([first], folder, documented)
