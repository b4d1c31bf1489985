"""Waiting for a device whose trouble passes (``passing=True`` of its error): a busy store, a gateway that restarts.

A put is never made again under its old name, which may still appear; whoever waits here takes a new one. Disks don't say
that their trouble passes, so nobody waits for them.
"""

import threading
from collections.abc import Callable, Sequence

from typing_extensions import Buffer

from tensorkeep.devices.protocol import Device
from tensorkeep.devices.retrying import RetryPolicy
from tensorkeep.errors import TensorkeepError
from tensorkeep.runtime import Cancellation, Runtime

POLICY = RetryPolicy(attempts=40, first_delay_s=0.25, max_delay_s=5.0, total_s=60.0)
"""A store that was killed and started again answers within it: Ceph takes some ten seconds."""


_STEP_S = 0.25
"""How often a pause looks whether the push was given up."""


class Patience:
    """How long devices have failed, each since its last success. Thread safe.

    Args:
        runtime: its clock waits, its randomness spreads.
        policy: how long to bear it.
    """

    def __init__(self, runtime: Runtime, *, policy: RetryPolicy = POLICY) -> None:
        self._runtime = runtime
        self._policy = policy
        self._lock = threading.Lock()
        self._failing_since_s: dict[str, float] = {}

    def note_success(self, device: str) -> None:
        """Forget a device's failures."""
        with self._lock:
            self._failing_since_s.pop(device, None)

    def pause_s(self, device: str, error: TensorkeepError, failures: int) -> float | None:
        """Return how long to wait before a device is tried again; None where that is no use, or no more.

        Args:
            device: any name for it.
            error: what it raised.
            failures: of the caller on this device, one after another, this one included.
        """
        if not error.facts.get("passing"):
            return None
        now_s = self._runtime.clock.monotonic_s()
        with self._lock:
            since_s = self._failing_since_s.setdefault(device, now_s)
        delay_s = self._policy.delay_s(failures, self._runtime.randomness.uniform())
        if failures >= self._policy.attempts or now_s + delay_s - since_s > self._policy.total_s:
            return None
        return delay_s

    def wait(self, seconds: float, stop: Cancellation | None) -> None:
        """Wait that long; raises `Cancelled` soon after somebody gave up what is waited for."""
        left_s = seconds
        while left_s > 0:
            if stop is not None:
                stop.check()
            step_s = min(left_s, _STEP_S)
            self._runtime.clock.sleep(step_s)
            left_s -= step_s
        if stop is not None:
            stop.check()


def put_patiently(device: Device, make_name: Callable[[], str], data: Sequence[Buffer], *, runtime: Runtime) -> None:
    """Put an object, under a new name each time, until it is there or the device's trouble does not pass."""
    patience = Patience(runtime)
    failures = 0
    while True:
        try:
            device.put(make_name(), data)
            return
        except TensorkeepError as error:
            failures += 1
            pause_s = patience.pause_s(device.url, error, failures)
            if pause_s is None:
                raise
        runtime.clock.sleep(pause_s)
