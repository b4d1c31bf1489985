"""What PostgreSQL's and psycopg's errors mean: for the caller, and for whoever may run a transaction again."""

from typing import Any

from sqlalchemy.exc import TimeoutError as PoolTimeout

from tensorkeep.catalog.retrying import Loss
from tensorkeep.errors import (
    Capacity,
    Conflict,
    Integrity,
    Internal,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)

_REMEDY = "run `tensorkeep rebuild-catalog`, which reads everything back from the devices"

_RACES = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "23505",  # unique_violation: another transaction made it first; the next run sees it and says so in its own words
    "23503",  # foreign_key_violation: another transaction removed it first
    "0A000",  # feature_not_supported: "cached plan must not change result type", after a migration or a rebuild
}
_LOST = {"57P01", "57P02", "57P03", "57P05", "25P03"}  # shut down, crashed, starting, idle too long
_REFUSED = {"28000", "28P01", "3D000"}  # who asks, the password, the database
_LOGIN_WORDS = ("password authentication failed", "no password supplied", "pg_hba.conf", "role ", "permission denied")
_BUSY = {
    "55P03",
    "57014",
    "53300",
    "53200",
    "53400",
}  # lock or statement took too long, too many connections, no memory


class PostgresErrors:
    """Reads the driver's exceptions; made with the driver, which is imported only where it is used."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def classify(self, error: BaseException) -> Loss | None:
        """Return whether a transaction may be run again after this error, and why."""
        state = _state(error)
        if state in _RACES:
            return "race"
        return "connection" if self._is_lost(error, state) else None

    def translate(self, error: BaseException, name: str) -> TensorkeepError:
        """Return the error of ours that says what the driver's means for the caller."""
        state = _state(error)
        said = _first_line(error)
        if isinstance(error, PoolTimeout):
            return Unavailable(f"too many threads wait for connections to the catalog {name}: try again", store=name)
        if state in _RACES:
            return Conflict(
                f"other transactions of the catalog {name} came first too often ({said}): try again", store=name
            )
        if state in _BUSY:
            return Unavailable(f"the catalog {name} is too busy now ({said}): try again", store=name)
        if self._is_lost(error, state) or state in _REFUSED:
            return _not_connected(name, said)
        return _by_class(state, name, said)

    def _is_lost(self, error: BaseException, state: str | None) -> bool:
        if state in _LOST or (state or "").startswith("08"):
            return True
        # Without a state the server has said nothing: the connection broke, or was never made.
        return state is None and isinstance(error, self._driver.OperationalError)


def _not_connected(name: str, said: str) -> TensorkeepError:
    # libpq gives a connection that the server refuses no state: its words are all there is.
    if "database" in said and "does not exist" in said:
        return NotFound(f"there is no database for the catalog {name}: {said}; `createdb` makes one", store=name)
    if any(words in said for words in _LOGIN_WORDS):
        return PermissionDenied(
            f"the server does not let you in to the catalog {name}: {said}; a password belongs into PGPASSWORD or "
            "~/.pgpass",
            store=name,
        )
    return Unavailable(f"the server of the catalog {name} does not answer: {said}; try again", store=name)


def _by_class(state: str | None, name: str, said: str) -> TensorkeepError:
    match (state or "")[:2]:
        case "42" if state == "42501":
            return PermissionDenied(f"the catalog {name} does not allow it: {said}", store=name)
        case "42":
            return Integrity(f"the catalog {name} is damaged or no catalog: {said}; {_REMEDY}", store=name)
        case "25" if state == "25006":
            return PermissionDenied(f"the catalog {name} can only be read: {said}", store=name)
        case "53":
            return Capacity(f"no room for the catalog {name}: {said}; nothing was changed", store=name)
        case "22":
            return InvalidInput(f"the catalog {name} can't keep such a value: {said}", store=name)
        case "XX" | "58":
            return Integrity(f"the server reports damage of the catalog {name}: {said}", store=name)
    return Internal(f"the catalog {name} refused a statement: {said} ({state})", store=name)


def _state(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
