"""Which ranks stay: resize_lora's recipes read and checked, its scores by the naive formulas, and the limits that hold."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from lorabuild.lora.ranks import (
    KEYS,
    MIB,
    OWN,
    SELECTORS,
    TERMS,
    References,
    choose,
    nothing_left,
    parse_recipe,
    resolve_recipe,
    scores,
)


def recipe(text: str) -> dict:
    return resolve_recipe(parse_recipe(text))


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("fro_ckpt=1,thr=-3.55", {"fro_ckpt": 1.0, "thr": -3.55}),
        ("fro_ckpt,thr=-3.55", {"fro_ckpt": 1.0, "thr": -3.55}),
        (" fro_ckpt = 1 , thr = -3.55 ", {"fro_ckpt": 1.0, "thr": -3.55}),
        ("thr=-3.55,fro_ckpt=7", {"fro_ckpt": 1.0, "thr": -3.55}),
        ("thr=-3", {"fro_ckpt": 1.0, "thr": -3.0}),
        ("fro_ckpt=3,spn_lora=1,thr=-2.5", {"fro_ckpt": 0.75, "spn_lora": 0.25, "thr": -2.5}),
        ("fro_ckpt=2,params=-1,thr=-3", {"fro_ckpt": 2.0, "params": -1.0, "thr": -3.0}),
        ("fro_ckpt=-1,thr=-3", {"fro_ckpt": 1.0, "thr": -3.0}),
        ("fro_ckpt=1,params=0,thr=-3", {"fro_ckpt": 1.0, "thr": -3.0}),
        (
            "fro_ckpt=1e7,params=1,thr=-3",
            {"fro_ckpt": 1e7 / (1e7 + 1), "thr": -3.0},
        ),  # as there: below 1e-6 it is left out
        ("spn_ckpt=1,size=0.04", {"spn_ckpt": 1.0, "size": 0.04}),
        ("size=32", {"fro_ckpt": 1.0, "size": 32.0}),
        ("max_rank=8", {"fro_ckpt": 1.0, "max_rank": 8}),
        ("max_conv_rank=8", {"fro_ckpt": 1.0, "max_conv_rank": 8}),
        ("sv_ratio=10", {"sv_ratio": 10.0}),
        ("sv_fro=1,max_rank=8,max_conv_rank=4", {"sv_fro": 1.0, "max_rank": 8, "max_conv_rank": 4}),
        ("sv_cumulative=0.5,rescale=2", {"sv_cumulative": 0.5, "rescale": 2.0}),
        ("thr=-3,rescale=1", {"fro_ckpt": 1.0, "thr": -3.0}),
        ("thr=-0", {"fro_ckpt": 1.0, "thr": 0.0}),
    ],
)
def test_a_recipe_in_one_spelling(text: str, table: dict):
    assert recipe(text) == table
    assert str(recipe(text)["thr"]) != "-0.0" if "thr" in table else True
    assert all(type(recipe(text)[key]) is int for key in ("max_rank", "max_conv_rank") if key in table)


def test_what_means_the_same_is_the_same():
    same = ("fro_ckpt=1,params=1,thr=-3", "params=2,thr=-3.0,fro_ckpt=2", "fro_ckpt,params,thr=-3,rescale=1,subspace=0")
    assert len({str(recipe(text)) for text in same}) == 1


def test_a_table_of_the_manifest_may_hold_more():
    """Keys of other matters, and None for what is not given."""
    table = dict.fromkeys(KEYS) | {"step": "last", "allow_empty": True, "thr": -3, "max_rank": 4}
    assert resolve_recipe(table) == {"fro_ckpt": 1.0, "thr": -3.0, "max_rank": 4}


def test_a_resolved_recipe_is_its_own_resolution():
    for text in ("fro_ckpt=3,spn_lora=1,thr=-2.5", "sv_fro=0.9,max_rank=4", "fro_ckpt=2,params=-1,size=3,rescale=0.5"):
        once = recipe(text)
        assert resolve_recipe(once) == once


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fro_ckp=1,thr=-3", '"fro_ckp": no such key of a recipe (did you mean "fro_ckpt"?)'),
        ("thresh=1", "no such key of a recipe"),
        ("", '"": no such key of a recipe'),
        ("thr=-3,", '"": no such key of a recipe'),
        ("fro_ckpt=1,fro_ckpt=2,thr=-3", "fro_ckpt stands twice"),
        ("thr", "thr needs a number, as in thr=1"),
        ("fro_ckpt=,thr=-3", 'fro_ckpt needs a number, got ""'),
        ("thr=abc", 'thr needs a number, got "abc"'),
        ("thr=1=2", 'thr needs a number, got "1=2"'),
        ("fro_ckpt=1,sv_fro=0.9", "sv_fro looks at a layer's own singular values: fro_ckpt has no effect with it"),
        ("spn_lora=1,params=1,sv_ratio=9", "spn_lora, params has no effect with it"),
    ],
)
def test_a_text_that_is_no_recipe(text: str, said: str):
    with pytest.raises(ValueError) as error:
        parse_recipe(text)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in TERMS])
def test_only_terms_stand_without_a_number(key: str):
    with pytest.raises(ValueError, match=f"{key} needs a number"):
        parse_recipe(f"fro_ckpt,{key}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fro_ckpt=1", "nothing says how many ranks stay"),
        ("rescale=2", "nothing says how many ranks stay"),
        ("thr=-3,size=32", "thr and size each say how many ranks stay"),
        ("thr=-3,sv_fro=0.9", "thr and sv_fro each say how many ranks stay"),
        ("sv_ratio=3,sv_fro=0.9", "sv_ratio and sv_fro each say how many ranks stay"),
        ("fro_ckpt=1,params=-1,thr=-3", "add up to 0"),
        ("fro_ckpt=0,thr=-3", "add up to 0"),
        ("fro_ckpt=0.1,spn_ckpt=0.2,params=-0.3,thr=-3", "add up to"),
        ("fro_ckpt=1e308,spn_ckpt=1e308,thr=-3", "add up to"),
        ("thr=nan", "thr is nan: a finite number is expected"),
        ("fro_ckpt=inf,thr=-3", "fro_ckpt is inf: a finite number is expected"),
        ("thr=-inf", "thr is -inf: a finite number is expected"),
        ("size=0", "size is 0; it is more than 0 MiB"),
        ("size=-1", "size is -1; it is more than 0 MiB"),
        ("sv_ratio=0.9", "sv_ratio is 0.9; it is 1 or more"),
        ("sv_fro=0", "sv_fro is 0; it is in (0, 1]"),
        ("sv_fro=1.1", "sv_fro is 1.1; it is in (0, 1]"),
        ("sv_cumulative=-0.5", "sv_cumulative is -0.5; it is in (0, 1]"),
        ("max_rank=0", "max_rank is 0; it is a whole number of 1 or more"),
        ("max_rank=1.5", "max_rank is 1.5; it is a whole number"),
        ("max_rank=4,max_conv_rank=-2", "max_conv_rank is -2; it is a whole number"),
        ("thr=-3,rescale=0", "rescale is 0; it is more than 0"),
        ("thr=-3,rescale=-1", "rescale is -1; it is more than 0"),
    ],
)
def test_a_recipe_that_means_nothing(text: str, said: str):
    table = parse_recipe(text)
    with pytest.raises(ValueError) as error:
        resolve_recipe(table)
    assert said in str(error.value) and "\n" not in str(error.value)


@given(some.text(max_size=30))
def test_any_text_is_a_recipe_or_one_line(text: str):
    try:
        resolve_recipe(parse_recipe(text))
    except ValueError as error:
        assert "\n" not in str(error)


def layer(
    *singular: float, convolution: bool = False, params: int = 48, fro: float = 5.0, spn: float = 2.0, used: tuple = ()
) -> References:
    values = np.array(singular)
    return References(values, fro, spn, params, convolution, np.array(used or np.ones(len(values))))


NAIVE = {
    "fro_ckpt": lambda one, i: one.fro_ckpt,
    "spn_ckpt": lambda one, i: one.spn_ckpt,
    "fro_lora": lambda one, i: math.sqrt(sum(s * s for s in one.singular.tolist())),
    "spn_lora": lambda one, i: max(one.singular.tolist()),
    "subspace": lambda one, i: one.subspace[i],
    "params": lambda one, i: one.params,
}


def naive_scores(weights: Mapping[str, float], one: References, rescale: float = 1.0) -> list[float]:
    """log10 c σ_i - Σ w_t log10 reference_t, as resize_lora's README has it."""
    return [
        math.log10(rescale * s) - sum(weight * math.log10(NAIVE[term](one, i)) for term, weight in weights.items())
        for i, s in enumerate(one.singular.tolist())
    ]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("rescale", [1.0, 0.2])
