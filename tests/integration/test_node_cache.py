"""The node's cache: parts of remote models come to a machine once, and no byte of it is believed.

A device whose rate is limited is never mapped, so that it stands for one across a network here.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tensorkeep
from tensorkeep import InvalidInput, Shard, Store
from tensorkeep.devices import LocalDevice
from tensorkeep.runtime import Runtime
from tensorkeep.store.cached_parts import NODE_CACHE
from tensorkeep.store.node_cache import CachedPart, Claim, NodeCache
from tensorkeep.store.node_config import VARIABLE, NodeConfig, read_node_config
from tensorkeep.store.reports import Progress
from tensorkeep.transfer.report import LoadReport
from tests.faults.store_world import known_places

MIB = 1 << 20
MODEL = "acme/far"
Arrays = dict[str, npt.NDArray[np.float32]]

_LOADER = """
import json, sys, tensorkeep
store, out = sys.argv[1:]
with tensorkeep.open(store) as opened:
    model = opened.model("acme/far")
    print("opened", flush=True)
    sys.stdin.readline()
    arrays = model.load()
    total = sum(float(array.sum(dtype="f8")) for array in arrays.values())
    read = {device.name: device.bytes for device in model.report.devices}
    print(json.dumps({"sum": total, "read": read}), flush=True)
