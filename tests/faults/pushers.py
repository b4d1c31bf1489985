"""Several pushers at once while engines are killed, and the list of what was acknowledged: checked like a Jepsen set at the end.

Every push that returned is acknowledged and must load byte for byte when all is over. A push that failed with a typed error is
run again until it returns, which is how a user resumes it. Anything else, and a push that hangs, fails the test.
"""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tensorkeep.errors import NotFound, TensorkeepError
from tensorkeep.store.store import Store
from tests.faults.wire_world import MIB, Arrays, same, weights

LIMIT_S = 420.0
"""A pusher that has not come to its end by then hangs: far over every deadline and restart here."""


@dataclass
class Pushers:
    """Threads that push models one after the other, each through a store handle of its own.

    ``disturb`` is called by the test's thread, again and again while they push; see `run`. ``arrays_of`` gives what a model is made of, by
    its seed; without it no two have a part in common.
    """

    open_store: Callable[[], Store]
    count: int = 3
    parts: int = 3
    arrays_of: Callable[[int], Arrays] | None = None
    acknowledged: list[tuple[str, Arrays]] = field(default_factory=list)
    failures: list[TensorkeepError] = field(default_factory=list)
    surprises: list[BaseException] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    def run(self, disturbances: Sequence[Callable[[], None]], *, pushes_between: int = 1) -> None:
        """Push while each disturbance is done once, with that many acknowledged pushes before each and after the last."""
        threads = [threading.Thread(target=self._push, args=(n,), daemon=True) for n in range(self.count)]
        end_s = time.monotonic() + LIMIT_S
        for thread in threads:
            thread.start()
        try:
            for disturb in disturbances:
                self._wait(pushes_between, end_s)
                disturb()
            self._wait(pushes_between, end_s)
        finally:
            self._ended = True
        for thread in threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        assert not any(thread.is_alive() for thread in threads), "a push hangs"
        assert not self.surprises, self.surprises

    def take_back(self) -> str:
        """Return the model that was acknowledged first, which needs not be there any more."""
        with self._changed:
            return self.acknowledged.pop(0)[0]

    def check(self) -> None:
        """Assert that everything acknowledged is there, by a handle that knew nothing, and that `verify` finds no damage."""
        assert self.acknowledged
        with self.open_store() as store:
            for model, arrays in self.acknowledged:
                assert same(store.model(model).load(verify="digest"), arrays), f"{model} is not what was acknowledged"
            assert store.verify().ok
            store.scrub()  # an upload that landed when everybody had given it up is no object of the catalog's
            store.gc(grace_s=0, max_fraction=None)
            assert on_devices(store) == in_catalog(store)
            assert store.verify().ok
            print(
                f"{len(self.acknowledged)} versions acknowledged, 0 lost, 0 wrong; "
                f"{len(self.failures)} pushes failed with a typed error and were resumed"
            )

    def _wait(self, more: int, end_s: float) -> None:
        """Return when that many more pushes were acknowledged."""
        with self._changed:
            wanted = len(self.acknowledged) + more
            while len(self.acknowledged) < wanted and not self.surprises:
                left_s = end_s - time.monotonic()
                assert left_s > 0, f"no push finishes; the last errors: {self.failures[-3:]}"
                self._changed.wait(left_s)

    def _push(self, number: int) -> None:
        try:
            with self.open_store() as store:
                for turn in itertools.count():
                    if self._ended:
                        return
                    model = f"pusher{number}/m{turn}"
                    seed = 1000 * number + turn
                    arrays = weights(seed, self.parts) if self.arrays_of is None else self.arrays_of(seed)
                    self._until_done(store, model, arrays)
                    with self._changed:
                        self.acknowledged.append((model, arrays))
                        self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - shown by the test's thread
            with self._changed:
                self.surprises.append(error)
                self._changed.notify_all()

    def _until_done(self, store: Store, model: str, arrays: Arrays) -> None:
        end_s = time.monotonic() + LIMIT_S
        while (failure := _try_push(store, model, arrays)) is not None:
            with self._changed:
                self.failures.append(failure)
                self._changed.wait(0.2)  # as a user would, who runs it again
            assert not isinstance(failure, NotFound), f"unreachable is never absent: {failure}"
            assert time.monotonic() < end_s, f"{model} can't be resumed: {failure}"


def _try_push(store: Store, model: str, arrays: Arrays) -> TensorkeepError | None:
    try:
        store.push(arrays, model, part_size=MIB)
    except TensorkeepError as error:
        return error
    return None


def in_catalog(store: Store) -> set[tuple[str, str]]:
    """Return (device, physical name) of all rows that are not condemned."""
    return {(row.device, row.name) for row in store._context.catalog.locate_all(after=0, limit=1_000_000)}


def on_devices(store: Store) -> set[tuple[str, str]]:
    """Return (device, physical name) of all objects on devices, the journal apart."""
    return {
        (device, found.name)
        for device, reached in store._context.fleet.writable().items()
        for found in reached.iter_objects("")
        if not found.name.startswith("journal/")
    }
