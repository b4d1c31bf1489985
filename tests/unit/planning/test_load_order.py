"""Layers by number, and what belongs to none before or after them."""

import pytest

from tensorkeep.planning.load_order import load_order


def test_layers_come_by_number_between_embeddings_and_head() -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.w",
        "model.layers.10.mlp.w",
        "model.layers.10.norm",
        "model.layers.2.mlp.w",
        "model.norm.weight",
        "score.weight",
    ]
    assert load_order(names) == [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.w",
        "model.layers.2.mlp.w",
        "model.layers.10.mlp.w",
        "model.layers.10.norm",
        "model.norm.weight",
        "score.weight",
    ]


@pytest.mark.parametrize("names", [[], ["b", "a"], ["h.1.w", "h.1.v"], ["w", "h.0.w", "z"]])
def test_what_is_in_order_stays_as_it_is(names: list[str]) -> None:
    assert load_order(names) == names
