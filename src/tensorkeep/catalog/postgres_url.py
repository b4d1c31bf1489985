"""``postgresql://`` URLs of catalogs: what they name, and how they are shown without their secrets. Imports no driver.

``postgresql://[user[:password]@][host][:port][/database][?schema=NAME&…]``; everything but ``schema`` is libpq's own, which
also reads ``PGPASSWORD``, ``~/.pgpass`` and service files, the better places for a password.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from tensorkeep.errors import InvalidInput

SCHEMES = ("postgresql", "postgres")
DEFAULT_SCHEMA = "tensorkeep"

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,26}\Z")
_SECRETS = ("password", "sslpassword")


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
        raise InvalidInput(
            "the store's postgresql:// URL can't be read: write postgresql://user@host/database"
        ) from None
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
        connection=urlunsplit(("postgresql", parts.netloc, parts.path, _query(libpq), "")),
        schema=schema,
        shown=_shown(parts.netloc, parts.path, words),
    )


def mask_postgres_url(text: str) -> str:
    """Return a URL without its secrets, also where it can't be read otherwise."""
    try:
        return parse_postgres_url(text).shown
    except InvalidInput:
        return "postgresql://…"


def _shown(netloc: str, path: str, words: list[tuple[str, str]]) -> str:
    user, at, host = netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    kept = [(word, value) for word, value in words if word.lower() not in _SECRETS]
    return urlunsplit(("postgresql", f"{name}{':***' if colon else ''}{at}{host}", path, _query(kept), ""))


def _query(words: list[tuple[str, str]]) -> str:
    return urlencode(words, quote_via=quote)
