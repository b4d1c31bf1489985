"""``postgresql://`` URLs of catalogs: what they name, and how they are shown without their secrets. Imports no driver.

``postgresql://[user[:password]@][host][:port][/database][?schema=NAME&…]``; everything but ``schema`` is libpq's own, which
also reads ``PGPASSWORD``, ``~/.pgpass`` and service files, the better places for a password.
"""

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from tensorkeep.errors import InvalidInput

SCHEMES = ("postgresql", "postgres")
DEFAULT_SCHEMA = "tensorkeep"

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,26}\Z")
_SHOWN = ("host", "hostaddr", "port", "dbname", "user", "service", "sslmode", "schema")

_HOST = r"(?:\[[^\[\]@]*\]|[^\[\]@:,]*)(?::[0-9]*)?"
_NETLOC = re.compile(rf"(?:[^@:]*(?::[^@:]*)?@)?{_HOST}(?:,{_HOST})*\Z")
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """One store's place in a database. ``shown`` has no secrets; ``given`` is the whole, ``connection`` what libpq gets."""

    given: str
    connection: str
    schema: str
    shown: str

    def __repr__(self) -> str:
        return f"PostgresUrl({self.shown})"


def is_postgres_url(text: str) -> bool:
    """Return whether a location or catalog URL is one of PostgreSQL."""
    return text.partition("://")[0].lower() in SCHEMES and "://" in text


def parse_postgres_url(text: str) -> PostgresUrl:
    """Return what a URL names.

    Raises:
        InvalidInput: it can't be read, or the schema's name is none; the message has no secrets.
    """
    try:
        parts = urlsplit(text)
        words = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        # What can't be read can't be shown without its secrets either.
        raise _unreadable() from None
    if not _is_plain(parts):
        raise _unreadable()
    if "\0" in text or "\0" in parts.path or any("\0" in value for _, value in words):
        raise InvalidInput("the store's postgresql:// URL has a NUL character")
    schemas = [value for name, value in words if name == "schema"]
    schema = schemas[-1] if schemas else DEFAULT_SCHEMA
    if not _SCHEMA.match(schema) or schema.startswith("pg_"):
        raise InvalidInput(
            f"{schema!r} is no schema for a store: write lower-case letters, digits and _, at most 27", schema=schema
        )
    libpq = [(name, value) for name, value in words if name != "schema"]
    return PostgresUrl(
        given=text,
        connection=_join(parts.netloc, parts.path, libpq),
        schema=schema,
        shown=_shown(parts.netloc, parts.path, words),
    )


def _shown(netloc: str, path: str, words: list[tuple[str, str]]) -> str:
    user, at, host = netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    kept = [(word, value) for word, value in words if word in _SHOWN]
    return _join(f"{name}{':***' if colon else ''}{at}{host}", path, kept)


def _join(netloc: str, path: str, words: list[tuple[str, str]]) -> str:
    # `urlunsplit` drops the // where there is no host, and libpq then reads something else.
    query = urlencode(words, quote_via=quote)
    return f"postgresql://{netloc}{path}{'?' if query else ''}{query}"


def _is_plain(parts: SplitResult) -> bool:
    """Return whether libpq reads the same user, password and hosts here as this module.

    A password with a bare ``/``, ``?``, ``#``, ``@`` or ``%`` is cut elsewhere: what is left of it would be taken for a port, a
    host or a database, and so be shown here and in libpq's errors.
    """
    rest = f"{parts.path}?{parts.query}"
    return (
        _NETLOC.match(parts.netloc) is not None
        and "@" not in rest
        and not parts.fragment
        and _BAD_ESCAPE.search(parts.netloc + rest) is None
    )


def _unreadable() -> InvalidInput:
    return InvalidInput(
        "the store's postgresql:// URL can't be read: write postgresql://user@host/database, and special characters in any of "
        "them as %XX (@ is %40, / is %2F, % is %25)"
    )
