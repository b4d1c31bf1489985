"""Shell completion: what is offered while a user types, the scripts that ask for it, and where they are put."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tensorkeep.cli.completion import install, script_of
from tensorkeep.cli.main import main
from tensorkeep.errors import InvalidInput, NotFound, TensorkeepError, Unavailable
from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_store import FakeDoors

Complete = Callable[..., list[str]]


@pytest.fixture
def doors() -> FakeDoors:
    return FakeDoors()


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], doors: FakeDoors) -> Complete:
    """What bash is offered for the last word of a command line."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("_TENSORKEEP_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - (not line.endswith(" "))))
        assert main([], doors=doors) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out.split()

    return ask


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tensorkeep sh", ["show"]),
        ("tensorkeep device l", ["ls", "lost"]),
        ("tensorkeep show --so", ["--sort"]),
        ("tensorkeep show --sort ", ["name", "size"]),
        ("tensorkeep show ", ["tiny", "acme/llama", "default/tiny"]),
        ("tensorkeep show acme/", ["acme/llama"]),
        ("tensorkeep show acme/llama@", ["acme/llama@main", "acme/llama@prod", "acme/llama@v1", "acme/llama@v2"]),
        ("tensorkeep show ACME/Llama@v", ["ACME/Llama@v1", "ACME/Llama@v2"]),
        ("tensorkeep show tiny@", ["tiny@main"]),
        ("tensorkeep show nobody/nothing@", []),
        ("tensorkeep show acme@", []),
        ("tensorkeep diff acme/llama@v1 acme/llama@p", ["acme/llama@prod"]),
        ("tensorkeep ls ac", ["acme/llama"]),
        ("tensorkeep rm acme/llama@v1", ["acme/llama@v1"]),
        ("tensorkeep verify ti", ["tiny"]),
        ("tensorkeep push ./x ac", ["acme/llama"]),
        ("tensorkeep push ./x acme/llama --branch p", ["prod"]),
        ("tensorkeep push ./x new/model --branch ", []),
        ("tensorkeep push ./x m --base=acme/llama@v1", ["acme/llama@v1"]),
        ("tensorkeep tag acme/llama ", ["v1", "v2"]),
        ("tensorkeep tag acme/llama new p", ["prod"]),
        ("tensorkeep branch acme/llama ", ["main", "prod"]),
        ("tensorkeep branch acme/llama prod --to v", ["v1", "v2"]),
        ("tensorkeep device lost n", ["nvme0"]),
        ("tensorkeep push ", []),
    ],
)
def test_words_are_completed_by_what_fits_there(complete: Complete, line: str, offered: list[str]) -> None:
    assert complete(line) == offered


@pytest.mark.parametrize(
    ("line", "location"),
    [
        ("tensorkeep show a", None),
        ("tensorkeep --store ./here show a", "./here"),
        ("tensorkeep --store ./here show --store ./there a", "./there"),
        ("tensorkeep device --store ./here lost n", "./here"),
    ],
)
def test_names_are_those_of_the_store_that_the_line_names(
    complete: Complete, doors: FakeDoors, line: str, location: str | None
) -> None:
    assert complete(line)
    assert set(doors.locations) == {location}


@pytest.mark.parametrize("error", [NotFound("no store"), Unavailable("locked"), InvalidInput("a URL")])
def test_an_error_offers_nothing_and_says_nothing(complete: Complete, doors: FakeDoors, error: TensorkeepError) -> None:
    doors.names = error
    assert complete("tensorkeep show ") == []
    assert complete("tensorkeep show acme/llama@") == []
    assert complete("tensorkeep device lost ") == []
    assert complete("tensorkeep sh") == ["show"]


def test_a_bug_says_nothing_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], doors: FakeDoors
) -> None:
    monkeypatch.setattr(doors, "known_names", lambda location: 1 / 0)
    monkeypatch.setenv("_TENSORKEEP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "tensorkeep show ")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert main([], doors=doors) == 1
    assert capsys.readouterr() == ("", "")


def test_fish_is_told_by_the_exit_code_whether_there_is_anything(
    monkeypatch: pytest.MonkeyPatch, doors: FakeDoors, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TENSORKEEP_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "is-args")
    for line, code in (("tensorkeep show acme/", 0), ("tensorkeep show nobody/", 1)):
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        assert main([], doors=doors) == code


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed(run: Run, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run("--show-completion", shell)
    assert (printed.code, printed.err) == (0, "")
    assert f"_TENSORKEEP_COMPLETE=complete_{shell}" in printed.out
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert run("--show-completion").out == printed.out


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_another_shell_is_refused(run: Run, option: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    ran = run(option, "tcsh")
    assert (ran.code, ran.out) == (2, "")
    assert "'tcsh': name one of bash, zsh, fish" in ran.err
    monkeypatch.delenv("SHELL", raising=False)
    assert "your shell: name one of" in run(option).err
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("shell", "script", "startup"),
    [
        ("bash", ".bash_completions/tensorkeep.sh", ".bashrc"),
        ("zsh", ".zfunc/_tensorkeep", ".zshrc"),
        ("fish", ".config/fish/completions/tensorkeep.fish", None),
    ],
)
def test_a_script_is_installed_once_and_a_startup_file_keeps_what_it_has(
    shell: str, script: str, startup: str | None, tmp_path: Path
) -> None:
    environment = {"HOME": str(tmp_path)}
    before = b"alias x=y # \xff, without a line end"
    if startup:
        (tmp_path / startup).write_bytes(before)
    written = install(shell, environment)
    assert written == [tmp_path / name for name in (script, startup) if name]
    assert (tmp_path / script).read_text() == script_of(shell) + "\n"
    assert install(shell, environment) == [tmp_path / script]
    if startup:
        first, line, end = (tmp_path / startup).read_bytes().split(b"\n")
        assert (first, end) == (before, b"")
        assert line
    assert {path.name for path in tmp_path.iterdir()} == {Path(name).parts[0] for name in (script, startup) if name}


def test_folders_that_the_environment_names_are_used(tmp_path: Path) -> None:
    (tmp_path / "dots").mkdir()
    environment = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path / "dots"), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert install("zsh", environment)[1] == tmp_path / "dots" / ".zshrc"
    assert install("fish", environment) == [tmp_path / "xdg" / "fish" / "completions" / "tensorkeep.fish"]


def test_what_can_not_be_written_is_named(run: Run, home: Path) -> None:
    (home / ".bash_completions").write_text("a file where a folder should be")
    ran = run("--install-completion", "bash")
    assert ran.code == 10
    assert ".bash_completions" in ran.err


def test_install_says_what_it_wrote(run: Run, home: Path) -> None:
    ran = run("--install-completion", "bash")
    assert ran.out.splitlines()[:2] == [f"wrote {home}/.bash_completions/tensorkeep.sh", f"wrote {home}/.bashrc"]
