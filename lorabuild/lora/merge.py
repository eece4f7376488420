"""Plan a merge of LoRA files from their headers: which layers meet, under which names, and what cannot be added up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from lorabuild.errors import JobError, in_file
from lorabuild.header import TensorInfo
from lorabuild.lora.canonical import block_of_module, canonical
from lorabuild.lora.layers import LINEAR, Layer, module_of, read_layers, split_key, weight_shape
from lorabuild.lora.lowrank import LowRank
from lorabuild.writing import COPY_BYTES

DIFF = ".diff"

# SDXL's convolutions by kohya's names. LyCORIS stores some factors flat, [R, I·∏k], and a .diff must have all dimensions.
_KERNELS = (
    (re.compile(r"lora_unet_(?:input_blocks_0_0|out_2|.+_(?:in_layers_2|out_layers_3|0_op|2_conv))"), (3, 3)),
    (re.compile(r"lora_unet_.+_skip_connection"), (1, 1)),
)

# How a module's name begins, up to the first number: by it two spellings differ.
_HEAD = re.compile(
    r"(?P<prefix>.*?)(?:(?P<sgm>input_blocks|middle_block|output_blocks)|(?:down|up)_blocks|mid_block|encoder[._]layers)(?P<dot>[._])"
)
_DIFFUSERS = re.compile(r"(?:base_model\.model\.)?(?:unet|text_encoder|text_encoder_2)\.")


@dataclass(frozen=True)
class Source:
    """A file of the merge, and what its effect is multiplied by: `weight`, and in some blocks another factor."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    weight: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def weight_of(self, module: str) -> float:
        return self.weight * self.blocks.get(block_of_module(module) or "", 1.0)


@dataclass(frozen=True)
class Part:
    """What one file adds to a layer: `factor` times its factors' product, alpha / R included."""

    path: Path
    layer: Layer
    factor: float


@dataclass(frozen=True)
class MergedLayer:
    """A layer of the new file. `rank` is None where its sum is written whole, as a .diff."""

    names: LowRank
    parts: tuple[Part, ...]
    rank: int | None


@dataclass(frozen=True)
class LinearPart:
    """`factor` times a tensor of one file."""

    path: Path
    key: str
    info: TensorInfo
    factor: float


