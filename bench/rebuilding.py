"""A lost catalog: how long it takes to make it anew from the devices, for a thousand versions.

Every version is a push of its own, with its manifest, checks, record and journal entry on three devices of one disk. What is rebuilt
is compared with what was there, and every byte is read again once.
"""

from collections.abc import Iterable

import numpy as np

import tensorkeep
from bench.figures import Figure
from bench.rounds import Contender, measure
from bench.work import remove
from tensorkeep.store.store import Store

NAME, MODELS = "rebuild", 10
DEVICES = ("d0", "d1", "d2")
TENSORS, VALUES = 40, 1000


def rebuild_figures(rounds: int, *, versions: int = 1000) -> Iterable[Figure]:
    """Yield the seconds that a rebuild takes for a thousand versions.

    Raises:
        RuntimeError: the rebuilt catalog tells something else.
    """
    folder = remove(NAME)
    with tensorkeep.init(folder / "store", replicas=2) as store:
        for name in DEVICES:
            store.devices.add(name, str(folder / name), bandwidth=10**9)
        for number in range(versions):
            store.push(_weights(number), f"bench/m{number % MODELS}", tag=f"v{number}")
        before = _names(store)

    def lose() -> None:
        for path in (folder / "store").glob("catalog.sqlite*"):
            path.unlink()

    def rebuild() -> None:
        report = tensorkeep.rebuild_catalog(folder / "store")
        if (report.versions, report.missing) != (versions, ()):
            raise RuntimeError(f"of {versions} versions {report.versions} are back; missing: {report.missing[:3]}")

    timing = measure([Contender("rebuild", rebuild, lose)], rounds=rounds)["rebuild"]
    with tensorkeep.open(folder / "store") as store:
        if _names(store) != before:
            raise RuntimeError("the rebuilt catalog has other versions, branches or tags")
        if not store.verify().ok:
            raise RuntimeError("the rebuilt store is not whole")
    yield Figure("rebuild of a lost catalog, for 1,000 versions", timing.median * 1000 / versions, None, "s")
    remove(NAME)


def _weights(number: int) -> dict[str, "np.typing.NDArray[np.float32]"]:
    """Return the tensors of a version: one of them is its own, the others those of the one before."""
    return {
        f"layers.{tensor}.weight": np.random.default_rng(
            (tensor, number // TENSORS, number % TENSORS == tensor)
        ).standard_normal(VALUES, dtype=np.float32)
        for tensor in range(TENSORS)
    }


def _names(store: Store) -> dict[str, list[tuple[object, ...]]]:
    return {
        model.name: [
            (entry.id, entry.version.tags, entry.version.branches) for entry in store.log(model.name) if entry.version
        ]
        for model in store.models()
    }
