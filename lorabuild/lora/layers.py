"""Read from a header which layers a LoRA file has, of what flavour, and which tensors are of no known layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

from lorabuild.errors import JobError
from lorabuild.header import TensorInfo
from lorabuild.lora.adapter_metadata import adapter_scale
from lorabuild.lora.canonical import canonical

Flavour = Literal["lora", "loha", "lokr", "full"]

# How a tensor's name ends -> what it is of its layer. Trainers: kohya and LyCORIS; PEFT; diffusers, new and old.
ROLES = {
    ".lora_up.weight": "up", ".lora_down.weight": "down", ".lora_mid.weight": "mid",
    ".lora_B.weight": "up", ".lora_A.weight": "down",
    ".lora_B.default.weight": "up", ".lora_A.default.weight": "down",
    ".lora.up.weight": "up", ".lora.down.weight": "down",
    "_lora.up.weight": "up", "_lora.down.weight": "down",
    ".lora_linear_layer.up.weight": "up", ".lora_linear_layer.down.weight": "down",
    ".alpha": "alpha", ".dora_scale": "dora_scale",
    ".lora_magnitude_vector": "dora_scale", ".lora_magnitude_vector.weight": "dora_scale",
    ".lora_magnitude_vector.default.weight": "dora_scale",
    **{f".{role}": role for role in (
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
        "diff", "diff_b", "w_norm", "b_norm",
    )},
}  # fmt: skip
LINEAR = ("diff", "diff_b", "w_norm", "b_norm")  # what changes the base by itself, and not as a factor of a product
_SUFFIXES = sorted(ROLES, key=len, reverse=True)

# Flavour -> the roles that make one, in groups of which one must be there, whole.
_FLAVOURS: dict[Flavour, tuple[tuple[tuple[str, ...], ...], ...]] = {
    "lora": ((("up", "down"),),),
    "loha": ((("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),),
    "lokr": ((("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")), (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))),
    "full": ((("diff",),),),
}
_OPTIONAL = {
    "lora": ("mid", "alpha"),
    "loha": ("hada_t1", "hada_t2", "alpha"),
    "lokr": ("lokr_t2", "alpha"),
    "full": ("alpha",),
}
# Flavour -> the factor whose rows are a layer's rank, the first that it has. A full difference has none, nor has LoKr of
# two whole factors.
_RANKED = {"lora": ("down",), "loha": ("hada_w1_b",), "lokr": ("lokr_w2_b", "lokr_w1_b"), "full": ()}
_KOHYA_UP = ".lora_up.weight"


@dataclass(frozen=True)
class Layer:
    """What a LoRA adds to one weight of the base.

    `name` is as the file has it; `keys` and `infos` are its tensors by role (ROLES): those that make up the weight's
    change. Scales, norms and biases that stand beside are none of them.
    """

    name: str
    flavour: Flavour
    keys: Mapping[str, str] = field(hash=False)
    infos: Mapping[str, TensorInfo] = field(hash=False)
    scale: float = 1.0  # without an alpha: what up @ down is multiplied by, from the metadata

    @property
    def canonical(self) -> str | None:
        """kohya's name of the module, None if it is none of SDXL's."""
        return canonical(self.name)

    @property
    def rank(self) -> int | None:
        """What alpha is divided by, as LyCORIS and ComfyUI have it; None where an alpha means nothing."""
        return next((self.infos[role].shape[0] for role in _RANKED[self.flavour] if role in self.infos), None)

    def suffix(self, role: Literal["up", "down", "alpha"]) -> str:
        """How a tensor of this layer is called once it is low-rank: as the file does it, else as kohya does."""
        known = {"up": _KOHYA_UP, "down": ".lora_down.weight", "alpha": ".alpha"}
        return self.keys[role].removeprefix(self.name) if role in self.keys and self.flavour == "lora" else known[role]

    @property
    def has_alphas(self) -> bool:
        """Whether files of its kind hold alphas: PEFT's and diffusers' do not, their scale is 1."""
        return self.suffix("up") == _KOHYA_UP


def split_key(key: str) -> tuple[str, str] | None:
    """(module, role) of a tensor's name: `lora_te1_x.alpha` -> (`lora_te1_x`, "alpha"). None if the end is unknown."""
    module, _, last = key.rpartition(".")
    if last == "weight":
        module, _, last = module.rpartition(".")
        last += ".weight"
    if (role := ROLES.get(f".{last}")) and module:
        return module, role
    for suffix in _SUFFIXES:  # those with more dots, or none in front
        if key.endswith(suffix) and len(key) > len(suffix):
            return key.removesuffix(suffix), ROLES[suffix]
    return None


