"""The split methods: ``tensor``, ``layer``, ``size`` and ``parts=N``, as the text that manifests keep and as a value.

``tensor`` and ``layer`` cut in the same places; ``layer`` also orders parts by layer. ``size`` cuts each file by itself,
``parts=N`` the bytes of all files together.
"""

import re
from dataclasses import dataclass
from typing import Literal

from tensorkeep.errors import InvalidInput

Name = Literal["tensor", "layer", "size", "parts"]

MAX_SHARES = 1_000_000

_PARTS = re.compile(r"parts=([0-9]{1,18})\Z")
_ADVICE = "use auto, tensor, layer, size or parts=N"


@dataclass(frozen=True, slots=True)
class Method:
    """How files are cut; ``shares`` is the N of ``parts=N``, 0 for the others."""

    name: Name
    shares: int = 0

    @property
    def cuts_tensors(self) -> bool:
        """Whether cuts follow tensors and small items go to packs."""
        return self.name in ("tensor", "layer")

    def __str__(self) -> str:
        return f"parts={self.shares}" if self.name == "parts" else self.name


TENSOR = Method("tensor")
LAYER = Method("layer")
SIZE = Method("size")
_PLAIN = {str(method): method for method in (TENSOR, LAYER, SIZE)}


def parse_method(text: str) -> Method:
    """Return the split method that a text names, ``parts=4`` too.

    Raises:
        InvalidInput: there is none, or N is not from 1 to `MAX_SHARES`.
    """
    method = find_method(text)
    if method is not None:
        return method
    if text.startswith("parts"):
        raise InvalidInput(
            f"{text!r} does not say in how many parts: write parts=N with N from 1 to {MAX_SHARES:,}", method=text
        )
    raise InvalidInput(f"there is no split method {text!r}: {_ADVICE}", method=text)


def find_method(text: str) -> Method | None:
    """Return the split method that a text names, or None: a manifest may be of a newer version."""
    if text in _PLAIN:
        return _PLAIN[text]
    found = _PARTS.match(text)
    if found and 1 <= int(found[1]) <= MAX_SHARES and str(int(found[1])) == found[1]:
        return Method("parts", int(found[1]))
    return None
