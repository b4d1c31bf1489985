"""Connections of remote reads: bytes of a body go from the socket to where they belong, with as few calls as can be.

Why not `http.client`: it copies through a buffered reader and wakes Python for every few hundred KiB. A blocking socket with
``MSG_WAITALL`` fills a destination of megabytes in one call without the interpreter lock: half of the CPU seconds, measured on
Ceph. Its timeout (``SO_RCVTIMEO``) returns what has come so far, which is how a stall and a trickle are told apart.

Connections are kept open, by endpoint, and are used again last in, first out; one that the server closed meanwhile, or that
holds bytes nobody asked for, is never used again, nor is one of a process that was forked.
"""

import os
import select
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

from tensorkeep.devices.buffers import VECTOR_LIMIT
from tensorkeep.devices.remote_answers import MAX_HEAD_BYTES, Head, WrongAnswer, parse_head
from tensorkeep.devices.remote_requests import Endpoint

if TYPE_CHECKING:
    import ssl

IDLE_S = 20.0
"""How long an unused connection is trusted: less than what servers and the boxes between keep one."""

MAX_IDLE = 64
_HEAD_BYTES = 4096
_MAX_INTERIM_ANSWERS = 8


BreakKind = Literal["Connect", "Timeout", "Interrupted"]


class BrokenConnection(Exception):
    """The connection or the server behind it failed; the text says how.

    Attributes:
        kind: ``Connect`` where no connection was made, ``Timeout`` where nothing came in time, else ``Interrupted``.
        answered: whether any byte of an answer had come.
    """

    def __init__(self, reason: str, *, kind: BreakKind = "Interrupted", answered: bool = True) -> None:
        super().__init__(reason)
        self.kind = kind
        self.answered = answered


class ConnectionLimits(NamedTuple):
    """How long to wait: for a connection, and for any byte of an answer."""

    connect_s: float = 10.0
    stall_s: float = 20.0


@runtime_checkable
class _Decrypting(Protocol):
    """A TLS socket, without importing `ssl`: it may hold bytes that it has decrypted already."""

    def pending(self) -> int: ...


