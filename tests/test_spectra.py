"""All layers of a file at once, of mixed shapes and flavours, are each decomposed as if it were alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_lab import ADAPTERS, adapter, write_lora

from lorabuild.errors import JobError
from lorabuild.header import read_header
from lorabuild.lora.layers import Layer, read_layers
from lorabuild.nn import spectra
from lorabuild.nn.spectra import batches, decompose_layers, vectors

TOLERANCE = 1e-6

# Ways in which ranks depend on each other.
FLAWS = (
    "rank of zeros",
    "half of the ranks zeros",
    "repeated",
    "opposite",
    "up of zeros",
    "down of zeros",
    "nearly repeated",
)


def pair(out: int, rank: int, *rest: int, seed: int = 0, flaw: str | None = None) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, *[1] * (len(rest) - 1), generator=random) / out**0.5
    down = torch.randn(rank, *rest, generator=random) / math.prod(rest) ** 0.5
    match flaw:
        case "rank of zeros":
            down[1] = 0
        case "half of the ranks zeros":
            up[:, rank // 2 :] = 0
        case "repeated":
            up[:, 0] = up[:, -1]
            down[0] = 3 * down[-1]
        case "opposite":  # what two ranks add, one takes away
            up[:, 0], down[0] = up[:, -1], -down[-1]
        case "up of zeros":
            up.zero_()
        case "down of zeros":
            down.zero_()
        case "nearly repeated":
            down[0] = down[-1] * (1 + 2**-9 * torch.linspace(0, 1, down[0].numel()).reshape(down[0].shape))
    return {"lora_up.weight": up.half(), "lora_down.weight": down.half()}


def mixed() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(tensors of a file, what each layer adds): every flavour thrice, low-rank layers with every flaw among sound ones."""
    tensors, deltas = {}, {}
    for number, kind in enumerate(ADAPTERS):
        for copy, alpha in enumerate((2.0, -0.7, None)):
            name = f"lora_unet_input_blocks_1_{copy}_{number}"
            made, deltas[name] = adapter(kind, name, alpha, seed=7 * number + copy)
            tensors |= made
    sizes = [
        (40, 8, 24),
        (40, 8, 24, 3, 3),
        (8, 12, 30),
        (30, 12, 5),
        (6, 16, 7),
        (9, 9, 9),
        (1, 1, 1),
        (1, 3, 1, 3, 3),
    ]
    for number, size in enumerate(sizes):
        for copy, flaw in enumerate((None, *FLAWS, None)):
            if size[1] < 2 and flaw:
                continue
            name = f"lora_unet_middle_block_1_{number}_{copy}"
            made = pair(*size, seed=100 * number + copy, flaw=flaw)
            tensors |= {f"{name}.{role}": one for role, one in made.items()}
            tensors[f"{name}.alpha"] = torch.tensor(3.0)
            up, down = (one.double().flatten(1) for one in made.values())
            deltas[name] = up @ down * 3 / len(down)
    return tensors, deltas


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Layer], dict[str, np.ndarray]]:
    tensors, deltas = mixed()
    path = write_lora(tmp_path_factory.mktemp("mixed") / "lora", tensors, None)
    layers, rest = read_layers(read_header(path).tensors)
    assert len(layers) == len(deltas) and not rest
    return path, layers, {name: delta.numpy() for name, delta in deltas.items()}


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_vectors_make_up_what_each_layer_adds(file: tuple, precision: str):
    path, layers, deltas = file
    found = decompose_layers(path, layers)
    assert found.keys() == set(layers)
    for layer, spectrum in found.items():
        delta, ranks = deltas[layer.name], np.arange(len(spectrum.singular))
        u, vh = vectors(path, layer, spectrum, ranks, precision)
        largest = max(np.linalg.norm(delta, 2), 1e-30)
        np.testing.assert_allclose(u * spectrum.singular @ vh, delta, atol=TOLERANCE * largest, err_msg=layer.name)


def test_the_singular_values_are_those_of_what_each_layer_adds(file: tuple):
    path, layers, deltas = file
    for layer, spectrum in decompose_layers(path, layers).items():
        wanted = np.linalg.svd(deltas[layer.name], compute_uv=False)
        found, largest = spectrum.singular, max(wanted[0], 1e-30)
        assert found.dtype == np.float64 and (np.diff(found) <= 0).all() and (found >= 0).all()
        np.testing.assert_allclose(found, wanted[: len(found)], atol=1e-12 * largest, err_msg=layer.name)
        assert (wanted[len(found) :] < TOLERANCE * largest).all(), layer.name


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_some_ranks_are_those_of_all(file: tuple, precision: str):
    """No prefix, and in the order that was asked for."""
    path, layers, _ = file
    for layer, spectrum in decompose_layers(path, layers).items():
        every = np.arange(len(spectrum.singular))
        some = every[::-2]
        u, vh = vectors(path, layer, spectrum, every)
        one, two = vectors(path, layer, spectrum, some, precision)
        trained = spectrum.singular[some] > 1e-6 * spectrum.singular[0]  # the directions of zeros are any
        np.testing.assert_allclose(one[:, trained], u[:, some][:, trained], atol=1e-3)
        np.testing.assert_allclose(two[trained], vh[some][trained], atol=1e-3)
        assert (one.shape[1], len(two)) == (len(some), len(some))


