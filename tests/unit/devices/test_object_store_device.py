"""What an object store's answers mean, and what becomes of a put whose answer is lost."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest

from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.devices.object_store_clients import RequestLimits
from tensorkeep.devices.object_store_url import parse_object_store_url
from tensorkeep.errors import (
    AlreadyExists,
    Capacity,
    InvalidInput,
    NotFound,
    PermissionDenied,
    TensorkeepError,
    Unavailable,
)
from tensorkeep.records.layout import MIB
from tensorkeep.runtime import ManualClock, Runtime
from tensorkeep.testing.device_contract import part
from tests.unit.devices.scripted_s3 import BUCKET, Request, ScriptedS3, Step, serve_s3

SECRET = "UNMISTAKABLE"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": f"{SECRET}ID", "AWS_SECRET_ACCESS_KEY": f"{SECRET}KEY"}
DATA = b"0123456789" * 1000
SHORT = RequestLimits(small_s=0.3, large_s=0.3)
"""For servers that never answer; others may take their time."""

Call = Callable[[ObjectStoreDevice], object]

READS: dict[str, Call] = {
    "read": lambda device: device.read(part(1)),
    "read_into": lambda device: device.read_into(part(1), 3, [memoryview(bytearray(5))]),
    "size_of": lambda device: device.size_of(part(1)),
    "iter_objects": lambda device: list(device.iter_objects("")),
    "read_identity": lambda device: device.read_identity(),
    "delete": lambda device: device.delete(part(1)),
    "prepare": lambda device: device.prepare(),
}
WRITES: dict[str, Call] = {
    "put": lambda device: device.put(part(2), [DATA]),
    "replace_identity": lambda device: device.replace_identity(b"{}"),
}


@pytest.fixture
def s3() -> Iterator[ScriptedS3]:
    with serve_s3() as s3:
        yield s3


def open_on(s3: ScriptedS3, step: Step | None = None) -> ObjectStoreDevice:
    url = f"s3://{BUCKET}/p?endpoint={s3.endpoint}"
    runtime = Runtime(environment=ENVIRONMENT, clock=ManualClock())
    return ObjectStoreDevice(
        parse_object_store_url(url), runtime=runtime, limits=SHORT if step is Request.stall else None
    )


def refuse(status: int, code: str = "", **headers: str) -> Step:
    return lambda request: request.refuse(status, code, **headers)


def assert_harmless(error: TensorkeepError) -> None:
    """Nothing that was secret is in an error, nor in what it hangs on."""
    shown = f"{error!r} {error} {error.to_dict()}"
    assert "SECRETKEY" not in shown
    assert SECRET not in shown
    assert error.__cause__ is None
    assert error.__context__ is None or isinstance(error.__context__, TensorkeepError)


# ------------------------------------------------------------- what answers mean

ANSWERS: list[tuple[Step, type[TensorkeepError], str, bool]] = [
    (refuse(403, "SignatureDoesNotMatch"), PermissionDenied, "does not accept the key", False),
    (refuse(403, "InvalidAccessKeyId"), PermissionDenied, "does not accept the key", False),
    (refuse(403, "RequestTimeTooSkewed"), PermissionDenied, r"clock .* Set the clock \(NTP\)", False),
    (refuse(400, "ExpiredToken"), PermissionDenied, "session token has expired", False),
    (refuse(403, "AccessDenied"), PermissionDenied, "may list, read, write and delete", False),
    (refuse(403), PermissionDenied, "check the key", False),
    (refuse(401), PermissionDenied, "does not accept the key", False),
    (refuse(403, "QuotaExceeded"), Capacity, "the store is full", False),
    (refuse(507), Capacity, "the store is full", False),
    (refuse(503, "SlowDown", Retry_After="7"), Unavailable, r"busy or broken \(503", True),
    (refuse(500), Unavailable, r"busy or broken \(500", True),
    (refuse(429), Unavailable, r"busy or broken \(429", True),
    (refuse(400, "RequestTimeout"), Unavailable, "busy or broken", True),
    (refuse(400, "XAmzContentSHA256Mismatch"), Unavailable, "damaged on their way", True),
    (refuse(400, "AuthorizationHeaderMalformed"), InvalidInput, "region=", False),
    (refuse(301, "PermanentRedirect"), InvalidInput, "region=", False),
    (refuse(405, "MethodNotAllowed"), Unavailable, r"was refused \(405", False),
    (Request.reset, Unavailable, "the connection broke", True),
    (Request.stall, Unavailable, "did not answer in time", True),
]


@pytest.mark.parametrize(("step", "kind", "says", "passing"), ANSWERS)
def test_an_answer_becomes_the_error_that_tells_what_to_do(
    s3: ScriptedS3, step: Step, kind: type[TensorkeepError], says: str, *, passing: bool
) -> None:
    s3.refuse_all(step)
    device = open_on(s3, step)
    for name, call in {**READS, **WRITES}.items():
        with pytest.raises(TensorkeepError) as caught:
            call(device)
        # An answer to HEAD has no body, so that its code is lost.
        if name != "size_of":
            assert type(caught.value) is kind, name
            assert caught.match(says)
            assert bool(caught.value.facts.get("passing")) is passing
        assert caught.value.facts["device"] == device.url
        assert_harmless(caught.value)


def test_nobody_listening_is_no_absence() -> None:
    with serve_s3() as s3:
        device = open_on(s3)
    for call in {**READS, **WRITES}.values():
        with pytest.raises(Unavailable, match="no connection to the store") as caught:
            call(device)
        assert caught.value.facts["passing"] is True


def test_an_absent_bucket_is_no_absent_object(s3: ScriptedS3) -> None:
    def absent(request: Request) -> None:
        request.refuse(404, "NoSuchBucket" if request.method != "HEAD" else "")

    s3.refuse_all(absent)
    device = open_on(s3)
    for name, call in {**READS, **WRITES}.items():
        with pytest.raises(NotFound if name == "prepare" else Unavailable, match=r"bucket of .* does not exist"):
            call(device)


def test_an_absent_object_costs_a_second_question_only_where_the_answer_does_not_say(s3: ScriptedS3) -> None:
    device = open_on(s3)
    with pytest.raises(NotFound):
        device.read(part(1))
    assert s3.requests == [f"GET p/{part(1)}"]
    with pytest.raises(NotFound):
        device.size_of(part(1))
    assert s3.requests[1:] == [f"HEAD p/{part(1)}", "GET "]
    assert device.read_identity() is None


def test_what_is_no_range_is_refused(s3: ScriptedS3) -> None:
    s3.objects[f"p/{part(1)}"] = DATA
    device = open_on(s3)

    def whole(request: Request) -> None:
        request.send(200, DATA, ETag='"1"', Last_Modified="Wed, 21 Oct 2015 07:28:00 GMT")

    def shifted(request: Request) -> None:
        span = f"bytes 4-8/{len(DATA)}"
        request.send(206, DATA[4:9], Content_Range=span, ETag='"1"', Last_Modified="Wed, 21 Oct 2015 07:28:00 GMT")

    for step in (whole, shifted):
        s3.then("GET", step)
        with pytest.raises(TensorkeepError):
            device.read_into(part(1), 3, [memoryview(bytearray(5))])
    target = bytearray(5)
    device.read_into(part(1), 3, [memoryview(target)])
    assert target == DATA[3:8]


# --------------------------------------------------------- puts with lost answers


def keep_then(step: Step) -> Step:
    def do(request: Request) -> None:
        request.keep()
        step(request)

    return do


UNCLEAR = {
    "reset": Request.reset,
    "no answer": Request.stall,
    "500": refuse(500, "InternalError"),
    "503": refuse(503, "SlowDown"),
    "conflict": refuse(409, "OperationAborted"),
    "success without an ETag": lambda request: request.send(200),
}


@pytest.mark.parametrize("step", UNCLEAR.values(), ids=UNCLEAR.keys())
def test_a_put_without_a_clear_answer_is_a_success_if_the_bytes_are_there(s3: ScriptedS3, step: Step) -> None:
    s3.then("PUT", keep_then(step), keep_then(step))
    device = open_on(s3, step)
    device.put(part(2), [DATA[:7], b"", DATA[7:]])
    device.replace_identity(b"{}")
    assert device.read(part(2)) == DATA
    assert device.read_identity() == b"{}"
    assert sum(request.startswith("PUT") for request in s3.requests) == 2


@pytest.mark.parametrize("step", UNCLEAR.values(), ids=UNCLEAR.keys())
@pytest.mark.parametrize("left", [None, DATA[:-1], DATA[:-1] + b"X"], ids=["absent", "shorter", "other"])
def test_a_put_without_a_clear_answer_fails_if_other_bytes_are_there(
    s3: ScriptedS3, step: Step, left: bytes | None
) -> None:
    def do(request: Request) -> None:
        if left is not None:
            s3.objects[request.key] = left
        step(request)

    s3.then("PUT", do)
    with pytest.raises(Unavailable) as caught:
        open_on(s3, step).put(part(2), [DATA])
    assert caught.value.facts["passing"] is True
    assert caught.value.facts["object"] == part(2)
    assert_harmless(caught.value)


@pytest.mark.parametrize("right", [True, False])
def test_a_large_put_without_an_answer_is_read_back_piece_by_piece(s3: ScriptedS3, *, right: bool) -> None:
    data = bytes(4 * MIB) + bytes(range(256)) * (4 * MIB // 256) + b"end"

    def do(request: Request) -> None:
        s3.objects[request.key] = data if right else data[:-1] + b"X"
        request.reset()

    s3.then("PUT", do)
    with nullcontext() if right else pytest.raises(Unavailable):
        open_on(s3).put(part(2), [data[:MIB], data[MIB:]])
    assert [request.split()[0] for request in s3.requests] == ["PUT", "HEAD", "GET", "GET", "GET"]


def test_a_put_that_can_not_be_read_back_fails_as_it_failed(s3: ScriptedS3) -> None:
    s3.then("PUT", keep_then(refuse(500)))
    s3.then("HEAD", refuse(503))
    with pytest.raises(Unavailable, match="500"):
        open_on(s3).put(part(2), [DATA])


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "BadDigest"), (507, ""), (429, "SlowDown")])
def test_a_put_that_was_clearly_refused_is_not_read_back(s3: ScriptedS3, status: int, code: str) -> None:
    s3.then("PUT", refuse(status, code))
    with pytest.raises(TensorkeepError):
        open_on(s3).put(part(2), [DATA])
    assert s3.requests == [f"PUT p/{part(2)}"]


def test_a_store_without_conditional_puts_is_written_without_them(s3: ScriptedS3) -> None:
    s3.then("PUT", refuse(501, "NotImplemented"))
    device = open_on(s3)
    device.put(part(2), [DATA])
    device.put(part(3), [DATA])
    assert s3.requests == [f"PUT p/{part(2)}"] * 2 + [f"PUT p/{part(3)}"]
    assert device.read(part(2)) == device.read(part(3)) == DATA


def test_a_taken_name_is_refused_without_reading_it(s3: ScriptedS3) -> None:
    s3.objects[f"p/{part(2)}"] = DATA
    with pytest.raises(AlreadyExists):
        open_on(s3).put(part(2), [DATA])
    assert s3.requests == [f"PUT p/{part(2)}"]


# ------------------------------------------------------------------------- others


def test_only_old_scratch_is_swept(s3: ScriptedS3) -> None:
    s3.objects.update({"p/tmp/bandwidth-1": b"x", f"p/{part(1)}": DATA, "other/tmp/x": b"x"})
    clock = ManualClock()  # years after the objects of this server
    url = parse_object_store_url(f"s3://{BUCKET}/p?endpoint={s3.endpoint}")
    device = ObjectStoreDevice(url, runtime=Runtime(environment=ENVIRONMENT, clock=clock))
    assert device.sweep_unfinished(100 * 365 * 86400) == 0
    assert device.sweep_unfinished(0) == 1
    assert sorted(s3.objects) == ["other/tmp/x", f"p/{part(1)}"]


def test_credentials_are_looked_up_again_after_a_refusal(s3: ScriptedS3) -> None:
    environment: dict[str, str] = {}
    url = parse_object_store_url(f"s3://{BUCKET}/p?endpoint={s3.endpoint}")
    device = ObjectStoreDevice(url, runtime=Runtime(environment=environment))
    with pytest.raises(PermissionDenied, match="AWS_ACCESS_KEY_ID is not set"):
        device.prepare()
    environment.update({"AWS_ACCESS_KEY_ID": "first", "AWS_SECRET_ACCESS_KEY": "k"})
    seen: list[str] = []

    def expired(request: Request) -> None:
        seen.append(request.handler.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
        request.refuse(403, "ExpiredToken")

    def fine(request: Request) -> None:
        seen.append(request.handler.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
        request.answer()

    s3.then("GET", expired, fine)
    with pytest.raises(PermissionDenied, match="expired"):
        device.prepare()
    environment["AWS_ACCESS_KEY_ID"] = "second"
    device.prepare()
    assert seen == ["first", "second"]


def test_variables_of_other_programs_change_nothing(s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_SESSION_TOKEN": "stray",
        "AWS_UNSIGNED_PAYLOAD": "true",
    }.items():
        monkeypatch.setenv(name, value)
    heads: list[dict[str, str]] = []

    def look(request: Request) -> None:
        heads.append({name.lower(): value for name, value in request.handler.headers.items()})
        request.answer()

    s3.then("PUT", look)
    open_on(s3).put(part(2), [DATA])
    assert f"Credential={SECRET}ID/" in heads[0]["authorization"]
    assert "x-amz-security-token" not in heads[0]
    assert len(heads[0]["x-amz-content-sha256"]) == 64


def test_a_signed_request_is_used_again_while_it_is_fresh_and_its_repr_shows_nothing() -> None:
    clock = ManualClock()
    url = parse_object_store_url(f"s3://{BUCKET}/p?endpoint=http://127.0.0.1:1")
    device = ObjectStoreDevice(url, runtime=Runtime(environment=ENVIRONMENT, clock=clock))
    first = device.sign("GET", part(1))
    assert f"/{BUCKET}/p/{part(1)}?" in first.url
    assert "X-Amz-Signature=" in first.url
    assert "Amz" not in repr(first)
    assert SECRET not in repr(first)
    assert device.sign("GET", part(1)) is first
    assert device.sign("PUT", part(1)) is not first
    assert "X-Amz-Expires=60&" in device.sign("GET", part(1), 60).url
    clock.advance(1700)
    assert device.sign("GET", part(1)) is first
    clock.advance(200)
    assert device.sign("GET", part(1)) is not first
    assert device.read_request(part(1)).endpoint.port == 1
    with pytest.raises(InvalidInput):
        device.sign("GET", "../x")


_FORKS = """
import os, sys
from tensorkeep.devices import innermost, open_device
from tensorkeep.errors import Unavailable
from tensorkeep.runtime import Runtime

environment = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
device = innermost(open_device(sys.argv[1], runtime=Runtime(environment=environment)))
for use in sys.argv[2:]:
    device.sign("GET", "journal/x") if use == "sign" else device.put("journal/x", [b"content"])
    child = os.fork()
    if child == 0:
        assert device.read("journal/x") == b"content"
        for call in (lambda: device.size_of("journal/x"), lambda: device.put("journal/y", [b""]), device.prepare):
            try:
                call()
            except Unavailable as error:
                assert "forked" in error.message
            else:
                os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, use
"""


@pytest.mark.parametrize("use", ["put", "sign"])
def test_a_forked_process_reads_and_refuses_what_would_hang(s3: ScriptedS3, use: str) -> None:
    s3.objects["p/journal/x"] = b"content"
    s3.then("PUT", lambda request: request.send(200, ETag='"1"'))
    url = f"s3://{BUCKET}/p?endpoint={s3.endpoint}"
    done = subprocess.run(
        [sys.executable, "-c", _FORKS, url, use], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
