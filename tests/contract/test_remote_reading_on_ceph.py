"""The remote read engine against a real gateway: what Ceph answers is what the engine takes for right, and wrong."""

import dataclasses
import random
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tensorkeep.devices.remote_reading import RemoteReader
from tensorkeep.devices.remote_requests import ReadRequest
from tensorkeep.errors import Integrity, NotFound, PermissionDenied, Unavailable
from tensorkeep.runtime import Runtime
from tests.engines.servers import S3Account

CONTENT = random.Random(5).randbytes(9_000_000)


class Signing:
    """Signs by boto3, so that the engine is not held to one signer."""

    def __init__(self, account: S3Account, bucket: str) -> None:
        self.client = account.client()
        self.bucket = bucket
        self.wrong = False

    def read_request(self, name: str, *, fresh: bool = False) -> ReadRequest:
        url = self.client.generate_presigned_url("get_object", {"Bucket": self.bucket, "Key": name})
        return ReadRequest.of(url[:-1] + ("0" if url[-1] != "0" else "1") if self.wrong else url)


@pytest.fixture(scope="module")
def signing(ceph: S3Account, ceph_bucket: str) -> Signing:
    found = Signing(ceph, ceph_bucket)
    found.client.put_object(Bucket=ceph_bucket, Key="remote/x", Body=CONTENT)
    found.client.put_object(Bucket=ceph_bucket, Key="remote/empty", Body=b"")
    return found


@pytest.fixture
def reader(signing: Signing) -> Iterator[RemoteReader]:
    signing.wrong = False
    reader = RemoteReader(signing, url="s3://tests", runtime=Runtime())
    yield reader
    reader.close()


def test_ranges_from_many_threads_are_right(reader: RemoteReader) -> None:
    data = bytearray(len(CONTENT))
    view = memoryview(data)
    step = 700_001

    def read(turn: int) -> None:
        for start in range(turn * step, len(data), 4 * step):
            part = view[start : start + step]
            reader.read_into("remote/x", start, [part[:10], part[10:333_333], part[333_333:]])

    threads = [threading.Thread(target=read, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert data == CONTENT
    assert reader.counts.connections <= 4


def test_whole_and_empty_objects_are_right(reader: RemoteReader) -> None:
    assert reader.read("remote/x") == CONTENT
    assert reader.read("remote/empty") == b""


def test_an_absent_object_and_an_absent_bucket_are_told_apart(ceph: S3Account, reader: RemoteReader) -> None:
    with pytest.raises(NotFound):
        reader.read("remote/absent")
    elsewhere = RemoteReader(Signing(ceph, "no-such-bucket-here"), url="s3://none", runtime=Runtime())
    with pytest.raises(Unavailable) as caught:
        elsewhere.read("remote/x")
    assert caught.value.facts["reason"] == "no_bucket"
    elsewhere.close()


@pytest.mark.parametrize(("start", "size"), [(len(CONTENT) - 5, 10), (len(CONTENT), 1), (len(CONTENT) + 100, 5)])
def test_a_range_past_the_end_is_an_integrity_error(reader: RemoteReader, start: int, size: int) -> None:
    with pytest.raises(Integrity):
        reader.read_into("remote/x", start, [memoryview(bytearray(size))])


def test_a_wrong_signature_is_refused_without_being_shown(reader: RemoteReader, signing: Signing) -> None:
    signing.wrong = True
    with pytest.raises(PermissionDenied) as caught:
        reader.read("remote/x")
    assert "ignature=" not in str(caught.value.to_dict())
    assert reader.counts.requests == 2


def test_a_clock_that_is_wrong_is_named(signing: Signing) -> None:
    signing.wrong = True
    clock = Runtime().clock

    class Ahead:
        now = staticmethod(lambda: clock.now() + timedelta(hours=2))
        monotonic_s = clock.monotonic_s
        sleep = clock.sleep

    reader = RemoteReader(signing, url="s3://tests", runtime=dataclasses.replace(Runtime(), clock=Ahead()))
    with pytest.raises(PermissionDenied, match=r"clock is 7[12][0-9][0-9] s ahead"):
        reader.read("remote/x")
    reader.close()
