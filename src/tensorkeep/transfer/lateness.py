"""When a device is late, so that another copy is asked: decisions only, no clock, no I/O."""

LATE_S = 0.2
"""A read that takes no longer is never late, whatever others take: busy machines stall that long, and to ask twice is not for nothing."""

HANGS_S = 0.5
"""Where all reads that hold memory have run that long, one more may start beyond the limit: it could end."""

LATE_ALONE_S = 3.0
"""The same where nobody can say how long it takes elsewhere."""

LOOK_EVERY_S = 0.05
"""How often somebody looks while nothing ends."""

_FACTOR = 4.0
_WORTH_S = 0.25
"""Less than this is left to whoever has it: taking over is for devices that stall, not for the last reads of all."""


def is_late(elapsed_s: float, usual_s: float | None, elsewhere_s: float | None) -> bool:
    """Return whether a read is to be asked of another copy too.

    Args:
        elapsed_s: since it was asked for.
        usual_s: what reads of its device take in this load; None: none has ended.
        elsewhere_s: what reads of the other device take; None: nobody knows.
    """
    if elsewhere_s is None:
        return elapsed_s > max(LATE_ALONE_S, _FACTOR * (usual_s or 0.0))
    return elapsed_s > max(LATE_S, _FACTOR * elsewhere_s)


def is_worth(left_bytes: int, rate: float | None, elsewhere_s: float | None) -> bool:
    """Return whether an idle device should do some of what waits for another.

    Args:
        left_bytes: what the other has still to read.
        rate: its bytes per second, as far as known.
        elsewhere_s: what a read of the idle device takes; None: nobody knows, so it is tried.
    """
    left_s = left_bytes / rate if rate else _WORTH_S
    return left_s >= max(_WORTH_S, 2 * (elsewhere_s or 0.0))
