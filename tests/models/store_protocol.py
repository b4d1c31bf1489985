"""The protocol of push, gc and drain as a model small enough to try every order of its steps.

One object (a part), a few devices, two pushers of a version that needs it, one removal of such a version, one collector, one drain,
deletions that land late, and a device that breaks. Each step is what one transaction of the catalog or one call of a device does;
whoever reads and acts later does so in two steps. Sessions and leases are not here at all: with a grace of 0 gc spares nobody,
which is the worst that a clock can do.

A *piece* is what a row holds of the object: a whole copy on its device, or a fragment of that number. ``needed`` pieces give the
object, and one is owed beyond that for each loss that must be survived, so that whole copies are the case of one piece needed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

RowState = Literal["staged", "stored", "live", "condemned"]
USABLE = ("stored", "live")


class Place(NamedTuple):
    """A physical name on a device."""

    device: int
    name: str


class Row(NamedTuple):
    """What the catalog knows of a place: the piece there, its state, and whose upload it is."""

    place: Place
    piece: int
    state: RowState
    owner: str


class Writer(NamedTuple):
    """A push, or the part of a drain that writes: where it is, what it has still to put, what it found given up, how often it began."""

    step: str = "stage"
    todo: tuple[Place, ...] = ()
    done: tuple[Place, ...] = ()
    rounds: int = 0


class Collector(NamedTuple):
    """gc: the places that it read and deletes one by one."""

    step: str = "idle"
    targets: tuple[Place, ...] = ()
    rounds: int = 0


class Drain(NamedTuple):
    """A drain of device 0: ``judged`` is whether its row can be given up, as it was when that was looked at."""

    step: str = "waiting"
    judged: bool = False
    rounds: int = 0


class State(NamedTuple):
    """Everything there is. ``held`` are bytes on devices, ``late`` deletions that were sent and have not landed."""

    rows: frozenset[Row]
    held: frozenset[Place]
    late: frozenset[Place]
    versions: frozenset[int]
    removed: bool
    pushers: tuple[Writer, ...]
    collector: Collector
    drain: Drain
    healer: Writer
    is_draining: bool
    broken: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What is modelled, and which protective steps are taken; each flag that is False is a store that some other project has.

    Attributes:
        devices: how many.
        losses: devices whose loss must be survived.
        needed: pieces that give the object; 1 is whole copies.
        rounds: how often the collector runs.
        late: how many deletions may be under way after their answer.
        drains: whether device 0 is drained.
        breaks: whether a device may break for good.
        condemns: gc condemns in a transaction that looks at the versions again, before it deletes.
        unique_names: a physical name is never used twice.
        recounts: a commit counts the copies again, in its transaction.
        adds_first: a drain gives up nothing before it has copied.
        rechecks: giving up counts the other copies again, in its transaction.
        asks_reach: copies on devices that can't be reached do not count when others are given up.
    """

    devices: int = 2
    losses: int = 1
    needed: int = 1
    rounds: int = 2
    late: int = 1
    retries: int = 1
    drains: bool = False
    breaks: bool = False
    condemns: bool = True
    unique_names: bool = True
    recounts: bool = True
    adds_first: bool = True
    rechecks: bool = True
    asks_reach: bool = True

    @property
    def pieces(self) -> int:
        """How many pieces an object that lacks nothing has."""
        return self.needed + self.losses


Step = tuple[str, State]


def first_state() -> State:
    """Return an empty store and everybody at the beginning."""
    none: frozenset[Place] = frozenset()
    return State(
        rows=frozenset(),
        held=none,
        late=none,
        versions=frozenset(),
        removed=False,
        pushers=(Writer(), Writer()),
        collector=Collector(),
        drain=Drain(),
        healer=Writer("idle"),
        is_draining=False,
        broken=None,
    )


# ------------------------------------------------------------------------ what is asked


def is_lost(protocol: Protocol, state: State) -> bool:
    """Return whether a version is there whose object can't be put together from what the catalog knows and devices hold."""
    return bool(state.versions) and len(_readable(state)) < protocol.needed


