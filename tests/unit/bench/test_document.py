"""The documents show a result as it was measured: no figure is typed by hand."""

from pathlib import Path

import pytest

from bench.document import DOCUMENT, write_tables
from bench.results import DOCUMENTED, Options, new_result, read_result, write_result
from bench.run import SECTIONS, get_section
from bench.tables import cells, headings
from tests.unit.bench.results import MACHINE, load_table, result, storage_table

TEXT = """# Performance

<!-- table: load/warm -->
<!-- end of table -->

Some words.

<!-- table: storage -->
old
<!-- end of table -->
"""
TABLE = load_table([1.0, 3.0, 2.0], [1.0, 1.0, 1.0])


def test_a_row_shows_medians_spread_rate_and_the_ratio_to_ours() -> None:
    assert headings(TABLE) == [
        "contender", "seconds", "fastest - slowest", "GB/s", "time / ours", "CPU s", "peak memory MB",
    ]  # fmt: skip
    assert cells(TABLE, TABLE.rows[0]) == ["tensorkeep", "2.00", "1.00 - 3.00", "1.00", "1.00", "1.00", "100"]
    assert cells(TABLE, TABLE.rows[2]) == ["pread", "1.00", "1.00 - 1.00", "2.00", "0.50", "0.50", "100"]


def test_tables_are_written_in_their_places_with_what_made_them() -> None:
    text = write_tables(TEXT, result(TABLE))
    assert "| **tensorkeep** | 2.00 | 1.00 - 3.00 | 1.00 | 1.00 | 1.00 | 100 |" in text
    assert "`scripts/bench.sh run load`: 2026-01-02, commit abc1234, model `small`, 5 alternating rounds" in text
    assert "Some words." in text


def test_a_table_that_was_not_measured_again_stays_as_it_was() -> None:
    text = write_tables(TEXT, result(storage_table(1e6)))
    assert "<!-- table: load/warm -->\n<!-- end of table -->" in text
    assert "old" not in text


def test_writing_twice_changes_nothing_more() -> None:
    once = write_tables(TEXT, result(TABLE, storage_table(2e6)))
    assert write_tables(once, result(TABLE, storage_table(2e6))) == once


def test_a_table_without_a_place_is_not_dropped_silently() -> None:
    with pytest.raises(ValueError, match="no place for storage"):
        write_tables(TEXT.replace("storage", "other"), result(storage_table(1.0)))


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = new_result(Options("tiny", 3), "abc1234", MACHINE, [TABLE, storage_table(1.0)])
    path = write_result(made, tmp_path)
    assert path.name.startswith("20")
    assert read_result(path) == made


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    path.write_text('{"model": "small"}', "utf-8")
    with pytest.raises(ValueError, match="is no result of `make bench`"):
        read_result(path)


def test_the_tables_of_the_documents_are_those_of_the_stored_result() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert write_tables(text, read_result(DOCUMENTED)) == text


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_has_its_function(name: str) -> None:
    assert callable(get_section(name))
