"""The bundle that is handed down: one value, five sources of the outside world."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from tensorkeep.runtime.clock import Clock, SystemClock
from tensorkeep.runtime.failpoints import Failpoints, NoFailpoints
from tensorkeep.runtime.randomness import Randomness, SystemRandomness
from tensorkeep.runtime.workers import ThreadWorkers, Workers


@dataclass(frozen=True, slots=True)
class Runtime:
    """Clock, randomness, workers, failpoints and environment, as one value. Thread safe where its parts are.

    ``environment`` is where credentials are looked up that a device's URL only names; it is not in the repr.
    """

    clock: Clock = field(default_factory=SystemClock)
    randomness: Randomness = field(default_factory=SystemRandomness)
    workers: Workers = field(default_factory=ThreadWorkers)
    failpoints: Failpoints = field(default_factory=NoFailpoints)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def system_runtime() -> Runtime:
    """Return the runtime of a normal process."""
    return Runtime(environment=os.environ)
