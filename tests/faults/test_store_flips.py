"""Every flipped byte of a stored object is found; loads give right bytes or say which part, device and file is damaged."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.make_models import make_model
from tensorkeep.errors import Integrity
from tensorkeep.records.device import IDENTITY_NAME
from tensorkeep.store.reports import Problem
from tensorkeep.store.store import Store
from tests.faults.store_world import (
    MODEL,
    Arrays,
    World,
    assert_clean,
    assert_loads,
    flip,
    small_weights,
)

KINDS = ("parts", "manifests", "checks", "versions", "journal", IDENTITY_NAME)


class Stored(NamedTuple):
    """A file on a device."""

    device: str
    name: str
    path: Path

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]

    @property
    def key(self) -> str:
        """What all copies of an object share: the digest in its name, or the device that an identity or a journal is of."""
        if self.kind in ("journal", IDENTITY_NAME):
            return f"{self.device} {self.name}"
        return self.name.partition(".")[0]


class Flip(NamedTuple):
    """A byte to be changed."""

    stored: Stored
    offset: int
    mask: int

    def do(self) -> None:
        """Change the byte; a second time, change it back."""
        flip(self.stored.path, self.offset, self.mask)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    folder = make_model("tiny", tmp_path_factory.mktemp("models") / "tiny")
    world = World(tmp_path_factory.mktemp("plain"), devices=1, replicas=1)
    world.create().push(folder, MODEL)
    arrays = world.open().model(MODEL).load()
    world.close()
    return folder, arrays


@pytest.fixture(scope="module")
def two_copies(tiny: tuple[Path, Arrays], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from stored_world(World(tmp_path_factory.mktemp("two"), devices=3, replicas=2), tiny[0])


@pytest.fixture(scope="module")
def one_copy(tiny: tuple[Path, Arrays], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from stored_world(World(tmp_path_factory.mktemp("one"), devices=1, replicas=1), tiny[0])


def stored_world(world: World, source: Path) -> Iterator[World]:
    store = world.create()
    store.push(source, MODEL, tag="v1")
    assert_clean(store)
    yield world
    world.end()


def list_stored(world: World) -> list[Stored]:
    return [
        Stored(name, str(path.relative_to(world.place(name))), path)
        for name in world.names
        for path in world.files(name)
    ]


def choose_flips(world: World, count: int, seed: int) -> list[Flip]:
    """Return that many flips: at least 20 in every kind of object, the others in any object."""
    chance = random.Random(seed)
    stored = list_stored(world)
    by_kind = {kind: [each for each in stored if each.kind == kind] for kind in KINDS}
    assert all(by_kind.values())
    assert sum(map(len, by_kind.values())) == len(stored)
    chosen = [chance.choice(by_kind[kind]) for kind in KINDS for _ in range(20)]
    chosen += [chance.choice(stored) for _ in range(count - len(chosen))]
    chance.shuffle(chosen)
    return [Flip(each, chance.randrange(each.path.stat().st_size), chance.randrange(1, 256)) for each in chosen]


def names(problem: Problem, stored: Stored) -> bool:
    """Return whether a problem that was found names an object and its device."""
    kinds = {"journal": "journal", IDENTITY_NAME: "identity"}
    return (problem.kind, problem.object, problem.device) == (
        kinds.get(stored.kind, "corrupt"),
        stored.name,
        stored.device,
    )


def follows(problem: Problem) -> bool:
    """Return whether a problem only says what another one means: too few copies, or no whole copy of a journal entry."""
    return problem.kind == "short" or problem.object.startswith("entry ")


def find_all(world: World, flips: list[Flip]) -> None:
    """Assert that a verification by a process that starts now finds each of these flips, and nothing else."""
    with world.open() as store:
        problems = [problem for problem in store.verify().problems if not follows(problem)]
    world.close()
    for each in flips:
        assert any(names(problem, each.stored) for problem in problems), each
    assert len(problems) == len(flips), problems


def load_right(world: World, arrays: Arrays) -> None:
    with world.open() as store:
        assert_loads(store, MODEL, arrays)
    world.close()


def in_rounds(flips: list[Flip], size: int) -> Iterator[list[Flip]]:
    """Yield the flips in rounds of at most that many, no two of one round in the same object, be it in two copies."""
    left = flips
    while left:
        chosen: dict[str, Flip] = {}
        rest = []
        for each in left:
            if len(chosen) < size and each.stored.key not in chosen:
                chosen[each.stored.key] = each
            else:
                rest.append(each)
        left = rest
        yield list(chosen.values())


def test_with_two_copies_all_of_300_flips_are_found_and_every_load_is_right(
    two_copies: World, tiny: tuple[Path, Arrays]
) -> None:
    flip_in_two_copies(two_copies, tiny[1], count=300, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_with_two_copies_all_of_3000_flips_are_found_and_every_load_is_right(
    two_copies: World, tiny: tuple[Path, Arrays]
) -> None:
    flip_in_two_copies(two_copies, tiny[1], count=3000, seed=2)


def flip_in_two_copies(world: World, arrays: Arrays, *, count: int, seed: int) -> None:
    found = 0
    for flips in in_rounds(choose_flips(world, count, seed), 10):
        for each in flips:
            each.do()
        load_right(world, arrays)
        find_all(world, flips)
        load_right(world, arrays)  # also now that the catalog knows
        for each in flips:
            each.do()
        found += len(flips)
    assert found == count
    with world.open() as store:
        assert_clean(store)


def test_with_one_copy_all_of_300_flips_are_found_and_a_load_is_right_or_says_what_is_damaged(
    one_copy: World, tiny: tuple[Path, Arrays], tmp_path: Path
) -> None:
    flip_in_one_copy(one_copy, tiny[1], tmp_path, count=300, seed=3)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_with_one_copy_all_of_3000_flips_are_found_and_a_load_is_right_or_says_what_is_damaged(
    one_copy: World, tiny: tuple[Path, Arrays], tmp_path: Path
) -> None:
    flip_in_one_copy(one_copy, tiny[1], tmp_path, count=3000, seed=4)


def flip_in_one_copy(world: World, arrays: Arrays, folder: Path, *, count: int, seed: int) -> None:
    checks: dict[str, Callable[[World, Arrays, Stored, Path], None]] = {
        "parts": load_names_the_part,
        "checks": load_names_the_checks,
        # The catalog has the manifest too, and loads need neither records nor journal nor a whole identity.
        "manifests": load_is_right,
        "versions": load_is_right,
        "journal": load_is_right,
        IDENTITY_NAME: load_is_right,
    }
    for number, each in enumerate(choose_flips(world, count, seed)):
        each.do()
        checks[each.stored.kind](world, arrays, each.stored, folder / str(number))
        find_all(world, [each])
        each.do()
    with world.open() as store:
        assert_clean(store)
    load_right(world, arrays)


def load_is_right(world: World, arrays: Arrays, stored: Stored, folder: Path) -> None:
    load_right(world, arrays)


def load_names_the_part(world: World, arrays: Arrays, stored: Stored, folder: Path) -> None:
    digest = stored.name.partition(".")[0].rpartition("/")[2]
    with world.open() as store:
        model = store.model(MODEL)
        with pytest.raises(Integrity) as caught:
            load_and_pull(store, arrays, folder)
        part = next(p for p in range(len(model.manifest.parts)) if model._open_checks().digest(p).hex() == digest)
    files = [file.path for file in model.manifest.files if any(extent.part == part for extent in file.extents)]
    assert digest in str(caught.value)
    assert stored.device in str(caught.value)
    assert any(path in str(caught.value) for path in files)
    assert not any(path.is_file() for path in folder.rglob("*"))  # no file appears that is not whole
    world.close()


def load_and_pull(store: Store, arrays: Arrays, folder: Path) -> None:
    assert_loads(store, MODEL, arrays)
    store.pull(MODEL, folder)  # reads also what lies in no tensor, such as headers


def load_names_the_checks(world: World, arrays: Arrays, stored: Stored, folder: Path) -> None:
    with world.open() as store, pytest.raises(Integrity) as caught:
        store.model(MODEL).load()
    assert stored.name in str(caught.value)
    assert stored.device in str(caught.value)
    world.close()


def test_a_flip_is_seen_by_a_handle_that_has_loaded_and_verified_before(tmp_path: Path) -> None:
    world = World(tmp_path, devices=1, replicas=1)
    store = world.create()
    store.push(small_weights(0), MODEL)
    model = store.model(MODEL)
    model.load()
    assert_clean(store)
    for stored in list_stored(world):
        damage = Flip(stored, stored.path.stat().st_size // 2, 0x10)
        damage.do()
        assert any(names(problem, stored) for problem in store.verify().problems)
        if stored.kind == "parts":
            with pytest.raises(Integrity):
                store.pull(MODEL, tmp_path / "out")  # a load reads no headers
        damage.do()
        assert_clean(store)
    assert sorted(model.load()) == sorted(small_weights(0))
    world.close()


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "cut short": lambda path, _: write(path, path.read_bytes()[:-1]),
    "grown": lambda path, _: write(path, path.read_bytes() + b"\0"),
    "empty": lambda path, _: write(path, b""),
    "zeros": lambda path, _: write(path, bytes(path.stat().st_size)),
    "gone": lambda path, _: path.unlink(),
    "another object": lambda path, other: write(path, other.read_bytes()),
}


def write(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_other_damage_of_an_object_is_found_and_loads_are_right(damage: str, tmp_path: Path) -> None:
    world = World(tmp_path, devices=2, replicas=2)
    store = world.create()
    store.push(small_weights(0), MODEL, part_size=1 << 20)
    by_kind = {
        kind: [each for each in list_stored(world) if each.kind == kind and each.device == "d0"] for kind in KINDS
    }
    for kind, stored in by_kind.items():
        if kind == IDENTITY_NAME and damage == "another object":
            continue  # below
        victim = stored[0]
        other = stored[-1] if len(stored) > 1 else world.place("d0") / IDENTITY_NAME
        before = victim.path.read_bytes()
        DAMAGES[damage](victim.path, other if isinstance(other, Path) else other.path)
        fresh = world.open()
        assert_loads(fresh, MODEL, small_weights(0))
        problems = fresh.verify().problems
        assert any(victim.device == problem.device for problem in problems), (kind, problems)
        assert_loads(world.open(), MODEL, small_weights(0))
        if victim.path.exists():
            victim.path.unlink()
        victim.path.write_bytes(before)
        assert_clean(world.open())
    world.close()


def test_the_identity_of_the_other_device_is_no_identity(tmp_path: Path) -> None:
    world = World(tmp_path, devices=2, replicas=2)
    world.create().push(small_weights(0), MODEL)
    first, second = (world.place(name) / IDENTITY_NAME for name in world.names)
    write(first, second.read_bytes())
    problems = world.open().verify().problems
    assert any(problem.kind == "identity" and problem.device == "d0" for problem in problems)
    assert not any(problem.device == "d1" for problem in problems)
    assert_loads(world.open(), MODEL, small_weights(0))
    world.close()


def test_every_single_bit_of_an_identity_counts(tmp_path: Path) -> None:
    world = World(tmp_path, devices=1, replicas=1)
    world.create()
    path = world.place("d0") / IDENTITY_NAME
    store = world.open()
    for offset, bit in itertools.product(range(path.stat().st_size), range(8)):
        flip(path, offset, 1 << bit)
        store._context.fleet.recheck()
        assert not store._context.fleet.members()[0].writable, (offset, bit)
        flip(path, offset, 1 << bit)
    store._context.fleet.recheck()
    assert store._context.fleet.members()[0].writable
    world.close()
