"""Which axis of a tensor tensor parallelism cuts, by the names of Llama-like models.

A linear layer that is cut *by columns* gives each rank a run of its outputs: axis 0 of the weight, and of the bias. One that is cut
*by rows* gives each rank a run of its inputs: axis 1 of the weight; its bias is added once, after the sum over the ranks, so it is
whole everywhere. Embeddings and heads are cut by vocabulary. All else, such as norms and routers, is whole on every rank.

Source: Megatron-LM (https://arxiv.org/abs/1909.08053), and the layers of vLLM's and torch's Llama; names are those of transformers,
of Meta's own checkpoints and of GGUF.
"""

import math
import re

from tensorkeep.errors import InvalidInput

BY_COLUMNS = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "w1", "w3", "fc1", "q_b_proj", "kv_b_proj"),
        *("embed_tokens", "lm_head"),
        *("wq", "wk", "wv", "tok_embeddings"),
        *("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "token_embd"),
    }
)
"""Modules whose outputs (or vocabulary) are cut."""

BY_ROWS = frozenset({"o_proj", "out_proj", "down_proj", "w2", "fc2", "wo", "attn_output", "ffn_down"})
"""Modules whose inputs are cut."""

STACKED = {"ffn_gate_exps": 1, "ffn_up_exps": 1, "ffn_down_exps": 2}
"""Modules that hold the matrices of all experts, and the axis that is cut."""

FUSED = frozenset(
    {
        *("qkv_proj", "qkv", "Wqkv", "wqkv", "query_key_value", "c_attn", "W_pack", "attn_qkv"),
        *("in_proj", "in_proj_weight", "in_proj_bias", "gate_up_proj"),
    }
)
"""Modules that hold several matrices one after the other: a rank's share of them is not one run."""

_HEAD = re.compile(r"(?:model[./])?output[./](weight|bias)\Z")
"""The head, as Meta and GGUF call it; deeper in a name, `output` is all sorts of things."""
_SEPARATOR = re.compile(r"[./]")


def usual_axis(name: str, shape: tuple[int, ...]) -> int | None:
    """Return the axis of a tensor that is cut, None where every rank has it whole.

    Args:
        name: as in its file.
        shape: in elements; tensors of one element are whole.

    Raises:
        InvalidInput: the module is one that is cut, and no single run of one axis is a rank's share, or which axis is not known.
    """
    if math.prod(shape) == 1:
        return None
    if _HEAD.match(name):
        return 0
    *_, module, leaf = ["", *_SEPARATOR.split(name)]
    if leaf in FUSED or leaf in BY_COLUMNS or leaf in BY_ROWS:  # a parameter of its own, as of stacked experts
        module, leaf = leaf, ""
    if module in FUSED:
        raise InvalidInput(
            f"{name!r} holds several matrices in one: a rank's share of it is not one run, so tensor parallelism can't cut it. "
            f"Give a rule: rules={{{name!r}: None}} loads it whole, an axis in place of None cuts that axis once",
            tensor=name,
        )
    if module in STACKED and leaf == "weight" and len(shape) == 3:
        return STACKED[module]
    if module not in BY_COLUMNS and module not in BY_ROWS and module not in STACKED:
        return None
    if leaf == "weight" and len(shape) == 2:
        return 0 if module in BY_COLUMNS else 1
    if leaf == "bias" and len(shape) == 1:
        return 0 if module in BY_COLUMNS else None
    raise InvalidInput(
        f"{name!r} of shape {shape} belongs to a layer that tensor parallelism cuts, and which axis of it is not known. Give a "
        f"rule: rules={{{name!r}: 0}} cuts axis 0, None in place of 0 loads it whole",
        tensor=name,
    )
