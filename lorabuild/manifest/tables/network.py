"""[recipe.network_args]: LyCORIS' arguments, and which of them go together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lorabuild.lora.presets import WITHOUT_TEXT
from lorabuild.manifest import values
from lorabuild.manifest.blocks import per_block
from lorabuild.manifest.tables.table import Count, Part, Rate, Table, Whole, off
from lorabuild.manifest.values import Misfit

Dims = Annotated[dict[str, Whole], BeforeValidator(per_block)]
Alphas = Annotated[dict[str, Rate], BeforeValidator(per_block)]
Ratio = Annotated[float, Field(gt=0)]

# Argument -> the algorithms that know it; all others know it not, or LyCORIS reads it and does nothing.
OWNERS = {
    "use_tucker": ("locon", "loha", "lokr"),
    "use_scalar": ("locon", "loha", "lokr", "glora"),
    "rs_lora": ("locon", "loha", "lokr", "glora"),
    "dora_wd": ("locon", "loha", "lokr"),
    "block_size": ("dylora",),
    "factor": ("lokr",),
    "decompose_both": ("lokr",),
    "full_matrix": ("lokr",),
    "unbalanced_factorization": ("lokr",),
    "constraint": ("diag-oft", "boft"),
    "rescaled": ("diag-oft", "boft"),
    "loraplus_lr_ratio": ("locon", "dylora"),
    "loraplus_unet_lr_ratio": ("locon", "dylora"),
    "loraplus_text_encoder_lr_ratio": ("locon", "dylora"),
}
BOFT_LEAST = 10  # SDXL's widths are 5·2ⁿ and 3·2ⁿ, and a block of a butterfly is even


class NetworkArgs(Table):
    algo: Annotated[
        Literal["locon", "loha", "lokr", "dylora", "full", "ia3", "diag-oft", "boft", "glora"],
        BeforeValidator(values.algo),
    ] = Field("locon", description='LyCORIS\'s algorithm; "lora" is locon.')
    preset: Literal[
        "full", "full-lin", "attn-mlp", "attn-only", "unet-only", "unet-transformer-only", "unet-convblock-only"
    ] = Field("full", description="LyCORIS's preset: which layers get an adapter.")
    conv_dim: Count | None = Field(None, description="Rank of 3x3 convolutions; default network_dim.")
    conv_alpha: Rate | None = Field(None, description="Alpha of 3x3 convolutions; default network_alpha.")
    block_dims: Dims | None = off(
        None,
        'Ranks of blocks: {INP07 = 16, "OUT*" = 4, TE = 0}, or sd-scripts\' 23 numbers; a block of 0 is not trained.',
    )
    block_alphas: Alphas | None = off(None, "Alphas of blocks, written as block_dims are; default network_alpha.")
    conv_block_dims: Dims | None = off(
        None, "Ranks of the 3x3 convolutions of blocks; default conv_dim if that is set, else block_dims."
    )
    conv_block_alphas: Alphas | None = off(None, "Alphas of the 3x3 convolutions of blocks; default conv_alpha.")
    dropout: Part = off(0.0, "Part of the numbers that an adapter adds which is left out, each time others.")
    rank_dropout: Part = off(0.0, "Part of the ranks (of algorithms without ranks: of the outputs) that is left out.")
    rank_dropout_scale: bool = off(False, "Enlarge the ranks that rank_dropout leaves, so that the mean stays.")
    module_dropout: Part = off(0.0, "Part of the layers whose adapter is left out.")
    use_tucker: bool = off(False, "Take the kernel of a 3x3 convolution apart as well: Tucker's decomposition.")
    use_scalar: bool = off(False, "Start from a trained factor of 0 instead of a matrix of zeros.")
    rs_lora: bool = off(False, "Scale by alpha / √rank instead of alpha / rank.")
    dora_wd: bool = off(False, "DoRA: train the norm of each output's weights apart from their direction.")
    wd_on_output: bool = off(True, "DoRA's norms are those of outputs; false: of inputs.")
    train_norm: bool = off(False, "Train the norms of ResNets and transformers, too.")
    block_size: Count = off(4, "dylora: ranks that are trained at a time.")
    factor: Annotated[int, Field(ge=-1, le=65536)] = off(-1, "lokr: size of the first factor; -1 is about the root.")
    decompose_both: bool = off(False, "lokr: make the first factor a product of low rank, too.")
    full_matrix: bool = off(False, "lokr: no factor is a product of low rank.")
    unbalanced_factorization: bool = off(False, "lokr: exchange the sizes of both factors' outputs.")
    constraint: Rate = off(0.0, "diag-oft, boft: how far an output may turn, a channel; 0 sets no limit.")
    rescaled: bool = off(False, "diag-oft, boft: train the length of outputs, too.")
    loraplus_lr_ratio: Ratio | None = off(None, "LoRA+: learning rate of up matrices, in learning rates of the rest.")
    loraplus_unet_lr_ratio: Ratio | None = off(None, "That of the U-Net; default loraplus_lr_ratio.")
    loraplus_text_encoder_lr_ratio: Ratio | None = off(None, "That of both text encoders; default loraplus_lr_ratio.")

    @model_validator(mode="after")
    def _known(self) -> NetworkArgs:
        for key, algos in OWNERS.items():
            if self.algo not in algos and getattr(self, key) != type(self).model_fields[key].default:
                raise Misfit(
                    key,
                    f'algo "{self.algo}" has none; {_listed(algos)} have'
                    if len(algos) > 1
                    else f'algo "{self.algo}" has none; {algos[0]} has',
                )
        if not self.wd_on_output and not self.dora_wd:
            raise Misfit("wd_on_output", "it says which norms DoRA trains: set dora_wd = true")
        if self.factor == 0:
            raise Misfit("factor", "expected -1 or 1 and more, got 0")
        return self


def settle(recipe: Any) -> None:
    """Complete the adapter's settings of a whole [recipe], so that settings that mean the same are the same."""
    args: NetworkArgs = recipe.network_args
    _settle_parts(recipe, args)
    if recipe.network_dropout:
        if args.dropout not in (0.0, recipe.network_dropout):
            raise Misfit("network_dropout", f"network_args.dropout is {args.dropout:g}: one of them is enough")
        args.dropout, recipe.network_dropout = recipe.network_dropout, 0.0
    if args.rank_dropout_scale and not args.rank_dropout:
        raise Misfit("network_args.rank_dropout_scale", "it says what rank_dropout leaves: set that, too")
    _settle_ranks(recipe, args)
    ranks = {"network_dim": recipe.network_dim, "network_args.conv_dim": args.conv_dim}
    ranks |= {
        f"network_args.{key}": dim
        for key in ("block_dims", "conv_block_dims")
        for dim in (getattr(args, key) or {}).values()
        if dim
    }
    for key, dim in ranks.items():
        if args.algo == "dylora" and dim % args.block_size:
            raise Misfit(key, f"dylora needs a multiple of its block_size {args.block_size}, got {dim}")
        if args.algo == "boft" and dim < BOFT_LEAST:
            raise Misfit(key, f"boft needs {BOFT_LEAST} or more: no smaller block divides SDXL's widths, got {dim}")


