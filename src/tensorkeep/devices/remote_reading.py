"""The remote read engine: ranges of objects from S3, an agent or a relay, straight into memory that the caller owns.

One for every kind of store that answers ranged GETs. What comes is right or refused: an answer is taken only where its head
says that it is exactly the bytes asked for (`remote_answers`). A body that is cut goes on where it stopped, on another
connection; a server that is busy is asked again, as late as it asks for, within the call's deadline; a wrong answer is never
asked again, because asking until it fits would take the one that only seems to.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tensorkeep.devices.buffers import byte_views, count_bytes
from tensorkeep.devices.object_store_errors import Answer, translate_answer
from tensorkeep.devices.remote_answers import (
    Body,
    Head,
    ShortObject,
    WrongAnswer,
    check_range,
    check_whole,
    error_length,
)
from tensorkeep.devices.remote_connections import BrokenConnection, Connection, ConnectionLimits, ConnectionPool
from tensorkeep.devices.remote_refusals import MAX_ERROR_BYTES, Refusal, read_refusal
from tensorkeep.devices.remote_requests import ReadRequest, ReadRequests
from tensorkeep.devices.retrying import RetryPolicy
from tensorkeep.errors import Integrity, InvalidInput, TensorkeepError, Unavailable
from tensorkeep.runtime import Runtime

if TYPE_CHECKING:
    import ssl

MAX_WHOLE_BYTES = 1 << 30
"""Longest object that `RemoteReader.read` returns in one piece: a server's word alone must not fill the memory."""

_PROGRESS_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """How patient a read is.

    Attributes:
        connect_s: for a connection.
        stall_s: without any byte of an answer; a connection that brings less than the floor over this time counts as stalled.
        floor_bytes_per_s: see there.
        grace_s: for a whole call, on top of its size at the floor.
        retries: how often and after which pauses; an attempt that brings bytes begins the count anew.
    """

    connect_s: float = 10.0
    stall_s: float = 20.0
    floor_bytes_per_s: int = 64 << 10
    grace_s: float = 60.0
    retries: RetryPolicy = field(default_factory=lambda: RetryPolicy(attempts=6, max_delay_s=5.0))

    def call_s(self, size_bytes: int) -> float:
        """Return how long a call for that many bytes may take, but for the last answer's stall."""
        return self.grace_s + size_bytes / self.floor_bytes_per_s


class ReadCounts(NamedTuple):
    """What an engine has done since it was made; `throttled` answers asked for fewer requests."""

    requests: int = 0
    connections: int = 0
    retries: int = 0
    throttled: int = 0


