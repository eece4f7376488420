"""A base in either layout gives the same weights by the same names, read where they lie, and their norms are right."""

from __future__ import annotations

import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_lab import base_modules, write_bases
from safetensors.torch import load_file, save_file

from lorabuild.errors import JobError
from lorabuild.header import FormatError, TensorInfo, read_header
from lorabuild.lora.basefile import BaseWeight, base_weights
from lorabuild.nn import norms
from lorabuild.nn.norms import CHUNK_BYTES, frobenius_norm, largest_singular_value, spectral_norm
from lorabuild.tensors import read_tensor
from lorabuild.writing import header_bytes

LAYER = "lora_te2_text_model_encoder_layers_7_self_attn_{}_proj"
PROJECTION = "lora_te2_text_projection"
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def weights(dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """One for every module of SDXL, each of another content; not square, so that a transposed one is told."""
    random = torch.Generator().manual_seed(0)
    shapes = {name: (4, 3, 3, 3) if "unet" in name else (4, 3) for name in base_modules()}
    return {name: (torch.randn(shape, generator=random) / 2).to(dtype) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_bases(tmp_path_factory.mktemp("base"), weights())


def as_written(weight: BaseWeight) -> np.ndarray:
    matrix = read_tensor(weight.path, weight.key, weight.info)
    return matrix.T if weight.transposed else matrix


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_layouts_have_the_same_weights_by_the_same_names(tmp_path: Path, dtype: torch.dtype):
    made = weights(dtype)
    for base in write_bases(tmp_path, made):
        found = base_weights(base)
        assert found.keys() == made.keys()
        for name, weight in made.items():
            assert found[name].shape == weight.shape
            np.testing.assert_array_equal(as_written(found[name]), weight.float().numpy())


def test_both_layouts_have_the_same_norms(bases: tuple[Path, Path]):
    single, folder = (base_weights(base) for base in bases)
    for name in single:
        assert frobenius_norm(single[name]) == pytest.approx(frobenius_norm(folder[name]), rel=1e-6)
        assert spectral_norm(single[name]) == pytest.approx(spectral_norm(folder[name]), rel=1e-6)


def test_query_key_and_value_of_the_second_text_encoder_in_this_order(tmp_path: Path):
    """OpenCLIP has them in one matrix. resize_lora takes them for k, q, v."""
    made = {LAYER.format(part): torch.full((2, 3), float(number)) for number, part in enumerate("qkv", 1)}
    path, _ = write_bases(tmp_path, made | {"lora_unet_out_2": torch.ones(4, 3)})
    key = "conditioner.embedders.1.model.transformer.resblocks.7.attn.in_proj_weight"
    assert load_file(path)[key].tolist() == [[1.0] * 3] * 2 + [[2.0] * 3] * 2 + [[3.0] * 3] * 2
    found = base_weights(path)
    for number, part in enumerate("qkv", 1):
        one = found[LAYER.format(part)]
        assert one.key == key and as_written(one).tolist() == [[number] * 3] * 2
        assert frobenius_norm(one) == pytest.approx(number * 6**0.5, rel=1e-6)
        assert spectral_norm(one) == pytest.approx(number * 6**0.5, rel=1e-6)


def test_the_text_projection_is_transposed_in_sgms_file(tmp_path: Path):
    """There it is applied as x @ W, where a linear layer is x @ Wᵀ."""
    made = {PROJECTION: torch.arange(6.0).reshape(2, 3), "lora_unet_out_2": torch.ones(4, 3)}
    single, folder = (base_weights(base)[PROJECTION] for base in write_bases(tmp_path, made))
    assert (single.transposed, single.info.shape, single.shape) == (True, (3, 2), (2, 3))
    assert (folder.transposed, folder.info.shape, folder.shape) == (False, (2, 3), (2, 3))
    np.testing.assert_array_equal(as_written(single), as_written(folder))


def test_what_no_lora_changes_is_left_out(bases: tuple[Path, Path]):
    """Biases, norms, embeddings, the VAE: they are in both files."""
    keys = {weight.key for base in bases for weight in base_weights(base).values()}
    assert not any(part in key for key in keys for part in ("bias", "first_stage", "token_embedding", "ln_1"))
    assert any("ln_1" in key for key in read_header(bases[0]).tensors)


def test_weights_are_in_the_order_of_the_file(bases: tuple[Path, Path]):
    """So that a disk is read from its beginning to its end."""
    starts = [weight.info.start for weight in base_weights(bases[0]).values()]
    assert starts == sorted(starts)


def test_a_folder_may_name_its_files_either_way(tmp_path: Path, bases: tuple[Path, Path]):
    folder = shutil.copytree(bases[1], tmp_path / "base")
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/model.safetensors")
    assert base_weights(folder).keys() == base_weights(bases[1]).keys()


@pytest.mark.parametrize("missing", ["unet", "text_encoder", "text_encoder_2"])
def test_a_folder_that_is_no_base(tmp_path: Path, bases: tuple[Path, Path], missing: str):
    folder = shutil.copytree(bases[1], tmp_path / "base")
    shutil.rmtree(folder / missing)
    with pytest.raises(JobError, match=rf"base.{missing}: holds none of model\.safetensors and") as error:
        base_weights(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "keys",
    [
        ["lora_unet_out_2.lora_up.weight"],  # a LoRA
        ["diffusion_model.input_blocks.0.0.weight"],
        ["double_blocks.0.img_attn.qkv.weight"],  # Flux
        ["conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight"],
        ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],  # SD3
        [],
    ],
)
def test_a_file_that_is_no_sdxl_checkpoint_is_one_line(tmp_path: Path, keys: list[str]):
    save_file({key: torch.ones(2, 2) for key in keys}, tmp_path / "other.safetensors")
    with pytest.raises(JobError, match=r"other\.safetensors: not an? (?:whole )?SDXL (?:base|checkpoint)") as error:
        base_weights(tmp_path / "other.safetensors")
    assert "\n" not in str(error.value)


def test_a_pickle_and_a_truncated_file_are_refused(tmp_path: Path, bases: tuple[Path, Path]):
    torch.save({"x": torch.ones(2)}, tmp_path / "base.ckpt")
    with pytest.raises(FormatError, match="a pickle, which can run code"):
        base_weights(tmp_path / "base.ckpt")
    data = bases[0].read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="truncated"):
        base_weights(tmp_path / "half.safetensors")


