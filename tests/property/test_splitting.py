"""Every split covers each byte exactly once, cuts where promised, packs as promised, and keeps what did not change."""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkeep.errors import Internal, InvalidInput
from tensorkeep.formats.protocol import TensorLayout
from tensorkeep.planning.cuts import iter_cuts
from tensorkeep.planning.layers import Layer, parse_layer_pattern
from tensorkeep.planning.methods import LAYER, SIZE, TENSOR, find_method, parse_method
from tensorkeep.planning.splitting import (
    Method,
    Parent,
    PlannedPart,
    ReusedPart,
    SourceFile,
    SplitPlan,
    choose_split,
    list_small_items,
    plan_split,
)
from tensorkeep.records.layout import KIB, MIB, PACK_ALIGNMENT_BYTES, PART_LIMIT_BYTES, SMALL_ITEM_BYTES
from tensorkeep.records.manifest import File, Item, Manifest, Tensor, check_manifest

PAGE_BYTES = 4096


@dataclass(frozen=True)
class Model:
    """Files with made-up content: bytes are equal exactly where (seed, length) of what lies there are."""

    files: tuple[SourceFile, ...]
    seeds: Mapping[tuple[str, str | int], int]

    def digest(self, file: SourceFile, start: int, length: int, tensor: str | None) -> bytes:
        seed = self.seeds.get((file.path, start if tensor is None else tensor), 0)
        return blake3(f"{seed} {length}".encode()).digest()

    def item_digests(self, method: Method) -> dict[tuple[int, int, int], bytes]:
        return {
            (item.file, item.start, item.length): self.digest(
                self.files[item.file], item.start, item.length, item.tensor
            )
            for item in list_small_items(self.files, method=method)
        }


def split(model: Model, method: Method, part_size: int = 4 * MIB, parent: Parent | None = None) -> SplitPlan:
    return plan_split(
        model.files, method=method, part_size=part_size, item_digests=model.item_digests(method), parent=parent
    )


def as_parent(model: Model, plan: SplitPlan, lost: frozenset[int] = frozenset()) -> Parent:
    """Return what a push of this plan would have stored."""
    files = []
    for file, extents, items in zip(model.files, plan.extents, plan.items, strict=True):
        layouts = [tensor for tensor in file.tensors if isinstance(tensor, TensorLayout)]
        assert len(layouts) == len(file.tensors)
        tensors = tuple(
            Tensor(
                name=t.name,
                dtype=t.dtype,
                shape=t.shape,
                start=t.start,
                length=t.length,
                digest=model.digest(file, t.start, t.length, t.name).hex(),
            )
            for t in layouts
        )
        kept = tuple(Item(start, n, model.digest(file, start, n, None).hex()) for start, n in items)
        files.append(
            File(
                path=file.path,
                size_bytes=file.size_bytes,
                format=file.format,
                extents=extents,
                tensors=tensors,
                items=kept,
                sha256="",
            )
        )
    manifest = Manifest(
        split=str(plan.method),
        part_size=plan.part_size,
        files=tuple(files),
        parts=tuple(part.size_bytes for part in plan.parts),
        checks="",
    )
    check_manifest(manifest)
    return Parent(manifest, [part_digest(model, part) for part in plan.parts], lost)


def part_digest(model: Model, part: PlannedPart | ReusedPart) -> bytes:
    if isinstance(part, ReusedPart):
        return part.digest
    names = [
        (model.seeds.get((model.files[p.file].path, p.start), 0), p.length, p.offset, p.file, p.start)
        for p in part.pieces
    ]
    return hashlib.sha256(repr(names).encode()).digest()


def tensors_of(lengths: Sequence[int], *, header: int = 64, gap: int = 0, layers: int = 3) -> tuple[TensorLayout, ...]:
    """Return tensors that follow each other; with one layer all are in it, else every fourth is in none."""
    tensors = []
    start = header
    for number, length in enumerate(lengths):
        expert = f".mlp.experts.{7 * number % 5}" if number % 3 == 2 else ""
        name = f"model.layers.{number % layers}{expert}.w{number}" if layers == 1 or number % 4 else f"head{number}"
        tensors.append(TensorLayout(name, "U8", (length,), None, start, length))
        start += length + gap
    return tuple(tensors)