def test_every_term_by_the_naive_formula(term: str, rescale: float):
    one = layer(3.0, 1.5, 0.01, fro=7.0, spn=2.5, params=1234, used=(0.3, 9.0, 0.002))
    found = scores(recipe(f"{term}=1,thr=-3,rescale={rescale}"), one)
    np.testing.assert_allclose(found, naive_scores({term: 1.0}, one, rescale), rtol=1e-12)


@given(
    some.dictionaries(some.sampled_from(TERMS), some.floats(-3, 3).filter(lambda w: abs(w) > 0.01), min_size=1),
    some.lists(some.floats(1e-6, 1e3), min_size=1, max_size=6),
    some.floats(0.01, 100),
)
def test_terms_together_by_the_naive_formula(terms: dict[str, float], singular: list[float], rescale: float):
    total = math.fsum(terms.values())
    if abs(total) < 0.1:
        return
    one = layer(*sorted(singular, reverse=True), used=tuple(0.1 + i for i in range(len(singular))))
    table = resolve_recipe({**terms, "thr": -3, "rescale": rescale})
    weights = {term: weight / total for term, weight in terms.items()}
    np.testing.assert_allclose(scores(table, one), naive_scores(weights, one, rescale), atol=1e-9)


def test_a_rank_of_zero_scores_nothing_whatever_it_is_compared_with():
    one = layer(1.0, 0.0, used=(0.5, 0.0), fro=0.0)
    assert scores(recipe("fro_ckpt=1,thr=-3"), one).tolist() == [math.inf, -math.inf]
    assert scores(recipe("subspace=1,thr=-3"), one)[1] == -math.inf


