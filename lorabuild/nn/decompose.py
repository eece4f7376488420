"""Decompose a low-rank product into singular values and vectors without forming it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Largest condition for which the Gram matrix is trusted. CholeskyQR loses orthogonality as eps·κ²: 2e-8 here, below the
# resolution of the float32 results.
MAX_CONDITION = 1e4

Basis = Callable[[np.ndarray], np.ndarray]  # x [p, k] -> xᵀ Qᵀ [k, m], for a Q [m, p] that need not be formed


def decompose(up: np.ndarray, down: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The thin SVD of `scale · up @ down`, singular values in descending order.

    up [O, R, *1], down [R, I, *k], both float64 -> U [O, P], S [P], Vh [P, I, *k], all float32, P = min(R, O, I·∏k).
    U and Vh have orthonormal columns and rows also where S is zero; a negative scale turns the sign of U.

    The SVD of a product through the triangular factors of its parts: up = Q R, downᵀ = Q' R', and the SVD of the small
    R R'ᵀ (Chan 1982, "An improved algorithm for computing the SVD", ACM TOMS 8; the product never exists). R comes from
    the Gram matrix where that is safe, see `_thin_qr`. All in float64 and rounded once: singular values are right to
    some 1e-15 of the largest.
    """
    rows, kernel = down.reshape(len(down), -1), down.shape[1:]
    basis_up, r_up = _thin_qr(up.reshape(len(up), -1))
    basis_down, r_down = _thin_qr(rows.T)
    x, singular, yt = np.linalg.svd(r_up @ r_down.T * scale, full_matrices=False)
    u = basis_up(x).T.astype(np.float32, order="C")
    vh = basis_down(yt.T).astype(np.float32)
    return u, singular.astype(np.float32), vh.reshape(-1, *kernel)


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
