"""Ctrl-C at any moment: a word and exit code 130, and nothing that was acknowledged is lost."""

import itertools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tensorkeep.cli.failures import INTERRUPTED
from tensorkeep.runtime import FAILPOINTS, Runtime
from tensorkeep.store.sources import FileSource
from tests.e2e.conftest import CommandLine, Models
from tests.e2e.trees import read_tree, seeded_bytes, write_tree
from tests.e2e.workshop import Workshop

STEPS = sorted(name for name in FAILPOINTS if name.split(".")[0] in {"push", "commit", "journal"})
RARE = {"journal.trimmed"}
"""Steps that a push passes only after a thousand others."""


class InterruptAt:
    """A failpoint at which the process gets SIGINT, once, as from a terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.reached = threading.Event()

    def hit(self, name: str) -> None:
        """Interrupt, in whichever thread this is."""
        if name == self._name and not self.reached.is_set():
            self.reached.set()
            os.kill(os.getpid(), signal.SIGINT)


class Story:
    """A model of the test's own: ``@v1`` is stored with two copies, and a changed folder is there to be pushed."""

    def __init__(self, workshop: Workshop, folder: Path, number: int) -> None:
        shared = seeded_bytes(3 << 20, seed=3 * number)
        self.old = {"weights.bin": shared, "config.json": b"old"}
        self.new = {
            "weights.bin": shared,
            "more.bin": seeded_bytes(9 << 20, seed=3 * number + 1),
            "config.json": b"new",
        }
        self.workshop = workshop
        self.model = f"stories/m{number}"
        self.source = write_tree(folder / "new", self.new)
        self._folder = folder
        workshop.store.push(write_tree(folder / "old", self.old), self.model, tag="v1", replicas=2)

    def check_whole(self) -> None:
        """Assert that the store verifies clean, v1 loads, and the push run again succeeds and then loads."""
        store = self.workshop.store
        assert store.verify().problems == ()
        store.pull(f"{self.model}@v1", self._folder / "check old")
        assert read_tree(self._folder / "check old") == self.old
        head = store.model(self.model).version
        version = store.push(self.source, self.model)
        assert version.id == head.id or version.parent == head.id
        store.pull(self.model, self._folder / "check new")
        assert read_tree(self._folder / "check new") == self.new
        store.gc(grace_s=0, max_fraction=None)
        assert store.verify().problems == ()
        assert self.workshop.unfinished() == []
        store.rm_model(self.model)
        store.gc(grace_s=0, max_fraction=None)  # the next story verifies less


_NUMBERS = itertools.count()


@pytest.fixture
def story(shared_workshop: Workshop, tmp_path: Path) -> Story:
    return Story(shared_workshop, tmp_path, next(_NUMBERS))


@pytest.mark.parametrize("step", [step for step in STEPS if step not in RARE])
def test_an_interrupt_at_any_step_of_a_push_loses_nothing(step: str, story: Story) -> None:
    interrupt = InterruptAt(step)
    store = story.workshop.open(runtime=Runtime(failpoints=interrupt))
    with pytest.raises(KeyboardInterrupt):
        store.push(story.source, story.model)
    assert interrupt.reached.is_set()
    story.check_whole()


@pytest.mark.parametrize("step", ["gc.condemned", "gc.deleted", "gc.flushed", "gc.dropped", "gc.tmp_swept"])
def test_an_interrupt_at_any_step_of_gc_loses_nothing(step: str, story: Story) -> None:
    story.workshop.store.push(story.source, "stories/gone")
    story.workshop.store.rm_model("stories/gone")
    interrupt = InterruptAt(step)
    store = story.workshop.open(runtime=Runtime(failpoints=interrupt))
    with pytest.raises(KeyboardInterrupt):
        store.gc(grace_s=0, max_fraction=None)
    assert interrupt.reached.is_set()
    story.check_whole()


