"""How many parameters a version has: in all, by dtype, by layer. Tied tensors, the same bytes of a file, count once."""

from collections.abc import Iterable

from tensorkeep.store.reports import DtypeSummary, LayerSummary, ParameterSummary, TensorInfo
from tensorkeep.store.selection import layer_name, natural_key


class _Count:
    """Tensors, parameters and bytes so far."""

    def __init__(self) -> None:
        self.tensors = self.parameters = self.bytes = 0

    def add(self, tensor: TensorInfo, *, again: bool) -> None:
        """Count a tensor; its elements only if its bytes are not counted yet."""
        self.tensors += 1
        if not again:
            self.parameters += tensor.parameters
            self.bytes += tensor.size_bytes


def count_parameters(tensors: Iterable[TensorInfo]) -> ParameterSummary:
    """Return the parameters of some tensors: dtypes by name, layers by name with numbers as such, what is in none last."""
    seen: set[tuple[str, int, int]] = set()
    tied = 0
    whole = _Count()
    dtypes: dict[str, _Count] = {}
    layers: dict[str | None, _Count] = {}
    for tensor in tensors:
        place = (tensor.file, tensor.start, tensor.size_bytes)
        again = place in seen and tensor.size_bytes > 0
        seen.add(place)
        tied += again
        groups = (dtypes.setdefault(tensor.dtype, _Count()), layers.setdefault(layer_name(tensor), _Count()))
        for count in (whole, *groups):
            count.add(tensor, again=again)
    return ParameterSummary(
        tensors=whole.tensors,
        tied=tied,
        parameters=whole.parameters,
        bytes=whole.bytes,
        dtypes=tuple(DtypeSummary(d, c.tensors, c.parameters, c.bytes) for d, c in sorted(dtypes.items())),
        layers=tuple(
            LayerSummary(n, layers[n].tensors, layers[n].parameters, layers[n].bytes) for n in _ordered(layers)
        ),
    )


def _ordered(names: Iterable[str | None]) -> list[str | None]:
    return sorted(names, key=lambda name: (name is None, natural_key(name or "")))
