"""Names of tensors in a version: a name means one tensor; where files collide, ``path::name`` tells them apart."""

from collections.abc import Mapping

from tensorkeep.records.manifest import File, Manifest, Tensor

_PRECEDENCE = ("safetensors", "pytorch", "gguf", "npz")


def tensors_by_name(manifest: Manifest) -> dict[str, tuple[File, Tensor]]:
    """Return every tensor by its name; a name taken by a file that goes before is spelled ``path::name``.

    Safetensors go before PyTorch before GGUF before npz, then by path. A tensor may itself be called ``path::name``: where
    that is taken too, it is ``path::name::2`` and so on, so that no tensor is ever left out.
    """
    named: dict[str, tuple[File, Tensor]] = {}
    numbers: dict[str, int] = {}
    for file in sorted(manifest.files, key=lambda file: (_rank(file.format), file.path)):
        for tensor in file.tensors:
            name = tensor.name
            if name in named:
                name = _free_name(f"{file.path}::{name}", named, numbers)
            named[name] = (file, tensor)
    return named


def find_tensor(manifest: Manifest, named: Mapping[str, tuple[File, Tensor]], name: str) -> tuple[File, Tensor] | None:
    """Return a tensor by its name or by ``path::name``, or None."""
    if name in named:
        return named[name]
    for file in manifest.files:
        if name.startswith(f"{file.path}::"):  # paths may hold "::" too
            wanted = name.removeprefix(f"{file.path}::")
            for tensor in file.tensors:
                if tensor.name == wanted:
                    return file, tensor
    return None


def _free_name(name: str, named: Mapping[str, object], numbers: dict[str, int]) -> str:
    """Return the name, or with the first number that makes it free; numbers are remembered, so that many cost little."""
    if name not in named:
        return name
    number = numbers.get(name, 2)
    while f"{name}::{number}" in named:
        number += 1
    numbers[name] = number + 1
    return f"{name}::{number}"


def _rank(format_name: str) -> int:
    return _PRECEDENCE.index(format_name) if format_name in _PRECEDENCE else len(_PRECEDENCE)
