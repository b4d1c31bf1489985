"""The contract suite of devices: subclass `DeviceContract`, say where your device lies, and pytest runs it.

::

    class TestMyDevice(DeviceContract):
        @pytest.fixture
        def place(self, tmp_path: Path) -> Place:
            return Place(open_device=lambda: MyDevice(tmp_path), lose=lambda: shutil.rmtree(tmp_path))
"""

# ruff: noqa: D102 - a test's name is its sentence

import random
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
from typing_extensions import Buffer

from tensorkeep.devices.protocol import Device, ObjectInfo
from tensorkeep.errors import AlreadyExists, Integrity, InvalidInput, NotFound, TensorkeepError, Unavailable
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import ThreadWorkers

MODEL = "01JG8KZ5M7Q4W9X2Y3Z4A5B6C7"
ULID = "01JG8KZ5M7Q4W9X2Y3Z4A5B6C8"

BAD_NAMES = (
    *("", "/etc/passwd", "../x", "parts/../x", "parts/00/../../x", "parts/00/", "parts//x", "parts/00/a\0b", "x"),
    *("tensorkeep.json", "parts/x", "parts/00", "parts/zz/x", "versions/x", "versions/../x", "journal/a/b", "other/x"),
)


@dataclass(frozen=True)
class Place:
    """Where a device under test lies.

    Args:
        open_device: returns a device there; called again, another one at the same place.
        lose: makes the place unreachable, as when a disk is unmounted.
        living_write: a block during which a living writer has an unfinished write there.
        leave_dead_write: leaves an unfinished write of a dead writer; returns how many the sweep should find.
        silent: methods that ask the place nothing, so that they can't tell that it is lost (of ``flush`` and ``free_bytes``).
        exact_create: whether of several that create one name at once exactly one wins; some object stores let more win.
    """

    open_device: Callable[[], Device]
    lose: Callable[[], None]
    living_write: Callable[[], AbstractContextManager[None]] = nullcontext
    leave_dead_write: Callable[[], int] = lambda: 0
    silent: frozenset[str] = frozenset()
    exact_create: bool = True


def part(number: int) -> str:
    """Return a part's physical name."""
    digest = f"{number % 256:02x}" + f"{number:062x}"
    return f"parts/{digest[:2]}/{digest}.{ULID}"


def content(size_bytes: int, seed: int = 0) -> bytes:
    """Return repeatable random bytes."""
    return random.Random(seed).randbytes(size_bytes)


def listed(device: Device, prefix: str = "") -> dict[str, int]:
    """Return names and sizes of a listing, which must name each object once."""
    found = list(device.iter_objects(prefix))
    assert all(isinstance(info, ObjectInfo) for info in found)
    names = dict(found)
    assert len(names) == len(found)
    return names


