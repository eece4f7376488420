"""Read a layer of a LoRA, of whatever flavour, as the factors of the weight that it adds to the base's."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from lorabuild.errors import JobError, in_file
from lorabuild.lora.layers import Layer, weight_shape
from lorabuild.nn.decompose import decompose, decompose_dense
from lorabuild.tensors import read_tensor

SVD = tuple[np.ndarray, np.ndarray, np.ndarray]  # U [O, P], S [P] descending, Vh [P, J]
_INTEGERS = {"I32": "<i4", "I64": "<i8"}  # diffusers' convert_state_dict_to_kohya writes alphas so


@dataclass(frozen=True)
class Product:
    """up [O, R] @ down [R, J]; J = I·∏k."""

    up: np.ndarray
    down: np.ndarray

    def svd(self) -> SVD:
        return decompose(self.up, self.down)

    def dense(self) -> np.ndarray:
        return self.up @ self.down

    def square(self) -> float:
        """The square of the Frobenius norm: tr(upᵀup · down downᵀ)."""
        return float(((self.up.T @ self.up) * (self.down @ self.down.T)).sum())


@dataclass(frozen=True)
class Dense:
    """weight [O, J] itself."""

    weight: np.ndarray

    def svd(self) -> SVD:
        return decompose_dense(self.weight)

    def dense(self) -> np.ndarray:
        return self.weight

    def square(self) -> float:
        return float(np.square(self.weight).sum())


@dataclass(frozen=True)
class Kronecker:
    """first ⊗ second. Its singular values are all products of theirs, its vectors their Kronecker products
    (Van Loan 2000, "The ubiquitous Kronecker product", J. Comput. Appl. Math. 123)."""

    first: Factors
    second: Factors

    def svd(self) -> SVD:
        (u1, s1, vh1), (u2, s2, vh2) = self.first.svd(), self.second.svd()
        singular = np.outer(s1, s2).ravel()
        order = np.argsort(-singular, kind="stable")
        one, two = order // len(s2), order % len(s2)
        u = (u1[:, None, one] * u2[None, :, two]).reshape(-1, len(order))
        vh = (vh1[one, :, None] * vh2[two, None, :]).reshape(len(order), -1)
        return u, singular[order], vh

    def dense(self) -> np.ndarray:
        return np.kron(self.first.dense(), self.second.dense())

    def square(self) -> float:
        return self.first.square() * self.second.square()


Factors = Product | Dense | Kronecker


def scale_of(path: Path, layer: Layer) -> float:
    """alpha / R, by which loaders multiply what a layer adds; 1 without an alpha, and where it has no rank.

    R is the number of rows of the down matrix in the file. Raises JobError for an alpha that is no finite number, and
    where the tensors of the layer do not fit together.
    """
    alpha = alpha_of(path, layer)
    return alpha / layer.rank if layer.rank else 1.0


def alpha_of(path: Path, layer: Layer) -> float:
    """The alpha of a layer; without one its rank, times the scale that the metadata gives. Raises as `scale_of`."""
    _check_shapes(path, layer)
    if "alpha" not in layer.keys:
        return layer.scale * (layer.rank or 1)
    key, info = layer.keys["alpha"], layer.infos["alpha"]
    if prod(info.shape) != 1:
        raise JobError(f"{path}: {key}: has shape {list(info.shape)}; one number was expected")
    if info.dtype in _INTEGERS:
        return float(np.fromfile(path, _INTEGERS[info.dtype], 1, offset=info.start).item())
    return read_tensor(path, key, info, "float64").item()


def read_factors(path: Path, layer: Layer, precision: str = "float64") -> Factors:
    """What `layer` adds to the base's weight, but for `scale_of`. Of a LoRA it is up @ down, its own tensors.

    Raises JobError for tensors that hold no finite numbers, or do not fit together. LyCORIS' formulas (its README "Methods"): LoHa
    (w1_a w1_b) ∘ (w2_a w2_b), LoKr w1 ⊗ w2; with a core t (Tucker) the factor is Σ_ij t_ij… a_ip b_jr.
    """
    _check_shapes(path, layer)
    tensors = {
        role: read_tensor(path, key, layer.infos[role], precision)
        for role, key in layer.keys.items()
        if role != "alpha"
    }
    return _READERS[layer.flavour](tensors)


def _check_shapes(path: Path, layer: Layer) -> None:
    """Raise JobError where the tensors of the layer do not fit together."""
    with in_file(path):
        weight_shape(layer)


def _lora(tensors: dict[str, np.ndarray]) -> Factors:
    up, down = tensors["up"], tensors["down"]
    if "mid" in tensors:
        core = tensors["mid"]  # [R, R', *k] between up [O, R] and down [R', I]: folded into down
        down = np.einsum("rs...,si->ri...", core, down.reshape(down.shape[:2]))
    return Product(up.reshape(up.shape[:2]), down.reshape(len(down), -1))


def _loha(tensors: dict[str, np.ndarray]) -> Factors:
    """A Hadamard product of products of ranks r and s is a product of rank r·s, by the rows' and columns' own
    Kronecker products (Khatri-Rao); where that is more than the matrix has, the matrix."""
    pairs = []
    for number in "12":
        a, b, core = tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"], tensors.get(f"hada_t{number}")
        pairs.append(Product(a, b.reshape(len(b), -1)) if core is None else _tucker(core, a, b))
    one, two = pairs
    if isinstance(one, Product) and isinstance(two, Product):
        rank, rows, columns = one.up.shape[1] * two.up.shape[1], len(one.up), one.down.shape[1]
        if rank < min(rows, columns):
            up = (one.up[:, :, None] * two.up[:, None, :]).reshape(rows, rank)
            down = (one.down[:, None, :] * two.down[None, :, :]).reshape(rank, columns)
            return Product(up, down)
    return Dense(one.dense() * two.dense())


def _lokr(tensors: dict[str, np.ndarray]) -> Factors:
    return Kronecker(_kronecker_part(tensors, "w1", None), _kronecker_part(tensors, "w2", tensors.get("lokr_t2")))


def _kronecker_part(tensors: dict[str, np.ndarray], part: str, core: np.ndarray | None) -> Factors:
    whole = tensors.get(f"lokr_{part}")
    if whole is not None:
        return Dense(whole.reshape(len(whole), -1))
    a, b = tensors[f"lokr_{part}_a"], tensors[f"lokr_{part}_b"]
    return Product(a, b.reshape(len(b), -1)) if core is None else _tucker(core, a, b)


def _tucker(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> Dense:
    """core [R, R', *k], a [R, O], b [R', I] -> [O, I·∏k]."""
    weight = np.einsum("ij...,ip,jr->pr...", core, a, b, optimize=True)
    return Dense(weight.reshape(len(weight), -1))


def _full(tensors: dict[str, np.ndarray]) -> Factors:
    return Dense(tensors["diff"].reshape(len(tensors["diff"]), -1))


_READERS = {"lora": _lora, "loha": _loha, "lokr": _lokr, "full": _full}
