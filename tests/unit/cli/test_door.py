"""The door: global options, errors as lines or JSON, exit codes, Ctrl-C, closed pipes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tensorkeep import _version
from tensorkeep.cli.failures import failure_of
from tensorkeep.cli.main import main
from tensorkeep.cli.session import Session
from tensorkeep.errors import ERROR_TABLE, Integrity, TensorkeepError, Unavailable
from tests.unit.cli.conftest import Run
from tests.unit.cli.fake_store import MODEL


@pytest.mark.parametrize("row", ERROR_TABLE.values(), ids=ERROR_TABLE.keys())
def test_every_error_ends_in_its_exit_code_and_one_line(
    run: Run, row: "tuple[type[TensorkeepError], int, int]"
) -> None:
    ran = run("ls", models=row[0]("what, which, what to do", device="nvme0"))
    assert ran.code == row[2]
    assert ran.out == ""
    assert ran.err.splitlines()[0] == "error: what, which, what to do"
    assert ("--debug" in ran.err) is (row[0].code == "internal")


@pytest.mark.parametrize("row", ERROR_TABLE.values(), ids=ERROR_TABLE.keys())
def test_every_error_is_json_on_standard_error_with_json(
    run: Run, row: "tuple[type[TensorkeepError], int, int]"
) -> None:
    ran = run("ls", "--json", models=row[0]("what", device="nvme0", digest=b"\x01"))
    assert ran.code == row[2]
    assert ran.out == ""
    assert ran.error["code"] == row[0].code
    assert ran.error["message"] == "what"
    assert ran.error["facts"].items() >= {"device": "nvme0", "digest": "01"}.items()


def test_an_unexpected_error_gives_a_short_message_and_a_traceback_only_with_debug(run: Run) -> None:
    ran = run("ls", models=KeyError("x"))
    assert ran.code == 1
    assert ran.err.splitlines()[0] == "error: unexpected KeyError: 'x'"
    assert "Traceback" not in ran.err
    assert "Traceback" in run("--debug", "ls", models=KeyError("x")).err
    assert run("ls", "--json", models=KeyError("x")).error["facts"]["type"] == "KeyError"


def test_an_operating_system_error_is_not_swallowed(run: Run) -> None:
    ran = run("ls", models=OSError(5, "Input/output error"))
    assert ran.code == 1
    assert "Input/output error" in ran.err


def test_a_group_of_errors_shows_every_message_and_exits_as_the_first(run: Run) -> None:
    ran = run("ls", models=ExceptionGroup("devices", [Integrity("part 3 is damaged"), Unavailable("hdd0 is down")]))
    assert ran.code == 6
    assert ran.err.splitlines() == ["error: part 3 is damaged", "hdd0 is down"]


def test_an_interrupt_in_a_group_is_an_interrupt() -> None:
    group = BaseExceptionGroup("workers", [Unavailable("x"), KeyboardInterrupt()])
    assert failure_of(group).exit_code == 130


@pytest.mark.parametrize("words", [("push", "x", MODEL), ("verify",), ("ls",), ("status", "--json")])
def test_ctrl_c_gives_130_and_one_line(run: Run, words: tuple[str, ...]) -> None:
    interrupt = KeyboardInterrupt()
    ran = run(*words, push=interrupt, verify=interrupt, models=interrupt, status=interrupt)
    assert ran.code == 130
    assert len(ran.err.splitlines()) == 1
    assert "interrupted" in ran.err


def test_ctrl_c_before_the_command_begins_is_said_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "with_options", interrupt)
    ran = run("ls")
    assert ran.code == 130
    assert ran.err == "error: interrupted; nothing that was acknowledged is lost\n"


def test_a_reader_that_went_away_ends_the_command_quietly(run: Run) -> None:
    ran = run("ls", models=BrokenPipeError(32, "Broken pipe"))
    assert (ran.code, ran.err) == (141, "")


@pytest.mark.parametrize(
    "words",
    [
        ("pusg",),
        ("push", "x"),
        ("push", "x", MODEL, "--replicas", "two"),
        ("push", "x", MODEL, "--replicas", "0"),
        ("push", "x", MODEL, "--part-size", "lots"),
        ("pull", MODEL, "--verify", "perhaps"),
        ("pull", "../etc"),
        ("ls", "--nonsense"),
        ("device", "add", "nvme0"),
        ("device", "add", "nvme0", "file:///a", "--bandwidth", "fast"),
        ("gc", "--grace", "soon"),
        ("split", "model.bin"),
        ("split", "model.bin", "--parts", "some"),
        ("join",),
    ],
)
def test_usage_errors_exit_with_2_as_lines_and_as_json(run: Run, words: tuple[str, ...]) -> None:
    ran = run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    as_json = run(*words, "--json")
    assert (as_json.code, as_json.out) == (2, "")
    assert as_json.error["code"] == "invalid_input"
    assert as_json.doors.store.calls == []


@pytest.mark.parametrize("words", [(), ("device",)])
def test_no_command_shows_the_help_on_standard_error(run: Run, words: tuple[str, ...]) -> None:
    ran = run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: tensorkeep" in ran.err
    assert run(*words, "--json").error["code"] == "invalid_input"


def test_store_and_json_stand_before_or_after_the_command(run: Run) -> None:
    for words in (("--store", "/s", "--json", "ls"), ("ls", "--store", "/s", "--json"), ("--json", "ls", "--store=/s")):
        ran = run(*words)
        assert ran.doors.locations == ["/s"]
        assert ran.document["models"]
    for words in (
        ("device", "--store", "/s", "ls"),
        ("--store", "/s", "device", "ls"),
        ("device", "ls", "--store", "/s"),
    ):
        assert run(*words).doors.locations == ["/s"]


def test_the_store_after_the_command_wins(run: Run) -> None:
    assert run("--store", "/a", "ls", "--store", "/b").doors.locations == ["/b"]


def test_without_store_the_environment_decides(run: Run) -> None:
    assert run("ls").doors.locations == [None]


def test_words_after_two_dashes_are_not_options(run: Run) -> None:
    ran = run("push", "--", "--json", MODEL)
    assert ran.call[1] == ("--json", MODEL)
    assert "version" in ran.out.splitlines()[0]


def test_version_is_the_packages(run: Run) -> None:
    ran = run("--version")
    assert (ran.code, ran.out) == (0, f"tensorkeep {_version.__version__}\n")


def test_the_module_runs_as_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "tensorkeep", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tensorkeep {_version.__version__}\n"


def test_a_full_disk_under_standard_output_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tensorkeep", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_closed_pipe_under_standard_output_is_quiet() -> None:
    done = subprocess.run(
        f"{sys.executable} -m tensorkeep --help | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 141}
    assert done.stderr == ""


def test_a_second_ctrl_c_after_the_command_stops_at_once() -> None:
    code = "import signal, atexit, tensorkeep.cli.main as m; atexit.register(lambda: print(signal.getsignal(signal.SIGINT))); m.run()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=False)
    assert str(signal.SIG_DFL) in done.stdout


def test_main_returns_a_code_and_raises_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nonsense"]) == 2
    assert "No such option" in capsys.readouterr().err
