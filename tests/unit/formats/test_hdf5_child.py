"""The process that reads HDF5: whatever it does, the asking process gets an answer or an error that says what happened."""

import json
import os
import sys
import textwrap
from collections.abc import Sequence

import pytest

from tensorkeep.errors import Format
from tensorkeep.formats import hdf5_child, hdf5_probe
from tensorkeep.formats.hdf5 import Hdf5Reader
from tensorkeep.formats.hdf5_child import Probe, ask_probe
from tensorkeep.formats.opaque import opaque_structure
from tensorkeep.formats.protocol import FileStructure, TensorLayout
from tests.unit.formats.hdf5_files import Bytes, hdf5_file, write_weights

GOOD = hdf5_file(write_weights)
SAY = "import json, os, signal, sys\ndef say(*words): os.write(1, json.dumps(words).encode() + b'\\n')\n"


def planted(program: str) -> Sequence[str]:
    return (sys.executable, "-I", "-S", "-c", SAY + textwrap.dedent(program))


def ask(program: str, *, timeout_s: float = 30.0, data: bytes = GOOD) -> FileStructure:
    with Probe(planted(program), timeout_s=timeout_s) as probe:
        return ask_probe(probe, "hdf5", Bytes(data))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_an_answer_is_a_structure_ordered_by_start() -> None:
    structure = ask(
        """
        say("tensor", "b", "<f4", [2], 8, 8)
        say("tensor", "empty", "<f8", [0], 99, 0)
        say("tensor", "a", ">i2", [], 2, 2)
        say("done", "left out: 'x' (strings)")
        """
    )
    assert structure == FileStructure(
        "hdf5",
        (
            TensorLayout("empty", "F64", (0,), None, 0, 0),
            TensorLayout("a", "NPY:>i2", (), None, 2, 2),
            TensorLayout("b", "F32", (2,), None, 8, 8),
        ),
        "left out: 'x' (strings)",
    )


def test_the_process_gets_the_bytes_that_it_asks_for_and_where_packages_lie() -> None:
    structure = ask(
        f"""
        question = json.loads(sys.stdin.buffer.readline())
        say("read", 0, 8)
        assert sys.stdin.buffer.read(8) == {GOOD[:8]!r}
        say("read", {len(GOOD) - 3}, 3)
        assert sys.stdin.buffer.read(3) == {GOOD[-3:]!r}
        assert question["size_bytes"] == {len(GOOD)} and question["sys_path"]
        say("done", "")
        """
    )
    assert structure == FileStructure("hdf5", ())


ENDS = {
    "at once": ("sys.exit(3)", "its process ended with code 3"),
    "cleanly but early": ("sys.exit(0)", "its process ended with code 0"),
    "by a crash": ("os.kill(os.getpid(), signal.SIGSEGV)", "its process ended with SIGSEGV"),
    "killed for memory": ("os.kill(os.getpid(), signal.SIGKILL)", "its process ended with SIGKILL"),
    "inside a message": ("os.write(1, b'[\"read\", 0'); os.abort()", "its process ended with SIGABRT"),
    "after some tensors": (
        "say('tensor', 'a', '<f4', [], 0, 4); os.kill(os.getpid(), signal.SIGSEGV)",
        "its process ended with SIGSEGV",
    ),
    "before it reads an answer": (
        "say('read', 0, 8); os.close(0); os.kill(os.getpid(), signal.SIGBUS)",
        "its process ended with SIGBUS",
    ),
}


@pytest.mark.parametrize(("program", "words"), ENDS.values(), ids=ENDS)
def test_a_process_that_ends_early_is_said_with_how(program: str, words: str) -> None:
    with pytest.raises(Format, match=f"HDF5 could not read it: {words}"):
        ask(program)


HANGS = {
    "silent": "signal.pause()",
    "busy": "while True: pass",
    "in the middle of a message": "os.write(1, b'[\"read\",')\nsignal.pause()",
    "never reads": "while True: say('read', 0, 65536)",
    "closed its output": "os.close(1)\nsignal.pause()",
}


@pytest.mark.parametrize("program", HANGS.values(), ids=HANGS)
def test_a_process_that_hangs_is_ended(program: str) -> None:
    with pytest.raises(Format, match=r"no answer in 0\.3 seconds"):
        ask(program, timeout_s=0.3, data=bytes(1 << 20))


NONSENSE = {
    "text": "print('hello', flush=True)",
    "no JSON": "os.write(1, b'\\xff\\xfe\\n')",
    "deep JSON": "os.write(1, b'[' * 10_000 + b'\\n')",
    "an unknown message": "say('write', 0, 8)",
    "too few words": "say('read', 0)",
    "too many words": "say('read', 0, 8, 9)",
    "a number as a text": "say('read', '0', 8)",
    "a read before the file": "say('read', -1, 8)",
    "a read past the file": f"say('read', {len(GOOD) - 7}, 8)",
    "a read of nothing": "say('read', 0, 0)",
    "a read backwards": "say('read', 8, -8)",
    "a read that is too long": "say('read', 0, 65537)",
    "a huge number": "say('read', 1 << 80, 8)",
    "an unknown dtype": "say('tensor', 'a', '<f3', [1], 0, 3)",
    "an object dtype": "say('tensor', 'a', '|O', [1], 0, 8)",
    "a dtype that numpy has not": "say('tensor', 'a', '<b2', [1], 0, 2)",
    "a name that is no text": 'os.write(1, b\'["tensor", "\\\\ud800", "<f4", [], 0, 4]\\n\')',
    "a note that is not printable": "say('done', 'a\\x1b[31m')",
    "an endless note": "say('opaque', 'x' * 5000)",
    "an endless line": "os.write(1, b'x' * 200_000)",
}


