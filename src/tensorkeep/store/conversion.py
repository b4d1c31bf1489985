"""Changing what a model owes after it was pushed: its versions get the policy, and their parts the form that it asks for.

Add, then remove: a part is written in its new form, read back and counted before copies of the old one are given up; gc deletes these
after its grace. Killed anywhere, a part has copies of both forms at worst, and the next run goes on.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tensorkeep.catalog.counting import count_copies, is_of_code
from tensorkeep.catalog.protocol import DeviceHead, Location, ObjectKey, ShortObject
from tensorkeep.catalog.rules import USABLE
from tensorkeep.errors import PermissionDenied, Unavailable
from tensorkeep.planning.policies import check_policy
from tensorkeep.records.device import DeviceFacts, counted_devices
from tensorkeep.records.history import ModelFacts
from tensorkeep.records.names import parse_model_name
from tensorkeep.records.naming import ObjectKind
from tensorkeep.records.redundancy import ErasureCoded, Policy
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fragments import code_of
from tensorkeep.store.gc import refuse_unseen
from tensorkeep.store.healing import find_short, heal
from tensorkeep.store.journal import record_change, refuse_stale
from tensorkeep.store.push_target import device_shares
from tensorkeep.store.rebalance import order_to_go
from tensorkeep.store.repair import give_up
from tensorkeep.store.reports import ModelPolicy, PolicyReport, PolicyTable, ProgressCallback
from tensorkeep.store.revisions import get_model

_PAGE = 2000


@dataclass(slots=True)
class _Tally:
    converted: int = 0
    converted_bytes: int = 0
    written_bytes: int = 0
    given_up: int = 0
    given_up_bytes: int = 0
    shared: int = 0
    failed: tuple[str, ...] = ()


def read_policies(context: StoreContext) -> PolicyTable:
    """Return the policies of the store, its models and their versions."""
    return PolicyTable(
        store=context.catalog.info().policy,
        models=tuple(
            ModelPolicy(
                model=model.name,
                own=model.policy,
                owed=dict(Counter(version.policy for version in context.catalog.list_versions(model.id))),
            )
            for model in context.catalog.list_models()
        ),
    )


def set_policy(
    context: StoreContext,
    name: str | None,
    policy: Policy,
    *,
    rate_limit: int | None,
    dry_run: bool,
    progress: ProgressCallback | None,
) -> PolicyReport:
    """Give the store or a model another policy, and a model's versions too; see `Store.set_policy`."""
    started_s = context.runtime.clock.monotonic_s()
    if context.read_only and not dry_run:
        raise PermissionDenied(f"the store {context.place.shown} can't be written: its policies stay as they are")
    context.fleet.recheck()
    refuse_stale(context)
    model = None if name is None else get_model(context, parse_model_name(name))
    devices = counted_devices(context.catalog.list_devices())
    _check_can_be_kept(context, policy, devices)
    old = context.catalog.info().policy if model is None else model.policy
    tally, versions = _Tally(), 0
    if model is not None:
        refuse_unseen(context)
        versions = sum(version.policy != str(policy) for version in context.catalog.list_versions(model.id))
    if not dry_run and (versions or old != str(policy)):
        record_change(context, partial(_write, context, model, policy), policy=str(policy))
    context.runtime.failpoints.hit("policy.set")
    if model is not None:
        _convert(context, model, policy, tally, rate_limit, progress, dry_run=dry_run)
    context.runtime.failpoints.hit("policy.done")
    return PolicyReport(
        model=None if model is None else model.name,
        old=old,
        new=str(policy),
        dry_run=dry_run,
        versions=versions,
        converted=tally.converted,
        converted_bytes=tally.converted_bytes,
        written_bytes=tally.written_bytes,
        given_up=tally.given_up,
        given_up_bytes=tally.given_up_bytes,
        shared=tally.shared,
        failed=tally.failed,
        seconds=context.runtime.clock.monotonic_s() - started_s,
    )


def _check_can_be_kept(context: StoreContext, policy: Policy, devices: Sequence[DeviceFacts]) -> None:
    """Return if the devices that can be written now can keep a policy: one that can't is refused before anything owes it."""
    check_policy(policy, [facts.zone for facts in devices])
    shares = device_shares(context, devices, allow_soft=True)
    away = [m for m in context.fleet.members() if m.facts in devices and not m.writable]
    if len(shares) < policy.slots and away:
        names = [member.facts.name for member in away]
        raise Unavailable(
            f"{policy} needs {policy.slots} devices that can be written, and {', '.join(names)} can't be now: "
            + "; ".join(str(member.problem) for member in away)
            + f" (bring it back, or mark it with `tensorkeep device lost {names[0]}`)",
            devices=names,
        )
    check_policy(policy, [share.zone for share in shares])


