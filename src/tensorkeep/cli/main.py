"""The door: arguments in, exit code out. Every error of every command ends here.

Only the standard library's smallest modules are imported at the top, so that Ctrl-C during the imports is caught too.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tensorkeep.cli.failures import Failure
    from tensorkeep.cli.session import Doors

PROGRAM = "tensorkeep"


def run() -> NoReturn:
    """Run the command line on this process's arguments and exit with its code."""
    code = main(sys.argv[1:])
    # A second Ctrl-C, while threads end, stops at once and prints no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more when it ends
    sys.exit(code)


def main(arguments: Sequence[str], *, doors: "Doors | None" = None) -> int:
    """Run one command and return its exit code; nothing is raised. ``doors`` give the store (tests pass their own)."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json, debug = "--json" in words, "--debug" in words
    try:
        code = _run_command(arguments, doors=doors)
        sys.stdout.flush()  # a full disk or a closed pipe shows here, not after the exit code is fixed
        return code
    except SystemExit:  # typer's own answer to a closed pipe while it prints help, even where it is told not to exit
        from tensorkeep.cli.failures import READER_GONE

        return READER_GONE
    except (KeyboardInterrupt, Exception) as raised:  # noqa: BLE001  # the door: users get a line, not a traceback
        from tensorkeep.cli.command import Carried
        from tensorkeep.cli.completion import VARIABLE
        from tensorkeep.cli.failures import READER_GONE, debug_text

        error = raised.error if isinstance(raised, Carried) else raised
        failure = _failure(error)
        if os.environ.get(
            VARIABLE
        ):  # a shell asks while the user types: a message would end up in the middle of a word
            return failure.exit_code
        if debug:
            sys.stderr.write(debug_text(error) + "\n")
        if failure.exit_code != READER_GONE:
            _report(failure, as_json=as_json)
        return failure.exit_code


def _run_command(arguments: Sequence[str], *, doors: "Doors | None") -> int:
    from tensorkeep.cli.app import build_app
    from tensorkeep.cli.completion import VARIABLE, answer, with_shell
    from tensorkeep.cli.failures import INTERRUPTED
    from tensorkeep.cli.session import Doors, Session

    app = build_app()
    if os.environ.get(VARIABLE):
        return answer(app, obj=Session(doors or Doors()))
    words = with_shell(arguments, os.environ)
    result = app(args=words, prog_name=PROGRAM, standalone_mode=False, obj=Session(doors or Doors()))
    if result == INTERRUPTED:  # newer typers answer Ctrl-C with this code, and no word
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _failure(error: BaseException) -> "Failure":
    import typer

    from tensorkeep.cli.failures import failure_of, usage_failure

    usage_error = typer.BadParameter.__mro__[1]  # typer has it from click or from its own copy, and does not export it
    if isinstance(error, usage_error):
        context = getattr(error, "ctx", None)
        message = error.format_message()  # type: ignore[attr-defined]  # mypy can't see through __mro__
        return usage_failure(" ".join(message.split()), context.command_path if context else PROGRAM)
    return failure_of(KeyboardInterrupt() if isinstance(error, typer.Abort) else error)


def _report(failure: "Failure", *, as_json: bool) -> None:
    from tensorkeep.cli.failures import failure_text

    sys.stderr.write(failure_text(failure, as_json=as_json) + "\n")
    sys.stderr.flush()
