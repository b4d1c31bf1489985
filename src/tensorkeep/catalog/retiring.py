"""Which copies an object can do without. Pure; every catalog decides with this, once the object is locked."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from tensorkeep.catalog import rules
from tensorkeep.catalog.counting import count_copies
from tensorkeep.catalog.protocol import Location, ObjectKey
from tensorkeep.records.device import DeviceFacts


def choose_retired(
    wanted: Sequence[int],
    rows: Iterable[Location],
    *,
    owed: Mapping[ObjectKey, int],
    devices: Sequence[DeviceFacts],
    down: Collection[str],
) -> list[int]:
    """Return those of these rows, one after the other, without which their objects still have all the copies they owe.

    Args:
        wanted: ids of rows that are to go, the first of an object first.
        rows: all rows of their objects.
        owed: copies that versions ask of objects; one that none refers to is missing.
        devices: all devices of the store.
        down: devices whose copies can't be relied on now.
    """
    counting = {facts.id for facts in devices if facts.state == "active" and facts.id not in down}
    durable = {facts.id for facts in devices if facts.durability == "durable"}
    by_id = {row.id: row for row in rows}
    counted: dict[ObjectKey, dict[int, Location]] = {}
    for row in by_id.values():
        if row.state in rules.USABLE and row.device in counting:
            counted.setdefault(row.key, {})[row.id] = row
    retired = []
    for number in dict.fromkeys(wanted):
        going = by_id.get(number)
        if going is None or going.key not in owed or going.state not in (*rules.USABLE, "bad"):
            continue
        mine = counted.get(going.key, {})
        others = [row for row in mine.values() if row.id != number]
        if count_copies(others) < owed[going.key]:
            continue
        if going.device in durable:  # what survives a power cut is not given up for what may not
            before = count_copies(row for row in mine.values() if row.device in durable)
            if count_copies(row for row in others if row.device in durable) < min(owed[going.key], before):
                continue
        mine.pop(number, None)
        retired.append(number)
    return retired
