"""A proxy between a client and an HTTP server that fails on purpose, at a chosen byte of a chosen request or answer.

It knows enough of HTTP/1.1 to count the bytes of bodies: every exchange of every connection is offered to the script, a list of
`Fault`, and the first that fits and is not used up happens to it. The test scripts it in process (`WireProxy.script`) and reads
afterwards what happened (`WireProxy.done`). One thread a connection; nothing is timed, so that a test is as fast as its client.
"""

import random
import re
import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

Kind = Literal[
    "cut",
    "reset",
    "stall",
    "trickle",
    "flip",
    "strip_length",
    "drop_range",
    "shift_range",
    "refuse",
    "lose_answer",
    "hold",
]
"""What happens to an exchange:

- ``cut``: the connection is closed (FIN) at a byte of the body; ``reset``: torn down (RST) there
- ``stall``: nothing more comes from there on, and the connection stays open; ``trickle``: a few bytes each second
- ``flip``: one bit of that byte is turned
- ``strip_length``: the answer does not say how long it is, and ends at that byte as if it were all
- ``drop_range``: the server is asked for the whole object, and its 200 passed on; ``shift_range``: the answer says that it is of
  other bytes
- ``refuse``: the server is not asked; the proxy answers with a status
- ``lose_answer``: the server did what it was asked, and the connection closes without its answer
- ``hold``: the connection closes without an answer, and the server is asked only when the test lets it (`WireProxy.release`)

An answer without a body (of a PUT) is cut, reset or stalled before its head.
"""

Side = Literal["request", "answer"]

_CHUNK = 64 << 10
_TRICKLE_BYTES, _TRICKLE_S = 50, 0.05


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the exchanges that it fits.

    Attributes:
        kind: see `Kind`.
        at: where in the body, from 0 (before its first byte) to 1 (before its last).
        side: whose body: the request's (a PUT) or the answer's (a GET).
        methods: of requests that it fits.
        path: text that their path contains.
        times: how many exchanges it happens to; None: all.
        skip: how many that fit are spared first.
        status: of ``refuse``.
        retry_after: the header's value, with ``refuse``.
        chance: of those that are left, how many it happens to, by a choice seeded with its place in the script.
    """

    kind: Kind
    at: float = 0.5
    side: Side = "answer"
    methods: tuple[str, ...] = ("GET",)
    path: str = "/parts/"
    times: int | None = 1
    skip: int = 0
    status: int = 503
    retry_after: str | None = None
    chance: float = 1.0

    def __str__(self) -> str:
        where = f"{self.status}" if self.kind == "refuse" else f"at {self.at}"
        return f"{self.kind} {self.side} {where}"


class Happened(NamedTuple):
    """A fault that happened to a request: the bytes of the body that had passed."""

    kind: Kind
    method: str
    path: str
    passed_bytes: int


class _Closed(Exception):
    """One of the two ends is gone, or is to go."""


@dataclass(slots=True)
class _Stream:
    """One direction of reading: a socket and what was read too far."""

    socket: socket.socket
    ahead: bytes = b""

    def head(self) -> bytes:
        """Return everything up to the empty line, with it; raises `_Closed` at the end."""
        while (end := self.ahead.find(b"\r\n\r\n")) < 0:
            self.ahead += self._receive(_CHUNK)
        head, self.ahead = self.ahead[: end + 4], self.ahead[end + 4 :]
        return head

    def line(self) -> bytes:
        while (end := self.ahead.find(b"\r\n")) < 0:
            self.ahead += self._receive(_CHUNK)
        line, self.ahead = self.ahead[: end + 2], self.ahead[end + 2 :]
        return line

    def some(self, limit: int) -> bytes:
        """Return 1 to ``limit`` bytes; raises `_Closed` at the end."""
        if not self.ahead:
            return self._receive(min(limit, _CHUNK))
        data, self.ahead = self.ahead[:limit], self.ahead[limit:]
        return data

    def _receive(self, limit: int) -> bytes:
        try:
            data = self.socket.recv(limit)
        except OSError as error:
            raise _Closed from error
        if not data:
            raise _Closed
        return data


@dataclass(frozen=True, slots=True)
class _Message:
    """The head of a request or an answer."""

    head: bytes
    first: list[str]
    headers: dict[str, str]

    @classmethod
    def of(cls, head: bytes) -> Self:
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        return cls(head, lines[0].split(" ", 2), headers)

    @property
    def length(self) -> int | None:
        """The body's length, None where the head tells none."""
        return int(self.headers["content-length"]) if "content-length" in self.headers else None

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    def without(self, header: bytes) -> bytes:
        lines = [line for line in self.head.split(b"\r\n") if not line.lower().startswith(header + b":")]
        return b"\r\n".join(lines)

    def with_shifted_range(self) -> bytes:
        """Return the head with the bounds of its ``Content-Range`` one byte further on."""
        return re.sub(
            rb"(?i)(content-range: *bytes +)(\d+)-(\d+)",
            lambda found: b"%s%d-%d" % (found[1], int(found[2]) + 1, int(found[3]) + 1),
            self.head,
        )


