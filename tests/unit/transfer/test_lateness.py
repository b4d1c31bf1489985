"""When a read is late, and when it is worth taking over what waits."""

import pytest

from tensorkeep.transfer.lateness import is_late, is_worth


@pytest.mark.parametrize(
    ("elapsed", "usual", "elsewhere", "late"),
    [
        (0.15, None, 0.01, False),  # busy machines stall that long
        (0.25, None, 0.01, True),
        (0.25, 0.5, 0.01, True),  # always slow, and the other is not
        (0.6, None, 0.2, False),  # the other would hardly be sooner
        (0.9, None, 0.2, True),
        (1.0, None, None, False),
        (3.1, None, None, True),
        (3.1, 1.0, None, False),
        (4.1, 1.0, None, True),
    ],
)
def test_late_is_long_after_what_others_take(
    elapsed: float, usual: float | None, elsewhere: float | None, late: bool
) -> None:
    assert is_late(elapsed, usual, elsewhere) is late


@pytest.mark.parametrize(
    ("left", "rate", "elsewhere", "worth"),
    [
        (100, 1000.0, 0.01, False),
        (1000, 1000.0, 0.01, True),
        (1000, 1000.0, 0.6, False),
        (1000, None, None, True),
        (0, 1000.0, None, False),
    ],
)
def test_the_last_reads_are_left_to_whoever_has_them(
    left: int, rate: float | None, elsewhere: float | None, worth: bool
) -> None:
    assert is_worth(left, rate, elsewhere) is worth
