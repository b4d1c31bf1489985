"""Copies of what describes versions: a store that gets its second device owes its manifests, checks and records twice.

Parts are healed by pushing a model again; their descriptions are small, so that they are copied as soon as a device is there.
"""

from tensorkeep.catalog.protocol import ObjectKey
from tensorkeep.catalog.rules import version_keys
from tensorkeep.errors import TensorkeepError
from tensorkeep.records.device import counted_devices
from tensorkeep.records.redundancy import metadata_copies, parse_policy
from tensorkeep.store.context import StoreContext
from tensorkeep.store.journal import new_ulid
from tensorkeep.store.object_writer import NewObject, ObjectWriter
from tensorkeep.store.structure import read_object


def copy_structure(context: StoreContext) -> int:
    """Give every version's manifest, checks and record the copies that they owe by now; return how many objects got some.

    What can't be read or written now is left as it is: `verify` and `status` name it.
    """
    devices = tuple(facts.id for facts in counted_devices(context.catalog.list_devices()))
    short = _find_short(context, len(devices), set(context.fleet.readable()))
    if not short:
        return 0
    session = new_ulid(context.runtime)
    copied: set[ObjectKey] = set()
    context.catalog.begin_push(session, now=context.runtime.clock.now())
    try:
        # Soft devices count here only where no durable one is: `counted_devices` has chosen already.
        with ObjectWriter(context, session, down=(), allow_soft=True, allow_degraded=True) as writer:
            for key, (model, copies) in short.items():
                try:
                    data = read_object(context, key)
                    writer.write([NewObject(key, data, len(data), copies, devices, model=model)])
                except TensorkeepError:
                    continue
                copied.add(key)
            copied.difference_update(lost.key for lost in writer.settle())
    finally:
        context.catalog.end_push(session)
    return len(copied)


def _find_short(context: StoreContext, devices: int, readable: set[str]) -> dict[ObjectKey, tuple[str, int]]:
    """Return objects with fewer reachable good copies than they owe: key → (model, copies owed)."""
    owed = {
        key: (version.model, metadata_copies(parse_policy(version.policy), devices))
        for model in context.catalog.list_models()
        for version in context.catalog.list_versions(model.id)
        for key in version_keys(version)
    }
    found = context.catalog.locate(list(owed))
    good = {
        key: {loc.device for loc in found.get(key, []) if loc.state in ("live", "stored")} & readable for key in owed
    }
    return {key: debt for key, debt in owed.items() if len(good[key]) < debt[1]}
