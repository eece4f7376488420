"""Lay out an adapter: which tensors each of LyCORIS' algorithms has on a layer, and how each starts; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isqrt, prod
from typing import Any, Literal, NamedTuple

# kaiming: uniform in ±1/sqrt(fan-in) · normal: N(0, 1) · small: N(0, 0.1²) · norms: of the base's weight, as DoRA has them
How = Literal["zeros", "ones", "kaiming", "normal", "small", "norms"]
Size = tuple[int, ...]


class Start(NamedTuple):
    """A tensor's shape, and what it holds before training."""

    shape: Size
    how: How = "zeros"


Layout = dict[str, Start]  # by the tensor's name in a file, without the module's


def layout(algo: str, shape: Size, dim: int, options: Mapping[str, Any]) -> Layout:
    """The trained tensors of an adapter of rank `dim` on a weight of `shape` [O, I, *k].

    `options` are the manifest's network_args. Raises ValueError, in words that go after a layer's name, where the layer
    is not of a size that the algorithm can take apart.
    """
    found = _LAYOUTS[algo](shape, dim, options)
    if options.get("use_scalar") and algo in WITH_SCALAR:
        found["scalar"] = Start(())
    if options.get("dora_wd") and algo in WITH_DORA:
        out, into, *kernel = shape
        rows = options.get("wd_on_output", True)
        found["dora_scale"] = Start((out, 1, *_ones(kernel)) if rows else (1, into, *_ones(kernel)), "norms")
    return found


def norm_layout(channels: int) -> Layout:
    """Of a norm: what is added to its weight and to its bias."""
    return {"w_norm": Start((channels,)), "b_norm": Start((channels,))}


WITH_SCALAR = ("locon", "loha", "lokr", "glora")
WITH_DORA = ("locon", "loha", "lokr")


def _locon(shape: Size, dim: int, options: Mapping[str, Any]) -> Layout:
    out, into, *kernel = shape
    up: How = "kaiming" if options.get("use_scalar") else "zeros"
    found = {"lora_down.weight": Start((dim, into, *kernel), "kaiming")}
    if _tucker(kernel, options):
        found = {
            "lora_down.weight": Start((dim, into, *_ones(kernel)), "kaiming"),
            "lora_mid.weight": Start((dim, dim, *kernel), "kaiming"),
        }
    return found | {"lora_up.weight": Start((out, dim, *_ones(kernel)), up)}


