"""Decompose what a LoRA adds to a weight into singular values and vectors, without forming it where it is a product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Largest condition for which the Gram matrix is trusted. CholeskyQR loses orthogonality as eps·κ²: 2e-8 here, below the
# resolution of the float32 results.
MAX_CONDITION = 1e4
# Singular values of a dense matrix below this part of the largest are noise: its Gram matrix holds their squares.
DENSE_RESOLUTION = 1e-6

Basis = Callable[[np.ndarray], np.ndarray]  # x [p, k] -> xᵀ Qᵀ [k, m], for a Q [m, p] that need not be formed


@dataclass(frozen=True)
class Transforms:
    """The thin SVD of up @ down by what turns these into it: U = up @ left, Vh = right @ down.

    singular [R] descending, left [R, R], right [R, R]: small, where U and Vh are as large as the LoRA.
    """

    singular: np.ndarray
    left: np.ndarray
    right: np.ndarray


def decompose(up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The thin SVD of up @ down, singular values in descending order.

    up [O, R], down [R, J], both float64 -> U [O, P], S [P], Vh [P, J], P = min(R, O, J). U and Vh have orthonormal columns
    and rows also where S is zero.

    The SVD of a product through the triangular factors of its parts: up = Q R, downᵀ = Q' R', and the SVD of the small
    R R'ᵀ (Chan 1982, "An improved algorithm for computing the SVD", ACM TOMS 8; the product never exists). R comes from
    the Gram matrix where that is safe, see `_thin_qr`. Singular values are right to some 1e-13 of the largest.
    """
    basis_up, r_up = _thin_qr(up)
    basis_down, r_down = _thin_qr(down.T)
    x, singular, yt = np.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return basis_up(x).T, singular, basis_down(yt.T)


def transforms(up: np.ndarray, down: np.ndarray) -> list[Transforms | None]:
    """`decompose` of many layers of one shape at once: up [N, O, R], down [N, R, J].

    None for a layer whose ranks depend on each other, or that has more of them than rows or columns: `decompose` it.
    """
    if up.shape[1] < up.shape[2] or down.shape[2] < down.shape[1]:
        return [None] * len(up)
    factors = _cholesky_of_each(up.swapaxes(1, 2) @ up), _cholesky_of_each(down @ down.swapaxes(1, 2))
    whole = [n for n in range(len(up)) if factors[0][n] is not None and factors[1][n] is not None]
    found: list[Transforms | None] = [None] * len(up)
    if whole:
        (r_up, up_inverse), (r_down, down_inverse) = (
            tuple(np.stack([side[n][part] for n in whole]) for part in (0, 1)) for side in factors
        )
        x, singular, yt = np.linalg.svd(r_up @ r_down.swapaxes(1, 2))
        left, right = up_inverse @ x, yt @ down_inverse.swapaxes(1, 2)
        for place, n in enumerate(whole):
            found[n] = Transforms(singular[place], left[place], right[place])
    return found


def decompose_dense(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The SVD of a dense matrix [O, J], float64, without its parts below DENSE_RESOLUTION · σ_1.

    By the eigenvalues of the Gram matrix of its short side: a third of the time of a full SVD, and singular values are
    right to some 1e-15 · σ_1² / σ_i.
    """
    if weight.shape[0] > weight.shape[1]:
        v, singular, uh = decompose_dense(weight.T)
        return uh.T, singular, v.T
    squares, vectors = np.linalg.eigh(weight @ weight.T)
    singular, u = np.sqrt(np.maximum(squares[::-1], 0)), vectors[:, ::-1]
    rank = max(1, int((singular > singular[0] * DENSE_RESOLUTION).sum()))
    vh = u[:, :rank].T @ weight
    lengths = np.linalg.norm(vh, axis=1, keepdims=True)  # what S is, without the root of a rounding error
    order = np.argsort(-lengths[:, 0], kind="stable")
    return u[:, order], lengths[order, 0], (vh / np.where(lengths > 0, lengths, 1))[order]


def _thin_qr(a: np.ndarray) -> tuple[Basis, np.ndarray]:
    """a [m, r] -> (basis of Q [m, p], R [p, r]) with a = Q R, QᵀQ = 1, p = min(m, r). R need not be triangular.

    CholeskyQR (Stathopoulos and Wu 2002, "A block orthogonalization procedure with constant synchronization
    requirements", SIAM J. Sci. Comput. 23): aᵀa = RᵀR, Q = a R⁻¹. Two passes over `a` by matrix products, where
    Householder's QR takes several times as long. Columns are first scaled to length one, which brings the condition
    near its least (van der Sluis 1969, Numer. Math. 14): a LoRA's ranks differ by orders of magnitude, their directions
    do not. Where columns depend on each other (zero, repeated) it is Householder's QR after all.
    """
    rows, rank = a.shape
    if rows <= rank:
        return lambda x: x.T, a
    if (factor := _cholesky(a.T @ a)) is not None:
        r, inverse = factor
        return lambda x: (inverse @ x).T @ a.T, r
    q, r = np.linalg.qr(a)
    return lambda x: x.T @ q.T, r


def _cholesky_of_each(grams: np.ndarray) -> list[tuple[np.ndarray, np.ndarray] | None]:
    return [_cholesky(gram) for gram in grams]


def _cholesky(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(R, R⁻¹) with gram = RᵀR; None where the columns that it is made of, scaled to length one, are near dependent.

    ‖R⁻¹‖ of the scaled columns in Frobenius' norm bounds 1/σ_min from above: a proof of the condition, no estimate.
    """
    lengths = np.sqrt(np.diagonal(gram))
    if not lengths.all():
        return None
    try:
        lower = np.linalg.cholesky(gram / lengths / lengths[:, None])
        inverse = np.linalg.inv(lower)
    except np.linalg.LinAlgError:
        return None
    if not np.linalg.norm(inverse) < MAX_CONDITION:
        return None
    return lower.T * lengths, inverse.T / lengths[:, None]
