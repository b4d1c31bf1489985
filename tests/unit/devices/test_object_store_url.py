import string
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.devices import normalize_url, same_place
from tensorkeep.devices.object_store_url import ObjectStorePlace, parse_object_store_url
from tensorkeep.errors import InvalidInput

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"

URLS = {
    "s3://bucket": "s3://bucket",
    "S3://bucket/": "s3://bucket",
    "s3://bucket/a//b/": "s3://bucket/a/b",
    "s3://bucket/%61%2Db": "s3://bucket/a-b",
    "s3://bucket?": "s3://bucket",
    "s3://bucket?region=us-east-1&endpoint=http://Example.ORG:80/": "s3://bucket?endpoint=http://example.org&region=us-east-1",
    "s3://b-1?style=path&endpoint=HTTPS://h:443": "s3://b-1?endpoint=https://h",
    "s3://b-1?endpoint=https%3A%2F%2Fh%3A9000%2Fs3%2F": "s3://b-1?endpoint=https://h:9000/s3",
    "s3://b-1?endpoint=http://[::1]:7480": "s3://b-1?endpoint=http://%5B::1%5D:7480",
    "s3://b-1?style=host&endpoint=https://h": "s3://b-1?endpoint=https://h&style=host",
    "s3://bucket?style=path": "s3://bucket?style=path",
    "s3://dotted.bucket?style=path": "s3://dotted.bucket",
    "s3://bucket?credentials=env:AWS": "s3://bucket",
    "s3://bucket?credentials=profile:my team": "s3://bucket?credentials=profile:my%20team",
    "s3://bucket?credentials=file:/etc/keys": "s3://bucket?credentials=file:/etc/keys",
    "gs://bucket/p?credentials=env:GOOGLE_APPLICATION_CREDENTIALS": "gs://bucket/p",
    "gs://bucket/p?endpoint=https://Storage.googleapis.com:443/": "gs://bucket/p",
    "az://box/p?account=acme&endpoint=https://acme.blob.core.windows.net/": "az://box/p?account=acme",
    "az://box/p?account=acme&endpoint=https://other.blob.core.windows.net": (
        "az://box/p?account=acme&endpoint=https://other.blob.core.windows.net"
    ),
    "az://box/p?credentials=env:K&account=acme": "az://box/p?account=acme&credentials=env:K",
}

REFUSED = [
    (f"s3://AKIAEXAMPLE:{SECRET}@bucket/p", "holds a key or a password before its bucket.*credentials=env:NAME"),
    (f"s3://AKIAEXAMPLE:{SECRET}/x@bucket", "holds a key or a password before its bucket"),
    (f"s3:AKIAEXAMPLE:{SECRET}@bucket", "is malformed: write for example s3://bucket"),
    (f"s3://bucket?access_key_id=AKIA&secret_access_key={SECRET}", "looks like a key.*credentials=profile:NAME"),
    (f"s3://bucket?{SECRET}", "looks like a key"),
    (f"s3://bucket?{SECRET.replace('KEY', '')}", "unknown option.*If it was a key"),
    (f"s3://bucket?{SECRET}=", "looks like a key"),
    (f"s3://bucket?X-Amz-Signature={SECRET}", "looks like a key or a signature"),
    (f"s3://bucket?credentials={SECRET}", "credentials that are no reference.*credentials=file:/path"),
    (f"s3://bucket?credentials=key:{SECRET}", "no reference"),
    (f"s3://bucket?endpoint=http://key:{SECRET}@host", "in its endpoint"),
    (f"s3://bucket?endpoint=http://host/?token={SECRET}", "malformed endpoint"),
    (f"s3://bucket/{SECRET}?regoin=us-east-1", "did you mean region"),
    (f"s3://bucket?region={SECRET}/+", "a region that can't be one"),
    (f"s3://bucket/p#{SECRET}", "malformed"),
    (f"s3://{SECRET}/+/bucket?style=odd", "unknown style"),
    ("s3://", "no valid bucket"),
    ("s3:bucket/p", "malformed"),
    ("s3://b", "no valid bucket"),
    ("s3://b..b", "no valid bucket"),
    ("s3://bucket/a b", "prefix with other characters"),
    ("s3://bucket/a/../b", "prefix with other characters"),
    ("s3://bucket/%2e%2e", "prefix with other characters"),
    ("s3://bucket?region=", "empty region"),
    ("s3://bucket?region=a&region=b", "gives region twice"),
    ("s3://bucket?endpoint=ftp://h", "malformed endpoint"),
    ("s3://bucket?endpoint=http://a..b", "malformed endpoint"),
    (f"s3://bucket?endpoint=http://{'a' * 64}.org", "malformed endpoint"),
    ("s3://bucket?endpoint=http://h/a/../b", "malformed endpoint"),
    ("s3://bucket?endpoint=http://h:99999", "malformed endpoint"),
    ("s3://bucket?endpoint=http://[x", "malformed endpoint"),
    ("gs://bucket?region=eu", "unknown option: known are credentials, endpoint"),
    ("gs://bucket?credentials=profile:me", "no reference"),
    ("gs://Bucket", "no valid bucket"),
    ("az://box", "needs the storage account.*account=NAME"),
    (f"az://box?account={SECRET}", "needs the storage account"),
    (f"az://box?account=acme&sas=sv=2024&sig={SECRET}", "looks like a key"),
]


