"""A small S3 on loopback that keeps objects, and does for single requests what a script says instead."""

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@dataclass
class Request:
    """One request, read to its end."""

    s3: "ScriptedS3"
    handler: BaseHTTPRequestHandler
    method: str
    key: str
    query: dict[str, list[str]]
    body: bytes

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.handler.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(body)), **named}.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        if self.method != "HEAD":
            self.handler.wfile.write(body)

    def refuse(self, status: int, code: str = "", **headers: str) -> None:
        self.send(
            status, f"<Error><Code>{code}</Code><Key>SECRETKEY</Key></Error>".encode() if code else b"", **headers
        )

    def answer(self) -> None:
        """Do what S3 would."""
        getattr(self, f"_{self.method.lower()}")()

    def reset(self) -> None:
        """Abort the connection without an answer."""
        linger = struct.pack("ii", 1, 0)
        self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.handler.connection.close()
        self.handler.close_connection = True

    def keep(self) -> None:
        self.s3.objects[self.key] = self.body

    def stall(self) -> None:
        """Answer nothing until the server ends."""
        self.s3.ended.wait(60)
        self.handler.close_connection = True

    def _put(self) -> None:
        if self.handler.headers.get("If-None-Match") == "*" and self.key in self.s3.objects:
            self.refuse(412, "PreconditionFailed")
        else:
            self.keep()
            self.send(200, ETag='"1"')

    def _get(self) -> None:
        if "list-type" in self.query:
            self._list()
        elif self.key not in self.s3.objects:
            self.refuse(404, "NoSuchKey")
        else:
            content = self.s3.objects[self.key]
            asked = re.match(r"bytes=(\d+)-(\d+)", self.handler.headers.get("Range", ""))
            if asked is None:
                self.send(200, content, ETag='"1"', Last_Modified=DATE)
            else:
                first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
                span = f"bytes {first}-{last}/{len(content)}"
                self.send(206, content[first : last + 1], Content_Range=span, ETag='"1"', Last_Modified=DATE)

    def _head(self) -> None:
        if self.key in self.s3.objects:
            size = len(self.s3.objects[self.key])
            self.send(200, ETag='"1"', Last_Modified=DATE, Content_Length=str(size))
        else:
            self.send(404)

    def _delete(self) -> None:
        self.s3.objects.pop(self.key, None)
        self.send(204)

    def _list(self) -> None:
        prefix = self.query.get("prefix", [""])[0]
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>1</ETag>"
            "<LastModified>2015-10-21T07:28:00.000Z</LastModified></Contents>"
            for key, data in sorted(self.s3.objects.items())
            if key.startswith(prefix)
        )
        self.send(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode())


Step = Callable[[Request], None]


@dataclass
class ScriptedS3:
    """What is kept; the steps for the next requests, by method; and what was asked."""

    objects: dict[str, bytes] = field(default_factory=dict)
    script: dict[str, list[Step]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def then(self, method: str, *steps: Step) -> None:
        """Do these steps for the next requests of a method."""
        self.script.setdefault(method, []).extend(steps)

    def refuse_all(self, step: Step) -> None:
        """Do one step for every request."""
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            self.script[method] = [step] * 100


@contextmanager
def serve_s3() -> Iterator[ScriptedS3]:
    """Serve until the block ends."""
    s3 = ScriptedS3()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            key = parts.path.removeprefix(f"/{BUCKET}").lstrip("/")
            s3.requests.append(f"{self.command} {key}")
            request = Request(s3, self, self.command, key, parse_qs(parts.query), body)
            steps = s3.script.get(self.command)
            (steps.pop(0) if steps else Request.answer)(request)

        do_GET = do_HEAD = do_PUT = do_DELETE = _do  # noqa: N815 - the names that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            pass  # connections that were aborted on purpose

    server = Server(("127.0.0.1", 0), Handler)
    s3.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield s3
    finally:
        s3.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
