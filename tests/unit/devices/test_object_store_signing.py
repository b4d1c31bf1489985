"""What is signed for S3, Google and Azure is what their servers will compute, checked without them.

Sources: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html,
https://cloud.google.com/storage/docs/authentication/canonical-requests,
https://learn.microsoft.com/rest/api/storageservices/create-service-sas.
"""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

import pytest

from tensorkeep.devices.object_store import ObjectStoreDevice
from tensorkeep.devices.object_store_url import parse_object_store_url
from tensorkeep.errors import PermissionDenied
from tensorkeep.runtime import Runtime
from tensorkeep.testing.device_contract import part
from tests.unit.devices.rsa import make_key

SECRET = "UNMISTAKABLESECRET"
S3_KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET}
ACCOUNT_KEY = base64.b64encode(b"k" * 64).decode()


def account(**changes: str) -> str:
    fields = {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "1",
        "private_key": make_key().pem(),
        "client_email": "robot@project.iam.gserviceaccount.com",
        "client_id": "1",
    }
    return json.dumps({**fields, **changes})


def open_device(url: str, environment: dict[str, str]) -> ObjectStoreDevice:
    return ObjectStoreDevice(parse_object_store_url(url), runtime=Runtime(environment=environment))


def signed_url(url: str, environment: dict[str, str]) -> SplitResult:
    return urlsplit(open_device(url, environment).sign("GET", part(1), 600).url)


def query_of(url: SplitResult) -> dict[str, str]:
    return dict(parse_qsl(url.query, strict_parsing=True))


def to_sign(url: SplitResult, signature: str, algorithm: str, scope: str, moment: str) -> bytes:
    """Return what is signed for a GET by the rules of AWS and of Google, which are the same but for names."""
    left = sorted((name, value) for name, value in parse_qsl(url.query) if name != signature)
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in left)
    request = "\n".join(["GET", url.path, query, f"host:{url.netloc}", "", "host", "UNSIGNED-PAYLOAD"])
    return "\n".join([algorithm, moment, scope, hashlib.sha256(request.encode()).hexdigest()]).encode()


# ---------------------------------------------------------------------------- S3


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("s3://bucket/p?region=eu-west-1", "bucket.s3.eu-west-1.amazonaws.com", "/p/"),
        ("s3://bucket/p?region=eu-west-1&style=path", "s3.eu-west-1.amazonaws.com", "/bucket/p/"),
        ("s3://dotted.bucket?region=eu-west-1", "s3.eu-west-1.amazonaws.com", "/dotted.bucket/"),
        ("s3://bucket?endpoint=http://h:9000&region=eu-west-1", "h:9000", "/bucket/"),
        ("s3://bucket?endpoint=https://h&style=host&region=eu-west-1", "bucket.h", "/"),
        ("s3://bucket/a@b=c?endpoint=https://h/s3&region=eu-west-1", "h", "/s3/bucket/a%40b%3Dc/"),
    ],
)
@pytest.mark.parametrize("token", ["", "session/token+="])
def test_s3_requests_are_signed_as_aws_says(url: str, host: str, path: str, token: str) -> None:
    found = signed_url(url, {**S3_KEYS, "AWS_SESSION_TOKEN": token})
    query = query_of(found)
    assert (found.netloc, found.path) == (host, path + part(1))
    assert query["X-Amz-Expires"] == "600"
    assert query.get("X-Amz-Security-Token", "") == token
    owner, _, scope = query["X-Amz-Credential"].partition("/")
    assert owner == "AKIAEXAMPLE"
    day, region, service, end = scope.split("/")
    assert (region, service, end) == ("eu-west-1", "s3", "aws4_request")
    key = f"AWS4{SECRET}".encode()
    for word in (day, region, service, end):
        key = hmac.digest(key, word.encode(), "sha256")
    message = to_sign(found, "X-Amz-Signature", "AWS4-HMAC-SHA256", scope, query["X-Amz-Date"])
    assert query["X-Amz-Signature"] == hmac.digest(key, message, "sha256").hex()


