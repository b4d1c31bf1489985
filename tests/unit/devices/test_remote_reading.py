"""The remote read engine against a server that does every wrong thing: right bytes, or a typed error, and no secret in it."""

import gc
import hashlib
import os
import random
import ssl
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tensorkeep.devices.remote_reading import ReadLimits, RemoteReader
from tensorkeep.devices.remote_requests import ReadRequest
from tensorkeep.devices.retrying import RetryPolicy
from tensorkeep.errors import Integrity, InvalidInput, NotFound, PermissionDenied, TensorkeepError, Unavailable
from tensorkeep.runtime import ManualClock, Runtime, SeededRandomness
from tests.unit.devices.stub_store import Exchange, Step, StubStore, serve

SIZE = 1_000_000
CONTENT = random.Random(4).randbytes(SIZE)
NAME = "parts/ab/x"
PATIENT = ReadLimits(retries=RetryPolicy(attempts=3))
IMPATIENT = ReadLimits(stall_s=0.25, floor_bytes_per_s=1000, retries=RetryPolicy(attempts=3))


class Requests:
    """Signs for a stub server, counting."""

    def __init__(self, store: StubStore, *, scheme: str = "http", host: str = "127.0.0.1") -> None:
        self.store = store
        self.scheme = scheme
        self.host = host
        self.refreshed = 0

    def read_request(self, name: str, *, fresh: bool = False) -> ReadRequest:
        self.refreshed += fresh
        return ReadRequest.of(self.store.url(name, scheme=self.scheme, host=self.host), {"X-Turn": str(self.refreshed)})


@pytest.fixture
def store() -> Iterator[StubStore]:
    with serve({NAME: CONTENT, "empty": b""}) as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def reader(store: StubStore, clock: ManualClock) -> Iterator[RemoteReader]:
    runtime = Runtime(clock=clock, randomness=SeededRandomness(1))
    reader = RemoteReader(Requests(store), url="s3://bucket", runtime=runtime, limits=PATIENT)
    yield reader
    reader.close()


@pytest.fixture
def impatient(store: StubStore, clock: ManualClock) -> Iterator[RemoteReader]:
    reader = RemoteReader(Requests(store), url="s3://bucket", runtime=Runtime(clock=clock), limits=IMPATIENT)
    yield reader
    reader.close()


def read(reader: RemoteReader, start: int = 0, end: int = SIZE, *, pieces: int = 1) -> bytes:
    data = bytearray(end - start)
    view = memoryview(data)
    step = max(len(data) // pieces, 1)
    reader.read_into(NAME, start, [view[at : at + step] for at in range(0, len(data), step)])
    return bytes(data)


def refused(reader: RemoteReader, start: int = 100, end: int = 5000) -> TensorkeepError:
    with pytest.raises(TensorkeepError) as caught:
        read(reader, start, end)
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret-signature" not in f"{error!r} {error}"
        error = error.__cause__ or error.__context__
    assert "secret-signature" not in str(caught.value.to_dict())
    return caught.value


@pytest.mark.parametrize("pieces", [1, 2, 3000])
@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, SIZE), (SIZE - 1, SIZE), (12_345, 678_901)])
def test_ranges_land_in_their_buffers(reader: RemoteReader, start: int, end: int, pieces: int) -> None:
    assert read(reader, start, end, pieces=pieces) == CONTENT[start:end]


def test_whole_objects_are_read_without_a_range(reader: RemoteReader, store: StubStore) -> None:
    assert reader.read(NAME) == CONTENT
    assert reader.read("empty") == b""
    assert not any(b"Range" in head for head in store.requests)


def test_nothing_is_asked_for_no_bytes(reader: RemoteReader, store: StubStore) -> None:
    reader.read_into(NAME, 5, [memoryview(b"")])
    assert not store.requests


def test_a_negative_offset_is_the_callers_mistake(reader: RemoteReader) -> None:
    with pytest.raises(InvalidInput):
        reader.read_into(NAME, -1, [memoryview(bytearray(1))])


