"""The decomposition is the SVD of the product, for every shape and however the factors degenerate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabuild.nn.decompose import DENSE_RESOLUTION, MAX_CONDITION, decompose, decompose_dense, transforms

SHAPES = {  # O, R, J
    "linear": (40, 8, 24),
    "3x3": (16, 12, 8 * 9),
    "rank above out": (8, 12, 8 * 9),
    "rank above in": (30, 12, 5),
    "rank above both": (6, 16, 7),
    "square": (9, 9, 9),
    "one": (1, 1, 1),
    "large": (320, 64, 160 * 9),
}
FULL = [shape for shape, (out, rank, columns) in SHAPES.items() if rank <= min(out, columns)]


def factors(shape: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random up [O, R] and down [R, J] as fp16 has them."""
    out, rank, columns = SHAPES[shape]
    random = np.random.default_rng(seed)
    up = random.standard_normal((out, rank)) / out**0.5
    down = random.standard_normal((rank, columns)) / columns**0.5
    return up.astype(np.float16).astype(np.float64), down.astype(np.float16).astype(np.float64)


def check(up: np.ndarray, down: np.ndarray, tolerance: float = 1e-7) -> np.ndarray:
    """Compare with a full SVD of the product; returns the singular values."""
    found = decompose(up, down)
    product, rank = up @ down, min(up.shape[1], len(up), down.shape[1])
    assert [one.shape for one in found] == [(len(up), rank), (rank,), (rank, down.shape[1])]
    check_svd(product, *found, tolerance)
    return found[1]


def check_svd(product: np.ndarray, u: np.ndarray, s: np.ndarray, vh: np.ndarray, tolerance: float = 1e-7) -> None:
    assert {u.dtype, s.dtype, vh.dtype} == {np.dtype(np.float64)}
    largest = max(np.linalg.norm(product, 2), 1e-300)
    np.testing.assert_allclose(u * s @ vh, product, atol=tolerance * largest, rtol=0)
    np.testing.assert_allclose(s, np.linalg.svd(product, compute_uv=False)[: len(s)], atol=1e-12 * largest, rtol=0)
    assert (np.diff(s) <= 0).all() and (s >= 0).all()
    for vectors in (u.T, vh):
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(s)), atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_svd_of_the_product(shape: str):
    check(*factors(shape), tolerance=1e-12)


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
            down[0] = down[other] * (1 + 1e-9 * np.arange(down[0].size))
    check(up, down)


@pytest.mark.parametrize("decades", [2, 6, 12])
def test_ranks_of_very_different_size_are_each_as_exact(decades: int):
    """A LoRA's ranks differ by orders of magnitude; the small ones decide about a threshold."""
    random = np.random.default_rng(1)
    q = [np.linalg.qr(random.standard_normal((n, 16)))[0] for n in (200, 300)]
    s = np.logspace(0, -decades, 16)
    found = decompose(q[0] * np.sqrt(s), (q[1] * np.sqrt(s)).T)[1]
    np.testing.assert_allclose(found, s, rtol=1e-9 if decades < 12 else 1e-3)


def test_columns_that_only_a_rigorous_bound_tells_to_be_dependent():
    """Kahan's matrix: every pivot of its Cholesky factor is above 0.007, and yet its condition is 6e8."""
    n, theta = 40, 1.1
    c, s = np.cos(theta), np.sin(theta)
    kahan = s ** np.arange(n)[:, None] * (np.eye(n) - c * np.triu(np.ones((n, n)), 1))
    up = np.vstack([kahan, np.zeros((20, n))])
    check(up, np.random.default_rng(2).standard_normal((n, 90)))


def test_hilbert_matrices():
    hilbert = 1 / (np.arange(40)[:, None] + np.arange(12) + 1)
    check(hilbert, hilbert.T)


