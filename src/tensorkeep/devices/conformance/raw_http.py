"""Requests to an object store that its device would not make: signed with the same keys, with any header, or broken off.

A signed URL is a secret: no error here repeats one, and none is chained to an error that does.
"""

import hashlib
import hmac
import http.client
import socket
from collections.abc import Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from urllib.parse import SplitResult, parse_qs, urlsplit

from tensorkeep.devices.conformance.judging import Answer
from tensorkeep.devices.credentials import S3Keys, find_s3_keys
from tensorkeep.devices.object_store_clients import Method, ObjectStoreClients, RequestLimits
from tensorkeep.devices.object_store_url import ObjectStorePlace
from tensorkeep.errors import Unavailable
from tensorkeep.runtime import Runtime

_TIMEOUT_S = 30.0
_TORN_TIMEOUT_S = 3.0
_SIGNED_FOR_S = 900.0
_BODY_LIMIT_BYTES = 64 << 20


class HttpStore:
    """One place of an object store, over HTTP/1.1, a new connection for each request. Thread safe.

    Args:
        place: whose objects.
        runtime: the environment that the keys are looked up in, and the clock.
        written: gets the name of every object that a request may have made.
    """

    def __init__(self, place: ObjectStorePlace, *, runtime: Runtime, written: set[str]) -> None:
        self._place = place
        self._runtime = runtime
        self._clients = ObjectStoreClients(place, runtime, RequestLimits())
        self._written = written

    def request(
        self, method: Method, name: str, *, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Return the answer to a request for an object.

        Raises:
            Unavailable: there was none.
        """
        url = self._signed(method, name)
        return self._ask(method, name, url, headers or {}, body)

    def break_off(self, name: str, body: bytes, promised: int) -> None:
        """Begin to upload an object of ``promised`` bytes, and close the connection after those of ``body``."""
        url = self._signed("PUT", name)
        connection = _connect(url, _TORN_TIMEOUT_S)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            self._send(connection, "PUT", url, {}, body, promised)
            # Half closed first, so that the server has seen the end when its answer, or nothing, has come.
            connection.sock.shutdown(socket.SHUT_WR)
            _answer(connection)

    def put_hashed(self, name: str, body: bytes, digest: str) -> Answer | None:
        """Return the answer to a PUT signed as one of a body of that SHA-256 (hex); None where there is no such thing.

        Source: AWS Signature Version 4, Authorization header, single chunk.
        """
        if self._place.scheme != "s3":
            return None
        url = self._signed("PUT", name)
        keys = find_s3_keys(self._place.credentials, self._runtime.environment)
        headers = _sign_v4(url, keys, digest, self._runtime.clock.now())
        return self._ask("PUT", name, url._replace(query=""), headers, body)

    def _ask(self, method: str, name: str, url: SplitResult, headers: Mapping[str, str], body: bytes) -> Answer:
        connection = _connect(url, _TIMEOUT_S)
        with closing(connection):
            try:
                self._send(connection, method, url, headers, body, len(body))
                return _answer(connection)
            except (OSError, http.client.HTTPException) as error:
                told = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise Unavailable(f"{method} {name} on {self._place.url} failed: {told}", device=self._place.url)

    def _signed(self, method: Method, name: str) -> SplitResult:
        if method == "PUT":
            self._written.add(name)
        key = f"{self._place.prefix}/{name}" if self._place.prefix else name
        return urlsplit(self._clients.sign(method, key, _SIGNED_FOR_S).url)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        url: SplitResult,
        headers: Mapping[str, str],
        body: bytes,
        length: int,
    ) -> None:
        target = url.path + (f"?{url.query}" if url.query else "")
        connection.putrequest(method, target, skip_accept_encoding=True)
        for header, value in headers.items():
            connection.putheader(header, value)
        if method == "PUT":
            connection.putheader("Content-Length", str(length))
            if self._place.scheme == "az":
                connection.putheader("x-ms-blob-type", "BlockBlob")
        connection.endheaders(body or None)


def _connect(url: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "", url.port, timeout=timeout_s)


def _answer(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read(_BODY_LIMIT_BYTES))


def _sign_v4(url: SplitResult, keys: S3Keys, digest: str, now: datetime) -> dict[str, str]:
    """Return the headers that sign a PUT; the region is the one that the signed URL names."""
    moment = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = parse_qs(url.query)["X-Amz-Credential"][0].partition("/")[2]
    scope = f"{moment[:8]}/{scope.partition('/')[2]}"
    headers = {"host": url.netloc, "x-amz-content-sha256": digest, "x-amz-date": moment}
    if keys.session_token is not None:
        headers["x-amz-security-token"] = keys.session_token
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = f"PUT\n{url.path}\n\n{lines}\n{names}\n{digest}"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{keys.secret_access_key}".encode()
    for step in scope.split("/"):
        key = hmac.digest(key, step.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{keys.access_key_id}/{scope}"
    del headers["host"]
    return {
        **headers,
        "Authorization": f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={signature}",
    }