# ------------------------------------------------------------------------- Google


@pytest.mark.parametrize(
    ("endpoint", "host"), [("", "storage.googleapis.com"), ("&endpoint=http://127.0.0.1:4443", "127.0.0.1:4443")]
)
def test_google_requests_are_signed_with_the_service_accounts_key(endpoint: str, host: str) -> None:
    found = signed_url(f"gs://bucket/p?credentials=env:G{endpoint}", {"G": account()})
    query = query_of(found)
    assert (found.netloc, found.path) == (host, f"/bucket/p/{part(1)}")
    owner, _, scope = query["X-Goog-Credential"].partition("/")
    assert owner == "robot@project.iam.gserviceaccount.com"
    # Google's client signs for Google's own host, whatever the endpoint.
    for_google = found._replace(netloc="storage.googleapis.com")
    message = to_sign(for_google, "X-Goog-Signature", "GOOG4-RSA-SHA256", scope, query["X-Goog-Date"])
    assert make_key().signed(message, bytes.fromhex(query["X-Goog-Signature"]))
    assert not make_key().signed(message + b"x", bytes.fromhex(query["X-Goog-Signature"]))


def test_a_google_account_may_be_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "account.json"
    path.write_text(account())
    path.chmod(0o600)
    for url, environment in (
        ("gs://bucket", {"GOOGLE_APPLICATION_CREDENTIALS": str(path)}),
        (f"gs://bucket?credentials=file:{path}", {}),
    ):
        assert "X-Goog-Signature" in query_of(signed_url(url, environment))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (json.dumps({"type": "authorized_user", "refresh_token": SECRET}), "no service account's JSON"),
        (f"{{{SECRET}", "no service account's JSON"),
        (account(private_key=SECRET), "check what env:G holds"),
        ("", "the variable G is not set"),
    ],
)
def test_what_is_no_service_account_is_refused_without_repeating_it(value: str, says: str) -> None:
    with pytest.raises(PermissionDenied, match=says) as caught:
        signed_url("gs://bucket?credentials=env:G", {"G": value})
    assert SECRET not in f"{caught.value!r} {caught.value.facts} {caught.value.__cause__!r}"


# -------------------------------------------------------------------------- Azure


def test_azure_requests_carry_a_signature_of_the_accounts_key() -> None:
    found = signed_url("az://box/p?account=acme", {"AZURE_STORAGE_KEY": ACCOUNT_KEY})
    query = query_of(found)
    assert (found.netloc, found.path) == ("acme.blob.core.windows.net", f"/box/p/{part(1)}")
    assert (query["sp"], query["sr"]) == ("r", "b")
    fields = [
        query["sp"],
        query["st"],
        query["se"],
        f"/blob/acme/box/p/{part(1)}",
        "",
        "",
        "",
        query["sv"],
        query["sr"],
    ]
    message = "\n".join([*fields, "", "", "", "", "", "", ""]).encode()
    expected = hmac.digest(base64.b64decode(ACCOUNT_KEY), message, "sha256")
    assert base64.b64decode(query["sig"]) == expected


def test_azure_requests_carry_a_given_shared_access_signature(tmp_path: Path) -> None:
    path = tmp_path / "sas"
    path.write_text("?sv=2024-11-04&sp=rwdl&sig=abc%3D\n")
    path.chmod(0o600)
    found = signed_url(f"az://box/p?account=acme&endpoint=http://h:1/acme&credentials=file:{path}", {})
    assert found.geturl() == f"http://h:1/acme/box/p/{part(1)}?sv=2024-11-04&sp=rwdl&sig=abc%3D"


def test_an_azure_key_that_is_none_is_refused() -> None:
    with pytest.raises(PermissionDenied) as caught:
        signed_url("az://box?account=acme", {"AZURE_STORAGE_KEY": f"{SECRET}!"})
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
