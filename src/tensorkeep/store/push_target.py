"""Where a push goes: its options, the model and branch it moves, the devices it may use, and the version it builds on."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tensorkeep.errors import AlreadyExists, Integrity, InvalidInput, NotEnoughCopies, TensorkeepError, Unavailable
from tensorkeep.planning.placement import DeviceShare
from tensorkeep.planning.policies import check_policy, warn_of_zones
from tensorkeep.records.device import DeviceFacts, counted_devices
from tensorkeep.records.history import ModelFacts, VersionFacts
from tensorkeep.records.json_text import format_time
from tensorkeep.records.names import ModelName, check_ref_name, parse_revision
from tensorkeep.records.redundancy import Policy, Replicas, metadata_copies, parse_policy
from tensorkeep.store.context import StoreContext
from tensorkeep.store.fleet import Member
from tensorkeep.store.journal import new_ulid
from tensorkeep.store.push_plan import Base
from tensorkeep.store.revisions import get_version
from tensorkeep.store.structure import known_rates, open_checks, open_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """What the caller of a push may choose; names as on the command line."""

    branch: str = "main"
    tag: str | None = None
    message: str = ""
    author: str | None = None
    split: str = "auto"
    part_size: int | None = None
    layer_pattern: str | None = None
    policy: Policy | None = None
    base: str | None = None
    allow_soft: bool = False
    allow_degraded: bool = False
    rehash: bool = False


@dataclass(frozen=True, slots=True)
class PushTarget:
    """What a push goes to: the model (made by the commit where it is new), the branch's head, the policy.

    ``model_policy`` is the policy that the model gets, None: it keeps its own. ``down`` are devices that can't be written.
    ``tagged`` says that the tag asked for points at the head already: a push that was cut off after its commit made it.
    """

    model: ModelFacts
    head: VersionFacts | None
    policy: Policy
    model_policy: str | None
    devices: tuple[DeviceFacts, ...]
    down: tuple[str, ...]
    tagged: bool = False

    @property
    def copies(self) -> int:
        """Copies that each part owes, whatever their form."""
        return self.policy.losses + 1

    @property
    def metadata_copies(self) -> int:
        """Copies that manifest, checks and version record owe."""
        return metadata_copies(self.policy, len(counted_devices(self.devices)))


def find_target(context: StoreContext, name: ModelName | None, options: PushOptions) -> PushTarget:
    """Return where a push goes, once names, policy and devices were found to allow it; None is a model that is not there yet.

    Raises:
        InvalidInput: an illegal name, or a policy that the devices can't keep.
        AlreadyExists: the tag points at another version.
        Unavailable: a device is down, and a degraded push was not asked for.
        NotEnoughCopies: no device can be written.
    """
    check_ref_name(options.branch, kind="branch")
    found = context.catalog.find_model(name) if name is not None else None
    if options.tag is not None:
        check_ref_name(options.tag, kind="tag")
    refs = {(ref.kind, ref.name): ref for ref in context.catalog.list_refs(found.id)} if found else {}
    branch = refs.get(("branch", options.branch))
    head = context.catalog.get_version(found.id, branch.version) if found and branch else None
    tag = refs.get(("tag", options.tag or ""))
    if tag is not None and (head is None or tag.version != head.id):
        raise AlreadyExists(
            f"tag {tag.name!r} of {name} exists and points at version {tag.version}: choose another", tag=tag.name
        )
    policy = _find_policy(context, found, options)
    context.fleet.recheck()
    members = [member for member in context.fleet.members() if member.facts.state == "active"]
    down = tuple(member.facts.id for member in members if not member.writable)
    _check_devices(members, policy, options)
    return PushTarget(
        model=found or _new_model(context, name, options),
        head=head,
        policy=policy,
        model_policy=str(options.policy) if options.policy else None,
        devices=tuple(member.facts for member in members),
        down=down,
        tagged=tag is not None,
    )


def imagine_target(
    context: StoreContext, name: ModelName | None, options: PushOptions, device: DeviceFacts
) -> PushTarget:
    """Return where a push into a store without devices would go, which would add this one first.

    Raises:
        InvalidInput: one device can't keep the policy.
    """
    policy = _find_policy(context, None, options)
    check_policy(policy, [device.zone])
    return PushTarget(
        model=_new_model(context, name, options),
        head=None,
        policy=policy,
        model_policy=str(options.policy) if options.policy else None,
        devices=(device,),
        down=(),
    )


def _find_policy(context: StoreContext, found: ModelFacts | None, options: PushOptions) -> Policy:
    if options.policy is not None:
        return options.policy
    return parse_policy(found.policy if found is not None and found.policy else context.catalog.info().policy)


def _new_model(context: StoreContext, name: ModelName | None, options: PushOptions) -> ModelFacts:
    return ModelFacts(
        id=new_ulid(context.runtime),
        name=str(name or ""),
        policy=str(options.policy) if options.policy else None,
        created_at=format_time(context.runtime.clock.now()),
    )


def _check_devices(members: Sequence[Member], policy: Policy, options: PushOptions) -> None:
    counted = [m for m in members if m.facts.durability == "durable" or options.allow_soft]
    if not counted and members:
        names = ", ".join(m.facts.name for m in members)
        raise InvalidInput(
            f"no device is durable ({names}: soft, such as tmpfs or memory): add a durable one, or push with --allow-soft"
        )
    check_policy(policy, [m.facts.zone for m in counted])
    unreachable = [m for m in members if not m.writable]
    if unreachable and not options.allow_degraded:
        raise Unavailable(
            "; ".join(str(m.problem) for m in unreachable)
            + f" (bring it back, mark it with `tensorkeep device lost {unreachable[0].facts.name}`, or push with --allow-degraded)",
            devices=[m.facts.name for m in unreachable],
        )
    if len(unreachable) == len(members):
        raise NotEnoughCopies("no device can be written: " + "; ".join(str(m.problem) for m in members))


def zone_warnings(target: PushTarget, *, allow_soft: bool) -> tuple[str, ...]:
    """Return what is to be said of a policy that devices survive and a zone does not."""
    zones = [facts.zone for facts in target.devices if allow_soft or facts.durability == "durable"]
    warning = warn_of_zones(target.policy, zones)
    return () if warning is None else (warning,)


def open_base(context: StoreContext, target: PushTarget, options: PushOptions) -> Base | None:
    """Return the version that the push builds on, None where there is none or its structure can't be read."""
    version = target.head
    if options.base is not None:
        version = get_version(context, parse_revision(options.base))[1]
    if version is None:
        return None
    try:
        manifest = open_manifest(context, version)
        return Base(manifest, open_checks(context, version, manifest))
    except (NotEnoughCopies, Integrity):
        # The parent's structure is on devices that are gone, or damaged: the push stores everything anew, which heals it.
        return None