@pytest.mark.parametrize(("text", "url"), URLS.items())
def test_an_object_stores_url_has_one_canonical_form(text: str, url: str) -> None:
    assert normalize_url(text) == url
    assert normalize_url(url) == url


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_a_bad_url_is_refused_with_the_remedy_and_without_repeating_what_may_be_a_key(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        normalize_url(text)
    shown = f"{caught.value} {caught.value!r} {caught.value.facts}"
    assert SECRET.replace("KEY", "") not in shown
    assert "AKIAEXAMPLE" not in shown


def test_a_url_of_another_kind_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidInput, match="unknown scheme 'postgresql'") as caught:
        normalize_url(f"postgresql://user:{SECRET}@host/db")
    assert SECRET not in f"{caught.value!r} {caught.value.facts}"


def test_credentials_region_and_style_do_not_tell_places_apart() -> None:
    base = normalize_url("s3://bucket/p?endpoint=http://h:1")
    for other in ("&region=x", "&credentials=env:OTHER", "&style=host"):
        assert same_place(base, normalize_url("s3://bucket/p?endpoint=http://h:1" + other))
    for other in ("s3://bucket/q?endpoint=http://h:1", "s3://bucket/p?endpoint=http://h:2", "s3://bucket/p", "/p"):
        assert not same_place(base, normalize_url(other))
    at_aws = normalize_url("s3://bucket/p?endpoint=https://s3.eu-central-1.amazonaws.com&region=eu-central-1")
    assert same_place("s3://bucket/p", at_aws)
    assert not same_place(normalize_url("az://box?account=one1"), normalize_url("az://box?account=two2"))


_names = st.text(string.ascii_letters + string.digits + "._=+@-", min_size=1).filter(lambda s: s not in (".", ".."))
_hosts = st.sampled_from(["h", "s3.example.org", "127.0.0.1", "[::1]"])


@given(
    bucket=st.from_regex(r"[a-z0-9][a-z0-9-]{1,20}[a-z0-9]", fullmatch=True),
    prefix=st.lists(_names, max_size=3),
    host=st.none() | _hosts,
    port=st.integers(1, 65535),
    style=st.none() | st.sampled_from(["path", "host"]),
    region=st.none() | st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True),
    credentials=st.sampled_from(["env:AWS", "env:MINE_2", "profile:my team", "file:/a b/%c?&=#", "file:/größe"]),
)
def test_whatever_a_place_is_its_url_says_it(
    bucket: str,
    prefix: list[str],
    host: str | None,
    port: int,
    style: str | None,
    region: str | None,
    credentials: str,
) -> None:
    place = ObjectStorePlace(
        scheme="s3",
        bucket=bucket,
        prefix="/".join(prefix),
        endpoint=None if host is None else f"http://{host}" + ("" if port == 80 else f":{port}"),
        region=region,
        style="host" if style == "host" else "path" if style and host is None else None,
        credentials=credentials,
    )
    assert place.url.isascii()
    assert parse_object_store_url(place.url) == place
    shuffled, _, query = place.url.partition("?")
    assert normalize_url(shuffled.upper()[:2] + shuffled[2:] + "/?" + "&".join(query.split("&")[::-1])) == place.url


@given(st.text())
def test_any_text_after_the_scheme_is_a_place_or_invalid_input(text: str) -> None:
    for scheme in ("s3:", "gs://", "az://box?account=acme&"):
        url = None
        with suppress(InvalidInput):
            url = normalize_url(scheme + text)
        assert url is None or normalize_url(url) == url