class DeviceContract:
    """What every device does. Subclasses give the fixture `place`."""

    @pytest.fixture
    def place(self) -> Any:
        """Return the `Place` under test."""
        raise NotImplementedError

    @pytest.fixture
    def device(self, place: Place) -> Device:
        """Return a prepared device."""
        device = place.open_device()
        device.prepare()
        return device

    # ------------------------------------------------------------ put and read

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 256 * 1024, 3 * MIB + 1])
    def test_an_object_is_read_back_byte_for_byte(self, device: Device, size: int) -> None:
        data = content(size)
        device.put(part(1), [data])
        device.flush()
        assert device.read(part(1)) == data
        assert device.size_of(part(1)) == size

    def test_an_object_of_64_mib_is_read_back_byte_for_byte(self, device: Device) -> None:
        data = content(64 * MIB)
        device.put(part(1), [data])
        target = bytearray(64 * MIB)
        device.read_into(part(1), 0, [memoryview(target)])
        assert target == data

    def test_an_object_is_the_concatenation_of_its_buffers(self, device: Device) -> None:
        data = content(50_000)
        pieces: list[Buffer] = [data[:1], b"", bytearray(data[1:40_000]), memoryview(data)[40_000:]]
        device.put(part(1), pieces)
        device.put(part(2), [data[at : at + 10] for at in range(0, 50_000, 10)])  # more buffers than one call takes
        device.put(part(3), [])
        assert device.read(part(1)) == data
        assert device.read(part(2)) == data
        assert device.read(part(3)) == b""

    def test_buffers_of_wider_items_count_as_their_bytes(self, device: Device) -> None:
        numbers = array("d", [1.5, -2.5, 3.5])
        device.put(part(1), [numbers])
        target = array("d", [0.0, 0.0])
        device.read_into(part(1), 8, [memoryview(target)])
        assert device.size_of(part(1)) == 24
        assert list(target) == [-2.5, 3.5]

    def test_reads_fill_scattered_buffers_from_any_offset(self, device: Device) -> None:
        data = content(MIB + 13)
        device.put(part(1), [data])
        chance = random.Random(7)
        for _ in range(50):
            sizes = [chance.choice([0, 1, 17, 4096, 100_000]) for _ in range(chance.randrange(6))]
            offset = chance.randrange(len(data) - sum(sizes) + 1)
            buffers = [bytearray(size) for size in sizes]
            device.read_into(part(1), offset, [memoryview(buffer) for buffer in buffers])
            assert b"".join(buffers) == data[offset : offset + sum(sizes)]

    def test_a_read_takes_more_buffers_than_one_system_call(self, device: Device) -> None:
        data = content(5000)
        device.put(part(1), [data])
        target = bytearray(5000)
        device.read_into(part(1), 0, [memoryview(target)[at : at + 1] for at in range(5000)])
        assert target == data

    def test_a_read_past_the_end_is_an_integrity_error(self, device: Device) -> None:
        device.put(part(1), [b"0123456789"])
        device.put(part(2), [])
        for name, offset, size in ((part(1), 0, 11), (part(1), 10, 1), (part(1), 2**62, 1), (part(2), 0, 1)):
            with pytest.raises(Integrity, match="shorter"):
                device.read_into(name, offset, [memoryview(bytearray(size))])

    def test_a_read_of_nothing_still_needs_the_object(self, device: Device) -> None:
        device.put(part(1), [b"0123456789"])
        device.read_into(part(1), 10, [])
        device.read_into(part(1), 3, [memoryview(bytearray())])
        with pytest.raises(NotFound):
            device.read_into(part(2), 0, [])

    # ------------------------------------------------------------------- names

    def test_a_taken_name_is_refused_and_keeps_its_content(self, device: Device) -> None:
        device.put(part(1), [b"first"])
        for data in (b"second", b"first"):
            with pytest.raises(AlreadyExists):
                device.put(part(1), [data])
        assert device.read(part(1)) == b"first"
        assert listed(device, "tmp/") == {}

    def test_names_outside_the_layout_are_refused(self, device: Device) -> None:
        for name in BAD_NAMES:
            calls: list[Callable[[str], object]] = [
                lambda name: device.put(name, [b""]),
                lambda name: device.read_into(name, 0, []),
                device.read,
                device.size_of,
                device.delete,
            ]
            for call in calls:
                with pytest.raises(InvalidInput):
                    call(name)

    def test_a_negative_offset_is_refused(self, device: Device) -> None:
        device.put(part(1), [b"0123456789"])
        with pytest.raises(InvalidInput):
            device.read_into(part(1), -1, [memoryview(bytearray(1))])

    # ---------------------------------------------------- absence and listings

    def test_an_absent_object_is_not_found(self, device: Device) -> None:
        for name in (part(9), f"versions/{MODEL}/absent.json", "journal/absent"):
            with pytest.raises(NotFound):
                device.size_of(name)
            with pytest.raises(NotFound):
                device.read(name)
            with pytest.raises(NotFound):
                device.read_into(name, 0, [memoryview(bytearray(1))])

    def test_a_listing_names_the_objects_under_a_folder_with_their_sizes(self, device: Device) -> None:
        names = {
            part(1): 3,
            part(255): 0,
            f"manifests/0a/{'0a' * 32}.{ULID}.json.zst": 5,
            f"checks/ff/{'ff' * 32}.{ULID}": 1,
            f"versions/{MODEL}/{'ab' * 20}.{ULID}.json": 2,
            "journal/00000001-000000000001.entry.json": 4,
        }
        assert listed(device) == {}
        for name, size in names.items():
            device.put(name, [content(size)])
        device.put("tmp/scratch", [b"x"])
        device.replace_identity(b"{}")
        assert listed(device) == names
        for prefix in ("parts/", "parts/ff/", "manifests/", "checks/", "versions/", f"versions/{MODEL}/", "journal/"):
            assert listed(device, prefix) == {name: names[name] for name in names if name.startswith(prefix)}
        assert listed(device, "tmp/") == {"tmp/scratch": 1}
        assert listed(device, f"versions/{ULID}/") == {}

    def test_what_is_no_folder_prefix_is_refused(self, device: Device) -> None:
        for prefix in ("parts", "/", "../", "parts/../", "par", "nothing/", "versions/../", "tensorkeep.json/"):
            with pytest.raises(InvalidInput):
                list(device.iter_objects(prefix))

    def test_a_deleted_object_is_gone_and_deleting_it_again_is_no_error(self, device: Device) -> None:
        device.put(part(1), [b"one"])
        device.put(part(2), [b"two"])
        for _ in range(2):
            device.delete(part(1))
            device.delete(f"versions/{MODEL}/absent.json")
            device.flush()
        assert listed(device) == {part(2): 3}
        with pytest.raises(NotFound):
            device.read(part(1))

    # ---------------------------------------------------------------- identity

    def test_the_identity_is_replaced_as_a_whole(self, device: Device, place: Place) -> None:
        assert device.read_identity() is None
        device.replace_identity(b"a longer identity")
        device.replace_identity(b"short")
        assert device.read_identity() == b"short"
        assert place.open_device().read_identity() == b"short"

    # ------------------------------------------------------- unfinished writes

    def test_a_living_writers_write_is_neither_listed_nor_swept(self, device: Device, place: Place) -> None:
        with place.living_write():
            assert listed(device) == {}
            assert device.sweep_unfinished(0) == 0

    def test_a_dead_writers_write_is_not_listed_and_is_swept_once(self, device: Device, place: Place) -> None:
        device.put(part(1), [b"kept"])
        left = place.leave_dead_write()
        assert listed(device) == {part(1): 4}
        assert device.sweep_unfinished(0) == left
        assert device.sweep_unfinished(0) == 0
        assert listed(device, "tmp/") == {}
        assert device.read(part(1)) == b"kept"

    def test_a_put_that_fails_leaves_nothing_and_its_name_free(self, device: Device) -> None:
        def broken() -> Iterator[bytes]:
            yield b"first"
            raise KeyboardInterrupt

        class Broken(list[bytes]):
            def __iter__(self) -> Iterator[bytes]:
                return broken()

        with pytest.raises(KeyboardInterrupt):
            device.put(part(1), Broken())
        assert listed(device) == {}
        assert listed(device, "tmp/") == {}
        device.put(part(1), [b"again"])
        assert device.read(part(1)) == b"again"

    # ----------------------------------------------------------------- threads

    def test_threads_put_different_names_at_once(self, device: Device, place: Place) -> None:
        def put_some(worker: int) -> None:
            for number in range(10):
                device.put(part(100 * worker + number), [content(10_000 + number, seed=worker)])
                device.flush()

        self._run_together(8, put_some)
        again = place.open_device()
        assert len(listed(again)) == 80
        for worker in range(8):
            for number in range(10):
                assert again.read(part(100 * worker + number)) == content(10_000 + number, seed=worker)

    def test_of_threads_that_put_one_name_exactly_one_wins(self, device: Device, place: Place) -> None:
        for number in range(5):
            winners: list[int] = []

            def put_one(worker: int, name: str = part(number), winners: list[int] = winners) -> None:
                try:
                    device.put(name, [content(300_000, seed=worker)])
                except AlreadyExists:
                    return
                winners.append(worker)

            self._run_together(8, put_one)
            assert len(winners) == 1 or (winners and not place.exact_create)
            assert device.read(part(number)) in [content(300_000, seed=worker) for worker in winners]
        assert listed(device, "tmp/") == {}

    def test_threads_read_one_object_at_once(self, device: Device) -> None:
        data = content(2 * MIB)
        device.put(part(1), [data])

        def read_some(worker: int) -> None:
            for at in range(worker * 1000, len(data) - 5000, 100_000):
                target = bytearray(5000)
                device.read_into(part(1), at, [memoryview(target)])
                assert target == data[at : at + 5000]

        self._run_together(8, read_some)

    # ------------------------------------------------------------ reachability

    def test_a_lost_place_is_unavailable_and_never_empty(self, device: Device, place: Place) -> None:
        device.put(part(1), [b"one"])
        place.lose()
        calls: list[Callable[[], object]] = [
            lambda: device.read(part(1)),
            lambda: device.read(part(2)),
            lambda: device.read_into(part(1), 0, [memoryview(bytearray(1))]),
            lambda: device.size_of(part(1)),
            lambda: list(device.iter_objects("")),
            lambda: list(device.iter_objects("journal/")),
            lambda: device.delete(part(1)),
            lambda: device.put(part(3), [b"three"]),
            lambda: device.replace_identity(b"{}"),
            device.read_identity,
            lambda: device.sweep_unfinished(0),
        ]
        calls += [getattr(device, method) for method in ("free_bytes", "flush") if method not in place.silent]
        for call in calls:
            with pytest.raises(Unavailable):
                call()

    def test_preparing_twice_changes_nothing(self, device: Device) -> None:
        device.put(part(1), [b"one"])
        device.prepare()
        assert listed(device) == {part(1): 3}

    def test_another_device_at_the_same_place_sees_the_objects(self, device: Device, place: Place) -> None:
        device.put(part(1), [b"one"])
        other = place.open_device()
        assert other.read(part(1)) == b"one"
        assert other.url == device.url
        with pytest.raises(AlreadyExists):
            other.put(part(1), [b"two"])

    def test_it_says_what_it_is(self, device: Device) -> None:
        assert device.durability in ("durable", "soft")
        assert "://" in device.url
        free = device.free_bytes()
        assert free is None or free >= 0

    def test_every_error_names_the_device_and_the_object(self, device: Device) -> None:
        with pytest.raises(TensorkeepError) as caught:
            device.read(part(9))
        assert caught.value.facts["device"] == device.url
        assert caught.value.facts["object"] == part(9)
        assert part(9) in caught.value.message

    def _run_together(self, count: int, task: Callable[[int], None]) -> None:
        """Run a task in threads that start at one moment, and raise the first error."""
        start = threading.Barrier(count, timeout=60)

        def run(worker: int) -> None:
            start.wait()
            task(worker)

        with ThreadWorkers().open_pool(count, "contract") as pool:
            futures = [pool.submit(run, worker) for worker in range(count)]
        for future in futures:
            future.result()