def test_ten_thousand_tiny_ranges_share_one_connection(reader: RemoteReader, store: StubStore) -> None:
    chosen = random.Random(7)
    for _ in range(10_000):
        start = chosen.randrange(SIZE - 64)
        end = start + chosen.randrange(1, 64)
        assert read(reader, start, end) == CONTENT[start:end]
    assert store.connections == 1
    assert reader.counts.requests == 10_000


# --- answers that are not what was asked ---

WRONG: dict[str, Step] = {
    "200 for a range": lambda it: it.answer(200, CONTENT, content_length=str(SIZE), content_range=None),
    "200 with the range's length": lambda it: it.answer(200),
    "206 without Content-Range": lambda it: it.answer(content_range=None),
    "another start": lambda it: it.answer(content_range=f"bytes 101-5000/{SIZE}"),
    "another end": lambda it: it.answer(
        body=CONTENT[100:5001], content_length="4901", content_range=f"bytes 100-5000/{SIZE}"
    ),
    "fewer bytes than asked": lambda it: it.answer(
        body=CONTENT[100:4000], content_length="3900", content_range=f"bytes 100-3999/{SIZE}"
    ),
    "a total that does not reach": lambda it: it.answer(content_range="bytes 100-4999/4999"),
    "no total": lambda it: it.answer(content_range="bytes 100-4999/*"),
    "another unit": lambda it: it.answer(content_range=f"items 100-4999/{SIZE}"),
    "a garbled range": lambda it: it.answer(content_range="bytes=100-4999"),
    "no Content-Length": lambda it: it.answer(content_length=None),
    "a shorter Content-Length": lambda it: it.answer(content_length="4899"),
    "a longer Content-Length": lambda it: it.answer(content_length="4901"),
    "a negative Content-Length": lambda it: it.answer(content_length="-4900"),
    "a signed Content-Length": lambda it: it.answer(content_length="+4900"),
    "chunks": lambda it: it.answer(
        body=b"1324\r\n" + it.wanted + b"\r\n0\r\n\r\n", content_length=None, transfer_encoding="chunked"
    ),
    "chunks and a length": lambda it: it.answer(transfer_encoding="chunked"),
    "gzip": lambda it: it.answer(content_encoding="gzip"),
    "204": lambda it: it.answer(204, b"", content_length="0"),
    "several ranges": lambda it: it.answer(content_range=None, content_type="multipart/byteranges; boundary=x"),
    "two different lengths": lambda it: it.connection.sendall(
        b"HTTP/1.1 206 x\r\nContent-Length: 4900\r\nContent-Length: 4901\r\n\r\n"
    ),
    "a folded header": lambda it: it.connection.sendall(
        b"HTTP/1.1 206 x\r\nContent-Length: 4900\r\n Content-Range: x\r\n\r\n"
    ),
    "not HTTP": lambda it: it.connection.sendall(b"220 ftp ready\r\n\r\n"),
    "HTTP/2": lambda it: it.connection.sendall(b"HTTP/2.0 206 x\r\n\r\n"),
    "a head without end": lambda it: it.connection.sendall(b"HTTP/1.1 206 x\r\n" + b"X-A: b\r\n" * 20_000),
    "interim answers without end": lambda it: it.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "416 of a long object": lambda it: it.send(416, {"Content-Range": f"bytes */{SIZE}", "Content-Length": "0"}),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_is_refused_and_not_asked_again(reader: RemoteReader, store: StubStore, what: str) -> None:
    store.script = [WRONG[what]]
    error = refused(reader)
    assert isinstance(error, Unavailable)
    assert error.facts["reason"] == "wrong_answer"
    assert len(store.requests) == 1
    assert read(reader, 100, 5000) == CONTENT[100:5000], "the next call has a connection of its own"


def test_a_200_is_taken_where_the_whole_object_was_asked_for_from_its_start(
    reader: RemoteReader, store: StubStore
) -> None:
    store.script = [lambda it: it.answer(200, content_range=None)]
    assert read(reader) == CONTENT


@pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1])
def test_a_200_of_another_length_is_not(reader: RemoteReader, store: StubStore, length: int) -> None:
    body = (CONTENT + b"x")[:length]
    store.script = [lambda it: it.answer(200, body, content_length=str(length), content_range=None)]
    assert refused(reader, 0, SIZE).facts["reason"] == "wrong_answer"


