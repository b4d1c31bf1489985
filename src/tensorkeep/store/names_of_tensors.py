"""Names of tensors in a version: a name means one tensor; where files collide, ``path::name`` tells them apart."""

from collections.abc import Mapping

from tensorkeep.records.manifest import File, Manifest, Tensor

_PRECEDENCE = ("safetensors", "pytorch", "gguf", "npz")


def tensors_by_name(manifest: Manifest) -> dict[str, tuple[File, Tensor]]:
    """Return every tensor by its name; a name taken by a file that goes before is spelled ``path::name``.

    Safetensors go before PyTorch before GGUF before npz, then by path.
    """
    named: dict[str, tuple[File, Tensor]] = {}
    for file in sorted(manifest.files, key=lambda file: (_rank(file.format), file.path)):
        for tensor in file.tensors:
            name = tensor.name if tensor.name not in named else f"{file.path}::{tensor.name}"
            named[name] = (file, tensor)
    return named


def find_tensor(manifest: Manifest, named: Mapping[str, tuple[File, Tensor]], name: str) -> tuple[File, Tensor] | None:
    """Return a tensor by its name or by ``path::name``, or None."""
    if name in named:
        return named[name]
    path, separator, tensor_name = name.partition("::")
    if separator:
        for file in manifest.files:
            if file.path == path:
                return next(((file, tensor) for tensor in file.tensors if tensor.name == tensor_name), None)
    return None


def _rank(format_name: str) -> int:
    return _PRECEDENCE.index(format_name) if format_name in _PRECEDENCE else len(_PRECEDENCE)
