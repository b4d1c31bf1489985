from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.devices import LocalDevice, MemoryDevice, RateLimitedDevice, local_path, normalize_url, open_device
from tensorkeep.errors import InvalidInput
from tensorkeep.runtime import Runtime


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("/mnt/x", "file:///mnt/x"),
        ("/mnt//x/./y/", "file:///mnt/x/y"),
        ("//mnt/x", "file:///mnt/x"),
        ("/", "file:///"),
        ("file:///mnt/x", "file:///mnt/x"),
        ("FILE:///mnt/x/", "file:///mnt/x"),
        ("file:/mnt/x", "file:///mnt/x"),
        ("file://localhost/mnt/x", "file:///mnt/x"),
        ("/mnt/my disk", "file:///mnt/my%20disk"),
        ("file:///mnt/my%20disk", "file:///mnt/my%20disk"),
        ("file:///mnt/my disk", "file:///mnt/my%20disk"),
        ("/mnt/größe", "file:///mnt/gr%C3%B6%C3%9Fe"),
        ("file:///mnt/größe", "file:///mnt/gr%C3%B6%C3%9Fe"),
        ("file:///mnt/%67r%c3%b6%C3%9Fe", "file:///mnt/gr%C3%B6%C3%9Fe"),
        ("/mnt/100%", "file:///mnt/100%25"),
        ("/mnt/a?b#c", "file:///mnt/a%3Fb%23c"),
        ("/mnt/\udcff", "file:///mnt/%FF"),
        ("memory://trial", "memory://trial"),
    ],
)
def test_a_url_has_one_canonical_form(text: str, url: str) -> None:
    assert normalize_url(text) == url
    assert normalize_url(url) == url


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_every_absolute_path_survives_its_url(text: str) -> None:
    path = "/mnt/" + text.replace("..", "__")
    url = normalize_url(path)
    assert url.isascii()
    assert normalize_url(local_path(url)) == url
    assert Path(local_path(url)) == Path(path)


def test_dots_are_resolved_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    assert normalize_url(f"{tmp_path}/link/../x") == f"file://{tmp_path}/far/x"
    assert normalize_url(f"{tmp_path}/link/x") == f"file://{tmp_path}/link/x"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nfs://host/x", "unknown scheme 'nfs': known are file://, s3://, gs://, az://, memory://"),
        ("http://host/x", "unknown scheme 'http'"),
        ("disk/one", "is not absolute.*: write /.*/disk/one"),
        ("./disk", "is not absolute.*: write /.*/disk"),
        ("file:disk", "is not absolute"),
        ("", "is not absolute"),
        ("file://mnt/x", "names the host 'mnt'.*file:///mnt/x"),
        ("file://localhost", "is not absolute"),
        ("file:///mnt/a?b", "malformed"),
        ("file:///mnt/a#b", "malformed"),
        ("file:///mnt/100%", "malformed"),
        ("file:///mnt/%00", "NUL"),
        ("memory://", "names no memory"),
        ("memory:/x", "names no memory"),
        ("memory://a/b", "names no memory"),
    ],
)
def test_what_names_no_device_is_refused_with_the_right_form(text: str, says: str) -> None:
    for call in (normalize_url, lambda text: open_device(text, runtime=Runtime())):
        with pytest.raises(InvalidInput, match=says):
            call(text)


def test_the_scheme_chooses_the_device(tmp_path: Path) -> None:
    local = open_device(f"{tmp_path}/a b", runtime=Runtime())
    memory = open_device("memory://opening", runtime=Runtime())
    limited = open_device("memory://opening", runtime=Runtime(), rate_limit_bytes_per_s=1000)
    assert isinstance(local, LocalDevice)
    assert isinstance(memory, MemoryDevice)
    assert isinstance(limited, RateLimitedDevice)
    assert local.url == f"file://{tmp_path}/a%20b"
    local.prepare()
    assert (tmp_path / "a b" / "parts" / "ff").is_dir()


def test_opening_touches_no_disk(tmp_path: Path) -> None:
    open_device(f"{tmp_path}/disk", runtime=Runtime())
    assert not (tmp_path / "disk").exists()


def test_a_relative_path_makes_no_local_device() -> None:
    with pytest.raises(InvalidInput):
        LocalDevice("disk", runtime=Runtime(), url="file:///disk")
