"""Where the bytes of parts are: the table that a load is given. Plans go in, this room never asks the catalog."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tensorkeep.devices.protocol import Device
from tensorkeep.records.checks import Checks
from tensorkeep.transfer.report import Damage

RESERVE, SUSPECT = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSource:
    """A whole copy of a part: ``length`` bytes from ``offset`` of the object ``name`` on the device with id ``device``.

    ``location`` is the catalog's row, handed back in reports. Of copies of several ``rank``s the lowest is read, the
    others only when none of it is left, or it is late: `RESERVE` where the node's cache has the part, so that nothing need come across the network; `SUSPECT` where it was found
    bad before, since its damage may have been the cable's, or lie in another block.
    """

    location: int
    device: str
    name: str
    offset: int = 0
    length: int
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTable:
    """The parts of one version, how to check them, and where their copies are.

    Attributes:
        sizes: bytes of every part, in manifest order.
        checks: digests and block checks of the same parts.
        sources: part → its copies, best first. Copies on devices that are not in ``devices`` count as unreachable.
        devices: device id → device, the reachable ones only. Thread safe, as their contract says.
        names: device id → what the user calls it.
        rates: device id → bytes per second, where known: for prediction and balance.
        confirm_checks: re-reads the whole checks object and verifies its digest; called at most once a load, before a
            copy is blamed for a check that does not fit. None: the checks are taken as they are.
        describe: part → which file or tensor it belongs to, for messages.
        note_damage: told once at the end of a load which copies failed, also when the load itself fails. None: nobody is.
    """

    sizes: Sequence[int]
    checks: Checks
    sources: Mapping[int, Sequence[PartSource]]
    devices: Mapping[str, Device]
    names: Mapping[str, str] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    confirm_checks: Callable[[], Checks] | None = None
    describe: Callable[[int], str] | None = None
    note_damage: Callable[[Sequence[Damage]], None] | None = None

    def device_name(self, device: str) -> str:
        """Return what the user calls a device; its id where nobody said."""
        return self.names.get(device, device)