def device_shares(context: StoreContext, devices: Sequence[DeviceFacts], *, allow_soft: bool) -> list[DeviceShare]:
    """Return those of these devices that can be written now and whose copies count, with their bandwidth and room."""
    usage = {row.device: row.bytes for row in context.catalog.device_usage()}
    writable = context.fleet.writable()
    usable = [facts for facts in devices if facts.id in writable]
    counted = [facts for facts in usable if allow_soft or facts.durability == "durable"]
    rates = known_rates(devices)
    usual = median(rates.values()) if rates else 1.0  # what was never measured is taken for as fast as the others
    shares = []
    for facts in counted or usable:
        try:
            free = writable[facts.id].free_bytes()
        except TensorkeepError:
            continue  # it went just now
        if facts.capacity is not None:
            room = max(0, facts.capacity - usage.get(facts.id, 0))
            free = room if free is None else min(room, free)
        shares.append(DeviceShare(facts.id, facts.zone, rates.get(facts.id, usual), free))
    return shares


def make_policy(replicas: int | None, erasure: str | None) -> Policy | None:
    """Return the policy that ``--replicas`` or ``--ec`` asks for, None where neither does.

    Raises:
        InvalidInput: both are given, or one makes no sense.
    """
    if replicas is not None and erasure is not None:
        raise InvalidInput("give --replicas or --ec, not both")
    if erasure is not None:
        return parse_policy(f"ec={erasure}")
    if replicas is None:
        return None
    if replicas < 1:
        raise InvalidInput(f"{replicas} copies keep nothing: ask for at least 1", replicas=replicas)
    return Replicas(replicas)
