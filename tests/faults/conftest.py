"""A proxy before the run's Ceph, for tests of the wire."""

from collections.abc import Iterator

import pytest

from tests.engines.servers import S3Account
from tests.faults.wire_proxy import WireProxy
from tests.faults.wire_world import Wire, target_of


@pytest.fixture(scope="module")
def wire(ceph: S3Account, ceph_bucket: str) -> Iterator[Wire]:
    """Ceph behind a proxy without faults yet."""
    with WireProxy(*target_of(ceph)) as proxy:
        yield Wire(ceph, ceph_bucket, proxy)


@pytest.fixture(autouse=True)
def calm_wire(request: pytest.FixtureRequest) -> Iterator[None]:
    """No fault of a test outlives it."""
    yield
    if "wire" in request.fixturenames:
        request.getfixturevalue("wire").proxy.script()
