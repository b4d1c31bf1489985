"""Where the bytes of parts are: the table that a load is given. Plans go in, this room never asks the catalog."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tensorkeep.devices.protocol import ReadableDevice
from tensorkeep.planning.read_plan import Piece
from tensorkeep.planning.units import UnitMap
from tensorkeep.records.checks import BlockChecks
from tensorkeep.records.redundancy import ErasureCoded
from tensorkeep.transfer.report import Damage, DeviceLoad

RESERVE, SUSPECT = 1, 2

RESTORER = "restored"
"""What stands for `transfer.restoring.Restorer` where devices are named; no device of a store has such an id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSource:
    """A whole copy of a part: ``length`` bytes from ``offset`` of the object ``name`` on the device with id ``device``.

    ``location`` is the catalog's row, handed back in reports; ``tail_bytes`` follow in the object. Of copies of several ``rank``s the lowest is read, the
    others only when none of it is left, or it is late: `RESERVE` where the node's cache has the part, so that nothing need come across the network; `SUSPECT` where it was found
    bad before, since its damage may have been the cable's, or lie in another block.
    """

    location: int
    device: str
    name: str
    offset: int = 0
    length: int
    rank: int = 0
    tail_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FragmentSet:
    """The fragments of a part that the catalog knows: their code, and the copies of each by its number, best first."""

    code: ErasureCoded
    copies: Mapping[int, Sequence[PartSource]]


class Restoring(Protocol):
    """What restores parts from fragments also tells."""

    def take_damage(self) -> list[Damage]:
        """Return what was found of fragments since this was asked last."""

    def take_loads(self) -> list[DeviceLoad]:
        """Return what devices gave to restore from since this was asked last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTable:
    """The parts of one version, how to check them, and where their copies are.

    Attributes:
        sizes: bytes of every part, in manifest order; then of what parts in fragments are read as, where ``units`` are given.
        checks: digests and block checks of the same parts.
        sources: part → its copies, best first. Copies on devices that are not in ``devices`` count as unreachable.
        devices: device id → device, the reachable ones only. Thread safe, as their contract says.
        names: device id → what the user calls it.
        rates: device id → bytes per second, where known: for prediction and balance.
        confirm_checks: re-reads the whole checks object and verifies its digest; called at most once a load, before a
            copy is blamed for a check that does not fit. None: the checks are taken as they are.
        describe: part → which file or tensor it belongs to, for messages.
        note_damage: told once at the end of a load which copies failed, also when the load itself fails. None: nobody is.
        fragments: part → its fragments, for those that have some.
        units: what parts are read as; None: each as itself. Set by `transfer.restoring.with_units`, and so is ``restorer``.
    """

    sizes: Sequence[int]
    checks: BlockChecks
    sources: Mapping[int, Sequence[PartSource]]
    devices: Mapping[str, ReadableDevice]
    names: Mapping[str, str] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    confirm_checks: Callable[[], BlockChecks] | None = None
    describe: Callable[[int], str] | None = None
    note_damage: Callable[[Sequence[Damage]], None] | None = None
    fragments: Mapping[int, FragmentSet] = field(default_factory=dict)
    units: UnitMap | None = None
    restorer: Restoring | None = None

    def pieces(self, pieces: Iterable[Piece]) -> Iterable[Piece]:
        """Return pieces of parts as pieces of what is read."""
        return pieces if self.units is None else self.units.pieces(pieces)

    def device_name(self, device: str) -> str:
        """Return what the user calls a device; its id where nobody said."""
        return self.names.get(device, device)
