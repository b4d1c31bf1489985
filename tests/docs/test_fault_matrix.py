"""The fault matrix names tests that exist, for every row."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = 34

_ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]*) \|$", re.MULTILINE)


def rows() -> dict[int, list[str]]:
    """Return the tests of each row of the matrix."""
    text = (ROOT / "docs" / "fault-matrix.md").read_text("utf-8")
    return {int(number): re.findall(r"`([^`]+::[^`]+)`", tests) for number, _, tests, _ in _ROW.findall(text)}


def test_every_row_has_tests_and_each_of_them_exists() -> None:
    found = rows()
    assert sorted(found) == list(range(1, ROWS + 1))
    for number, tests in found.items():
        assert tests, number
        for test in tests:
            path, _, name = test.partition("::")
            assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), test
