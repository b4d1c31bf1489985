"""A store on local devices driven beside a dict: whatever is done to it, every version that lives loads as it was pushed.

Among what is done: devices are lost and replaced, drained and removed, bytes are flipped in one of two copies, the catalog is deleted and rebuilt, what
versions owe is changed to more copies, fewer, or fragments, and old versions are let go.
"""

import shutil
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import tensorkeep
from tensorkeep.errors import AlreadyExists, Conflict
from tensorkeep.store.store import Store
from tests.faults.store_world import (
    GIB,
    MIB,
    World,
    assert_clean,
    assert_loads,
    assert_no_orphans,
    device_path,
    flip,
    known_places,
    locations,
    small_weights,
)

MODELS = st.sampled_from(["acme/one", "acme/two"])
CONTENTS = st.integers(0, 3)  # few, and neighbours share most of their tensors, so that versions share parts
BRANCHES = st.sampled_from(["main", "dev"])
TAGS = st.sampled_from(["v1", "v2", "best"])
CHOICES = st.integers(0, 1 << 16)
POLICIES: list[dict[str, Any]] = [{"replicas": 2}, {"replicas": 3}, {"ec": "2+1"}]


class Made(NamedTuple):
    """A version that lives: its model, what was pushed, and its parent."""

    model: str
    content: int
    parent: str | None


class Flipped(NamedTuple):
    """A byte that was changed on a device, in one copy of an object."""

    key: str
    path: Path
    offset: int


