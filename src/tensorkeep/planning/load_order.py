"""In which order a model's tensors are of use: what comes before the layers, the layers by number, what comes after them."""

from collections.abc import Sequence

from tensorkeep.planning.layers import usual_role


def load_order(names: Sequence[str]) -> list[str]:
    """Return names in the order that inference needs them in.

    Files order by name, so that layer 10 comes before layer 2. Layers come by number, whatever their stack, each in the given order.
    Tensors of no layer come first where they stand before all layers (embeddings), else last (norm, head).
    """
    layers = [usual_role(name).layer for name in names]
    first = next((at for at, layer in enumerate(layers) if layer is not None), 0)

    def place(at: int) -> tuple[int, int]:
        layer = layers[at]
        if layer is not None:
            return 1, layer.number
        return (0 if at < first else 2), 0

    return [names[at] for at in sorted(range(len(names)), key=place)]
