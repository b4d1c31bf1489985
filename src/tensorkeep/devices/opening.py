"""From a URL to a device, and from what a user typed to the one canonical form of a URL.

Canonical: ``file:///absolute/path``, every byte outside ``A-Za-z0-9_.-~/`` percent-encoded, no ``.``, ``..``, doubled or last
slash; ``memory://name``; object stores as in `tensorkeep.devices.object_store_url`. Source: RFC 3986, RFC 8089.
"""

import os
import re
from urllib.parse import quote, unquote_to_bytes

from tensorkeep.devices.local import LocalDevice
from tensorkeep.devices.memory import MemoryDevice
from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.devices.object_store_url import OBJECT_STORE_SCHEMES, is_object_store_url, parse_object_store_url
from tensorkeep.devices.protocol import Device
from tensorkeep.devices.rate_limit import RateLimitedDevice
from tensorkeep.devices.retrying import RetryDevice
from tensorkeep.errors import InvalidInput
from tensorkeep.runtime import Runtime

SCHEMES = ("file", *OBJECT_STORE_SCHEMES, "memory")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?=/)")
_MEMORY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def open_device(url: str, *, runtime: Runtime, rate_limit_bytes_per_s: int | None = None) -> Device:
    """Return the device at a URL or an absolute path, with a rate limit where one is given. Touches no disk and no store.

    Raises:
        InvalidInput: an unknown scheme, a relative path, or a malformed URL.
    """
    canonical = normalize_url(url)
    device: Device
    if is_object_store_url(canonical):
        device = RetryDevice(ObjectStoreDevice(parse_object_store_url(canonical), runtime=runtime), runtime=runtime)
    elif canonical.startswith("memory://"):
        device = MemoryDevice(canonical.removeprefix("memory://"))
    else:
        device = LocalDevice(local_path(canonical), runtime=runtime, url=canonical)
    if rate_limit_bytes_per_s is not None:
        device = RateLimitedDevice(device, rate_bytes_per_s=rate_limit_bytes_per_s, runtime=runtime)
    return device


def normalize_url(text: str) -> str:
    """Return the canonical URL of what a user typed: an absolute path, or a URL of a known scheme.

    Links are not followed, so that a link moved to another disk moves the device, except in paths with ``..``, which mean
    nothing else.

    Raises:
        InvalidInput: an unknown scheme, a relative path, or a malformed URL.
    """
    if is_object_store_url(text):
        return parse_object_store_url(text).url
    found = _SCHEME.match(text)
    if not found:
        return _file_url(text, text)
    scheme = found[1].lower()
    rest = text[found.end() :]
    if scheme == "file":
        return _file_url(_path_of_rest(rest, text), text)
    if scheme == "memory":
        return _memory_url(rest, text)
    known = ", ".join(f"{name}://" for name in SCHEMES)
    # What may be a password is not repeated.
    shown = f"{scheme}:…" if "@" in text or "?" in text else text
    raise InvalidInput(f"the device URL {shown!r} has the unknown scheme {scheme!r}: known are {known}", scheme=scheme)


def same_place(url: str, other: str) -> bool:
    """Return whether two canonical URLs name one place: for object stores the credentials don't tell places apart."""
    if is_object_store_url(url) and is_object_store_url(other):
        return parse_object_store_url(url).identity == parse_object_store_url(other).identity
    return url == other


def local_path(url: str) -> str:
    """Return the path that a canonical ``file:`` URL names."""
    return os.fsdecode(unquote_to_bytes(url.removeprefix("file://")))


def _memory_url(rest: str, text: str) -> str:
    name = rest.removeprefix("//")
    if not rest.startswith("//") or not _MEMORY_NAME.match(name):
        raise InvalidInput(
            f"the device URL {text!r} names no memory: write memory://name with letters, digits, '.', '_' and '-'",
            url=text,
        )
    return f"memory://{name}"


def _path_of_rest(rest: str, text: str) -> str:
    """Return the path of a ``file:`` URL, given what stands after the colon."""
    path = rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
        if host not in ("", "localhost"):
            raise InvalidInput(
                f"the device URL {text!r} names the host {host!r}, but file: is this machine. "
                f"For a local path write three slashes: file:///{host}{path}",
                url=text,
            )
    if "?" in path or "#" in path or _BAD_ESCAPE.search(path):
        raise InvalidInput(
            f"the device URL {text!r} is malformed: write '?', '#' and '%' in a path as %3F, %23 and %25, "
            "or give the plain path",
            url=text,
        )
    return os.fsdecode(unquote_to_bytes(os.fsencode(path)))


def _file_url(path: str, text: str) -> str:
    if "\0" in path:
        raise InvalidInput(f"the device path {text!r} holds a NUL", url=text)
    if not path.startswith("/"):
        suggestion = f": write {os.path.abspath(path)}" if path else ""
        raise InvalidInput(
            f"the device path {text!r} is not absolute, and would mean another folder elsewhere{suggestion}", url=text
        )
    resolved = os.path.realpath(path) if ".." in path.split("/") else os.path.normpath(path)
    # POSIX lets two leading slashes stand; Linux gives them no meaning.
    return "file://" + quote(os.fsencode("/" + resolved.lstrip("/")))
