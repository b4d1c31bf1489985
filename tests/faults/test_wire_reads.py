"""Faults on the wire while objects are read: the right bytes or a typed error, never a wrong byte, never a hang."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.devices.object_store_url import parse_object_store_url
from tensorkeep.devices.remote_reading import ReadLimits, RemoteReader
from tensorkeep.devices.retrying import RetryDevice
from tensorkeep.errors import TensorkeepError, Unavailable
from tests.faults.wire_proxy import Fault, tenths
from tests.faults.wire_world import LIMITS, MIB, Wire, in_time

NAME = f"parts/00/{'00' * 32}.01JQZZZZZZZZZZZZZZZZZZZZZZ"
SIZE = 2 * MIB
CONTENT = bytes(range(256)) * (SIZE // 256)

Read = Callable[[int, int], bytes]


@pytest.fixture(scope="module")
def stored(wire: Wire) -> str:
    """The prefix of a device that has one object."""
    device = wire.direct("reads")
    device.put(NAME, [CONTENT])
    return "reads"


@pytest.fixture(params=["engine", "device"])
def read(request: pytest.FixtureRequest, wire: Wire, stored: str) -> Iterator[Read]:
    """Reads a range of the object through the proxy, by the read engine or by the device as a store opens it."""
    url = wire.url(stored)
    device = ObjectStoreDevice(parse_object_store_url(url), runtime=wire.runtime(), limits=LIMITS)
    limits = ReadLimits(connect_s=5, stall_s=1, floor_bytes_per_s=64 << 10, grace_s=10)
    engine = RemoteReader(device, url=url, runtime=wire.runtime(), limits=limits)
    into = engine.read_into if request.param == "engine" else RetryDevice(device, runtime=wire.runtime()).read_into

    def get(offset: int, size: int) -> bytes:
        buffer = bytearray(size)
        into(NAME, offset, [memoryview(buffer)])
        return bytes(buffer)

    yield get
    engine.close()


def check(wire: Wire, read: Read, fault: Fault, *, must: bool) -> None:
    """Read three ranges under a fault: each is right or a typed error; where ``must``, right."""
    wire.proxy.script(fault)
    for offset, size in ((0, SIZE), (MIB - 100, MIB), (SIZE - 1000, 1000)):
        answer = in_time(lambda offset=offset, size=size: read(offset, size))  # type: ignore[misc]
        if isinstance(answer, TensorkeepError):
            assert isinstance(answer, Unavailable), answer
            assert wire.account.secret_key not in str(answer)
            assert "Signature" not in str(answer)
            assert not must, answer
        else:
            assert answer == CONTENT[offset : offset + size]
    assert wire.proxy.count(fault.kind) > 0, "the fault did not happen"


@pytest.mark.parametrize("fault", tenths("answer", "cut", ["GET"]) + tenths("answer", "reset", ["GET"]), ids=str)
def test_a_body_that_breaks_once_at_any_tenth_is_read_right(wire: Wire, read: Read, fault: Fault) -> None:
    check(wire, read, fault, must=True)


@pytest.mark.parametrize(
    "fault", tenths("answer", "cut", ["GET"])[::5] + tenths("answer", "reset", ["GET"])[::5], ids=str
)
def test_bodies_that_always_break_end_right_or_in_an_error(wire: Wire, read: Read, fault: Fault) -> None:
    check(wire, read, replace(fault, times=None), must=False)


@pytest.mark.parametrize("times", [1, None])
@pytest.mark.parametrize("fault", tenths("answer", "strip_length", ["GET"]), ids=str)
def test_an_answer_without_its_length_is_never_taken_for_whole(
    wire: Wire, read: Read, fault: Fault, times: int | None
) -> None:
    check(wire, read, replace(fault, times=times), must=False)


@pytest.mark.parametrize("kind", ["stall", "trickle"])
def test_an_answer_that_stops_coming_is_asked_for_again(wire: Wire, read: Read, kind: str) -> None:
    check(wire, read, Fault(kind, at=0.3), must=True)  # type: ignore[arg-type]


def test_answers_that_always_stop_coming_end_in_an_error(wire: Wire, read: Read) -> None:
    wire.proxy.script(Fault("stall", at=0.0, times=None))
    answer = in_time(lambda: read(0, SIZE))
    assert isinstance(answer, Unavailable), answer


@pytest.mark.parametrize("retry_after", [None, "1", "Wed, 21 Oct 2015 07:28:00 GMT", "nonsense"])
@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_store_is_asked_again(wire: Wire, read: Read, status: int, retry_after: str | None) -> None:
    check(wire, read, Fault("refuse", status=status, retry_after=retry_after, times=2), must=True)


def test_a_store_that_is_always_busy_ends_in_an_error(wire: Wire, read: Read) -> None:
    wire.proxy.script(Fault("refuse", status=503, retry_after="1", times=None))
    answer = in_time(lambda: read(0, SIZE))
    assert isinstance(answer, Unavailable), answer
    assert wire.proxy.count("refuse") < 50
