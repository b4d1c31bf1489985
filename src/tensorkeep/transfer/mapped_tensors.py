"""The *map* mode of a load: whole tensors as views of their parts' files, laid side by side (`planning.map_plan`).

`map_tensors` lays the files and touches nothing: what it returns is not verified. `transfer.reader.read_boxes` verifies it
where it lies (`MappedTensors.look`), in the same run that reads what could not be mapped; where a copy turns out bad it is taken
out from under the tensors (`MappedTensors.replace`) and a good one read into its place.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from tensorkeep.devices.forwarding import innermost, mappable
from tensorkeep.devices.protocol import FileIdentity, MappableDevice
from tensorkeep.errors import TensorkeepError
from tensorkeep.planning.map_plan import Lay, Unmapped, Wanted, plan_mapping
from tensorkeep.planning.read_plan import ExtentMap, Piece, choose_copies
from tensorkeep.records.manifest import File, Tensor
from tensorkeep.transfer.boxes import tensor_array
from tensorkeep.transfer.kept_files import KeptFiles
from tensorkeep.transfer.mapping import PAGE_BYTES, MappedRange
from tensorkeep.transfer.memory import HUGE_PAGE_BYTES
from tensorkeep.transfer.sources import SUSPECT, PartSource, PartTable

_USUAL_MOST_MAPPINGS = 65530
_GRANTED_UNCOUNTED = 1000
_MAPPINGS = Path("/proc/self/maps")
_MOST_MAPPINGS = Path("/proc/sys/vm/max_map_count")


class MappedTensors:
    """Tensors that lie over files, by their number in the load.

    Attributes:
        views: number → all bytes of the tensor, writable; nothing of it was verified by who made this.
        sources: part → the copy that was laid.
        files: part → the file that was laid, which may have another name by now, or none.
        kept: those that are still open, and that the system keeps their length of.
        failed: part → a copy that could not be laid: to be read first, so that it is found out, and told, what is wrong with it.
        unmapped: number → why a tensor is to be read instead.
        size_bytes: bytes of all tensors that were mapped.
    """

    def __init__(
        self,
        area: MappedRange,
        wanted: Sequence[Wanted],
        places: Mapping[int, int],
        lays: Sequence[Lay],
        sources: Mapping[int, PartSource],
        files: Mapping[int, FileIdentity],
        kept: KeptFiles,
        failed: Mapping[int, PartSource],
        unmapped: Mapping[int, Unmapped],
    ) -> None:
        self._area = area
        self._wanted = wanted
        self._lays = lays
        self._lays_of: dict[int, list[Lay]] = {}
        for lay in lays:
            self._lays_of.setdefault(lay.part, []).append(lay)
        self.sources = sources
        self.files = files
        self.kept = kept
        self.failed = failed
        self.unmapped = unmapped
        self.views = {number: area.view(at, _length(wanted[number])) for number, at in places.items()}
        self.size_bytes = sum(map(len, self.views.values()))

    def unmapped_bytes(self) -> dict[str, int]:
        """Return how many bytes are to be read instead, by reason."""
        found: dict[str, int] = {}
        for number, reason in self.unmapped.items():
            found[reason] = found.get(reason, 0) + _length(self._wanted[number])
        return found

    def runs(self, item: int) -> list[Piece]:
        """Return the bytes of parts that the mapped tensors are, all as pieces of ``item``: tensors that lie side by side are one."""
        found: list[Piece] = []
        part, start, end = -1, 0, 0
        for number in self.views:
            for piece in self._wanted[number].pieces:
                if piece.part == part and piece.start == end:
                    end += piece.length
                    continue
                if end > start:
                    found.append(Piece(part, start, end - start, item, 0))
                part, start, end = piece.part, piece.start, piece.start + piece.length
        if end > start:
            found.append(Piece(part, start, end - start, item, 0))
        return found

    def pieces(self, parts: Container[int]) -> Iterator[Piece]:
        """Yield the pieces of these parts that the mapped tensors are; tensor number n is item n."""
        for number in self.views:
            yield from (piece for piece in self._wanted[number].pieces if piece.part in parts)

    def look(self, part: int, start: int, end: int) -> memoryview | None:
        """Have bytes of a part mapped now, where huge pages suit them, and return them where they lie.

        As long as nobody shortens the part's file, reading them is no fault. None: they do not lie there in one run, or are not
        all mapped. ``start`` is a multiple of a page.
        """
        found = None
        for lay in self._lays_of.get(part, ()):
            low, high = max(start, lay.start), min(end, lay.start + lay.length)
            is_whole = found is None and (low, high) == (start, end)
            if low < high and (is_whole or lay.length >= HUGE_PAGE_BYTES):
                at = lay.at + low - lay.start
                if self._area.populate(at, high - low) and is_whole:
                    found = self._area.view(at, high - low)
        return found

    def replace(self, parts: set[int]) -> None:
        """Lay fresh memory in the place of these parts: what lies there was found bad, or could not be verified.

        Raises:
            MemoryError: the system has no room.
        """
        for lay in self._lays:
            if lay.part in parts:
                try:
                    self._area.lay_memory(lay.at, lay.length)
                except OSError as error:
                    raise MemoryError(f"no memory for {lay.length} bytes of a part: {error}") from error


def pieces_of(tensors: Sequence[tuple[File, Tensor]]) -> list[tuple[Piece, ...]]:
    """Return the pieces of parts that whole tensors are, by their number."""
    maps: dict[int, ExtentMap] = {}  # by identity: hashing a file would hash all its extents
    found = []
    for number, (file, tensor) in enumerate(tensors):
        extents = maps.get(id(file))
        if extents is None:
            extents = maps[id(file)] = ExtentMap(file.extents)
        found.append(extents.pieces(tensor.start, tensor.length, number))
    return found


def map_tensors(
    tensors: Sequence[tuple[File, Tensor]], pieces: Sequence[Sequence[Piece]], parts: PartTable, *, keeps: bool = True
) -> MappedTensors:
    """Lay whole tensors over the files of their parts, where that can be done, and touch none of their bytes.

    ``pieces`` are theirs, by `pieces_of`. Of several copies on devices whose files can be mapped each part gets one so that devices finish together; copies found bad
    before are left alone. A part whose file is not there, or has another size, is left to be read, that copy first.
    ``keeps``: whether files stay open to be verified, as far as there is room.
    """
    devices = {id_: found for id_, device in parts.devices.items() if (found := mappable(device)) is not None}
    bare = {id_ for id_, device in parts.devices.items() if innermost(device) is device}
    wanted = _wanted(tensors, pieces)
    needs: dict[int, int] = {}
    for tensor in wanted:
        for piece in tensor.pieces:
            needs[piece.part] = needs.get(piece.part, 0) + piece.length
    copies = {
        part: [each for each in parts.sources.get(part, ()) if each.device in devices and each.rank < SUSPECT]
        for part in needs
    }
    choice = choose_copies(needs, {part: [c.device for c in found] for part, found in copies.items()}, parts.rates)
    chosen = {part: copies[part][number] for part, number in choice.copies.items()}
    aligned = {
        part
        for part, source in chosen.items()
        if source.length == parts.sizes[part] and source.offset % PAGE_BYTES == 0
    }
    most = _room.ask(2 * sum(len(tensor.pieces) for tensor in wanted))  # each with what is left out before it
    plan = plan_mapping(
        wanted, aligned.__contains__, page_bytes=PAGE_BYTES, huge_bytes=HUGE_PAGE_BYTES, most_mappings=most
    )
    try:
        area = MappedRange(plan.size_bytes)
    except OSError:  # as where all memory that may be asked for has been promised to others
        refused: dict[int, Unmapped] = dict.fromkeys(plan.places, "refused")
        return MappedTensors(MappedRange(0), wanted, {}, (), {}, {}, KeptFiles(0), {}, {**plan.unmapped, **refused})
    kept = KeptFiles(len(plan.lays) if keeps else 0)
    files, broken = _lay_all(area, plan.lays, {part: chosen[part] for part in aligned}, devices, kept, bare)
    lost = {
        number
        for number in (plan.places if broken else ())
        if not broken.isdisjoint(piece.part for piece in wanted[number].pieces)
    }
    places = {number: at for number, at in plan.places.items() if number not in lost} if lost else plan.places
    laid = {piece.part for number in places for piece in wanted[number].pieces}
    return MappedTensors(
        area,
        wanted,
        places,
        plan.lays,
        {part: chosen[part] for part in laid},
        files,
        kept,
        {part: chosen[part] for part in broken},
        {**plan.unmapped, **dict.fromkeys(sorted(lost), "elsewhere")},
    )


def _wanted(tensors: Sequence[tuple[File, Tensor]], pieces: Sequence[Sequence[Piece]]) -> list[Wanted]:
    item_bytes: dict[str, int] = {}
    wanted = []
    for (_, tensor), found in zip(tensors, pieces, strict=True):
        if tensor.strides is not None:  # it need not be contiguous
            wanted.append(Wanted((), 1))
            continue
        size = item_bytes.get(tensor.dtype)
        if size is None:
            size = item_bytes[tensor.dtype] = tensor_array(tensor)[0].itemsize
        wanted.append(Wanted(found, size))
    return wanted


def _lay_all(
    area: MappedRange,
    lays: Sequence[Lay],
    sources: Mapping[int, PartSource],
    devices: Mapping[str, MappableDevice],
    kept: KeptFiles,
    bare: Container[str],
) -> tuple[dict[int, FileIdentity], set[int]]:
    """Lay files; return which one each part is in, and the parts for which that failed.

    Those on ``bare`` devices are kept: whoever wraps one is asked for what is verified.
    """
    files: dict[int, FileIdentity] = {}
    broken: set[int] = set()
    for lay in lays:
        if lay.part in broken:
            continue
        source = sources[lay.part]
        try:
            opened = kept.get(lay.part)
            if opened is None:
                size = source.offset + source.length + source.tail_bytes
                opened = devices[source.device].open_to_map(source.name, size)
                if source.device in bare:
                    kept.keep(lay.part, opened, size)
            area.lay_file(lay.at, opened.descriptor, source.offset + lay.start, lay.length)
            if files.setdefault(lay.part, file := opened.file_identity()) != file:  # replaced between two of its lays
                broken.add(lay.part)
        except (OSError, TensorkeepError):
            broken.add(lay.part)
    return files, broken


def _length(tensor: Wanted) -> int:
    if len(tensor.pieces) == 1:  # as nearly all are where there are many
        return tensor.pieces[0].length
    return sum(piece.length for piece in tensor.pieces)


def _mappings_now() -> int:
    """Return how many mappings this process has."""
    try:
        return _MAPPINGS.read_bytes().count(b"\n")
    except OSError:
        return 0


@cache
def _most_mappings() -> int:
    """Return how many mappings a process may have."""
    try:
        return int(_MOST_MAPPINGS.read_text("ascii"))
    except (OSError, ValueError):
        return _USUAL_MOST_MAPPINGS


class MappingRoom:
    """How many mappings loads may make: a process may have so many, and half of them are left to others.

    To count them takes a millisecond, so they are counted anew only once some were granted since. That is not exact where threads ask
    at the same time, or others map meanwhile; beside what is left to others it is little.
    """

    def __init__(self, count: Callable[[], int] = _mappings_now, most: Callable[[], int] = _most_mappings) -> None:
        self._count = count
        self._most = most
        self._left = 0  # when they were counted
        self._granted = 0  # since then

    def ask(self, wanted: int) -> int:
        """Return how many of so many mappings may be made."""
        if self._granted + wanted > min(self._left, _GRANTED_UNCOUNTED):
            self._left, self._granted = max(self._most() // 2 - self._count(), 0), 0
        granted = max(min(self._left - self._granted, wanted), 0)
        self._granted += granted
        return granted


_room = MappingRoom()