def _settle_parts(recipe: Any, args: NetworkArgs) -> None:
    """Which parts are trained, told by their learning rates alone."""
    if recipe.network_train_unet_only and recipe.network_train_text_encoder_only:
        raise Misfit("network_train_text_encoder_only", "with network_train_unet_only nothing would be trained")
    if recipe.network_train_unet_only or args.preset in WITHOUT_TEXT:
        recipe.text_encoder_lr = 0.0
    if recipe.network_train_text_encoder_only:
        recipe.unet_lr = 0.0
    recipe.network_train_unet_only = recipe.network_train_text_encoder_only = False
    if isinstance(recipe.text_encoder_lr, list) and len(set(recipe.text_encoder_lr)) == 1:
        recipe.text_encoder_lr = recipe.text_encoder_lr[0]


def _settle_ranks(recipe: Any, args: NetworkArgs) -> None:
    """Ranks and alphas of all, then what differs from them by block. An alpha of 0 is the rank."""
    dims, conv_is_set = args.block_dims or {}, args.conv_dim is not None
    args.conv_dim = args.conv_dim or recipe.network_dim
    if args.conv_alpha is None:
        args.conv_alpha = recipe.network_alpha
    args.conv_alpha = args.conv_alpha or float(args.conv_dim)
    recipe.network_alpha = recipe.network_alpha or float(recipe.network_dim)
    inherited = {block: dim for block, dim in dims.items() if not (dim and conv_is_set)}
    conv_dims = inherited | (args.conv_block_dims or {})
    args.block_dims = {block: dim for block, dim in dims.items() if dim != recipe.network_dim} or None
    args.conv_block_dims = {block: dim for block, dim in conv_dims.items() if dim != args.conv_dim} or None
    args.block_alphas = _others(args.block_alphas, recipe.network_alpha)
    args.conv_block_alphas = _others(args.conv_block_alphas, args.conv_alpha)


def _others(alphas: dict[str, float] | None, usual: float) -> dict[str, float] | None:
    return {block: float(alpha) for block, alpha in (alphas or {}).items() if alpha != usual} or None


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
