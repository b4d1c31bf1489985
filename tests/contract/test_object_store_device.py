"""An object store keeps the contract of devices: Ceph's gateway, through the real client."""

import os
from collections.abc import Callable, Iterator

import pytest

from tensorkeep.devices import RateLimitedDevice, RetryDevice
from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.devices.object_store_url import parse_object_store_url
from tensorkeep.devices.protocol import Device
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.testing.device_contract import DeviceContract, Place
from tests.engines.servers import S3Account

BUCKET = f"contract-{os.getpid()}"

Wrapper = Callable[[Device], Device]
WRAPPERS: dict[str, Wrapper] = {
    "bare": lambda device: device,
    "as opened": lambda device: RateLimitedDevice(
        RetryDevice(device, runtime=Runtime(clock=ManualClock())),
        rate_bytes_per_s=100_000_000,
        runtime=Runtime(clock=ManualClock()),
    ),
}


class TestObjectStoreDevice(DeviceContract):
    @pytest.fixture(params=WRAPPERS)
    def wrapper(self, request: pytest.FixtureRequest) -> Wrapper:
        return WRAPPERS[request.param]

    @pytest.fixture
    def place(self, wrapper: Wrapper, ceph: S3Account) -> Iterator[Place]:
        client = ceph.client()
        environment = ceph.environment("CEPH")

        def remove() -> None:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
                keys = [{"Key": found["Key"]} for found in page.get("Contents", ())]
                if keys:
                    client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})
            client.delete_bucket(Bucket=BUCKET)

        def open_device() -> Device:
            url = parse_object_store_url(ceph.device_url(BUCKET, "team/a", credentials="env:CEPH"))
            return wrapper(ObjectStoreDevice(url, runtime=Runtime(environment=environment)))

        client.create_bucket(Bucket=BUCKET)
        gone: list[bool] = []

        def lose() -> None:
            remove()
            gone.append(True)

        yield Place(
            open_device=open_device,
            lose=lose,
            silent=frozenset({"flush", "free_bytes"}),
        )
        if not gone:
            remove()