class RemoteReader:
    """Reads objects of one remote store. Thread safe: each thread that reads has a connection of its own.

    Args:
        requests: gives the GET for an object's name.
        url: the device's, without secrets, for messages.
        runtime: its clock and randomness.
        limits: how patient.
        tls_context: gives the context that checks certificates; the system's trust where None.
    """

    def __init__(
        self,
        requests: ReadRequests,
        *,
        url: str,
        runtime: Runtime,
        limits: ReadLimits | None = None,
        tls_context: "Callable[[], ssl.SSLContext] | None" = None,
    ) -> None:
        self._requests = requests
        self._url = url
        self._runtime = runtime
        self._limits = limits or ReadLimits()
        self._pool = ConnectionPool(
            runtime.clock.monotonic_s,
            limits=ConnectionLimits(self._limits.connect_s, self._limits.stall_s),
            tls_context=tls_context,
        )
        self._lock = threading.Lock()
        self._counts = ReadCounts()

    @property
    def counts(self) -> ReadCounts:
        """What it has done up to now."""
        return self._counts._replace(connections=self._pool.opened)

    def read_into(self, name: str, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, in order, with the bytes of an object from ``offset``. All bytes or an error.

        Raises:
            NotFound: the store has no such object.
            Integrity: the object is shorter.
            PermissionDenied: the right to read was refused, a fresh one too.
            Unavailable: the store did not answer in time, or not with what was asked (``reason="wrong_answer"``).
        """
        if offset < 0:
            raise InvalidInput(f"reading {name} from the negative offset {offset}", object=name, offset=offset)
        views = byte_views(buffers)
        if views:
            self._run(_Transfer(name, offset, views))

    def read(self, name: str) -> bytes:
        """Return a whole object; raises what `read_into` does."""
        transfer = _Transfer(name, 0, None)
        self._run(transfer)
        return bytes(transfer.whole)

    def close(self) -> None:
        """Close the connections that are not in use; the reader can be used again."""
        self._pool.close()

    def _run(self, transfer: "_Transfer") -> None:
        transfer.started_s = self._runtime.clock.monotonic_s()
        try:
            self._bring(transfer)
            return
        except WrongAnswer as error:
            problem = self._wrong_answer(transfer, str(error))
        except ShortObject as error:
            problem = self._too_short(transfer, error.size_bytes)
        raise problem  # not chained: it says all that is to be said

    def _bring(self, transfer: "_Transfer") -> None:
        """Make attempts until all is there, or until no further one is worth it."""
        request = self._requests.read_request(transfer.name)
        refreshed = False
        while True:
            received = transfer.received
            problem: BrokenConnection | Refusal | None
            try:
                problem = self._attempt(transfer, request)
            except BrokenConnection as error:
                problem = error
            if problem is None:
                return
            if isinstance(problem, BrokenConnection) or problem.busy:
                self._pause(transfer, received, problem)
            elif problem.forbidden and not refreshed:
                refreshed = True
                request = self._requests.read_request(transfer.name, fresh=True)
            else:
                raise self._refused(transfer, problem)

    def _attempt(self, transfer: "_Transfer", request: ReadRequest) -> Refusal | None:
        """Make one request; None where all bytes that were missing came, else why the store gave none.

        A kept connection that breaks before any answer was closed by the server meanwhile: that counts as no attempt.
        """
        message = b"".join((request.head, transfer.range_header(), b"\r\n"))
        connection = self._pool.take(request.endpoint)
        try:
            head = self._ask(connection, message)
        except BrokenConnection as error:
            if not connection.used or error.answered:
                raise
            connection = self._pool.take(request.endpoint, fresh=True)
            head = self._ask(connection, message)
        return self._take_answer(transfer, connection, head)

    def _ask(self, connection: Connection, message: bytes) -> Head:
        with self._lock:
            self._counts = self._counts._replace(requests=self._counts.requests + 1)
        try:
            return connection.ask(message)
        except BaseException:
            connection.close()
            raise

    def _take_answer(self, transfer: "_Transfer", connection: Connection, head: Head) -> Refusal | None:
        complete = False
        try:
            if head.status < 300 or head.status == 416:
                transfer.expect(head)
                self._receive_body(transfer, connection)
                complete = True
                return None
            body, complete = _read_error(connection, head)
            return read_refusal(head, body, self._runtime.clock.now())
        finally:
            if complete and head.keeps_alive:
                self._pool.give(connection)
            else:
                connection.close()

    def _receive_body(self, transfer: "_Transfer", connection: Connection) -> None:
        clock, limits = self._runtime.clock, self._limits
        since_s, since_bytes = clock.monotonic_s(), transfer.received
        while transfer.views:
            transfer.advance(connection.receive(transfer.views))
            passed_s = clock.monotonic_s() - since_s
            if passed_s >= limits.stall_s and transfer.views:
                rate = (transfer.received - since_bytes) / passed_s
                if rate < limits.floor_bytes_per_s:
                    raise BrokenConnection(f"it sent only {rate:.0f} bytes/s for {passed_s:.0f} s", kind="Timeout")
                since_s, since_bytes = since_s + passed_s, transfer.received

    def _pause(self, transfer: "_Transfer", received: int, problem: BrokenConnection | Refusal) -> None:
        """Wait until the next attempt is due; raises `Unavailable` where there is to be none."""
        clock, retries = self._runtime.clock, self._limits.retries
        if transfer.received - received >= min(_PROGRESS_BYTES, transfer.size // 20 or 1):
            transfer.failures = 0
        transfer.failures += 1
        transfer.attempts += 1
        delay_s = retries.delay_s(transfer.failures, self._runtime.randomness.uniform())
        if isinstance(problem, Refusal):
            delay_s = max(delay_s, problem.retry_after_s or 0.0)
        throttled = isinstance(problem, Refusal) and problem.throttled
        with self._lock:
            counts = self._counts
            self._counts = counts._replace(retries=counts.retries + 1, throttled=counts.throttled + throttled)
        passed_s = clock.monotonic_s() - transfer.started_s
        late = passed_s + delay_s > self._limits.call_s(transfer.size)
        if late or transfer.failures >= retries.attempts:
            raise self._gave_up(transfer, problem, passed_s, delay_s if late else None)
        clock.sleep(delay_s)

    def _gave_up(
        self, transfer: "_Transfer", problem: BrokenConnection | Refusal, passed_s: float, needed_s: float | None
    ) -> TensorkeepError:
        tries = "once" if transfer.attempts == 1 else f"{transfer.attempts} times"
        wait = "" if needed_s is None else f"; again only in {needed_s:.0f} s, past the deadline of a read"
        doing = f"reading {transfer.name} ({tries} in {passed_s:.1f} s, last: {problem}{wait})"
        if isinstance(problem, Refusal):
            answer = Answer(problem.status, problem.code or "", "")
        else:
            answer = Answer(None, "", problem.kind)
        facts = {"attempts": transfer.attempts, "received_bytes": transfer.received, "final": True}
        return translate_answer(answer, doing, url=self._url, name=transfer.name, **facts)

    def _refused(self, transfer: "_Transfer", refusal: Refusal) -> TensorkeepError:
        name, doing = transfer.name, f"reading {transfer.name}"
        if refusal.forbidden and refusal.clock_hint:
            doing += f" ({refusal.clock_hint})"
        answer = Answer(refusal.status, refusal.code or "", "")
        if answer.object_is_absent and not refusal.absent:
            return Unavailable(
                f"{self._url} answers {name} with 404, but not as a store does that looked for it: check its endpoint and what "
                "stands between",
                device=self._url,
                object=name,
                status=404,
            )
        if refusal.redirected_to:
            doing += f" (sent on to {refusal.redirected_to})"
        return translate_answer(answer, doing, url=self._url, name=name)

    def _wrong_answer(self, transfer: "_Transfer", reason: str) -> TensorkeepError:
        return Unavailable(
            f"{self._url} was asked for {transfer.name} and gave no right answer: {reason}. What it sent was not used; "
            "check the store, and what stands between",
            device=self._url,
            object=transfer.name,
            reason="wrong_answer",
            final=True,
        )

    def _too_short(self, transfer: "_Transfer", size_bytes: int) -> TensorkeepError:
        needed = transfer.offset + transfer.size
        found = f"{size_bytes} bytes" if size_bytes >= 0 else "fewer bytes"
        return Integrity(
            f"{transfer.name} on {self._url} is shorter than expected: {found} where {needed} are needed",
            device=self._url,
            object=transfer.name,
            size_bytes=size_bytes if size_bytes >= 0 else None,
            needed_bytes=needed,
        )


class _Transfer:
    """One call on its way: what is asked for, where it lands, how far it is, and how often it failed."""

    def __init__(self, name: str, offset: int, views: list[memoryview] | None) -> None:
        self.name = name
        self.offset = offset
        self.views = views or []
        self.size = count_bytes(self.views)
        self.whole = bytearray()
        self.received = 0
        self.started_s = 0.0
        self.failures = 0
        self.attempts = 0
        self._is_whole = views is None
        self._found: Body | None = None

    def range_header(self) -> bytes:
        """Return the header that asks for what is missing; none where that is the whole object."""
        if self._is_whole and not self.received:
            return b""
        return b"Range: bytes=%d-%d\r\n" % (self.offset + self.received, self.offset + self.size - 1)

    def expect(self, head: Head) -> None:
        """Return if the answer's body is exactly what is missing, of the same object as before.

        Raises:
            WrongAnswer, ShortObject: it is not.
        """
        if self._is_whole and not self.received:
            body = check_whole(head)
        else:
            body = check_range(head, self.offset + self.received, self.offset + self.size)
        before, self._found = self._found, body
        if before and (before.total != body.total or before.etag != body.etag):
            raise WrongAnswer("the object changed while it was read")
        if self._is_whole and not before:
            self._allocate(body.total)

    def advance(self, count: int) -> None:
        """Take note of bytes that have landed."""
        self.received += count
        full = 0
        while full < len(self.views) and count >= self.views[full].nbytes:
            count -= self.views[full].nbytes
            full += 1
        del self.views[:full]
        if count:
            self.views[0] = self.views[0][count:]

    def _allocate(self, size_bytes: int) -> None:
        if size_bytes > MAX_WHOLE_BYTES:
            raise WrongAnswer(f"an object of {size_bytes} bytes is too long to be read in one piece")
        self.whole = bytearray(size_bytes)
        self.size = size_bytes
        self.views = [memoryview(self.whole)] if size_bytes else []


def _read_error(connection: Connection, head: Head) -> tuple[bytes, bool]:
    """Return the first bytes of an error's body, as far as they come within the stall time, and whether that is all of it."""
    length = error_length(head)
    until_s = connection.until_stall_s()
    data = memoryview(bytearray(min(MAX_ERROR_BYTES if length is None else length, MAX_ERROR_BYTES)))
    count = 0
    try:
        while count < len(data) and not (length is None and bytes(data[max(count - 5, 0) : count]) == b"0\r\n\r\n"):
            got = connection.receive_some(data[count:])
            if got == 0 or connection.is_late(until_s):
                return bytes(data[: count + got]), False
            count += got
    except BrokenConnection:  # the status alone says enough
        return bytes(data[:count]), False
    return bytes(data[:count]), count == length
