"""Shell completion: the scripts that shells load, where they go, and the answers that they ask for while a user types.

A script runs ``tensorkeep`` with ``_TENSORKEEP_COMPLETE`` set and what is typed so far in the environment; typer answers, with
the help of `suggestions`. zsh and fish get typer's scripts. bash gets one of our own: it cuts words at ``@``, ``:`` and ``=``,
and typer's script would take ``acme/llama@v1`` for three words.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from tensorkeep.errors import InvalidInput, PermissionDenied

VARIABLE = "_TENSORKEEP_COMPLETE"
SHOW, INSTALL = "--show-completion", "--install-completion"
SHELLS = ("bash", "zsh", "fish")
_PROGRAM = "tensorkeep"

_BASH = r"""
_tensorkeep_completion() {
    # COMP_WORDS are cut at @, : and = too: join again what no blank parts.
    local words=() cut="" breaks rest="${COMP_LINE:0:COMP_POINT}" part i
    for (( i = 0; i <= COMP_CWORD; i++ )); do
        part="${COMP_WORDS[i]}"
        if (( i == 0 )) || [[ "$rest" == [[:space:]]* ]]; then
            rest="${rest#"${rest%%[![:space:]]*}"}"
            words+=( "" )
        fi
        (( i == COMP_CWORD )) && part="$rest"
        words[${#words[@]}-1]+="$part"
        rest="${rest#"$part"}"
    done
    # Bash hears only what follows the last of them; of @ it wants to hear too.
    part="${words[${#words[@]}-1]}"
    breaks="${COMP_WORDBREAKS//[^@:=]/}"
    if [[ -n "$breaks" && "${COMP_WORDS[COMP_CWORD]}" != [\"\']* ]]; then
        cut="${part%"${part##*["$breaks"]}"}"
        cut="${cut%@}"
    fi
    local IFS=$'\n'
    COMPREPLY=( $(COMP_WORDS="${words[*]}" COMP_CWORD=$(( ${#words[@]} - 1 )) _TENSORKEEP_COMPLETE=complete_bash "$1" 2>/dev/null) )
    COMPREPLY=( "${COMPREPLY[@]#"$cut"}" )
}

complete -o default -F _tensorkeep_completion tensorkeep
"""


class _Place(NamedTuple):
    """Where a shell's script goes, and the file and the line that make the shell load it, if it does not by itself."""

    script: Path
    startup: Path | None = None
    line: str = ""


def answer(app: typer.Typer, **extra: object) -> int:
    """Answer what a shell asks for, and return the exit code that tells it whether there is anything."""
    from typer.completion import completion_init  # type: ignore[attr-defined]  # typer has it there, and does not say so

    completion_init()
    try:
        app(args=[], prog_name=_PROGRAM, standalone_mode=False, **extra)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    return 0


def with_shell(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the arguments with the user's shell behind an option that wants one and is the last word."""
    if arguments and arguments[-1] in (SHOW, INSTALL):
        return [*arguments, Path(environment.get("SHELL", "")).name]
    return list(arguments)


def script_of(shell: str) -> str:
    """Return the script that completes commands in a shell.

    Raises:
        InvalidInput: there is none for it.
    """
    if shell not in SHELLS:
        named = repr(shell) if shell else "your shell"
        raise InvalidInput(f"no completion for {named}: name one of {', '.join(SHELLS)}", shell=shell)
    if shell == "bash":
        return _BASH.strip()
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # the same

    script: str = get_completion_script(prog_name=_PROGRAM, complete_var=VARIABLE, shell=shell)
    return script


def install(shell: str, environment: Mapping[str, str]) -> list[Path]:
    """Write a shell's script under the home folder, have the shell load it, and return the files that were written.

    A startup file gets one line more, once; nothing else in it changes.

    Raises:
        InvalidInput: there is no script for that shell.
        PermissionDenied: a file can't be written.
    """
    text = script_of(shell) + "\n"
    place = _place(shell, environment)
    try:
        place.script.parent.mkdir(parents=True, exist_ok=True)
        place.script.write_text(text, "utf-8")
        return [place.script, *([place.startup] if place.startup and _add_line(place.startup, place.line) else [])]
    except OSError as error:
        raise PermissionDenied(f"{error.filename} can't be written: {error.strerror}", path=error.filename) from error


def show_callback(shell: str | None) -> None:
    """Print a shell's script, for ``--show-completion``."""
    if shell is not None:
        typer.echo(script_of(shell))
        raise typer.Exit


def install_callback(shell: str | None) -> None:
    """Install a shell's script, for ``--install-completion``."""
    if shell is not None:
        for path in install(shell, os.environ):
            typer.echo(f"wrote {path}")
        typer.echo("Completion works in every shell that starts from now on.")
        raise typer.Exit


def _place(shell: str, environment: Mapping[str, str]) -> _Place:
    home = Path(environment.get("HOME") or Path.home())
    if shell == "fish":
        config = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
        return _Place(config / "fish" / "completions" / f"{_PROGRAM}.fish")
    if shell == "zsh":
        startup = Path(environment.get("ZDOTDIR") or home) / ".zshrc"
        return _Place(home / ".zfunc" / f"_{_PROGRAM}", startup, "fpath+=~/.zfunc; autoload -Uz compinit; compinit")
    script = home / ".bash_completions" / f"{_PROGRAM}.sh"
    return _Place(script, home / ".bashrc", f"source '{script}'")


def _add_line(path: Path, line: str) -> bool:
    """Append a line to a file, which may be missing, unless it is there; return whether it was not."""
    data = path.read_bytes() if path.exists() else b""
    if line.encode() in data.splitlines():
        return False
    with path.open("ab") as file:
        file.write((b"\n" if data and not data.endswith(b"\n") else b"") + line.encode() + b"\n")
    return True