def test_no_layer_influences_another(file: tuple):
    """Alone, in other company and in another order."""
    path, layers, _ = file
    together = decompose_layers(path, layers)
    half = decompose_layers(path, layers[::-2])
    for number, layer in enumerate(layers):
        alone = decompose_layers(path, [layer])[layer] if number % 5 == 0 else together[layer]
        for other in (alone, half.get(layer, alone)):
            np.testing.assert_allclose(other.singular, together[layer].singular, rtol=1e-13, atol=1e-300)
            assert other.sign == together[layer].sign
            assert (other.transforms is None) == (together[layer].transforms is None)


def test_equal_input_equal_bits(file: tuple):
    path, layers, _ = file
    one, two = (decompose_layers(path, layers) for _ in range(2))
    for layer in layers:
        assert one[layer].singular.tobytes() == two[layer].singular.tobytes()


@pytest.mark.parametrize("numbers", [1, 1000, 1 << 30])
def test_the_size_of_a_batch_changes_nothing(file: tuple, numbers: int, monkeypatch: pytest.MonkeyPatch):
    path, layers, _ = file
    usual = decompose_layers(path, layers)
    monkeypatch.setattr(spectra, "BATCH_NUMBERS", numbers)
    for layer, spectrum in decompose_layers(path, layers).items():
        np.testing.assert_allclose(spectrum.singular, usual[layer].singular, rtol=1e-13, atol=1e-300)


def test_batches_are_of_one_shape_the_largest_first(file: tuple):
    _, layers, _ = file
    found = list(batches(layers))
    assert sorted(layer.name for batch in found for layer in batch) == sorted(layer.name for layer in layers)
    for batch in found:
        assert (
            len({(layer.flavour, *sorted((role, one.shape) for role, one in layer.infos.items())) for layer in batch})
            == 1
        )
    sizes = [sum(math.prod(info.shape) for info in batch[0].infos.values()) for batch in found]
    assert sizes == sorted(sizes, reverse=True)
    assert max(len(batch) for batch in found) > 3


def test_a_batch_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch, file: tuple):
    _, layers, _ = file
    monkeypatch.setattr(spectra, "BATCH_NUMBERS", 2000)
    for batch in batches(layers):
        total = sum(math.prod(info.shape) for layer in batch for info in layer.infos.values())
        assert total <= 2000 or len(batch) == 1


def test_progress_counts_the_layers(file: tuple):
    path, layers, _ = file
    told: list[int] = []
    decompose_layers(path, layers, told.append)
    assert told == sorted(told) and told[-1] == len(layers)


def test_layers_of_few_ranks_need_no_second_decomposition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The vectors of a LoRA come from the small matrices of the first."""
    path = write_lora(
        tmp_path / "lora", {f"lora_unet_out_2.{role}": one for role, one in pair(40, 8, 24).items()}, None
    )
    layers, _ = read_layers(read_header(path).tensors)
    ((layer, spectrum),) = decompose_layers(path, layers).items()
    monkeypatch.setattr(np.linalg, "svd", lambda *a, **k: pytest.fail("decomposed again"))
    monkeypatch.setattr(np.linalg, "qr", lambda *a, **k: pytest.fail("decomposed again"))
    vectors(path, layer, spectrum, np.arange(3))


@pytest.mark.parametrize("alpha", [0.0, -0.0])
def test_an_alpha_of_zero_is_no_effect(tmp_path: Path, alpha: float):
    tensors, _ = adapter("lora", "lora_unet_out_2", alpha)
    path = write_lora(tmp_path / "lora", tensors, None)
    layers, _ = read_layers(read_header(path).tensors)
    ((_, spectrum),) = decompose_layers(path, layers).items()
    assert not spectrum.singular.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_broken_layer_of_many_is_named(tmp_path: Path, value: float):
    tensors, _ = mixed()
    key = "lora_unet_middle_block_1_0_3.lora_down.weight"
    tensors[key][2, 3] = value
    path = write_lora(tmp_path / "lora", tensors, None)
    with pytest.raises(JobError, match=rf"{key}: holds NaN or infinity"):
        decompose_layers(path, read_layers(read_header(path).tensors)[0])