"""


def weights() -> Arrays:
    chance = np.random.default_rng(5)
    return {f"layers.{n}.w": chance.standard_normal((512, 1024), np.float32) for n in range(12)}


SIZE = 12 * 2 * MIB


class Machine:
    """A store with one far device, and this machine's configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.config = folder / "node.toml"
        self.store = folder / "store"

    def configure(self, limit_bytes: int | None = None) -> None:
        """Have the configuration name the cache."""
        limit = "" if limit_bytes is None else f"limit_bytes = {limit_bytes}\n"
        self.config.write_text(f'[cache]\nfolder = "{self.cache}"\n{limit}')

    def open(self) -> Store:
        """Open the store as a process that starts now."""
        return tensorkeep.open(self.store)

    def files(self) -> list[Path]:
        """Return the cached parts."""
        return sorted(path for path in self.cache.glob("parts/*/*"))

    def load(self, **options: object) -> LoadReport:
        """Load, check every value, and return the report."""
        with self.open() as store:
            model = store.model(MODEL)
            assert_right(model.load(**options))  # type: ignore[arg-type]
            assert model.report is not None
            return model.report

    def start(self) -> "subprocess.Popen[str]":
        """Start a process that waits for a line before it loads."""
        process = subprocess.Popen(
            [sys.executable, "-c", _LOADER, str(self.store), ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "opened\n"
        return process


def let_load(process: "subprocess.Popen[str]") -> None:
    """Have a process of `Machine.start` begin its load."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def assert_right(arrays: object) -> None:
    assert isinstance(arrays, dict)
    expected = weights()
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def bytes_read(report: LoadReport) -> dict[str, int]:
    return {device.name: device.bytes for device in report.devices}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Machine:
    rate = getattr(request, "param", 10**10)
    machine = Machine(tmp_path)
    machine.configure()
    with tensorkeep.init(machine.store) as store:
        with known_places():  # to ask it what it can do takes as long as its rate makes it
            store.devices.add("far", str(tmp_path / "far"), rate_limit=rate)
        store.push(weights(), MODEL, part_size=MIB)
    monkeypatch.setenv(VARIABLE, str(machine.config))
    return machine


def test_a_first_load_fills_the_cache_and_a_second_maps_it(machine: Machine) -> None:
    first = machine.load()
    assert bytes_read(first)["far"] >= SIZE
    assert first.bytes_needed == SIZE
    assert sum(path.stat().st_size for path in machine.files()) >= SIZE
    assert not list((machine.cache / "tmp").iterdir())
    second = machine.load()
    assert set(bytes_read(second)) == {"node cache"}
    assert (second.mapped_bytes, second.bytes_needed, second.damaged) == (SIZE, SIZE, ())


def test_without_a_configuration_nothing_is_cached(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert set(bytes_read(machine.load())) == {"far"}
    assert not machine.cache.exists()


def test_parts_on_disks_of_this_machine_are_not_cached(machine: Machine) -> None:
    with machine.open() as store:
        store.devices.add("near", str(machine.folder / "near"), bandwidth=10**9)
        store.push(weights(), "acme/near", replicas=2, part_size=MIB)
        model = store.model("acme/near")
        assert_right(model.load())
        assert model.report is not None
        assert set(bytes_read(model.report)) == {"near"}
        assert model.prefetch().local_bytes >= SIZE
    assert not machine.files()


@pytest.mark.parametrize("mode", ["auto", "read"])
@pytest.mark.parametrize("harm", ["flip", "cut", "longer", "gone"])
def test_a_damaged_cached_part_is_replaced_in_the_same_load_and_removed(machine: Machine, mode: str, harm: str) -> None:
    machine.load()
    victims = machine.files()[3:6]
    for path in victims:
        data = bytearray(path.read_bytes())
        path.chmod(0o644)
        if harm == "gone":
            path.unlink()
        elif harm == "flip":
            data[len(data) // 2] ^= 0x10
            path.write_bytes(data)
        else:
            path.write_bytes(data[:-1] if harm == "cut" else data + b"x")
    report = machine.load(mode=mode)
    assert 0 < bytes_read(report)["far"] < SIZE // 2
    if harm == "flip":
        assert {damage.device for damage in report.damaged} == {NODE_CACHE}
        assert not any(path.exists() for path in victims)
    with machine.open() as store:
        assert store.verify().ok, "nothing of this concerns the store"
    machine.load(mode=mode)
    assert set(bytes_read(machine.load(mode=mode))) == {"node cache"}


def test_the_cache_stays_under_its_limit_and_loses_what_was_used_longest_ago(machine: Machine) -> None:
    limit = SIZE // 2
    machine.configure(limit)
    for _ in range(2):
        report = machine.load()
        assert bytes_read(report)["far"] > 0
        assert sum(path.stat().st_size for path in machine.files()) <= limit
    machine.configure(SIZE + 4 * MIB)
    machine.load()
    old = set(machine.files())
    for path in old:
        os.utime(path, (1, 1))
    with machine.open() as store:
        other = {name: array + 1 for name, array in list(weights().items())[:4]}
        store.push(other, "acme/other", part_size=MIB)
        store.model("acme/other").load()
    assert 0 < len(old & set(machine.files())) < len(old)
    assert sum(path.stat().st_size for path in machine.files()) <= SIZE + 4 * MIB
    assert bytes_read(machine.load())["far"] > 0


def test_what_was_used_lately_is_kept(machine: Machine) -> None:
    machine.load()
    for path in machine.files():
        os.utime(path, (1, 1))
    with machine.open() as store:
        store.model(MODEL).load(include="layers.3.w")
    fresh = {path for path in machine.files() if path.stat().st_mtime > 1}
    assert 2 <= len(fresh) <= 4
    machine.configure(SIZE)
    with machine.open() as store:
        other = {name: array + 1 for name, array in list(weights().items())[:6]}
        store.push(other, "acme/other", part_size=MIB)
        store.model("acme/other").load()
    assert fresh <= set(machine.files())


def test_a_mapped_array_outlives_its_removal_from_the_cache(machine: Machine) -> None:
    machine.load()
    with machine.open() as store:
        arrays = store.model(MODEL).load()
        for path in machine.files():
            path.unlink()
        assert_right(arrays)


def test_a_load_that_fills_the_cache_tells_how_far_it_is(machine: Machine) -> None:
    told: list[Progress] = []
    with machine.open() as store:
        store.model(MODEL).load(progress=told.append)
        filled = sum(path.stat().st_size for path in machine.files())
        steps = list(dict.fromkeys(each.step for each in told))
        last = {each.step: each for each in told}
        assert steps == ["prefetch", "load"]
        assert (last["prefetch"].done_bytes, last["prefetch"].total_bytes) == (filled, filled)
        assert last["load"].done_bytes == last["load"].total_bytes == SIZE
        told.clear()
        store.model(MODEL).load(progress=told.append)
        assert {each.step for each in told} == {"load"}


@pytest.mark.parametrize("machine", [40 * MIB], indirect=True)
def test_the_seconds_of_a_load_have_its_waiting_for_others_that_fetch(machine: Machine) -> None:
    process = machine.start()
    let_load(process)
    end = time.monotonic() + 60
    while not list(machine.cache.glob("tmp/*")) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # it holds what it was fetching
    threading.Timer(3, process.send_signal, [signal.SIGCONT]).start()
    with machine.open() as store:
        model = store.model(MODEL)
        began = time.monotonic()
        model.load()
        took = time.monotonic() - began
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert took > 2
    assert model.report is not None
    assert model.report.seconds > 0.8 * took


def test_processes_that_load_at_once_fetch_each_byte_once(machine: Machine) -> None:
    processes = [machine.start() for _ in range(4)]
    for process in processes:
        let_load(process)
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    expected = sum(float(array.sum(dtype="f8")) for array in weights().values())
    assert [answer["sum"] for answer in answers] == pytest.approx([expected] * 4)
    far = sum(answer["read"].get("far", 0) for answer in answers)
    assert far == sum(path.stat().st_size for path in machine.files())
    assert not list((machine.cache / "tmp").iterdir())


def test_ranks_of_one_machine_fetch_each_byte_once(machine: Machine) -> None:
    far = 0
    for rank in range(8):
        with machine.open() as store:
            model = store.model(MODEL)
            arrays = model.load(shard=Shard(tensor_parallel=(rank, 8), rules={"*": 1}, preset=False))
            for name, array in weights().items():
                np.testing.assert_array_equal(arrays[name], array[:, rank * 128 : (rank + 1) * 128])
            assert model.report is not None
            far += bytes_read(model.report).get("far", 0)
    assert far == sum(path.stat().st_size for path in machine.files())


@pytest.mark.parametrize("machine", [6 * MIB], indirect=True)
def test_a_process_that_is_killed_in_mid_fetch_leaves_nothing_that_stays(machine: Machine) -> None:
    process = machine.start()
    let_load(process)
    end = time.monotonic() + 60
    while len(machine.files()) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = list((machine.cache / "tmp").iterdir())
    assert left, "it was killed too late"
    whole = {path: path.stat().st_mtime_ns for path in machine.files()}
    report = machine.load()
    assert 0 < bytes_read(report)["far"] < SIZE, "what was whole is not fetched again"
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert not list((machine.cache / "tmp").iterdir())
    assert set(bytes_read(machine.load())) == {"node cache"}


def test_an_unfinished_file_of_a_process_that_is_gone_makes_room(machine: Machine) -> None:
    machine.load()
    orphan = machine.cache / "tmp" / ("0" * 64)
    orphan.write_bytes(bytes(SIZE))
    machine.files()[0].unlink()
    machine.configure(2 * SIZE)
    machine.load()
    assert not orphan.exists()
    assert set(bytes_read(machine.load())) == {"node cache"}


def test_a_folder_that_can_not_be_used_is_no_harm_to_a_load_and_an_error_of_a_prefetch(machine: Machine) -> None:
    machine.cache.write_text("a file")
    assert set(bytes_read(machine.load())) == {"far"}
    with machine.open() as store, pytest.raises(tensorkeep.TensorkeepError):
        store.model(MODEL).prefetch()


@pytest.mark.parametrize("verify", ["digest", "off"])
def test_what_is_not_verified_is_not_taken_from_the_cache(machine: Machine, verify: str) -> None:
    machine.load()
    path = machine.files()[4]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    report = machine.load(verify=verify)
    assert ("node cache" in bytes_read(report)) == (verify == "digest")
    assert path.exists() == (verify == "off")


def test_streams_fill_the_cache_and_slices_read_it(machine: Machine) -> None:
    with machine.open() as store:
        model = store.model(MODEL)
        row = model["layers.2.w"][7:9]
        np.testing.assert_array_equal(row, weights()["layers.2.w"][7:9])
        assert not machine.files(), "a slice fills nothing"
        assert_right(dict(model.stream()))
        assert model.report is not None
        assert model.report.bytes_needed == SIZE
        assert_right(dict(model.stream()))
        assert set(bytes_read(model.report)) == {"node cache"}
        np.testing.assert_array_equal(model["layers.2.w"][7:9], row)
        assert set(bytes_read(model.report)) == {"node cache"}


def test_a_prefetch_says_what_it_did_and_loads_need_the_device_no_more(machine: Machine) -> None:
    with machine.open() as store:
        model = store.model(MODEL)
        first = model.prefetch(include="layers.[0-3].w")
        assert (first.cached_bytes, first.local_bytes, first.left_out_bytes) == (8 * MIB, 0, 0)
        assert bytes_read(first.load) == {"far": 8 * MIB}
        whole = model.prefetch()
        assert whole.cached_bytes == SIZE
        assert bytes_read(whole.load) == {"far": SIZE - 8 * MIB}
        assert bytes_read(model.prefetch().load) == {}
        plan = model.plan_load()
        assert {device.name for device in plan.devices} == {"node cache"}
    assert set(bytes_read(machine.load())) == {"node cache"}
    machine.configure(5 * MIB)
    with machine.open() as store:
        limited = store.model(MODEL).prefetch()
        assert limited.left_out_bytes == 0, "what is there is not thrown away"


def test_a_prefetch_into_too_small_a_cache_says_what_found_no_room(machine: Machine) -> None:
    machine.configure(5 * MIB)
    with machine.open() as store:
        report = store.model(MODEL).prefetch()
    assert 0 < report.cached_bytes <= 5 * MIB
    assert report.cached_bytes + report.left_out_bytes == SIZE


def test_a_prefetch_needs_a_cache(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    with machine.open() as store, pytest.raises(InvalidInput, match=r"node\.toml"):
        store.model(MODEL).prefetch()


@pytest.mark.parametrize("machine", [6 * MIB], indirect=True)
def test_a_deadline_counts_the_wait_for_other_processes(machine: Machine) -> None:
    process = machine.start()
    let_load(process)
    try:
        end = time.monotonic() + 60
        while not list(machine.cache.glob("tmp/*")) and time.monotonic() < end:
            time.sleep(0.01)
        began = time.monotonic()
        with machine.open() as store, pytest.raises(tensorkeep.Unavailable, match="deadline"):
            store.model(MODEL).load(deadline_s=1.0)
        assert time.monotonic() - began < 6
    finally:
        process.kill()
        process.communicate()


def test_a_cache_whose_disk_hangs_is_left_for_the_devices_and_asked_last_from_then_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.load()
    go_on = threading.Event()
    reading = LocalDevice.read_into

    def hang(device: LocalDevice, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        if device.url == machine.cache.as_uri():
            go_on.wait(60)
        reading(device, name, offset, buffers)

    monkeypatch.setattr(LocalDevice, "read_into", hang)
    try:
        for _ in range(2):
            began = time.monotonic()
            machine.load(mode="read")
            assert time.monotonic() - began < 15, "one read after the other was waited for"
    finally:
        go_on.set()


def test_a_child_that_was_forked_meanwhile_holds_no_lock(machine: Machine) -> None:
    cache = NodeCache(machine.cache, None, Runtime())
    wanted = [CachedPart(bytes([number]) * 32, 1000) for number in range(3)]
    children: list[subprocess.Popen[bytes]] = []

    def wait_for_lock() -> bool:
        return False

    real = NodeCache._claim

    def fork_then_claim(self: NodeCache, *args: Any) -> Any:
        if not children:
            children.append(subprocess.Popen(["sleep", "30"], pass_fds=open_descriptors()))
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(NodeCache, "_claim", fork_then_claim)
        (first,) = cache.claim(wanted[:1], (), wait_for_lock)
    try:
        (second,) = cache.claim(wanted[1:2], (), wait_for_lock)
        assert isinstance(second, Claim), "the child has the folder's lock"
        second.drop()
        assert isinstance(first, Claim)
        first.drop()
        (again,) = cache.claim(wanted[:1], (), wait_for_lock)
        assert isinstance(again, Claim)
        again.drop()
    finally:
        children[0].kill()
        children[0].wait()


def open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").exists()]


def test_a_claim_that_fails_in_the_middle_keeps_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = NodeCache(machine.cache, None, Runtime())
    wanted = [CachedPart(bytes([number]) * 32, 1000) for number in range(5)]
    reserve = Claim.reserve
    calls = []

    def fail(self: Claim, size_bytes: int) -> bool:
        calls.append(self)
        if len(calls) == 4:
            raise OSError(errno.EIO, "no")
        return reserve(self, size_bytes)

    before = open_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(Claim, "reserve", fail)
        with pytest.raises(OSError, match="no"):
            cache.claim(wanted, (), lambda: False)
    assert open_descriptors() == before
    answers = cache.claim(wanted, (), lambda: False)
    assert all(isinstance(answer, Claim) for answer in answers)
    assert [cache.is_settled(each) for each in wanted] == [False] * 5
    for answer in answers:
        assert isinstance(answer, Claim)
        answer.drop()
    assert all(cache.is_settled(each) for each in wanted)


def test_a_disk_without_room_refuses_and_the_part_is_read_from_its_device_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    report = machine.load()
    assert bytes_read(report) == {"far": SIZE}
    assert not list(machine.cache.glob("*/*/*"))
    with machine.open() as store:
        assert store.model(MODEL).prefetch().left_out_bytes == SIZE


@pytest.mark.parametrize("machine", [6 * MIB], indirect=True)
def test_filling_leaves_half_of_the_deadline_to_the_load(machine: Machine) -> None:
    with machine.open() as store:
        model = store.model(MODEL)
        arrays = model.load(shard=Shard(tensor_parallel=(0, 8), rules={"*": 0}, preset=False), deadline_s=3.0)
    assert len(arrays) == 12


def test_a_part_whose_copy_on_a_local_disk_is_bad_is_cached(machine: Machine) -> None:
    with machine.open() as store:
        store.devices.add("near", str(machine.folder / "near"), bandwidth=10**9)
        store.push(weights(), "acme/near", replicas=2, part_size=MIB)
        for path in (machine.folder / "near" / "parts").glob("*/*"):
            path.chmod(0o644)
            path.write_bytes(bytes(path.stat().st_size))
        assert not store.verify().ok
        model = store.model("acme/near")
        assert model.prefetch().cached_bytes >= SIZE
        assert_right(model.load())
        assert model.report is not None
        assert set(bytes_read(model.report)) == {"node cache"}


def test_a_user_without_a_home_has_no_configuration() -> None:
    assert read_node_config({"HOME": "/dev/null"}) == read_node_config({})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[cache", "no configuration"),
        ("[cache]\n", "folder"),
        ('[cache]\nfolder = "relative"\n', "absolute"),
        ('[cache]\nfolder = "/x"\nlimit_bytes = 0\n', "limit_bytes"),
        ('[cache]\nfolder = "/x"\nsize = 1\n', "size"),
        ("[cash]\n", "cash"),
    ],
)
def test_a_wrong_configuration_is_told_with_its_file(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=match) as caught:
        read_node_config({VARIABLE: str(path)})
    assert str(path) in caught.value.message


def test_the_configuration_is_found_where_users_and_machines_keep_theirs(tmp_path: Path) -> None:
    assert read_node_config({"HOME": str(tmp_path), VARIABLE: ""}) == NodeConfig()
    with pytest.raises(InvalidInput, match="No such file"):
        read_node_config({VARIABLE: str(tmp_path / "none.toml")})
    for folder, environment in [
        (tmp_path / ".config", {"HOME": str(tmp_path)}),
        (tmp_path / "xdg", {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}),
    ]:
        path = folder / "tensorkeep" / "node.toml"
        path.parent.mkdir(parents=True)
        path.write_text(f'[cache]\nfolder = "{folder}"\nlimit_bytes = 5\n')
        found = read_node_config(environment).cache
        assert found is not None
        assert (found.folder, found.limit_bytes) == (str(folder), 5)
