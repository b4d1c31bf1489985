"""obstore's clients for a place, made when first needed: endpoint, style, keys and deadlines; and signed requests.

obstore's own retries are off: `RetryDevice` and the writer decide about trying again. Its constructors read the process's
environment, so every setting that a stray variable could change is given here.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from tensorkeep.devices.credentials import AzureKey, S3Keys, find_azure_key, find_gcs_key, find_s3_keys
from tensorkeep.devices.object_store_url import ObjectStorePlace, default_endpoint
from tensorkeep.errors import PermissionDenied, Unavailable
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import Runtime

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, S3Credential, S3Store

    Client = S3Store | GCSStore | AzureStore


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Deadlines of one request, in seconds: to connect, and for the whole of a small one (at most 1 MiB) or a large one.

    A large one is at most 64 MiB, which 300 s bring over a line's share of 0.22 MB/s.
    """

    connect_s: float = 5.0
    small_s: float = 30.0
    large_s: float = 300.0


_SMALL_BYTES = MIB

SIGNED_FOR_S = 3600.0
_SIGNED_AT_MOST = 4096

Method = Literal["GET", "HEAD", "PUT"]


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request that whoever has it may make until it expires: a secret, so the repr shows no URL. Never log it.

    ``expires_at_s`` is on the runtime's monotonic clock.
    """

    method: Method
    url: str = field(repr=False)
    expires_at_s: float


class _Owner:
    """The process whose threads drive obstore: a fork of it has none of them, and would wait for ever."""

    def __init__(self) -> None:
        self._process: int | None = None

    def claim(self) -> None:
        """Note that this process has begun to use obstore, if none had."""
        if self._process is None:
            self._process = os.getpid()

    def check(self, url: str) -> None:
        """Return if this process may use obstore: the first that did, or one where its parent had not."""
        self.claim()
        if self._process != os.getpid():
            raise Unavailable(
                f"{url} can't be written or listed here: this process was forked from one that had used an object store. "
                "Start it with the method 'spawn' or 'forkserver'; loads work in any",
                device=url,
                reason="forked",
            )


_owner = _Owner()


class ObjectStoreClients:
    """The clients of one place, and requests signed with its keys. Thread safe."""

    def __init__(self, place: ObjectStorePlace, runtime: Runtime, limits: RequestLimits) -> None:
        self._place = place
        self._runtime = runtime
        self._limits = limits
        self._lock = threading.Lock()
        self._clients: dict[float, Client] = {}
        self._signed: OrderedDict[tuple[str, str, float], SignedRequest] = OrderedDict()

    def of_size(self, size_bytes: int) -> "Client":
        """Return the client whose deadline suits a request of that size.

        Raises:
            PermissionDenied: the credentials that the URL names are not there.
            Unavailable: this is a forked process.
        """
        _owner.check(self._place.url)
        return self._of_size(size_bytes)

    def _of_size(self, size_bytes: int) -> "Client":
        timeout_s = self._limits.small_s if size_bytes <= _SMALL_BYTES else self._limits.large_s
        with self._lock:
            if timeout_s not in self._clients:
                options = _options(self._place, self._limits.connect_s, timeout_s)
                self._clients[timeout_s] = _make_client(self._place, self._runtime, options)
            return self._clients[timeout_s]

    def forget(self) -> None:
        """Look the credentials up again when they are next needed: they may have been renewed."""
        with self._lock:
            self._clients.clear()
            self._signed.clear()

    def sign(self, method: Method, key: str, expires_s: float) -> SignedRequest:
        """Return a signed request for an object, at least half of its time still to run. Asks no server."""
        now_s = self._runtime.clock.monotonic_s()
        with self._lock:
            known = self._signed.get((method, key, expires_s))
            if known is not None and known.expires_at_s - now_s >= expires_s / 2:
                self._signed.move_to_end((method, key, expires_s))
                return known
        signed = SignedRequest(method, self._signed_url(method, key, expires_s), now_s + expires_s)
        with self._lock:
            self._signed[(method, key, expires_s)] = signed
            while len(self._signed) > _SIGNED_AT_MOST:
                self._signed.popitem(last=False)
        return signed

    def _signed_url(self, method: Method, key: str, expires_s: float) -> str:
        import obstore  # noqa: PLC0415 - a local store must not load it

        if self._place.scheme == "az":
            found = find_azure_key(self._place.credentials, self._runtime.environment)
            if found.shared_access_signature is not None:
                base = _azure_endpoint(self._place)
                return f"{base}/{self._place.bucket}/{quote(key)}?{found.shared_access_signature}"
        _owner.claim()  # to sign needs none of the threads, but starts them
        return obstore.sign(self._of_size(0), method, key, timedelta(seconds=expires_s))


def _make_client(place: ObjectStorePlace, runtime: Runtime, options: "ClientConfig") -> "Client":
    from obstore.exceptions import BaseError  # noqa: PLC0415 - a local store must not load it

    make: dict[str, Callable[..., Client]] = {"s3": _make_s3, "gs": _make_gcs, "az": _make_azure}
    try:
        return make[place.scheme](place, runtime, options)
    except (BaseError, ValueError):
        pass  # its text may repeat a key: not even chained
    raise PermissionDenied(
        f"the credentials of {place.url} can't be used: check what {place.credentials} holds",
        device=place.url,
        reason="no_credentials",
    )


def _make_s3(place: ObjectStorePlace, runtime: Runtime, options: "ClientConfig") -> "S3Store":
    from obstore.store import S3Store  # noqa: PLC0415 - a local store must not load it

    keys = find_s3_keys(place.credentials, runtime.environment)
    region = place.region or keys.region or "us-east-1"
    endpoint = (place.endpoint or keys.endpoint or f"https://s3.{region}.amazonaws.com").rstrip("/")
    style = place.style or ("path" if place.endpoint or keys.endpoint or "." in place.bucket else "host")
    if style == "host":
        endpoint = endpoint.replace("://", f"://{place.bucket}.", 1)
    return S3Store(
        place.bucket,
        region=region,
        endpoint=endpoint,
        aws_endpoint_url_s3=endpoint,
        virtual_hosted_style_request=style == "host",
        skip_signature=False,
        unsigned_payload=False,
        s3_express=False,
        disable_bulk_delete=True,
        credential_provider=lambda: _s3_credential(keys),
        client_options={**options, "allow_http": endpoint.startswith("http:")},
        retry_config={"max_retries": 0},
    )


def _make_gcs(place: ObjectStorePlace, runtime: Runtime, options: "ClientConfig") -> "GCSStore":
    from obstore.store import GCSStore  # noqa: PLC0415 - a local store must not load it

    return GCSStore(
        place.bucket,
        service_account_key=find_gcs_key(place.credentials, runtime.environment),
        base_url=place.endpoint or default_endpoint(place.scheme, None),
        skip_signature=False,
        client_options=options,
        retry_config={"max_retries": 0},
    )


def _make_azure(place: ObjectStorePlace, runtime: Runtime, options: "ClientConfig") -> "AzureStore":
    from obstore.store import AzureStore  # noqa: PLC0415 - a local store must not load it

    key = find_azure_key(place.credentials, runtime.environment)
    return AzureStore(
        place.bucket,
        account_name=place.account,
        endpoint=_azure_endpoint(place),
        use_emulator=False,
        skip_signature=False,
        credential_provider=lambda: _azure_credential(key),
        client_options=options,
        retry_config={"max_retries": 0},
    )


def _s3_credential(keys: S3Keys) -> "S3Credential":
    return {
        "access_key_id": keys.access_key_id,
        "secret_access_key": keys.secret_access_key,
        "token": keys.session_token,
        "expires_at": None,
    }


def _azure_credential(key: AzureKey) -> Any:
    if key.account_key is not None:
        return {"access_key": key.account_key, "expires_at": None}
    return {"sas_token": key.shared_access_signature, "expires_at": None}


def _azure_endpoint(place: ObjectStorePlace) -> str:
    return place.endpoint or default_endpoint(place.scheme, place.account)


def _options(place: ObjectStorePlace, connect_s: float, timeout_s: float) -> "ClientConfig":
    return {
        "allow_http": place.endpoint is not None and place.endpoint.startswith("http:"),
        "timeout": timedelta(seconds=timeout_s),
        "connect_timeout": timedelta(seconds=connect_s),
    }
