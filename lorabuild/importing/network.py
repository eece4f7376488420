"""Translate the adapter: LyCORIS's and networks.lora's arguments, and which of them their makers never read."""

from __future__ import annotations

from typing import Any

from lorabuild.errors import near_miss
from lorabuild.importing.draft import Draft
from lorabuild.importing.told import Told
from lorabuild.manifest.keys import KEYS
from lorabuild.manifest.later import REFUSED

LYCORIS = "lycoris.kohya"
LORA = ("networks.lora",)  # sd-scripts' own: linear layers of the transformers; with conv_dim also the ResNets
KNOWN = KEYS["recipe.network_args"]["result"].split()

_PER_BLOCK = (
    "LyCORIS does not read it: sd-scripts trained every layer with network_dim and network_alpha. It works here"
)
# What LyCORIS takes without a word and does nothing with: a recipe that sets it here would train otherwise.
UNREAD = {
    "block_dims": _PER_BLOCK,
    "block_alphas": _PER_BLOCK,
    "conv_block_dims": _PER_BLOCK,
    "conv_block_alphas": _PER_BLOCK,
    "rank_dropout_scale": "LyCORIS does not read it in network_args; it works here",
}
RATES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "block_lr")


def network(draft: Draft, told: Told) -> None:
    """Set network_module and [recipe.network_args]."""
    args = dict(told.arguments.get("network_args", {}))
    module = told.arguments.get("network_module", LYCORIS)
    if module in LORA:
        said = f"{module} made no other layers: LyCORIS's locon on them is the same"
        draft.set("recipe", "network_module", LYCORIS, said)
        args = {"algo": "locon", "preset": "full" if args.get("conv_dim") else "attn-mlp"} | args
        if args.get("conv_dim"):
            args.setdefault("conv_alpha", 1.0)  # networks.lora's own default
    unread = UNREAD if module == LYCORIS else {}
    for key, value in args.items():
        if key in unread:
            told.note(f"network_args.{key}", value, unread[key])
            if value not in (False, None):
                told.warnings.append(f"network_args.{key}: {unread[key]}: not taken over")
        elif key in KNOWN:
            draft.set("recipe.network_args", key, _whole(value) if key in WHOLE else value)
        else:
            _unknown(told, key, value)
    if told.arguments.get("network_dropout") and module == LYCORIS:
        told.note(
            "network_dropout", told.arguments["network_dropout"], "LyCORIS's locon leaves nothing out; here it is done"
        )


WHOLE = ("conv_dim", "block_size", "factor")


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unknown(told: Told, key: str, value: Any) -> None:
    if key in RATES:
        why = "rates by block: lorabuild has ranks by block (block_dims), and one rate for the U-Net"
    else:
        refused = REFUSED.get(f"NetworkArgs.{key}", "").removesuffix(": leave it out")
        why = refused or f"nobody reads it{near_miss(key, KNOWN)}"
    told.note(f"network_args.{key}", value, why)
    told.warnings.append(f"network_args.{key}: {why}: not taken over")
