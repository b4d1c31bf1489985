"""The layer and the expert in the names of the usual families, and by a user's pattern."""

import re

import pytest

from tensorkeep.errors import InvalidInput
from tensorkeep.planning.layers import PATTERN_LIMIT, Layer, Role, layer_path, parse_layer_pattern, usual_role

FAMILIES = {
    # Llama
    "model.embed_tokens.weight": (None, None),
    "model.layers.12.self_attn.q_proj.weight": (("layers", 12), None),
    "lm_head.weight": (None, None),
    # Mixtral
    "model.layers.3.block_sparse_moe.gate.weight": (("layers", 3), None),
    "model.layers.3.block_sparse_moe.experts.7.w1.weight": (("layers", 3), 7),
    # DeepSeek
    "model.layers.60.mlp.experts.255.down_proj.weight": (("layers", 60), 255),
    "model.layers.60.mlp.shared_experts.up_proj.weight": (("layers", 60), None),
    # Switch Transformers
    "encoder.block.1.layer.1.mlp.experts.expert_3.wi.weight": (("encoder.block", 1), 3),
    # GPT-2
    "transformer.h.11.attn.c_attn.weight": (("transformer.h", 11), None),
    "h.0.ln_1.bias": (("h", 0), None),
    "wte.weight": (None, None),
    # BERT
    "bert.encoder.layer.5.attention.self.query.weight": (("bert.encoder.layer", 5), None),
    "embeddings.word_embeddings.weight": (None, None),
    # T5
    "encoder.block.2.layer.0.SelfAttention.q.weight": (("encoder.block", 2), None),
    "decoder.block.2.layer.0.SelfAttention.q.weight": (("decoder.block", 2), None),
    "shared.weight": (None, None),
    # Stable Diffusion, diffusers
    "down_blocks.0.resnets.1.conv1.weight": (("down_blocks", 0), None),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight": (("mid_block", 0), None),
    "mid_block.resnets.1.conv1.weight": (("mid_block", 0), None),
    "up_blocks.3.attentions.2.norm.weight": (("up_blocks", 3), None),
    "conv_in.weight": (None, None),
    # Stable Diffusion, original
    "model.diffusion_model.input_blocks.4.1.norm.weight": (("diffusion_model.input_blocks", 4), None),
    "model.diffusion_model.middle_block.2.out_layers.3.bias": (("diffusion_model.middle_block", 0), None),
    "model.diffusion_model.output_blocks.11.0.emb_layers.1.weight": (("diffusion_model.output_blocks", 11), None),
    "first_stage_model.encoder.mid.block_1.conv1.weight": (None, None),
    # ViT, transformers and timm
    "vit.encoder.layer.7.output.dense.weight": (("vit.encoder.layer", 7), None),
    "blocks.7.attn.qkv.weight": (("blocks", 7), None),
    "patch_embed.proj.weight": (None, None),
    # GGUF
    "blk.31.ffn_gate_exps.weight": (("blk", 31), None),
    "token_embd.weight": (None, None),
    # HDF5 and Keras
    "layers/dense_1/vars/0": (None, None),
    "optimizer/vars/12": (None, None),
    "encoder/layer/3/kernel": (("encoder.layer", 3), None),
    # optimizers: numbers of parameters are no layers, names of parameters tell theirs
    "optimizer.state.7.exp_avg": (None, None),
    "state.7.preconditioners.0": (None, None),
    "optimizer_states.0.state.7.exp_avg": (None, None),
    "state.model.layers.3.mlp.weight.exp_avg": (("state.model.layers", 3), None),
    "exp_avg.model.layers.3.mlp.weight": (("exp_avg.model.layers", 3), None),
    # anything else: what stands before the first whole number
    "0.weight": (("", 0), None),
    "model.24.m.1.bias": (("", 24), None),
    "h.7": (("h", 7), None),
    "layer12.w": (None, None),
    "a.1b.2": (("a.1b", 2), None),
    "x.99999999999999999999.3": (("x.99999999999999999999", 3), None),
    "x.٣.w": (None, None),
    "x.²": (None, None),
    "experts.3.w": (None, 3),
    "model": (None, None),
    "": (None, None),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_names_tell_layer_and_expert(name: str) -> None:
    layer, expert = FAMILIES[name]
    assert usual_role(name) == Role(None if layer is None else Layer(*layer), expert)


@pytest.mark.parametrize(
    "prefix", ["model.", "module.", "_orig_mod.", "module._orig_mod.", "base_model.model.model.", "state_dict/model."]
)
def test_what_training_code_puts_before_a_name_does_not_matter(prefix: str) -> None:
    assert usual_role(f"{prefix}layers.3.mlp.experts.5.w") == Role(Layer("layers", 3), 5)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("model.layers.3.mlp.experts.5.w", "model.layers.3"),
        ("unet/mid_block/resnets/0/w", "unet/mid_block"),
        ("h.3", "h.3"),
        ("state.7.exp_avg", None),
        ("wte.weight", None),
    ],
)
def test_a_layer_is_shown_by_the_name_that_leads_to_it(name: str, path: str | None) -> None:
    assert layer_path(name) == path


def test_layers_sort_by_stack_and_then_by_number() -> None:
    layers = [Layer("h", 10), Layer("h", 9), Layer("a", 11)]
    assert sorted(layers) == [Layer("a", 11), Layer("h", 9), Layer("h", 10)]
    assert [str(layer) for layer in (*layers[:1], Layer("", 3))] == ["h.10", "3"]


@pytest.mark.parametrize(
    ("pattern", "name", "role"),
    [
        (r"stage(\d+)_", "net.stage12_conv", Role(Layer("", 12), None)),
        (r"(encoder|decoder)_(\d+)", "x.decoder_3.w", Role(Layer("decoder", 3), None)),
        (r"(encoder|decoder)", "x.decoder_3.w", Role(Layer("decoder", 0), None)),
        (r"l(\d+)(?:\.e(?P<expert>\d+))?", "l4.e2.w", Role(Layer("", 4), 2)),
        (r"l(\d+)(?:\.e(?P<expert>\d+))?", "l4.w", Role(Layer("", 4), None)),
        (r"(?P<layer>x)?l", "l4.w", Role(None, None)),
        (r"stage(\d+)_", "model.layers.3.w", Role(None, None)),
    ],
)
def test_a_users_pattern_names_the_layer_by_its_groups(pattern: str, name: str, role: Role) -> None:
    assert parse_layer_pattern(pattern).role_of(name) == role


def test_without_a_pattern_names_are_read_as_the_families_have_them() -> None:
    assert parse_layer_pattern(None).role_of("h.3.w") == usual_role("h.3.w")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", "no regular expression"),
        (r"layers\.\d+", "no group that names the layer"),
        (r"e(?P<expert>\d+)", "no group that names the layer"),
        ("(a)" * PATTERN_LIMIT, f"the limit is {PATTERN_LIMIT}"),
        ("(a{1,99999999999999999999})", "no regular expression"),
    ],
)
def test_a_pattern_that_names_no_layer_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(words)):
        parse_layer_pattern(pattern)
