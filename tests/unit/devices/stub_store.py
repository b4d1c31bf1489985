"""A scripted HTTP/1.1 server on loopback: keeps objects, answers ranges rightly, and does what a script says instead."""

import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_RANGE = re.compile(rb"\r\nRange: bytes=(\d+)-(\d+)\r\n")


@dataclass
class Exchange:
    """One request, and the means to answer it."""

    store: "StubStore"
    connection: socket.socket
    number: int
    head: bytes

    @property
    def name(self) -> str:
        return self.head.split(b" ")[1].split(b"?")[0].decode("ascii").lstrip("/")

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last byte asked for."""
        found = _RANGE.search(self.head)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def wanted(self) -> bytes:
        """The bytes that a right answer has."""
        content = self.store.objects[self.name]
        first, last = self.range or (0, len(content) - 1)
        return content[first : last + 1]

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a right answer."""
        found: dict[str, str] = {"Content-Length": str(len(self.wanted)), "ETag": '"1"'}
        if self.range:
            first = self.range[0]
            found["Content-Range"] = (
                f"bytes {first}-{first + len(self.wanted) - 1}/{len(self.store.objects[self.name])}"
            )
        return found

    def send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
        self.connection.sendall("".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + body)

    def answer(self, status: int | None = None, body: bytes | None = None, **changes: str | None) -> None:
        """Answer rightly but for the changes; a header that is None is left out."""
        headers = dict(self.headers)
        for name, value in changes.items():
            header = name.replace("_", "-").title().replace("Etag", "ETag")
            headers.pop(header, None)
            if value is not None:
                headers[header] = value
        self.send(status or (206 if self.range else 200), headers, self.wanted if body is None else body)

    def refuse(self, status: int, code: str | None = None, **headers: str) -> None:
        """Answer with an error as S3 writes it."""
        body = f"<Error><Code>{code}</Code><Message>secret-signature</Message></Error>".encode() if code else b""
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        self.send(status, {"Content-Length": str(len(body)), **named}, body)

    def cut(self, count: int) -> None:
        """Promise everything, send that many bytes of it, and hang up."""
        self.send(206 if self.range else 200, self.headers, self.wanted[:count])
        raise Hangup

    def reset(self) -> None:
        """Abort the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Hangup


class Hangup(Exception):
    """The connection ends here."""


Step = Callable[[Exchange], None]


@dataclass
class StubStore:
    """What the server keeps, what it shall do next, and what it was asked."""

    objects: dict[str, bytes]
    script: list[Step] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    _open: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, name: str, *, scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}/{name}?X-Amz-Signature=secret-signature"

    def hang_up_all(self) -> None:
        """Close every connection, as a server does with idle ones."""
        with self._lock:
            for each in self._open:
                with suppress(OSError):  # the other side was quicker
                    each.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection: socket.socket, number: int) -> None:
        data = b""
        with connection:
            while True:
                while b"\r\n\r\n" not in data:
                    more = connection.recv(65536)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                with self._lock:
                    self.requests.append(head)
                    step = self.script.pop(0) if self.script else Exchange.answer
                step(Exchange(self, connection, number, head + b"\r\n"))

    def _run(self, connection: socket.socket, number: int, context: ssl.SSLContext | None) -> None:
        try:
            if context:
                connection = context.wrap_socket(connection, server_side=True)
            with self._lock:
                self._open.append(connection)
            self._serve(connection, number)
        except (OSError, Hangup):
            pass
        finally:
            with self._lock:
                self._open = [each for each in self._open if each is not connection]
            connection.close()


@contextmanager
def serve(objects: dict[str, bytes], context: ssl.SSLContext | None = None) -> Iterator[StubStore]:
    """Serve objects until the block ends; all threads have ended then."""
    store = StubStore(objects)
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store.port = listener.getsockname()[1]

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                if store.stop.is_set():
                    connection.close()
                    return
                store.connections += 1
                thread = threading.Thread(target=store._run, args=(connection, store.connections, context))
                thread.start()
                threads.append(thread)

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield store
        finally:
            store.stop.set()
            socket.create_connection(("127.0.0.1", store.port)).close()
            acceptor.join()
            store.hang_up_all()
            for thread in threads:
                thread.join()
