"""Shell completion in processes of its own: the protocol of each shell, bash with its script, and nothing ever written."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensorkeep.catalog.known_names import read_known_names
from tensorkeep.cli.completion import script_of
from tensorkeep.errors import NotFound, Unavailable
from tests.e2e.conftest import CommandLine
from tests.e2e.workshop import Workshop

pytestmark = pytest.mark.backends(
    "sqlite-local", "mixed"
)  # a shell does not wait for a database: no names from PostgreSQL


@pytest.fixture
def named(workshop: Workshop) -> Workshop:
    """A store with two models, a tag, a branch, and a device that is lost."""
    store = workshop.store
    store.push({"w": np.ones(3)}, "acme/llama", tag="v1")
    store.branch("acme/llama", "prod", to="v1")
    store.push({"w": np.ones(4)}, "tiny")
    store.devices.lost(workshop.add_device())
    return workshop


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Return all files under a folder with their times of change and their sizes."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def asked(line: str) -> dict[str, dict[str, str]]:
    """Return what each shell puts in the environment to have the last word of a line completed."""
    count = str(len(line.split()) - (not line.endswith(" ")))
    return {
        "bash": {"_TENSORKEEP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": count},
        "zsh": {"_TENSORKEEP_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line},
        "fish": {
            "_TENSORKEEP_COMPLETE": "complete_fish",
            "_TYPER_COMPLETE_ARGS": line,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
    }


@pytest.mark.backends("sqlite-local")
def test_the_names_are_those_of_the_store(named: Workshop) -> None:
    folder = Path(named.location)
    names = read_known_names(folder / "catalog.sqlite")
    models = named.store.models()
    assert names.branches == {model.name: list(model.branches) for model in models}
    assert names.tags == {model.name: list(model.tags) for model in models}
    assert names.devices == named.devices[:2]
    with sqlite3.connect(folder / "catalog.sqlite", isolation_level=None) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unavailable, match="locked"):
            read_known_names(folder / "catalog.sqlite")
    writer.close()
    with pytest.raises(NotFound):
        read_known_names(folder / "nothing.sqlite")
    (named.folder / "broken").write_bytes(b"no database" * 1000)
    with pytest.raises(Unavailable):
        read_known_names(named.folder / "broken")


def test_each_shell_gets_the_names_of_the_store_and_nothing_is_written(
    named: Workshop, command_line: CommandLine
) -> None:
    before = everything(named.folder) | everything(command_line.home)
    for shell, environment in asked("tensorkeep show acme/llama@").items():
        said = command_line(store=named.location, more=environment)
        assert said.err == ""
        assert [name for name in ("main", "prod", "v1") if f"acme/llama@{name}" in said.out] == ["main", "prod", "v1"]
        assert "tiny" not in said.out, shell
    assert everything(named.folder) | everything(command_line.home) == before


@pytest.mark.parametrize("store", [None, "missing", "empty", "file", "foreign"])
def test_no_store_is_made_where_there_is_none(command_line: CommandLine, tmp_path: Path, store: str | None) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "catalog.sqlite").write_bytes(b"SQLite format 3\0" + bytes(100))
    before = everything(tmp_path)
    for environment in asked("tensorkeep show ").values():
        said = command_line(store=tmp_path / store if store else None, more=environment, code=None)
        assert said.err == ""
        assert "acme" not in said.out
    assert everything(tmp_path) == before


def test_a_name_is_completed_without_what_is_slow(named: Workshop, command_line: CommandLine) -> None:
    environment = asked("tensorkeep show ac")["bash"]
    said = command_line(store=named.location, more=environment, program=("-X", "importtime", "-m", "tensorkeep"))
    assert said.out == "acme/llama\n"
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in said.err.splitlines() if "|" in line}
    assert "sqlite3" in imported
    assert not imported & {"sqlalchemy", "alembic", "numpy", "msgspec", "rich"}


CUTS = {
    "tensorkeep sho": (["tensorkeep", "sho"], ["show"]),
    "tensorkeep show acme/ll": (["tensorkeep", "show", "acme/ll"], ["acme/llama"]),
    "tensorkeep show acme/llama@": (["tensorkeep", "show", "acme/llama", "@"], ["@main", "@prod", "@v1"]),
    "tensorkeep show acme/llama@p": (["tensorkeep", "show", "acme/llama", "@", "p"], ["@prod"]),
    "tensorkeep  diff acme/llama@v1 acme/llama@v": (
        ["tensorkeep", "diff", "acme/llama", "@", "v1", "acme/llama", "@", "v"],
        ["@v1"],
    ),
    "tensorkeep load acme/llama --verify=bl": (["tensorkeep", "load", "acme/llama", "--verify", "=", "bl"], ["blocks"]),
    "tensorkeep push 'a b' ti": (["tensorkeep", "push", "'a b'", "ti"], ["tiny"]),
    'tensorkeep show "acme/llama@p': (["tensorkeep", "show", '"acme/llama@p'], ["acme/llama@prod"]),
    "tensorkeep device lost ": (["tensorkeep", "device", "lost", ""], ["disk0", "disk1"]),
    "tensorkeep show nobody/": (["tensorkeep", "show", "nobody/"], []),
}
"""Lines, the words that bash makes of them, and what it wants to hear: all but what it keeps itself."""


@pytest.mark.parametrize("line", CUTS)
def test_bash_completes_words_that_it_cuts_at_signs(line: str, named: Workshop, command_line: CommandLine) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    words, offered = CUTS[line]
    program = f"""
{script_of("bash")}
tensorkeep() {{ "{sys.executable}" -m tensorkeep "$@"; }}
COMP_WORDBREAKS=$' \\t\\n"\\'@><=;|&(:'
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$LINE" COMP_POINT=${{#LINE}}
_tensorkeep_completion tensorkeep
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        [bash, "-uc", program, "bash", *words],
        env=command_line.environment(LINE=line, TENSORKEEP_STORE=str(named.location)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_bash_keeps_words_whole_where_it_does_not_cut_them(named: Workshop, command_line: CommandLine) -> None:
    program = f"""
source <("{sys.executable}" -m tensorkeep --show-completion bash)
tensorkeep() {{ "{sys.executable}" -m tensorkeep "$@"; }}
complete -p tensorkeep
COMP_WORDBREAKS=$' \\t\\n' COMP_WORDS=(tensorkeep show acme/llama@p) COMP_CWORD=2
COMP_LINE="tensorkeep show acme/llama@p" COMP_POINT=28
_tensorkeep_completion tensorkeep
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    before = everything(command_line.home)
    environment = command_line.environment(TENSORKEEP_STORE=str(named.location))
    done = subprocess.run(["bash", "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "complete -o default -F _tensorkeep_completion tensorkeep",
        "acme/llama@prod",
    ]
    assert everything(command_line.home) == before
