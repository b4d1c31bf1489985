"""Whatever bytes come from files, devices, servers and users, each reader believes them or raises a typed error.

Here a few hundred inputs for each; `test_soak.py` gives the same targets a million.
"""

import random
from collections.abc import Iterator
from functools import cache
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.examples import EXAMPLES
from tests.fuzz.hdf5_server import close_probe
from tests.fuzz.mutator import Mutator
from tests.fuzz.planted import PLANTED, PLANTED_EXAMPLE
from tests.fuzz.running import Crash, Tally, fuzz, run_one
from tests.fuzz.targets import TARGETS

INPUTS = 320
"""Of each target, by the seeded mutator; Hypothesis adds its own."""

BELIEVED, ONE_REASON = 0.02, 0.7
"""The least share of inputs that a target believes, and the most that one and the same check refuses: a fuzz that the first check
stops tests nothing."""

ONE_CHECK = {
    "identity",
    "footer",
    "parts index",
    "policy",
    "ulid",
    "values",
    "stat cache",
    "learned rates",
    "store note",
}
"""One check refuses nearly all: a seal, of which the targets "inside" are rid, or one regular expression that is all there is; or
there is one answer to all that can't be read."""


@pytest.fixture(scope="module", autouse=True)
def probe() -> Iterator[None]:
    """The process that reads HDF5 files ends with the tests of this module."""
    yield
    close_probe()


@cache
def examples_of(name: str) -> list[bytes]:
    return EXAMPLES[name]()


def test_every_target_has_examples_and_they_are_believed() -> None:
    assert EXAMPLES.keys() == TARGETS.keys()
    for name, target in TARGETS.items():
        tally = fuzz(target, examples_of(name))
        assert tally.believed > 0, (name, tally)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_examples_are_believed_or_refused_for_many_reasons(name: str) -> None:
    tally = fuzz(TARGETS[name], islice(Mutator(examples_of(name), random.Random(name)), INPUTS))
    assert tally.inputs == INPUTS
    if name in ONE_CHECK:
        return
    assert tally.believed > INPUTS * BELIEVED, tally
    assert tally.commonest[1] < INPUTS * ONE_REASON, tally


def test_these_are_ten_thousand_inputs() -> None:
    assert INPUTS * len(TARGETS) >= 10_000


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_no_bytes_crash_a_reader(name: str, data: st.DataObject) -> None:
    """Hypothesis makes any bytes, or puts any into an example."""
    example = data.draw(st.sampled_from(examples_of(name)))
    start = data.draw(st.integers(0, len(example)))
    end = data.draw(st.integers(start, min(start + 20, len(example))))
    put = data.draw(st.binary(max_size=40))
    whole = data.draw(st.booleans())
    run_one(TARGETS[name], put if whole else example[:start] + put + example[end:], Tally())


def test_a_planted_bug_is_found_and_its_input_is_printed() -> None:
    with pytest.raises(Crash, match=r"crashed with IndexError: .* bytes 54[0-9a-f]*$"):
        fuzz(PLANTED["planted index"], islice(Mutator([PLANTED_EXAMPLE], random.Random(1)), INPUTS))