class StoreMachine(RuleBasedStateMachine):
    """The store, and beside it what it should hold."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.world = World(folder, devices=4)
        self.store: Store = self.world.create()
        self.devices = list(self.world.names)
        self.versions: dict[str, Made] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.parts: dict[str, dict[bytes, int]] = {}  # of versions that were looked at: parts never change
        self.flipped: list[Flipped] = []
        self.thin = False  # some objects have one copy only, since a device was lost
        self.draining: str | None = None

    def teardown(self) -> None:
        """See everything once more from the outside, then make room."""
        self.mend()
        if self.draining:
            self.undrain()
        self.heal()
        assert_clean(self.world.open())
        assert_no_orphans(self.world, self.world.open())
        self.check_versions()
        self.world.end()
        shutil.rmtree(self.world.folder)

    # ------------------------------------------------------------------ what users do

    @initialize(content=CONTENTS)
    def first(self, content: int) -> None:
        self.push("acme/one", content, "main")

    @rule(model=MODELS, content=CONTENTS, branch=BRANCHES)
    def push(self, model: str, content: int, branch: str) -> None:
        if len(self.versions) >= 8:
            return
        head = self.branches.get((model, branch))
        version = self.store.push(small_weights(content), model, branch=branch, part_size=MIB)
        assert version.report is not None
        if head is not None and self.versions[head].content == content:
            assert (version.id, version.report.created) == (head, False)
        else:
            assert version.report.created
            assert version.id not in self.versions
            self.versions[version.id] = Made(model, content, head)
            self.branches[model, branch] = version.id

    @rule(tag=TAGS, choice=CHOICES)
    def tag(self, tag: str, choice: int) -> None:
        if not self.versions:
            return
        version = self.pick(choice)
        model = self.versions[version].model
        if (model, tag) in self.tags:
            with pytest.raises(AlreadyExists):
                self.store.tag(model, tag, version)
        else:
            self.store.tag(model, tag, version)
            self.tags[model, tag] = version

    @rule(choice=CHOICES)
    def delete_tag(self, choice: int) -> None:
        if not self.tags:
            return
        model, tag = sorted(self.tags)[choice % len(self.tags)]
        self.store.delete_tag(model, tag)
        del self.tags[model, tag]

    @rule(branch=BRANCHES, choice=CHOICES)
    def move_branch(self, branch: str, choice: int) -> None:
        if not self.versions:
            return
        version = self.pick(choice)
        model = self.versions[version].model
        self.store.branch(model, branch, to=version)
        self.branches[model, branch] = version

    @rule(choice=CHOICES)
    def delete_branch(self, choice: int) -> None:
        if not self.branches:
            return
        model, branch = sorted(self.branches)[choice % len(self.branches)]
        self.store.delete_branch(model, branch)
        del self.branches[model, branch]

    @rule(choice=CHOICES)
    def remove(self, choice: int) -> None:
        if not self.versions:
            return
        version = self.pick(choice)
        spec = f"{self.versions[version].model}@{version}"
        if version in {*self.branches.values(), *self.tags.values()}:
            with pytest.raises(Conflict):
                self.store.rm(spec)
        else:
            self.store.rm(spec)
            del self.versions[version]

    @rule(model=MODELS)
    def remove_model(self, model: str) -> None:
        if all(summary.name != model for summary in self.store.models()):
            return
        removed = [version for version, made in self.versions.items() if made.model == model]
        assert self.store.rm_model(model) == len(removed)
        for version in removed:
            del self.versions[version]
        self.branches = {place: version for place, version in self.branches.items() if place[0] != model}
        self.tags = {place: version for place, version in self.tags.items() if place[0] != model}

    @precondition(lambda self: not self.thin and not self.flipped)
    @rule(model=MODELS, policy=st.sampled_from(POLICIES))
    def change_policy(self, model: str, policy: dict[str, Any]) -> None:
        if all(summary.name != model for summary in self.store.models()):
            return
        report = self.store.set_policy(model, **policy)
        assert report.failed == ()
        assert_clean(self.store)

    @rule(model=MODELS, last=st.integers(1, 3))
    def let_go(self, model: str, last: int) -> None:
        """Keep the last few of each branch for one gc."""
        if all(summary.name != model for summary in self.store.models()):
            return
        going = {version.id for version in self.store.retain(model, last=last).expired}
        assert {self.versions[version].model for version in going} <= {model}
        assert not going & {*self.branches.values(), *self.tags.values()}
        for (name, _), head in self.branches.items():
            if name == model:
                assert not going & {version for version in self.history(head)[:last] if version in self.versions}
        assert self.store.gc(grace_s=0, max_fraction=None).expired == len(going)
        for version in going:
            del self.versions[version]
        self.store.retain(model)

    @rule(grace_s=st.sampled_from([0.0, 86400.0]))
    def collect(self, grace_s: float) -> None:
        report = self.store.gc(grace_s=grace_s, max_fraction=None)
        assert report.unreachable == ()

    @rule()
    def verify(self) -> None:
        problems = self.store.verify().problems
        if not self.flipped and not self.thin:
            assert problems == ()
        found = {problem.object for problem in problems if problem.kind in ("corrupt", "missing")}
        there = {each.path.relative_to(self.world.folder).as_posix() for each in self.flipped if each.path.exists()}
        assert found <= {name.partition("/")[2] for name in there}

    # ---------------------------------------------------------- what happens to a store

    @rule()
    def reopen(self) -> None:
        self.world.close()
        self.store = self.world.open()

    @rule()
    def lose_catalog(self) -> None:
        self.world.lose_catalog()
        report = tensorkeep.rebuild_catalog(self.world.location)
        assert report.unreachable == ()
        self.store = self.world.open()

    @rule()
    def rebuild_beside_an_open_handle(self) -> None:
        tensorkeep.rebuild_catalog(self.world.location, force=True)

    @precondition(lambda self: not self.thin)
    @rule(choice=CHOICES, share=st.floats(0, 1, exclude_max=True))
    def flip_a_byte(self, choice: int, share: float) -> None:
        """In an object that has two copies, none of them damaged."""
        held: dict[str, list[Path]] = {}
        for location in locations(self.store):
            key = f"{location.key.kind} {location.key.digest.hex()}"
            if location.state in ("live", "stored") and location.length:
                held.setdefault(key, []).append(device_path(self.store, location))
        twice = sorted(
            key for key, paths in held.items() if len(paths) >= 2 and all(key != each.key for each in self.flipped)
        )
        if twice:
            key = twice[choice % len(twice)]
            path = held[key][choice % len(held[key])]
            offset = int(share * path.stat().st_size)
            flip(path, offset, 0x80)
            self.flipped.append(Flipped(key, path, offset))

    @rule()
    def mend(self) -> None:
        """The cable was replaced: what is still there reads right again."""
        for each in self.flipped:
            if each.path.exists():
                flip(each.path, each.offset, 0x80)
        self.flipped = []
        self.store.verify()  # copies that were marked bad count again

    @precondition(lambda self: not self.thin and not self.flipped and not self.draining)
    @rule(choice=CHOICES)
    def lose_device(self, choice: int) -> None:
        name = self.devices.pop(choice % len(self.devices))
        shutil.rmtree(self.world.place(name))
        self.store.devices.lost(name)
        self.add_device()
        self.thin = True

    def add_device(self) -> None:
        """Add an empty device in the place of one that is gone."""
        new = f"d{self.world.devices}"
        self.world.devices += 1
        with known_places():
            self.store.devices.add(new, str(self.world.place(new)), bandwidth=GIB)
        self.devices.append(new)

    @precondition(lambda self: not self.thin and not self.flipped and not self.draining)
    @rule(choice=CHOICES)
    def drain(self, choice: int) -> None:
        self.store.gc(grace_s=0, max_fraction=None)  # a drain gives up no more than half of all by itself
        self.draining = self.devices[choice % len(self.devices)]
        assert self.store.devices.drain(self.draining, grace_s=0).empty

    @precondition(lambda self: self.draining)
    @rule()
    def undrain(self) -> None:
        assert self.draining is not None
        self.store.devices.undrain(self.draining)
        self.draining = None

    @precondition(lambda self: self.draining and not self.flipped)
    @rule()
    def take_out(self) -> None:
        """Remove the device that was drained, and add another."""
        assert self.draining is not None
        self.store.gc(grace_s=0, max_fraction=None)
        assert self.store.devices.drain(self.draining, grace_s=0).empty
        self.store.devices.remove(self.draining)
        self.devices.remove(self.draining)
        self.draining = None
        self.add_device()

    @precondition(lambda self: not self.thin and not self.flipped)
    @rule()
    def rebalance(self) -> None:
        assert self.store.rebalance().failed == ()

    @rule()
    def scrub_and_repair(self) -> None:
        """What was flipped, and what a lost device had, gets good copies again."""
        self.store.scrub(deep=True)
        assert self.store.repair().ok
        self.thin = False

    @precondition(lambda self: self.thin)
    @rule()
    def heal(self) -> None:
        """Push every head again, and remove what is no head: a version's copies are made again when it is pushed."""
        for model, tag in list(self.tags):
            self.store.delete_tag(model, tag)
        self.tags = {}
        for version in [version for version in self.versions if version not in self.branches.values()]:
            self.store.rm(f"{self.versions.pop(version).model}@{version}")
        for (model, branch), version in self.branches.items():
            again = self.store.push(small_weights(self.versions[version].content), model, branch=branch, part_size=MIB)
            assert again.id == version
        assert_clean(self.store)
        self.thin = False

    # -------------------------------------------------------------------- what must hold

    @invariant()
    def check_versions(self) -> None:
        """Every version that lives loads as it was pushed."""
        for version, made in self.versions.items():
            assert_loads(self.store, f"{made.model}@{version}", small_weights(made.content))

    @invariant()
    def check_names(self) -> None:
        """Models, branches, tags and history are what was said."""
        catalog = self.store._context.catalog
        refs: dict[tuple[str, str, str], str] = {}
        alive: set[str] = set()
        for facts in catalog.list_models():
            refs |= {(ref.kind, facts.name, ref.name): ref.version for ref in catalog.list_refs(facts.id)}
            alive |= {found.id for found in catalog.list_versions(facts.id)}
        assert refs == {
            **{("branch", *place): version for place, version in self.branches.items()},
            **{("tag", *place): version for place, version in self.tags.items()},
        }
        assert alive == set(self.versions)
        for (model, branch), version in self.branches.items():
            assert [entry.id for entry in self.store.log(f"{model}@{branch}")] == self.history(version)

    @invariant()
    def check_space(self) -> None:
        """Each version's parts are shared with others or its own, as the parts of their manifests say."""
        for version in self.versions.keys() - self.parts.keys():
            self.parts[version] = parts_of(self.store, f"{self.versions[version].model}@{version}")
        held = {version: self.parts[version] for version in self.versions}
        rows = {row.version: row for row in self.store.du().rows}
        assert rows.keys() == held.keys()
        for version, parts in held.items():
            others = {digest for other, found in held.items() if other != version for digest in found}
            assert rows[version].part_bytes == sum(parts.values())
            assert rows[version].shared_bytes == sum(size for digest, size in parts.items() if digest in others)
            assert rows[version].exclusive_bytes == sum(size for digest, size in parts.items() if digest not in others)

    def history(self, version: str) -> list[str]:
        """Return a version and its ancestors; a removed one is the last."""
        found = [version]
        while (made := self.versions.get(found[-1])) and made.parent:
            found.append(made.parent)
        return found

    def pick(self, choice: int) -> str:
        """Return one of the versions that live."""
        return sorted(self.versions)[choice % len(self.versions)]


def parts_of(store: Store, spec: str) -> dict[bytes, int]:
    """Return the parts of a version: digest → size in bytes."""
    model = store.model(spec)
    checks = model._open_checks()
    return {checks.digest(number): size for number, size in enumerate(model.manifest.parts)}


def machine_in(folder: Path) -> type[StoreMachine]:
    numbers = count()

    class Machine(StoreMachine):
        def __init__(self) -> None:
            super().__init__(folder / str(next(numbers)))

    return Machine


def test_a_store_holds_what_a_dict_beside_it_says(tmp_path: Path) -> None:
    run_state_machine_as_test(
        machine_in(tmp_path), settings=settings(max_examples=12, stateful_step_count=20, deadline=None)
    )


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_store_holds_what_a_dict_beside_it_says_in_long_runs(tmp_path: Path) -> None:
    run_state_machine_as_test(
        machine_in(tmp_path), settings=settings(max_examples=150, stateful_step_count=50, deadline=None)
    )
