"""Values that come to SQLite with each execution of a query: of every kind that columns have, and none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, Table, Text, insert, select

from tensorkeep.catalog.database import among_given, given
from tensorkeep.catalog.sqlite import open_database

_TABLE = Table("t", MetaData(), Column("number", BigInteger), Column("digest", LargeBinary), Column("name", Text))
_ROWS = [
    {"number": number, "digest": bytes([number]) * 32, "name": name}
    for number, name in enumerate(["plain", 'a "quoted" one', "back\\slash", "ünïcode ✓", "[1,2]", ""])
]


@pytest.mark.parametrize("column", ["number", "digest", "name"])
@pytest.mark.parametrize("wanted", [[], [0], [1, 2, 3, 4, 5], [5, 5, 0]])
@pytest.mark.parametrize("read_only", [False, True])
def test_just_the_rows_with_these_values_are_found(
    tmp_path: Path, column: str, wanted: Sequence[int], *, read_only: bool
) -> None:
    path = tmp_path / "catalog.sqlite"
    path.touch()
    database = open_database(str(path), read_only=False)
    with database.write() as connection:
        _TABLE.create(connection)
        connection.execute(insert(_TABLE), _ROWS)
    database.close()
    database = open_database(str(path), read_only=read_only)
    values: list[Any] = [_ROWS[number][column] for number in wanted]
    with database.read() as connection:
        query = select(_TABLE.c.number).where(among_given("sqlite", _TABLE.c[column]))
        assert sorted(connection.execute(query, given(connection, values)).scalars()) == sorted(set(wanted))
        unknown: list[Any] = [{"number": 99, "digest": b"x", "name": "PLAIN"}[column]]
        assert connection.execute(query, given(connection, unknown)).scalars().all() == []
    database.close()
