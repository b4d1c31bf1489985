"""Plan: what a push would do, and what a load of its result would take, told without writing anything.

Only headers are read. Parts that are equal to each other, or stored already, can then not be told from new ones; ``exact``
reads and hashes everything, as a push does, and knows.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.formats.protocol import FileStructure
from tensorkeep.formats.registry import read_structure
from tensorkeep.planning.choosing import check_split
from tensorkeep.planning.layers import Layer, LayerNaming, parse_layer_pattern
from tensorkeep.planning.placement import DeviceShare
from tensorkeep.planning.read_plan import CopyChoice, ExtentMap, choose_copies
from tensorkeep.planning.splitting import PlannedPart
from tensorkeep.planning.units import UnitMap
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.names import parse_model_name
from tensorkeep.store.context import StoreContext
from tensorkeep.store.forecast_parts import ForeseenCopies, ForeseenParts, foresee_copies
from tensorkeep.store.journal import refuse_stale
from tensorkeep.store.learned_rates import find_rates
from tensorkeep.store.place import get_first_device
from tensorkeep.store.places import LOCAL_NAME
from tensorkeep.store.progress import ByteProgress
from tensorkeep.store.push_plan import PushPlan, known_structure, plan_push
from tensorkeep.store.push_read import read_sources
from tensorkeep.store.push_target import (
    PushOptions,
    PushTarget,
    device_shares,
    find_target,
    imagine_target,
    open_base,
    zone_warnings,
)
from tensorkeep.store.reports import DeviceForecast, FileForecast, LayerBalance, ProgressCallback, PushForecast
from tensorkeep.store.sources import open_sources
from tensorkeep.store.stat_cache import StatCache
from tensorkeep.store.structure import known_rates


def forecast_push(
    context: StoreContext,
    source: str | os.PathLike[str] | Mapping[str, Any],
    model: str | None,
    options: PushOptions,
    *,
    exact: bool,
    progress: ProgressCallback | None,
) -> PushForecast:
    """Return what a push of a source would do; see `Store.plan`."""
    check_split(options.split, options.part_size)
    naming = parse_layer_pattern(options.layer_pattern)
    sources = open_sources(source)
    target, shares = _find_devices(context, model, options)
    refuse_stale(context)
    base = open_base(context, target, options)
    plan = plan_push(
        context,
        sources,
        requested=options.split,
        part_size=options.part_size,
        naming=naming,
        base=base,
        device_count=len(target.devices),
        cache=None if options.rehash else StatCache(context.cache_folder),
        hash_items=exact,
    )
    parts = ForeseenParts(plan, base, _hash_parts(context, plan, progress) if exact else {})
    copies = foresee_copies(context, plan, target, parts, shares, allow_soft=options.allow_soft)
    units, devices = copies.units(parts.sizes)
    rates = known_rates(target.devices, find_rates(context.cache_folder, target.devices))
    choice = choose_copies({unit: units.sizes[unit] for unit in devices}, devices, rates)
    new = [part for part in parts.new if copies.written[part] and not copies.held[part]]
    return PushForecast(
        model=None if model is None else str(parse_model_name(model)),
        method=str(plan.choice.method),
        part_size=plan.choice.part_size,
        why=plan.choice.why,
        bytes=plan.total_bytes,
        parts=len(parts.sizes),
        new_parts=len(new),
        new_packs=sum(1 for part in new if _is_pack(plan, parts.new[part])),
        new_bytes=sum(parts.sizes[part] for part in new),
        exact=exact,
        files=tuple(_describe_files(plan)),
        devices=tuple(_describe_devices(target, copies, choice)),
        layers=_measure_layers(plan, parts, naming, units, devices, choice),
        warnings=(
            *zone_warnings(target, allow_soft=options.allow_soft),
            *_warn_of_room(parts, copies, exact=exact),
        ),
    )


def _find_devices(
    context: StoreContext, model: str | None, options: PushOptions
) -> tuple[PushTarget, list[DeviceShare]]:
    """Return where the push would go and its devices; in a store without any, the one that it would add."""
    name = parse_model_name(model) if model is not None else None
    if context.catalog.list_devices():
        target = find_target(context, name, options)
        return target, device_shares(context, target.devices, allow_soft=options.allow_soft)
    url = get_first_device(context.place).as_uri()
    device = DeviceFacts(id=LOCAL_NAME, name=LOCAL_NAME, url=url, zone=LOCAL_NAME, durability="durable")
    return imagine_target(context, name, options, device), [DeviceShare(device.id, device.zone, 1.0, None)]


def _hash_parts(context: StoreContext, plan: PushPlan, progress: ProgressCallback | None) -> dict[int, bytes]:
    """Read everything and return the digests of the new parts, by number in the split."""
    counter = ByteProgress(progress, "plan", plan.total_bytes)
    counter.count(sum(file.size_bytes for file in plan.kept.values()))
    workers = context.runtime.workers
    with workers.open_pool(1, "plan") as pool:
        result = read_sources(plan, lambda *_: None, workers=workers, pool=pool, count=counter.count)
    return {number: fact.digest for number, fact in result.parts.items()}


def _is_pack(plan: PushPlan, number: int) -> bool:
    part = plan.split.parts[number]
    return isinstance(part, PlannedPart) and part.is_pack


def _describe_files(plan: PushPlan) -> Iterator[FileForecast]:
    structures = _structures(plan)
    for source in plan.sources:
        structure, kept = structures[source.path], source.path in plan.kept
        if kept and structure.format == OPAQUE:
            structure = read_structure(source.path, source, strict=False)  # a version does not keep the note
        yield FileForecast(
            source.path, source.size_bytes, structure.format, len(structure.tensors), structure.note, kept
        )


def _structures(plan: PushPlan) -> dict[str, FileStructure]:
    """Return the structure of every file by path: of what is read from the file, of what is kept from the version."""
    found = {path: known_structure(file) for path, file in plan.kept.items()}
    return found | {source.path: f for source, f in zip(plan.read, plan.structures, strict=True)}


def _describe_devices(target: PushTarget, copies: ForeseenCopies, choice: CopyChoice) -> Iterator[DeviceForecast]:
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for written in copies.written.values():
        count.update(each.device for each in written)
        for each in written:
            size[each.device] += each.length
    for facts in sorted(target.devices, key=lambda facts: facts.name):
        key = facts.id
        yield DeviceForecast(facts.name, count[key], size[key], choice.bytes.get(key, 0), choice.seconds.get(key, 0.0))


def _warn_of_room(parts: ForeseenParts, copies: ForeseenCopies, *, exact: bool) -> Iterator[str]:
    if copies.crowded:
        count, size = len(copies.crowded), sum(parts.sizes[part] for part in copies.crowded)
        yield (
            f"{'' if exact else 'up to '}{count:,} {'part' if count == 1 else 'parts'} of {size:,} bytes in all would not find "
            "room on enough devices: free space or add devices, lower --replicas or --ec, or push with --allow-degraded"
        )


def _measure_layers(
    plan: PushPlan,
    parts: ForeseenParts,
    naming: LayerNaming,
    units: UnitMap,
    devices: Mapping[int, Sequence[str]],
    choice: CopyChoice,
) -> LayerBalance | None:
    """Return how evenly layers lie on devices, None where no tensor's name tells a layer."""
    sources = {unit: devices[unit][index] for unit, index in choice.copies.items()}
    layers: defaultdict[Layer, Counter[str]] = defaultdict(Counter)
    for path, structure in _structures(plan).items():
        extents = ExtentMap(parts.extents[path])
        for tensor in structure.tensors:
            layer = naming.role_of(tensor.name).layer
            if layer is None:
                continue
            for piece in units.pieces(extents.pieces(tensor.start, tensor.length, 0)):
                if piece.part in sources:
                    layers[layer][sources[piece.part]] += piece.length
    speeds = {device: size / choice.seconds[device] for device, size in choice.bytes.items() if size}
    seconds = {
        layer: max((size / speeds[device] for device, size in load.items()), default=0.0)
        for layer, load in layers.items()
    }
    total = sum(seconds.values())
    if not total:
        return None
    slowest = max(seconds, key=lambda layer: seconds[layer])
    ideal = sum(load.total() for load in layers.values()) / sum(speeds.values())
    return LayerBalance(len(layers), str(slowest), seconds[slowest], ideal / total)
