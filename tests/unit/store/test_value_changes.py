"""How far values moved, held to Python's own numbers: of any dtype, any bytes, block by block."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorkeep.records.dtype import DTYPES
from tensorkeep.store.reports import ComparedUnit, TensorStats
from tensorkeep.store.value_changes import ItemChanges, ValueChanges, differing_bits, is_numeric, wide_dtype

NUMERIC = sorted(name for name, dtype in DTYPES.items() if dtype.bits >= 8)
INTEGERS = ["BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"]
Array = npt.NDArray[Any]


def measure(old: Array, new: Array, *, cut: int = 0) -> TensorStats:
    changes = ValueChanges(old.dtype, new.dtype)
    for part in (slice(cut), slice(cut, None)):
        changes.add(old[part], new[part])
    return changes.finish()


def arrays(name: str) -> st.SearchStrategy[Array]:
    """Arrays of 7 elements of any bytes; few values are often repeated, so that some elements do not change."""
    dtype = DTYPES[name].numpy
    words = st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize)
    some = st.sampled_from([bytes(dtype.itemsize), bytes([1]) + bytes(dtype.itemsize - 1)])
    return st.lists(words | some, min_size=7, max_size=7).map(lambda found: np.frombuffer(b"".join(found), dtype))


def as_python(array: Array) -> list[Any]:
    """Return the elements as Python's numbers."""
    if array.dtype.kind == "b":
        return [int(byte != 0) for byte in array.view(np.uint8).tolist()]
    if array.dtype.kind in "iuc":
        return list(array.tolist())
    return [float(value) for value in array]


def is_finite(value: Any) -> bool:
    return math.isfinite(value.real) and math.isfinite(value.imag)


def check(old: Array, new: Array, found: TensorStats, changed: list[bool], number: Callable[[Any], Any]) -> None:
    pairs = [(a, b) for a, b, moved in zip(as_python(old), as_python(new), changed, strict=True) if moved]
    finite = [(number(a), number(b)) for a, b in pairs if is_finite(a) and is_finite(b)]
    assert (found.compared, found.changed, found.not_finite) == (old.size, len(pairs), len(pairs) - len(finite))
    apart = [abs(b - a) for a, b in finite]
    assert found.max_change == pytest.approx(max(apart, default=0), rel=1e-15, abs=0)
    assert found.l2_change == pytest.approx(math.hypot(*apart), rel=1e-13, abs=0)


@pytest.mark.parametrize("name", NUMERIC)
def test_any_bytes_of_a_dtype_are_compared_as_python_compares_them(name: str) -> None:
    @given(old=arrays(name), new=arrays(name), cut=st.integers(0, 7))
    def run(old: Array, new: Array, cut: int) -> None:
        size = old.dtype.itemsize
        raw = old.tobytes(), new.tobytes()
        changed = [raw[0][n * size : n * size + size] != raw[1][n * size : n * size + size] for n in range(old.size)]
        check(old, new, measure(old, new, cut=cut), changed, lambda value: value)

    run()


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_exact(name: str) -> None:
    @given(old=arrays(name), new=arrays(name))
    def run(old: Array, new: Array) -> None:
        apart = [abs(b - a) for a, b in zip(as_python(old), as_python(new), strict=True)]
        found = measure(old, new)
        assert found.max_change == max(apart)
        assert isinstance(found.max_change, int)
        assert found.l2_change == math.sqrt(sum(difference**2 for difference in apart))

    run()


def test_the_largest_integers_are_exact() -> None:
    low, high = -(2**63), 2**63 - 1
    found = measure(np.array([low, high, 5]), np.array([high, low, 5]))
    assert (found.max_change, found.changed) == (2**64 - 1, 2)
    assert found.l2_change == math.sqrt(2 * (2**64 - 1) ** 2)
    unsigned = measure(np.array([0, 2**64 - 1], np.uint64), np.array([2**64 - 1, 2**64 - 1], np.uint64))
    assert unsigned.max_change == 2**64 - 1


@given(old=arrays("F64"), new=arrays("F64"))
def test_a_norm_neither_overflows_nor_vanishes(old: Array, new: Array) -> None:
    finite = np.isfinite(old) & np.isfinite(new)
    old, new = old[finite] / 4, new[finite] / 4  # no difference overflows
    squares = sum((Fraction(b - a) ** 2 for a, b in zip(old.tolist(), new.tolist(), strict=True)), Fraction(0))
    found = measure(old, new)
    assert found.l2_change is not None
    if squares:
        assert abs(Fraction(found.l2_change) ** 2 / squares - 1) < Fraction(1, 10**12) or squares < Fraction(1, 2**2000)
    else:
        assert found.l2_change == 0


@pytest.mark.parametrize(
    ("old", "new"), [("F16", "F32"), ("BF16", "F16"), ("I32", "I64"), ("U8", "F8_E5M2"), ("F32", "C64")]
)
def test_two_dtypes_are_compared_by_value(old: str, new: str) -> None:
    @given(was=arrays(old), now=arrays(new))
    def run(was: Array, now: Array) -> None:
        values = list(zip(as_python(was), as_python(now), strict=True))
        changed = [a != b and not (a != a and b != b) for a, b in values]
        check(was, now, measure(was, now), changed, lambda value: value)

    run()


