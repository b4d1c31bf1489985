"""tensorkeep as a contender: its actions for the worker, in its own environment, under the same clock as the others."""

from pathlib import Path
from typing import Any

import tensorkeep
from bench.contenders.worker import Actions, Tensors, touch_all

MODEL = "bench/model"
_held: dict[str, Any] = {}


def _import() -> None:
    import torch  # noqa: F401, PLC0415 - the tensors that a load returns are torch's, as the others' are

    import tensorkeep.store.push  # noqa: PLC0415
    import tensorkeep.transfer.reader  # noqa: F401, PLC0415


def _load(store: str, model: str = MODEL, **words: Any) -> Tensors:
    with tensorkeep.open(store) as opened:
        return Tensors(opened.model(model).load(framework="torch", **words))


def _lay(store: str) -> dict[str, Any]:
    """Open a model and lay all of it out, without touching or verifying it."""
    with tensorkeep.open(store) as opened:
        return {"tensors": len(opened.model(MODEL).load(framework="torch", verify="off"))}


def _keep(store: str) -> None:
    """Load a model verified, touch every page, and keep it."""
    _held.update(_load(store, verify="blocks").by_name)
    touch_all(_held)


def _weigh() -> dict[str, Any]:
    """Return bytes of this process's memory: its share of all (``Pss``: of what n processes map, 1 / n), and what it alone has written.

    Source: proc(5), smaps_rollup.
    """
    lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()[1:]
    facts = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return {"share": facts["Pss"], "written": facts["Private_Dirty"]}


def _push(store: str, source: str) -> dict[str, Any]:
    with tensorkeep.open(store) as opened:
        report = opened.push(source, MODEL).report
    assert report is not None
    return {"new_parts": report.new_parts, "new_bytes": report.new_bytes, "created": report.created}


def _hold(source: str) -> None:
    from bench.contenders import local  # noqa: PLC0415

    local.hold(source)
    _held.update(local.held)


def _push_held(store: str) -> None:
    with tensorkeep.open(store) as opened:
        opened.push(_held, MODEL)


ours: Actions = {
    "import": _import,
    "load": _load,
    "lay": _lay,
    "keep": _keep,
    "weigh": _weigh,
    "push": _push,
    "hold": _hold,
    "push_held": _push_held,
}