EDGES = st.sampled_from(
    [
        base + delta
        for base in (0, 64, 256 * KIB, MIB, 4 * MIB, 5 * MIB, 8 * MIB, 9 * MIB, 64 * MIB)
        for delta in (-1, 0, 1)
    ]
).filter(lambda length: length >= 0)
LENGTHS = st.one_of(EDGES, st.integers(0, 200), st.integers(0, 70 * MIB))
PACKABLE = st.sampled_from(
    [64, 128, 250, 256 * KIB, 512 * KIB, MIB - 64, MIB - 63]
)  # fill packs, and each other's edges


@st.composite
def models(draw: st.DrawFn) -> Model:
    files = []
    seeds: dict[tuple[str, str | int], int] = {}
    for number in range(draw(st.integers(0, 4))):
        path = f"{number}.bin"
        if draw(st.booleans()):
            files.append(SourceFile(path, draw(LENGTHS), "opaque", ()))
        else:
            gap = draw(st.sampled_from([0, 0, 8, MIB, 2 * MIB + 1]))
            lengths = draw(st.one_of(st.lists(LENGTHS, max_size=12), st.lists(PACKABLE, min_size=2, max_size=12)))
            tensors = tensors_of(lengths, header=draw(LENGTHS), gap=gap, layers=draw(st.sampled_from([1, 3])))
            end = tensors[-1].start + tensors[-1].length if tensors else 8
            files.append(SourceFile(path, end + draw(st.sampled_from([0, 0, 5])), "safetensors", tensors))
            seeds |= {(path, tensor.name): draw(st.integers(0, 3)) for tensor in tensors}
        seeds |= {(path, 0): draw(st.integers(0, 3))}
    return Model(tuple(files), seeds)


SHARES = st.builds(Method, st.just("parts"), st.integers(1, 9))
CUT_TENSORS = st.sampled_from([TENSOR, LAYER])
METHODS: st.SearchStrategy[Method] = st.one_of(st.sampled_from([TENSOR, LAYER, SIZE]), SHARES)
PART_SIZES = st.sampled_from([MIB, 3 * MIB, 4 * MIB, 64 * MIB])


@settings(max_examples=300, deadline=None)
@given(model=models(), method=METHODS, part_size=PART_SIZES)
def test_every_byte_is_covered_exactly_once_and_nothing_else_is_stored(
    model: Model, method: Method, part_size: int
) -> None:
    plan = split(model, method, part_size)
    as_parent(model, plan)  # every rule of a manifest
    placed = {(p.file, p.start): (n, p) for n, part in enumerate(plan.parts) for p in planned(part).pieces}
    for number, (file, extents) in enumerate(zip(model.files, plan.extents, strict=True)):
        position = 0
        for extent in extents:
            end = position + extent.length
            offset = extent.start
            while position < end:  # an extent is whole pieces, each where the part has it
                part, piece = placed.pop((number, position))
                assert (part, piece.offset) == (extent.part, offset)
                position += piece.length
                offset += piece.length
            assert position == end
        assert position == file.size_bytes
    assert not placed


@settings(max_examples=300, deadline=None)
@given(model=models(), method=METHODS, part_size=PART_SIZES)
def test_parts_are_bounded_and_packs_are_aligned_and_of_one_layer(model: Model, method: Method, part_size: int) -> None:
    small = {(item.file, item.start): item for item in list_small_items(model.files, method=method)}
    for part in map(planned, split(model, method, part_size).parts):
        assert 0 < part.size_bytes < PART_LIMIT_BYTES
        assert part.pieces[0].offset == 0
        assert part.size_bytes == part.pieces[-1].offset + part.pieces[-1].length
        if (part.pieces[0].file, part.pieces[0].start) in small:
            assert part.size_bytes <= part_size
            end = 0
            for piece in part.pieces:
                assert piece.offset % PACK_ALIGNMENT_BYTES == 0
                assert 0 <= piece.offset - end < PACK_ALIGNMENT_BYTES
                end = piece.offset + piece.length
                assert small[piece.file, piece.start].layer == part.layer
            found = [small[piece.file, piece.start].expert for piece in part.pieces]
            experts = [-1 if expert is None else expert for expert in found]
            order = list(zip(experts, part.pieces, strict=True)) if method == LAYER else list(part.pieces)
            assert order == sorted(order)
        else:
            assert len(part.pieces) == 1
            assert part.size_bytes < part_size + SMALL_ITEM_BYTES


