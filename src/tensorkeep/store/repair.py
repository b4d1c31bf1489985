"""Repair: whatever has fewer copies than it owes gets them again, the most endangered first, and what can't is named exactly.

Unreachable is never absent: copies on a device that does not answer count, so that a disk that is not mounted starts no storm of
copying. Who knows that a device will not come back says so (`tensorkeep device lost`), or has its copies not count for one repair.
"""

from collections.abc import Sequence
from contextlib import suppress

from tensorkeep.catalog.protocol import ObjectKey, ShortObject
from tensorkeep.errors import Conflict, NotFound, PermissionDenied, TensorkeepError
from tensorkeep.records.device import is_gone
from tensorkeep.records.naming import ObjectKind
from tensorkeep.store.context import StoreContext
from tensorkeep.store.gc import refuse_unseen
from tensorkeep.store.healing import Healed, find_short, heal
from tensorkeep.store.journal import refuse_stale
from tensorkeep.store.reports import ObjectLeft, ProgressCallback, RepairReport
from tensorkeep.store.structure import describe_part, open_checks, open_manifest

_PAGE = 2000
_PASSES = 3
"""A repair that finds a copy damaged while it reads has more to do than it knew when it began."""


def repair(
    context: StoreContext,
    *,
    without: Sequence[str],
    rate_limit: int | None,
    dry_run: bool,
    progress: ProgressCallback | None,
) -> RepairReport:
    """Give what lacks copies the copies that it owes; see `Store.repair`."""
    started_s = context.runtime.clock.monotonic_s()
    if context.read_only and not dry_run:
        raise PermissionDenied(f"the store {context.place.shown} can't be written: nothing is repaired")
    context.fleet.recheck()
    refuse_stale(context)
    down = _find_devices(context, without)
    short: Sequence[ShortObject] = find_short(context, down=down)
    left = short
    healed = Healed()
    if not dry_run:
        context.runtime.failpoints.hit("repair.begun")
        healed, left = _heal_in_passes(context, short, down, rate_limit, progress)
        with suppress(Conflict):  # what gone devices had is forgotten another time: nothing depends on it
            _give_up_gone(context)
        context.runtime.failpoints.hit("repair.done")
    return RepairReport(
        dry_run=dry_run,
        short=len(short),
        short_bytes=sum(each.size_bytes for each in short),
        repaired=len(healed.keys - {each.key for each in left}),
        written_bytes=healed.written_bytes,
        device_bytes=healed.device_bytes,
        left=_describe(context, left, healed),
        unreachable=tuple(m.facts.name for m in context.fleet.members() if not m.readable),
        seconds=context.runtime.clock.monotonic_s() - started_s,
    )


def _find_devices(context: StoreContext, names: Sequence[str]) -> list[str]:
    known = {facts.name.casefold(): facts for facts in context.catalog.list_devices()}
    for name in names:
        if name.casefold() not in known:
            raise NotFound(f"no device {name!r}: `tensorkeep device ls` lists them", device=name)
    return [known[name.casefold()].id for name in names]


def _heal_in_passes(
    context: StoreContext,
    short: Sequence[ShortObject],
    down: Sequence[str],
    rate_limit: int | None,
    progress: ProgressCallback | None,
) -> tuple[Healed, Sequence[ShortObject]]:
    """Heal what is short, and again what fell short meanwhile, because a copy was found damaged when it was read.

    Returns what became of it, and what lacks copies still.
    """
    healed = Healed()
    tried: set[tuple[ObjectKey, int]] = set()
    for _ in range(_PASSES):
        again = [each for each in short if (each.key, each.have) not in tried]
        if not again:
            break
        tried.update((each.key, each.have) for each in again)
        one = heal(context, again, down=down, rate_limit=rate_limit, progress=progress)
        healed.keys |= one.keys
        healed.failed |= one.failed
        healed.written_bytes += one.written_bytes
        healed.warnings |= one.warnings
        for name, size in one.device_bytes.items():
            healed.device_bytes[name] = healed.device_bytes.get(name, 0) + size
        short = find_short(context, down=down)
    return healed, short


def _give_up_gone(context: StoreContext) -> None:
    """Have the catalog give up the rows of devices that are gone, of objects that have all the copies they owe without them."""
    for facts in context.catalog.list_devices():
        if is_gone(facts):
            retire_on(context, facts.id)


def give_up(context: StoreContext, rows: Sequence[int], *, without: str | None = None) -> list[int]:
    """Condemn those of these rows without which their objects have all they owe on devices that answer now; return which.

    Raises:
        Conflict: the catalog is stale, or a device was not seen since it was rebuilt (``reason="unseen_device"``): a version that
            only that one knows may owe more.

    Args:
        context: the store.
        rows: ids of rows.
        without: a device whose copies don't count either.
    """
    refuse_unseen(context)
    heads = context.fleet.heads()  # first: who does not answer any more is found out by it
    away = [member.facts.id for member in context.fleet.members() if not member.readable]
    down = away if without is None else [*away, without]
    return context.catalog.retire(rows, down=down, heads=heads, now=context.runtime.clock.now())


def retire_on(context: StoreContext, device: str) -> list[int]:
    """Condemn the rows of a device whose objects have all the copies they owe on others that can be reached; return which."""
    retired: list[int] = []
    after = 0
    while page := context.catalog.list_on(device, after=after, limit=_PAGE):
        after = page[-1].id
        rows = [row.id for row in page if row.state not in ("staged", "condemned")]
        retired += give_up(context, rows, without=device) if rows else []
    return retired


def _describe(context: StoreContext, left: Sequence[ShortObject], healed: Healed) -> tuple[ObjectLeft, ...]:
    """Return what still lacks copies; of what has none any more also which versions and files need it."""
    users = _find_users(context, {each.key for each in left if each.have < 1})
    unplaced = "; ".join(["too few devices could take a copy", *sorted(healed.warnings)])
    return tuple(
        ObjectLeft(
            kind=each.key.kind.value,
            digest=each.key.digest.hex(),
            size_bytes=each.size_bytes,
            have=each.have,
            owed=each.owed,
            reason=healed.failed.get(each.key) or (unplaced if each.key in healed.keys else ""),
            versions=tuple(users.get(each.key, {})),
            files=tuple(dict.fromkeys(path for paths in users.get(each.key, {}).values() for path in paths)),
        )
        for each in left
    )


def _find_users(context: StoreContext, lost: set[ObjectKey]) -> dict[ObjectKey, dict[str, list[str]]]:
    """Return, for each of these objects, the versions (``model@id``) that need it, with their files, as far as these are known."""
    users: dict[ObjectKey, dict[str, list[str]]] = {}
    if not lost:
        return users
    for model in context.catalog.list_models():
        for version in context.catalog.list_versions(model.id):
            needed = {key for key, _ in context.catalog.version_objects(version.id)} & lost
            if not needed:
                continue
            files: dict[ObjectKey, list[str]] = {}
            try:
                manifest = open_manifest(context, version)
                checks = open_checks(context, version, manifest)
                for part in range(len(manifest.parts)):
                    key = ObjectKey(ObjectKind.PART, checks.digest(part))
                    if key in needed:
                        files[key] = [describe_part(manifest, part)]
            except TensorkeepError:
                pass  # its own description is lost too
            for key in needed:
                users.setdefault(key, {})[f"{model.name}@{version.id[:12]}"] = files.get(key, [])
    return users
