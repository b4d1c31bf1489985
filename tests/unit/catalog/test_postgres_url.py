"""URLs of catalogs in PostgreSQL: what libpq gets of them, and that no part of a password is ever shown."""

import pytest
from psycopg.conninfo import conninfo_to_dict

from tensorkeep.catalog.postgres_url import parse_postgres_url
from tensorkeep.errors import InvalidInput


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:se/cret@h/db",
        "postgresql://u:se?cret@h/db",
        "postgresql://u:12?a=secret@h/db",
        "postgresql://u:se#cret@h/db",
        "postgresql://u:12#secret@h/db",
        "postgresql://u:se@cret@h/db",
        "postgresql://u:12/secret@h/db",
        "postgresql://u:se%cret@h/db",
        "postgresql://u:sec:ret@h/db",
        "postgresql://u:se]cret@h/db",
        "postgresql://u@h/db?password=se%cret",
        "postgresql://u:secret@h:port/db",
    ],
)
def test_a_url_whose_password_could_be_read_as_something_else_is_refused_without_a_word_of_it(text: str) -> None:
    with pytest.raises(InvalidInput, match="%XX") as caught:
        parse_postgres_url(text)
    said = f"{caught.value} {caught.value!r} {caught.value.__cause__}"
    assert not any(piece in said for piece in ("cret", "sec", "se/"))


def test_what_libpq_may_take_for_a_secret_is_not_shown() -> None:
    url = parse_postgres_url(
        "postgresql://u:p%40ss@h:1/db?password=p1&passwd=p2&sslpassword=p3&schema=s&sslmode=require"
    )
    assert url.shown == "postgresql://u:***@h:1/db?schema=s&sslmode=require"
    assert repr(url) == f"PostgresUrl({url.shown})"


@pytest.mark.parametrize(
    ("text", "connection"),
    [
        ("postgresql:///db", "postgresql:///db"),
        ("postgresql:///db?host=/tmp&user=u", "postgresql:///db?host=%2Ftmp&user=u"),
        ("postgres://u@%2Ftmp/db", "postgresql://u@%2Ftmp/db"),
        ("postgresql://u:p%2Fw@[::1]:5432,b:1/db?schema=s", "postgresql://u:p%2Fw@[::1]:5432,b:1/db"),
        ("postgresql://", "postgresql://"),
    ],
)
def test_libpq_gets_a_url_that_it_reads(text: str, connection: str) -> None:
    url = parse_postgres_url(text)
    assert url.connection == connection
    conninfo_to_dict(url.connection)
