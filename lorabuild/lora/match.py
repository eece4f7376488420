"""Pair the layers of a LoRA with the weights of a base: who has no partner, and whose shape is another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from lorabuild.errors import JobError
from lorabuild.header import Header, TensorInfo
from lorabuild.lora.layers import Layer, read_layers, weight_shape

SHOWN = 3  # names in a message


def matched(
    layers: Sequence[Layer], shapes: Mapping[str, Sequence[int]]
) -> tuple[dict[Layer, tuple[int, ...]], list[Layer]]:
    """(layer -> shape [O, I, *k] of its weight, the layers that the base lacks). `shapes` are the base's, by kohya's names.

    A layer that is stored flat, [O, I·∏k], has the base's shape. Raises JobError where a shape is another than the
    base's, and where the base has none of the layers: a LoRA of another family of models.
    """
    known = {layer: tuple(shapes[layer.canonical]) for layer in layers if layer.canonical in shapes}
    wrong = []
    for layer, wanted in known.items():
        own = weight_shape(layer)
        if own[0] != wanted[0] or prod(own[1:]) != prod(wanted[1:]):
            wrong.append(f"{layer.name} changes a weight {list(own)}, the base's is {list(wanted)}")
        elif len(own) > 2 and layer.flavour == "lora":
            known[layer] = own
    if wrong:
        more = f" (and {len(wrong) - 1} more layers)" if len(wrong) > 1 else ""
        raise JobError(f"not a LoRA for this base: {wrong[0]}{more}")
    if layers and not known:
        names = ", ".join(layer.name for layer in layers[:SHOWN])
        raise JobError(
            f"not a LoRA for this base: it has none of the {len(layers)} layers ({names}{', …' * (len(layers) > SHOWN)})"
        )
    return known, [layer for layer in layers if layer not in known]


def resizable(
    header: Header, shapes: Mapping[str, Sequence[int]]
) -> tuple[dict[Layer, tuple[int, ...]], list[Layer], dict[str, TensorInfo]]:
    """What `matched` says of a file's layers, and all tensors that stay as they are: those of no known layer."""
    layers, passed = read_layers(header.tensors, header.metadata)
    known, unknown = matched(layers, shapes)
    return known, unknown, passed | {key: one.infos[role] for one in unknown for role, key in one.keys.items()}