def is_short(protocol: Protocol, state: State) -> bool:
    """Return whether a version is lost, or has fewer copies than it owes though no device broke."""
    if not state.versions:
        return False
    found = len(_readable(state))
    return found < (protocol.needed if state.broken is not None else protocol.pieces)


def _readable(state: State) -> set[int]:
    """Return the pieces that can be read: draining devices are read as long as they hold something."""
    return {
        row.piece
        for row in state.rows
        if row.state in USABLE and row.place in state.held and row.place.device != state.broken
    }


def _counted(state: State, *, reachable_only: bool = True) -> set[int]:
    """Return the pieces that the catalog counts: usable, and on active devices."""
    return {
        row.piece
        for row in state.rows
        if row.state in USABLE
        and not (state.is_draining and row.place.device == 0)
        and not (reachable_only and row.place.device == state.broken)
    }


def _can_give_up(protocol: Protocol, state: State) -> bool:
    """Return whether the object has all that it owes without device 0, which drains."""
    return len(_counted(state, reachable_only=protocol.asks_reach)) >= protocol.pieces


# ------------------------------------------------------------------------------- steps


def next_steps(protocol: Protocol, state: State) -> Iterator[Step]:
    """Yield everything that can happen next, with what it leads to."""
    for number, pusher in enumerate(state.pushers):
        yield from _push(protocol, state, number, pusher)
    yield from _collect(protocol, state)
    for place in state.late:
        yield (
            f"the late deletion of {_show(place)} lands",
            state._replace(held=state.held - {place}, late=state.late - {place}),
        )
    if not state.removed:
        for version in state.versions:
            yield f"version {version} is removed", state._replace(versions=state.versions - {version}, removed=True)
    if protocol.drains:
        yield from _drain(protocol, state)
    if protocol.breaks and state.broken is None:
        yield from _break(protocol, state)


def _push(protocol: Protocol, state: State, number: int, pusher: Writer) -> Iterator[Step]:
    name = f"push {number}"

    def put_back(changed: State, after: Writer) -> State:
        pushers = (*changed.pushers[:number], after, *changed.pushers[number + 1 :])
        return changed._replace(pushers=pushers)

    if pusher.step == "commit":
        found = len(_counted(state)) >= protocol.pieces
        if found or not protocol.recounts:
            rows = frozenset(row._replace(state="live") if row.state == "stored" else row for row in state.rows)
            changed = state._replace(rows=rows, versions=state.versions | {number})
            yield f"{name} commits", put_back(changed, Writer("done"))
        elif pusher.rounds < protocol.retries:
            yield f"{name} is told what it needs again", put_back(state, Writer("stage", rounds=pusher.rounds + 1))
        return
    for label, changed, after in _write(protocol, state, name, pusher):
        yield label, put_back(changed, after._replace(step="commit") if after.step == "written" else after)


def _write(protocol: Protocol, state: State, name: str, writer: Writer) -> Iterator[tuple[str, State, Writer]]:
    """Yield the next step of whoever stages, puts, records, and deletes what was given up meanwhile; it ends at ``written``."""
    match writer.step:
        case "stage":
            staged = _stage(protocol, state, _owner(name, writer))
            if staged is None:
                return
            places = tuple(sorted(row.place for row in staged))
            step = "put" if places else "written"
            label = f"{name} stages {', '.join(map(_show, places))}" if places else f"{name} finds all that it needs"
            yield label, state._replace(rows=state.rows | staged), Writer(step, places, (), writer.rounds)
        case "put":
            place, *left = writer.todo
            if place.device == state.broken:
                return  # the push fails: nothing is committed
            after = Writer("put" if left else "record", tuple(left), (*writer.done, place), writer.rounds)
            yield f"{name} puts {_show(place)}", state._replace(held=state.held | {place}), after
        case "record":
            owner = _owner(name, writer)
            mine = {row for row in state.rows if row.owner == owner and row.state == "staged"}
            late = tuple(sorted({*writer.done} - {row.place for row in mine}))
            rows = (state.rows - mine) | {row._replace(state="stored") for row in mine}
            after = Writer("tidy" if late else "written", late, (), writer.rounds)
            yield f"{name} records what it put", state._replace(rows=rows), after
        case "tidy":
            place, *left = writer.todo
            after = Writer("tidy" if left else "written", tuple(left), (), writer.rounds)
            label = f"{name} deletes {_show(place)}, which gc gave up meanwhile"
            yield label, state._replace(held=state.held - {place}), after


