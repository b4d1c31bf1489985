"""What a remote read asks for: where an object lies and how to ask for it, with the right to read it inside.

Whoever knows the store (S3 by signature, an agent by token) gives a `ReadRequest` for an object's name; the engine adds the
range, sends it, and asks for a fresh one where the right has run out. A request's URL carries a secret: it is in no
representation and in no message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from tensorkeep.errors import InvalidInput

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Endpoint(NamedTuple):
    """Where a connection goes: connections to equal endpoints can serve each other's requests."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A GET that may be sent for an object, without its range. Made by `ReadRequest.of`.

    Attributes:
        endpoint: where to connect.
        head: the request line and headers as they are sent, without the last empty line.
    """

    endpoint: Endpoint
    head: bytes = field(repr=False)

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str] | None = None) -> "ReadRequest":
        """Return the request for an absolute ``http`` or ``https`` URL, signed or not, with headers of the signature.

        Raises:
            InvalidInput: it is no such URL, or it or a header holds what can't stand in a request.
        """
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise InvalidInput(f"a remote read needs an http or https URL, not one of {parts.scheme or 'no'} scheme")
        try:
            port = parts.port or _DEFAULT_PORTS[parts.scheme]
        except ValueError as error:
            raise InvalidInput(f"the port of host {parts.hostname!r} is no number up to 65535") from error
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # The name of the host as it was signed: with its port where that was written.
        lines = [f"GET {target} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items() if name.lower() != "host"]
        # A body in another encoding has another length and other ranges than the object.
        lines.append("Accept-Encoding: identity")
        return cls(Endpoint(parts.hostname, port, parts.scheme == "https"), _encoded(lines))


class ReadRequests(Protocol):
    """Gives the requests for objects. Thread safe."""

    def read_request(self, name: str, *, fresh: bool = False) -> ReadRequest:
        """Return how to GET an object.

        Args:
            name: of the object on the device.
            fresh: the last one was refused; a cached one would be again.
        """


def _encoded(lines: list[str]) -> bytes:
    if any(
        not line.isascii() or not line.isprintable() or (line.startswith("GET") and line.count(" ") != 2)
        for line in lines
    ):
        raise InvalidInput("a URL or header of a remote read holds characters that a request can't carry: encode them")
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")