@dataclass(frozen=True)
class LinearSum:
    """A norm, a bias or the like of the new file: the sum of its parts."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[LinearPart, ...]


@dataclass(frozen=True)
class Plan:
    """All that the new file will hold. `kept` are tensors of no known kind, and the file that has them."""

    layers: tuple[MergedLayer, ...]
    sums: tuple[LinearSum, ...]
    kept: Mapping[str, tuple[Path, TensorInfo]]


def plan_merge(sources: Sequence[Source], scale_of: Callable[[Path, Layer], float]) -> Plan:
    """What Σ weight · ΔW of the files is made of; `scale_of` reads a layer's alpha / R.

    What is multiplied by 0 is left out. Raises JobError for what is not linear or not whole, and for shapes of one layer
    that differ.
    """
    layers: dict[str, list[Part]] = {}
    linear: dict[tuple[str, str], list[LinearPart]] = {}
    unknown: dict[str, list[tuple[Path, TensorInfo]]] = {}
    for source in sources:
        own, rest = _read(source)
        for part in _parts(source, own, scale_of):
            layers.setdefault(_meeting(part.layer.name), []).append(part)
        for where, one in _linear_parts(source, rest).items():
            linear.setdefault(where, []).append(one)
        for key, info in _unknown(source, rest).items():
            unknown.setdefault(key, []).append((source.path, info))

    alike = _spelled_alike(
        [part.layer for parts in layers.values() for part in parts],
        [module_of(one.key) for parts in linear.values() for one in parts],
    )
    return Plan(
        tuple(_merged_layer(name, parts, alike) for name, parts in sorted(layers.items())),
        tuple(_linear_sum(name, parts, alike) for name, parts in sorted(linear.items())),
        {key: _same_everywhere(key, found) for key, found in unknown.items()},
    )


def product_rank(layer: Layer) -> int | None:
    """R of exact factors up [O, R] and down [R, J]; None where only the full matrix is exact, or no larger.

    As nn.factors reads them. A LoRA always has factors, even if R exceeds the sides of the matrix.
    """
    if layer.flavour == "full":
        return None
    shapes = {role: info.shape for role, info in layer.infos.items()}
    if layer.flavour == "lora":
        return shapes["up"][1]
    if layer.flavour == "loha":
        has_core = "hada_t1" in shapes or "hada_t2" in shapes
        rank = None if has_core else shapes["hada_w1_a"][1] * shapes["hada_w2_a"][1]
    else:
        rank = _kronecker_rank(shapes, "w1", None) * _kronecker_rank(shapes, "w2", shapes.get("lokr_t2"))
    out, *rest = weight_shape(layer)
    return rank if rank and rank < min(out, prod(rest)) else None


def _kronecker_rank(shapes: Mapping[str, tuple[int, ...]], part: str, core: tuple[int, ...] | None) -> int:
    """Of a whole matrix the smaller side: the identity is its other factor."""
    if whole := shapes.get(f"lokr_{part}"):
        return min(whole[0], prod(whole[1:]))
    a, b = shapes[f"lokr_{part}_a"], shapes[f"lokr_{part}_b"]
    return min(a[1], prod((b[1], *core[2:]))) if core else a[1]


def _meeting(module: str) -> str:
    """The name under which modules of several files meet."""
    return canonical(module) or module


def _read(source: Source) -> tuple[list[Layer], dict[str, TensorInfo]]:
    """The layers of a file, and its other tensors. ComfyUI extracts differences of vectors, too: they are no layers."""
    with in_file(source.path):
        layers, rest = read_layers(source.tensors, source.metadata)
    vectors = [layer for layer in layers if layer.flavour == "full" and len(layer.infos["diff"].shape) < 2]
    rest |= {key: layer.infos[role] for layer in vectors for role, key in layer.keys.items()}
    return [layer for layer in layers if layer not in vectors], rest


def _parts(source: Source, layers: Sequence[Layer], scale_of: Callable[[Path, Layer], float]) -> Iterator[Part]:
    names: dict[str, str] = {}
    for layer in layers:
        _only_name(source, names.setdefault(_meeting(layer.name), layer.name), layer.name)
        weight = source.weight_of(layer.name)
        if weight and (factor := weight * scale_of(source.path, layer)):
            yield Part(source.path, layer, factor)


def _linear_parts(source: Source, rest: Mapping[str, TensorInfo]) -> dict[tuple[str, str], LinearPart]:
    """(name under which they meet, role) -> norms, biases and the like. Raises JobError for what is not linear."""
    found: dict[tuple[str, str], LinearPart] = {}
    for key, info in rest.items():
        module, role = split_key(key) or ("", "")
        if role == "dora_scale":
            raise JobError(
                f"{source.path}: {key}: a DoRA cannot be merged: its magnitudes depend on the base, so it is not linear"
            )
        if role in LINEAR and (weight := source.weight_of(module)):
            one = found.setdefault((_meeting(module), role), LinearPart(source.path, key, info, weight))
            _only_name(source, one.key, key)
    return found


def _only_name(source: Source, first: str, name: str) -> None:
    if first != name:
        raise JobError(f"{source.path}: {first} and {name} are one and the same: which of them counts?")


def _unknown(source: Source, rest: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Tensors whose names end in no known way, and the alphas beside them. Raises JobError for parts of layers."""
    found = {key: info for key, info in rest.items() if split_key(key) is None}
    strange = {module_of(key) for key in found}
    for key, info in rest.items():
        module, role = split_key(key) or ("", "")
        if role == "alpha" and module in strange:
            found[key] = info
        elif role and role != "alpha" and role not in LINEAR:  # an alpha of nothing, or of a norm, does nothing
            raise JobError(f"{source.path}: {key}: belongs to no whole layer, so that it cannot be merged")
    return {key: info for key, info in found.items() if source.weight_of(module_of(key))}