@settings(max_examples=200, deadline=None)
@given(model=models(), method=CUT_TENSORS, part_size=PART_SIZES)
def test_tensors_are_cut_only_at_whole_pages_at_multiples_of_the_part_size_from_their_own_start(
    model: Model, method: Method, part_size: int
) -> None:
    assert part_size % PAGE_BYTES == 0
    starts = defaultdict(list)
    for part in map(planned, split(model, method, part_size).parts):
        for piece in part.pieces:
            starts[piece.file].append((piece.start, piece.length))
    for number, file in enumerate(model.files):
        pieces = dict(starts[number])
        for tensor in file.tensors:
            inside = sorted(start for start in pieces if tensor.start <= start < tensor.start + tensor.length)
            assert inside == [tensor.start + at for at in expected_cuts(tensor.length, part_size)]
            assert sum(pieces[start] for start in inside) == tensor.length


@settings(max_examples=200, deadline=None)
@given(model=models(), part_size=PART_SIZES)
def test_by_size_files_are_cut_at_multiples_from_their_start_whatever_they_hold(model: Model, part_size: int) -> None:
    starts = defaultdict(list)
    for part in map(planned, split(model, SIZE, part_size).parts):
        for piece in part.pieces:
            starts[piece.file].append(piece.start)
    for number, file in enumerate(model.files):
        assert sorted(starts[number]) == expected_cuts(file.size_bytes, part_size)


@settings(max_examples=300, deadline=None)
@given(model=models(), method=SHARES, part_size=PART_SIZES)
def test_shares_are_cut_exactly_at_their_part_of_the_models_bytes_and_know_no_packs(
    model: Model, method: Method, part_size: int
) -> None:
    total = sum(file.size_bytes for file in model.files)
    borders = [share * total // method.shares for share in range(method.shares + 1)]
    expected = []
    first = 0
    for number, file in enumerate(model.files):
        for share, (low, high) in enumerate(itertools.pairwise(borders)):
            start, end = max(low, first), min(high, first + file.size_bytes)
            cuts = [start + at for at in expected_cuts(end - start, part_size)] if start < end else []
            for piece, following in itertools.pairwise([*cuts, end]):
                expected.append((share, number, piece - first, following - piece))
        first += file.size_bytes
    plan = split(model, method, part_size)
    found = [(planned(part).share, *planned(part).pieces[0][:3]) for part in plan.parts]
    assert found == expected
    assert all(len(planned(part).pieces) == 1 for part in plan.parts)
    assert not any(plan.items)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), model=models(), shares=st.integers(1, 9), part_size=PART_SIZES)
def test_some_files_of_a_model_are_cut_where_they_are_cut_with_all_of_them(
    data: st.DataObject, model: Model, shares: int, part_size: int
) -> None:
    method = Method("parts", shares)
    whole = split(model, method, part_size)
    chosen = data.draw(st.sets(st.sampled_from(range(len(model.files))))) if model.files else set()
    some = plan_split(
        [model.files[number] for number in sorted(chosen)],
        method=method,
        part_size=part_size,
        item_digests={},
        parent=None,
        model_files=[(file.path, file.size_bytes) for file in model.files],
    )
    cuts = [part for part in map(planned, whole.parts) if part.pieces[0].file in chosen]
    assert [(part.share, part.pieces[0][1:]) for part in map(planned, some.parts)] == [
        (part.share, part.pieces[0][1:]) for part in cuts
    ]


