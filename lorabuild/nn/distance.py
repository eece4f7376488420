"""How far two layers are apart, by their factors: no weight is formed where products of small matrices say it."""

from __future__ import annotations

import numpy as np

from lorabuild.nn.factors import Factors, Kronecker, Product


def difference_square(a: Factors, a_scale: float, b: Factors, b_scale: float) -> float:
    """‖a_scale·A − b_scale·B‖², Frobenius: ‖A‖² + ‖B‖² − 2⟨A, B⟩.

    Exactly 0 for equal factors; else of what is left after cancellation, 1e-15 of ‖A‖² + ‖B‖² is rounding.
    """
    if a_scale == b_scale and _equal(a, b):
        return 0.0
    square = a_scale**2 * a.square() + b_scale**2 * b.square() - 2 * a_scale * b_scale * inner(a, b)
    return max(square, 0.0)


def inner(a: Factors, b: Factors) -> float:
    """⟨A, B⟩ = tr(AᵀB). Of products tr((upᵀ up')(down' downᵀ)): matrices of their ranks' size (Gram matrices)."""
    if isinstance(a, Product) and isinstance(b, Product):
        return float(((a.up.T @ b.up) * (a.down @ b.down.T)).sum())
    if isinstance(a, Kronecker) and isinstance(b, Kronecker) and _shape(a.first) == _shape(b.first):
        return inner(a.first, b.first) * inner(a.second, b.second)  # ⟨A⊗B, C⊗D⟩ = ⟨A, C⟩⟨B, D⟩
    if isinstance(b, Product):
        a, b = b, a
    if isinstance(a, Product):
        return float(((a.up.T @ b.dense()) * a.down).sum())
    return float((a.dense() * b.dense()).sum())


def _shape(a: Factors) -> tuple[int, int]:
    """[O, J] of the weight."""
    if isinstance(a, Product):
        return len(a.up), a.down.shape[1]
    if isinstance(a, Kronecker):
        (rows, columns), (more_rows, more_columns) = _shape(a.first), _shape(a.second)
        return rows * more_rows, columns * more_columns
    return a.weight.shape[0], a.weight.shape[1]


def _equal(a: Factors, b: Factors) -> bool:
    if isinstance(a, Product) and isinstance(b, Product):
        return np.array_equal(a.up, b.up) and np.array_equal(a.down, b.down)
    if isinstance(a, Kronecker) and isinstance(b, Kronecker):
        return _equal(a.first, b.first) and _equal(a.second, b.second)
    if isinstance(a, Product | Kronecker) or isinstance(b, Product | Kronecker):
        return False
    return np.array_equal(a.weight, b.weight)
