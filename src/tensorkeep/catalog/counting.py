"""How many copies an object has, whatever their form: as many devices as must be lost to lose it. Pure; every catalog counts so."""

from collections.abc import Collection, Iterable, Sequence

from tensorkeep.catalog.protocol import Location
from tensorkeep.records.redundancy import ErasureCoded, form_name


def count_copies(rows: Iterable[Location]) -> int:
    """Return how many devices must be lost until these rows do not give the object any more; 0 where they do not give it now.

    Each device with a whole copy is one. Of fragments of one form, f different ones on as many other devices, of which n give
    the object, f - n + 1 must be lost; of several forms the best counts. A device that has several of a form counts with the
    first: never more is counted than there is.
    """
    whole: set[str] = set()
    fragments: list[Location] = []
    for row in rows:
        if row.fragment is None:
            whole.add(row.device)
        else:
            fragments.append(row)
    if not fragments:
        return len(whole)
    best = best_form([row for row in fragments if row.device not in whole])
    return len(whole) + max(0, _count_fragments(best))


def is_of_code(row: Location, code: ErasureCoded | None) -> bool:
    """Return whether a row is of a fragment of this code; None: of a whole copy."""
    return row.fragment is None if code is None else row.fragment is not None and row.form == form_name(code)


def best_form(fragments: Collection[Location]) -> Sequence[Location]:
    """Return the fragments of the form that counts most; none where there are none."""
    forms: dict[str, list[Location]] = {}
    for row in fragments:
        forms.setdefault(row.form, []).append(row)
    return max(forms.values(), key=lambda rows: (_count_fragments(rows), len(rows)), default=())


def _count_fragments(rows: Sequence[Location]) -> int:
    """Return how many devices must be lost to lose an object that is kept in these fragments of one form; below 1: it is lost."""
    return len({*first_numbers(rows).values()}) - rows[0].needed + 1 if rows else 0


def first_numbers(fragments: Iterable[Location]) -> dict[str, int]:
    """Return the number that each device counts with, of fragments of one form."""
    first: dict[str, int] = {}
    for row in fragments:
        assert row.fragment is not None
        first[row.device] = min(first.get(row.device, row.fragment), row.fragment)
    return first