@settings(max_examples=200, deadline=None)
@given(model=models(), part_size=PART_SIZES)
def test_by_layer_parts_are_those_of_tensor_in_order_of_layers_and_experts(model: Model, part_size: int) -> None:
    parts = [planned(part) for part in split(model, LAYER, part_size).parts]
    runs = [planned(part) for part in split(model, TENSOR, part_size).parts]
    assert {part.pieces for part in parts if not is_pack(model, part, LAYER)} == {
        part.pieces for part in runs if not is_pack(model, part, TENSOR)
    }
    places = [(-1 if part.layer is None else part.layer.number) for part in parts]
    assert places == sorted(places)
    small = {(item.file, item.start): item for item in list_small_items(model.files, method=LAYER)}
    for index in set(places):
        of_layer = [part for part, place in zip(parts, places, strict=True) if place == index]
        in_packs = [small[piece[:2]] for part in of_layer if is_pack(model, part, LAYER) for piece in part.pieces]
        experts = [-1 if item.expert is None else item.expert for item in in_packs]
        assert experts == sorted(experts), "an expert is one run"
        whole = [-1 if part.expert is None else part.expert for part in of_layer]
        assert whole == sorted(whole)


def test_stacks_of_layers_follow_each_other_in_order_of_first_appearance_and_by_number() -> None:
    names = ["out", "up.10.w", "up.9.w", "down.1.w", "up.2.w", "down.0.w", "in"]
    tensors = tuple(TensorLayout(name, "U8", (MIB,), None, n * MIB, MIB) for n, name in enumerate(names))
    files = (SourceFile("m", len(names) * MIB, "safetensors", tensors),)
    parts = [planned(part) for part in split(Model(files, {}), LAYER).parts]
    assert [str(part.layer) for part in parts] == [
        *("None", "None"),
        *("up.2", "up.9", "up.10"),
        *("down.0", "down.1"),
    ]


@settings(max_examples=150, deadline=None)
@given(model=models(), method=METHODS, part_size=PART_SIZES, devices=st.integers(0, 9))
def test_whatever_auto_would_choose_now_an_unchanged_model_is_never_stored_again(
    model: Model, method: Method, part_size: int, devices: int
) -> None:
    first = split(model, method, part_size)
    parent = as_parent(model, first)
    chosen = choose_split(model.files, requested="auto", part_size=None, device_count=devices, parent=parent)
    assert (chosen.method, chosen.part_size) == (method, part_size)
    again = split(model, chosen.method, chosen.part_size, parent)
    assert again.extents == first.extents
    assert all(new == old or isinstance(new, ReusedPart) for old, new in zip(first.parts, again.parts, strict=True))


@settings(max_examples=150, deadline=None)
@given(model=models(), method=CUT_TENSORS, part_size=PART_SIZES)
def test_another_name_for_layers_packs_what_is_new_and_moves_nothing_that_is_there(
    model: Model, method: Method, part_size: int
) -> None:
    naming = parse_layer_pattern(r"(w)\d*(\d)$")
    first = split(model, method, part_size)
    again = plan_split(
        model.files,
        method=method,
        part_size=part_size,
        item_digests=model.item_digests(method),
        parent=as_parent(model, first),
        naming=naming,
    )
    assert not any(isinstance(part, PlannedPart) and is_pack(model, part, method) for part in again.parts)
    new = plan_split(model.files, method=method, part_size=part_size, item_digests={}, parent=None, naming=naming)
    for part in map(planned, new.parts):
        for piece in part.pieces if is_pack(model, part, method) else ():
            names = {tensor.start: tensor.name for tensor in model.files[piece.file].tensors if tensor.length}
            name = names.get(piece.start, "")
            assert part.layer == (Layer("w", int(name[-1])) if "w" in name else None)


def expected_cuts(length: int, part_size: int) -> list[int]:
    """Return where a run is cut, in the words of the design: at multiples, but for a tail under 1 MiB."""
    cuts = list(range(0, length, part_size))
    if len(cuts) > 1 and length - cuts[-1] < SMALL_ITEM_BYTES:
        cuts.pop()
    return cuts


@settings(max_examples=300, deadline=None)
@given(length=st.integers(SMALL_ITEM_BYTES, 300 * MIB), part_size=PART_SIZES)
def test_cuts_follow_the_rule_and_cover_the_run(length: int, part_size: int) -> None:
    cuts = list(iter_cuts(length, part_size))
    assert [start for start, _ in cuts] == expected_cuts(length, part_size)
    assert sum(piece for _, piece in cuts) == length
    assert min(piece for _, piece in cuts) >= SMALL_ITEM_BYTES