def stored(tmp_path: Path, tensor: torch.Tensor) -> BaseWeight:
    """A weight with others around it: reading too far or too early shows."""
    around = torch.full((7,), 3.0).to(tensor.dtype)
    save_file({"a": around, "w": tensor.contiguous(), "z": around.clone()}, tmp_path / "base")
    return BaseWeight(tmp_path / "base", "w", read_header(tmp_path / "base").tensors["w"])


def exact(tensor: torch.Tensor) -> float:
    return float(np.sqrt(np.square(tensor.double().numpy().astype(np.longdouble)).sum()))


CONTENTS = {
    "usual weights": lambda shape, random: torch.randn(shape, generator=random) * 0.02,
    "tiny": lambda shape, random: torch.randn(shape, generator=random) * 1e-6,  # of halves all subnormal
    "of all sizes": lambda shape, random: torch.exp(torch.randn(shape, generator=random) * 3) * 1e-3,
    "one large among small": lambda shape, random: torch.cat(
        [torch.full((1,), 1000.0), torch.randn(math.prod(shape) - 1, generator=random) * 1e-3]
    ).reshape(shape),
    "negative": lambda shape, random: -torch.rand(shape, generator=random),
    "the largest halves": lambda shape, random: torch.full(shape, 65504.0),
}
# In two bytes a number: parts of a chunk, odd ones, some chunks and a rest.
SHAPES = [(1, 1), (3, 1), (7, 11), (1, CHUNK_BYTES // 2 - 1), (1, CHUNK_BYTES // 2 + 1), (701, 503)]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("content", CONTENTS)
def test_frobenius_norms(tmp_path: Path, dtype: torch.dtype, content: str):
    random = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        tensor = CONTENTS[content](shape, random).to(dtype)
        assert frobenius_norm(stored(tmp_path, tensor)) == pytest.approx(exact(tensor), rel=1e-6), shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e-3])
