"""What a layer adds to the base is what LyCORIS' own formulas say, for every flavour, and so are its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lora_lab import ADAPTERS, CONV, adapter, write_lora

from lorabuild.errors import JobError
from lorabuild.header import read_header
from lorabuild.lora.layers import Layer, read_layers
from lorabuild.nn.factors import Dense, Kronecker, Product, alpha_of, read_factors, scale_of

PRODUCTS = [kind for kind in ADAPTERS if kind.startswith("lora")] + ["loha", "loha 3x3"]


def written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> tuple[Path, Layer]:
    path = write_lora(tmp_path / "lora", tensors, None)
    ((layer,), _) = read_layers(read_header(path).tensors)
    return path, layer


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("alpha", [2.0, -3.0, 0.3, None])
def test_it_is_lycoris_formula(tmp_path: Path, kind: str, alpha: float | None):
    tensors, delta = adapter(kind, CONV, alpha)
    path, layer = written(tmp_path, tensors)
    found = read_factors(path, layer).dense() * scale_of(path, layer)
    np.testing.assert_allclose(found, delta.numpy(), rtol=1e-12, atol=1e-13)


# LyCORIS' own modules: name of the class, settings, the layer that they adapt.
MODULES = {
    "locon": ("LoConModule", {}, torch.nn.Conv2d(10, 12, 3, padding=1)),
    "locon tucker": ("LoConModule", {"use_tucker": True}, torch.nn.Conv2d(10, 12, 3)),
    "loha": ("LohaModule", {}, torch.nn.Linear(10, 12)),
    "loha 3x3": ("LohaModule", {}, torch.nn.Conv2d(10, 12, 3)),
    "loha tucker": ("LohaModule", {"use_tucker": True}, torch.nn.Conv2d(10, 12, 3)),
    "lokr": ("LokrModule", {"factor": 2}, torch.nn.Linear(10, 12)),
    "lokr of whole factors": ("LokrModule", {"full_matrix": True}, torch.nn.Linear(10, 12)),
    "lokr 3x3": ("LokrModule", {"factor": 2}, torch.nn.Conv2d(10, 12, 3)),
    "lokr tucker": ("LokrModule", {"factor": 2, "use_tucker": True}, torch.nn.Conv2d(10, 12, 3)),
    "lokr both factored": ("LokrModule", {"decompose_both": True, "lora_dim": 1}, torch.nn.Linear(36, 64)),
    "full": ("FullModule", {}, torch.nn.Conv2d(10, 12, 3)),
}


@pytest.mark.parametrize("kind", MODULES)
def test_files_of_lycoris_own_modules(tmp_path: Path, kind: str):
    """Saved by the library: names, shapes and alpha are its own, and so is what the module adds."""
    from lycoris import modules

    name, options, base = MODULES[kind]
    torch.manual_seed(0)
    module_class = getattr(getattr(modules, name.removesuffix("Module").lower()), name)
    module = module_class("lora_x", base, **{"lora_dim": 2, "alpha": 3, **options})
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tensors = {f"lora_x.{key}": one.detach().clone() for key, one in module.custom_state_dict().items()}
    path, layer = written(tmp_path, {key: one for key, one in tensors.items() if not key.endswith(".diff_b")})
    with torch.no_grad():
        if kind == "full":
            wanted = tensors["lora_x.diff"]
        elif kind.startswith("locon"):
            wanted = module.get_diff_weight()[0]
        else:  # where LoHa's get_diff_weight multiplies by the scale twice
            wanted = module.get_weight(module.shape)
    found = read_factors(path, layer).dense() * scale_of(path, layer)
    np.testing.assert_allclose(found, wanted.double().flatten(1).numpy(), rtol=1e-4, atol=1e-6)
    assert len(wanted) == len(found) and np.abs(found).max() > 0.01


@pytest.mark.parametrize("kind", ADAPTERS)
def test_its_svd_is_one(tmp_path: Path, kind: str):
    path, layer = written(tmp_path, adapter(kind, CONV)[0])
    factors = read_factors(path, layer)
    u, s, vh = factors.svd()
    dense = factors.dense()
    np.testing.assert_allclose(u * s @ vh, dense, atol=1e-10 * s[0])
    assert (np.diff(s) <= 0).all() and (s > 0).all()
    np.testing.assert_allclose(s, np.linalg.svd(dense, compute_uv=False)[: len(s)], atol=1e-10 * s[0])
    for rows in (u.T, vh):
        np.testing.assert_allclose(rows @ rows.T, np.eye(len(s)), atol=1e-7)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_square_of_its_norm(tmp_path: Path, kind: str):
    path, layer = written(tmp_path, adapter(kind, CONV)[0])
    factors = read_factors(path, layer)
    assert factors.square() == pytest.approx(np.square(factors.dense()).sum(), rel=1e-12)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_product_is_never_formed_where_it_is_of_few_ranks(tmp_path: Path, kind: str):
    """A LoHa of ranks 3 and 3 is a LoRA of rank 9; its matrix may have a hundred times the numbers."""
    path, layer = written(tmp_path, adapter(kind, CONV)[0])
    factors = read_factors(path, layer)
    wanted = Product if kind in PRODUCTS else Kronecker if kind.startswith("lokr") else Dense
    assert isinstance(factors, wanted)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_in_single_precision(tmp_path: Path, kind: str):
    tensors, delta = adapter(kind, CONV, alpha=None)
    path, layer = written(tmp_path, tensors)
    found = read_factors(path, layer, "float32").dense()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, delta.numpy(), atol=1e-5 * np.abs(delta.numpy()).max())


@pytest.mark.parametrize("kind", ["lokr", "lokr 3x3", "full"])
@pytest.mark.parametrize("part", ["first", "second"])
def test_an_untrained_layer_has_no_effect(tmp_path: Path, kind: str, part: str):
    tensors, _ = adapter(kind, CONV)
    keys = [key for key in tensors if not key.endswith("alpha")]
    tensors[keys[0 if part == "first" else -1]].zero_()
    path, layer = written(tmp_path, tensors)
    factors = read_factors(path, layer)
    u, s, vh = factors.svd()
    assert not s.any() and not (u * s @ vh).any() and factors.square() == 0


RANKS = {  # what LyCORIS and ComfyUI divide alpha by
    "lora": 4, "lora of more ranks than rows": 9, "lora tucker of two ranks": 4, "loha": 3, "loha tucker": 4,
    "lokr w2 factored": 2, "lokr w1 factored": 3, "lokr both factored": 2, "lokr tucker": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", RANKS)
@pytest.mark.parametrize("alpha", [2.0, -0.5])
def test_alpha_is_divided_by_the_rank_of_the_file(tmp_path: Path, kind: str, alpha: float):
    path, layer = written(tmp_path, adapter(kind, CONV, alpha)[0])
    assert alpha_of(path, layer) == alpha
    assert scale_of(path, layer) == alpha / RANKS[kind]


@pytest.mark.parametrize("kind", RANKS)
def test_without_an_alpha_the_scale_is_one(tmp_path: Path, kind: str):
    path, layer = written(tmp_path, adapter(kind, CONV, None)[0])
    assert alpha_of(path, layer) == RANKS[kind]
    assert scale_of(path, layer) == 1


@pytest.mark.parametrize("kind", ["lokr", "lokr 3x3", "full", "full 3x3"])
def test_a_layer_without_ranks_has_scale_one_whatever_its_alpha(tmp_path: Path, kind: str):
    path, layer = written(tmp_path, adapter(kind, CONV, 7.0)[0])
    assert scale_of(path, layer) == 1


@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor([2.0]),
        torch.tensor([[[2.0]]]),
        torch.tensor(2.0).bfloat16(),
        torch.tensor(2.0).double(),
        torch.tensor(2),  # as diffusers' own conversion to kohya's names writes it
        torch.tensor(2).int(),
    ],
)
def test_an_alpha_of_any_shape_and_dtype(tmp_path: Path, alpha: torch.Tensor):
    path, layer = written(tmp_path, adapter("lora", CONV)[0] | {f"{CONV}.alpha": alpha})
    assert scale_of(path, layer) == 0.5


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        (torch.tensor(torch.nan), "holds NaN or infinity"),
        (torch.tensor([-torch.inf]), "holds NaN or infinity"),
        (torch.tensor([1.0, 1.0]), r"has shape \[2\]; one number was expected"),
        (torch.zeros(0), r"has an empty tensor: .*alpha \[0\]"),
        (torch.tensor(True), "has dtype BOOL; one of F16, BF16, F32, F64 was expected"),
    ],
)
def test_a_bad_alpha_is_named(tmp_path: Path, alpha: torch.Tensor, said: str):
    path, layer = written(tmp_path, adapter("lora", CONV)[0] | {f"{CONV}.alpha": alpha})
    with pytest.raises(JobError, match=rf"{CONV}(\.alpha)?: {said}"):
        scale_of(path, layer)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_broken_weight_is_named(tmp_path: Path, kind: str):
    tensors, _ = adapter(kind, CONV)
    key = max(key for key in tensors if not key.endswith(".alpha"))
    tensors[key].view(-1)[-1] = torch.nan
    path, layer = written(tmp_path, tensors)
    with pytest.raises(JobError, match=rf"{key}: holds NaN or infinity"):
        read_factors(path, layer)