def _write(context: StoreContext, model: ModelFacts | None, policy: Policy, heads: tuple[DeviceHead, ...]) -> int:
    return context.catalog.set_policy(
        None if model is None else model.id,
        str(policy),
        versions=model is not None,
        heads=heads,
        now=context.runtime.clock.now(),
    )


def _convert(
    context: StoreContext,
    model: ModelFacts,
    policy: Policy,
    tally: _Tally,
    rate_limit: int | None,
    progress: ProgressCallback | None,
    *,
    dry_run: bool,
) -> None:
    """Write the parts of a model that are kept in another form in that of its policy, and give up what they owe no more."""
    sizes: dict[ObjectKey, int] = {}
    for version in context.catalog.list_versions(model.id):
        sizes.update(context.catalog.version_objects(version.id))
    parts = {key: size for key, size in sizes.items() if key.kind is ObjectKind.PART}
    wanted = list(_find_others(context, parts, policy, tally, dry_run=dry_run))
    if dry_run:
        tally.converted, tally.converted_bytes = len(wanted), sum(each.size_bytes for each in wanted)
        return
    described = [each for each in find_short(context, parts=False) if each.key in sizes]
    failed = heal(context, described).failed
    healed = heal(context, wanted, rate_limit=rate_limit, progress=progress, into=policy)
    failed |= healed.failed
    context.runtime.failpoints.hit("policy.converted")
    _give_up_others(context, parts, policy, tally)
    left = {each.key for each in _find_others(context, parts, policy, _Tally(), dry_run=False)}
    done = [each for each in wanted if each.key not in left]
    tally.converted, tally.converted_bytes = len(done), sum(each.size_bytes for each in done)
    tally.written_bytes = healed.written_bytes
    unplaced = "; ".join(["too few devices could take it", *sorted(healed.warnings)])
    tally.failed = tuple(
        f"{key.kind} {key.digest.hex()}: {failed.get(key, unplaced)}" for key in sorted(left | failed.keys())
    )


def _find_others(
    context: StoreContext, parts: Mapping[ObjectKey, int], policy: Policy, tally: _Tally, *, dry_run: bool
) -> Iterator[ShortObject]:
    """Yield the parts that are not there in the form of a policy, with what is; those of which other models ask more are left out."""
    copies = policy.losses + 1
    for page in _pages(list(parts)):
        located, owed, active = _survey(context, page)
        for key in page:
            if owed.get(key, 0) > copies and not dry_run:  # in a dry run the model's own versions still ask for that
                tally.shared += 1
                continue
            code = code_of(policy, parts[key])
            mine = _counted(located[key], code, active)
            have = count_copies(mine)
            if have < copies:
                yield ShortObject(id=0, key=key, size_bytes=parts[key], have=max(0, have), owed=copies)


def _give_up_others(context: StoreContext, parts: Mapping[ObjectKey, int], policy: Policy, tally: _Tally) -> None:
    """Give up copies of other forms, and those beyond what is owed, as far as the catalog finds that all that is owed is left."""
    fill = {row.device: row.bytes for row in context.catalog.device_usage()}
    zones = {facts.id: facts.zone for facts in context.catalog.list_devices()}
    for page in _pages(list(parts)):
        located, owed, active = _survey(context, page)
        going: list[Location] = []
        for key in page:
            if key not in owed or owed[key] > policy.losses + 1:
                continue
            code = code_of(policy, parts[key])
            mine = _counted(located[key], code, active)
            going += [row for row in located[key] if not is_of_code(row, code)]
            going += order_to_go(mine, owed[key], fill, zones)
        gone = {*give_up(context, [row.id for row in going])} if going else set()
        tally.given_up += len(gone)
        tally.given_up_bytes += sum(row.length for row in going if row.id in gone)
        context.runtime.failpoints.hit("policy.given_up")


def _counted(rows: Sequence[Location], code: ErasureCoded | None, active: set[str]) -> list[Location]:
    """Return the rows of a form that count; None: of whole copies."""
    return [row for row in rows if is_of_code(row, code) and row.state in USABLE and row.device in active]


def _survey(
    context: StoreContext, keys: Sequence[ObjectKey]
) -> tuple[dict[ObjectKey, list[Location]], dict[ObjectKey, int], set[str]]:
    """Return where objects are, how many copies they owe, and which devices count."""
    devices, located = context.catalog.survey(keys)
    return located, context.catalog.copies_owed(keys), {facts.id for facts in devices if facts.state == "active"}


def _pages(keys: Sequence[ObjectKey]) -> Iterator[Sequence[ObjectKey]]:
    for start in range(0, len(keys), _PAGE):
        yield keys[start : start + _PAGE]
