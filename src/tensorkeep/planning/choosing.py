"""Chooses how a model is split when the user leaves it open, and says why."""

from collections.abc import Sequence
from dataclasses import dataclass

from tensorkeep.errors import InvalidInput
from tensorkeep.formats.opaque import OPAQUE
from tensorkeep.planning.cuts import SourceFile, check_part_size
from tensorkeep.planning.kept_items import Parent
from tensorkeep.planning.layers import USUAL_NAMING, LayerNaming
from tensorkeep.planning.methods import LAYER, SIZE, TENSOR, Method, find_method, parse_method
from tensorkeep.records.layout import MAX_PART_SIZE_BYTES, MIB, MIN_AUTO_PART_BYTES, SMALL_ITEM_BYTES

AUTO = "auto"

SCATTERED = 4
"""Layers are scattered where in file order the layer changes this many times as often as there are layers. Files in order of layers
have 1; those that safetensors sorts by dtype before the name have one for each dtype, 3 in an fp8 model with its scales; experts
in files of their own have as many as there are files."""

PARTS_PER_DEVICE = 16
"""About how many parts each device gets of a model: enough to balance devices, few enough to be cheap to open."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How to split, and one sentence that says why."""

    method: Method
    part_size: int
    why: str


def choose_split(
    files: Sequence[SourceFile],
    *,
    requested: str,
    part_size: int | None,
    device_count: int,
    parent: Parent | None,
    naming: LayerNaming = USUAL_NAMING,
) -> Choice:
    """Return the method and part size for these files.

    ``auto`` keeps the parent's method and part size: a better choice is no reason to store an unchanged model again. Without a
    parent it is ``layer`` where files of known formats hold most of the bytes and layers are scattered over them, ``tensor`` where
    they are not, else ``size``. A part size that is given wins; one that the parent used with a method that cuts alike is kept, so
    that unchanged bytes are found again.

    Raises:
        InvalidInput: the method is unknown, the part size is no whole number of MiB from 1 to 64, or the model has fewer bytes
            than parts are asked for.
    """
    check_split(requested, part_size)
    facts = _Facts.of(files)
    method, why_method = _choose_method(files, facts, requested, parent, naming)
    size, why_size = _choose_part_size(facts, method, part_size, device_count, parent)
    packs = _why_packs(facts, method, size) if requested == AUTO and parent is None else ""
    return Choice(method, size, f"{why_method}{packs}; {why_size}")


def check_split(requested: str, part_size: int | None) -> None:
    """Return if a method and a part size can be asked for: known before any file is read.

    Raises:
        InvalidInput: the method is unknown, or the part size is no whole number of MiB from 1 to 64.
    """
    if part_size is not None:
        check_part_size(part_size)
    if requested != AUTO:
        parse_method(requested)


