"""No input makes a reader take memory because of what it claims: counts, lengths and sizes are compared with what there is first."""

import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from tensorkeep.records.manifest import SMALL_MANIFEST_BYTES
from tests.fuzz.claims import CLAIMS, POISON
from tests.fuzz.examples import EXAMPLES
from tests.fuzz.hdf5_server import close_probe
from tests.fuzz.planted import PLANTED
from tests.fuzz.running import fuzz
from tests.fuzz.targets import TARGETS

MOST_BYTES = 4 << 20
MOST_BYTES_OF_A_MANIFEST = MOST_BYTES + SMALL_MANIFEST_BYTES
"""It is unpacked at once, into what it says that it needs."""


@pytest.fixture(scope="module", autouse=True)
def probe() -> Iterator[None]:
    """The process that reads HDF5 files ends with the tests of this module."""
    yield
    close_probe()


def test_all_claims_are_made_to_targets() -> None:
    assert CLAIMS.keys() <= TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_what_claims_to_be_huge_is_answered_in_little_memory(name: str) -> None:
    target = TARGETS[name]
    fuzz(target, EXAMPLES[name]())  # what is loaded and kept at the first call is no input's
    most = MOST_BYTES_OF_A_MANIFEST if name == "manifest" else MOST_BYTES
    for data in (*CLAIMS.get(name, ()), *POISON):
        peak = peak_bytes(target, data)
        assert peak < most, f"{peak} bytes of memory for {len(data)}: {data[:200].hex()}"


def test_a_length_that_is_believed_is_found() -> None:
    assert peak_bytes(PLANTED["planted memory"], b"T" + (1 << 24).to_bytes(8, "little")) >= 1 << 24


def peak_bytes(target: Callable[[bytes], None], data: bytes) -> int:
    """Return the most memory that a target had while it answered for an input."""
    tracemalloc.start()
    try:
        fuzz(target, [data])
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
