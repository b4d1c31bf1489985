"""The tree of errors and the one table that maps it, walked both ways."""

import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest

import tensorkeep
from tensorkeep.errors import ERROR_TABLE, ErrorRow, TensorkeepError, exit_code

DOC = Path(__file__).parents[2] / "docs" / "errors.md"

INTERRUPTED = 130


def _import_everything() -> None:
    """Import every module, so that an error class hidden in any of them is seen; only Alembic can run its own scripts."""
    for module in pkgutil.walk_packages(tensorkeep.__path__, "tensorkeep."):
        if not module.name.endswith("__main__") and ".migrations." not in module.name:
            importlib.import_module(module.name)


def _subclasses(error: type[TensorkeepError]) -> set[type[TensorkeepError]]:
    return {error}.union(*(_subclasses(child) for child in error.__subclasses__()))


def test_every_error_class_has_one_row_and_every_row_a_class() -> None:
    _import_everything()
    ours = {error for error in _subclasses(TensorkeepError) if error.__module__.startswith("tensorkeep.")}
    assert {row.error for row in ERROR_TABLE.values()} == ours
    assert len(ERROR_TABLE) == len(ours)


def test_codes_lead_to_their_own_class() -> None:
    for code, row in ERROR_TABLE.items():
        assert row.error.code == code
        assert re.fullmatch(r"[a-z_]+", code)


def test_statuses_and_exit_codes_name_one_error_each() -> None:
    statuses = [row.http_status for row in ERROR_TABLE.values()]
    codes = [row.exit_code for row in ERROR_TABLE.values()]
    assert len(set(statuses)) == len(statuses)
    assert len(set(codes)) == len(codes)
    assert all(400 <= status < 600 for status in statuses)
    assert all(1 <= code < 126 and code != INTERRUPTED for code in codes)


def test_the_table_is_this_one() -> None:
    table = {code: (row.http_status, row.exit_code) for code, row in ERROR_TABLE.items()}
    assert table == {
        "error": (500, 1),
        "invalid_input": (400, 2),
        "not_found": (404, 3),
        "already_exists": (409, 4),
        "conflict": (412, 5),
        "integrity": (502, 6),
        "unavailable": (503, 7),
        "not_enough_copies": (504, 8),
        "capacity": (507, 9),
        "permission_denied": (403, 10),
        "format": (422, 11),
        "internal": (501, 12),
    }


def test_the_documented_table_is_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+) \| (\d+) \|", DOC.read_text("utf-8"), re.MULTILINE)
    documented = {code: (name, int(status), int(code_)) for code, name, status, code_ in rows}
    assert documented == {
        code: (row.error.__name__, row.http_status, row.exit_code) for code, row in ERROR_TABLE.items()
    }


@pytest.mark.parametrize("row", ERROR_TABLE.values(), ids=ERROR_TABLE.keys())
def test_an_error_carries_its_message_and_facts(row: ErrorRow) -> None:
    error = row.error("disk nvme0 is full: free some space", device="nvme0", free_bytes=0)
    assert str(error) == "disk nvme0 is full: free some space"
    assert error.facts == {"device": "nvme0", "free_bytes": 0}
    assert exit_code(error) == row.exit_code


def test_an_error_is_plain_json_whatever_its_facts_are() -> None:
    error = TensorkeepError("what", digest=b"\xab", names=("a", None), path=Path("x"), counts={1: 2.5, "e": {True}})
    assert json.loads(json.dumps(error.to_dict())) == {
        "code": "error",
        "message": "what",
        "facts": {"digest": "ab", "names": ["a", None], "path": "x", "counts": {"1": 2.5, "e": [True]}},
    }


def test_errors_are_what_python_programs_expect() -> None:
    bases = {row.error.__name__: row.error.__mro__ for row in ERROR_TABLE.values()}
    assert LookupError in bases["NotFound"]
    assert ValueError in bases["InvalidInput"]
    assert ValueError in bases["Format"]
    assert bases["NotEnoughCopies"][1].__name__ == "Unavailable"


def test_an_error_that_is_not_ours_exits_with_one() -> None:
    assert exit_code(RuntimeError("x")) == 1