def test_norms_that_no_recipe_asks_for_need_not_be_known():
    one = References(np.array([2.0, 1.0]), None, None, 48, False)
    assert scores(recipe("spn_lora=1,thr=-1"), one).tolist() == [0.0, pytest.approx(math.log10(0.5))]


def kept(text: str, *layers: References, file_size=lambda counts: sum(counts.values())) -> list[list[int]]:
    named = {str(number): one for number, one in enumerate(layers)}
    found = choose(recipe(text), named, file_size)
    assert list(found) == list(named)
    return [one.tolist() for one in found.values()]


def test_a_threshold_keeps_what_scores_as_much():
    """>=, as resize_lora's code has it, where its README says >."""
    one = layer(3.0, 0.7, 0.1, 0.03)
    for number, score in enumerate(scores(recipe("fro_ckpt=1,thr=-3"), one).tolist()):
        assert kept(f"thr={score!r}", one) == [list(range(number + 1))]
        assert kept(f"thr={np.nextafter(score, 9)!r}".replace("np.float64(", "").replace(")", ""), one) == [
            list(range(number))
        ]


@given(
    some.lists(some.lists(some.floats(1e-5, 10), min_size=1, max_size=5), min_size=1, max_size=4), some.floats(-4, 1)
)
def test_a_threshold_counts_for_each_layer_alone(spectra: list[list[float]], thr: float):
    layers = [layer(*sorted(one, reverse=True), fro=1.0 + n) for n, one in enumerate(spectra)]
    wanted = [[i for i, score in enumerate(scores({"fro_ckpt": 1.0}, one)) if score >= thr] for one in layers]
    assert kept(f"fro_ckpt=1,thr={thr!r}", *layers) == wanted


@pytest.mark.parametrize(
    ("text", "linear", "convolution"),
    [
        ("thr=-9,max_rank=2", 2, 2),
        ("thr=-9,max_rank=2,max_conv_rank=3", 2, 3),
        ("thr=-9,max_conv_rank=1", 4, 1),
        ("max_rank=3", 3, 3),
        ("max_rank=9", 4, 4),
        ("sv_fro=1,max_rank=2,max_conv_rank=1", 2, 1),
        ("size=1,max_rank=2,max_conv_rank=1", 2, 1),
    ],
)
def test_caps(text: str, linear: int, convolution: int):
    """sd-scripts' new_rank and new_conv_rank: the second is for all that is stored as a convolution, 1×1 too."""
    values = (3.0, 2.0, 1.0, 0.5)
    found = kept(text, layer(*values), layer(*values, convolution=True))
    assert found == [list(range(linear)), list(range(convolution))]


