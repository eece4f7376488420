"""Measure the weights of a base: the Frobenius norm of each, read by byte ranges in constant memory, and the spectral norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from lorabuild.errors import JobError
from lorabuild.header import FormatError
from lorabuild.lora.basefile import BaseWeight
from lorabuild.tensors import read_tensor

CHUNK_BYTES = 1 << 17  # at a time; with their float32 copies they stay in the cache of one core
# Squares that are summed in float32 before the sum goes on in float64: the error of the norm stays below 1e-6, where a
# sum in float32 throughout is up to 0.2 % too small for large layers.
RUN = 1 << 14
HALF_INFINITY = 65536.0  # what the bits of an infinite half, or a NaN, come out as, or more than that

SMALL = 96  # up to this many rows or columns the singular values themselves are as fast
MAX_STEPS = 120
GROWTH = 1e-6  # relative growth of the estimate in PATIENCE steps at which it stands
PATIENCE = 5


def frobenius_norm(weight: BaseWeight) -> float:
    """√Σw² with a relative error below 1e-6 for weights as they are trained (2e-6 if all are equal). Raises JobError for a dtype that is no float, and for NaN or infinity."""
    squares = _SQUARES.get(weight.info.dtype)
    if squares is None:
        raise JobError(
            f"{weight.path}: {weight.key} has dtype {weight.info.dtype}; one of {', '.join(_SQUARES)} was expected"
        )
    raw, scratch = np.zeros((2, CHUNK_BYTES), np.uint8)
    sums, rest = [], weight.info.stop - weight.info.start
    with open(weight.path, "rb", buffering=0) as file:
        file.seek(weight.info.start)
        while rest:
            count = file.readinto(memoryview(raw)[: min(len(raw), rest)])
            if not count:
                raise FormatError(f"{weight.path}: truncated while {weight.key} was being read")
            raw[count:] = 0  # zeros add nothing
            sums.append(squares(raw, scratch))
            rest -= count
    total = math.fsum(sums)
    if not math.isfinite(total):
        raise JobError(f"{weight.path}: {weight.key} holds NaN or infinity; the base is broken")
    return math.sqrt(total)


def _half_squares(raw: np.ndarray, scratch: np.ndarray) -> float:
    """Of halves, two in a word: their bits are moved into the places of float32's and the exponent's bias is corrected.

    The order does not matter for a sum, nor do signs: several times as fast as numpy's conversion.
    """
    words, bits, halves = raw.view("<u4"), scratch.view("<u4"), scratch.view("<f4")
    np.bitwise_and(words, _LOW_HALF, out=bits)
    np.left_shift(bits, _LEFT, out=bits)
    np.multiply(halves, _REBIAS, out=halves)
    low = _squares(halves)
    np.right_shift(words, _RIGHT, out=bits)
    np.bitwise_and(bits, _HIGH_HALF, out=bits)
    np.multiply(halves, _REBIAS, out=halves)
    total = low + _squares(halves)
    if total >= HALF_INFINITY**2 and not np.isfinite(raw.view("<f2")).all():
        return math.inf
    return total


# The 15 bits without the sign of the lower and the upper half of a word, and how they come to bits 13 to 27.
_LOW_HALF, _LEFT, _RIGHT, _HIGH_HALF = np.uint32(0x7FFF), np.uint32(13), np.uint32(3), np.uint32(0x0FFFE000)
_REBIAS = np.float32(2.0**112)


def _bfloat16_squares(raw: np.ndarray, scratch: np.ndarray) -> float:
    words, bits, numbers = raw.view("<u4"), scratch.view("<u4"), scratch.view("<f4")
    np.left_shift(words, np.uint32(16), out=bits)
    low = _squares(numbers)
    np.bitwise_and(words, np.uint32(0xFFFF0000), out=bits)
    return low + _squares(numbers)


def _squares(numbers: np.ndarray) -> float:
    total = 0.0
    for start in range(0, len(numbers), RUN):
        run = numbers[start : start + RUN]
        total += float(run.dot(run))
    return total


_SQUARES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "F16": _half_squares,
    "BF16": _bfloat16_squares,
    "F32": lambda raw, scratch: _squares(raw.view("<f4")),
    "F64": lambda raw, scratch: _squares(raw.view("<f8")),
}


def spectral_norm(weight: BaseWeight) -> float:
    """The largest singular value of a weight, as a matrix [O, I·∏k]. Deterministic; raises JobError as `read_tensor`."""
    matrix = read_tensor(weight.path, weight.key, weight.info)
    matrix = matrix.reshape(len(matrix), -1)
    if min(matrix.shape) <= SMALL:
        return float(np.linalg.norm(matrix.astype("f8"), 2))
    return largest_singular_value(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)


def largest_singular_value(matrix: np.ndarray) -> float:
    """σ_1 of a matrix [M, N], M >= N, float32: Golub and Kahan's bidiagonalisation with full reorthogonalisation.

    (1965, "Calculating the singular values and pseudo-inverse of a matrix", SIAM J. Numer. Anal. 2.) The largest singular
    value of the bidiagonal matrix grows towards σ_1 from below; it ends when it no longer grows.
    """
    start = np.random.default_rng(0).standard_normal(matrix.shape[1]).astype("f4")
    estimates = [0.0]
    for estimate in _estimates(matrix, start / np.linalg.norm(start)):
        before = estimates[max(0, len(estimates) - PATIENCE)]
        estimates.append(estimate)
        if estimate - before < GROWTH * estimate:
            break
    return estimates[-1]


def _estimates(matrix: np.ndarray, start: np.ndarray) -> Iterator[float]:
    """The largest singular value of the bidiagonal matrix after each step."""
    steps = min(MAX_STEPS, matrix.shape[1])
    left, right = np.zeros((steps, matrix.shape[0]), "f4"), np.zeros((steps + 1, matrix.shape[1]), "f4")
    bidiagonal = np.zeros((steps, steps + 1))
    right[0] = start
    for step in range(steps):
        u = _orthogonal(matrix @ right[step], left[:step])
        bidiagonal[step, step] = length = np.linalg.norm(u)
        if not length:
            return
        left[step] = u / length
        v = _orthogonal(left[step] @ matrix, right[: step + 1])
        bidiagonal[step, step + 1] = length = np.linalg.norm(v)
        yield float(np.linalg.norm(bidiagonal[: step + 1, : step + 2], 2))
        if not length:
            return
        right[step + 1] = v / length


def _orthogonal(vector: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`vector` without its parts along `others`, twice: once loses digits (Giraud et al. 2005, Numer. Math. 101)."""
    for _ in range(2):
        vector = vector - (others @ vector) @ others
    return vector
