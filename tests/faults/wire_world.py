"""Ceph behind a proxy that fails on purpose: devices and stores that reach it through the proxy, and what they left there.

Nobody waits: the clock goes forward at once where somebody sleeps on it. Deadlines of sockets are real, and small.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.devices.object_store_clients import RequestLimits
from tensorkeep.devices.object_store_url import is_object_store_url, parse_object_store_url
from tensorkeep.devices.protocol import Device
from tensorkeep.devices.retrying import RetryDevice
from tensorkeep.errors import TensorkeepError
from tensorkeep.records.device import DeviceFacts
from tensorkeep.records.naming import ObjectKind
from tensorkeep.runtime import Runtime, SeededRandomness
from tensorkeep.store.fleet import open_by_facts
from tensorkeep.store.opening import open_store
from tensorkeep.store.store import Store
from tests.engines.servers import S3Account
from tests.faults.wire_proxy import WireProxy

MIB = 1 << 20
LIMITS = RequestLimits(connect_s=5.0, small_s=2.0, large_s=3.0)
"""Deadlines of requests: long enough for a busy machine."""

IMPATIENT = RequestLimits(connect_s=5.0, small_s=1.0, large_s=1.5)
"""Where each request is to run into its deadline."""

HANG_S = 120
"""Whoever has not returned by then hangs: far over every deadline here, on a busy machine too."""

T = TypeVar("T")
Arrays = dict[str, npt.NDArray[np.uint8]]


class HastyClock:
    """The machine's clock, plus all that was slept on it: pauses take no time and deadlines still come."""

    def __init__(self) -> None:
        self._slept_s = 0.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the machine's time: signatures are checked against it."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Return the machine's time and all pauses."""
        return time.monotonic() + self._slept_s

    def sleep(self, seconds: float) -> None:
        """Go forward at once."""
        with self._lock:
            self._slept_s += max(0.0, seconds)


@dataclass(frozen=True, slots=True)
class Wire:
    """A bucket of Ceph, directly and through a proxy."""

    account: S3Account
    bucket: str
    proxy: WireProxy
    clock: HastyClock = field(default_factory=HastyClock)
    limits: RequestLimits = LIMITS

    def runtime(self) -> Runtime:
        """Return a runtime that has the credentials and does not wait."""
        return Runtime(clock=self.clock, randomness=SeededRandomness(1), environment=self.account.environment())

    def open(self, facts: DeviceFacts, runtime: Runtime) -> Device:
        """Open a device as a store does, but object stores with small deadlines. For a store's fleet."""
        if not is_object_store_url(facts.url):
            return open_by_facts(facts, runtime)
        place = parse_object_store_url(facts.url)
        return RetryDevice(ObjectStoreDevice(place, runtime=runtime, limits=self.limits), runtime=runtime)

    def open_store(self, folder: Path) -> Store:
        """Return a store in a folder, made if it is not there, whose object stores have small deadlines."""
        return Store(open_store(folder, runtime=self.runtime(), cache_root=None, user="tester", opener=self.open))

    def url(self, prefix: str) -> str:
        """Return the URL of a device behind the proxy."""
        near = S3Account(self.proxy.url, self.account.access_key, self.account.secret_key, self.account.region)
        return near.device_url(self.bucket, prefix)

    def direct(self, prefix: str) -> ObjectStoreDevice:
        """Return the same device without the proxy."""
        url = parse_object_store_url(self.account.device_url(self.bucket, prefix))
        return ObjectStoreDevice(url, runtime=Runtime(environment=self.account.environment()))


def target_of(account: S3Account) -> tuple[str, int]:
    """Return host and port of an engine."""
    parts = urlsplit(account.endpoint)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def in_time(call: Callable[[], T]) -> T | TensorkeepError:
    """Return what a call returns, or the typed error that it raises; any other error, and a call that hangs, fail the test."""
    answers: list[T | TensorkeepError] = []
    surprises: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(call())
        except TensorkeepError as error:
            answers.append(error)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the test
            surprises.append(error)

    thread = threading.Thread(target=work, name="may-hang", daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive(), "it hangs"
    if surprises:
        raise surprises[0]
    return answers[0]


def weights(seed: int, count: int = 3) -> Arrays:
    """Return arrays of 1 MiB, each a part of its own."""
    rng = np.random.default_rng(seed)
    return {f"layers.{number}.w": rng.integers(0, 256, MIB, dtype=np.uint8) for number in range(count)}


def same(loaded: dict[str, Any], wanted: Arrays) -> bool:
    """Return whether a load gave exactly these arrays."""
    return loaded.keys() == wanted.keys() and all(np.array_equal(loaded[name], wanted[name]) for name in wanted)


def check_stored(store: Store, wire: Wire, prefix: str) -> int:
    """Assert that every part which the catalog counts is on Ceph with the bytes of its digest; return how many there are."""
    device = wire.direct(prefix)
    rows = [row for row in store._context.catalog.locate_all(after=0, limit=100_000) if row.state in ("live", "stored")]
    ours = {facts.id for facts in store._context.catalog.list_devices() if facts.url.startswith("s3:")}
    parts = [row for row in rows if row.key.kind is ObjectKind.PART and row.device in ours]
    for row in parts:
        assert blake3(device.read(row.name)).digest() == row.key.digest, row.name
    return len(parts)