def test_roundings_that_all_go_one_way(tmp_path: Path, dtype: torch.dtype, value: float):
    """Of equal numbers: the worst there is. A float32 sum throughout would be some 1e-3 off."""
    tensor = torch.full((701, 503), value).to(dtype)
    assert frobenius_norm(stored(tmp_path, tensor)) == pytest.approx(exact(tensor), rel=5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_counts_as_what_it_is(tmp_path: Path, dtype: torch.dtype):
    """Alone, in either place of a word, subnormal ones too."""
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite() & (every.float().abs() < 1e15) & (every.float().abs() > 1e-15)]
    for half in finite[:: 997 if dtype == torch.float16 else 397]:
        for place in (0, 1):
            tensor = torch.zeros(1, 2, dtype=dtype)
            tensor[0, place] = half
            found = frobenius_norm(stored(tmp_path, tensor))
            assert found == pytest.approx(abs(half.double().item()), rel=1e-6)


def test_the_smallest_subnormal_half(tmp_path: Path):
    tensor = torch.full((5, 5), 2.0**-24).half()
    assert frobenius_norm(stored(tmp_path, tensor)) == pytest.approx(5 * 2.0**-24, rel=1e-6)


def test_zeros_and_nothing(tmp_path: Path):
    for shape in ((3, 3), (0, 4)):
        assert frobenius_norm(stored(tmp_path, torch.zeros(shape).half())) == 0


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, -torch.nan])
@pytest.mark.parametrize("place", [0, 1, 352_602])
def test_infinity_and_nan_are_named(tmp_path: Path, dtype: torch.dtype, value: float, place: int):
    tensor = torch.zeros(701, 503).to(dtype)
    tensor.view(-1)[place] = value
    weight = stored(tmp_path, tensor)
    with pytest.raises(JobError, match="base: w holds NaN or infinity; the base is broken"):
        frobenius_norm(weight)
    with pytest.raises(JobError, match="w: holds NaN or infinity"):
        spectral_norm(weight)


def test_a_signalling_nan_of_halves_is_none_of_the_numbers(tmp_path: Path):
    """The least of its bits: as a number it would be 65600."""
    tensor = torch.tensor([[0x7C01, 0]], dtype=torch.int16).view(torch.float16)
    with pytest.raises(JobError, match="NaN or infinity"):
        frobenius_norm(stored(tmp_path, tensor))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.int64])
def test_other_dtypes_are_named(tmp_path: Path, dtype: torch.dtype):
    weight = stored(tmp_path, torch.ones(3, 3).to(dtype))
    said = r"w has dtype (I8|F8_E4M3|I64); one of F16, BF16, F32, F64 was expected"
    with pytest.raises(JobError, match=said):
        frobenius_norm(weight)
    with pytest.raises(JobError, match="w: has dtype"):
        spectral_norm(weight)


def test_a_base_that_ends_early_is_named(tmp_path: Path):
    weight = stored(tmp_path, torch.ones(300, 300).half())
    with open(weight.path, "r+b") as file:
        file.truncate(weight.info.stop - 1)
    for norm in (frobenius_norm, spectral_norm):
        with pytest.raises(FormatError, match="truncated while w was being read"):
            norm(weight)


