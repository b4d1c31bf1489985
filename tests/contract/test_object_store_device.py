"""An object store keeps the contract of devices: Ceph's gateway, and Swift's in `make soak`, through the real client."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tensorkeep
from bench.make_models import make_model
from tensorkeep.devices import RateLimitedDevice, RetryDevice
from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.devices.object_store_url import parse_object_store_url
from tensorkeep.devices.protocol import Device
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.testing.device_contract import DeviceContract, Place
from tests.e2e.trees import read_tree
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
    exact_create = True

    @pytest.fixture(params=WRAPPERS)
    def wrapper(self, request: pytest.FixtureRequest) -> Wrapper:
        return WRAPPERS[request.param]

    @pytest.fixture
    def account(self, ceph: S3Account) -> S3Account:
        return ceph

    @pytest.fixture
    def place(self, wrapper: Wrapper, account: S3Account) -> Iterator[Place]:
        client = account.client()
        environment = account.environment("CEPH")

        def remove() -> None:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
                keys = [{"Key": found["Key"]} for found in page.get("Contents", ())]
                if keys:
                    client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})
            client.delete_bucket(Bucket=BUCKET)

        def open_device() -> Device:
            url = parse_object_store_url(account.device_url(BUCKET, "team/a", credentials="env:CEPH"))
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
            exact_create=self.exact_create,
        )
        if not gone:
            remove()


@pytest.mark.soak
class TestObjectStoreDeviceOnSwift(TestObjectStoreDevice):
    exact_create = False  # which is why no physical name is ever used twice

    @pytest.fixture
    def account(self, swift: S3Account) -> S3Account:
        return swift


@pytest.mark.soak
def test_a_model_that_is_pushed_to_swift_comes_back(
    swift: S3Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in swift.environment("SWIFT").items():
        monkeypatch.setenv(name, value)
    bucket = swift.make_bucket("models")
    model = make_model("tiny", tmp_path / "tiny")
    with tensorkeep.init(tmp_path / "store", replicas=2) as store:
        for name in ("far0", "far1"):
            store.devices.add(name, swift.device_url(bucket, name, credentials="env:SWIFT"), bandwidth=100_000_000)
        store.push(model, "acme/tiny")
        store.pull("acme/tiny", tmp_path / "out")
        assert store.verify().problems == ()
    assert read_tree(tmp_path / "out") == read_tree(model)
