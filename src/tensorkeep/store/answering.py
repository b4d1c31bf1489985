"""Whether a device still answers: who asks one for many objects gives it up before each of them has waited for its deadline."""

import threading

from tensorkeep.devices.protocol import Device
from tensorkeep.errors import TensorkeepError
from tensorkeep.transfer.device_queue import GIVE_UP_AFTER


def answers(device: Device) -> bool:
    """Return whether a device gives its identity: then what can't be read of it is the object's trouble."""
    try:
        return device.read_identity() is not None
    except TensorkeepError:
        return False


class Answering:
    """Whether one device is asked on, by all who ask it for many objects. Thread safe.

    After `GIVE_UP_AFTER` failures, one after another, it is asked for its identity; if it can't give that either it is given up.

    Args:
        device: asked for its identity where reads of it fail.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._failures = 0
        self._lock = threading.Lock()
        self.is_given_up = False

    def answered(self) -> None:
        """Note that the device has answered, if only that an object is not there."""
        self._failures = 0

    def failed(self) -> None:
        """Note that it has not; ask for its identity where that was once too often."""
        with self._lock:
            self._failures += 1
            if self._failures >= GIVE_UP_AFTER and not self.is_given_up:
                self.is_given_up = not answers(self._device)
                self._failures = 0