def auto_part_size(total_bytes: int, device_count: int) -> int:
    """Return total / (16 · devices), rounded up to a MiB, from 4 to 64 MiB."""
    share = -(-total_bytes // (PARTS_PER_DEVICE * max(1, device_count)))
    return min(max(-(-share // MIB) * MIB, MIN_AUTO_PART_BYTES), MAX_PART_SIZE_BYTES)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a choice is made by: sizes of files, bytes in those of known formats, those formats, and the sizes of their tensors."""

    sizes: tuple[int, ...]
    total_bytes: int
    known_bytes: int
    formats: tuple[str, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, files: Sequence[SourceFile]) -> "_Facts":
        known = [file for file in files if file.format != OPAQUE]
        return cls(
            tuple(file.size_bytes for file in files if file.size_bytes),
            sum(file.size_bytes for file in files),
            sum(file.size_bytes for file in known),
            tuple(sorted({file.format for file in known})),
            tuple(tensor.length for file in known for tensor in file.tensors if tensor.length),
        )


def _choose_method(
    files: Sequence[SourceFile], facts: _Facts, requested: str, parent: Parent | None, naming: LayerNaming
) -> tuple[Method, str]:
    if requested != AUTO:
        method = parse_method(requested)
        _check_shares(method, facts.total_bytes)
        return method, f"the method {requested} was asked for"
    if parent is not None and (kept := find_method(parent.manifest.split)) is not None:
        return kept, f"the parent's method {kept} is kept"
    total, known = facts.total_bytes, facts.known_bytes
    if 2 * known <= total:
        if not known:
            return SIZE, "no file is of a known tensor format, so files are cut at fixed sizes"
        share = _percent(total - known, total)
        return SIZE, f"files of no known tensor format hold {share} of the bytes, so files are cut at fixed sizes"
    tensors = f"{_count(len(facts.lengths), 'tensor')} in {' and '.join(facts.formats)} files"
    where = f"{tensors} {'holds' if len(facts.lengths) == 1 else 'hold'} {_percent(known, total)} of the bytes"
    layers, changes = _count_layers(files, naming)
    if layers > 1 and changes >= SCATTERED * layers:
        scattered = f"their {layers} layers lie in {changes:,} places"
        return (
            LAYER,
            f"{where} and {scattered}, so cuts are at tensor boundaries and parts go to devices layer by layer",
        )
    return TENSOR, f"{where}, so cuts are at tensor boundaries"


def _count_layers(files: Sequence[SourceFile], naming: LayerNaming) -> tuple[int, int]:
    """Return how many layers there are, and how many runs of tensors of one layer, in file order."""
    layers, changes, last = set(), 0, None
    for file in files:
        for tensor in file.tensors:
            layer = naming.role_of(tensor.name).layer if tensor.length else None
            if layer is not None and layer != last:
                layers.add(layer)
                changes += 1
                last = layer
    return len(layers), changes


def _why_packs(facts: _Facts, method: Method, part_size: int) -> str:
    """Return what becomes of small and of large tensors, or of small files, where there are any."""
    if method == SIZE:
        few = sum(1 for size in facts.sizes if size < SMALL_ITEM_BYTES)
        which = "all" if few == len(facts.sizes) else f"{few:,}"
        return f"; {which} under 1 MiB {'is' if which == '1' else 'are'} gathered in packs" if few else ""
    small = sum(1 for length in facts.lengths if length < SMALL_ITEM_BYTES) if method.cuts_tensors else 0
    large = sum(1 for length in facts.lengths if length >= part_size + SMALL_ITEM_BYTES) if method.cuts_tensors else 0
    words = []
    if small:
        which = "all" if small == len(facts.lengths) else f"{small:,}"
        words.append(f"{which} under 1 MiB {'is' if which == '1' else 'are'} gathered in packs of one layer each")
    if large:
        words.append(f"{large:,} over the part size {'is' if large == 1 else 'are'} cut")
    return f"; {' and '.join(words)}" if words else ""


def _choose_part_size(
    facts: _Facts, method: Method, asked: int | None, device_count: int, parent: Parent | None
) -> tuple[int, str]:
    if asked is not None:
        return asked, f"parts of {_mib(asked)} were asked for"
    if parent is not None and _cut_alike(parent, method):
        kept = parent.manifest.part_size
        return kept, f"the parent's part size of {_mib(kept)} is kept, so equal parts are stored once"
    size = auto_part_size(facts.total_bytes, device_count)
    return size, _why_size(facts.total_bytes, device_count, size)


def _cut_alike(parent: Parent, method: Method) -> bool:
    """Return whether a method cuts where the parent's does, so that with its part size equal bytes are equal parts."""
    old = find_method(parent.manifest.split)
    return old is not None and (old == method or (old.cuts_tensors and method.cuts_tensors))


def _check_shares(method: Method, total_bytes: int) -> None:
    if method.shares > total_bytes:
        raise InvalidInput(
            f"{method} of {total_bytes} bytes: ask for at most one part a byte, or leave the split to auto",
            method=str(method),
            bytes=total_bytes,
        )


def _why_size(total: int, device_count: int, size: int) -> str:
    if size == MIN_AUTO_PART_BYTES and total < size * PARTS_PER_DEVICE * max(1, device_count):
        return f"the model is small, so parts have at most the least part size, {_mib(size)}"
    if size == MAX_PART_SIZE_BYTES:
        return f"the model is large, so parts have at most the greatest part size, {_mib(size)}"
    devices = "the device" if device_count <= 1 else f"each of {device_count} devices"
    return f"parts have at most {_mib(size)}, so that {devices} gets about {PARTS_PER_DEVICE} or more"


def _mib(size: int) -> str:
    return f"{size // MIB} MiB"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part // whole} %"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