def test_usual_layers_need_no_householder(monkeypatch: pytest.MonkeyPatch):
    """It takes several times as long."""
    monkeypatch.setattr(np.linalg, "qr", lambda a: pytest.fail("Householder's QR was used"))
    for shape in SHAPES:
        decompose(*factors(shape))


def test_equal_input_equal_bytes():
    one, two = (decompose(*factors("3x3")) for _ in range(2))
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


@pytest.mark.parametrize("condition", [1e2, 0.7, 1.5, 1e6])
def test_near_the_bound_of_the_condition(condition: float):
    """Columns of equal length, so that no scaling helps; below, at and above MAX_CONDITION (as a part of it, if small)."""
    wanted = condition * MAX_CONDITION if condition < 2 else condition
    random = np.random.default_rng(3)
    one, two = np.linalg.qr(random.standard_normal((60, 2)))[0].T
    up = np.stack([one, one + two / wanted, *random.standard_normal((6, 60))], axis=1)
    check(up, random.standard_normal((8, 90)))


@pytest.mark.parametrize("shape", FULL)
def test_many_at_once_are_as_each_alone(shape: str):
    pairs = [factors(shape, seed) for seed in range(5)]
    found = transforms(np.stack([up for up, _ in pairs]), np.stack([down for _, down in pairs]))
    for (up, down), part in zip(pairs, found, strict=True):
        check_svd(up @ down, up @ part.left, part.singular, part.right @ down)


@pytest.mark.parametrize("flaw", ["zeros", "a rank of zeros in up", "a rank of zeros in down", "repeated"])
def test_one_of_many_with_dependent_ranks_is_left_out_alone(flaw: str):
    pairs = [factors("linear", seed) for seed in range(3)]
    up, down = pairs[1]
    match flaw:
        case "zeros":
            up[:] = 0
        case "a rank of zeros in up":
            up[:, 3] = 0
        case "a rank of zeros in down":
            down[2] = 0
        case "repeated":
            down[0] = -3 * down[5]
    found = transforms(np.stack([up for up, _ in pairs]), np.stack([down for _, down in pairs]))
    assert [part is None for part in found] == [False, True, False]
    for place in (0, 2):
        up, down = pairs[place]
        check_svd(up @ down, up @ found[place].left, found[place].singular, found[place].right @ down)


@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - FULL))
def test_more_ranks_than_rows_or_columns_are_not_for_many_at_once(shape: str):
    up, down = factors(shape)
    assert transforms(np.stack([up] * 3), np.stack([down] * 3)) == [None] * 3


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (40, 24), (24, 40), (12, 300)])
def test_a_dense_matrix(size: tuple[int, int]):
    weight = np.random.default_rng(4).standard_normal(size)
    found = decompose_dense(weight)
    assert len(found[1]) == min(size)
    check_svd(weight, *found)


def test_a_dense_matrix_of_little_rank_has_few_singular_values():
    """A LoHa, or a difference that is a LoRA in disguise."""
    up, down = factors("large")
    u, s, vh = decompose_dense(up @ down)
    assert len(s) == 64
    check_svd(up @ down, u, s, vh)


@pytest.mark.parametrize("decades", [2, 4, 5.5])
def test_singular_values_of_a_dense_matrix_down_to_its_resolution(decades: float):
    random = np.random.default_rng(5)
    q = [np.linalg.qr(random.standard_normal((n, 16)))[0] for n in (60, 90)]
    s = np.logspace(0, -decades, 16)
    found = decompose_dense(q[0] * s @ q[1].T)
    np.testing.assert_allclose(found[1], s, rtol=1e-15 * 10 ** (2 * decades) + 1e-12)
    np.testing.assert_allclose(found[0] * found[1] @ found[2], q[0] * s @ q[1].T, atol=2 * DENSE_RESOLUTION)


def test_a_dense_matrix_of_zeros_adds_nothing():
    u, s, vh = decompose_dense(np.zeros((6, 9)))
    assert not s.any() and not (u * s @ vh).any()