def test_an_interrupt_stops_the_reading_of_a_large_source(
    workshop: Workshop, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(path.stat().st_size for path in models.tiny.iterdir())
    read_bytes: list[int] = []
    original: Callable[[FileSource, int, memoryview], None] = FileSource.read_into

    def read_into(self: FileSource, offset: int, buffer: memoryview) -> None:
        read_bytes.append(len(buffer))
        if len(buffer) > 1 << 20 and sum(read_bytes) - len(buffer) < 8 << 20 <= sum(read_bytes):
            os.kill(os.getpid(), signal.SIGINT)
        original(self, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", read_into)
    with pytest.raises(KeyboardInterrupt):
        workshop.store.push(models.tiny, "acme/tiny", split="size")
    assert sum(read_bytes) < 0.8 * total
    assert workshop.store.models() == []
    workshop.store.gc(grace_s=0, max_fraction=None)
    assert workshop.store.verify().problems == ()


@pytest.mark.parametrize("verb", ["load", "pull", "verify"])
def test_an_interrupt_of_a_reading_verb_changes_nothing(
    verb: str, models: Models, shared_workshop: Workshop, tmp_path: Path
) -> None:
    shared_workshop.store.push(models.tiny, "reading/tiny")
    store = shared_workshop.open()
    done: list[object] = []

    def interrupt(progress: object) -> None:
        if not done:
            done.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    run: dict[str, Callable[[], object]] = {
        "load": lambda: store.model("reading/tiny").load(progress=interrupt),
        "pull": lambda: store.pull("reading/tiny", tmp_path / "out", progress=interrupt),
        "verify": lambda: store.verify(progress=interrupt),
    }
    with pytest.raises(KeyboardInterrupt):
        run[verb]()
    assert done
    if verb == "pull":
        assert read_tree(tmp_path / "out") == {}
    assert shared_workshop.store.verify().problems == ()
    shared_workshop.store.rm_model("reading/tiny")
    shared_workshop.store.gc(grace_s=0, max_fraction=None)


PROGRAM = """
import os, signal, sys
import tensorkeep
from tensorkeep.cli.main import main
from tensorkeep.cli.session import Doors
from tensorkeep.runtime import Runtime

class Interrupt:
    step = os.environ["INTERRUPT_AT"]

    def hit(self, name):
        if name == self.step:
            self.step = None
            os.kill(os.getpid(), signal.SIGINT)

class Interrupting(Doors):
    def open(self, location):
        return tensorkeep.open(location, runtime=Runtime(failpoints=Interrupt(), environment=os.environ))

sys.exit(main(sys.argv[1:], doors=Interrupting()))
"""


@pytest.mark.parametrize("step", ["push.scanned", "push.part_written", "journal.written"])
def test_the_command_line_says_that_it_was_interrupted(
    step: str, story: Story, tmp_path: Path, command_line: CommandLine
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    answer = command_line(
        "push",
        story.source,
        story.model,
        store=story.workshop.location,
        program=(str(program),),
        code=INTERRUPTED,
        more={"INTERRUPT_AT": step},
    )
    assert answer.err == "error: interrupted; nothing that was acknowledged is lost\n"
    assert answer.out == ""
    story.check_whole()


@pytest.mark.parametrize("times", [1, 2])
def test_a_push_that_is_interrupted_from_outside_while_it_writes(
    times: int, story: Story, models: Models, command_line: CommandLine
) -> None:
    held = story.workshop.held_bytes()
    with command_line.start("push", models.tiny, "stories/tiny", store=story.workshop.location) as process:
        while not story.workshop.unfinished() and story.workshop.held_bytes() == held and process.poll() is None:
            pass  # until it writes its first part, or has: object stores show nothing unfinished
        assert process.poll() is None
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    word = "error: interrupted; nothing that was acknowledged is lost\n"
    if times == 1:
        assert (process.returncode, out, err) == (INTERRUPTED, "", word)
    else:  # the second may find the process while its threads end: then it goes at once
        assert process.returncode in {INTERRUPTED, -signal.SIGINT}
        assert (out, err) in {("", word), ("", "")}
    assert "stories/tiny" not in [model.name for model in story.workshop.store.models()]
    story.check_whole()
