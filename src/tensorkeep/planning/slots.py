"""Which devices new copies of one object go to: other devices than those that hold it, other zones while zones suffice."""

from collections.abc import Collection, Sequence


def pick_devices(
    candidates: Sequence[tuple[str, str]], *, taken_devices: Collection[str], taken_zones: Collection[str], count: int
) -> list[str]:
    """Return at most ``count`` devices for new copies, fewer only where fewer candidates are free.

    Args:
        candidates: (device id, zone), in order of preference.
        taken_devices: never picked: they hold the object already.
        taken_zones: picked from only when no other zone is left.
        count: how many copies are wanted.

    The first device of each untaken zone comes first, then the rest, both in order of preference; no device comes twice.
    """
    free = [(device, zone) for device, zone in dict(candidates).items() if device not in taken_devices]
    zones = set(taken_zones)
    spread: list[str] = []
    for device, zone in free:
        if zone not in zones:
            zones.add(zone)
            spread.append(device)
    crowded = [device for device, _ in free if device not in spread]
    return [*spread, *crowded][: max(0, count)]
