"""From an exception to what a user sees of it: a line or a JSON object on standard error, and an exit code."""

import traceback
from typing import Any, NamedTuple

from tensorkeep.cli.documents import json_line, to_plain
from tensorkeep.cli.tables import printable
from tensorkeep.errors import ERROR_TABLE, InvalidInput, TensorkeepError, exit_code

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells give it."""
READER_GONE = 141
"""Exit code when the reader of our output closed it: 128 + SIGPIPE."""
USAGE = ERROR_TABLE[InvalidInput.code].exit_code

_INTERNAL_HINT = "this is a bug in tensorkeep; please report it with what --debug prints"


class Failure(NamedTuple):
    """How a command failed: exit code, stable ``code``, message, facts, and a hint of what to do (or none)."""

    exit_code: int
    code: str
    message: str
    facts: dict[str, Any]
    hint: str | None = None


def failure_of(error: BaseException) -> Failure:
    """Return the failure that an exception means; a group's is that of its first error, with all messages."""
    if isinstance(error, BaseExceptionGroup):
        return _of_group(error)
    if isinstance(error, KeyboardInterrupt):
        return Failure(INTERRUPTED, "interrupted", "interrupted; nothing that was acknowledged is lost", {})
    if isinstance(error, BrokenPipeError):
        return Failure(READER_GONE, "broken_pipe", "the reader of the output closed it", {})
    if isinstance(error, TensorkeepError):
        hint = _INTERNAL_HINT if error.code == "internal" else None
        return Failure(exit_code(error), error.code, error.message, to_plain(error.facts), hint)
    text = str(error)
    message = f"unexpected {type(error).__name__}{': ' if text else ''}{text}"
    return Failure(exit_code(error), TensorkeepError.code, message, {"type": type(error).__name__}, _INTERNAL_HINT)


def usage_failure(message: str, command: str) -> Failure:
    """Return the failure of a command line that can't be understood; ``command`` is whose ``--help`` tells more."""
    return Failure(USAGE, InvalidInput.code, message, {}, f"see '{command} --help'")


def failure_text(failure: Failure, *, as_json: bool) -> str:
    """Return what standard error says of a failure, without a line end."""
    if as_json:
        facts = failure.facts | ({"hint": failure.hint} if failure.hint else {})
        return json_line({"error": {"code": failure.code, "message": failure.message, "facts": facts}})
    lines = [f"error: {printable(failure.message, lines=True)}"]
    if failure.hint:
        lines.append(f"hint: {printable(failure.hint)}")
    return "\n".join(lines)


def debug_text(error: BaseException) -> str:
    """Return an exception's traceback, causes included."""
    return "".join(traceback.format_exception(error)).rstrip("\n")


def _of_group(group: BaseExceptionGroup[BaseException]) -> Failure:
    inside = [failure_of(error) for error in group.exceptions]
    for failure in inside:
        if failure.exit_code == INTERRUPTED:
            return failure
    first = inside[0]
    message = "\n".join(dict.fromkeys(failure.message for failure in inside))
    return first._replace(message=message, facts=first.facts | {"errors": [f.message for f in inside]})