def _dylora(shape: Size, dim: int, options: Mapping[str, Any]) -> Layout:
    """Ranks in blocks, each a parameter of its own: an update trains one of them."""
    out, block = shape[0], options.get("block_size", 4)
    if dim % block:
        raise ValueError(f"its rank {dim} is not a multiple of block_size {block}")
    numbers = range(dim // block)
    downs = {f"lora_down.weight.{n}": Start((block, prod(shape[1:])), "kaiming") for n in numbers}
    return downs | {f"lora_up.weight.{n}": Start((out, block)) for n in numbers}


def _loha(shape: Size, dim: int, options: Mapping[str, Any]) -> Layout:
    out, into, *kernel = shape
    last: How = "small" if options.get("use_scalar") else "zeros"
    if _tucker(kernel, options):
        core, a, b = (dim, dim, *kernel), (dim, out), (dim, into)
        cores = {"hada_t1": Start(core, "small"), "hada_t2": Start(core, "small")}
    else:
        a, b, cores = (out, dim), (dim, prod(shape[1:])), {}
    return cores | {
        "hada_w1_a": Start(a, "small"),
        "hada_w1_b": Start(b, "normal"),
        "hada_w2_a": Start(a, last),
        "hada_w2_b": Start(b, "normal"),
    }


def _lokr(shape: Size, dim: int, options: Mapping[str, Any]) -> Layout:
    """W1 [a, c] ⊗ W2 [b, d, *k] with a·b = O and c·d = I; each whole, or a product of rank `dim` where that is smaller."""
    out, into, *kernel = shape
    factor, whole = options.get("factor", -1), options.get("full_matrix", False)
    (c, d), (a, b) = factorization(into, factor), factorization(out, factor)
    if options.get("unbalanced_factorization"):
        a, b = b, a
    last: How = "kaiming" if options.get("use_scalar") else "zeros"
    found: Layout = {}
    if options.get("decompose_both") and 2 * dim < max(a, c) and not whole:
        found |= {"lokr_w1_a": Start((a, dim), "kaiming"), "lokr_w1_b": Start((dim, c), "kaiming")}
    else:
        found["lokr_w1"] = Start((a, c), "kaiming")
    if whole or 2 * dim >= max(b, d):
        return found | {"lokr_w2": Start((b, d, *kernel), last)}
    if _tucker(kernel, options):
        core = {"lokr_t2": Start((dim, dim, *kernel), "kaiming")}
        return found | core | {"lokr_w2_a": Start((dim, b), "kaiming"), "lokr_w2_b": Start((dim, d), last)}
    return found | {"lokr_w2_a": Start((b, dim), "kaiming"), "lokr_w2_b": Start((dim, d * prod(kernel)), last)}


def _full(shape: Size, dim: int, options: Mapping[str, Any]) -> Layout:
    return {"diff": Start(shape)} | ({"diff_b": Start((shape[0],))} if options.get("bias") else {})


def _ia3(shape: Size, dim: int, options: Mapping[str, Any]) -> Layout:
    out, _, *kernel = shape
    return {"weight": Start((1, out, *_ones(kernel)) if kernel else (out,))}


def _diag_oft(shape: Size, dim: int, options: Mapping[str, Any]) -> Layout:
    size, blocks = factorization(shape[0], dim)
    return {"oft_blocks": Start((blocks, size, size))} | _rescale(shape, options)


def _boft(shape: Size, dim: int, options: Mapping[str, Any]) -> Layout:
    size, blocks = butterfly(shape[0], dim)
    stages = (blocks - 1).bit_count() + 1
    return {"oft_blocks": Start((stages, blocks, size, size))} | _rescale(shape, options)


def _glora(shape: Size, dim: int, options: Mapping[str, Any]) -> Layout:
    out, into, *kernel = shape
    low: How = "kaiming" if options.get("use_scalar") else "zeros"
    return {
        "a1.weight": Start((into, dim, *_ones(kernel)), "kaiming"),
        "a2.weight": Start((dim, into, *_ones(kernel)), low),
        "b1.weight": Start((out, dim, *_ones(kernel)), "kaiming"),
        "b2.weight": Start((dim, into, *kernel), low),
    }


_LAYOUTS: dict[str, Callable[[Size, int, Mapping[str, Any]], Layout]] = {
    "locon": _locon,
    "dylora": _dylora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "ia3": _ia3,
    "diag-oft": _diag_oft,
    "boft": _boft,
    "glora": _glora,
}


def factorization(dimension: int, factor: int = -1) -> tuple[int, int]:
    """(m, n), m <= n, m·n = dimension: `factor` and its cofactor, else the largest divisor up to it; -1 is the root."""
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    most = min(isqrt(dimension), factor if factor > 0 else dimension)
    small = next(m for m in range(most, 0, -1) if dimension % m == 0)
    return small, dimension // small


def butterfly(dimension: int, most: int) -> tuple[int, int]:
    """(b, n), b even and at most `most`, n a power of two, b·n = dimension; the largest b. Raises ValueError for none."""
    sizes = [b for b in _even_factors(dimension) if b <= most]
    if not sizes:
        needed = min(_even_factors(dimension), default=None)
        wanted = f"its rank must be {needed} or more" if needed else "it has an odd number of outputs"
        raise ValueError(f"boft cannot take its {dimension} outputs apart into blocks of {most}: {wanted}")
    return max(sizes), dimension // max(sizes)


def _even_factors(dimension: int) -> list[int]:
    """Even divisors whose cofactor is a power of two."""
    return [
        dimension >> power
        for power in range(dimension.bit_length())
        if (dimension >> power) << power == dimension and not (dimension >> power) % 2
    ]


def _rescale(shape: Size, options: Mapping[str, Any]) -> Layout:
    return {"rescale": Start((shape[0], *_ones(shape[1:])), "ones")} if options.get("rescaled") else {}


def _tucker(kernel: list[int], options: Mapping[str, Any]) -> bool:
    return bool(options.get("use_tucker")) and any(side != 1 for side in kernel)


def _ones(kernel: Sequence[int]) -> list[int]:
    return [1] * len(kernel)
