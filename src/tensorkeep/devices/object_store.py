"""A bucket, or a prefix in one, as a device (``s3:``, ``gs:``, ``az:``), over obstore.

One object is one PUT, with its SHA-256 in the signature, so that a store refuses what was damaged on its way; there are no
multipart uploads, so nothing unfinished can lie about. A put whose answer is lost or unclear is read back: it is a success
if the very bytes are there; otherwise it is `Unavailable` with ``passing=True``, and whoever wrote takes a new name, since the
old one may still appear. An absent bucket is never an absent object.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from typing_extensions import Buffer

from tensorkeep.devices.buffers import byte_views, count_bytes, iter_chunks
from tensorkeep.devices.object_names import UNFINISHED_FOLDER, check_object_name, folders_to_list
from tensorkeep.devices.object_store_clients import (
    SIGNED_FOR_S,
    Method,
    ObjectStoreClients,
    RequestLimits,
    SignedRequest,
)
from tensorkeep.devices.object_store_errors import Answer, missing_place, read_answer, translate_answer
from tensorkeep.devices.object_store_url import ObjectStorePlace
from tensorkeep.devices.protocol import ObjectInfo
from tensorkeep.devices.remote_reading import ReadLimits, RemoteReader
from tensorkeep.devices.remote_requests import ReadRequest
from tensorkeep.errors import AlreadyExists, InvalidInput, NotFound, TensorkeepError, Unavailable
from tensorkeep.records.device import IDENTITY_NAME, Durability
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import Runtime

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode

T = TypeVar("T")

_LISTING_PAGE = 1000
_READ_BACK_BYTES = 4 * MIB
"""Of a put that was not answered, at once: many puts may be read back together."""

_SCRATCH_AGE_S = 3600.0
"""Objects in ``tmp`` younger than this are nobody's to sweep: no lock tells whether their writer lives."""