def fewest(values: list[float], part: float) -> int:
    return next(k for k in range(1, len(values) + 1) if sum(values[:k]) >= part * sum(values) * (1 - 1e-9))


SPECTRUM = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)


@pytest.mark.parametrize("ratio", [1.0, 1.9, 2.0, 2.1, 4.0, 31.9, 32.0, 1e9])
def test_sv_ratio(ratio: float):
    """Those of at least σ_1 / ratio. sd-scripts keeps one more of each kind: on purpose it is not followed."""
    assert kept(f"sv_ratio={ratio}", layer(*SPECTRUM)) == [[i for i, s in enumerate(SPECTRUM) if s >= 8 / ratio]]


@pytest.mark.parametrize("part", [0.01, 0.5, 0.5079, 0.51, 0.75, 0.9, 0.98, 0.999, 1.0])
def test_sv_cumulative_is_the_fewest_that_reach_it(part: float):
    assert kept(f"sv_cumulative={part}", layer(*SPECTRUM)) == [list(range(fewest(list(SPECTRUM), part)))]


@pytest.mark.parametrize("part", [0.01, 0.5, 0.8, 0.9, 0.98, 0.999, 1.0])
def test_sv_fro_is_the_fewest_that_reach_it(part: float):
    squares = [s * s for s in SPECTRUM]
    assert kept(f"sv_fro={part}", layer(*SPECTRUM)) == [list(range(fewest(squares, part * part)))]


@pytest.mark.parametrize(
    ("selector", "wanted"), [("sv_cumulative=0.5", 3), ("sv_cumulative=0.8", 5), ("sv_fro=0.5", 2), ("sv_ratio=1", 6)]
)
def test_own_selectors_of_equal_singular_values(selector: str, wanted: int):
    """Rounding does not take one more: 3 of 6 equal ones are half of the sum, though 0.3 + 0.3 + 0.3 is a little less."""
    assert kept(selector, layer(*[0.3] * 6)) == [list(range(wanted))]


@given(some.sampled_from(OWN), some.floats(0.01, 1), some.lists(some.floats(1e-3, 10), min_size=1, max_size=8))
def test_own_selectors_look_at_nothing_but_the_layer(selector: str, part: float, singular: list[float]):
    number = 1 / part if selector == "sv_ratio" else part
    values = tuple(sorted(singular, reverse=True))
    one, other = layer(*values), layer(*values, fro=1e-9, spn=1e9, params=7, convolution=True)
    (first,), (second, _) = kept(f"{selector}={number!r}", one), kept(f"{selector}={number!r}", other, layer(1e3))
    assert first == second == list(range(len(first))) and first


def test_own_selectors_keep_a_rank_of_every_layer_but_of_those_that_are_zero():
    assert kept("sv_fro=0.01", layer(2e-6), layer(1.0), layer(0.0, 0.0)) == [[0], [0], []]


@pytest.mark.parametrize("text", ["thr=-99", "max_rank=4", "sv_fro=1", "sv_ratio=1e9", "size=1", "spn_lora=1,thr=-99"])
def test_layers_of_zeros_keep_nothing(text: str):
    """Below 1e-6 a layer is untrained: resize_lora's own constant. A rank of zeros is nothing in a trained one, either."""
    found = kept(text, layer(0.99e-6, 0.5e-6), layer(), layer(1.01e-6), layer(1.0, 0.0))
    assert found[:3] == [[], [], [0]]
    assert found[3] in ([0], [0, 1] if text == "sv_ratio=1e9" else [0])


