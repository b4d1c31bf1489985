"""Two pushes at once: one branch has one winner, and nothing is damaged."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tensorkeep import Conflict
from tensorkeep.runtime import Runtime
from tensorkeep.store.store import Store
from tests.e2e.conftest import CommandLine, StoreFactory
from tests.e2e.trees import read_tree, seeded_bytes, write_tree
from tests.e2e.workshop import Workshop

SHARED = seeded_bytes(3 << 20)


def tree_of(seed: int) -> dict[str, bytes]:
    return {"shared.bin": SHARED, "own.bin": seeded_bytes(2 << 20, seed=seed), "note": str(seed).encode()}


class Meeting:
    """A failpoint where several pushes wait for each other, once."""

    def __init__(self, name: str, parties: int) -> None:
        self._name = name
        self._barrier = threading.Barrier(parties, timeout=60)
        self._met = threading.local()

    def hit(self, name: str) -> None:
        """Wait at the named step, the first time."""
        if name == self._name and not getattr(self._met, "done", False):
            self._met.done = True
            self._barrier.wait()


_SEEDS = itertools.count(100)


@pytest.mark.parametrize("first", [True, False], ids=["new branch", "branch with a head"])
@pytest.mark.parametrize("step", ["push.scanned", "push.session_begun", "push.metadata_written", "push.before_commit"])
def test_of_two_pushes_to_one_branch_exactly_one_wins(
    step: str, first: bool, shared_workshop: Workshop, tmp_path: Path
) -> None:
    workshop, model = shared_workshop, f"{'new' if first else 'old'}/{step}"
    seeds = next(_SEEDS), next(_SEEDS)
    if not first:
        workshop.store.push(write_tree(tmp_path / "source0", tree_of(0)), model, tag="v0")
    meeting = Runtime(failpoints=Meeting(step, 2))
    stores = [workshop.open(runtime=meeting) for _ in range(2)]
    sources = [write_tree(tmp_path / f"source{seed}", tree_of(seed)) for seed in seeds]

    def push(store: Store, source: Path) -> str | Conflict:
        try:
            return store.push(source, model).id
        except Conflict as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(push, stores, sources))
    winners = [result for result in results if isinstance(result, str)]
    losers = [result for result in results if isinstance(result, Conflict)]
    assert (len(winners), len(losers)) == (1, 1)
    assert (f"the model {model}" if first else "the branch 'main'") in str(losers[0])
    assert "push again" in str(losers[0])

    won = results.index(winners[0])
    store = workshop.open()
    assert store.model(model).version.id == winners[0]
    store.pull(model, tmp_path / "out")
    assert read_tree(tmp_path / "out") == tree_of(seeds[won])
    assert store.verify().problems == ()

    # What the loser wrote is nobody's: gc frees it, and pushing again puts it on top.
    assert store.gc(grace_s=0, max_fraction=None).deleted_bytes >= 2 << 20
    assert store.verify().problems == ()
    again = store.push(sources[1 - won], model)
    assert again.parent == winners[0]
    store.pull(model, tmp_path / "again")
    assert read_tree(tmp_path / "again") == tree_of(seeds[1 - won])


def test_two_processes_that_push_at_once_end_with_a_winner_and_a_conflict(
    workshop: Workshop, command_line: CommandLine, tmp_path: Path
) -> None:
    """Each process waits, between scan and plan, until the other has scanned too."""
    program = tmp_path / "push.py"
    program.write_text(
        "import os, sys\n"
        "import tensorkeep\n"
        "from tensorkeep.cli.main import main\n"
        "from tensorkeep.cli.session import Doors\n"
        "from tensorkeep.runtime import Runtime\n"
        "class Meet:\n"
        "    def hit(self, name):\n"
        "        if name == 'push.scanned':\n"
        "            print('ready', file=sys.stderr, flush=True)\n"
        "            sys.stdin.readline()\n"
        "class Meeting(Doors):\n"
        "    def open(self, location):\n"
        "        return tensorkeep.open(location, runtime=Runtime(failpoints=Meet(), environment=os.environ))\n"
        "sys.exit(main(sys.argv[1:], doors=Meeting()))\n"
    )
    sources = [write_tree(tmp_path / f"source{seed}", tree_of(seed)) for seed in (1, 2)]
    processes = [
        command_line.start("push", source, "acme/m", store=workshop.location, program=(str(program),), talk=True)
        for source in sources
    ]
    for process in processes:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 5], outputs
    error = outputs[codes.index(5)][1]
    assert error.startswith("error: ")
    assert "acme/m" in error
    assert "push again" in error
    command_line("gc", "--grace", "0", "--yes", store=workshop.location)
    command_line("verify", store=workshop.location)
    command_line("pull", "acme/m", "out", store=workshop.location)
    assert read_tree(command_line.home / "out") == tree_of(1 + codes.index(0))


def test_pushes_to_different_branches_and_models_do_not_disturb_each_other(
    store_factory: StoreFactory, tmp_path: Path
) -> None:
    workshop = store_factory(2, replicas=2)
    targets = [("acme/m", "main"), ("acme/m", "other"), ("acme/n", "main"), ("acme/n", "other")]
    workshop.store.push(write_tree(tmp_path / "first", tree_of(9)), "acme/m")
    workshop.store.push(tmp_path / "first", "acme/n")
    sources = [write_tree(tmp_path / f"source{seed}", tree_of(seed)) for seed in range(4)]

    def push(number: int) -> str:
        model, branch = targets[number]
        return workshop.open().push(sources[number], model, branch=branch).id

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(push, range(4)))
    assert len(set(ids)) == 4
    store = workshop.open()
    assert store.verify().problems == ()
    for number, (model, branch) in enumerate(targets):
        store.pull(f"{model}@{branch}", tmp_path / f"out{number}")
        assert read_tree(tmp_path / f"out{number}") == tree_of(number)


def test_gc_during_pushes_takes_nothing_that_they_need(store_factory: StoreFactory, tmp_path: Path) -> None:
    """gc without a grace at many steps of a push: what the push counted on is written again, or was never taken."""
    workshop = store_factory(2)
    source = write_tree(tmp_path / "source", tree_of(1))
    collector = workshop.open()

    steps = ["push.planned", "push.staged", "push.part_recorded", "push.metadata_written", "push.before_commit"]

    class Collect:
        def hit(self, name: str) -> None:
            if name in steps:
                steps.remove(name)  # once at each: the push gives up where it is robbed again and again
                collector.gc(grace_s=0, max_fraction=None)

    store = workshop.open(runtime=Runtime(failpoints=Collect()))
    # Parts that a removed version left behind are there to be taken.
    old = workshop.store.push(source, "acme/old")
    workshop.store.rm_model("acme/old")
    version = store.push(source, "acme/m")
    assert version.id != old.id
    assert steps == []
    assert collector.gc(grace_s=0, max_fraction=None).unreachable == ()
    assert workshop.open().verify().problems == ()
    workshop.open().pull("acme/m", tmp_path / "out")
    assert read_tree(tmp_path / "out") == tree_of(1)
