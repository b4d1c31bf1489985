"""tensorkeep as a contender: its actions for the worker, in its own environment, under the same clock as the others."""

from typing import Any

import tensorkeep
from bench.contenders.worker import Actions, Tensors

MODEL = "bench/model"
_held: dict[str, Any] = {}


def _import() -> None:
    import torch  # noqa: F401, PLC0415 - the tensors that a load returns are torch's, as the others' are

    import tensorkeep.store.push  # noqa: PLC0415
    import tensorkeep.transfer.reader  # noqa: F401, PLC0415


def _load(store: str, verify: str, model: str = MODEL) -> Tensors:
    with tensorkeep.open(store) as opened:
        return Tensors(opened.model(model).load(framework="torch", verify=verify))  # type: ignore[arg-type]


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


ours: Actions = {"import": _import, "load": _load, "push": _push, "hold": _hold, "push_held": _push_held}
