"""How many copies an object has, whatever their form: as many devices as must be lost to lose it. Pure; every catalog counts so."""

from collections.abc import Iterable

from tensorkeep.catalog.protocol import Location


def count_copies(rows: Iterable[Location]) -> int:
    """Return how many devices must be lost until these rows do not give the object any more; 0 where they do not give it now.

    Each device with a whole copy is one. Of fragments of one form, f different ones on as many other devices, of which n give
    the object, f - n + 1 must be lost; of several forms the best counts.
    """
    whole: set[str] = set()
    fragments: list[Location] = []
    for row in rows:
        if row.needed == 1:
            whole.add(row.device)
        else:
            fragments.append(row)
    return len(whole) + (_count_fragments(fragments, whole) if fragments else 0)


def _count_fragments(fragments: Iterable[Location], whole: set[str]) -> int:
    forms: dict[str, tuple[int, set[str], set[int | None]]] = {}
    for row in fragments:
        if row.device not in whole:
            _, devices, numbers = forms.setdefault(row.form, (row.needed, set(), set()))
            devices.add(row.device)
            numbers.add(row.fragment)
    left = [min(len(devices), len(numbers)) - needed + 1 for needed, devices, numbers in forms.values()]
    return max(0, *left) if left else 0