def test_errors_reach_another_process(tmp_path: Path):
    """Norms are measured by many."""
    weight = stored(tmp_path, torch.full((3, 3), torch.nan))
    with pytest.raises(JobError) as error:
        frobenius_norm(pickle.loads(pickle.dumps(weight)))
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def orthogonal(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, columns)))[0]


N = 300
SPECTRA = {  # of matrices with more than norms.SMALL rows and columns
    "a large gap": np.geomspace(1, 1e-4, N),
    "a small gap": np.r_[1.001, np.linspace(1, 0, N - 1)],
    "two nearly equal": np.r_[1, 1 - 1e-5, np.linspace(0.9, 0, N - 2)],
    "no gap": np.linspace(1, 0.5, N),
    "all equal": np.ones(N),
    "half of them zero": np.r_[np.ones(N // 2), np.zeros(N - N // 2)],
    "one of many": np.r_[1, np.zeros(N - 1)],
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_spectral_norms_of_known_spectra(spectrum: str, size: float):
    matrix = orthogonal(400, N, 1) * (SPECTRA[spectrum] * size) @ orthogonal(N, N, 2).T
    wanted = np.linalg.norm(matrix.astype("f4").astype("f8"), 2)
    assert largest_singular_value(matrix.astype("f4")) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 700), (97, 97), (600, 97), (97, 600), (norms.SMALL, 500), (640, 640), (128, 64, 3, 3)]
)
def test_spectral_norms_of_random_weights(tmp_path: Path, shape: tuple[int, ...]):
    """No gap at all: resize_lora's own are up to 0.3 % too small here, another each time."""
    for dtype in DTYPES:
        tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
        wanted = np.linalg.norm(tensor.double().flatten(1).numpy(), 2)
        assert spectral_norm(stored(tmp_path, tensor)) == pytest.approx(wanted, rel=1e-5)


def test_spectral_norms_of_matrices_that_are_nearly_nothing(tmp_path: Path):
    zeros, one = torch.zeros(200, 150), torch.zeros(200, 150)
    one[3, 4] = -7
    assert spectral_norm(stored(tmp_path, zeros)) == 0
    assert spectral_norm(stored(tmp_path, one)) == pytest.approx(7, rel=1e-6)
    assert spectral_norm(stored(tmp_path, torch.ones(200, 150))) == pytest.approx(30000**0.5, rel=1e-6)


def test_a_spectral_norm_is_the_same_each_time(tmp_path: Path):
    weight = stored(tmp_path, torch.randn(300, 200, generator=torch.Generator().manual_seed(0)))
    assert spectral_norm(weight) == spectral_norm(weight)


def test_the_norms_of_a_part_of_a_tensor(tmp_path: Path):
    """As the thirds of OpenCLIP's in_proj are: by byte range."""
    tensor = torch.randn(300, 110, generator=torch.Generator().manual_seed(0)).half()
    whole = stored(tmp_path, tensor)
    third = (whole.info.stop - whole.info.start) // 3
    start = whole.info.start + third
    part = BaseWeight(whole.path, "w", TensorInfo("F16", (100, 110), start, start + third))
    assert frobenius_norm(part) == pytest.approx(exact(tensor[100:200]), rel=1e-6)
    assert spectral_norm(part) == pytest.approx(np.linalg.norm(tensor[100:200].double().numpy(), 2), rel=1e-5)


def test_names_of_a_base_need_no_tensor_library_and_no_weights(tmp_path: Path):
    """A base of 2 GiB of which the disk holds the header."""
    head = header_bytes([("model.diffusion_model.out.2.weight", "F16", [1 << 15, 1 << 15])])
    with open(tmp_path / "base.safetensors", "wb") as file:
        file.write(head)
        file.truncate(len(head) + (1 << 31))
    code = f"""
import sys
from pathlib import Path
from lorabuild.lora.basefile import base_weights
assert list(base_weights(Path({str(tmp_path / "base.safetensors")!r}))) == ["lora_unet_out_2"]
print({{"torch", "numpy"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
