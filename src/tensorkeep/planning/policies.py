"""Whether devices can hold what a redundancy policy asks for: asked before anything is written.

An impossible policy is refused; one that the devices can keep, but that loses parts with one zone, is warned of.
"""

from collections import Counter
from collections.abc import Sequence

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.slots import spread_zones
from tensorkeep.records.redundancy import ErasureCoded, Policy


def check_policy(policy: Policy, zones: Sequence[str]) -> None:
    """Return if devices in these zones, one a device, can hold what a policy asks for.

    Raises:
        InvalidInput: no device at all, or fewer than the policy's copies or fragments; the message says what to do.
    """
    if policy.slots < 1:
        raise InvalidInput(f"{policy.slots} copies asked for: at least one is needed", policy=str(policy))
    count = len(zones)
    if count == 0:
        raise InvalidInput("there is no device that can take parts: add one with `tensorkeep device add`", devices=0)
    if policy.slots <= count:
        return
    devices = f"{count} {'device' if count == 1 else 'devices'}"
    if isinstance(policy, ErasureCoded):
        missing = policy.slots - count
        raise InvalidInput(
            f"{policy} needs {policy.slots} devices that can take parts, there {'is' if count == 1 else 'are'} {devices}: "
            f"add {missing}, choose a smaller --ec, or use --replicas {min(policy.losses + 1, count)}",
            policy=str(policy),
            devices=count,
        )
    raise InvalidInput(
        f"{policy.slots} copies asked for, {devices}: add devices or lower --replicas",
        policy=str(policy),
        devices=count,
    )


def warn_of_zones(policy: Policy, zones: Sequence[str]) -> str | None:
    """Return what is to be said where one zone's loss is more than a policy survives, although its devices suffice.

    Only users who gave devices a common zone hear it: by default each device is a zone of its own.
    """
    used = Counter(spread_zones(zones, lambda zone: zone)[: policy.slots])
    if not policy.losses or not used:
        return None
    zone, most = max(used.items(), key=lambda item: item[1])
    if most <= policy.losses:
        return None
    what = "fragments" if isinstance(policy, ErasureCoded) else "copies"
    return (
        f"{policy} survives {policy.losses} lost {'device' if policy.losses == 1 else 'devices'} but not the loss of zone "
        f"{zone}, which gets {most} of the {policy.slots} {what} of a part: add a device in another zone"
    )
