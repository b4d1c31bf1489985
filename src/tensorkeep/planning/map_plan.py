"""Which tensors of a load can lie over the files of their parts, and where in one range of addresses.

A tensor in one part lies where the part's pages do; one of several parts is their pages laid side by side, if every cut inside it is
at a page. Pure functions over plain values; `transfer.mapping` does what the plan says.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from msgspec import Struct

from tensorkeep.planning.read_plan import Piece

Unmapped = Literal["elsewhere", "misaligned", "too many", "refused"]
"""Why a tensor is read: a part of it has no copy that can be mapped; a cut or its start suits no mapping; mappings run out; the
system gives no range of addresses."""


class Wanted(Struct, frozen=True, gc=False):
    """A whole tensor, contiguous in its file: its pieces in order, and the bytes of one element."""

    pieces: Sequence[Piece]
    item_bytes: int


class Lay(NamedTuple):
    """Bytes ``[start, start + length)`` of a part, laid at ``at`` of the range; start and ``at`` are multiples of a page."""

    at: int
    part: int
    start: int
    length: int


@dataclass(slots=True)
class MapPlan:
    """What to lay, and where each tensor begins.

    Attributes:
        size_bytes: of the range of addresses, whole pages.
        lays: in the order of their addresses.
        gaps: how many of them have addresses before them that were left out: each is a mapping too.
        places: number of a tensor → its first byte in the range.
        unmapped: number of a tensor → why it has no place.
    """

    size_bytes: int = 0
    lays: list[Lay] = field(default_factory=list)
    gaps: int = 0
    places: dict[int, int] = field(default_factory=dict)
    unmapped: dict[int, Unmapped] = field(default_factory=dict)

    @property
    def mappings(self) -> int:
        """How many mappings it makes."""
        return len(self.lays) + self.gaps

    def leave_out(self, size_bytes: int) -> None:
        """Leave out addresses at the end, if any: what is laid next lies behind them."""
        self.size_bytes += size_bytes
        self.gaps += size_bytes > 0


def plan_mapping(
    wanted: Iterable[Wanted],
    is_mappable: Callable[[int], bool],
    *,
    page_bytes: int,
    huge_bytes: int,
    most_mappings: int,
) -> MapPlan:
    """Return how tensors lie over parts.

    A run of a huge page or more that need not follow another lies as far from a multiple of one as it does in its part: then the
    kernel can map it by huge pages, in a fifth of the time.

    Args:
        wanted: the tensors; those without bytes get no place and no reason.
        is_mappable: whether a part has a copy that can be mapped.
        page_bytes: size of a page.
        huge_bytes: size of a huge page, a multiple of it.
        most_mappings: how many there may be, what is left out between two lays among them.
    """
    plan = MapPlan()
    alone: dict[int, list[int]] = {}  # part → tensors that lie in it
    spread: list[int] = []
    tensors = list(wanted)
    for number, tensor in enumerate(tensors):
        if not tensor.pieces:
            continue
        piece = tensor.pieces[0]
        if len(tensor.pieces) == 1 and is_mappable(piece.part) and piece.start % tensor.item_bytes == 0:
            alone.setdefault(piece.part, []).append(number)  # as nearly all are where there are many
        elif not all(is_mappable(piece.part) for piece in tensor.pieces):
            plan.unmapped[number] = "elsewhere"
        elif not _suits(tensor, page_bytes):
            plan.unmapped[number] = "misaligned"
        else:
            spread.append(number)
    for part, numbers in alone.items():
        numbers, sharing = _without_overlap(numbers, tensors)  # noqa: PLW2901 - those that lie in it
        spread += sharing  # a mapping of its own: what is written to one must not show in the other
        pieces = [tensors[number].pieces[0] for number in numbers]  # in order, and apart
        first, last = pieces[0].start, pieces[-1].start + pieces[-1].length
        gap = _gap(plan, first, last - first, page_bytes, huge_bytes)
        if plan.mappings + (gap > 0) >= most_mappings:
            plan.unmapped.update(dict.fromkeys(numbers, "too many"))
            continue
        plan.leave_out(gap)
        at = _lay(plan, part, first, last, page_bytes)
        plan.places.update((number, at + piece.start) for number, piece in zip(numbers, pieces, strict=True))
    for number in spread:
        run = tensors[number].pieces
        gap = _gap(plan, run[0].start, run[0].length, page_bytes, huge_bytes)
        if plan.mappings + (gap > 0) + len(run) > most_mappings:
            plan.unmapped[number] = "too many"
            continue
        plan.leave_out(gap)
        for index, piece in enumerate(run):
            at = _lay(plan, piece.part, piece.start, piece.start + piece.length, page_bytes)
            if index == 0:
                plan.places[number] = at + piece.start
    return plan


def _without_overlap(numbers: Sequence[int], tensors: Sequence[Wanted]) -> tuple[list[int], list[int]]:
    """Return those of the tensors of one part that share no byte with one before, and the others."""
    if len(numbers) == 1:
        return list(numbers), []
    kept, sharing, end = list[int](), list[int](), 0
    for number in sorted(numbers, key=lambda each: tensors[each].pieces[0].start):
        piece = tensors[number].pieces[0]
        (kept if piece.start >= end else sharing).append(number)
        end = max(end, piece.start + piece.length)
    return kept, sharing


def _suits(tensor: Wanted, page_bytes: int) -> bool:
    first, last = tensor.pieces[0], len(tensor.pieces) - 1
    return first.start % tensor.item_bytes == 0 and all(
        (index == 0 or piece.start % page_bytes == 0)
        and (index == last or (piece.start + piece.length) % page_bytes == 0)
        for index, piece in enumerate(tensor.pieces)
    )


def _gap(plan: MapPlan, start: int, length: int, page_bytes: int, huge_bytes: int) -> int:
    """Return how many addresses to leave out before bytes of a part, so that huge pages suit them."""
    return (start - start % page_bytes - plan.size_bytes) % huge_bytes if length >= huge_bytes else 0


def _lay(plan: MapPlan, part: int, start: int, end: int, page_bytes: int) -> int:
    """Lay the pages of a part's bytes at the end of the range; return where the part's first byte would be."""
    low = start - start % page_bytes
    at = plan.size_bytes
    plan.lays.append(Lay(at, part, low, end - low))
    plan.size_bytes += -(-(end - low) // page_bytes) * page_bytes
    return at - low
