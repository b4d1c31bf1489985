"""Objects under a name, on one place: the contract of a device, its implementations and wrappers.

`open_device` gives the device of a URL. `protocol.Device` is the contract; `LocalDevice` and `MemoryDevice` keep it, and so
do the wrappers `RetryDevice` and `RateLimitedDevice`. `measure_bandwidth` is a first guess at a device's rate.
"""

from tensorkeep.devices.bandwidth import measure_bandwidth
from tensorkeep.devices.forwarding import ForwardingDevice, innermost
from tensorkeep.devices.local import LocalDevice
from tensorkeep.devices.memory import MemoryDevice, forget_memory
from tensorkeep.devices.opening import local_path, normalize_url, open_device, same_place
from tensorkeep.devices.protocol import Device, ObjectInfo
from tensorkeep.devices.rate_limit import RateLimitedDevice
from tensorkeep.devices.retrying import RetryDevice, RetryPolicy

__all__ = [
    "Device",
    "ForwardingDevice",
    "LocalDevice",
    "MemoryDevice",
    "ObjectInfo",
    "RateLimitedDevice",
    "RetryDevice",
    "RetryPolicy",
    "forget_memory",
    "innermost",
    "local_path",
    "measure_bandwidth",
    "normalize_url",
    "open_device",
    "same_place",
]
