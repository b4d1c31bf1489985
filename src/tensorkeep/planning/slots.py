"""Which devices the copies or fragments of one object go to: never one twice, other zones while zones suffice.

Both who plans a push and the catalog that stages its objects order devices with `spread_zones`, so that they agree.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def spread_zones(candidates: Sequence[T], zone_of: Callable[[T], str], taken: Iterable[str] = ()) -> list[T]:
    """Return the candidates with the first of every zone before the second of any, each round in the given order.

    A zone has as many already as ``taken`` names it. The first n of the answer are in as many zones as n can be, and no zone
    has more than one above the others that have a candidate left.
    """
    rounds: dict[str, int] = {}
    for zone in taken:
        rounds[zone] = rounds.get(zone, 0) + 1
    ranked: list[tuple[int, int]] = []
    for position, candidate in enumerate(candidates):
        zone = zone_of(candidate)
        ranked.append((rounds.get(zone, 0), position))
        rounds[zone] = rounds.get(zone, 0) + 1
    return [candidates[position] for _, position in sorted(ranked)]


def keep_places(candidates: Sequence[str], usable: Collection[str], slots: int) -> tuple[str, ...]:
    """Return the usable candidates for fragments, in order; in the place of each of the first ``slots`` that is not, a spare one.

    Who is at place i is meant for fragment i: where one drops out the others do not all move up, as long as there are spare ones.
    """
    spare = [device for device in candidates[slots:] if device in usable]
    places = [device if device in usable else (spare.pop(0) if spare else None) for device in candidates[:slots]]
    return tuple(device for device in (*places, *spare) if device is not None)


def pick_devices(
    candidates: Sequence[tuple[str, str]], *, taken_devices: Collection[str], taken_zones: Iterable[str], count: int
) -> list[str]:
    """Return at most ``count`` devices for new copies, fewer only where fewer candidates are free.

    Args:
        candidates: (device id, zone), in order of preference; of one named twice the first place counts.
        taken_devices: never picked: they hold the object already.
        taken_zones: the zone of each device that holds it; picked from only when no zone with fewer is left.
        count: how many copies are wanted.
    """
    zones = dict(candidates)
    free = [device for device in zones if device not in taken_devices]
    return spread_zones(free, zones.__getitem__, taken_zones)[: max(0, count)]
