"""Every order of the steps of push, gc and drain, tried: the protocol loses nothing, and without any one of its steps it does."""

import pytest

from tests.models.store_protocol import Protocol, explore, is_lost, is_short


def assert_safe(protocol: Protocol, least: int) -> None:
    """Assert that no order of steps leaves a version with less than it owes, in at least so many states."""
    found = explore(protocol, is_short)
    print(f"{found.states} states: {protocol}")
    assert found.path is None, _tell(found.path)
    assert found.states >= least


@pytest.mark.parametrize(
    ("protocol", "least"),
    [
        pytest.param(Protocol(losses=1, rounds=1), 140_000, id="two copies"),
        pytest.param(Protocol(losses=0, needed=2, rounds=1, retries=0), 40_000, id="two fragments, both needed"),
        pytest.param(Protocol(losses=0, drains=True, rounds=1, retries=0), 80_000, id="one copy, a drain"),
        pytest.param(
            Protocol(losses=0, drains=True, breaks=True, rounds=1, retries=0, late=0),
            90_000,
            id="one copy, a drain, a device that breaks",
        ),
        pytest.param(
            Protocol(devices=3, losses=1, drains=True, breaks=True, rounds=0, late=0),
            40_000,
            id="two copies on three devices, a drain, a device that breaks",
        ),
    ],
)
def test_no_order_of_steps_leaves_a_version_with_less_than_it_owes(protocol: Protocol, least: int) -> None:
    assert_safe(protocol, least)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("protocol", "least"),
    [
        pytest.param(Protocol(losses=1), 2_400_000, id="two copies"),
        pytest.param(Protocol(losses=0, drains=True, rounds=1), 1_200_000, id="one copy, a drain"),
        pytest.param(
            Protocol(devices=3, losses=1, needed=2, rounds=1, retries=0), 750_000, id="three fragments, two needed"
        ),
        pytest.param(
            Protocol(devices=3, losses=0, needed=2, drains=True, rounds=1, retries=0, late=0),
            140_000,
            id="two fragments, both needed, a drain",
        ),
        pytest.param(
            Protocol(devices=3, losses=1, drains=True, breaks=True, rounds=1, retries=0, late=0),
            700_000,
            id="two copies on three devices, a drain, a device that breaks, gc",
        ),
    ],
)
def test_no_order_of_many_steps_leaves_a_version_with_less_than_it_owes(protocol: Protocol, least: int) -> None:
    assert_safe(protocol, least)


@pytest.mark.parametrize(
    "weakened",
    [
        pytest.param(Protocol(losses=1, condemns=False), id="gc does not condemn in a transaction"),
        pytest.param(Protocol(losses=0, needed=2, condemns=False), id="gc does not condemn, fragments"),
        pytest.param(Protocol(losses=0, unique_names=False), id="a name is used again"),
        pytest.param(Protocol(losses=0, needed=2, unique_names=False), id="a fragment's name is used again"),
        pytest.param(Protocol(losses=1, recounts=False), id="a commit does not count again"),
        pytest.param(Protocol(losses=0, drains=True, adds_first=False), id="a drain removes before it adds"),
        pytest.param(
            Protocol(losses=0, drains=True, breaks=True, rounds=0, rechecks=False), id="a drain does not count again"
        ),
        pytest.param(
            Protocol(losses=0, drains=True, breaks=True, rounds=0, asks_reach=False),
            id="a drain counts what can't be reached",
        ),
    ],
)
def test_without_a_protective_step_some_order_loses_data(weakened: Protocol) -> None:
    found = explore(weakened, is_lost)
    assert found.path is not None, f"nothing is lost in {found.states} states of {weakened}"
    print(f"lost in {_tell(found.path)}")


def _tell(path: list[str] | None) -> str:
    return f"{len(path or ())} steps: {'; '.join(path or ())}"
