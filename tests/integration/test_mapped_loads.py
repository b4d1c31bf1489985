"""Loads that lie over files: the same bits as in memory of their own, verified, healed, private, and gone with their arrays."""

import errno
import gc
import io
import os
import pickle
import random
import re
import resource
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tensorkeep
from tensorkeep import Integrity
from tensorkeep.devices.local_reading import _OpenFile
from tensorkeep.devices.system_calls import SystemCalls
from tensorkeep.records.layout import BLOCK_BYTES
from tensorkeep.store import reading
from tensorkeep.store.loading import Mode
from tensorkeep.transfer import kept_files, mapped_tensors
from tensorkeep.transfer.device_queue import readers_per_device
from tensorkeep.transfer.image import ScratchPool
from tensorkeep.transfer.mapping import MappedRange
from tensorkeep.transfer.memory import HUGE_PAGE_BYTES
from tensorkeep.transfer.report import Verify
from tests.faults.store_world import MIB, MODEL, Arrays, World, flip

SPLITS = ("tensor", "layer", "size", "parts=5", "auto")


def weights(seed: int = 0) -> Arrays:
    """Return tensors of all kinds of places: longer than a part, in packs, of odd lengths, without bytes."""
    chance = np.random.default_rng(seed)
    return {
        "embed": chance.standard_normal((2600, 1000), np.float32),
        **{f"layers.{n}.w": chance.standard_normal((600, 1024), np.float32) for n in range(3)},
        **{f"layers.{n}.norm": chance.standard_normal(333, np.float32) for n in range(3)},
        "bytes": chance.integers(0, 256, 3 * MIB + 17, np.uint8),
        "one": np.array(7, np.int64),
        "none": np.empty((0, 5), np.float16),
    }