WRONG_WHOLE: dict[str, Step] = {
    "206 for the whole": lambda it: it.answer(206, content_range=f"bytes 0-{SIZE - 1}/{SIZE}"),
    "200 with a range": lambda it: it.answer(200, content_range=f"bytes 0-{SIZE - 1}/{SIZE}"),
    "no length": lambda it: it.answer(content_length=None),
    "more than memory should take": lambda it: it.answer(content_length=str(1 << 40)),
}


@pytest.mark.parametrize("what", WRONG_WHOLE)
def test_a_wrong_whole_object_is_refused(reader: RemoteReader, store: StubStore, what: str) -> None:
    store.script = [WRONG_WHOLE[what]]
    with pytest.raises(Unavailable, match="no right answer"):
        reader.read(NAME)


def test_bytes_after_the_body_are_never_read_as_the_next_answer(reader: RemoteReader, store: StubStore) -> None:
    lie = b"HTTP/1.1 206 x\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/1000000\r\n\r\n0123456789"
    store.script = [lambda it: it.connection.sendall(_right(it) + lie)]
    assert read(reader, 0, 10) == CONTENT[:10]
    assert read(reader, 0, 10) == CONTENT[:10]
    assert store.connections == 2


def _right(it: Exchange) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in it.headers.items())
    return f"HTTP/1.1 206 x\r\n{lines}\r\n".encode() + it.wanted


def test_an_object_that_changes_during_a_read_is_refused(reader: RemoteReader, store: StubStore) -> None:
    store.script = [lambda it: it.cut(500_000), lambda it: it.answer(etag='"2"')]
    assert "changed" in refused(reader, 0, SIZE).message


# --- objects that are not there, or shorter, or not ours to read ---


@pytest.mark.parametrize("code", [None, "NoSuchKey", "BlobNotFound"])
def test_an_absent_object_is_not_found(reader: RemoteReader, store: StubStore, code: str | None) -> None:
    store.script = [lambda it: it.refuse(404, code)]
    assert isinstance(refused(reader), NotFound)


def test_an_absent_bucket_or_a_proxys_404_says_nothing_of_the_object(reader: RemoteReader, store: StubStore) -> None:
    store.script = [lambda it: it.refuse(404, "NoSuchBucket")]
    assert isinstance(refused(reader), Unavailable)
    page = b"<html>not found</html>"
    store.script = [lambda it: it.send(404, {"Content-Length": str(len(page))}, page)]
    assert isinstance(refused(reader), Unavailable)


def test_a_shorter_object_is_an_integrity_error(reader: RemoteReader, store: StubStore) -> None:
    store.script = [lambda it: it.refuse(416, "InvalidRange", content_range="bytes */100")]
    error = refused(reader)
    assert isinstance(error, Integrity)
    assert (error.facts["size_bytes"], error.facts["needed_bytes"]) == (100, 5000)
    store.script = [lambda it: it.refuse(416, "InvalidRange")]
    assert isinstance(refused(reader), Integrity)
    assert isinstance(refused(reader, SIZE - 10, SIZE + 10), Integrity)


def test_a_signature_that_ran_out_is_made_anew_once(reader: RemoteReader, store: StubStore) -> None:
    store.script = [lambda it: it.refuse(403, "AccessDenied")]
    assert read(reader) == CONTENT
    assert [b"X-Turn: 1" in head for head in store.requests] == [False, True]
    store.script = [lambda it: it.refuse(403, "AccessDenied")] * 2
    assert isinstance(refused(reader), PermissionDenied)


