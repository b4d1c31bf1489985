"""Help: every command has an example, starts quickly, and imports nothing heavy."""

import subprocess
import sys

import pytest

from tests.unit.cli.conftest import Run

COMMANDS = (
    *(
        "init",
        "plan",
        "push",
        "pull",
        "load",
        "prefetch",
        "ls",
        "show",
        "log",
        "diff",
        "tag",
        "branch",
        "rm",
        "verify",
        "scrub",
        "repair",
        "rebalance",
        "policy",
        "retain",
        "gc",
        "du",
        "status",
    ),
    *("rebuild-catalog", "device", "device add", "device ls", "device bench", "device drain", "device remove"),
    *("device lost", "split", "join"),
)
HEAVY = ("sqlalchemy", "alembic", "numpy", "torch", "msgspec", "zstandard", "blake3", "rich", "asyncio")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_shows_an_example_of_its_command(run: Run, command: str) -> None:
    ran = run(*command.split(), "--help")
    assert ran.code == 0
    examples = [line.strip() for line in ran.out.splitlines() if line.strip().startswith("$ ")]
    assert examples
    assert all(example.startswith(f"$ tensorkeep {command}".rstrip()) for example in examples)
    assert "--store PATH" in ran.out
    assert "--json" in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_a_command_line_that_is_understood(run: Run, command: str) -> None:
    import shlex

    for line in run(*command.split(), "--help").out.splitlines():
        if line.strip().startswith("$ "):
            words = shlex.split(line.strip().removeprefix("$ tensorkeep "))
            assert run(*words).code == 0


def test_the_list_of_commands_is_whole_and_not_cut_off(run: Run) -> None:
    out = run("--help").out
    listed = [line for line in out.split("Commands:")[1].splitlines() if line.strip()]
    assert {line.split()[0] for line in listed} == {command.split()[0] for command in COMMANDS}
    assert not [line for line in listed if line.endswith("...")]


@pytest.mark.parametrize("command", ["", "push", "load", "device add"])
def test_help_imports_nothing_heavy(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tensorkeep", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in imported
    assert not imported & set(HEAVY)
    rooms = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not {
        room for room in rooms if room.startswith(("tensorkeep.store", "tensorkeep.catalog", "tensorkeep.devices"))
    }