@settings(max_examples=150, deadline=None)
@given(model=models(), method=METHODS, part_size=PART_SIZES)
def test_the_same_bytes_give_the_same_plan_and_the_same_bytes_again_write_no_pack(
    model: Model, method: Method, part_size: int
) -> None:
    first = split(model, method, part_size)
    assert split(model, method, part_size) == first
    again = split(model, method, part_size, as_parent(model, first))
    assert again.items == first.items
    assert again.extents == first.extents
    assert len(again.parts) == len(first.parts)
    for old, new in zip(first.parts, again.parts, strict=True):
        assert new == old or isinstance(new, ReusedPart)
        assert isinstance(new, ReusedPart) == is_pack(model, old, method)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), model=models(), method=CUT_TENSORS, part_size=PART_SIZES)
def test_changed_small_tensors_are_stored_alone_and_all_else_keeps_its_place(
    data: st.DataObject, model: Model, method: Method, part_size: int
) -> None:
    plan = split(model, method, part_size)
    small = [item for item in list_small_items(model.files, method=TENSOR) if item.tensor is not None]
    changed = data.draw(st.lists(st.sampled_from(small), unique=True)) if small else []
    seeds = dict(model.seeds)
    for fresh, item in enumerate(changed):
        assert item.tensor is not None
        seeds[model.files[item.file].path, item.tensor] = 1000 + fresh
    child = Model(model.files, seeds)
    parent = as_parent(model, plan)
    after = split(child, method, part_size, parent)
    written = {
        (piece.file, piece.start) for part in after.parts if isinstance(part, PlannedPart) for piece in part.pieces
    }
    all_small = {(item.file, item.start) for item in list_small_items(model.files, method=TENSOR)}
    assert written & all_small == {(item.file, item.start) for item in changed}
    reused = [part for part in after.parts if isinstance(part, ReusedPart)]
    assert len({part.parent_part for part in reused}) == len(reused)
    for part in reused:
        assert part.size_bytes == parent.manifest.parts[part.parent_part]
        assert part.digest == parent.digests[part.parent_part]


@settings(max_examples=150, deadline=None)
@given(old=models(), new=models(), method=METHODS, old_method=METHODS, lost=st.frozensets(st.integers(0, 5)))
def test_whatever_the_parent_is_kept_bytes_are_the_right_ones(
    old: Model, new: Model, method: Method, old_method: Method, lost: frozenset[int]
) -> None:
    parent = as_parent(old, split(old, old_method), lost)
    plan = split(new, method, parent=parent)
    as_parent(new, plan)
    old_items = {}  # (part, start in part) → digest of what lies there
    for item in list_small_items(old.files, method=old_method):
        part, start = locate(parent.manifest.files[item.file], item.start)
        digest = old.digest(old.files[item.file], item.start, item.length, item.tensor)
        old_items[part, start, item.length] = digest
    for item in list_small_items(new.files, method=method):
        number, start = locate_extent(plan, item.file, item.start)
        found = plan.parts[number]
        if isinstance(found, ReusedPart):
            assert found.parent_part not in lost
            digest = new.digest(new.files[item.file], item.start, item.length, item.tensor)
            assert old_items[found.parent_part, start, item.length] == digest


def locate(file: File, position: int) -> tuple[int, int]:
    for extent in file.extents:
        if position < extent.length:
            return extent.part, extent.start + position
        position -= extent.length
    raise AssertionError(position)


def locate_extent(plan: SplitPlan, file: int, position: int) -> tuple[int, int]:
    for extent in plan.extents[file]:
        if position < extent.length:
            return extent.part, extent.start + position
        position -= extent.length
    raise AssertionError(position)


def planned(part: PlannedPart | ReusedPart) -> PlannedPart:
    assert isinstance(part, PlannedPart)
    return part


def is_pack(model: Model, part: PlannedPart | ReusedPart, method: Method) -> bool:
    first = planned(part).pieces[0]
    return any((item.file, item.start) == first[:2] for item in list_small_items(model.files, method=method))


