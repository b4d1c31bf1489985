"""Which layer, and which expert of it, a tensor belongs to, by its name.

A layer is a stack and a number in it: T5's encoder and decoder, or Stable Diffusion's down and up blocks, count apart. The
stack is what stands before the first component of the name that is a whole number: `model.layers.3.mlp.experts.7.w1` is
expert 7 of layer (`layers`, 3). That fits the usual families (Llama, Mixtral, DeepSeek, GPT-2, BERT, T5, Stable Diffusion,
ViT, GGUF); what doesn't is in the tables here, or said by a pattern of the user's. Layers order and group what is stored;
they never decide which bytes are equal.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from tensorkeep.errors import InvalidInput

_SEPARATOR = re.compile(r"[./]")
_NUMBER = re.compile(r"[0-9]{1,9}\Z")
_FIRST_NUMBER = re.compile(r"(?:^|[./])[0-9]{1,9}(?=[./]|\Z)")
_EXPERT = re.compile(r"(?:^|[./])(?:local_)?experts[./](?:expert_)?([0-9]{1,9})(?=[./]|\Z)")

_WRAPPERS = frozenset({"model", "module", "_orig_mod", "base_model", "state_dict", "model_state_dict"})
"""What training code puts around a model (DDP, `torch.compile`, PEFT, checkpoints): the same layer with and without."""

_SINGLE_BLOCK = re.compile(r"(?:^|[./])(?:mid_block|middle_block)(?=[./]|\Z)")
"""Blocks that are there once and so have no number: Stable Diffusion's bottleneck, in diffusers and originally."""

_OTHER_LISTS = frozenset({"experts", "local_experts", "state", "vars", "optimizers", "optimizer_states"})
"""A first number under these counts something else: experts, or parameters (torch optimizers, Keras 3), each of which would be a
layer, and have a pack, of its own."""

PATTERN_LIMIT = 1000
"""Most characters of a user's pattern."""


class Layer(NamedTuple):
    """Layer ``number`` of a stack of layers, such as (``layers``, 3). Sorts by stack, then by number."""

    stack: str
    number: int

    def __str__(self) -> str:
        return f"{self.stack}.{self.number}" if self.stack else str(self.number)


class Role(NamedTuple):
    """The layer and the expert that a tensor belongs to; None where it belongs to none."""

    layer: Layer | None
    expert: int | None


_NO_ROLE = Role(None, None)


@dataclass(frozen=True, slots=True)
class LayerNaming:
    """How names tell layers: as the usual families do, or by a pattern of the user's."""

    pattern: re.Pattern[str] | None = None

    def role_of(self, name: str) -> Role:
        """Return the layer and expert of a tensor's name."""
        return usual_role(name) if self.pattern is None else _role_by_pattern(self.pattern, name)


USUAL_NAMING = LayerNaming()
NO_NAMING = LayerNaming(re.compile("(?!)"))
"""Knows no layers: for who needs the cuts only."""


def parse_layer_pattern(text: str | None) -> LayerNaming:
    r"""Return the naming that a user's regular expression gives, the usual one for None.

    It is searched for in each tensor's name. Its groups name the layer: where the last one is a whole number, that is the number
    in the stack that the others name. A group called ``expert`` names the expert instead. A name that does not fit is of no layer.

    Raises:
        InvalidInput: it is no regular expression, or has no group for the layer.
    """
    if text is None:
        return USUAL_NAMING
    example = r"write for example 'stage(\d+)' or '(encoder|decoder)\.(\d+)\.'"
    if len(text) > PATTERN_LIMIT:
        raise InvalidInput(f"the layer pattern has {len(text)} characters; the limit is {PATTERN_LIMIT}")
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidInput(
            f"the layer pattern {text!r} is no regular expression ({error}): {example}", pattern=text
        ) from error
    if pattern.groups - ("expert" in pattern.groupindex) < 1:
        raise InvalidInput(f"the layer pattern {text!r} has no group that names the layer: {example}", pattern=text)
    return LayerNaming(pattern)


@lru_cache(
    maxsize=1 << 17
)  # a plan asks three times for each tensor: to choose, to cut, to tell how layers are balanced
def usual_role(name: str) -> Role:
    """Return the layer and expert of a name, as the usual families have them; components end at ``.`` or ``/``."""
    number = _FIRST_NUMBER.search(name)
    layer = _layer_of_head(name[: number.end()] if number else name)
    expert = _EXPERT.search(name) if "expert" in name else None
    if layer is None and expert is None:
        return _NO_ROLE
    return Role(layer, int(expert[1]) if expert else None)


def layer_path(name: str) -> str | None:
    """Return a name up to its layer's number, such as ``model.layers.3``, as globs over names have it; None where it has no layer."""
    number = _FIRST_NUMBER.search(name)
    head = name[: number.end()] if number else name
    if _layer_of_head(head) is None:
        return None
    block = _SINGLE_BLOCK.search(head)
    return head[: block.end()] if block else head


@lru_cache(maxsize=4096)  # few heads, many names: 60,000 tensors of a model are named in a fraction of a second
def _layer_of_head(head: str) -> Layer | None:
    """Return the layer of a name that was cut after its first whole number."""
    block = _SINGLE_BLOCK.search(head)
    components = _SEPARATOR.split(head[: block.end()] if block else head)
    while len(components) > 1 and components[0] in _WRAPPERS:
        del components[0]
    if block:
        return Layer(".".join(components), 0)
    *stack, last = components
    if not _NUMBER.match(last) or (stack and stack[-1] in _OTHER_LISTS):
        return None
    return Layer(".".join(stack), int(last))


def _role_by_pattern(pattern: re.Pattern[str], name: str) -> Role:
    found = pattern.search(name)
    if found is None:
        return _NO_ROLE
    number_of_expert = pattern.groupindex.get("expert", 0)
    groups = [text for number, text in enumerate(found.groups(), 1) if number != number_of_expert and text is not None]
    expert = found["expert"] if number_of_expert else None
    number = int(expert) if expert is not None and _NUMBER.match(expert) else None
    if not groups:
        return Role(None, number)
    if _NUMBER.match(groups[-1]):
        return Role(Layer(".".join(groups[:-1]), int(groups[-1])), number)
    return Role(Layer(".".join(groups), 0), number)
