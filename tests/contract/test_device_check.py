"""What real stores are found to be: Ceph's gateway is accepted with known flags, rclone's S3 server refused with the reason."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tensorkeep
from tensorkeep.devices import normalize_url
from tensorkeep.devices.conformance import PROBES, check_place
from tensorkeep.errors import InvalidInput
from tensorkeep.runtime import Runtime
from tests.engines.rclone import Rclone
from tests.engines.servers import S3Account


@pytest.fixture(scope="module")
def rclone() -> Iterator[Rclone]:
    with Rclone.running() as engine:
        (engine.data / "bucket").mkdir()
        yield engine


def keys_of(account: S3Account, bucket: str, prefix: str) -> list[str]:
    return [
        found["Key"] for found in account.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
    ]


def test_ceph_is_what_it_was_found_to_be(ceph: S3Account, ceph_bucket: str) -> None:
    url = normalize_url(ceph.device_url(ceph_bucket, "checked"))
    report = check_place(url, runtime=Runtime(environment=ceph.environment()), form="full")
    assert {probe.name: probe.detail for probe in report.probes if probe.outcome == "failed"} == {}
    assert {probe.name for probe in report.probes if probe.outcome == "passed"} == {
        probe.name for probe in PROBES if "object_store" in probe.kinds
    }
    found = report.conformance
    assert found.conditional_create == "exact"
    assert found.compare_and_swap == "broken"  # 16.2 answers 412 even to the present ETag
    assert found.refused_checksums == ("md5", "sha256")  # a wrong CRC32 is accepted
    assert abs(found.clock_offset_s or 0) <= 2
    assert (report.durability, report.free_bytes) == ("durable", None)
    assert keys_of(ceph, ceph_bucket, "checked") == []


def test_ceph_becomes_a_device_and_its_check_is_shown(ceph: S3Account, ceph_bucket: str, tmp_path: Path) -> None:
    url = ceph.device_url(ceph_bucket, "added")
    with tensorkeep.open(tmp_path / "store", runtime=Runtime(environment=ceph.environment())) as store:
        facts = store.devices.add("ceph", url)
        assert facts.conformance
        assert (facts.conformance.verdict, facts.conformance.conditional_create) == ("accepted", "exact")
        assert facts.bandwidth == facts.conformance.read_rate
        store.push({"w": np.arange(1000)}, "acme/llama")
        before = [key for key in keys_of(ceph, ceph_bucket, "added") if "/journal/" not in key]
        assert store.devices.check("ceph").ok
        assert [key for key in keys_of(ceph, ceph_bucket, "added") if "/journal/" not in key] == before
        assert store.verify().problems == ()


def test_rclones_server_is_refused_because_it_answers_ranges_with_200_and_left_as_it_was(
    rclone: Rclone, tmp_path: Path
) -> None:
    url = rclone.s3.device_url("bucket", "team")
    with tensorkeep.open(tmp_path / "store", runtime=Runtime(environment=rclone.s3.environment())) as store:
        with pytest.raises(InvalidInput, match=r"can't be a device: it answers a range .* it answers 200, not 206"):
            store.devices.add("rclone", url)
        assert store.devices.list() == []
        for _ in range(5):
            before = _files_in(rclone.data)
            report = store.devices.check(url)
            broken = [each.detail for each in report.probes if each.outcome == "failed" and each.name != "http_ranges"]
            if not broken:
                break
            # Of an object that many wrote at once rclone answers 500 for good, now and then, also to who removes it.
            assert all("it answers 500" in detail for detail in broken), broken
    assert report.refusal is not None
    assert report.refusal.facts["probe"] == "http_ranges"
    assert report.conformance.conditional_create == "ignored"
    assert report.conformance.compare_and_swap == "ignored"
    assert report.conformance.refused_checksums == ("md5",)
    assert _files_in(rclone.data) == before


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