def test_a_worked_example() -> None:
    embed = 9 * MIB - 1
    tensors = (
        TensorLayout("embed", "U8", (embed,), None, 100, embed),
        TensorLayout("layers.0.norm", "U8", (10,), None, 100 + embed, 10),
        TensorLayout("layers.0.bias", "U8", (64,), None, 110 + embed, 64),
        TensorLayout("layers.1.norm", "U8", (10,), None, 174 + embed, 10),
        TensorLayout("empty", "U8", (0,), None, 184 + embed, 0),
    )
    files = (
        SourceFile("config.json", 700, "opaque", ()),
        SourceFile("empty.txt", 0, "opaque", ()),
        SourceFile("model.safetensors", 184 + embed, "safetensors", tensors),
    )
    plan = split(Model(files, {}), TENSOR)
    assert [(part.size_bytes, part.pieces, part.layer) for part in map(planned, plan.parts)] == [
        (804, ((0, 0, 700, 0), (2, 0, 100, 704)), None),
        (4 * MIB, ((2, 100, 4 * MIB, 0),), None),
        (5 * MIB - 1, ((2, 100 + 4 * MIB, 5 * MIB - 1, 0),), None),
        (128, ((2, 100 + embed, 10, 0), (2, 110 + embed, 64, 64)), Layer("layers", 0)),
        (10, ((2, 174 + embed, 10, 0),), Layer("layers", 1)),
    ]
    assert plan.items == (((0, 700),), (), ((0, 100),))
    assert plan.extents[1] == ()


def test_neighbours_that_are_contiguous_in_file_and_pack_are_one_extent() -> None:
    files = (SourceFile("m.safetensors", 64 * 6, "safetensors", tensors_of([64] * 5, layers=1)),)
    model = Model(files, {})
    plan = split(model, TENSOR)
    shown = [tuple((e.part, e.start, e.length) for e in extents) for extents in plan.extents]
    assert shown == [((0, 0, 64), (1, 0, 320))]
    again = split(model, TENSOR, parent=as_parent(model, plan))
    assert again.extents == plan.extents, "each item is found inside the extent of all"