def _spelled_alike(layers: Sequence[Layer], others: Sequence[str]) -> bool:
    """Whether all files spell their names in one way, so that the new one can keep it."""
    modules = {*(layer.name for layer in layers), *others}
    known = {module: name for module in modules if (name := canonical(module))}
    found = [(name, match) for name in known if (match := _HEAD.match(name))]
    heads = {(_component(name), match["prefix"], bool(match["sgm"]), match["dot"]) for name, match in found}
    ends = {(_component(layer.name), layer.suffix("up")) for layer in layers}
    return (
        len(set(known.values())) == len(known)
        and len({_family(name) for name in known}) < 2
        and all(len({component for component, *_ in ways}) == len(ways) for ways in (heads, ends))
    )


def _family(module: str) -> str:
    """Whose names they are: a file that mixes them is read in part by one loader, in part by another."""
    return "kohya" if module.startswith("lora_") else "diffusers" if _DIFFUSERS.match(module) else "others"


def _component(module: str) -> str:
    """unet, te1, te2; empty for what SDXL does not have."""
    return (canonical(module) or "_").split("_")[1]


def _merged_layer(name: str, parts: Sequence[Part], alike: bool) -> MergedLayer:
    shape = _shape(name, parts)
    if alike:
        own = next((part.layer for part in parts if part.layer.flavour == "lora"), parts[0].layer)
        names = LowRank.of(own, shape)
    else:
        names = LowRank(name, f"{name}.lora_up.weight", f"{name}.lora_down.weight", f"{name}.alpha", shape)
    ranks = [product_rank(part.layer) for part in parts]
    return MergedLayer(names, tuple(parts), None if None in ranks else sum(filter(None, ranks)))


def _shape(name: str, parts: Sequence[Part]) -> tuple[int, ...]:
    """The shape [O, I, *k] of the weight that all parts change: where it is known, with the kernel."""
    shapes = [(weight_shape(part.layer), part) for part in parts]
    shape, first = next((one for one in shapes if len(one[0]) > 2), shapes[0])
    for other, part in shapes:
        if other != shape and (len(other) > 2 or (other[0], other[1]) != (shape[0], prod(shape[1:]))):
            raise JobError(
                f"{first.layer.name}: changes a weight {list(shape)} in {first.path} and {list(other)} in {part.path}: "
                "not LoRAs of one family of models"
            )
    if len(shape) > 2:
        return shape
    out, columns = shape
    kernel = next((kernel for names, kernel in _KERNELS if names.fullmatch(canonical(name) or "")), ())
    return shape if not kernel or columns % prod(kernel) else (out, columns // prod(kernel), *kernel)


def _linear_sum(name: tuple[str, str], parts: Sequence[LinearPart], alike: bool) -> LinearSum:
    first = parts[0]
    for other in parts[1:]:
        if other.info.shape != first.info.shape:
            raise JobError(
                f"{first.key}: has shape {list(first.info.shape)} in {first.path} and {list(other.info.shape)} in "
                f"{other.path}: not LoRAs of one family of models"
            )
    return LinearSum(first.key if alike else ".".join(name), first.info.shape, tuple(parts))


def _same_everywhere(key: str, found: Sequence[tuple[Path, TensorInfo]]) -> tuple[Path, TensorInfo]:
    (path, info), *others = found
    for other, its in others:
        if (its.dtype, its.shape) != (info.dtype, info.shape) or not _same_bytes(path, info, other, its):
            raise JobError(
                f"{key}: differs between {path} and {other}, and is of no kind known here: it cannot be added up"
            )
    return path, info


def _same_bytes(path: Path, info: TensorInfo, other: Path, its: TensorInfo) -> bool:
    with open(path, "rb") as one, open(other, "rb") as two:
        one.seek(info.start)
        two.seek(its.start)
        left = info.stop - info.start
        while left:
            chunk = one.read(min(left, COPY_BYTES))
            if not chunk or chunk != two.read(len(chunk)):
                return False
            left -= len(chunk)
    return True
