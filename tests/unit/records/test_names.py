"""Names that users choose, and the grammar of revisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import InvalidInput
from tensorkeep.records.names import (
    ModelName,
    check_device_name,
    check_ref_name,
    is_version_prefix,
    parse_model_name,
    parse_revision,
)


def test_a_bare_name_lies_in_the_default_namespace() -> None:
    assert parse_model_name("llama") == ModelName("default", "llama")
    assert str(parse_model_name("llama")) == "default/llama"


def test_names_are_unique_without_regard_to_case_and_keep_their_spelling() -> None:
    assert parse_model_name("Acme/Llama").folded == parse_model_name("acme/llama").folded
    assert str(parse_model_name("Acme/Llama")) == "Acme/Llama"


@pytest.mark.parametrize(
    "text", ["acme/llama", "a/b", "_x/1.5-B_q", "A" * 96 + "/" + "b" * 96, "deadbee/model", "abcdef"]
)
def test_lawful_model_names(text: str) -> None:
    assert str(parse_model_name(text)).endswith(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        ".a",
        "-a",
        "a/.b",
        "a b",
        "a@b",
        "é",
        "a\n",
        "a" * 97,
        "..",
        "a/..",
        "a\0",
        "deadbee",
        "x/" + "0" * 40,
        "DEADBEEF",
    ],
)
def test_unlawful_model_names(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_model_name(text)


@pytest.mark.parametrize(
    ("text", "model", "revision"),
    [
        ("acme/llama", "acme/llama", None),
        ("llama@v1", "default/llama", "v1"),
        ("acme/llama@exp/lr-3", "acme/llama", "exp/lr-3"),
        ("llama@deadbeef", "default/llama", "deadbeef"),
    ],
)
def test_a_revision_stands_after_the_at(text: str, model: str, revision: str | None) -> None:
    parsed = parse_revision(text)
    assert (str(parsed.model), parsed.revision) == (model, revision)


def test_a_revision_prints_with_its_branch() -> None:
    assert str(parse_revision("llama")) == "default/llama@main"


@pytest.mark.parametrize("text", ["llama@", "@v1", "@", "a b@v1"])
def test_half_a_revision_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_revision(text)


@pytest.mark.parametrize(
    "text", ["main", "v1.0", "release/2026-01", "abcdef", "v" + "0" * 40, "a" * 200, "0" * 41, "g234567"]
)
def test_lawful_ref_names(text: str) -> None:
    assert check_ref_name(text, kind="tag") == text


@pytest.mark.parametrize("text", ["", "/", "a/", "/a", "a//b", ".a", "a/.b", "-a", "a b", "a@b", "a\n", "a" * 201, "é"])
def test_unlawful_ref_names(text: str) -> None:
    with pytest.raises(InvalidInput, match="branch"):
        check_ref_name(text, kind="branch")


@pytest.mark.parametrize("size", range(5, 43))
def test_names_of_7_to_40_hex_digits_are_refused_as_refs(size: int) -> None:
    for digit in "0aF":
        name = digit * size
        if 7 <= size <= 40:
            with pytest.raises(InvalidInput, match="version id"):
                check_ref_name(name, kind="tag")
        else:
            assert check_ref_name(name, kind="tag") == name


@given(st.text("0123456789abcdef", max_size=45))
def test_no_ref_can_be_taken_for_a_version(text: str) -> None:
    assert is_version_prefix(text) == (7 <= len(text) <= 40)
    if is_version_prefix(text):
        with pytest.raises(InvalidInput):
            check_ref_name(text, kind="branch")


def test_device_names_are_one_component() -> None:
    assert check_device_name("nvme0") == "nvme0"
    for text in ("", "a/b", ".a", "a b", "a" * 97, "a\n"):
        with pytest.raises(InvalidInput, match="device or zone"):
            check_device_name(text)
