"""The wire: the read engine of remote devices is handed a server's bytes by a socket that is none.

The same bytes come on every connection, in small pieces, then the connection ends: so a body that is cut, a busy server and a
redirect run through all attempts of the engine, on a clock that nobody waits for.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from tensorkeep.devices import remote_reading
from tensorkeep.devices.remote_answers import (
    ShortObject,
    WrongAnswer,
    check_range,
    check_whole,
    error_length,
    parse_head,
)
from tensorkeep.devices.remote_connections import Connection
from tensorkeep.devices.remote_reading import RemoteReader
from tensorkeep.devices.remote_refusals import read_refusal
from tensorkeep.devices.remote_requests import Endpoint, ReadRequest
from tensorkeep.errors import TensorkeepError, Unavailable
from tensorkeep.runtime import ManualClock, Runtime, SeededRandomness

START, END = 100, 164
"""The range that is asked for."""

MOST_WHOLE_BYTES = 1 << 20
"""What a server's word may make the engine hold here; 1 GiB outside, which no fuzz could afford."""

_PIECE_BYTES = 1000
_REQUEST = ReadRequest.of("http://store.invalid/bucket/object")


class _Socket:
    """A connection on which a server has said everything that it will ever say."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    def sendall(self, data: bytes) -> None:
        assert data.endswith(b"\r\n\r\n")

    def recv_into(self, view: Any, nbytes: int = 0, flags: int = 0) -> int:
        count = min(len(self._left), nbytes or len(view), _PIECE_BYTES)
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def recvmsg_into(self, views: list[memoryview], ancillary: int = 0, flags: int = 0) -> tuple[int]:
        return (self.recv_into(views[0]),)

    def close(self) -> None:
        self._left = b""


class _Pool:
    """Gives a new connection each time, on which the same bytes come."""

    opened = 0

    def __init__(self, data: bytes, clock: ManualClock) -> None:
        self._data = data
        self._clock = clock

    def take(self, endpoint: Endpoint, *, fresh: bool = False) -> Connection:
        made: Any = _Socket(self._data)
        return Connection(endpoint, made, 20.0, self._clock.monotonic_s)

    def give(self, connection: Connection) -> None:
        connection.close()


class _Requests:
    def read_request(self, name: str, *, fresh: bool = False) -> ReadRequest:
        return _REQUEST


def _reader(data: bytes) -> RemoteReader:
    clock = ManualClock()
    reader = RemoteReader(_Requests(), url="s3:bucket", runtime=Runtime(clock=clock, randomness=SeededRandomness(1)))
    pool: Any = _Pool(data, clock)
    reader._pool = pool
    return reader


def read_range(data: bytes) -> None:
    """Read a range into two buffers of the caller."""
    memory = memoryview(bytearray(END - START))
    _reader(data).read_into("parts/ab/x", START, [memory[:10], memory[10:]])


def read_object(data: bytes) -> None:
    """Read a whole object, as long as the server says that it is."""
    with patch.object(remote_reading, "MAX_WHOLE_BYTES", MOST_WHOLE_BYTES):
        found = _reader(data).read("manifests/ab/x")
    assert len(found) <= len(data)


def read_heads(data: bytes) -> None:
    """Read a head, and what of it makes a range, an object or a refusal; the last refusal comes out where none is good."""
    text, _, body = data.partition(b"\r\n\r\n")
    try:
        head = parse_head(text)
    except WrongAnswer as error:
        raise _typed(error) from error
    error_length(head)
    refusal = read_refusal(head, body, ManualClock().now())
    assert refusal.retry_after_s is None or refusal.retry_after_s >= 0
    assert refusal.busy in (True, False)
    assert f"{refusal} {refusal.clock_hint}".isprintable()
    found: list[TensorkeepError] = []
    checks: tuple[Callable[[], object], ...] = (lambda: check_range(head, START, END), lambda: check_whole(head))
    for check in checks:
        try:
            check()
        except (WrongAnswer, ShortObject) as error:
            found.append(_typed(error))
    if len(found) == 2:
        raise found[0]


def _typed(error: Exception) -> TensorkeepError:
    """Return the error that the engine makes of one of its own."""
    return Unavailable(str(error))
