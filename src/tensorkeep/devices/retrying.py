"""Trying again, in one place: what a device could not answer now it may answer a moment later."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tensorkeep.devices.forwarding import ForwardingDevice
from tensorkeep.devices.protocol import Device
from tensorkeep.errors import Unavailable
from tensorkeep.runtime import Runtime

T = TypeVar("T")

RETRIED = frozenset(
    {
        "prepare",
        "read_identity",
        "read_into",
        "read",
        "size_of",
        "iter_objects",
        "delete",
        "sweep_unfinished",
        "free_bytes",
    }
)
"""Calls that may be made twice without harm. Left out on purpose:

- ``put``: after a failure without an answer the object may be there, may be torn, or may land later; its right length
  proves nothing. Whoever put it takes a new name, and the old one is collected as garbage.
- ``flush``: a failed fsync that is called again returns success without having written.
- ``replace_identity``: a late second one could undo a newer epoch.
"""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long: the n-th delay is ``first_delay_s * 2**n``, at most ``max_delay_s``, half of it random.

    No try starts more than ``total_s`` after the first.
    """

    attempts: int = 4
    first_delay_s: float = 0.1
    max_delay_s: float = 2.0
    total_s: float = 15.0

    def delay_s(self, failures: int, jitter: float) -> float:
        """Return the pause after that many failures (from 1); ``jitter`` in [0, 1) spreads clients that failed together."""
        doublings = min(failures - 1, 60)  # more would overflow a float, and no limit is that far
        longest = min(self.max_delay_s, self.first_delay_s * 2.0**doublings)
        return longest * (0.5 + 0.5 * jitter)


class RetryDevice(ForwardingDevice):
    """Makes the calls in `RETRIED` again when they raise `Unavailable`.

    Unless the device says that it is ``suspect``, or that the answer is ``final``: it tried again by itself, or a second answer
    would be no better than the first.

    A listing is begun again only until its first object has come.

    Args:
        inner: the device to wrap.
        runtime: its clock waits, its randomness spreads.
        policy: how often and how long.
    """

    def __init__(self, inner: Device, *, runtime: Runtime, policy: RetryPolicy | None = None) -> None:
        super().__init__(inner)
        self._runtime = runtime
        self._policy = policy or RetryPolicy()

    def around(self, method: str, name: str, call: Callable[[], T]) -> T:
        """Return what the call returns in the end; the last error if it never did."""
        del name
        failures = 0
        start_s = self._runtime.clock.monotonic_s()
        while True:
            try:
                return call()
            except Unavailable as error:
                failures += 1
                delay_s = self._policy.delay_s(failures, self._runtime.randomness.uniform())
                late = self._runtime.clock.monotonic_s() + delay_s - start_s > self._policy.total_s
                permanent = method not in RETRIED or error.facts.get("suspect") or error.facts.get("final")
                if permanent or late or failures >= self._policy.attempts:
                    raise
            self._runtime.clock.sleep(delay_s)