def _owner(name: str, writer: Writer) -> str:
    return f"{name[0]}{name[-1]}.{writer.rounds}"


def _stage(protocol: Protocol, state: State, owner: str) -> frozenset[Row] | None:
    """Return the rows that are added for the pieces that are lacking; None where there is no room for them."""
    have = _counted(state)
    active = [
        device
        for device in range(protocol.devices)
        if device != state.broken and not (state.is_draining and device == 0)
    ]
    taken = {row.place.device for row in state.rows if row.state in USABLE}
    name = owner if protocol.unique_names else "h"
    lacking = protocol.pieces - len(have)
    rows: set[Row] = set()
    for device in active:
        place = Place(device, name)
        if len(rows) >= lacking or device in taken or any(row.place == place for row in state.rows):
            continue
        piece: int | None = device
        if protocol.needed > 1:  # a device gets no other fragment than any row of it tells
            bound = {row.piece for row in state.rows if row.place.device == device}
            used = have | {row.piece for row in rows}
            free = [n for n in (device, *range(protocol.pieces)) if n < protocol.pieces and n not in used]
            piece = next((n for n in free if not bound or bound == {n}), None)
        if piece is not None:
            rows.add(Row(place, piece, "staged", owner))
    return frozenset(rows) if len(rows) >= lacking else None


def _collect(protocol: Protocol, state: State) -> Iterator[Step]:
    collector = state.collector

    def then(changed: State, step: str, targets: tuple[Place, ...]) -> State:
        ended = step in ("delete", "drop") and not targets
        rounds = collector.rounds + (1 if ended else 0)
        return changed._replace(collector=Collector("idle" if ended else step, targets, rounds))

    match collector.step:
        case "idle" if collector.rounds < protocol.rounds:
            doomed = {
                row
                for row in state.rows
                if row.state == "staged" or (row.state in USABLE and not state.versions)  # a grace of 0 spares nobody
            }
            if not protocol.condemns:
                if doomed:
                    places = tuple(sorted(row.place for row in doomed))
                    yield "gc lists what nothing uses", then(state, "delete", places)
            elif doomed or any(row.state == "condemned" for row in state.rows):
                rows = (state.rows - doomed) | {row._replace(state="condemned") for row in doomed}
                yield "gc condemns what nothing uses", then(state._replace(rows=rows), "list", ())
        case "list":
            places = tuple(sorted(row.place for row in state.rows if row.state == "condemned"))
            yield "gc lists what is condemned", then(state, "delete", places)
        case "delete":
            place, left = collector.targets[0], collector.targets[1:]
            if place.device == state.broken:
                yield f"gc can't reach {_show(place)}", then(state, "delete", left)
                return
            gone = state._replace(held=state.held - {place})
            yield f"gc deletes {_show(place)}", then(gone, "look", collector.targets)
            if len(state.late) < protocol.late:
                late = state.late | {place}
                yield f"gc gives up waiting for {_show(place)}", then(state._replace(late=late), "delete", left)
                yield (
                    f"gc deletes {_show(place)}, the first try is late",
                    then(gone._replace(late=late), "look", collector.targets),
                )
        case "look":
            place, left = collector.targets[0], collector.targets[1:]
            if place in state.held:
                yield f"gc finds {_show(place)} still there", then(state, "delete", left)
            else:
                yield f"gc finds {_show(place)} absent", then(state, "drop", collector.targets)
        case "drop":
            place, left = collector.targets[0], collector.targets[1:]
            rows = frozenset(
                row for row in state.rows if row.place != place or (protocol.condemns and row.state != "condemned")
            )
            yield f"gc drops the row of {_show(place)}", then(state._replace(rows=rows), "delete", left)


