"""The decomposition is the SVD of the product, for every shape and however the factors degenerate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabuild.nn.decompose import decompose

SHAPES = {
    "linear": (40, 8, (24,)),
    "1x1": (12, 4, (20, 1, 1)),
    "3x3": (16, 12, (8, 3, 3)),
    "rank above out": (8, 12, (8, 3, 3)),
    "rank above in": (30, 12, (5,)),
    "rank above both": (6, 16, (7,)),
    "square": (9, 9, (9,)),
    "one": (1, 1, (1,)),
    "large": (320, 64, (160, 3, 3)),
}


def factors(shape: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random up and down as fp16 has them."""
    out, rank, rest = SHAPES[shape]
    random = np.random.default_rng(seed)
    up = random.standard_normal((out, rank, *[1] * (len(rest) - 1))) / out**0.5
    down = random.standard_normal((rank, *rest)) / np.prod(rest) ** 0.5
    return up.astype(np.float16).astype(np.float64), down.astype(np.float16).astype(np.float64)


def check(up: np.ndarray, down: np.ndarray, scale: float = 1.0, tolerance: float = 2e-6) -> np.ndarray:
    """Compare with a full SVD of the product; returns the singular values."""
    u, s, vh = decompose(up, down, scale)
    product = scale * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
    rank = min(up.shape[1], *product.shape)
    assert (u.shape, s.shape, vh.shape) == ((len(up), rank), (rank,), (rank, *down.shape[1:]))
    assert {u.dtype, s.dtype, vh.dtype} == {np.dtype(np.float32)}
    assert u.flags.c_contiguous and vh.flags.c_contiguous
    u, s, rows = u.astype(np.float64), s.astype(np.float64), vh.reshape(rank, -1).astype(np.float64)
    largest = max(np.linalg.norm(product, 2), 1e-300)
    np.testing.assert_allclose(u * s @ rows, product, atol=tolerance * largest, rtol=0)
    np.testing.assert_allclose(s, np.linalg.svd(product, compute_uv=False)[:rank], atol=1e-7 * largest, rtol=1e-6)
    assert (np.diff(s) <= 0).all() and (s >= 0).all()
    for vectors in (u.T, rows):
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(rank), atol=tolerance)
    return s


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_svd_of_the_product(shape: str):
    check(*factors(shape), scale=0.37)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flaw", ["up", "down", "both"])
def test_zero_matrices(shape: str, flaw: str):
    up, down = factors(shape)
    assert not check(up * (flaw == "down"), down * (flaw == "up")).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "flaw",
    [
        "zero rank in up",
        "zero rank in down",
        "repeated in up",
        "repeated in down",
        "half of the ranks",
        "nearly repeated",
    ],
)
def test_dependent_ranks(shape: str, flaw: str):
    up, down = factors(shape)
    rank = up.shape[1]
    other = rank // 2
    match flaw:
        case "zero rank in up":
            up[:, 0] = 0
        case "zero rank in down":
            down[other] = 0
        case "repeated in up":
            up[:, 0] = up[:, other]
        case "repeated in down":
            down[0] = -2 * down[other]
        case "half of the ranks":
            up[:, :other], down[other:] = up[:, rank - other :], down[: rank - other]
        case "nearly repeated":
            down[0] = down[other] * (1 + 1e-9 * np.arange(down[0].size).reshape(down[0].shape))
    check(up, down)


@pytest.mark.parametrize("decades", [2, 6, 12])
def test_ranks_of_very_different_size_are_each_as_exact(decades: int):
    """A LoRA's ranks differ by orders of magnitude; the small ones decide about a threshold."""
    random = np.random.default_rng(1)
    q = [np.linalg.qr(random.standard_normal((n, 16)))[0] for n in (200, 300)]
    s = np.logspace(0, -decades, 16)
    found = decompose(q[0] * np.sqrt(s), (q[1] * np.sqrt(s)).T)[1]
    np.testing.assert_allclose(found, s, rtol=1e-5 if decades < 12 else 1e-3)


def test_columns_that_only_a_rigorous_bound_tells_to_be_dependent():
    """Kahan's matrix: every pivot of its Cholesky factor is above 0.007, and yet its condition is 6e8."""
    n, theta = 40, 1.1
    c, s = np.cos(theta), np.sin(theta)
    kahan = s ** np.arange(n)[:, None] * (np.eye(n) - c * np.triu(np.ones((n, n)), 1))
    up = np.vstack([kahan, np.zeros((20, n))])
    check(up, np.random.default_rng(2).standard_normal((n, 90)), tolerance=5e-6)


def test_hilbert_matrices():
    hilbert = 1 / (np.arange(40)[:, None] + np.arange(12) + 1)
    check(hilbert, hilbert.T)


def test_a_negative_scale_turns_the_sign():
    check(*factors("linear"), scale=-0.5)


def test_usual_layers_need_no_householder(monkeypatch: pytest.MonkeyPatch):
    """It takes several times as long."""
    monkeypatch.setattr(np.linalg, "qr", lambda a: pytest.fail("Householder's QR was used"))
    for shape in SHAPES:
        decompose(*factors(shape))


def test_equal_input_equal_bytes():
    one, two = (decompose(*factors("3x3"), 0.5) for _ in range(2))
    assert [a.tobytes() for a in one] == [a.tobytes() for a in two]


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.data())
def test_any_small_layer(out: int, rank: int, n: int, seed: int, data: st.DataObject):
    """Small whole numbers: exact dependence is common."""
    random = np.random.default_rng(seed)
    up = random.integers(-2, 3, (out, rank)).astype(np.float64)
    down = random.integers(-2, 3, (rank, n)).astype(np.float64)
    up *= 10.0 ** data.draw(st.integers(-4, 3))
    check(up, down)
