"""Eight pushers that share parts, beside gc and drains, on a real PostgreSQL: row 27 of the fault matrix."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

import tensorkeep
from tensorkeep.store.store import Store
from tests.faults.pushers import Pushers
from tests.faults.store_world import GIB, known_places
from tests.faults.wire_world import Arrays, weights

SHARED = weights(1, 9)
NAMES = "abcd"


def some_of_them(seed: int) -> Arrays:
    """Return arrays that other models have too, in other combinations."""
    chosen = np.random.default_rng(seed).choice(len(SHARED), 4, replace=False)
    return {name: SHARED[name] for name in (f"layers.{number}.w" for number in chosen)}


def remove_and_collect(keeper: Store, pushers: Pushers) -> None:
    for _ in range(2):
        keeper.rm_model(pushers.take_back())
    keeper.gc(grace_s=0, max_fraction=None)


def drain(keeper: Store, name: str) -> None:
    """Empty a device, and let pushes use it again."""
    for _ in range(9):  # a push that began before may end after, and leave something there
        if keeper.devices.drain(name, grace_s=0).empty:
            break
    else:
        raise AssertionError(f"{name} is never empty")
    keeper.devices.undrain(name)


def test_no_push_loses_a_shared_part_to_gc_or_to_a_drain(store_urls: Iterator[str], tmp_path: Path) -> None:
    url = next(store_urls)
    with tensorkeep.init(url, replicas=2) as keeper, known_places():
        for name in NAMES:
            keeper.devices.add(name, str(tmp_path / name), bandwidth=GIB)
        pushers = Pushers(lambda: tensorkeep.open(url), count=8, arrays_of=some_of_them)
        steps = [
            step
            for name in NAMES[:2]
            for step in (partial(drain, keeper, name), partial(remove_and_collect, keeper, pushers))
        ]
        pushers.run(steps, pushes_between=4)
        assert {facts.state for facts in keeper._context.catalog.list_devices()} == {"active"}
    pushers.check()
