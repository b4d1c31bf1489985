"""Sizes, rates and times: what people write and read."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.cli.units import (
    SIZE_LIMIT_BYTES,
    exact_duration,
    exact_size,
    human_count,
    human_duration,
    human_number,
    human_rate,
    human_size,
    parse_duration,
    parse_rate,
    parse_shape,
    parse_size,
    shape_text,
)
from tensorkeep.errors import InvalidInput

sizes = (
    st.integers(0, SIZE_LIMIT_BYTES)
    | st.integers(0, 4000).map(lambda n: n * 2**20)
    | st.integers(0, 9000).map(lambda n: n * 10**12)
)


@given(sizes)
def test_an_exact_size_is_parsed_back(size: int) -> None:
    assert parse_size(exact_size(size)) == size


@given(sizes)
def test_a_human_size_is_within_half_a_percent(size: int) -> None:
    shown = human_size(size)
    number, unit = shown.split(" ")
    parsed = float(number) * parse_size(f"1{unit}")
    assert abs(parsed - size) <= size * 0.005
    assert len(number.replace(".", "")) <= 3 + (unit == "EB")


@given(st.integers(0, 10**9))
def test_an_exact_duration_is_parsed_back(seconds: int) -> None:
    assert parse_duration(exact_duration(seconds)) == seconds


@given(st.floats(0, 10**9))
def test_a_human_duration_has_no_number_that_should_have_carried(seconds: float) -> None:
    shown = human_duration(seconds)
    words = shown.split(" ")
    limits = {"ms": 1000, "s": 60, "min": 60, "h": 48, "d": math.inf}
    assert all(
        float(number) < limits[unit] or shown == "60.0 s" for number, unit in zip(words[::2], words[1::2], strict=True)
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("7B", 7),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1.5 GB", 1_500_000_000),
        ("2TB", 2 * 10**12),
        ("2tb", 2 * 10**12),
        ("16MiB", 16 * 2**20),
        ("0.5KiB", 512),
        (" 3GiB ", 3 * 2**30),
    ],
)
def test_sizes_are_read_with_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "GB",
        "-1",
        "-1GB",
        "1e3",
        "5M",
        "1iB",
        "0.5B",
        "1.0001kB",
        "1 000",
        "1,5GB",
        "10EB",
        "nan",
        "٣GB",
        "1GBs",
        "1..5GB",
    ],
)
def test_what_is_no_size_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no part size") as caught:
        parse_size(text, what="part size")
    assert caught.value.facts == {"text": text}


def test_bits_are_not_taken_for_bytes() -> None:
    with pytest.raises(InvalidInput, match="Gb means bits; write GB"):
        parse_rate("3Gb/s")


@pytest.mark.parametrize(
    ("text", "rate"), [("3GB/s", 3 * 10**9), ("200MB/s", 2 * 10**8), ("16MiB", 2**24), ("1B/s", 1)]
)
def test_rates_are_read_per_second(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["0", "0MB/s", "3GB/h", "fast", "/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no bandwidth"):
        parse_rate(text, what="bandwidth")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("24h", 86400),
        ("0", 0),
        ("90", 90),
        ("1h30m", 5400),
        ("1h 30min", 5400),
        ("500ms", 0.5),
        ("7d", 604800),
        ("1.5h", 5400),
    ],
)
def test_durations_are_read_with_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1h30", "-1h", "1 hour", "1e3", "90 1h", "999999999999d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no grace"):
        parse_duration(text, what="grace")


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_500_000_000, "1.50 GB"),
        (999_500, "1.00 MB"),
        (123_456_789, "123 MB"),
    ],
)
def test_sizes_are_shown_with_three_digits(size: int, shown: str) -> None:
    assert human_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0021, "2.1 ms"),
        (0.35, "350 ms"),
        (12.34, "12.3 s"),
        (125, "2 min 05 s"),
        (3720, "1 h 02 min"),
        (273600, "3 d 04 h"),
        (math.inf, "never"),
    ],
)
def test_times_are_shown_in_fitting_units(seconds: float, shown: str) -> None:
    assert human_duration(seconds) == shown


def test_rates_and_counts_are_shown_with_their_nouns() -> None:
    assert human_rate(2.5e9) == "2.50 GB/s"
    assert [human_count(n, "part") for n in (0, 1, 12345)] == ["0 parts", "1 part", "12,345 parts"]
    assert human_count(2, "branch", "branches") == "2 branches"


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (22_713_216, "22.7 million (22,713,216)"),
        (1_100_048_384, "1.10 billion (1,100,048,384)"),
    ],
)
def test_large_numbers_are_shown_in_short_and_in_full(number: int, shown: str) -> None:
    assert human_number(number) == shown


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("4096x128", (4096, 128)),
        ("4096X*", (4096, None)),
        ("*", (None,)),
        ("7", (7,)),
        ("scalar", ()),
        (" 0x1 ", (0, 1)),
    ],
)
def test_shapes_are_read_with_an_x_between_sizes(text: str, shape: tuple[int | None, ...]) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "x", "4096x", "[4, 4]", "4,4", "-1", "4x**", "1e3", "٣"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no shape"):
        parse_shape(text)


def test_shapes_are_shown_in_brackets() -> None:
    assert [shape_text(shape) for shape in ((32, 64), (), None)] == ["[32, 64]", "[]", ""]