class WireProxy:
    """Listens on a port of this machine and passes requests on to a server. A context manager; ends all it holds open.

    Args:
        host: of the server.
        port: of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._script: list[_Planned] = []
        self._held: list[bytes] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self.done: list[Happened] = []
        self.exchanges = 0

    @property
    def url(self) -> str:
        """The endpoint to give to a client."""
        return f"http://127.0.0.1:{self.port}"

    def script(self, *faults: Fault) -> None:
        """Let these happen from now on, and no others; forget what happened before."""
        with self._lock:
            self._script = [_Planned(fault, random.Random(number)) for number, fault in enumerate(faults)]
            self.done = []

    def count(self, kind: Kind) -> int:
        """Return how often that happened since the last `script`."""
        with self._lock:
            return sum(happened.kind == kind for happened in self.done)

    def release(self) -> list[int]:
        """Send the server what was held, in the order in which it came; return the statuses of its answers."""
        with self._lock:
            held, self._held = self._held, []
        statuses = []
        for request in held:
            with socket.create_connection(self._target, timeout=30) as server:
                server.sendall(request)
                statuses.append(int(_Message.of(_Stream(server).head()).first[1]))
        return statuses

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for held in self._open:
                _hang_up(held)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a connection of the proxy hangs"

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="wire-proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(lambda client=client: self._serve(client))  # type: ignore[misc]

    def _serve(self, client: socket.socket) -> None:
        server = self._connect(client)
        if server is None:
            return
        try:
            near, far = _Stream(client), _Stream(server)
            while not self._ended.is_set():
                self._exchange(near, far)
        except (_Closed, OSError):
            pass
        finally:
            for held in (client, server):
                with self._lock:
                    self._open.discard(held)
                held.close()

    def _connect(self, client: socket.socket) -> socket.socket | None:
        try:
            server = socket.create_connection(self._target, timeout=10)
        except OSError:
            client.close()
            return None
        server.settimeout(None)
        for held in (client, server):
            held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {client, server}
        if self._ended.is_set():
            _hang_up(client)
        return server

    def _exchange(self, near: _Stream, far: _Stream) -> None:
        request = _Message.of(near.head())
        fault = self._choose(request)
        with self._lock:
            self.exchanges += 1
        if fault is not None and fault.kind == "refuse":
            _read_all(near, request)
            self._refuse(near, request, fault)
            return
        if fault is not None and fault.kind == "hold":
            body = _read_all(near, request)
            with self._lock:
                self._held.append(request.head + body)
            self._note(fault, request, len(body))
            raise _Closed
        if fault is not None and fault.kind == "drop_range":
            self._note(fault, request, 0)
            far.socket.sendall(request.without(b"range"))
            fault = None
        else:
            far.socket.sendall(request.head)
        self._pass_body(near, far, request, request, fault if fault and fault.side == "request" else None)
        answer = _Message.of(far.head())
        while answer.first[1].startswith("1"):
            near.socket.sendall(answer.head)
            answer = _Message.of(far.head())
        if fault is not None and fault.kind == "lose_answer":
            self._note(fault, request, 0)
            raise _Closed
        bodiless = request.first[0] == "HEAD" or answer.first[1] in ("204", "304") or answer.length == 0
        fault = fault if fault and fault.side == "answer" else None
        if fault is not None and bodiless:  # there is no byte to do it at but the head
            self._note(fault, request, 0)
            self._strike(fault, far, near)
        if fault is not None and fault.kind == "strip_length":
            self._note(fault, request, 0)  # the client may leave before any byte of the body
            near.socket.sendall(answer.without(b"content-length"))
        elif fault is not None and fault.kind == "shift_range":
            self._note(fault, request, 0)
            near.socket.sendall(answer.with_shifted_range())
            fault = None
        else:
            near.socket.sendall(answer.head)
        if not bodiless:
            self._pass_body(far, near, answer, request, fault)
        if "close" in (request.headers.get("connection", "").lower(), answer.headers.get("connection", "").lower()):
            raise _Closed

    def _choose(self, request: _Message) -> Fault | None:
        with self._lock:
            return next((planned.fault for planned in self._script if planned.takes(request)), None)

    def _note(self, fault: Fault, request: _Message, passed: int) -> None:
        with self._lock:
            self.done.append(Happened(fault.kind, request.first[0], request.first[1], passed))

    def _pass_body(
        self, source: _Stream, to: _Stream, message: _Message, request: _Message, fault: Fault | None
    ) -> None:
        if message.chunked:
            _pass_chunks(source, to)
            return
        length = message.length
        if length is None:
            if message is not request:  # an answer until its end
                while True:
                    to.socket.sendall(source.some(_CHUNK))
            return
        place = length if fault is None else min(int(fault.at * length), max(length - 1, 0))
        _pass_bytes(source, to, place)
        if fault is not None:
            if fault.kind != "strip_length":
                self._note(fault, request, place)
            self._strike(fault, source, to)
        _pass_bytes(source, to, length - place - (fault is not None and fault.kind == "flip" and length > 0))

    def _strike(self, fault: Fault, source: _Stream, to: _Stream) -> None:
        """Do what a fault does at its byte; returns only where the rest of the body is to follow."""
        client = to if fault.side == "answer" else source
        match fault.kind:
            case "flip":
                data = source.some(1)
                to.socket.sendall(bytes([data[0] ^ 0x10]))
            case "reset":
                _tear(source.socket)
                _tear(to.socket)
                raise _Closed
            case "stall":
                _wait_for_end(client.socket, None)
                raise _Closed
            case "trickle":
                while not _wait_for_end(client.socket, _TRICKLE_S):
                    to.socket.sendall(source.some(_TRICKLE_BYTES))
                raise _Closed
            case _:
                raise _Closed

    def _refuse(self, near: _Stream, request: _Message, fault: Fault) -> None:
        self._note(fault, request, 0)
        body = b"<?xml version='1.0'?><Error><Code>%s</Code></Error>" % {
            500: b"InternalError",
            503: b"SlowDown",
            429: b"TooManyRequests",
        }.get(fault.status, b"Refused")
        if request.first[0] == "HEAD":
            body = b""
        retry = f"Retry-After: {fault.retry_after}\r\n" if fault.retry_after is not None else ""
        head = f"HTTP/1.1 {fault.status} Refused\r\nContent-Length: {len(body)}\r\n{retry}\r\n"
        near.socket.sendall(head.encode() + body)


@dataclass(slots=True)
class _Planned:
    """A fault and how often it fitted and happened."""

    fault: Fault
    choice: random.Random
    fitted: int = 0
    _used: int = field(default=0)

    def takes(self, request: _Message) -> bool:
        """Return whether it happens to this request, and count it."""
        fault = self.fault
        if request.first[0] not in fault.methods or fault.path not in request.first[1]:
            return False
        self.fitted += 1
        if self.fitted <= fault.skip or (fault.times is not None and self._used >= fault.times):
            return False
        if fault.chance < 1 and self.choice.random() >= fault.chance:
            return False
        self._used += 1
        return True


def _read_all(near: _Stream, request: _Message) -> bytes:
    assert not request.chunked, "clients here say how long a request is"
    body = bytearray()
    while len(body) < (request.length or 0):
        body += near.some((request.length or 0) - len(body))
    return bytes(body)


def _pass_bytes(source: _Stream, to: _Stream, count: int) -> None:
    while count:
        data = source.some(count)
        to.socket.sendall(data)
        count -= len(data)


def _pass_chunks(source: _Stream, to: _Stream) -> None:
    while True:
        line = source.line()
        to.socket.sendall(line)
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        _pass_bytes(source, to, size + 2)
    while (line := source.line()) != b"\r\n":
        to.socket.sendall(line)
    to.socket.sendall(line)


def _wait_for_end(held: socket.socket, timeout_s: float | None) -> bool:
    """Return True when the other end has closed the connection, False when the time has passed; bytes are let lie."""
    poll = select.poll()
    poll.register(held, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def _tear(held: socket.socket) -> None:
    """Close a connection with RST."""
    held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    held.close()


def _hang_up(held: socket.socket) -> None:
    """End a connection that another thread waits for, so that it wakes."""
    with suppress(OSError):
        held.shutdown(socket.SHUT_RDWR)


def tenths(side: Side, kind: Kind, methods: Sequence[str]) -> list[Fault]:
    """Return the same fault at each tenth of a body, at both ends too."""
    return [Fault(kind, at=tenth / 10, side=side, methods=tuple(methods)) for tenth in range(11)]