@pytest.fixture(params=["one copy", "two copies"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    copies = 1 if request.param == "one copy" else 2
    return World(tmp_path / "world", devices=3, replicas=copies)


def push(world: World, split: str = "tensor") -> Arrays:
    arrays = weights()
    world.create().push(arrays, MODEL, split=split, part_size=4 * MIB if split != "parts=5" else None)
    return arrays


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("verify", ["blocks", "digest", "off"])
def test_mapped_and_read_loads_agree_bit_for_bit(world: World, split: str, verify: Verify) -> None:
    arrays = push(world, split)
    model = world.open().model(MODEL)
    assert_equal(model.load(verify=verify), arrays)
    report = model.report
    assert report is not None
    if verify == "digest":
        assert report.mapped_bytes == 0
    else:
        least = 1 if split == "parts=5" else report.bytes_needed // 2  # these cut at any byte
        assert report.mapped_bytes >= least
        assert report.mapped_bytes + sum(report.unmapped_bytes.values()) == report.bytes_needed
    assert_equal(model.load(verify=verify, mode="read"), arrays)
    assert model.report is not None
    assert model.report.mapped_bytes == 0


def test_a_tensor_over_several_devices_is_one_array_without_a_copy(world: World) -> None:
    arrays = push(world)
    model = world.open().model(MODEL)
    array = model.load(include="embed")["embed"]
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.tobytes() == arrays["embed"].tobytes()
    assert model.report is not None
    assert len(model.report.devices) > 1
    assert model.report.mapped_bytes == array.nbytes
    files = {line.split()[-1] for line in Path("/proc/self/maps").read_text("utf-8").splitlines() if "/parts/" in line}
    assert len(files) >= 3


@pytest.mark.parametrize("size", [64 * MIB, pytest.param(1 << 30, marks=pytest.mark.soak)])
def test_a_large_tensor_over_four_devices_is_one_array(size: int, tmp_path: Path) -> None:
    world = World(tmp_path / "world", devices=4, replicas=1)
    array = np.random.default_rng(4).integers(0, 1 << 62, (size // 8192, 1024), np.int64)
    world.create().push({"big": array}, MODEL)
    model = world.open().model(MODEL)
    for mode in ("auto", "read"):
        found = model.load(mode=mode)["big"]
        assert found.flags.c_contiguous
        assert np.array_equal(found, array)
        report = model.report
        assert report is not None
        assert len(report.devices) == 4
        assert min(device.bytes for device in report.devices) > 0.9 * size / 4
        assert report.mapped_bytes == (size if mode == "auto" else 0)
    world.end()


def test_what_was_verified_is_there_without_a_fault(world: World) -> None:
    arrays = push(world)
    array = world.open().model(MODEL).load(include="embed")["embed"]
    here = sum(size for size, laid in mapped_bytes() if laid >= HUGE_PAGE_BYTES)
    assert here >= array.nbytes // 2  # what lies in long runs, untouched until now
    assert array.tobytes() == arrays["embed"].tobytes()
    lazy = world.open().model(MODEL).load(include="embed", verify="off")["embed"]
    assert sum(size for size, _ in mapped_bytes()) < 2 * array.nbytes - MIB
    assert lazy.tobytes() == arrays["embed"].tobytes()


def mapped_bytes() -> list[tuple[int, int]]:
    """Return bytes that are here, and bytes that were laid, of each mapping of a part. Source: proc(5), smaps."""
    text = Path("/proc/self/smaps").read_text("utf-8")
    found = []
    for each in text.split("VmFlags"):
        if "/parts/" in each:
            rss, size = (int(re.findall(rf"\n{key}: +(\d+) kB", each)[0]) * 1024 for key in ("Rss", "Size"))
            found.append((rss, size))
    return found


def after_laying(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Have something done once files are laid, and before they are verified."""
    lay_all = mapped_tensors._lay_all

    def lay_and_act(*words: Any) -> Any:
        laid = lay_all(*words)
        action()
        return laid

    monkeypatch.setattr(mapped_tensors, "_lay_all", lay_and_act)


def keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no file stay open until it is verified: as where descriptors run out."""
    monkeypatch.setattr(kept_files.KeptFiles, "keep", lambda *words: None)


def no_leases(system: SystemCalls, descriptor: int) -> None:
    """Refuse, as the kernel does where the file is another user's."""
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def test_where_a_file_can_not_be_held_it_is_read_to_be_checked_two_mebibytes_a_thread(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = push(world)
    monkeypatch.setattr(SystemCalls, "keep_length", no_leases)
    taken, in_use, most = list[int](), 0, 0
    lock, take, give = threading.Lock(), ScratchPool.take, ScratchPool.give

    def counting_take(pool: ScratchPool, size_bytes: int) -> memoryview:
        nonlocal in_use, most
        buffer = take(pool, size_bytes)
        with lock:
            taken.append(size_bytes)
            in_use += len(buffer)
            most = max(most, in_use)
        return buffer

    def counting_give(pool: ScratchPool, buffer: memoryview) -> None:
        nonlocal in_use
        with lock:
            in_use -= len(buffer)
        give(pool, buffer)

    monkeypatch.setattr(ScratchPool, "take", counting_take)
    monkeypatch.setattr(ScratchPool, "give", counting_give)
    model = world.open().model(MODEL)
    assert_equal(model.load(include="embed"), {"embed": arrays["embed"]})
    assert model.report is not None
    assert model.report.bytes_read > 9 * MIB
    assert max(taken) == 2 * MIB
    assert most <= 3 * readers_per_device(3, os.cpu_count() or 1) * 2 * MIB
    assert in_use == 0


def test_what_lies_over_files_is_checked_where_it_lies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = push(world)
    read = list[int]()
    preadv = SystemCalls.preadv

    def counting(system: SystemCalls, descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        read.append(sum(map(len, views)))
        return preadv(system, descriptor, views, offset)

    monkeypatch.setattr(SystemCalls, "preadv", counting)
    model = world.open().model(MODEL)
    assert_equal(model.load(), arrays)
    assert model.report is not None
    assert model.report.bytes_read >= model.report.mapped_bytes > 9 * MIB
    assert sum(read) <= model.report.bytes_needed - model.report.mapped_bytes + 8 * BLOCK_BYTES


def wait_until_somebody_waits_for(path: Path) -> None:
    """Return when somebody waits for the lease on a file to be given back. Source: proc_locks(5)."""
    inode, until = f":{path.stat().st_ino}", time.monotonic() + 10
    while not any(
        "BREAKING" in line and line.split()[5].endswith(inode) for line in Path("/proc/locks").read_text().splitlines()
    ):
        assert time.monotonic() < until, "nobody waits for the lease"
        time.sleep(0.01)


def test_who_would_cut_a_file_waits_until_it_is_checked_and_so_that_is_no_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(world)
    places = {each.facts.id: world.place(each.facts.name) for each in world.open().devices.list()}
    look = mapped_tensors.MappedTensors.look
    cutting = list[threading.Thread]()

    def look_while_it_is_cut(mapped: mapped_tensors.MappedTensors, part: int, *run: int) -> memoryview | None:
        found = look(mapped, part, *run)
        if not cutting and found is not None:
            copy = mapped.sources[part]
            path = places[copy.device] / copy.name
            cutting.append(threading.Thread(target=damage_by_truncation, args=[path], daemon=True))
            cutting[0].start()
            # Who is not kept waiting has cut it, and whoever reads it now is killed.
            wait_until_somebody_waits_for(path)
        return found

    monkeypatch.setattr(mapped_tensors.MappedTensors, "look", look_while_it_is_cut)
    model = world.open().model(MODEL)
    with suppress(Integrity):  # as the file may be checked in several runs, and be cut between them
        model.load()
    assert cutting
    cutting[0].join(10)
    assert not cutting[0].is_alive()


def test_what_is_written_to_an_array_stays_in_this_process(world: World) -> None:
    arrays = push(world)
    store = world.open()
    first = store.model(MODEL).load()
    for array in first.values():
        array[...] = 1
    assert_equal(store.model(MODEL).load(), arrays)
    assert store.verify(MODEL).ok


def test_one_tensor_under_two_names_is_two_arrays(world: World) -> None:
    arrays = push(world)
    name = "layers.0.w"
    path = world.open().model(MODEL).files[0].path
    both = world.open().model(MODEL).load(include=[name, f"{path}::{name}"])
    both[name][...] = 0
    assert both[f"{path}::{name}"].tobytes() == arrays[name].tobytes()


def test_mappings_are_counted_before_the_first_and_again_once_some_were_granted() -> None:
    counted = [700]
    room = mapped_tensors.MappingRoom(count=lambda: counted[0], most=lambda: 5000)
    assert [room.ask(500), room.ask(500)] == [500, 500]
    counted[0] = 2400  # others made some too
    assert room.ask(200) == 100
    counted[0] = 2600
    assert room.ask(1) == 0
    counted[0] = 600  # and gave them back
    assert room.ask(2000) == 1900


def test_where_mappings_run_out_or_are_refused_the_rest_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = push(world)
    model = world.open().model(MODEL)
    monkeypatch.setattr(mapped_tensors, "_room", mapped_tensors.MappingRoom(count=lambda: 100, most=lambda: 220))
    assert_equal(model.load(), arrays)
    assert model.report is not None
    assert 0 < model.report.mapped_bytes < model.report.bytes_needed
    assert set(model.report.unmapped_bytes) == {"too many"}
    monkeypatch.undo()

    def refuse(size_bytes: int) -> MappedRange:
        if size_bytes:
            raise OSError(12, "no")
        return MappedRange(0)

    monkeypatch.setattr(mapped_tensors, "MappedRange", refuse)
    assert_equal(model.load(), arrays)
    assert model.report.mapped_bytes == 0
    assert set(model.report.unmapped_bytes) == {"refused"}


def part_files(world: World) -> list[Path]:
    return sorted(path for name in world.names for path in world.files(name) if "/parts/" in str(path))


def damage_by_flip(path: Path) -> None:
    flip(path, path.stat().st_size // 2, 1)


def damage_by_truncation(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [damage_by_flip, damage_by_truncation, Path.unlink])
@pytest.mark.parametrize("verify", ["blocks", "digest"])
def test_a_damaged_copy_is_replaced_in_the_same_load_or_the_load_fails(
    world: World, verify: Verify, damage: Callable[[Path], None]
) -> None:
    arrays = push(world)
    victims = [max(part_files(world), key=lambda path: path.stat().st_size), part_files(world)[0]]
    for path in set(victims):
        damage(path)
    model = world.open().model(MODEL)
    if world.replicas == 1:
        with pytest.raises(tensorkeep.TensorkeepError) as raised:
            model.load(verify=verify)
        assert isinstance(raised.value, tensorkeep.NotEnoughCopies if damage is Path.unlink else Integrity)
        return
    assert_equal(model.load(verify=verify), arrays)


@pytest.mark.parametrize("harm", ["gone", "cut", "away"])
def test_a_copy_that_can_not_be_laid_is_told_though_another_serves_the_load(tmp_path: Path, harm: str) -> None:
    world = World(tmp_path / "world", devices=2, replicas=2)
    arrays = push(world)
    if harm == "away":
        store = world.open()
        store.model(MODEL).load()  # the disk is known to be there
        world.place("d0").rename(tmp_path / "aside")
    else:
        store = world.open()
        for path in (world.place("d0") / "parts").rglob("*.*"):
            path.chmod(0o644)
            path.unlink() if harm == "gone" else os.truncate(path, path.stat().st_size // 2)
    model = store.model(MODEL)
    assert_equal(model.load(), arrays)
    assert model.report is not None
    kinds = {(damage.device_name, damage.kind) for damage in model.report.damaged}
    assert kinds == {("d0", {"gone": "missing", "cut": "corrupt", "away": "unreachable"}[harm])}
    if harm != "away":
        assert store.devices.list()[0].bad_objects > 0, "whoever repairs knows"


def test_each_copy_that_is_chosen_to_be_laid_and_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "world", devices=2, replicas=2)
    arrays = push(world)
    chosen: dict[str, str] = {}

    def look(*args: Any, **words: Any) -> mapped_tensors.MappedTensors:
        found = mapped_tensors.map_tensors(*args, **words)
        chosen.update((source.name, args[2].names[source.device]) for source in found.sources.values())
        return found

    with monkeypatch.context() as patched:
        patched.setattr(reading, "map_tensors", look)
        world.open().model(MODEL).load()
    assert set(chosen.values()) == {"d0", "d1"}
    for name, device in chosen.items():
        path = world.place(device) / name
        path.rename(tmp_path / "aside")
        model = world.open().model(MODEL)
        assert_equal(model.load(), arrays)
        assert model.report is not None
        assert [(damage.device_name, damage.kind) for damage in model.report.damaged] == [(device, "missing")], name
        (tmp_path / "aside").rename(path)
        world.open().verify()  # which finds that it is back


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.soak)])
def test_of_300_flips_none_passes_mapped_or_read(
    count: int, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not held:
        monkeypatch.setattr(SystemCalls, "keep_length", no_leases)
    world = World(tmp_path / "world", devices=3, replicas=2)
    arrays = push(world)
    chance = random.Random(1)
    files = part_files(world)
    found = 0
    for number in range(count):
        path = chance.choice(files)
        at, mask = chance.randrange(path.stat().st_size), chance.randrange(1, 256)
        flip(path, at, mask)
        model = world.open().model(MODEL)
        assert_equal(model.load(mode="auto" if number % 2 else "read"), arrays)
        found += bool(model.report and model.report.damaged)
        flip(path, at, mask)
        world.close()
        with world.open() as store:  # what was noted of the copy is put right
            store.verify(MODEL)
    assert found  # a flip in a copy that was not chosen, or between tensors, harms nobody


def test_a_device_that_goes_away_between_mapping_and_verifying_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "world", devices=3, replicas=2)
    arrays = push(world)

    def lose() -> None:
        for path in world.files("d0"):
            if "/parts/" in str(path):
                damage_by_truncation(path)

    keep_nothing(monkeypatch)
    after_laying(monkeypatch, lose)
    model = world.open().model(MODEL)
    assert_equal(model.load(), arrays)
    assert model.report is not None
    assert {damage.device_name for damage in model.report.damaged} == {"d0"}


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("harm", [damage_by_flip, damage_by_truncation])
def test_a_file_that_takes_the_name_of_a_mapped_one_does_not_speak_for_it(
    world: World, harm: Callable[[Path], None], held: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arrays = push(world)
    path = max(part_files(world), key=lambda each: each.stat().st_size)
    good = tmp_path / "good"
    shutil.copyfile(path, good)
    old = path.open("rb")

    def replace_it() -> None:
        if good.exists():
            harm(path)
            os.replace(good, path)  # as whoever repairs it might

    keep_nothing(monkeypatch)
    if not held:
        monkeypatch.setattr(SystemCalls, "keep_length", no_leases)
    after_laying(monkeypatch, replace_it)
    with old:
        assert_equal(world.open().model(MODEL).load(), arrays)


def test_what_is_laid_stays_open_until_it_is_verified_whatever_takes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "world", devices=1, replicas=1)
    arrays = push(world)
    replaced = []

    def replace_all() -> None:
        for path in part_files(world):
            replaced.append(path)
            bad = tmp_path / "bad"
            bad.write_bytes(bytes(path.stat().st_size))
            os.replace(bad, path)

    after_laying(monkeypatch, replace_all)
    model = world.open().model(MODEL)
    assert_equal(model.load(), arrays)
    assert replaced
    assert model.report is not None
    assert not model.report.damaged
    assert kept_files._descriptors._taken == 0


def test_with_few_descriptors_the_other_files_are_opened_again_and_flips_in_all_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "world", devices=1, replicas=1)
    arrays = push(world)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = -(-max(map(int, os.listdir("/proc/self/fd"))) // 4) * 4 + 64
    asked, file_identity = Counter[str](), _OpenFile.file_identity

    def count_and_tell(opened: _OpenFile) -> Any:
        asked[opened._name] += 1
        return file_identity(opened)

    monkeypatch.setattr(kept_files._descriptors, "_taken", most // 4 - 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        monkeypatch.setattr(_OpenFile, "file_identity", count_and_tell)
        assert_equal(world.open().model(MODEL).load(), arrays)
        parts = list(part_files(world))
        assert len(parts) == len(asked) > 2
        assert sorted(asked.values())[:2] == [1, 1], "laid, and verified as they were"
        assert all(times > 1 for times in sorted(asked.values())[2:])
        for path in parts:
            flip(path, path.stat().st_size // 2, 2)
            with pytest.raises(Integrity):
                world.open().model(MODEL).load()
            flip(path, path.stat().st_size // 2, 2)
            world.close()
            with world.open() as store:
                store.verify(MODEL)
        assert kept_files._descriptors._taken == most // 4 - 2, "all are given back, also where a load fails"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("held", [True, False])
def test_flips_in_any_block_of_a_mapped_part_are_found(
    held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not held:
        monkeypatch.setattr(SystemCalls, "keep_length", no_leases)
    world = World(tmp_path / "world", devices=1, replicas=1)
    arrays = push(world)
    path = max(part_files(world), key=lambda each: each.stat().st_size)
    for block in range(0, path.stat().st_size, BLOCK_BYTES):
        flip(path, block + 5, 2)
        with pytest.raises(Integrity):
            world.open().model(MODEL).load()
        flip(path, block + 5, 2)
        world.close()
        with world.open() as store:
            store.verify(MODEL)
    assert_equal(world.open().model(MODEL).load(), arrays)


@pytest.mark.parametrize("mode", ["auto", "read"])
@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.soak)])
def test_many_loads_leave_no_mapping_and_no_descriptor_behind(count: int, mode: Mode, tmp_path: Path) -> None:
    world = World(tmp_path / "world", devices=2, replicas=1)
    world.create().push({"a": np.arange(5000.0), "b": np.arange(700_000.0)}, MODEL)
    model = world.open().model(MODEL)
    model.load(mode=mode)
    gc.collect()

    def counts() -> tuple[int, int]:
        return (
            sum("/parts/" in line for line in Path("/proc/self/maps").read_text("utf-8").splitlines()),
            len(os.listdir("/proc/self/fd")),
        )

    before = counts()
    for _ in range(count):
        model.load(mode=mode)
    assert counts() == before


def test_torch_tensors_over_files_behave(world: World) -> None:
    arrays = push(world)
    model = world.open().model(MODEL)
    tensors = model.load(framework="torch")
    assert model.report is not None
    assert model.report.mapped_bytes > model.report.bytes_needed // 2
    name = "layers.1.w"
    tensor = tensors[name]
    assert torch.equal(tensor, torch.from_numpy(arrays[name]))
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    assert buffer.tell() < tensor.nbytes + 10_000  # its own bytes only
    assert pickle.loads(pickle.dumps(arrays[name])).tobytes() == tensor.numpy().tobytes()
    tensor.requires_grad_()
    optimizer = torch.optim.SGD([tensor], lr=0.5)
    tensor.sum().backward()
    optimizer.step()
    assert torch.equal(tensor.detach(), torch.from_numpy(arrays[name]) - 0.5)
    assert_equal(world.open().model(MODEL).load(include=name), {name: arrays[name]})


def test_a_fork_sees_the_arrays_and_changes_only_its_own(world: World) -> None:
    arrays = push(world)
    array = world.open().model(MODEL).load(include="layers.0.w")["layers.0.w"]
    child = os.fork()
    if child == 0:
        good = array.tobytes() == arrays["layers.0.w"].tobytes()
        array[...] = 0
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert array.tobytes() == arrays["layers.0.w"].tobytes()


def test_a_device_with_a_limited_rate_is_read(tmp_path: Path) -> None:
    arrays = weights()
    with tensorkeep.init(tmp_path / "store") as store:
        store.devices.add("slow", str(tmp_path / "slow"), bandwidth=1 << 30, rate_limit=1 << 30)
        store.push(arrays, MODEL)
        model = store.model(MODEL)
        assert_equal(model.load(), arrays)
    assert model.report is not None
    assert model.report.mapped_bytes == 0
    assert model.report.unmapped_bytes == {"elsewhere": sum(array.nbytes for array in arrays.values())}
