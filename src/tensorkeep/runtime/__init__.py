"""What a process is given from outside: clock, randomness, workers, failpoints, environment.

Nothing above this room reads the time or a variable, draws a random number, starts a thread or sleeps by itself: it is handed a
`Runtime`. Production uses `system_runtime()`; tests hand in a clock that stands still, seeded randomness, or a failpoint
that kills the process at a named step; a simulator can hand in workers that run one at a time.
"""

from tensorkeep.runtime.clock import Clock, ManualClock, SystemClock
from tensorkeep.runtime.collection import collection_paused
from tensorkeep.runtime.failpoints import FAILPOINTS, Failpoints, NoFailpoints
from tensorkeep.runtime.randomness import Randomness, SeededRandomness, SystemRandomness
from tensorkeep.runtime.runtime import Runtime, system_runtime
from tensorkeep.runtime.workers import (
    Cancellation,
    Cancelled,
    InlineWorkers,
    LeavablePool,
    ThreadWorkers,
    WorkerPool,
    Workers,
)

__all__ = [
    "FAILPOINTS",
    "Cancellation",
    "Cancelled",
    "Clock",
    "Failpoints",
    "InlineWorkers",
    "LeavablePool",
    "ManualClock",
    "NoFailpoints",
    "Randomness",
    "Runtime",
    "SeededRandomness",
    "SystemClock",
    "SystemRandomness",
    "ThreadWorkers",
    "WorkerPool",
    "Workers",
    "collection_paused",
    "system_runtime",
]
