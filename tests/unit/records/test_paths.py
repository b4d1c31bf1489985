"""Paths of files in a version: what is refused, and what people really have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import Format
from tensorkeep.records.paths import check_path, check_paths


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "a/b/c.safetensors",
        "poids/été.bin",
        "模型/权重.bin",
        ".gitattributes",
        "a b",
        "..a",
        "a..",
        "...",
        "a" * 255,
        "é" * 127,
    ],
)
def test_people_have_paths_like_this(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("..", "component"),
        ("../a", "component"),
        ("a/../b", "component"),
        ("a/..", "component"),
        ("./a", "component"),
        ("a/./b", "component"),
        ("a//b", "component"),
        ("a/", "component"),
        ("a\0b", "NUL"),
        ("a\\b", "backslash"),
        ("a\udcff", "UTF-8"),
        ("a" * 256, "255 bytes"),
        ("é" * 128, "255 bytes"),
        ("/".join(["a" * 200] * 21), "4096 bytes"),
    ],
)
def test_unsafe_paths_are_refused(path: str, message: str) -> None:
    with pytest.raises(Format, match=message):
        check_path(path)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a", "a"], "same"),
        (["A.bin", "a.bin"], "same"),
        (["stra\N{LATIN SMALL LETTER SHARP S}e", "STRASSE"], "same"),
        (["a", "a/b"], "folder"),
        (["a/b", "a"], "folder"),
        (["a/b/c", "A/B"], "folder"),
        (["ok", "../x"], "component"),
    ],
)
def test_paths_that_can_not_lie_in_one_folder_everywhere_are_refused(paths: list[str], message: str) -> None:
    with pytest.raises(Format, match=message):
        check_paths(paths)


def test_paths_of_a_hub_folder_are_lawful() -> None:
    check_paths(["config.json", "model.safetensors", "onnx/model.onnx", "onnx/config.json", "1_Pooling/config.json"])


@given(st.text(max_size=20))
def test_a_lawful_path_stays_inside_its_folder(path: str) -> None:
    try:
        check_path(path)
    except Format:
        return
    parts = path.split("/")
    assert not path.startswith("/")
    assert all(part not in ("", ".", "..") for part in parts)
