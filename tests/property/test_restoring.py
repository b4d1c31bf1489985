"""Parts in fragments give the right bytes whatever is lost or damaged, as long as enough is left; else an error, never a wrong byte."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.errors import Integrity, NotEnoughCopies, Unavailable
from tensorkeep.planning.read_plan import PartRange
from tensorkeep.records.digest import blake3_256
from tensorkeep.records.layout import BLOCK_BYTES, MIB
from tensorkeep.records.manifest import Extent
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import (
    ErasureCoded,
    filled_fragments,
    form_name,
    form_of,
    fragment_length,
    stored_fragments,
)
from tensorkeep.runtime import InlineWorkers, Runtime
from tensorkeep.store.fragments import make_fragments
from tensorkeep.store.structure import find_fragments
from tensorkeep.transfer.boxes import Box
from tensorkeep.transfer.device_queue import LEAST_READERS
from tensorkeep.transfer.reader import read_boxes, read_parts
from tensorkeep.transfer.report import LoadReport, Verify
from tensorkeep.transfer.restoring import with_units
from tensorkeep.transfer.sources import SUSPECT, PartTable
from tests.unit.transfer.small_world import FakeDevice, World, make_file, make_tensor, make_world, seeded_bytes

SETTINGS = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
WAYS: list[Verify] = ["blocks", "digest", "off"]


@dataclass
class Coded:
    """Parts in fragments on devices ``f0``, ``f1``, …: fragment i of part p is on device (i + p) mod their number."""

    code: ErasureCoded
    parts: list[bytes]
    devices: dict[str, FakeDevice]
    rows: list[list[Location]]

    def table(self, *, lost: Sequence[str] = (), world: World | None = None, **more: Any) -> PartTable:
        base = (world or make_world(self.parts)).table()
        fragments = {
            part: found for part, rows in enumerate(self.rows) if (found := find_fragments(rows, self.devices))
        }
        return replace(
            base,
            sources=base.sources if world else {part: [] for part in range(len(self.parts))},
            devices={
                **(base.devices if world else {}),
                **{name: device for name, device in self.devices.items() if name not in lost},
            },
            fragments=fragments,
            **more,
        )

    def row(self, part: int, number: int) -> Location:
        [found] = [row for row in self.rows[part] if row.fragment == number]
        return found

    def flip(self, part: int, number: int, at: int) -> None:
        row = self.row(part, number)
        self.devices[row.device].objects[row.name][at] ^= 0x10


def make_coded(code: ErasureCoded, sizes: Sequence[int], seed: int = 0) -> Coded:
    parts = [seeded_bytes(size, seed + number) for number, size in enumerate(sizes)]
    devices = {f"f{number}": FakeDevice() for number in range(code.slots)}
    rows: list[list[Location]] = []
    for part, data in enumerate(parts):
        assert form_of(code, len(data)) == code
        filled = filled_fragments(code, len(data))
        numbers = stored_fragments(code, len(data))
        found = [
            Location(
                id=100 * part + number + 1,
                key=ObjectKey(ObjectKind.PART, blake3_256(data)),
                size_bytes=len(data),
                device=f"f{(number + part) % code.slots}",
                name=f"p{part}-{number}",
                form=form_name(code),
                length=fragment_length(code, len(data), number),
                state="live",
                fragment=number,
                needed=filled,
            )
            for number in numbers
        ]
        bodies = make_fragments(data, blake3_256(data), found)
        for row in found:
            assert row.fragment is not None
            devices[row.device].put(row.name, bodies[row.fragment])
        rows.append(found)
    return Coded(code, parts, devices, rows)


def read_all(
    coded: Coded, table: PartTable, *, verify: Verify = "blocks", runtime: Runtime | None = None
) -> LoadReport:
    """Read every part whole and check every byte."""
    runtime = runtime or Runtime()
    found = [bytearray(len(part)) for part in coded.parts]

    def take(each: PartRange, data: memoryview) -> None:
        found[each.part][each.start : each.start + each.length] = data

    requests = [PartRange(part, 0, len(data)) for part, data in enumerate(coded.parts)]
    units = with_units(table, verify=verify, clock=runtime.clock)
    report = read_parts(requests, take, parts=units, verify=verify, runtime=runtime)
    assert [bytes(each) for each in found] == coded.parts
    return report


codes = st.sampled_from([ErasureCoded(1, 1), ErasureCoded(2, 1), ErasureCoded(4, 2), ErasureCoded(3, 3)])


@st.composite
def coded_parts(draw: st.DrawFn) -> Coded:
    code = draw(codes)
    least = code.data * BLOCK_BYTES
    size = st.one_of(
        st.integers(least, 3 * least),
        st.integers(code.data, 3 * code.data).map(lambda blocks: blocks * BLOCK_BYTES),
        st.sampled_from([least, least + 1, 2 * least - 1]),
    )
    return make_coded(code, draw(st.lists(size, min_size=1, max_size=3)), draw(st.integers(0, 5)))


@SETTINGS
@given(data=st.data(), coded=coded_parts(), verify=st.sampled_from(WAYS), inline=st.booleans())
def test_any_m_devices_may_be_lost(data: st.DataObject, coded: Coded, verify: Verify, *, inline: bool) -> None:
    lost = data.draw(st.lists(st.sampled_from(sorted(coded.devices)), unique=True, max_size=coded.code.parity))
    runtime = Runtime(workers=InlineWorkers()) if inline else Runtime()
    report = read_all(coded, coded.table(lost=lost), verify=verify, runtime=runtime)
    assert report.bytes_needed == sum(map(len, coded.parts))
    assert {each.id for each in report.devices} <= coded.devices.keys() - {*lost}


@SETTINGS
@given(data=st.data(), coded=coded_parts(), verify=st.sampled_from(["blocks", "digest"]))
def test_damage_in_any_m_fragments_of_each_part_is_found_and_restored(
    data: st.DataObject, coded: Coded, verify: Verify
) -> None:
    harmed = set()
    for part, rows in enumerate(coded.rows):
        for row in data.draw(st.lists(st.sampled_from(rows), unique_by=lambda row: row.id, max_size=coded.code.parity)):
            assert row.fragment is not None
            coded.flip(part, row.fragment, data.draw(st.integers(0, row.length - 1)))
            harmed.add(row.id)
    noted: list[int] = []
    table = coded.table(note_damage=lambda damaged: noted.extend(each.location for each in damaged))
    report = read_all(coded, table, verify=verify)
    found = {each.location for each in report.damaged if each.kind == "corrupt" and each.location > 0}
    assert found <= harmed
    data_rows = {row.id for rows in coded.rows for row in rows if (row.fragment or 0) < coded.code.data}
    assert found >= harmed & data_rows, "each data fragment was read"
    assert found <= {*noted}
    assert all(location > 0 for location in noted), "nobody is told of copies that the catalog does not know"


@SETTINGS
@given(data=st.data(), coded=coded_parts())
def test_where_more_is_lost_nothing_wrong_is_handed_out(data: st.DataObject, coded: Coded) -> None:
    part = data.draw(st.integers(0, len(coded.parts) - 1))
    rows = data.draw(st.permutations(coded.rows[part]))[: coded.code.parity + 1]
    for row in rows:
        assert row.fragment is not None
        if data.draw(st.booleans()):
            del coded.devices[row.device].objects[row.name]
        else:  # all of its blocks, so that no range of the part can be restored
            for at in range(0, row.length, BLOCK_BYTES):
                coded.flip(part, row.fragment, at)
    with pytest.raises((Integrity, NotEnoughCopies), match="too few of its ec="):
        read_all(coded, coded.table())


@SETTINGS
@given(data=st.data(), coded=coded_parts(), verify=st.sampled_from(WAYS))
def test_boxes_equal_numpys_slicing(data: st.DataObject, coded: Coded, verify: Verify) -> None:
    content = b"".join(coded.parts)
    rows = len(content) // 256
    extents = [Extent(part, 0, len(each)) for part, each in enumerate(coded.parts)]
    tensor = make_tensor("w", "U8", (rows, 256), 0, rows * 256)
    file = make_file(content, extents, [tensor])
    array = np.frombuffer(content, np.uint8)[: rows * 256].reshape(rows, 256)
    lost = data.draw(st.lists(st.sampled_from(sorted(coded.devices)), unique=True, max_size=coded.code.parity))
    boxes = []
    for _ in range(data.draw(st.integers(1, 4))):
        start, first = data.draw(st.integers(0, rows)), data.draw(st.integers(0, 256))
        sizes = (data.draw(st.integers(0, rows - start)), data.draw(st.integers(0, 256 - first)))
        boxes.append(Box(file, tensor, (start, first), sizes, np.zeros(sizes, np.uint8)))
    runtime = Runtime()
    units = with_units(coded.table(lost=lost), verify=verify, clock=runtime.clock)
    read_boxes(boxes, parts=units, verify=verify, runtime=runtime)
    for box in boxes:
        (row, column), (height, width) = box.starts, box.sizes
        assert np.array_equal(box.destination, array[row : row + height, column : column + width])  # type: ignore[arg-type]


def test_a_healthy_read_touches_data_alone_and_a_degraded_one_each_byte_once() -> None:
    coded = make_coded(ErasureCoded(4, 2), [32 * MIB])
    report = read_all(coded, coded.table())
    assert report.bytes_read == 32 * MIB
    assert {each.id for each in report.devices} == {"f0", "f1", "f2", "f3"}
    for lost in (["f0"], ["f1", "f3"], ["f0", "f4"]):
        report = read_all(coded, coded.table(lost=lost))
        assert report.bytes_read == 32 * MIB
        assert [each.device for each in report.damaged if each.kind == "unreachable"] == [
            each for each in lost if each != "f4"
        ]


def test_a_whole_copy_is_read_before_anything_is_restored() -> None:
    coded = make_coded(ErasureCoded(2, 1), [2 * MIB])
    world = make_world(coded.parts)
    report = read_all(coded, coded.table(world=world))
    assert {each.id for each in report.devices} == {"d0"}
    world.flip("d0", 0, 5)
    report = read_all(coded, coded.table(world=world))
    assert [(each.device, each.kind) for each in report.damaged] == [("d0", "corrupt")]
    assert {each.id: each.bytes for each in report.devices} == {"d0": 2 * MIB + BLOCK_BYTES, "f0": BLOCK_BYTES}


def test_a_footer_that_is_damaged_or_anothers_makes_no_parity() -> None:
    coded = make_coded(ErasureCoded(2, 2), [MIB])
    row, other = coded.row(0, 2), coded.row(0, 3)
    coded.flip(0, 2, row.length + 20)
    report = read_all(coded, coded.table(lost=["f0"]))
    assert [(each.location, each.kind) for each in report.damaged if each.kind == "corrupt"] == [(row.id, "corrupt")]
    coded = make_coded(ErasureCoded(2, 2), [MIB])
    coded.devices[row.device].objects[row.name] = coded.devices[other.device].objects[other.name]
    report = read_all(coded, coded.table(lost=["f0"]))
    [found] = [each for each in report.damaged if each.kind == "corrupt"]
    assert (found.location, "another fragment: its footer says number 3" in found.reason) == (row.id, True)


@pytest.mark.parametrize("verify", ["blocks", "digest"])
def test_each_block_needs_only_enough_fragments_that_are_good_there(verify: Verify) -> None:
    coded = make_coded(ErasureCoded(4, 2), [9 * MIB])
    for number in range(6):  # a block of each is bad, each at another place
        coded.flip(0, number, number * BLOCK_BYTES + 7)
    report = read_all(coded, coded.table(), verify=verify)
    assert {each.location for each in report.damaged if each.location > 0} >= {coded.row(0, i).id for i in range(4)}
    coded = make_coded(ErasureCoded(4, 2), [9 * MIB])
    coded.flip(0, 1, 5)
    coded.flip(0, 2, 5 * BLOCK_BYTES)
    read_all(coded, coded.table(lost=["f0"]), verify=verify)


def marked_bad(coded: Coded, *numbers: int) -> Coded:
    rows = [replace_state(row, "bad") if row.fragment in numbers else row for row in coded.rows[0]]
    return replace(coded, rows=[rows])


def replace_state(row: Location, state: Any) -> Location:
    return msgspec.structs.replace(row, state=state)


@pytest.mark.parametrize("verify", WAYS)
def test_what_was_found_bad_before_is_not_believed_while_others_are_good(verify: Verify) -> None:
    coded = make_coded(ErasureCoded(4, 2), [5 * MIB])
    coded.flip(0, 1, 999)
    coded.flip(0, 2, 999)
    read_all(coded, marked_bad(coded, 1, 2).table(), verify=verify)


def test_a_fragment_that_was_found_bad_and_is_not_serves_where_no_other_is_left() -> None:
    coded = make_coded(ErasureCoded(2, 1), [2 * MIB])
    read_all(coded, marked_bad(coded, 1).table(lost=["f2"]))


def test_a_stray_fragment_takes_nothing_from_a_whole_copy_that_may_be_good() -> None:
    coded = make_coded(ErasureCoded(4, 2), [4 * MIB])
    world = make_world(coded.parts)
    table = replace(coded, rows=[coded.rows[0][:1]]).table(world=world)
    suspect = {0: [replace(each, rank=SUSPECT) for each in table.sources[0]]}
    read_all(coded, replace(table, sources=suspect))
    # With enough fragments these are read, and the copy only where they fail.
    table = replace(coded.table(world=world), sources=suspect)
    assert {each.id for each in read_all(coded, table).devices} <= coded.devices.keys()
    for number in (0, 1, 2):
        for at in range(0, MIB, BLOCK_BYTES):
            coded.flip(0, number, at)
    read_all(coded, table)


def test_of_two_codes_the_one_is_read_whose_devices_are_there() -> None:
    four, two = make_coded(ErasureCoded(4, 2), [4 * MIB]), make_coded(ErasureCoded(2, 1), [4 * MIB])
    rows = [msgspec.structs.replace(row, id=row.id + 50, device="g" + row.device) for row in two.rows[0]]
    devices = {**four.devices, **{"g" + name: device for name, device in two.devices.items()}}
    for lost in (["f0", "f1", "f2"], ["gf0", "gf1"]):
        there = {name: device for name, device in devices.items() if name not in lost}
        found = find_fragments([*four.rows[0], *rows], there)
        assert found is not None
        assert found.code == (two.code if lost[0] == "f0" else four.code)
        table = replace(four.table(), fragments={0: found}, devices=there)
        read_all(four, table)


@pytest.mark.parametrize(("data", "parity"), [(2, 1), (3, 2), (4, 2), (6, 2), (8, 2), (10, 4)])
@pytest.mark.parametrize("read_bytes", [8 * MIB, 3 * MIB])
def test_a_degraded_load_reads_each_byte_once_however_long_its_reads_are(
    data: int, parity: int, read_bytes: int
) -> None:
    code = ErasureCoded(data, parity)
    coded = make_coded(code, [60 * MIB])
    content = coded.parts[0]
    tensor = make_tensor("w", "U8", (len(content),), 0, len(content))
    file = make_file(content, [Extent(0, 0, len(content))], [tensor])
    found = np.zeros(len(content), np.uint8)
    box = Box(file, tensor, (0,), (len(content),), found)
    runtime = Runtime()
    table = coded.table(lost=[f"f{number}" for number in range(parity)])
    limit = read_bytes * LEAST_READERS * (len(table.devices) + 1)
    units = with_units(table, verify="blocks", clock=runtime.clock, read_bytes=read_bytes)
    report = read_boxes([box], parts=units, runtime=runtime, memory_limit_bytes=limit)
    assert found.tobytes() == content
    assert report.bytes_read <= 1.05 * len(content)


def test_devices_that_do_not_answer_are_asked_a_few_times_only() -> None:
    coded = make_coded(ErasureCoded(2, 1), [60 * MIB])
    coded.devices["f1"].error = Unavailable("no answer")
    read_all(coded, coded.table())
    assert len(coded.devices["f1"].reads) <= 3 + 8, "each of the readers may be at it when the third fails"
