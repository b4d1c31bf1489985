"""The tree of errors, by what the caller does next.

Every error has a stable ``code``, its facts as attributes (``facts``), and a message that says what happened, to which
thing, and what to do. One table, `ERROR_TABLE`, maps code to HTTP status and to the exit code of the command line; the
table is walked both ways by a test.
"""

from typing import Any, NamedTuple


class TensorkeepError(Exception):
    """Base of every error that tensorkeep raises on purpose.

    Args:
        message: what happened, to which thing, and what to do.
        **facts: the same as values (``part="…"``, ``device="…"``), for programs.
    """

    code = "error"

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"code", "message", "facts"}``, for JSON."""
        return {"code": self.code, "message": self.message, "facts": {k: _plain(v) for k, v in self.facts.items()}}


class NotFound(TensorkeepError, LookupError):
    """The named thing does not exist."""

    code = "not_found"


class AlreadyExists(TensorkeepError):
    """The name is taken."""

    code = "already_exists"


class Conflict(TensorkeepError):
    """Another writer won a race: look again, then retry the verb."""

    code = "conflict"


class InvalidInput(TensorkeepError, ValueError):
    """The caller's value can't be right: change it."""

    code = "invalid_input"


class Integrity(TensorkeepError):
    """Stored bytes are not what was stored: another copy may be good."""

    code = "integrity"


class Unavailable(TensorkeepError):
    """A device or service does not answer, or refuses for now: retry later."""

    code = "unavailable"


class NotEnoughCopies(Unavailable):
    """Fewer good copies can be read or written than are needed."""

    code = "not_enough_copies"


class Capacity(TensorkeepError):
    """No room is left where the bytes should go."""

    code = "capacity"


class PermissionDenied(TensorkeepError):
    """The system or the store does not allow it."""

    code = "permission_denied"


class Format(TensorkeepError, ValueError):
    """A file or record breaks its format's rules."""

    code = "format"


class Internal(TensorkeepError):
    """A promise inside tensorkeep was broken: a bug, please report it."""

    code = "internal"


class ErrorRow(NamedTuple):
    """One row of the table: an error's class, HTTP status, and exit code."""

    error: type[TensorkeepError]
    http_status: int
    exit_code: int


ERROR_TABLE: dict[str, ErrorRow] = {
    row.error.code: row
    for row in (
        ErrorRow(TensorkeepError, 500, 1),
        ErrorRow(NotFound, 404, 3),
        ErrorRow(AlreadyExists, 409, 4),
        ErrorRow(Conflict, 412, 5),
        ErrorRow(InvalidInput, 400, 2),
        ErrorRow(Integrity, 502, 6),
        ErrorRow(Unavailable, 503, 7),
        ErrorRow(NotEnoughCopies, 504, 8),
        ErrorRow(Capacity, 507, 9),
        ErrorRow(PermissionDenied, 403, 10),
        ErrorRow(Format, 422, 11),
        ErrorRow(Internal, 501, 12),
    )
}
"""Code → (class, HTTP status, exit code). Exit code 0 is success, 130 an interrupt; statuses and exit codes are unique."""


def exit_code(error: BaseException) -> int:
    """Return the command line's exit code for an error: the table's for ours, 1 for all others."""
    if isinstance(error, TensorkeepError):
        return ERROR_TABLE[error.code].exit_code
    return 1


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return str(value)
