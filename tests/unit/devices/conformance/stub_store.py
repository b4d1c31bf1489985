"""A small S3 server of this process, right by default, that can be made wrong in one way at a time. It checks no signatures."""

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
ENVIRONMENT = {"STUB_ACCESS_KEY_ID": "stub", "STUB_SECRET_ACCESS_KEY": "stub-secret"}


@dataclass
class StubStore:
    """Its objects, and the ways in which it is wrong.

    Attributes:
        now: what it tells of the time, before ``clock_offset``.
        wrong: names of faults; see where each is looked for.
    """

    now: datetime
    wrong: frozenset[str] = frozenset()
    clock_offset: timedelta = timedelta()
    objects: dict[str, bytes] = field(default_factory=dict)
    deleted: dict[str, bytes] = field(default_factory=dict)
    torn: dict[str, bytes] = field(default_factory=dict)
    newest: str = ""
    asked: set[tuple[str, str]] = field(default_factory=set)
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """The URL of a device on it."""
        return f"s3://bucket/team?endpoint=http://127.0.0.1:{self.port}&credentials=env:STUB"

    def put(self, key: str, body: bytes, headers: dict[str, str]) -> int:
        """Store an object; return the status."""
        with self.lock:
            old = self.objects.get(key)
            if "if-none-match" in headers and old is not None and "ignores_if_none_match" not in self.wrong:
                return 412
            if "if-match" in headers and (old is None or headers["if-match"] != _tag(old)):
                return 412
            md5, sha256 = headers.get("content-md5"), headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
            if md5 and md5 != base64.b64encode(hashlib.md5(body).digest()).decode():
                return 400
            if sha256 != "UNSIGNED-PAYLOAD" and sha256 != hashlib.sha256(body).hexdigest():
                return 400
            self.objects[key] = body
            self.newest = key
            return 200

    def is_busy(self, method: str, target: str) -> bool:
        """Return whether a request by a signed URL is put off: the first of each kind for an object, or all for what is absent."""
        url = urlsplit(target)
        if "X-Amz-Signature" not in url.query:
            return False
        with self.lock:
            first = (method, url.path) not in self.asked
            self.asked.add((method, url.path))
            absent = unquote(url.path).removeprefix("/bucket/") not in self.objects
        return (first and "is_busy_at_first" in self.wrong) or (
            absent and method == "GET" and "hides_absence" in self.wrong
        )

    def look(self, key: str) -> bytes | None:
        """Return an object; where it shows late what was torn, that is there from the second look on."""
        with self.lock:
            found = self.objects.get(key)
            if "shows_torn_uploads_late" in self.wrong and key in self.torn:
                self.objects[key] = self.torn.pop(key)
            return found

    def list(self, prefix: str, after: str) -> tuple[list[str], bool]:
        """Return a page of keys, and whether there are more."""
        with self.lock:
            keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
            if "lists_late" in self.wrong:
                keys = [key for key in keys if key != self.newest]
            if "lists_deleted" in self.wrong:
                keys = sorted({*keys, *(key for key in self.deleted if key.startswith(prefix) and key > after)})
            if "lists_torn_uploads" in self.wrong:
                keys = sorted({*keys, *(key for key in self.torn if key.startswith(prefix) and key > after)})
            if "ends_at_a_page" in self.wrong:
                return keys[:PAGE], False
            return keys[:PAGE], len(keys) > PAGE

    def delete(self, key: str) -> None:
        """Remove an object."""
        with self.lock:
            self.torn.pop(key, None)
            body = self.objects.pop(key, None)
            if body is not None:
                self.deleted[key] = body


@contextmanager
def running(store: StubStore) -> Iterator[StubStore]:
    """Serve a stub on a free port of 127.0.0.1."""

    class Handler(_Handler):
        stub = store

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # 16 connections at once
        daemon_threads = False

    server = Server(("127.0.0.1", 0), Handler)
    store.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    stub: StubStore

    def do_PUT(self) -> None:
        promised = int(self.headers["Content-Length"])
        body = self.rfile.read(promised)
        if len(body) < promised:
            if "shows_torn_uploads" in self.stub.wrong:
                self.stub.put(self._key(), body, {})
            with self.stub.lock:
                self.stub.torn[self._key()] = body
            if "loses_what_was_torn" in self.stub.wrong:
                self.stub.delete(self._key())
            self.close_connection = True
            self._answer(400)
            return
        if self.stub.is_busy("PUT", self.path):
            self._answer(503)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._answer(self.stub.put(self._key(), body, headers), {"ETag": _tag(body)})

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.rstrip("/") == "/bucket":
            self._list({name: values[0] for name, values in parse_qs(parts.query).items()})
            return
        if self.stub.is_busy(self.command, self.path):
            self._answer(503)
            return
        body = self.stub.look(self._key())
        if body is None and "gives_back_deleted" in self.stub.wrong:
            body = self.stub.deleted.get(self._key())
        if body is None:
            self._answer(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
        elif "Range" in self.headers and "ignores_ranges" not in self.stub.wrong:
            self._answer_range(body)
        else:
            self._answer(200, {"ETag": _tag(body), **self._dated()}, body)

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self) -> None:
        self.stub.delete(self._key())
        self._answer(204)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(self.stub.now + self.stub.clock_offset, usegmt=True)

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket/")

    def _dated(self) -> dict[str, str]:
        return {"Last-Modified": format_datetime(self.stub.now, usegmt=True)}

    def _answer_range(self, body: bytes) -> None:
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last) + 1, len(body))
        if start >= len(body):
            self._answer(416)
            return
        told = f"bytes {start}-{end - 1}/{len(body)}"
        if "lies_in_content_range" in self.stub.wrong:
            told = f"bytes 0-{end - start - 1}/{len(body)}"
        piece = body[start:end]
        if "cuts_ranges_short" in self.stub.wrong:
            piece = piece[: len(piece) // 2]
        self._answer(206, {"Content-Range": told, "ETag": _tag(body), **self._dated()}, piece)

    def _list(self, query: dict[str, str]) -> None:
        if "check-" in query.get("prefix", "") and "lists_no_sites" in self.stub.wrong:
            self._answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
            return
        keys, more = self.stub.list(query.get("prefix", ""), query.get("continuation-token", ""))
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.stub.objects.get(key, b''))}</Size>"
            f"<LastModified>{self.stub.now:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            for key in keys
        )
        token = f"<NextContinuationToken>{escape(keys[-1])}</NextContinuationToken>" if more else ""
        text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        self._answer(200, {"Content-Type": "application/xml"}, text.encode())

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'
