"""The bundle that is handed down: one value, four sources of the outside world."""

from dataclasses import dataclass, field

from tensorkeep.runtime.clock import Clock, SystemClock
from tensorkeep.runtime.failpoints import Failpoints, NoFailpoints
from tensorkeep.runtime.randomness import Randomness, SystemRandomness
from tensorkeep.runtime.workers import ThreadWorkers, Workers


@dataclass(frozen=True, slots=True)
class Runtime:
    """Clock, randomness, workers and failpoints, as one value. Thread safe where its parts are."""

    clock: Clock = field(default_factory=SystemClock)
    randomness: Randomness = field(default_factory=SystemRandomness)
    workers: Workers = field(default_factory=ThreadWorkers)
    failpoints: Failpoints = field(default_factory=NoFailpoints)


def system_runtime() -> Runtime:
    """Return the runtime of a normal process."""
    return Runtime()