def test_a_clock_that_is_wrong_is_named(reader: RemoteReader, store: StubStore, clock: ManualClock) -> None:
    date = (clock.now() - timedelta(hours=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    store.script = [lambda it: it.refuse(403, "RequestTimeTooSkewed", date=date)] * 2
    assert "clock is 3600 s ahead of the store's" in refused(reader).message


def test_a_redirect_is_refused_and_its_secret_kept(reader: RemoteReader, store: StubStore) -> None:
    there = "https://user:secret-signature@elsewhere.example/x?X-Amz-Signature=secret-signature"
    store.script = [lambda it: it.refuse(307, "TemporaryRedirect", location=there)]
    error = refused(reader)
    assert isinstance(error, InvalidInput)
    assert "elsewhere.example" in error.message


# --- servers that are busy ---


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again_after_a_pause(
    reader: RemoteReader, store: StubStore, clock: ManualClock, status: int
) -> None:
    store.script = [lambda it: it.refuse(status, "SlowDown")] * 2
    assert read(reader) == CONTENT
    assert 0.05 <= clock.monotonic_s() <= 0.3
    assert store.connections == 1


def test_a_server_that_stays_busy_is_given_up(reader: RemoteReader, store: StubStore) -> None:
    store.script = [lambda it: it.refuse(503, "SlowDown")] * 10
    error = refused(reader)
    assert isinstance(error, Unavailable)
    assert (error.facts["attempts"], len(store.requests), reader.counts.throttled) == (3, 3, 3)


def test_retry_after_is_honoured_in_seconds_and_as_a_date(
    reader: RemoteReader, store: StubStore, clock: ManualClock
) -> None:
    store.script = [lambda it: it.refuse(503, retry_after="17")]
    assert read(reader) == CONTENT
    assert clock.monotonic_s() == 17
    date = (clock.now() + timedelta(seconds=25)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    store.script = [lambda it: it.refuse(429, retry_after=date)]
    assert read(reader) == CONTENT
    assert clock.monotonic_s() == 42


def test_a_retry_after_past_the_deadline_fails_at_once(
    reader: RemoteReader, store: StubStore, clock: ManualClock
) -> None:
    store.script = [lambda it: it.refuse(503, retry_after="86400")]
    assert "past the deadline" in refused(reader).message
    assert clock.monotonic_s() == 0


def test_the_deadline_of_a_call_ends_its_retries(store: StubStore, clock: ManualClock) -> None:
    limits = ReadLimits(grace_s=60, floor_bytes_per_s=SIZE, retries=RetryPolicy(attempts=10**6))
    reader = RemoteReader(Requests(store), url="s3://bucket", runtime=Runtime(clock=clock), limits=limits)
    store.script = [lambda it: it.refuse(500)] * 1000
    refused(reader, 0, SIZE)
    assert 50 < clock.monotonic_s() <= 61
    reader.close()


# --- connections that break ---


def test_a_body_cut_at_each_tenth_goes_on_where_it_stopped(reader: RemoteReader, store: StubStore) -> None:
    store.script = [lambda it: it.cut(SIZE // 10)] * 9
    assert read(reader) == CONTENT
    starts = [int(head.split(b"Range: bytes=")[1].split(b"-")[0]) for head in store.requests]
    assert starts == [tenth * SIZE // 10 for tenth in range(10)]


@pytest.mark.parametrize("tenth", range(10))
def test_a_scattered_read_survives_a_cut_at_any_tenth(reader: RemoteReader, store: StubStore, tenth: int) -> None:
    store.script = [lambda it: it.cut(tenth * SIZE // 10)]
    assert read(reader, pieces=777) == CONTENT


@pytest.mark.parametrize("tenth", range(10))
def test_a_whole_object_survives_a_cut_at_any_tenth(reader: RemoteReader, store: StubStore, tenth: int) -> None:
    store.script = [lambda it: it.cut(tenth * SIZE // 10)]
    assert reader.read(NAME) == CONTENT


def test_cuts_without_progress_are_given_up(reader: RemoteReader, store: StubStore) -> None:
    store.script = [lambda it: it.cut(10)] * 10
    error = refused(reader, 0, SIZE)
    assert isinstance(error, Unavailable)
    assert error.facts["received_bytes"] == 30


def test_resets_and_hangups_are_tried_again(reader: RemoteReader, store: StubStore) -> None:
    store.script = [Exchange.reset, _hang_up]
    assert read(reader) == CONTENT


def _hang_up(it: Exchange) -> None:
    it.connection.close()


def test_a_server_that_says_nothing_is_a_typed_error(impatient: RemoteReader, store: StubStore) -> None:
    store.script = [_say_nothing] * 3
    error = refused(impatient)
    assert "sent nothing for 0.25 s" in error.message


def _say_nothing(it: Exchange) -> None:
    it.store.stop.wait()


def test_a_stall_in_the_body_goes_on_elsewhere(impatient: RemoteReader, store: StubStore) -> None:
    def stall(it: Exchange) -> None:
        it.send(206, it.headers, it.wanted[:400_000])
        it.store.stop.wait()

    store.script = [stall]
    assert read(impatient) == CONTENT
    assert b"bytes=400000-" in store.requests[1]


def test_a_trickle_counts_as_a_stall(store: StubStore) -> None:
    clock = ManualClock()
    limits = ReadLimits(stall_s=0.25, floor_bytes_per_s=1000, retries=RetryPolicy(attempts=2))
    reader = RemoteReader(Requests(store), url="s3://bucket", runtime=Runtime(clock=clock), limits=limits)

    def trickle(it: Exchange) -> None:
        it.send(206, it.headers)
        while not it.store.stop.wait(0.02):
            it.connection.sendall(b"x")
            clock.advance(0.1)

    store.script = [trickle, trickle]
    assert "bytes/s" in refused(reader, 0, SIZE).message
    reader.close()


@pytest.mark.parametrize(
    "beginning",
    [
        b"HTTP/1.1 206 Some\r\nServer: ",
        b"HTTP/1.1 100 Wait\r\n\r\nHTTP/1.1 206 Some\r\nServer: ",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 60000\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\n\r\n",
    ],
)
def test_a_trickled_head_or_error_ends_in_time(store: StubStore, beginning: bytes) -> None:
    clock = ManualClock()
    limits = ReadLimits(stall_s=5.0, retries=RetryPolicy(attempts=1))
    reader = RemoteReader(Requests(store), url="s3://bucket", runtime=Runtime(clock=clock), limits=limits)
    sent: list[int] = []

    def trickle(it: Exchange) -> None:
        it.connection.sendall(beginning)
        while len(sent) < 400 and not it.store.stop.wait(0.005):
            sent.append(it.connection.send(b"x"))
            clock.advance(0.1)

    store.script = [trickle]
    refused(reader, 0, SIZE)
    assert len(sent) < 400
    reader.close()


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_a_name_that_no_host_can_have_is_a_typed_error(store: StubStore, clock: ManualClock, host: str) -> None:
    reader = RemoteReader(Requests(store, host=host), url="s3://bucket", runtime=Runtime(clock=clock), limits=PATIENT)
    assert "host" in refused(reader, 0, SIZE).message


@pytest.mark.parametrize("date", [f"Mon, 01 Jan {10**20} 00:00:00 GMT", f"Mon, 01 Jan 2024 00:00:00 +{10**20}"])
@pytest.mark.parametrize("header", ["date", "retry_after"])
def test_a_date_that_is_none_is_passed_over(reader: RemoteReader, store: StubStore, header: str, date: str) -> None:
    store.script = [lambda it: it.refuse(503, "SlowDown", **{header: date})]
    assert read(reader) == CONTENT


def test_nobody_listening_is_a_typed_error(clock: ManualClock) -> None:
    with serve({}) as gone:
        pass
    reader = RemoteReader(Requests(gone), url="s3://bucket", runtime=Runtime(clock=clock), limits=PATIENT)
    error = refused(reader)
    assert isinstance(error, Unavailable)
    assert error.facts["attempts"] == 3
    assert "no connection" in error.message


def test_kept_connections_that_the_server_closed_cost_no_attempt(store: StubStore, clock: ManualClock) -> None:
    limits = ReadLimits(retries=RetryPolicy(attempts=1))
    reader = RemoteReader(Requests(store), url="s3://bucket", runtime=Runtime(clock=clock), limits=limits)
    assert read(reader, 0, 10) == CONTENT[:10]
    store.hang_up_all()
    assert read(reader, 0, 10) == CONTENT[:10]
    store.script = [_hang_up]  # only once the request is on its way
    assert read(reader, 0, 10) == CONTENT[:10]
    assert reader.counts.retries == 0
    reader.close()


def test_a_connection_that_the_server_wants_closed_is_not_kept(reader: RemoteReader, store: StubStore) -> None:
    store.script = [lambda it: it.answer(connection="close")]
    assert read(reader, 0, 10) == read(reader, 0, 10)
    assert store.connections == 2


def test_idle_connections_are_not_trusted_for_long(reader: RemoteReader, store: StubStore, clock: ManualClock) -> None:
    read(reader, 0, 10)
    clock.advance(60)
    read(reader, 0, 10)
    assert store.connections == 2


def test_a_forked_process_opens_connections_of_its_own(reader: RemoteReader, store: StubStore) -> None:
    read(reader, 0, 10)
    child = os.fork()
    if child == 0:
        os._exit(read(reader, 0, 10) != CONTENT[:10])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read(reader, 0, 10) == CONTENT[:10]
    assert store.connections == 2


def test_a_reader_that_is_dropped_closes_its_connections(store: StubStore) -> None:
    reader = RemoteReader(Requests(store), url="s3://bucket", runtime=Runtime())
    read(reader, 0, 10)
    del reader
    gc.collect()  # an unclosed socket would warn, which is an error here


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", folder / "key", "-out", folder / "cert"], check=True, capture_output=True)
    return folder / "cert", folder / "key"


@pytest.fixture
def tls_store(certificate: tuple[Path, Path]) -> Iterator[StubStore]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with serve({NAME: CONTENT}, context) as running:
        yield running


def tls_reader(store: StubStore, trusted: Callable[[], ssl.SSLContext] | None, host: str = "localhost") -> RemoteReader:
    requests = Requests(store, scheme="https", host=host)
    return RemoteReader(
        requests, url="s3://bucket", runtime=Runtime(clock=ManualClock()), limits=PATIENT, tls_context=trusted
    )


def test_tls_brings_the_same_bytes(tls_store: StubStore, certificate: tuple[Path, Path]) -> None:
    reader = tls_reader(tls_store, lambda: ssl.create_default_context(cafile=certificate[0]))
    tls_store.script = [Exchange.answer, lambda it: it.cut(SIZE // 2), Exchange.reset]
    assert hashlib.sha256(read(reader)).digest() == hashlib.sha256(CONTENT).digest()
    assert read(reader, pieces=100) == CONTENT
    assert read(reader, 5, 10) == CONTENT[5:10]
    reader.close()


@pytest.mark.parametrize(("trusts", "host"), [(False, "localhost"), (True, "127.0.0.1")])
def test_a_certificate_of_nobody_known_or_of_another_host_is_refused(
    tls_store: StubStore, certificate: tuple[Path, Path], trusts: bool, host: str
) -> None:
    reader = tls_reader(
        tls_store, (lambda: ssl.create_default_context(cafile=certificate[0])) if trusts else None, host
    )
    error = refused(reader)
    assert "certificate" in error.message
    assert error.facts["reason"] == "wrong_answer"
    assert not tls_store.requests
    assert tls_store.connections == 1
    reader.close()


# --- requests ---


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "host/x", "http:///x", "http://h:99999/x", "http://h/a b", "http://h/a\r\nX: y", "http://h/ä"],
)
def test_a_url_that_makes_no_request_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ReadRequest.of(url)
    assert url not in str(caught.value)


def test_a_header_with_a_line_break_is_refused() -> None:
    with pytest.raises(InvalidInput):
        ReadRequest.of("http://host/x", {"X-A": "b\r\nX-C: d"})


def test_a_request_shows_no_secret() -> None:
    assert "secret" not in repr(ReadRequest.of("http://host/x?signature=secret", {"Authorization": "secret"}))