@pytest.mark.parametrize("program", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_no_answer(program: str) -> None:
    with pytest.raises(Format, match="its process gave no proper answer") as refused:
        ask(f"{program}\nsignal.pause()", data=GOOD if "read" in program else bytes(1 << 20))
    assert len(refused.value.message) < 200


LIES = {
    "past the end": ("say('tensor', 'a', '<f4', [2], 1048570, 8)", "ends at byte"),
    "before the start": ("say('tensor', 'a', '<f4', [2], -8, 8)", "starts before"),
    "a negative length": ("say('tensor', 'a', '<f4', [2], 0, -8)", "ends at byte -8"),
    "a negative shape": ("say('tensor', 'a', '<f4', [-2, -1], 0, 8)", "shape"),
    "another length": ("say('tensor', 'a', '<f4', [2], 0, 4)", "need 8"),
    "a name twice": ("say('tensor', 'a', '|u1', [], 0, 1)\nsay('tensor', 'a', '|u1', [], 1, 1)", "twice"),
}


@pytest.mark.parametrize(("program", "words"), LIES.values(), ids=LIES)
def test_tensors_that_cannot_be_are_refused(program: str, words: str) -> None:
    with pytest.raises(Format, match=words):
        ask(f"{program}\nsay('done', '')", data=bytes(1 << 20))


FLOODS = {
    "tensors": "for n in range(10**9): say('tensor', str(n), '|u1', [], 0, 1)",
    "reads": "while True: say('read', 0, 1); sys.stdin.buffer.read(1)",
}


@pytest.mark.parametrize("program", FLOODS.values(), ids=FLOODS)
def test_an_endless_answer_is_ended(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_child, "MAX_LINKS", 1000)
    monkeypatch.setattr(hdf5_child, "REQUEST_LIMIT", 1000)
    with pytest.raises(Format, match="no proper answer"):
        ask(f"sys.stdin.buffer.readline()\n{program}")


def test_all_that_a_process_says_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_child, "ANSWER_LIMIT_BYTES", 200_000)
    with pytest.raises(Format, match="says too much"):
        ask("for n in range(10**9): say('tensor', str(n) + 'x' * 10_000, '|u1', [], 0, 1)")


def test_processes_leave_nothing_behind() -> None:
    before = open_files()
    ask("say('done', '')")
    for program in ("sys.exit(1)", "signal.pause()", "say('read', 0, 99999)\nsignal.pause()"):
        with pytest.raises(Format):
            ask(program, timeout_s=0.3)
    assert open_files() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((sys.executable, "-c", "import os; os.abort()"), "its process ended with SIGABRT"),
        (("/nonexistent/python",), "the process that reads HDF5 could not be started"),
    ],
)
def test_a_file_whose_process_fails_is_opaque(
    command: Sequence[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Planted(Probe):
        def __init__(self) -> None:
            super().__init__(command)

    monkeypatch.setattr(hdf5_child, "Probe", Planted)
    structure = Hdf5Reader().read_structure("model.h5", Bytes(GOOD))
    assert structure == opaque_structure(structure.note)
    assert words in structure.note


# ---------------------------------------------------------------- the probe's own limits


def limited(program: str) -> str:
    """Return the note of a probe that does this instead of reading, after it limited itself."""
    folder = os.path.dirname(hdf5_probe.__file__)
    text = f"import sys\nsys.path.insert(0, {folder!r})\nimport hdf5_probe, json, os, signal\n" + textwrap.dedent(
        program
    )
    with Probe((sys.executable, "-c", text)) as probe, pytest.raises(Format) as refused:
        ask_probe(probe, "hdf5", Bytes(GOOD))
    return refused.value.message


def test_a_probe_can_open_no_file_and_take_no_more_memory_than_its_share() -> None:
    message = limited(
        """
        import socket
        hdf5_probe.prepare(json.loads(hdf5_probe.read_line())["sys_path"])
        failures = []
        for attempt in (
            lambda: open("/etc/hostname"), socket.socket, os.pipe, lambda: bytearray(600 << 20), lambda: bytearray(8 << 20)
        ):
            try:
                attempt()
            except (OSError, MemoryError) as error:
                failures.append(type(error).__name__ + str(getattr(error, "errno", "")))
            else:
                failures.append("-")
        hdf5_probe.say("opaque", " ".join(failures))
        """
    )
    assert message == "OSError24 OSError24 OSError24 MemoryError -"


def test_a_probe_that_computes_for_ever_is_ended_by_its_own_limit() -> None:
    message = limited(
        """
        hdf5_probe.CPU_LIMIT_S = 1
        hdf5_probe.prepare(json.loads(hdf5_probe.read_line())["sys_path"])
        while True:
            pass
        """
    )
    assert message in {f"HDF5 could not read it: its process ended with {name}" for name in ("SIGXCPU", "SIGKILL")}


def test_a_probe_whose_h5py_is_broken_says_so() -> None:
    with Probe() as probe:
        probe.send(json.dumps({"sys_path": [], "size_bytes": 8}).encode() + b"\n")
        kind, why = json.loads(probe.receive())
    assert kind == "opaque"
    assert "h5py can't be imported: No module named 'h5py'" in why
