"""Put an adapter on a diffusers SDXL, exactly where kohya's trainer puts LyCORIS', and take it off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lorabuild.errors import JobError
from lorabuild.lora.adapter_shape import Shape, component_of, expanded, plus_ratio, rates_of
from lorabuild.lora.adapter_tensors import Start, layout, norm_layout
from lorabuild.lora.keymap import EXPECTED, adaptable_modules, lora_name
from lorabuild.lora.presets import COMPONENTS, TEXT_PARTS, preset_layers, preset_norms
from lorabuild.nn.adapters.chance import Chance
from lorabuild.nn.adapters.fused import fused
from lorabuild.nn.adapters.limits import Norms, limit_norms
from lorabuild.nn.adapters.module import Module
from lorabuild.nn.adapters.start import FromFile, check_fits, drawn, dylora_blocks, layers_of_file
from lorabuild.nn.adapters.weights import scale_of
from lorabuild.nn.base import Base

SCALES = "norm_scales"  # in a training's state: what scale_weight_norms has done to each layer, in name order


@dataclass(frozen=True)
class Adapter:
    """An adapter in place: its modules by kohya's names, in name order; `parts`: which of te1, te2 and unet are trained."""

    modules: dict[str, Module]
    parts: tuple[str, ...]
    chance: Chance

    def parameters(self, part: str | None = None) -> dict[str, Parameter]:
        """Trained parameters of a part ("te": both text encoders; None: all) by the names that they have in a file."""
        parts = set(expanded([part]) if part else self.parts)
        return {
            name: parameter
            for own, module in self.modules.items()
            if component_of(own) in parts
            for name, parameter in module.parameters()
            if parameter.requires_grad
        }

    def groups(self, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The optimizer's groups: {"params", "name", "logged", "lr"}, `lr` as the recipe sets it, before its schedule.

        "te1", "te2", "unet"; with LoRA+ the up matrices apart, as "unet+plus" (Hayou et al. 2024). `logged` is sd-scripts'
        name of the rate: "textencoder" is both, where they have one rate.
        """
        rates, found = rates_of(recipe), []
        one_rate = not isinstance(recipe.get("text_encoder_lr"), Sequence)
        for part in self.parts:
            ratio = plus_ratio(recipe, part)
            parameters = self.parameters(part)
            plus = [p for name, p in parameters.items() if ratio and ".lora_up." in name]
            chosen = {id(parameter) for parameter in plus}
            rest = [p for p in parameters.values() if id(p) not in chosen]
            logged = part if part == "unet" else "textencoder" if one_rate else f"textencoder {part[-1]}"
            if rest:
                found.append({"params": rest, "name": part, "logged": logged, "lr": rates[part]})
            if plus:
                rate = rates[part] * ratio
                found.append({"params": plus, "name": f"{part}+plus", "logged": f"{logged} plus", "lr": rate})
        return found

    @property
    def trains_text(self) -> bool:
        """Whether gradients are to reach a text encoder."""
        return any(part in self.parts for part in TEXT_PARTS)

    @property
    def leaves_text(self) -> bool:
        """Whether a text is encoded alike at each step: nothing of an encoder is trained, nor drawn anew."""
        on_text = [module for name, module in self.modules.items() if component_of(name) in TEXT_PARTS]
        return not self.trains_text and not any(module.draws for module in on_text)

    def counts(self) -> dict[str, int]:
        """Modules of each part: {"unet": 788, "te": 264} where both are there."""
        components = [component_of(name) for name in self.modules]
        return {"unet": components.count("unet"), "te": len(components) - components.count("unet")}

    def at(self, *moment: int) -> None:
        """Which micro-batch comes next, as (update, micro-batch): dropout follows from that, and from nothing else."""
        self.chance.moment = moment

    def measuring(self) -> None:
        """Nothing is dropped from now on, and DyLoRA has all ranks: as the file will be."""
        self.chance.moment = None

    def limit_norms(self, limit: float) -> Norms:
        """scale_weight_norms, to be called after each update: in between nothing changes, so that it is the same."""
        return limit_norms((module for name, module in self.modules.items() if component_of(name) in self.parts), limit)

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, for its state."""
        scales = torch.tensor([module.norm_scale for module in self.modules.values()], dtype=torch.float64)
        return {**self.parameters(), SCALES: scales}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over `tensors` of a state, in place."""
        for name, parameter in self.parameters().items():
            parameter.copy_(tensors[name])
        for module, scale in zip(self.modules.values(), tensors[SCALES].tolist(), strict=True):
            module.norm_scale = scale


@contextmanager
def adapted(
    base: Base,
    shape: Shape,
    seed: int,
    parts: Sequence[str],
    device: str = "cpu",
    init: Mapping[str, Tensor] | None = None,
    fuse: bool = False,
) -> Iterator[Adapter]:
    """`base` with an adapter on its U-Net ("unet" in `parts`) and text encoders ("te1", "te2"), within a with block.

    Fresh, it changes nothing yet, and each tensor is drawn from a stream of its own, so that it depends on the seed and
    its name alone. `init` holds the tensors of a LoRA file: then its layers, ranks and alphas are the adapter's, and those
    of parts that are not trained are there, too, and stay as they are. With `fuse` q, k and v are computed in one, which
    rounds otherwise. Afterwards the base is as it was before.
    Raises JobError unless the base has exactly SDXL's layers.
    """
    trained, chance = expanded(parts), Chance(seed)
    made = _from_file(base, shape, init, chance) if init is not None else _fresh(base, shape, seed, trained, chance)
    modules = dict(sorted(made.items()))
    for name, module in modules.items():
        learns = component_of(name) in trained
        module.tensors = {
            kind: Parameter(tensor.to(device, torch.float32), requires_grad=learns)
            for kind, tensor in module.tensors.items()
        }
    if not any(component_of(name) in trained for name in modules):
        raise JobError("the adapter has no layer to train: see network_args, the learning rates and init")
    attentions = [*fused(base.unet, modules.values())] if fuse else []
    attached = [*modules.values(), *attentions]
    try:
        for one in attached:
            one.attach()
        yield Adapter(modules, tuple(part for part in trained if any(component_of(n) == part for n in modules)), chance)
    finally:
        for one in attached:
            one.detach()


def sdxl_layers(base: Base, component: str) -> dict[str, nn.Module]:
    """kohya's name -> layer, of all that preset "full" adapts and all norms. Raises JobError unless it is SDXL's set."""
    root = {"unet": base.unet, "te1": base.te1, "te2": base.te2}[component]
    modules = dict(root.named_modules())
    layers = adaptable_modules(component, modules)
    if len(layers) != EXPECTED[component] or layers.keys() != preset_layers("full", component):
        raise JobError(
            f"{component}: the adapter found {len(layers)} layers, SDXL has {EXPECTED[component]}; the base is not SDXL, or "
            "diffusers or transformers is not the version of constraints.txt"
        )
    norms = {}
    if component == "unet":
        for path, module in modules.items():
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and path != "conv_norm_out":
                norms[lora_name(component, path)] = path
    return {name: modules[path] for name, path in {**layers, **norms}.items()}


def _fresh(base: Base, shape: Shape, seed: int, parts: Sequence[str], chance: Chance) -> dict[str, Module]:
    found = {}
    for component in parts:
        layers = sdxl_layers(base, component)
        for name in sorted(preset_layers(shape.preset, component)):
            layer = layers[name]
            dim, alpha = shape.rank(name, any(side > 1 for side in layer.weight.shape[2:]))
            if not dim:
                continue
            options = {**shape.options, "bias": layer.bias is not None}
            try:
                starts = layout(shape.algo, tuple(layer.weight.shape), dim, options)
            except ValueError as error:
                raise JobError(f"recipe.network_args: {name}: {error}") from None
            scale = scale_of(options, shape.algo, dim, alpha, starts)
            found[name] = _module(name, layer, shape.algo, starts, dim, scale, shape, seed, chance)
        if component == "unet" and shape.options.get("train_norm"):
            for name in sorted(preset_norms(shape.preset)):
                if shape.rank(name, False)[0]:
                    starts = norm_layout(len(layers[name].weight))
                    found[name] = _module(name, layers[name], "norm", starts, 1, 1.0, shape, seed, chance)
    return found


def _module(
    name: str,
    layer: nn.Module,
    algo: str,
    starts: Mapping[str, Start],
    dim: int,
    scale: float,
    shape: Shape,
    seed: int,
    chance: Chance,
) -> Module:
    tensors: dict[str, Any] = {kind: drawn(seed, name, kind, start, layer.weight) for kind, start in starts.items()}
    return Module(name, layer, algo, tensors, dim, scale, shape.options, chance)


def _from_file(base: Base, shape: Shape, init: Mapping[str, Tensor], chance: Chance) -> dict[str, Module]:
    layers = {name: layer for component in COMPONENTS for name, layer in sdxl_layers(base, component).items()}
    found = {}
    for name, one in layers_of_file(init).items():
        if name not in layers:
            raise JobError(f"init: {name} is no layer that can be trained")
        check_fits(name, one, layers[name])
        wanted = "locon" if shape.algo == "dylora" else shape.algo
        if one.algo not in (wanted, "norm"):
            raise JobError(f'init: {name} is {one.algo}; set recipe.network_args.algo = "{one.algo}" to go on from it')
        found[name] = _continued(name, layers[name], one, shape, chance)
    return found


def _continued(name: str, layer: nn.Module, one: FromFile, shape: Shape, chance: Chance) -> Module:
    tensors: dict[str, Any] = dict(one.tensors)
    algo = "norm" if one.algo == "norm" else shape.algo
    options = dict(shape.options)
    if algo == "dylora":
        block = options.get("block_size", 4)
        if one.dim % block:
            raise JobError(f"init: {name}: its rank {one.dim} is not a multiple of block_size {block}")
        tensors = dylora_blocks(tensors, block)
    if algo in ("diag-oft", "boft"):
        options["constraint"] = one.alpha
    if options.get("use_scalar") and algo in ("locon", "loha", "lokr", "glora"):
        tensors["scalar"] = torch.ones(())
    scale = scale_of({}, algo, one.dim, one.alpha, tensors)
    return Module(name, layer, algo, tensors, one.dim, scale, options, chance)
