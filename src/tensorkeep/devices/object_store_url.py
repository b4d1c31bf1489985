"""URLs of object stores (``s3:``, ``gs:``, ``az:``): parsed, checked, and written in one canonical form.

``s3://bucket[/prefix]?credentials=REF&endpoint=URL&region=NAME&style=path|host``,
``gs://bucket[/prefix]?credentials=REF&endpoint=URL``,
``az://container[/prefix]?account=NAME&credentials=REF&endpoint=URL``.

A URL is stored, shown and logged, so it never holds a key: ``REF`` names where keys lie (``env:NAME``, ``profile:NAME``,
``file:/path``). What is refused here may be a key that somebody typed in the wrong place, so no message repeats it.
Canonical: options sorted by name, defaults left out, host names in lower case, no default port, no last slash.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import quote, unquote, urlsplit

from tensorkeep.errors import InvalidInput

Scheme = Literal["s3", "gs", "az"]
Style = Literal["path", "host"]

OBJECT_STORE_SCHEMES: tuple[Scheme, ...] = ("s3", "gs", "az")

DEFAULT_CREDENTIALS = {"s3": "env:AWS", "gs": "env:GOOGLE_APPLICATION_CREDENTIALS", "az": "env:AZURE_STORAGE_KEY"}
"""Where keys are looked for when the URL does not say."""

OPTIONS = {
    "s3": ("credentials", "endpoint", "region", "style"),
    "gs": ("credentials", "endpoint"),
    "az": ("account", "credentials", "endpoint"),
}

_EXAMPLES = {
    "s3": "s3://bucket/prefix?endpoint=https://s3.example.org&region=us-east-1",
    "gs": "gs://bucket/prefix",
    "az": "az://container/prefix?account=name",
}
_BUCKETS = {
    # Wider than AWS takes today: Ceph and buckets of before 2018 have capitals and underscores.
    "s3": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]\Z"),
    "gs": re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]\Z"),
    "az": re.compile(r"[a-z0-9](-?[a-z0-9]){2,62}\Z"),
}
_SEGMENT = re.compile(r"[A-Za-z0-9._=+@-]+\Z")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\Z|\[[0-9a-f:.]+\]\Z")
_AWS = re.compile(r"https?://s3([.-][a-z0-9-]+)*\.amazonaws\.com\Z")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}\Z")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")
_PROFILE = re.compile(r"[A-Za-z0-9_.@+ -]{1,128}\Z")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SECRET_OPTION = re.compile(r"key|secret|token|passw|sas|sig|credential|amz|auth", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ObjectStorePlace:
    """What the URL of an object store says. Holds no secret: ``credentials`` is a reference.

    ``prefix`` has no slash at either end, and is "" for a whole bucket. ``credentials`` is what the URL says or its default.
    """

    scheme: Scheme
    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    style: Style | None = None
    account: str | None = None
    credentials: str = ""

    @property
    def url(self) -> str:
        """The canonical URL."""
        options = {
            "account": self.account,
            "credentials": None if self.credentials == DEFAULT_CREDENTIALS[self.scheme] else self.credentials,
            "endpoint": self.endpoint,
            "region": self.region,
            "style": self.style,
        }
        query = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in sorted(options.items()) if value)
        return self._address() + (f"?{query}" if query else "")

    @property
    def identity(self) -> str:
        """What tells one place from another: two URLs with other credentials, region or style mean the same objects."""
        # Names of buckets are one set for all regions of AWS.
        endpoint = None if self.endpoint is None or _AWS.match(self.endpoint) else self.endpoint
        return f"{self._address()} at {endpoint or self.scheme} {self.account or ''}".rstrip()

    def _address(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{quote(self.prefix)}" if self.prefix else "")


def is_object_store_url(text: str) -> bool:
    """Return whether a text means an object store, well written or not."""
    return text.partition(":")[0].lower() in OBJECT_STORE_SCHEMES and ":" in text


def parse_object_store_url(text: str) -> ObjectStorePlace:
    """Return what a URL of an object store says.

    Raises:
        InvalidInput: it is malformed, or holds what may be a key. The message never repeats the text.
    """
    scheme = cast("Scheme", text.partition(":")[0].lower())
    rest = text.partition(":")[2]
    if not rest.startswith("//") or "#" in rest:
        raise _refused(scheme, f"is malformed: write for example {_EXAMPLES[scheme]}")
    address, _, query = rest[2:].partition("?")
    bucket, _, path = address.partition("/")
    if "@" in bucket or ":" in bucket:
        raise _refused(scheme, f"holds a key or a password before its bucket. {_remedy(scheme)}")
    if not _BUCKETS[scheme].match(bucket) or ".." in bucket:
        raise _refused(scheme, f"names no valid bucket: write for example {_EXAMPLES[scheme]}")
    options = _parse_options(scheme, query)
    endpoint = _parse_endpoint(scheme, options["endpoint"]) if "endpoint" in options else None
    style = _parse_style(scheme, options.get("style"))
    if style == "path" and (endpoint or "." in bucket):
        style = None  # the default there. "host" stays where it is one too: a profile may bring an endpoint
    if scheme == "az" and not _ACCOUNT.match(options.get("account", "")):
        raise _refused(scheme, "needs the storage account, 3 to 24 small letters and digits: add account=NAME")
    if endpoint is not None and endpoint == default_endpoint(scheme, options.get("account")):
        endpoint = None
    if "region" in options and not _REGION.match(options["region"]):
        raise _refused(scheme, "has a region that can't be one: write for example region=us-east-1")
    return ObjectStorePlace(
        scheme=scheme,
        bucket=bucket,
        prefix=_parse_prefix(scheme, path),
        endpoint=endpoint,
        region=options.get("region"),
        style=style,
        account=options.get("account"),
        credentials=_parse_reference(scheme, options.get("credentials", DEFAULT_CREDENTIALS[scheme])),
    )


def default_endpoint(scheme: Scheme, account: str | None) -> str:
    """Return the endpoint that a URL without one means; "" for ``s3``, where it hangs on the region."""
    if scheme == "gs":
        return "https://storage.googleapis.com"
    return f"https://{account}.blob.core.windows.net" if scheme == "az" else ""


def _parse_options(scheme: Scheme, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        if not equals or name not in OPTIONS[scheme]:
            raise _bad_option(scheme, name)
        if name in options:
            raise _refused(scheme, f"gives {name} twice: give it once")
        if not value:
            raise _refused(scheme, f"has an empty {name}: give it a value, or leave it out")
        options[name] = unquote(value)
    return options


def _bad_option(scheme: Scheme, name: str) -> InvalidInput:
    # The name is not repeated either: "?wJalrXUt…" is a key whose user forgot the rest.
    close = difflib.get_close_matches(name.lower(), OPTIONS[scheme], n=1, cutoff=0.7)
    if close:
        return _refused(scheme, f"has an unknown option: did you mean {close[0]}?")
    if _SECRET_OPTION.search(name):
        return _refused(scheme, f"holds what looks like a key or a signature. {_remedy(scheme)}")
    known = ", ".join(OPTIONS[scheme])
    return _refused(scheme, f"has an unknown option: known are {known}. If it was a key: {_remedy(scheme)}")


def _parse_prefix(scheme: Scheme, path: str) -> str:
    segments = [unquote(segment) for segment in path.split("/") if segment]
    for segment in segments:
        if not _SEGMENT.match(segment) or segment in (".", ".."):
            raise _refused(
                scheme, "has a prefix with other characters than letters, digits and '._=+@-': choose a plain prefix"
            )
    return "/".join(segments)


def _parse_endpoint(scheme: Scheme, text: str) -> str:
    malformed = "has a malformed endpoint: write for example endpoint=https://s3.example.org"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _refused(scheme, malformed) from None
    if "@" in parts.netloc:
        raise _refused(scheme, f"holds a key or a password in its endpoint. {_remedy(scheme)}")
    host = parts.netloc.lower().removesuffix(f":{parts.netloc.rpartition(':')[2]}" if port is not None else "")
    segments = list(filter(None, parts.path.split("/")))
    plain = not parts.query and not parts.fragment and all(map(_SEGMENT.match, segments))
    plain = plain and not {".", ".."} & set(segments)
    if parts.scheme not in _DEFAULT_PORTS or not _HOST.match(host) or not plain:
        raise _refused(scheme, malformed)
    shown_port = "" if port is None or port == _DEFAULT_PORTS[parts.scheme] else f":{port}"
    path = "/".join(segments)
    return f"{parts.scheme}://{host}{shown_port}" + (f"/{path}" if path else "")


def _parse_style(scheme: Scheme, style: str | None) -> Style | None:
    if style is not None and style not in ("path", "host"):
        raise _refused(
            scheme, "has an unknown style: style=path asks for host/bucket/name, style=host for bucket.host/name"
        )
    return cast("Style | None", style)


def _parse_reference(scheme: Scheme, text: str) -> str:
    kind, _, name = text.partition(":")
    if kind == "env" and _VARIABLE.match(name):
        return text
    if kind == "profile" and scheme == "s3" and _PROFILE.match(name):
        return text
    if kind == "file" and name.startswith("/") and name.isprintable():
        return text
    raise _refused(scheme, f"has credentials that are no reference. {_remedy(scheme)}")


def _remedy(scheme: Scheme) -> str:
    profile = "credentials=profile:NAME (of ~/.aws/credentials), " if scheme == "s3" else ""
    return (
        "A URL is stored and shown, so it only names where keys are: credentials=env:NAME (variables), "
        f"{profile}or credentials=file:/path"
    )


def _refused(scheme: Scheme, what: str) -> InvalidInput:
    return InvalidInput(f"the {scheme}: URL {what}", scheme=scheme)