class Connection:
    """One open connection: sends a request, gives the head of the answer, then its body. Not thread safe."""

    def __init__(
        self, endpoint: Endpoint, opened: socket.socket, stall_s: float, monotonic_s: Callable[[], float]
    ) -> None:
        self.endpoint = endpoint
        self.used = False
        self.idle_since_s = 0.0
        self._socket = opened
        self._stall_s = stall_s
        self._monotonic_s = monotonic_s
        self._plain = not endpoint.tls
        self._buffer = bytearray(_HEAD_BYTES)
        self._ahead = memoryview(b"")
        self._answered = False

    def ask(self, request: bytes) -> Head:
        """Send a request and return the head of its answer.

        Raises:
            BrokenConnection: it could not be sent, or no whole head came within the stall time and the wait for its last bytes.
            WrongAnswer: what came is no head.
        """
        self._answered = False
        try:
            self._socket.sendall(request)
            until_s = self.until_stall_s()
            for _ in range(_MAX_INTERIM_ANSWERS):
                head = self._read_head(until_s)
                if head.status >= 200:
                    return head
        except OSError as error:
            raise self._broken(error) from error
        raise WrongAnswer("it sends interim answers without end")

    def receive(self, views: Sequence[memoryview]) -> int:
        """Fill the views, which are not empty, as far as bytes come within the stall time; return how many came.

        Fewer than the views hold are no error: the caller judges by the time that has passed.

        Raises:
            BrokenConnection: not one byte came.
        """
        if self._ahead:
            return self._receive_ahead(views[0])
        try:
            count = self._receive(views)
        except OSError as error:
            raise self._broken(error) from error
        if count == 0:
            raise BrokenConnection("it closed the connection", answered=self._answered)
        return count

    def receive_some(self, view: memoryview) -> int:
        """Put what has come, at least one byte, into a view; 0 where the server closed the connection."""
        if self._ahead:
            return self._receive_ahead(view)
        try:
            return self._socket.recv_into(view)
        except OSError as error:
            raise self._broken(error) from error

    def until_stall_s(self) -> float:
        """Return when, on the pool's clock, what begins now will have taken the stall time."""
        return self._monotonic_s() + self._stall_s

    def is_late(self, until_s: float) -> bool:
        """Return whether that moment has passed."""
        return self._monotonic_s() >= until_s

    def is_quiet(self) -> bool:
        """Return whether it may serve another request: open, and without bytes that nobody asked for."""
        if self._ahead or (isinstance(self._socket, _Decrypting) and self._socket.pending()):
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)  # readable between two answers: the server closed it, or said something out of turn

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _read_head(self, until_s: float) -> Head:
        data = bytes(self._ahead)
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise WrongAnswer(f"the head of its answer is over {MAX_HEAD_BYTES} bytes")
            if data and self.is_late(until_s):  # a byte now and then is no stall, and would last for ever
                raise BrokenConnection(f"it sent no whole head in {self._stall_s:g} s", kind="Timeout")
            count = self._socket.recv_into(self._buffer)
            if count == 0:
                raise BrokenConnection("it closed the connection without an answer", answered=self._answered)
            self._answered = True
            data += memoryview(self._buffer)[:count]
        self._ahead = memoryview(data)[end + 4 :]
        return parse_head(data[:end])

    def _receive_ahead(self, view: memoryview) -> int:
        count = min(len(self._ahead), view.nbytes)
        view[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        return count

    def _receive(self, views: Sequence[memoryview]) -> int:
        if not self._plain:
            return self._socket.recv_into(views[0])
        if len(views) == 1:
            return self._socket.recv_into(views[0], 0, socket.MSG_WAITALL)
        return self._socket.recvmsg_into(views[:VECTOR_LIMIT], 0, socket.MSG_WAITALL)[0]

    def _broken(self, error: OSError) -> BrokenConnection:
        if isinstance(error, TimeoutError | BlockingIOError):
            return BrokenConnection(f"it sent nothing for {self._stall_s:g} s", kind="Timeout", answered=self._answered)
        return BrokenConnection(_reason_of(error), answered=self._answered)


class ConnectionPool:
    """Open connections by endpoint. Thread safe; closes what is idle when it is dropped.

    Args:
        monotonic_s: the clock that idle times are counted by.
        limits: how long to wait.
        tls_context: gives the context that checks certificates; the system's trust where None.
    """

    def __init__(
        self,
        monotonic_s: Callable[[], float],
        *,
        limits: ConnectionLimits,
        tls_context: "Callable[[], ssl.SSLContext] | None" = None,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._limits = limits
        self._make_context = tls_context or _system_trust
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._idle: list[Connection] = []
        self.opened = 0
        weakref.finalize(self, _close_all, self._idle)

    def take(self, endpoint: Endpoint, *, fresh: bool = False) -> Connection:
        """Return an idle connection that still seems good, else a new one; always a new one where ``fresh``.

        Raises:
            BrokenConnection: there is no connection to be had.
            WrongAnswer: the server's certificate is not to be trusted.
        """
        while not fresh and (connection := self._take_idle(endpoint)) is not None:
            if connection.is_quiet():
                connection.used = True
                return connection
            connection.close()
        return self._open(endpoint)

    def give(self, connection: Connection) -> None:
        """Take a connection back whose last answer was read to its end."""
        connection.idle_since_s = self._monotonic_s()
        with self._lock:
            self._drop_strangers()
            self._idle.append(connection)
            dropped = self._idle[:-MAX_IDLE]
            del self._idle[:-MAX_IDLE]
        _close_all(dropped)

    def close(self) -> None:
        """Close all idle connections; the pool can be used again."""
        with self._lock:
            _close_all(self._idle)

    def _take_idle(self, endpoint: Endpoint) -> Connection | None:
        oldest_s = self._monotonic_s() - IDLE_S
        with self._lock:
            self._drop_strangers()
            stale = [each for each in self._idle if each.idle_since_s < oldest_s]
            self._idle[:] = [each for each in self._idle if each.idle_since_s >= oldest_s]
            _close_all(stale)
            for index in range(len(self._idle) - 1, -1, -1):
                if self._idle[index].endpoint == endpoint:
                    return self._idle.pop(index)
        return None

    def _drop_strangers(self) -> None:
        """Forget what was opened before a fork: the other process goes on reading from it."""
        if self._process != os.getpid():
            _close_all(self._idle)
            self._process = os.getpid()

    def _open(self, endpoint: Endpoint) -> Connection:
        opened: socket.socket | None = None
        try:
            opened = socket.create_connection((endpoint.host, endpoint.port), self._limits.connect_s)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if endpoint.tls:
                opened = self._tls().wrap_socket(opened, server_hostname=endpoint.host)
                opened.settimeout(self._limits.stall_s)
            else:
                _wait_in_kernel(opened, self._limits.stall_s)
        except (OSError, UnicodeError) as error:  # a name that can't be one is refused as text
            if opened is not None:
                opened.close()
            if isinstance(error, UnicodeError):
                raise WrongAnswer("the name of its host can't be one") from error
            if endpoint.tls and (problem := _certificate_problem(error)):
                raise WrongAnswer(problem) from error
            raise BrokenConnection(f"no connection: {_reason_of(error)}", kind="Connect", answered=False) from error
        with self._lock:
            self.opened += 1
        return Connection(endpoint, opened, self._limits.stall_s, self._monotonic_s)

    def _tls(self) -> "ssl.SSLContext":
        with self._lock:
            if self._context is None:
                self._context = self._make_context()
            return self._context


def _system_trust() -> "ssl.SSLContext":
    import ssl  # noqa: PLC0415 - a store without TLS need not load it

    return ssl.create_default_context()


def _certificate_problem(error: OSError) -> str | None:
    import ssl  # noqa: PLC0415

    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted ({error.verify_message}): give the right host, or trust its authority"
    return None


def _wait_in_kernel(opened: socket.socket, seconds: float) -> None:
    """Make calls block, for at most that long: Python's own timeouts poll before every call, and break ``MSG_WAITALL``."""
    opened.settimeout(None)
    whole = int(seconds)
    value = struct.pack("@ll", whole, max(int((seconds - whole) * 1e6), 0 if whole else 1))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def _reason_of(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _close_all(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()
    connections.clear()