def module_of(key: str) -> str:
    """The module that a tensor belongs to; for a name that ends in no known way, all before the first dot."""
    found = split_key(key)
    return found[0] if found else key.partition(".")[0]


def read_layers(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None
) -> tuple[list[Layer], dict[str, TensorInfo]]:
    """(layers in name order, the tensors that are in none). Reads no tensor; nothing is left out.

    A layer is what changes one weight, and complete. Norms, biases, DoRA scales, tensors with an unknown ending and
    those of an incomplete layer are in none.
    """
    modules: dict[str, dict[str, str]] = {}
    for key in tensors:
        if found := split_key(key):
            module, role = found
            modules.setdefault(module, {}).setdefault(role, key)
    layers = [layer for name in sorted(modules) if (layer := _layer(name, modules[name], tensors))]
    if scale := adapter_scale(metadata or {}):
        layers = [replace(one, scale=scale(one.name, one.infos)) if "alpha" not in one.keys else one for one in layers]
    taken = {key for layer in layers for key in layer.keys.values()}
    return layers, {key: info for key, info in tensors.items() if key not in taken}


def _layer(name: str, keys: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> Layer | None:
    for flavour, groups in _FLAVOURS.items():
        found = [next((ways for ways in group if all(role in keys for role in ways)), None) for group in groups]
        if all(found) and not (flavour == "full" and len(tensors[keys["diff"]].shape) < 2):  # a norm's, or a bias'
            roles = [role for ways in found if ways for role in ways] + [r for r in _OPTIONAL[flavour] if r in keys]
            own = {role: keys[role] for role in roles}
            return Layer(name, flavour, own, {role: tensors[key] for role, key in own.items()})
    return None


def weight_shape(layer: Layer) -> tuple[int, ...]:
    """The shape [O, I, *k] of the base's weight that the layer changes. Raises JobError where its tensors do not fit."""
    shapes = {role: info.shape for role, info in layer.infos.items()}
    try:
        shape = _SHAPES[layer.flavour](shapes)
    except (ValueError, IndexError):
        raise JobError(f"{layer.name}: its tensors do not fit together: {_shown(shapes)}") from None
    if not all(all(one) for one in shapes.values()):
        raise JobError(f"{layer.name}: has an empty tensor: {_shown(shapes)}")
    return shape


def _lora_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    up, down, mid = shapes["up"], shapes["down"], shapes.get("mid")
    if mid is None:
        return _product(up, down)
    _expect(len(mid) == 4 and mid[0] == up[1] and mid[1] == down[0] and prod(up[2:]) == prod(down[2:]) == 1)
    return (up[0], down[1], *mid[2:])


def _loha_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    found = []
    for number in "12":
        a, b, core = shapes[f"hada_w{number}_a"], shapes[f"hada_w{number}_b"], shapes.get(f"hada_t{number}")
        found.append(_product(a, b) if core is None else _tucker(core, a, b))
    _expect(found[0] == found[1])
    return found[0]


def _lokr_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    w1 = shapes["lokr_w1"] if "lokr_w1" in shapes else _product(shapes["lokr_w1_a"], shapes["lokr_w1_b"])
    if "lokr_w2" in shapes:
        w2 = shapes["lokr_w2"]
    elif "lokr_t2" in shapes:
        w2 = _tucker(shapes["lokr_t2"], shapes["lokr_w2_a"], shapes["lokr_w2_b"])
    else:
        w2 = _product(shapes["lokr_w2_a"], shapes["lokr_w2_b"])
    _expect(len(w1) >= 2 and len(w2) >= 2 and prod(w1[2:]) == 1)
    return (w1[0] * w2[0], w1[1] * w2[1], *w2[2:])


def _full_shape(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    _expect(len(shapes["diff"]) >= 2)
    return shapes["diff"]


_SHAPES = {"lora": _lora_shape, "loha": _loha_shape, "lokr": _lokr_shape, "full": _full_shape}


def _product(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """a [O, R, *1] @ b [R, I, *k]."""
    _expect(len(a) >= 2 and len(b) >= 2 and a[1] == b[0] and prod(a[2:]) == 1)
    return (a[0], *b[1:])


def _tucker(core: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """core [R, R', *k] with a [R, O] and b [R', I], as LyCORIS keeps them."""
    _expect(len(core) >= 2 and len(a) == len(b) == 2 and core[0] == a[0] and core[1] == b[0])
    return (a[1], b[1], *core[2:])


def _expect(fits: bool) -> None:
    if not fits:
        raise ValueError


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{role} {list(shape)}" for role, shape in shapes.items())
