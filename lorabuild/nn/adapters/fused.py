"""Attention whose q, k and v with their adapters are one product: fewer and larger steps for a GPU, the same function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from lorabuild.nn.adapters.module import Module
from lorabuild.nn.lowrank import lowrank_linears

# What diffusers' Attention may have besides, and SDXL's has not.
EXTRAS = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "residual_connection", "added_kv_proj_dim")


@dataclass(eq=False)
class FusedAttention:
    """An attention of a U-Net, all of whose projections have an adapter. What it has in common is computed in one.

    `weights` [n, O, I] are those of q, k and v, or of k and v where these see the text: the layers' own memory.
    """

    attention: Any  # diffusers' Attention
    q: Module
    k: Module
    v: Module
    weights: Tensor

    @classmethod
    def of(cls, attention: Any, q: Module, k: Module, v: Module) -> FusedAttention:
        """Moves the layers' weights one after another."""
        shared = [k, v] if attention.is_cross_attention else [q, k, v]
        weights = torch.stack([module.weight.detach() for module in shared])
        for module, weight in zip(shared, weights, strict=True):
            module.weight.data = weight
        return cls(attention, q, k, v, weights)

    def attach(self) -> None:
        self.attention.forward = self.forward

    def detach(self) -> None:
        vars(self.attention).pop("forward", None)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Any = None,
        **more: Any,
    ) -> Tensor:
        """As diffusers' Attention, [B, T, C] -> [B, T, C]; what it does not know it leaves to that."""
        attention, context = self.attention, encoder_hidden_states
        if attention_mask is not None or more:
            return type(attention).forward(attention, hidden_states, context, attention_mask, **more)
        if context is None:
            query, key, value = self._projected([self.q, self.k, self.v], hidden_states)
        else:
            query, (key, value) = attention.to_q(hidden_states), self._projected([self.k, self.v], context)
        heads = [one.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for one in (query, key, value)]
        found = scaled_dot_product_attention(*heads, scale=attention.scale).transpose(1, 2).flatten(2).to(query.dtype)
        for layer in attention.to_out:
            found = layer(found)
        return found / attention.rescale_output_factor

    def _projected(self, modules: Sequence[Module], x: Tensor) -> Sequence[Tensor]:
        """The outputs of layers that see the same: in one product where their changes are products of one rank."""
        products = [module.product(x) for module in modules]
        known = [product for product in products if product is not None]
        if len(known) < len(modules) or len(known) != len(self.weights) or len({len(down) for down, _, _ in known}) > 1:
            return [module.layer(x) for module in modules]
        downs, ups, factors = zip(*known, strict=True)
        if len(set(factors)) == 1:
            return lowrank_linears(x, self.weights, downs, ups, factors[0])
        return lowrank_linears(x, self.weights, downs, [up * by for up, by in zip(ups, factors, strict=True)], 1.0)


def fused(unet: nn.Module, modules: Iterable[Module]) -> Iterator[FusedAttention]:
    """The attentions of a U-Net that can be fused with these adapters on their layers."""
    adapters = {id(module.layer): module for module in modules if module.algo == "locon"}
    for attention in unet.modules():
        layers = [getattr(attention, f"to_{name}", None) for name in "qkv"]
        if not all(id(layer) in adapters for layer in layers):
            continue
        own = [adapters[id(layer)] for layer in layers]
        shared = own[1:] if attention.is_cross_attention else own
        kinds = {(one.weight.shape, one.weight.dtype, one.weight.device) for one in shared}
        if len(kinds) == 1 and not any(getattr(attention, extra, None) for extra in EXTRAS):
            yield FusedAttention.of(attention, *own)