class ObjectStoreDevice:
    """Objects under a prefix of a bucket. See `tensorkeep.devices.protocol.Device`; thread safe.

    Args:
        place: where, and which credentials.
        runtime: the environment that the credentials are looked up in, and the clock.
        limits: deadlines of requests.
    """

    def __init__(self, place: ObjectStorePlace, *, runtime: Runtime, limits: RequestLimits | None = None) -> None:
        self._place = place
        self._runtime = runtime
        limits = limits or RequestLimits()
        self._clients = ObjectStoreClients(place, runtime, limits)
        patience = ReadLimits(connect_s=limits.connect_s, stall_s=limits.small_s * 2 / 3)
        self._reader = RemoteReader(self, url=place.url, runtime=runtime, limits=patience)
        self._conditional = True
        self._identified = False

    @property
    def url(self) -> str:
        """The canonical URL, without keys."""
        return self._place.url

    @property
    def durability(self) -> Durability:
        """Always ``durable``: an object store answers a put when it has the object."""
        return "durable"

    @property
    def throttled(self) -> int:
        """How often the store has asked for fewer requests."""
        return self._reader.counts.throttled

    def prepare(self) -> None:
        """Return if the bucket is there and answers: no folders are needed.

        Raises:
            NotFound: there is no such bucket.
        """
        try:
            self._check_bucket()
        except Unavailable as error:
            if error.facts.get("reason") == "no_bucket":
                raise missing_place(self.url, adding=True) from None
            raise

    def read_identity(self) -> bytes | None:
        """Return the identity, or None where the bucket answers and has none."""
        try:
            found = self._get(IDENTITY_NAME)
        except NotFound:
            return None
        self._identified = True
        return found

    def replace_identity(self, data: bytes) -> None:
        """Put the identity in place of the one before, as one object."""
        answer = self._try_put(IDENTITY_NAME, [memoryview(data)], len(data), "overwrite")
        if answer is not None:
            self._resolve(answer, IDENTITY_NAME, [memoryview(data)])

    @property
    def put_concurrency(self) -> int:
        """How many puts at once it is quickest with; as many as boto3's transfer manager has."""
        return 10

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        """Put an object in one request."""
        check_object_name(name)
        views = byte_views(data)
        mode: PutMode = "create" if self._conditional else "overwrite"
        answer = self._try_put(name, views, count_bytes(views), mode)
        if answer is not None and answer.condition_is_unknown and mode == "create":
            # Names are never used twice, so nothing hangs on the condition but the sight of a bug.
            self._conditional = False
            answer = self._try_put(name, views, count_bytes(views), "overwrite")
        if answer is not None:
            self._resolve(answer, name, views)

    def flush(self) -> None:
        """Return: what a put returned for is durable."""

    def adopt_names(self) -> None:
        """Return: what is listed is durable."""

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers with bytes of an object."""
        check_object_name(name)
        if offset < 0:
            raise InvalidInput(f"reading {name} from the negative offset {offset}", object=name, offset=offset)
        if count_bytes(byte_views(buffers)):
            self._read(lambda: self._reader.read_into(name, offset, buffers))
        else:
            self.size_of(name)

    def read(self, name: str) -> bytes:
        """Return a whole object."""
        check_object_name(name)
        return self._get(name)

    def size_of(self, name: str) -> int:
        """Return the size of an object in bytes."""
        import obstore  # noqa: PLC0415 - a local store must not load it

        check_object_name(name)
        client = self._clients.of_size(0)
        return self._ask(f"asking for {name}", name, lambda: obstore.head(client, self._key(name))["size"])

    def iter_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects under a folder prefix, page by page; ``""`` is every folder of the layout but ``tmp``."""
        skipped = len(self._key(""))
        for folder in folders_to_list(prefix):
            for meta in self._list(folder):
                yield ObjectInfo(meta["path"][skipped:], meta["size"])

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        import obstore  # noqa: PLC0415 - a local store must not load it

        check_object_name(name)
        client = self._clients.of_size(0)
        with suppress(NotFound):
            self._ask(f"deleting {name}", name, lambda: obstore.delete(client, self._key(name)))

    def sweep_unfinished(self, older_than_s: float) -> int:
        """Remove what trials left in ``tmp``, if it is at least an hour old; puts leave nothing unfinished."""
        latest = self._runtime.clock.now() - timedelta(seconds=max(older_than_s, _SCRATCH_AGE_S))
        skipped = len(self._key(""))
        old = [meta["path"][skipped:] for meta in self._list(UNFINISHED_FOLDER) if meta["last_modified"] < latest]
        for name in old:
            self.delete(name)
        return len(old)

    def free_bytes(self) -> int | None:
        """Return None: a bucket does not say."""
        return None

    def sign(self, method: Method, name: str, expires_s: float = SIGNED_FOR_S) -> SignedRequest:
        """Return a signed request for an object, which whoever has it may make; the same one again while it is fresh."""
        check_object_name(name)
        key = self._key(name)
        return self._ask(f"signing a request for {name}", name, lambda: self._clients.sign(method, key, expires_s))

    def read_request(self, name: str, *, fresh: bool = False) -> ReadRequest:
        """Return a signed GET of an object for the engine that reads ranges; ``fresh`` with keys looked up anew."""
        if fresh:
            self._clients.forget()
        signed = self._ask(
            f"signing a request for {name}", name, lambda: self._clients.sign("GET", self._key(name), SIGNED_FOR_S)
        )
        return ReadRequest.of(signed.url)

    def _try_put(self, name: str, views: Sequence[memoryview], size_bytes: int, mode: "PutMode") -> Answer | None:
        """Return None for a success, else what the store answered."""
        import obstore  # noqa: PLC0415 - a local store must not load it
        from obstore.exceptions import BaseError  # noqa: PLC0415

        client = self._clients.of_size(size_bytes)
        try:
            # A list of buffers is sent as it is, without a copy.
            obstore.put(client, self._key(name), views or b"", mode=mode, use_multipart=False)
        except (BaseError, OSError) as error:
            return read_answer(error)
        return None

    def _resolve(self, answer: Answer, name: str, views: Sequence[memoryview]) -> None:
        """Return if a put that was not answered with a success was one; else raise what to do about it."""
        if answer.name_is_taken:
            raise AlreadyExists(
                f"{name} is already on {self.url}: physical names are never used twice", device=self.url, object=name
            )
        error = self._error(answer, f"writing {name}", name)
        if isinstance(error, NotFound):
            error = Unavailable(
                f"writing {name} on {self.url} was answered with 404: check the endpoint", **error.facts
            )
        if not answer.put_is_unclear or not self._holds(name, views):
            raise error

    def _holds(self, name: str, views: Sequence[memoryview]) -> bool:
        """Whether the store has these very bytes; False too where it can't tell."""
        try:
            if name == IDENTITY_NAME:
                return self._get(name) == b"".join(views)
            return self.size_of(name) == count_bytes(views) and self._has_bytes(name, views)
        except TensorkeepError:
            return False

    def _has_bytes(self, name: str, views: Sequence[memoryview]) -> bool:
        buffer = memoryview(bytearray(min(count_bytes(views), _READ_BACK_BYTES)))
        offset = 0
        for chunk in iter_chunks(views, _READ_BACK_BYTES):
            found = buffer[: count_bytes(chunk)]
            self.read_into(name, offset, [found])
            for view in chunk:
                if found[: view.nbytes] != view:
                    return False
                found = found[view.nbytes :]
                offset += view.nbytes
        return True

    def _get(self, name: str) -> bytes:
        return self._read(lambda: self._reader.read(name))

    def _read(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except NotFound as error:
            if not error.facts.get("store_code"):  # it did not say what is absent
                self._check_bucket()
            if self._identified and error.facts.get("object") != IDENTITY_NAME:
                self._check_identity()
            raise

    def _list(self, folder: str) -> "Iterator[ObjectMeta]":
        import obstore  # noqa: PLC0415 - a local store must not load it

        pages = iter(obstore.list(self._clients.of_size(0), self._key(folder), chunk_size=_LISTING_PAGE))
        while (page := self._ask(f"listing {folder}/", None, lambda: next(pages, None))) is not None:
            yield from page

    def _check_bucket(self) -> None:
        next(self._list(UNFINISHED_FOLDER), None)

    def _check_identity(self) -> None:
        """Raise where not even the identity is there that was: all was taken away, which is no loss of one object."""
        try:
            self._reader.read(IDENTITY_NAME)
        except NotFound:
            raise Unavailable(
                f"{self.url} has its {IDENTITY_NAME} no more: bring back what was there", device=self.url
            ) from None

    def _key(self, name: str) -> str:
        return f"{self._place.prefix}/{name}" if self._place.prefix else name

    def _ask(self, doing: str, name: str | None, call: Callable[[], T]) -> T:
        """Return what a call returns; raise our error for obstore's, not even chained: its text may hold a signature."""
        from obstore.exceptions import BaseError  # noqa: PLC0415 - a local store must not load it

        try:
            return call()
        except (BaseError, OSError) as error:
            answer = read_answer(error)
        raise self._error(answer, doing, name)

    def _error(self, answer: Answer, doing: str, name: str | None) -> TensorkeepError:
        if answer.object_is_absent and not answer.says_what_is_absent:
            try:
                self._check_bucket()
            except TensorkeepError as lost:
                return lost
        error = translate_answer(answer, doing, url=self.url, name=name)
        if answer.status in (401, 403):
            self._clients.forget()
        return error
