"""Names the tensors of an unpickled checkpoint: the keys on the way to each, joined by dots.

A checkpoint is containers in containers: dictionaries by text or whole number, lists and tuples by position. A pickle can
make one that holds itself, or a short one with more paths than anybody could walk, so depth, steps and the characters of all
names are bounded.
"""

from collections.abc import Iterator

from tensorkeep.errors import Format
from tensorkeep.formats.pickle_machine import STATE, Known, Pairs, Plain
from tensorkeep.formats.torch_globals import Storage, StorageType, Tensor, TorchDtype, show

MAX_DEPTH = 100
MAX_STEPS = 4_000_000
"""Most values that are looked at, with `_STEPS_DOWN` for each container: a tensor of a checkpoint or an optimizer takes about 3."""

_STEPS_DOWN = 4

MAX_NAME_CHARACTERS = 64 << 20
"""Most characters of all names that are put together on the way."""

MAX_TENSORS = 300_000

_LEAVES = frozenset((str, int, float, bool, bytes, type(None), Known, TorchDtype, StorageType))


def list_tensors(root: object, name: str) -> list[tuple[str, Tensor]]:
    """Return every tensor of a checkpoint with its name, no name twice; ``name`` is that of a tensor that is alone.

    Raises:
        Format: a tensor has no name of its own, or the containers are too deep, too many, or in a circle.
    """
    found: dict[str, Tensor] = {}
    for path, tensor in _iter_tensors(Pairs((name, root)) if type(root) in (Tensor, Storage) else root):
        if path in found:
            raise Format(f"two of its tensors have the name {show(path)!r}")
        found[path] = tensor
        if len(found) > MAX_TENSORS:
            raise Format(f"it holds more than {MAX_TENSORS} tensors")
    return list(found.items())


def _iter_tensors(root: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its path, depth first and in order, without recursion."""
    steps = characters = 0
    levels: list[tuple[str | None, Iterator[tuple[object, object]]]] = [("", _iter_children(root))]
    entered = [id(root)]  # the containers on the way down
    while levels:
        prefix, children = levels[-1]
        for key, value in children:
            steps += 1
            if steps > MAX_STEPS:
                raise Format(f"it holds more than {MAX_STEPS} values, or a few very often")
            if type(value) in _LEAVES or not value:
                continue
            path = _join(prefix, key)
            characters += len(path or "")
            if characters > MAX_NAME_CHARACTERS:
                raise Format("the names of its tensors are too long")
            inner = value
            if type(value) is Tensor:
                if path is None:
                    raise Format("it holds a tensor that has no name: in a set, a key or an attribute")
                yield path, value
                if not value.rest:
                    continue
                inner, path = value.rest, None
            if id(inner) in entered:
                raise Format("it holds a container that holds itself")
            steps += _STEPS_DOWN
            if len(levels) >= MAX_DEPTH:
                raise Format(f"it holds containers over {MAX_DEPTH} deep")
            levels.append((None if path is None else path + ".", _iter_children(inner)))
            entered.append(id(inner))
            break
        else:
            levels.pop()
            entered.pop()


def _join(prefix: str | None, key: object) -> str | None:
    """Return the path of a value below a prefix, or None where it has none."""
    if prefix is None or type(key) not in (str, int):
        return None
    return f"{prefix}{key}"


def _iter_children(container: object) -> Iterator[tuple[object, object]]:
    """Yield (key, value) of what a container holds; what has no key of a text or whole number gets None."""
    if type(container) is Pairs:
        for at in range(0, len(container), 2):
            key = container[at]
            yield key, container[at + 1]
            if key is not STATE and type(key) not in _LEAVES:
                yield None, key
    elif type(container) in (list, tuple):
        assert isinstance(container, list | tuple)
        yield from enumerate(container)
    elif type(container) is Plain:
        yield from ((None, value) for value in container)
    elif type(container) is Storage:
        raise Format("it holds a storage that is no tensor")
