"""The small values: canonical JSON, times, ulids, digests, dtypes, redundancy policies."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.errors import Format, InvalidInput
from tensorkeep.records.digest import parse_digest
from tensorkeep.records.dtype import DTYPES, NAMES_BY_NUMPY, find_dtype, get_dtype, packed_shape
from tensorkeep.records.json_text import decode_canonical, encode_canonical, format_time, parse_time
from tensorkeep.records.redundancy import ErasureCoded, Replicas, metadata_copies, parse_policy
from tensorkeep.records.ulid import is_ulid, make_ulid, parse_ulid, ulid_time

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    backwards = dict(reversed(value.items()))
    assert encode_canonical(value) == encode_canonical(backwards)


@given(json_values)
def test_canonical_json_is_a_fixed_point(value: object) -> None:
    data = encode_canonical(value)
    assert encode_canonical(decode_canonical(data, object, what="value")) == data


def test_canonical_json_is_sorted_without_spaces_in_utf8() -> None:
    assert (
        encode_canonical({"é": [1, None], "a": {"c": True, "b": "\n"}})
        == '{"a":{"b":"\\n","c":true},"é":[1,null]}'.encode()
    )


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidInput, match="Unicode"):
        encode_canonical({"message": "\udcff"})


@given(st.datetimes(timezones=st.timezones()))
def test_times_are_read_back_in_utc(moment: datetime) -> None:
    try:
        text = format_time(moment)
    except OverflowError:  # within a day of the first or last moment that there is
        return
    if moment.astimezone(UTC).year >= 1000:  # strftime does not pad years before
        assert parse_time(text) == moment.astimezone(UTC)  # a local time that clocks skip equals no UTC time


def test_times_are_written_with_six_digits() -> None:
    assert format_time(datetime(2026, 2, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))) == "2026-01-31T23:00:00.000000Z"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-31",
        "2026-01-31T23:59:59Z",
        "2026-01-31T23:59:59.000000",
        "2026-13-31T23:59:59.000000Z",
        "2026-01-31T23:59:59.000000Z\n",
        "\N{ARABIC-INDIC DIGIT TWO}026-01-31T23:59:59.000000Z",
    ],
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(Format):
        parse_time(text)


milliseconds = st.integers(0, 253_402_300_799_999)


@given(milliseconds, milliseconds, st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_ulids_sort_by_their_time(first: int, second: int, one: bytes, two: bytes) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    ulids = [make_ulid(epoch + timedelta(milliseconds=ms), random) for ms, random in ((first, one), (second, two))]
    assert all(is_ulid(ulid) for ulid in ulids)
    if abs(first - second) > 1:  # floats hold milliseconds to within one
        assert (ulids[0] < ulids[1]) == (first < second)


@given(milliseconds, st.binary(min_size=10, max_size=10))
def test_a_ulid_holds_its_moment(ms: int, random: bytes) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    assert abs(ulid_time(make_ulid(moment, random)) - moment) <= timedelta(milliseconds=1)


def test_a_ulid_is_that_of_the_specification() -> None:
    assert make_ulid(datetime.fromtimestamp(1469918176.385, UTC), bytes(10)) == "01ARYZ6S410000000000000000"
    assert make_ulid(datetime(1970, 1, 1, tzinfo=UTC), b"\xff" * 10) == "0000000000" + "Z" * 16


@pytest.mark.parametrize(
    "text", ["", "0" * 25, "0" * 27, "8" + "0" * 25, "0" * 25 + "I", "0" * 25 + "a", "0" * 26 + "\n"]
)
def test_what_is_no_ulid_is_refused(text: str) -> None:
    with pytest.raises(Format, match="store id"):
        parse_ulid(text, what="store id")


def test_a_ulid_past_the_calendar_is_a_format_error() -> None:
    with pytest.raises(Format, match="9999"):
        ulid_time("7" + "Z" * 25)


def test_digests_are_lower_case_hex_of_their_length() -> None:
    assert parse_digest("00ff" * 16) == b"\x00\xff" * 16
    assert parse_digest("ab" * 20, size=20) == b"\xab" * 20
    for text in ("", "ab" * 31, "AB" * 32, "ab" * 32 + "\n", "gg" * 32, "\N{ARABIC-INDIC DIGIT ZERO}" * 64):
        with pytest.raises(Format, match="digest"):
            parse_digest(text)


def test_every_dtype_of_safetensors_is_known() -> None:
    assert set(DTYPES) == {
        "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
        "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
    }  # fmt: skip


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_has_the_bits_of_the_numpy_type_that_holds_it(name: str) -> None:
    dtype = get_dtype(name)
    assert find_dtype(name) is dtype
    assert dtype.numpy.itemsize == max(1, dtype.bits // 8)


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if dtype.bits >= 8])
def test_arrays_from_memory_find_their_dtype(name: str) -> None:
    assert NAMES_BY_NUMPY[DTYPES[name].numpy] == name


def test_an_unknown_dtype_is_a_format_error() -> None:
    assert find_dtype("F128") is None
    with pytest.raises(Format, match="F128"):
        get_dtype("F128")


def test_packed_types_count_their_last_dimension_in_bytes() -> None:
    assert packed_shape((3, 4), get_dtype("F4")) == (3, 2)
    assert packed_shape((3, 4), get_dtype("F6_E2M3")) == (3, 3)
    assert packed_shape((3, 0), get_dtype("F4")) == (3, 0)
    assert packed_shape((3, 5), get_dtype("F32")) == (3, 5)
    assert packed_shape((), get_dtype("BF16")) == ()
    for shape in ((3, 5), ()):
        with pytest.raises(Format, match="whole bytes"):
            packed_shape(shape, get_dtype("F4"))


def test_bf16_and_fp8_have_the_numpy_types_of_ml_dtypes() -> None:
    assert get_dtype("BF16").numpy == np.dtype(ml_dtypes.bfloat16)
    assert get_dtype("F8_E4M3").numpy == np.dtype(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize(
    ("text", "policy", "losses", "slots"),
    [
        ("replicas=1", Replicas(1), 0, 1),
        ("replicas=3", Replicas(3), 2, 3),
        ("ec=4+2", ErasureCoded(4, 2), 2, 6),
        ("ec=1+1", ErasureCoded(1, 1), 1, 2),
    ],
)
def test_a_policy_says_how_many_losses_it_survives(text: str, policy: object, losses: int, slots: int) -> None:
    parsed = parse_policy(text)
    assert parsed == policy
    assert str(parsed) == text
    assert (parsed.losses, parsed.slots) == (losses, slots)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "replicas=0",
        "replicas=-1",
        "replicas=01",
        "replicas=1000",
        "replicas=2 ",
        "replicas=2\n",
        "ec=0+2",
        "ec=4+0",
        "ec=4",
        "ec=4-2",
        "Replicas=2",
        "replicas=\N{ARABIC-INDIC DIGIT TWO}",
        "replicas=1\N{ARABIC-INDIC DIGIT TWO}",
    ],
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="policy"):
        parse_policy(text)


@pytest.mark.parametrize(
    ("policy", "devices", "copies"),
    [
        ("replicas=1", 1, 1),
        ("replicas=1", 3, 2),
        ("replicas=2", 1, 1),
        ("replicas=3", 5, 3),
        ("replicas=3", 2, 2),
        ("ec=4+2", 6, 3),
    ],
)
def test_metadata_owes_one_more_copy_than_losses_and_two_where_two_devices_are(
    policy: str, devices: int, copies: int
) -> None:
    assert metadata_copies(parse_policy(policy), devices) == copies


def test_random_bytes_make_different_ulids() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    ulids = [make_ulid(moment, i.to_bytes(10, "big")) for i in range(100)]
    assert all(one < two for one, two in pairwise(ulids))