def test_a_base_layer_of_zeros_keeps_all():
    assert kept("thr=9", layer(1.0, 1e-3, fro=0.0)) == [[0, 1]]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("max_rank=1", [1]),
        ("max_rank=2", [1, 3]),
        ("max_rank=3", [1, 2, 3]),
        ("thr=0.5", [1, 3]),
        ("max_rank=4", [0, 1, 2, 3]),
    ],
)
def test_by_subspace_the_best_ranks_need_not_be_the_first(text: str, wanted: list[int]):
    """Ascending all the same: they are slices of a file."""
    one = layer(4.0, 3.0, 2.0, 1.0, used=(10.0, 0.01, 1.0, 0.1))
    assert [round(score, 2) for score in scores({"subspace": 1.0}, one).tolist()] == [-0.4, 2.48, 0.3, 1.0]
    assert kept(f"subspace=1,{text}", one) == [wanted]


def test_by_subspace_a_size_takes_the_best():
    one = layer(4.0, 3.0, 2.0, 1.0, used=(10.0, 0.01, 1.0, 0.1))
    assert kept(f"subspace=1,size={2.5 / MIB!r}", one) == [[1, 3]]


def bytes_of(counts: Mapping[str, int]) -> int:
    """A header, alphas, and ranks that are of another size in each layer."""
    return 100 + sum(20 + (10 + int(name)) * count for name, count in counts.items() if count)


@given(
    some.lists(some.lists(some.floats(1e-5, 10), min_size=0, max_size=5), min_size=1, max_size=4),
    some.integers(1, 500),
    some.sampled_from(["", ",max_rank=2", ",max_conv_rank=1"]),
)
def test_a_size_is_hit_from_below(spectra: list[list[float]], limit: int, caps: str):
    """The next rank by score would not fit."""
    layers = [layer(*sorted(one, reverse=True), convolution=n == 1) for n, one in enumerate(spectra)]
    found = kept(f"fro_ckpt=1,size={limit / MIB!r}{caps}", *layers, file_size=bytes_of)
    size = bytes_of({str(n): len(ranks) for n, ranks in enumerate(found)})
    assert size <= limit or not any(found), "what is no layer may be larger already"
    every = kept(f"fro_ckpt=1,thr=-99{caps}", *layers)
    value = [scores({"fro_ckpt": 1.0}, one) for one in layers]
    left = [(value[n][i], n) for n, ranks in enumerate(every) for i in ranks if i not in found[n]]
    inside = [value[n][i] for n, ranks in enumerate(found) for i in ranks]
    if left:
        best = max(left)[0]
        assert all(score > best for score in inside), "the best stay"
        counts = {str(n): sum(value[n][i] >= best for i in ranks) for n, ranks in enumerate(every)}
        assert bytes_of(counts) > limit


def test_all_that_fits_is_kept():
    layers = layer(3.0, 2.0), layer(1.0, 1e-5)
    assert kept("size=1", *layers) == [[0, 1], [0, 1]]
    assert kept(f"size={0.5 / MIB!r}", *layers) == [[], []]


def test_a_size_asks_for_few_sizes():
    """By bisection: a file of a thousand layers has some ten thousand ranks."""
    asked = []

    def file_size(counts: Mapping[str, int]) -> int:
        asked.append(counts)
        return sum(counts.values())

    values = np.geomspace(1, 1e-5, 1000).tolist()
    assert len(kept(f"size={500 / MIB!r}", layer(*values), file_size=file_size)[0]) == 500
    assert len(asked) <= 11


def test_why_nothing_is_left():
    layers = {"a": layer(1e-3, fro=1.0), "b": layer(1e-2, fro=1.0), "c": layer(0.0)}
    assert nothing_left(recipe("thr=3"), layers) == (
        "thr = 3 keeps nothing of this LoRA: the highest score is -2.0000 (b)"
    )
    assert nothing_left(recipe("size=0.001"), layers).startswith("size = 0.001 keeps nothing of this LoRA")
    assert (
        nothing_left(recipe("thr=3"), {"c": layer(0.0)})
        == nothing_left(recipe("thr=3"), {})
        == ("nothing is left of this LoRA: it has no trained layer that the base has")
    )


def test_keys_are_told_apart():
    assert {*TERMS, *SELECTORS, "max_rank", "max_conv_rank", "rescale"} == set(KEYS)
    assert set(OWN) < set(SELECTORS)


def test_recipes_need_no_tensor_library():
    code = "import sys; from lorabuild.lora.ranks import *; resolve_recipe(parse_recipe('thr=1')); print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