def _drain(protocol: Protocol, state: State) -> Iterator[Step]:
    drain = state.drain
    order = ("look", "copy", "judge", "retire") if protocol.adds_first else ("judge", "retire", "look", "copy")

    def after(step: str) -> str:
        place = order.index(step) + 1
        return order[place] if place < len(order) else "end"

    match drain.step:
        case "waiting":
            yield (
                "device 0 begins to drain",
                state._replace(is_draining=True, drain=drain._replace(step=order[0])),
            )
        case "look":
            short = bool(state.versions) and len(_counted(state)) < protocol.pieces
            healer = Writer("stage", rounds=drain.rounds) if short else Writer("idle")
            step = "copy" if short else after("copy")
            label = "the drain finds the object short" if short else "the drain finds nothing short"
            yield label, state._replace(healer=healer, drain=drain._replace(step=step))
        case "copy":
            if state.healer.step == "stage" and len(_readable(state)) < protocol.needed:
                return  # no good copy is left to read
            for label, changed, healer in _write(protocol, state, "drain 0", state.healer):
                step = after("copy") if healer.step == "written" else "copy"
                yield label, changed._replace(healer=healer, drain=drain._replace(step=step))
        case "judge":
            judged = not protocol.adds_first or _can_give_up(protocol, state)
            label = "the drain sees which devices answer"
            yield label, state._replace(drain=drain._replace(step="retire", judged=judged))
        case "retire":
            gives_up = (
                drain.judged if not (protocol.rechecks and protocol.adds_first) else _can_give_up(protocol, state)
            )
            if state.versions and gives_up:
                rows = frozenset(
                    row._replace(state="condemned") if row.place.device == 0 and row.state in USABLE else row
                    for row in state.rows
                )
                yield (
                    "the drain gives the copy on device 0 up",
                    state._replace(rows=rows, drain=drain._replace(step=after("retire"))),
                )
            elif not protocol.adds_first:
                yield "the drain has nothing to give up", state._replace(drain=drain._replace(step="look"))
            elif drain.rounds < protocol.retries:
                again = Drain("look", rounds=drain.rounds + 1)
                yield "the drain keeps the copy on device 0 and looks again", state._replace(drain=again)
            else:
                yield "the drain keeps the copy on device 0", state._replace(drain=drain._replace(step="end"))


def _break(protocol: Protocol, state: State) -> Iterator[Step]:
    """Yield the loss of each device that the versions survive, as far as copies that anybody counts say.

    A device that breaks when a transaction has just counted its copy is no fault of the protocol, and so it does not.
    """
    for device in range(protocol.devices):
        without = state._replace(broken=device)
        if not is_lost(protocol, without):
            yield f"device {device} breaks", without


def _show(place: Place) -> str:
    return f"{place.name} on {place.device}"


# ----------------------------------------------------------------------------- search


class Search(NamedTuple):
    """How many states were seen, and the shortest path to a bad one, None where there is none."""

    states: int
    path: list[str] | None


def explore(protocol: Protocol, is_bad: Callable[[Protocol, State], bool]) -> Search:
    """Return what a walk through every reachable state, the nearest first, finds."""
    start = first_state()
    came_from: dict[State, State | None] = {start: None}
    waiting = deque([start])
    while waiting:
        state = waiting.popleft()
        for _, after in next_steps(protocol, state):
            if after in came_from:
                continue
            came_from[after] = state
            if is_bad(protocol, after):
                return Search(len(came_from), _path_to(protocol, after, came_from))
            waiting.append(after)
    return Search(len(came_from), None)


def _path_to(protocol: Protocol, state: State, came_from: dict[State, State | None]) -> list[str]:
    labels = []
    while (before := came_from[state]) is not None:
        labels.append(next(label for label, after in next_steps(protocol, before) if after == state))
        state = before
    return labels[::-1]