def test_a_pack_is_filled_to_the_part_size_and_not_past_it() -> None:
    tensors = tensors_of([MIB // 2] * 3 + [MIB // 2 - 64, 64, 1], layers=1)
    files = (SourceFile("m", tensors[-1].start + tensors[-1].length, "safetensors", tensors),)
    parts = split(Model(files, {}), TENSOR, MIB).parts
    assert [part.size_bytes for part in parts] == [64, MIB, MIB, 1]


def test_overlapping_tensors_are_covered_once() -> None:
    tensors = (
        TensorLayout("a", "U8", (100,), None, 0, 100),
        TensorLayout("view", "U8", (10,), None, 20, 10),
        TensorLayout("layers.2.tail", "U8", (80,), None, 50, 80),
        TensorLayout("again", "U8", (80,), None, 50, 80),
    )
    files = (SourceFile("m", 130, "torch", tensors),)
    items = list_small_items(files, method=TENSOR)
    assert [item[1:] for item in items] == [
        (0, 100, "a", None, None),
        (100, 30, None, Layer("layers", 2), None),
    ]
    as_parent(Model(files, {}), split(Model(files, {}), TENSOR))


def test_a_tensor_past_the_end_of_its_file_is_a_bug_above() -> None:
    files = (SourceFile("m", 10, "torch", (TensorLayout("a", "U8", (11,), None, 0, 11),)),)
    with pytest.raises(Internal, match="'m'"):
        list_small_items(files, method=TENSOR)


@pytest.mark.parametrize("part_size", [0, -MIB, 1, MIB + 1, 65 * MIB])
def test_impossible_part_sizes_are_refused(part_size: int) -> None:
    with pytest.raises(InvalidInput, match="MiB"):
        plan_split((), method=SIZE, part_size=part_size, item_digests={}, parent=None)
    with pytest.raises(InvalidInput, match="MiB"):
        choose_split((), requested="auto", part_size=part_size, device_count=1, parent=None)


def test_unknown_methods_are_refused() -> None:
    for text in ("layers", "", "Tensor", "tensor "):
        with pytest.raises(InvalidInput, match=f"{text!r}: use auto, tensor, layer, size or parts=N"):
            choose_split((), requested=text, part_size=None, device_count=1, parent=None)


@pytest.mark.parametrize("text", ["parts", "parts=", "parts=0", "parts=-1", "parts=x", "parts=04", "parts=1000001"])
def test_a_number_of_parts_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="parts=N with N from 1 to 1,000,000"):
        parse_method(text)
    assert find_method(text) is None


def test_more_parts_than_bytes_are_refused_where_they_are_asked_for_and_kept_where_the_parent_has_them() -> None:
    files = (SourceFile("a", 3, "opaque", ()),)
    with pytest.raises(InvalidInput, match=r"parts=4 of 3 bytes"):
        choose_split(files, requested="parts=4", part_size=None, device_count=1, parent=None)
    model = Model((SourceFile("a", 100, "opaque", ()),), {})
    parent = as_parent(model, split(model, Method("parts", 4)))
    chosen = choose_split(files, requested="auto", part_size=None, device_count=1, parent=parent)
    assert str(chosen.method) == "parts=4"
    plan = split(Model(files, {}), chosen.method)
    assert [(planned(part).share, part.size_bytes) for part in plan.parts] == [(1, 1), (2, 1), (3, 1)]


def test_a_parent_split_in_a_way_we_do_not_know_gives_no_packs() -> None:
    model = Model((SourceFile("a", 100, "opaque", ()),), {})
    parent = as_parent(model, split(model, SIZE))
    strange = Manifest(
        split="newer", part_size=MIB, files=parent.manifest.files, parts=parent.manifest.parts, checks=""
    )
    plan = split(model, SIZE, parent=Parent(strange, parent.digests))
    assert all(isinstance(part, PlannedPart) for part in plan.parts)
    assert (
        choose_split(model.files, requested="auto", part_size=None, device_count=1, parent=Parent(strange, [])).method
        == SIZE
    )


def test_auto_chooses_by_what_holds_most_bytes_and_says_so() -> None:
    weights = SourceFile("m.safetensors", 600 * MIB, "safetensors", ())
    other = SourceFile("m.bin", 500 * MIB, "opaque", ())
    chosen = choose_split((weights, other), requested="auto", part_size=None, device_count=2, parent=None)
    assert (chosen.method, chosen.part_size) == (TENSOR, 35 * MIB)
    assert "0 tensors in safetensors files hold 54 % of the bytes" in chosen.why
    assert "35 MiB" in chosen.why
    chosen = choose_split((other,), requested="auto", part_size=None, device_count=2, parent=None)
    assert (chosen.method, chosen.part_size) == (SIZE, 16 * MIB)
    chosen = choose_split((other,), requested="tensor", part_size=2 * MIB, device_count=2, parent=None)
    assert (chosen.method, chosen.part_size) == (TENSOR, 2 * MIB)


def scattered(*, experts: int, layers: int, length: int = MIB) -> tuple[SourceFile, ...]:
    """Return files of one expert each, with all layers in each."""
    files = []
    for expert in range(experts):
        names = [f"model.layers.{layer}.mlp.experts.{expert}.w" for layer in range(layers)]
        tensors = tuple(TensorLayout(name, "U8", (length,), None, n * length, length) for n, name in enumerate(names))
        files.append(SourceFile(f"expert{expert}.gguf", layers * length, "gguf", tensors))
    return tuple(files)


@pytest.mark.parametrize(
    ("experts", "layers", "method"), [(4, 5, LAYER), (3, 5, TENSOR), (8, 1, TENSOR), (1, 50, TENSOR)]
)
def test_auto_goes_by_layer_where_layers_are_scattered_over_the_files(
    experts: int, layers: int, method: Method
) -> None:
    files = scattered(experts=experts, layers=layers)
    chosen = choose_split(files, requested="auto", part_size=None, device_count=1, parent=None)
    assert chosen.method == method
    if method == LAYER:
        assert chosen.why == (
            "20 tensors in gguf files hold 100 % of the bytes and their 5 layers lie in 20 places, so cuts are at tensor "
            "boundaries and parts go to devices layer by layer; the model is small, so parts have at most the least part "
            "size, 4 MiB"
        )
    naming = parse_layer_pattern(r"(\d+)\.w$")  # what the user calls layers lies together
    chosen = choose_split(files, requested="auto", part_size=None, device_count=1, parent=None, naming=naming)
    assert chosen.method == TENSOR


def test_the_sentence_tells_the_facts_that_decided() -> None:
    lengths = [100] * 7 + [30 * MIB, 2 * MIB, 200 * MIB]
    tensors = tensors_of(lengths, layers=1)
    weights = SourceFile("m.safetensors", tensors[-1].start + tensors[-1].length, "safetensors", tensors)
    text = SourceFile("notes.txt", 100, "opaque", ())

    def why(*files: SourceFile, devices: int = 1, requested: str = "auto", parent: Parent | None = None) -> str:
        return choose_split(files, requested=requested, part_size=None, device_count=devices, parent=parent).why

    assert why(weights, text, devices=2) == (
        "10 tensors in safetensors files hold 99 % of the bytes, so cuts are at tensor boundaries; 7 under 1 MiB are "
        "gathered in packs of one layer each and 2 over the part size are cut; parts have at most 8 MiB, so that each of 2 "
        "devices gets about 16 or more"
    )
    assert why(text) == (
        "no file is of a known tensor format, so files are cut at fixed sizes; all under 1 MiB are gathered in packs; the model "
        "is small, so parts have at most the least part size, 4 MiB"
    )
    heavy = SourceFile("z.bin", 10**12, "opaque", ())
    assert "at fixed sizes; 1 under 1 MiB is gathered in packs; " in why(text, heavy)
    lone = SourceFile("m.npy", 2 * MIB, "npy", tensors_of([2 * MIB], layers=1))
    assert why(lone).startswith("1 tensor in npy files holds 100 % of the bytes, so ")
    assert why(weights, heavy) == (
        "files of no known tensor format hold 99 % of the bytes, so files are cut at fixed sizes; the model is large, so "
        "parts have at most the greatest part size, 64 MiB"
    )
    model = Model((text,), {})
    assert why(text, parent=as_parent(model, split(model, TENSOR))) == (
        "the parent's method tensor is kept; the parent's part size of 4 MiB is kept, so equal parts are stored once"
    )
    assert why(text, requested="layer").startswith("the method layer was asked for; ")


@pytest.mark.parametrize(
    ("total", "devices", "part_size"),
    [
        (0, 1, 4 * MIB),
        (64 * MIB, 1, 4 * MIB),
        (64 * MIB + 1, 1, 5 * MIB),
        (64 * MIB + 1, 0, 5 * MIB),
        (10**12, 3, 64 * MIB),
    ],
)
def test_the_part_size_gives_each_device_about_sixteen(total: int, devices: int, part_size: int) -> None:
    files = (SourceFile("a", total, "opaque", ()),)
    assert (
        choose_split(files, requested="auto", part_size=None, device_count=devices, parent=None).part_size == part_size
    )


def test_auto_keeps_the_parents_method_and_part_size() -> None:
    model = Model((SourceFile("m.safetensors", 600 * MIB, "safetensors", ()),), {})
    parent = as_parent(model, split(model, SIZE, 7 * MIB))
    for requested in ("auto", "size"):
        chosen = choose_split(model.files, requested=requested, part_size=None, device_count=9, parent=parent)
        assert (chosen.method, chosen.part_size) == (SIZE, 7 * MIB)
    chosen = choose_split(model.files, requested="auto", part_size=8 * MIB, device_count=9, parent=parent)
    assert (chosen.method, chosen.part_size) == (SIZE, 8 * MIB)
    chosen = choose_split(model.files, requested="tensor", part_size=None, device_count=1, parent=parent)
    assert (chosen.method, chosen.part_size) == (TENSOR, 38 * MIB)


def test_sixty_thousand_tensors_are_split_the_same_with_themselves_as_parent() -> None:
    lengths = [2000 if number % 3 else 2 * MIB for number in range(60_000)]
    tensors = tensors_of(lengths, layers=80)
    size = tensors[-1].start + tensors[-1].length
    model = Model((SourceFile("m.safetensors", size, "safetensors", tensors),), {})
    digests = model.item_digests(TENSOR)
    plan = plan_split(model.files, method=TENSOR, part_size=4 * MIB, item_digests=digests, parent=None)
    parent = as_parent(model, plan)
    again = plan_split(model.files, method=TENSOR, part_size=4 * MIB, item_digests=digests, parent=parent)
    assert again.extents == plan.extents
    assert len(again.parts) == len(plan.parts)