def test_equal_values_of_two_dtypes_are_no_changes() -> None:
    values = np.array([1, -2.5, 0, np.nan, np.inf], np.float16)
    assert measure(values, values.astype(np.float32)) == TensorStats("elements", 5, 0, 0, 0.0)
    assert measure(np.array([True, False]), np.array([1, 0], np.uint64)).changed == 0


@pytest.mark.parametrize(
    ("old", "new", "wide"),
    [
        ("BOOL", "BOOL", "int64"),
        ("I8", "U32", "int64"),
        ("U64", "U8", "uint64"),
        ("U64", "BOOL", "uint64"),
        ("U64", "I8", "float64"),
        ("I64", "F16", "float64"),
        ("BF16", "F8_E4M3", "float64"),
        ("C64", "I8", "complex128"),
    ],
)
def test_two_dtypes_meet_in_one_that_holds_both(old: str, new: str, wide: str) -> None:
    for pair in ((old, new), (new, old)):
        assert wide_dtype(*(DTYPES[name].numpy for name in pair)).name == wide


def test_nan_and_infinity_are_counted_and_left_out() -> None:
    nan, inf = math.nan, math.inf
    old = np.array([1, nan, inf, nan, inf, 2, 3], np.float32)
    new = np.array([nan, nan, inf, 1, -inf, 4, 3], np.float32)
    assert measure(old, new) == TensorStats("elements", 7, 4, 2.0, 2.0, 3)


def test_another_nan_and_another_zero_are_changes_of_bits_only() -> None:
    old = np.array([0x7FC00000, 0x00000000], np.uint32).view(np.float32)
    new = np.array([0x7FC00001, 0x80000000], np.uint32).view(np.float32)
    assert measure(old, new) == TensorStats("elements", 2, 2, 0, 0.0, 1)


def test_a_norm_over_the_largest_float_is_infinite_though_no_difference_is() -> None:
    changes = ValueChanges(np.dtype(np.float64), np.dtype(np.float64))
    changes.add(np.zeros(9), np.full(9, 1e308))
    found = changes.finish()
    assert (found.max_change, found.l2_change, found.not_finite) == (1e308, math.inf, 0)


@pytest.mark.parametrize("other", [np.float64, np.complex64])
def test_signalling_nans_are_compared_without_a_warning(other: type) -> None:
    signalling = np.full(4, 0x7F800001, np.uint32).view(np.float32)
    found = measure(signalling, np.ones(4, other))
    assert (found.changed, found.not_finite, found.max_change) == (4, 4, 0)
    assert measure(np.ones(2, np.complex64), np.repeat(signalling, 1).view(np.complex64)).not_finite == 2


def test_finite_numbers_may_be_infinitely_far_apart() -> None:
    found = measure(np.array([1e308]), np.array([-1e308]))
    assert (found.max_change, found.l2_change, found.not_finite) == (math.inf, math.inf, 0)


def test_a_long_array_is_compared_as_numpy_compares_it_at_once() -> None:
    random = np.random.default_rng(7)
    old = random.normal(size=1_000_003).astype(np.float32)
    new = old + random.choice([0, 1e-3], size=old.size, p=[0.9, 0.1]).astype(np.float32)
    apart = new.astype(np.float64) - old.astype(np.float64)
    found = measure(old, new, cut=400_001)
    assert found.changed == np.count_nonzero(old != new)
    assert found.max_change == float(np.abs(apart).max())
    assert found.l2_change == pytest.approx(np.linalg.norm(apart), rel=1e-13)
    assert found.changed_fraction == found.changed / 1_000_003


def test_elements_of_sixteen_bytes_differ_in_any_of_them() -> None:
    old = np.array([1 + 2j, 3 + 4j, 5])
    assert differing_bits(old, np.array([1 + 2j, 3 + 5j, 6])).tolist() == [False, True, True]


def test_only_numbers_are_numeric() -> None:
    assert all(is_numeric(dtype.numpy) for dtype in DTYPES.values())
    assert is_numeric(np.dtype(">f4"))
    assert is_numeric(np.dtype(ml_dtypes.bfloat16))
    assert not any(is_numeric(np.dtype(name)) for name in ("V8", "S4", "M8[s]", "m8[s]", "U2"))


def test_items_are_counted_where_there_are_no_numbers() -> None:
    old, new = np.array([[1, 2, 3, 4]], np.uint8), np.array([[1, 0, 3, 4]], np.uint8)
    cases: list[tuple[ComparedUnit, int, int]] = [("bytes", 1, 5), ("blocks", 2, 3)]
    for unit, size, compared in cases:
        changes = ItemChanges(unit, size)
        changes.add(old, new)
        changes.add(np.full(size, 5, np.uint8), np.full(size, 5, np.uint8))
        assert changes.finish("why") == TensorStats(unit, compared, 1, None, None, 0, "why")


def test_times_are_elements_without_numbers() -> None:
    changes = ItemChanges("elements", 8)
    changes.add(np.array(["2026-01-01", "NaT"], "M8[s]"), np.array(["2026-01-02", "NaT"], "M8[s]"))
    assert changes.finish() == TensorStats("elements", 2, 1, None, None)
