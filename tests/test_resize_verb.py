"""`lorabuild resize`: any LoRA file, of any flavour and naming, shrunk against any SDXL base, or one line that says why not."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_lab import (
    ADAPTERS,
    CONV,
    GOLDENS,
    LINEAR,
    POINT,
    adapter,
    base_modules,
    best,
    deltas,
    distance,
    layer,
    pairs,
    ranks,
    read,
    resize,
    write_bases,
    write_lora,
    write_measures,
)
from safetensors.torch import save_file

from lorabuild.cli import _main
from lorabuild.errors import JobError, UsageError
from lorabuild.header import read_header
from lorabuild.verbs import resize as verb
from lorabuild.verbs.chop import main as chop

DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
NORM = "lora_unet_input_blocks_1_0_in_layers_0"
# Each kind of adapter on a module of its own.
MODULES = dict(zip(ADAPTERS, (name for name in base_modules() if "_attn1_" in name), strict=False))
SHAPES = {name: ADAPTERS[kind][0] for kind, name in MODULES.items()}
SIZES = r"\S+ [kM]B of \S+ [kM]B"
THREE = {LINEAR: (24, 16), CONV: (12, 8, 3, 3), POINT: (8, 20, 1, 1)}


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads where the verb takes processes, which need a second to start; and the environment stays as it was."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(verb, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(workers))


def random_weights(shapes: Mapping[str, tuple[int, ...]], norms: Mapping[str, float] | None = None) -> dict:
    random = torch.Generator().manual_seed(9)
    found = {name: torch.randn(tuple(shape), generator=random) for name, shape in shapes.items()}
    return {name: one * (norms[name] / one.norm()) if norms else one for name, one in found.items()}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base that has all modules of these tests, in both layouts."""
    weights = random_weights(SHAPES | THREE)
    return write_bases(tmp_path_factory.mktemp("base"), {name: one.half() for name, one in weights.items()})


@pytest.fixture(scope="module")
def base(bases: tuple[Path, Path]) -> Path:
    return bases[0]


def three_layers(alpha: float | None = 2.0) -> dict[str, torch.Tensor]:
    return {
        **layer(LINEAR, 24, 4, 16, alpha=alpha, seed=1),
        **layer(CONV, 12, 6, 8, 3, 3, alpha=alpha, seed=2),
        **layer(POINT, 8, 5, 20, 1, 1, alpha=alpha, seed=3),
    }


def run(lora: Path, base: Path, recipe: str, *more: str, out: Path | None = None) -> Path:
    out = out or lora.with_name("out.safetensors")
    assert verb.main([str(lora), "--base", str(base), "-r", recipe, "-o", str(out), *more]) == 0
    return out


def lora(tmp_path: Path, tensors: dict[str, torch.Tensor] | None = None, dtype: torch.dtype | None = None) -> Path:
    return write_lora(tmp_path / "lora.safetensors", three_layers() if tensors is None else tensors, dtype)


@pytest.mark.parametrize("layout", [0, 1], ids=["single file", "folder"])
@pytest.mark.parametrize("dtype", DTYPE)
def test_every_flavour_becomes_its_best_lora(tmp_path: Path, bases: tuple[Path, Path], layout: int, dtype: str):
    """The best of that rank there is: a full SVD of what LyCORIS' own formula says the layer adds."""
    made = {name: adapter(kind, name, seed=n) for n, (kind, name) in enumerate(MODULES.items())}
    path = lora(tmp_path, {key: one for tensors, _ in made.values() for key, one in tensors.items()})
    out = run(path, bases[layout], "max_rank=3", "--dtype", dtype)
    found = deltas(out)
    assert found.keys() == made.keys()
    tolerance = 4 * torch.finfo(DTYPE[dtype]).eps
    for name, (_, delta) in made.items():
        assert distance(found[name], best(delta, 3)) < tolerance, name
    assert set(ranks(out).values()) == {3}
    tensors = read(out)
    assert {one.dtype for one in tensors.values()} == {DTYPE[dtype]}
    assert len(tensors) == 3 * len(made)
    for name, shape in SHAPES.items():
        assert tensors[f"{name}.lora_up.weight"].shape == (shape[0], 3, *[1] * len(shape[2:]))
        assert tensors[f"{name}.lora_down.weight"].shape == (3, *shape[1:])


@pytest.mark.parametrize("alpha", [4.0, -0.7, None])
def test_all_ranks_are_the_file_itself(tmp_path: Path, base: Path, alpha: float | None):
    path = lora(tmp_path, three_layers(alpha))
    found, wanted = deltas(run(path, base, "thr=-9", "--dtype", "fp32")), deltas(path)
    assert found.keys() == wanted.keys()
    assert all(distance(found[name], delta) < 1e-6 for name, delta in wanted.items())


SPELLED = {
    "PEFT": ("unet.down_blocks.0.resnets.0.conv1", ".lora_B.weight", ".lora_A.weight"),
    "PEFT with its own prefix": ("base_model.model.down_blocks.0.resnets.0.conv1", ".lora_B.weight", ".lora_A.weight"),
    "diffusers": ("unet.down_blocks.0.resnets.0.conv1", ".lora.up.weight", ".lora.down.weight"),
    "kohya with diffusers' blocks": ("lora_unet_down_blocks_0_resnets_0_conv1", ".lora_up.weight", ".lora_down.weight"),
    "kohya without prefix": ("input_blocks_1_0_in_layers_2", ".lora_up.weight", ".lora_down.weight"),
    "LyCORIS": ("lycoris_down_blocks_0_resnets_0_conv1", ".lora_up.weight", ".lora_down.weight"),
}


@pytest.mark.parametrize("naming", SPELLED)
def test_names_stay_as_they_are_found(tmp_path: Path, base: Path, naming: str):
    """And files of diffusers and PEFT, which hold no alphas, get none: their scale is 1."""
    name, up, down = SPELLED[naming]
    weights = layer(CONV, 12, 6, 8, 3, 3, alpha=None)
    made = dict(zip((name + up, name + down), weights.values(), strict=True))
    path = lora(tmp_path, made)
    out = run(path, base, "max_rank=2", "--dtype", "fp32")
    alpha = {f"{name}.alpha"} if "lora_up" in up else set()
    assert read(out).keys() == made.keys() | alpha
    assert distance(deltas(out)[name], best(deltas(path)[name], 2)) < 1e-5


def test_old_diffusers_names_of_an_attention(tmp_path: Path):
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out"
    base, _ = write_bases(
        tmp_path / "base", {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0": torch.ones(24, 16)}
    )
    up, down = layer("x", 24, 4, 16, alpha=None).values()
    path = lora(tmp_path, {f"{name}_lora.up.weight": up, f"{name}_lora.down.weight": down})
    out = run(path, base, "max_rank=2", "--dtype", "fp32")
    assert read(out).keys() == {f"{name}_lora.up.weight", f"{name}_lora.down.weight"}
    assert distance(deltas(out)[name], best(deltas(path)[name], 2)) < 1e-5


def bytes_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    data = path.read_bytes()
    return {
        name: (info.dtype, info.shape, data[info.start : info.stop]) for name, info in read_header(path).tensors.items()
    }


def test_what_is_no_layer_of_the_base_stays_byte_for_byte(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
):
    """Norms, biases, DoRA's magnitudes, layers that the base lacks, what nobody knows: in their own dtypes."""
    others = {
        f"{NORM}.w_norm": torch.randn(12).bfloat16(), f"{NORM}.b_norm": torch.randn(12),
        f"{CONV}.diff_b": torch.randn(12).double(), f"{LINEAR}.dora_scale": torch.randn(24, 1),
        **layer("lora_unet_strange", 8, 4, 8), **layer("lora_unet_output_blocks_2_2_conv", 8, 4, 8, 3, 3),
        "lora_unet_input_blocks_1_0_emb_layers_1.lora_up.weight": torch.ones(3, 2),  # has no down
        "lora_unet_strange.steps": torch.tensor([7]), "emb": torch.tensor([torch.nan]),
    }  # fmt: skip
    path = lora(tmp_path, three_layers() | others)
    out = run(path, base, "max_rank=2", "--dtype", "fp16")
    before, after = bytes_of(path), bytes_of(out)
    assert others.keys() == after.keys() - three_layers().keys()
    assert all(after[name] == before[name] for name in others)
    line, seconds = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"{re.escape(str(out))}: 3 of 3 layers, 6 ranks, {SIZES}; {len(others)} tensors as they were"
        r" \(2 layers are not in the base\)",
        line,
    )
    assert re.fullmatch(r"\d+\.\d s", seconds)


def test_what_belongs_to_a_layer_that_is_gone_goes_with_it(tmp_path: Path, base: Path):
    """A magnitude without its layer is an orphan, which diffusers refuses."""
    tensors = three_layers() | {f"{name}.dora_scale": torch.ones(THREE[name][0]) for name in THREE}
    tensors[f"{CONV}.lora_up.weight"] *= 1e-4
    out = run(lora(tmp_path, tensors), base, "thr=-4")
    assert {name.partition(".")[0] for name in read(out)} == {LINEAR, POINT}


def test_the_summary_of_a_file_of_layers_alone(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    run(lora(tmp_path), base, "max_rank=2")
    assert re.search(rf": 3 of 3 layers, 6 ranks, {SIZES}$", capsys.readouterr().out.splitlines()[0])


def test_the_summary_tells_of_untrained_layers(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    tensors = three_layers()
    tensors[f"{POINT}.lora_up.weight"].zero_()
    run(lora(tmp_path, tensors), base, "max_rank=2")
    line = capsys.readouterr().out.splitlines()[0]
    assert re.search(rf": 2 of 3 layers, 4 ranks, {SIZES}; 1 layers were never trained$", line)


def test_several_recipes_go_to_a_folder(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    path, folder = lora(tmp_path), tmp_path / "new" / "folder"
    recipes = ["fro_ckpt=1,thr=-2", "max_rank=2", "sv_fro=0.9"]
    run(path, base, ":".join(recipes), out=folder)
    names = ["lora_fro_ckpt1_thr-2", "lora_max_rank2", "lora_sv_fro0.9"]
    assert sorted(one.name for one in folder.iterdir()) == [f"{name}.safetensors" for name in names]
    assert len(capsys.readouterr().out.splitlines()) == 4
    for recipe, name in zip(recipes, names, strict=True):
        alone = run(path, base, recipe, out=tmp_path / f"{name}.safetensors")
        assert alone.read_bytes() == (folder / f"{name}.safetensors").read_bytes(), "each as if it were alone"


def test_one_recipe_into_a_folder_that_exists(tmp_path: Path, base: Path):
    run(lora(tmp_path), base, "max_rank=2", out=tmp_path)
    assert ranks(tmp_path / "lora_max_rank2.safetensors") == dict.fromkeys(THREE, 2)


@pytest.mark.parametrize("stem", ["o", "a name that is much longer than the others and counts in the header twice"])
def test_a_size_is_hit_from_below_with_the_header(tmp_path: Path, stem: str):
    """Whatever the file is called, it is not larger; and with the next rank it would have been."""
    path, out = lora(tmp_path), tmp_path / f"{stem}.safetensors"
    kept, sizes = {}, {}
    for limit in range(1500, 3200, 67):
        run(path, base_of_ones(tmp_path), f"size={limit / 2**20!r}", "--allow-empty", out=out)
        kept[limit], sizes[limit] = sum(ranks(out).values()), out.stat().st_size
        assert sizes[limit] <= limit or not kept[limit]
    assert len(set(kept.values())) > 6 and list(kept.values()) == sorted(kept.values())
    told = 40  # the size itself stands in the header, in more or less digits
    for limit, count in kept.items():
        larger = [size for other, size in sizes.items() if kept[other] > count]
        assert not larger or min(larger) + told > limit
    spectra = {name: torch.linalg.svdvals(delta) for name, delta in deltas(path).items()}
    least = min(spectra[name][rank - 1] for name, rank in ranks(out).items())
    left = [s for name, every in spectra.items() for s in every[ranks(out).get(name, 0) : ranks(path)[name]]]
    assert all(s <= least for s in left), "the best stay"


def test_a_size_that_is_too_small_for_what_stays_as_it_is(tmp_path: Path, base: Path):
    """The file would be larger than was asked for, and without a layer."""
    path = lora(tmp_path, three_layers() | {f"{NORM}.w_norm": torch.randn(2000)})
    with pytest.raises(JobError, match=r"size = 0\.002"):
        run(path, base, "size=0.002")


@pytest.mark.parametrize("beside", [{}, {f"{NORM}.w_norm": torch.ones(2000)}], ids=["layers alone", "with a norm"])
def test_a_size_that_is_too_small_tells_the_least_that_is_not(tmp_path: Path, base: Path, beside: dict):
    path = lora(tmp_path, three_layers() | beside)
    with pytest.raises(JobError, match=r": size = 0\.0003 MiB: .* MiB, (\S+) MiB with the best rank") as error:
        run(path, base, "size=0.0003")
    least = float(re.search(r"(\S+) MiB with the best rank", str(error.value))[1])
    assert sum(ranks(run(path, base, f"size={least}")).values()) == 1
    if not beside:
        with pytest.raises(JobError, match="with the best rank"):
            run(path, base, f"size={least - 0.0002}")
    empty = float(re.search(r"take (\S+) MiB", str(error.value))[1])
    assert not ranks(run(path, base, f"size={empty}", "--allow-empty"))


def base_of_ones(tmp_path: Path) -> Path:
    """A base whose weights have the norm 1: the scores of fro_ckpt are those of the singular values."""
    folder = tmp_path / "ones"
    if not folder.exists():
        write_bases(folder, random_weights(THREE, dict.fromkeys(THREE, 1.0)))
    return folder / "sdxl.safetensors"


@pytest.mark.parametrize("recipe", ["thr=9", "fro_ckpt=1,thr=9", "spn_lora=1,thr=0.1"])
def test_nothing_left_says_how_far_it_is(tmp_path: Path, base: Path, recipe: str):
    path, out = lora(tmp_path), tmp_path / "out.safetensors"
    with pytest.raises(JobError) as error:
        run(path, base, recipe)
    weights = {name: one.half().double() for name, one in random_weights(SHAPES | THREE).items()}
    found = {
        name: 0.0 if "spn" in recipe else math.log10(torch.linalg.matrix_norm(delta, 2) / weights[name].norm())
        for name, delta in deltas(path).items()
    }
    highest = max(found.values())
    assert re.fullmatch(
        rf"{re.escape(str(path))}: thr = \S+ keeps nothing of this LoRA: the highest score is {highest:.4f}"
        r" \(lora_\w+\) \(--allow-empty permits it\)",
        str(error.value).replace("-0.0000", "0.0000"),
    )
    assert not out.exists() and os.listdir(tmp_path) == ["lora.safetensors"]
    assert read(run(path, base, recipe, "--allow-empty")) == {}


def test_if_one_of_several_recipes_leaves_nothing_there_is_no_file(tmp_path: Path, base: Path):
    with pytest.raises(JobError, match="keeps nothing"):
        run(lora(tmp_path), base, "max_rank=2:thr=9", out=tmp_path / "folder")
    assert os.listdir(tmp_path) == ["lora.safetensors"]


def broken(tensors: dict[str, torch.Tensor], key: str, value: float) -> dict[str, torch.Tensor]:
    tensors[key].view(-1)[1] = value
    return tensors


MISTAKES = {
    "another shape": (
        lambda: three_layers() | layer(LINEAR, 25, 4, 16),
        rf"not a LoRA for this base: {LINEAR} changes a weight \[25, 16\], the base's is \[24, 16\]",
    ),
    "Flux": (
        lambda: layer("lora_unet_double_blocks_0_img_attn_qkv", 24, 4, 16),
        "lora.safetensors: a LoRA for Flux, not for SDXL: it has 'lora_unet_double_blocks_0_img_attn_qkv",
    ),
    "NaN": (
        lambda: broken(three_layers(), f"{CONV}.lora_up.weight", torch.nan),
        rf"{CONV}\.lora_up\.weight: holds NaN or infinity; the weights are broken",
    ),
    "infinity": (
        lambda: broken(three_layers(), f"{POINT}.lora_down.weight", torch.inf),
        rf"{POINT}\.lora_down\.weight: holds NaN or infinity; the weights are broken",
    ),
    "alpha of no number": (
        lambda: three_layers() | {f"{LINEAR}.alpha": torch.tensor(torch.nan)},
        rf"{LINEAR}\.alpha: holds NaN or infinity",
    ),
    "ranks that do not fit": (
        lambda: three_layers() | {f"{LINEAR}.lora_up.weight": torch.ones(24, 3)},
        rf"{LINEAR}: its tensors do not fit together: up \[24, 3\], down \[4, 16\]",
    ),
    "no ranks at all": (
        lambda: (
            three_layers()
            | {f"{LINEAR}.lora_up.weight": torch.ones(24, 0), f"{LINEAR}.lora_down.weight": torch.ones(0, 16)}
        ),
        rf"{LINEAR}: has an empty tensor",
    ),
    "integers": (
        lambda: three_layers() | {f"{LINEAR}.lora_up.weight": torch.ones(24, 4, dtype=torch.int8)},
        rf"{LINEAR}\.lora_up\.weight: has dtype I8",
    ),
    "untrained": (
        lambda: {name: one * name.endswith("alpha") for name, one in three_layers().items()},
        "nothing is left of this LoRA: it has no trained layer that the base has",
    ),
    "a weight beyond halves": (
        lambda: {
            name: one.double() * (1e9 if "up" in name or "down" in name else 1) for name, one in three_layers().items()
        },
        r"\.lora_(up|down)\.weight: .* does not fit F16",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_lora_that_cannot_be_resized_is_one_line_and_no_file(tmp_path: Path, base: Path, mistake: str):
    make, said = MISTAKES[mistake]
    path = lora(tmp_path, make())
    with pytest.raises(JobError, match=said) as error:
        run(path, base, "thr=-9")
    assert str(error.value).startswith(f"{path}: ") and str(error.value).count(str(path)) == 1
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["lora.safetensors"]


def test_a_file_that_was_there_stays_when_it_goes_wrong(tmp_path: Path, base: Path):
    path = lora(tmp_path, MISTAKES["a weight beyond halves"][0]())
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    with pytest.raises(JobError):
        run(path, base, "thr=-9")
    assert out.read_bytes() == b"old"


def test_files_that_are_no_lora_or_no_base_are_one_line(tmp_path: Path, base: Path):
    path, pickled, half = lora(tmp_path), tmp_path / "x.ckpt", tmp_path / "half.safetensors"
    torch.save({"x": torch.ones(2)}, pickled)
    half.write_bytes(path.read_bytes()[:-1])
    empty = tmp_path / "empty"
    empty.mkdir()
    for file, ckpt, said in (
        (pickled, base, "x.ckpt: a pickle, which can run code when opened"),
        (path, pickled, "x.ckpt: a pickle, which can run code when opened"),
        (half, base, "half.safetensors: .*truncated"),
        (path, half, "half.safetensors: .*truncated"),
        (tmp_path / "none.safetensors", base, "none.safetensors: no such file"),
        (path, tmp_path / "none.safetensors", "none.safetensors: no such file"),
        (tmp_path, base, "a folder; a .safetensors file was expected"),
        (path, empty, "holds none of model.safetensors and"),
        (path, path, "not an SDXL base"),
    ):
        with pytest.raises(JobError, match=said) as error:
            run(file, ckpt, "thr=-9", out=tmp_path / "out.safetensors")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_broken_base_is_named_if_it_is_looked_at(tmp_path: Path):
    weights = random_weights(THREE)
    weights[CONV][0, 0, 0, 0] = torch.nan
    base, _ = write_bases(tmp_path / "base", weights)
    key = r"model\.diffusion_model\.input_blocks\.1\.0\.in_layers\.2\.weight"
    for recipe in ("fro_ckpt=1,thr=-9", "spn_ckpt=1,thr=-9", "subspace=1,thr=-9"):
        with pytest.raises(JobError, match=rf"^{re.escape(str(base))}: {key}:? holds NaN or infinity"):
            run(lora(tmp_path), base, recipe)
    assert ranks(run(lora(tmp_path), base, "sv_fro=0.9")).keys() == THREE.keys()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-r", "thresh=1"], '-r "thresh=1": "thresh": no such key of a recipe'),
        (["-r", "fro_ckpt=1"], '-r "fro_ckpt=1": nothing says how many ranks stay'),
        (["-r", "thr=-3:fro_ckpt=1,sv_fro=0.9"], "sv_fro looks at a layer's own singular values"),
        (["-r", "thr=-3,"], '"": no such key'),
        (["-r", "thr=-3", "-o", "out.bin"], "out.bin: the output's name must end in .safetensors"),
        (["-r", "thr=-3:thr=-4"], "out.safetensors: with several recipes the output is a folder"),
        (["-r", "thr=-3", "--dtype", "fp8"], "invalid choice"),
        (["-r", "thr=-3", "-r", "thr=-4"], 'argument -r/--recipe: given twice: join the values by ":"'),
        (["-r", "thr=-3", "--dtype", "fp16", "--dtype", "fp16"], "argument --dtype: given twice"),
        (["-r", "thr=-3:"], '-r "thr=-3:": an empty recipe; a ":" stands between two'),
        (["-r", ""], '-r "": an empty recipe'),
        (["-r", "thr=-3:fro_ckpt=1, thr=-3"], '"thr=-3" and "fro_ckpt=1, thr=-3" are the same recipe'),
        (["-r", "thr=-3", "--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_a_command_that_means_nothing_is_a_usage_error(tmp_path: Path, base: Path, args: list[str], said: str):
    where = [] if "-o" in args else ["-o", str(tmp_path / "out.safetensors")]
    with pytest.raises(UsageError) as error:
        verb.main([str(lora(tmp_path)), "--base", str(base), *where, *args])
    assert said in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["lora.safetensors"]


def test_the_input_is_never_overwritten(tmp_path: Path, base: Path):
    path = lora(tmp_path)
    (tmp_path / "link.safetensors").symlink_to(path)
    before = path.read_bytes()
    for out in (path, tmp_path / "link.safetensors", tmp_path / "x/../lora.safetensors"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="is the input itself"):
            run(path, base, "max_rank=2", out=out)
    assert path.read_bytes() == before


def test_metadata_is_kept_and_amended(tmp_path: Path, base: Path):
    told = {
        "ss_tag_frequency": '{"10_ember": {"ember": 10}}', "ss_network_dim": "8", "ss_network_alpha": "4.0", "my": "own ✓",
        "ss_output_name": "old", "sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8, "modelspec.title": "Ember",
        "modelspec.hash_sha256": "0x0", "modelspec.thumbnail": "data:…",
    }  # fmt: skip
    path = tmp_path / "lora.safetensors"
    save_file({name: one.contiguous() for name, one in three_layers(alpha=3.0).items()}, path, told)
    out = run(path, base, "fro_ckpt=3,spn_lora=1,thr=-2.5", out=tmp_path / "small.safetensors")
    header, data = read_header(out), out.read_bytes()
    found = dict(header.metadata)
    sha256 = hashlib.sha256(data[header.data_start :]).hexdigest()
    assert (found["sshs_model_hash"], found["modelspec.hash_sha256"]) == (sha256, f"0x{sha256}")
    assert "sshs_legacy_hash" not in found
    assert (found["ss_output_name"], found["modelspec.title"]) == ("small", "Ember")
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("Dynamic", "3.0")
    assert json.loads(found["lorabuild.resize"]) == {"fro_ckpt": 0.75, "spn_lora": 0.25, "thr": -2.5}
    for key in ("ss_tag_frequency", "my", "modelspec.thumbnail"):
        assert found[key] == told[key]
    assert {one.item() for name, one in read(out).items() if name.endswith(".alpha")} == {3.0}


def test_what_no_longer_holds_of_a_chopped_file_goes_and_the_rest_stays(tmp_path: Path, base: Path):
    """Its blocks are as absent as before; its dimensions are others."""
    chopped, out = tmp_path / "chopped.safetensors", tmp_path / "out.safetensors"
    path = tmp_path / "lora.safetensors"
    told = {
        "ss_network_args": '{"conv_dim": 256, "algo": "locon"}',
        "ss_network_module": "lycoris.kohya",
        "ss_seed": "7",
    }
    save_file({name: one.contiguous() for name, one in three_layers().items()}, path, told)
    assert chop([str(path), "--keep", "TE,OUT01", "-o", str(chopped)]) == 0
    assert read_header(chopped).metadata["ss_network_args"] == told["ss_network_args"]
    before, after = read_header(chopped).metadata, read_header(run(chopped, base, "max_rank=2", out=out)).metadata
    for key in ("block_vector_string", "lorabuild.chop", "ss_network_module", "ss_seed"):
        assert after[key] == before[key]
    assert "ss_network_args" not in after and after["ss_network_dim"] == "Dynamic"


def test_peft_metadata_tells_no_rank_that_the_file_has_not(tmp_path: Path, base: Path):
    """diffusers writes a LoraConfig there and believes it: of another rank the file does not load; its scale counts."""
    name, up, down = SPELLED["PEFT"]
    made = dict(zip((name + up, name + down), layer(CONV, 12, 6, 8, 3, 3, alpha=None).values(), strict=True))
    told = {"lora_adapter_metadata": json.dumps({"unet.r": 6, "unet.lora_alpha": 12, "unet.peft_type": "LORA"})}
    path = tmp_path / "lora.safetensors"
    save_file(made, path, told)
    out = run(path, base, "max_rank=2", "--dtype", "fp32")
    assert "lora_adapter_metadata" not in read_header(out).metadata
    assert distance(deltas(out)[name], 2 * best(deltas(path)[name], 2)) < 1e-5


def test_a_file_without_metadata_gets_the_least(tmp_path: Path, base: Path):
    found = read_header(run(lora(tmp_path), base, "max_rank=2")).metadata
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert found["ss_base_model_version"] == "sdxl_base_v1-0"
    assert found["modelspec.title"] == found["ss_output_name"] == "out"


def test_the_file_is_canonical_and_the_same_each_time(tmp_path: Path, bases: tuple[Path, Path]):
    made = {key: one for kind, name in MODULES.items() for key, one in adapter(kind, name)[0].items()}
    path = lora(tmp_path, made)
    one = run(path, bases[0], "fro_ckpt=1,thr=-2").read_bytes()
    two = run(path, bases[0], "fro_ckpt=1,thr=-2").read_bytes()
    other = run(path, bases[1], "fro_ckpt=1,thr=-2").read_bytes()
    assert one == two == other, "of the base in the other layout, too"
    header = read_header(tmp_path / "out.safetensors")
    assert list(header.tensors) == sorted(header.tensors)


@pytest.mark.parametrize(
    "recipe", ["subspace=1,max_rank=2", "subspace=2,fro_ckpt=-1,thr=0.5", "subspace=1,spn_lora=1,thr=-0.1"]
)
@pytest.mark.parametrize("layout", [0, 1], ids=["single file", "folder"])
def test_subspace_by_the_naive_formula(tmp_path: Path, recipe: str, layout: int):
    """log10 σ_i - Σ w log10 …, with |u_iᵀ W v_i|, from a full SVD and the dense weight."""
    shapes = THREE | {"lora_te2_text_projection": (10, 14)}
    weights = random_weights(shapes)
    base = write_bases(tmp_path / "base", weights)[layout]
    path = lora(tmp_path, three_layers() | layer("lora_te2_text_projection", 10, 4, 14, seed=4))
    out = run(path, base, recipe, "--dtype", "fp32")
    table = {key: float(value) for key, value in (part.split("=") for part in recipe.split(","))}
    total = sum(weight for key, weight in table.items() if key in ("subspace", "fro_ckpt", "spn_lora"))
    for name, delta in deltas(path).items():
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        count = ranks(path)[name]
        u, s, vh, weight = u[:, :count], s[:count], vh[:count], weights[name].double().flatten(1)
        terms = {
            "subspace": (u.T @ weight @ vh.T).diagonal().abs(), "fro_ckpt": weight.norm(), "spn_lora": s[0],
        }  # fmt: skip
        score = s.log10() - sum(table.get(term, 0) / total * one.log10() for term, one in terms.items())
        order = score.argsort(descending=True)
        chosen = order[: int(table["max_rank"])] if "max_rank" in table else (score >= table["thr"]).nonzero()[:, 0]
        if len(chosen):
            assert distance(deltas(out)[name], u[:, chosen] * s[chosen] @ vh[chosen]) < 1e-5, name
        else:
            assert name not in pairs(out)


# Of resize_lora's goldens the shapes and the norms of the base are known.
MEASURES = json.loads((GOLDENS / "norms.json").read_text())
SWAPPED = re.compile("te2_.*self_attn_[qk]_proj")  # resize_lora takes them for each other


@pytest.fixture(scope="module")
def golden_bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    weights = random_weights(MEASURES["shape"], MEASURES["fro_ckpt"])
    return write_bases(tmp_path_factory.mktemp("golden"), weights)


@pytest.mark.parametrize("layout", [0, 1], ids=["single file", "folder"])
@pytest.mark.parametrize(
    ("name", "thr", "golden", "dtype"),
    [
        ("locon", -3.55, "locon-thr3.55", "fp16"),
        ("a", -3.55, "a-thr3.55-float", "fp32"),
        ("bf16", -3.55, "bf16-thr3.55", "fp16"),
    ],
)
def test_it_keeps_what_resize_lora_keeps(
    tmp_path: Path, golden_bases: tuple[Path, Path], name: str, thr: float, golden: str, dtype: str, layout: int
):
    out = tmp_path / "out.safetensors"
    recipe = f"fro_ckpt=1,thr={thr}"
    run(GOLDENS / f"{name}.safetensors", golden_bases[layout], recipe, "--dtype", dtype, out=out)
    theirs = GOLDENS / f"{golden}.safetensors"
    wanted = {one: rank for one, rank in ranks(theirs).items() if not SWAPPED.search(one)}
    assert {one: rank for one, rank in ranks(out).items() if not SWAPPED.search(one)} == wanted
    effects, found = deltas(theirs), deltas(out)
    assert all(distance(found[one], effects[one]) < (1e-5 if dtype == "fp32" else 2e-3) for one in wanted)


@pytest.mark.parametrize(
    "recipe",
    [
        "fro_ckpt=1,thr=-3.55",
        "spn_ckpt=1,fro_lora=1,thr=-2.2",
        "sv_fro=0.9,max_conv_rank=5",
        "params=1,thr=-4,rescale=0.5",
    ],
)
@pytest.mark.parametrize("dtype", DTYPE)
def test_the_verb_and_the_stages_agree(tmp_path: Path, golden_bases: tuple[Path, Path], recipe: str, dtype: str):
    """A build takes two steps and keeps the spectrum between them in float32."""
    weights = random_weights(MEASURES["shape"], MEASURES["fro_ckpt"])
    spectral = {name: np.linalg.norm(one.double().flatten(1).numpy(), 2) for name, one in weights.items()}
    norms = write_measures(tmp_path / "norms.json", MEASURES["shape"], MEASURES["fro_ckpt"], spectral)
    source = GOLDENS / "locon.safetensors"
    built = resize(tmp_path, source, norms, recipe, dtype).path("weights")
    direct = run(source, golden_bases[0], recipe, "--dtype", dtype, out=tmp_path / "out.safetensors")
    assert ranks(direct) == ranks(built) and len(ranks(built)) > 10
    assert read(direct).keys() == read(built).keys()
    found, tolerance = deltas(direct), {"fp16": 5e-4, "bf16": 4e-3, "fp32": 1e-6}[dtype]
    assert all(distance(found[name], delta) < tolerance for name, delta in deltas(built).items())


def test_on_the_command_line(tmp_path: Path, base: Path):
    """With processes of its own; what goes wrong is a line on stderr and an exit code, never a traceback."""
    path, out = lora(tmp_path), tmp_path / "out.safetensors"

    def command(*args: str) -> subprocess.CompletedProcess:
        every = [sys.executable, "-m", "lorabuild", "resize", str(path), "--base", str(base), "-o", str(out), *args]
        return subprocess.run(every, capture_output=True, text=True)

    done = command("-r", "fro_ckpt=1,spn_ckpt=1,thr=-2")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{re.escape(str(out))}: \d of 3 layers, \d+ ranks, .*\n\d+\.\d s\n", done.stdout)
    by_processes = out.read_bytes()
    assert run(path, base, "fro_ckpt=1,spn_ckpt=1,thr=-2").read_bytes() == by_processes
    done = command("-r", "thr=9")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r".*: thr = 9 keeps nothing of this LoRA: the highest score is .*\n", done.stderr)
    assert out.read_bytes() == by_processes


def test_exit_codes(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]):
    path, out = lora(tmp_path), tmp_path / "out.safetensors"
    every = ["resize", str(path), "--base", str(base), "-o", str(out), "-r"]
    for recipe, code in (("max_rank=2", 0), ("thr=9", 1), ("thresh=9", 2)):
        assert _main([*every, recipe]) == code
        assert len(capsys.readouterr().err.splitlines()) == bool(code)


def test_it_imports_no_torch(tmp_path: Path, base: Path):
    path = lora(tmp_path)
    code = f"""
import sys
from lorabuild.verbs.resize import main
main([{str(path)!r}, "--base", {str(base)!r}, "-r", "sv_fro=0.9", "-o", {str(tmp_path / "out.safetensors")!r}])
print({{"torch", "diffusers", "transformers", "safetensors", "pydantic"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_bias_stays_when_its_layer_goes(tmp_path: Path, base: Path):
    """It changes the base by itself; a DoRA scale of a layer that is gone means nothing."""
    tensors = three_layers()
    name = next(key for key in tensors if key.endswith(".lora_up.weight")).removesuffix(".lora_up.weight")
    tensors[f"{name}.lora_up.weight"] = tensors[f"{name}.lora_up.weight"] * 1e-12
    tensors |= {f"{name}.diff_b": torch.ones(3), f"{name}.dora_scale": torch.ones(1, 3)}
    out = run(lora(tmp_path, tensors), base, "fro_lora=1,thr=-9")
    kept = {key for key in read_header(out).tensors if key.startswith(f"{name}.")}
    assert kept == {f"{name}.diff_b"}


def test_a_long_name_counts_for_the_size(tmp_path: Path, base: Path):
    """The name stands in the header twice."""
    path, out = lora(tmp_path, three_layers()), tmp_path / f"{'n' * 200}.safetensors"
    for size in (0.004, 0.0045, 0.005):
        assert verb.main([str(path), "--base", str(base), "-r", f"size={size}", "-o", str(out)]) == 0
        assert out.stat().st_size <= size * 2**20


def test_the_base_is_never_written_over(tmp_path: Path, base: Path):
    own = tmp_path / "base.safetensors"
    save_file({"model.diffusion_model.out.2.weight": torch.ones(2, 2)}, own)
    with pytest.raises(UsageError, match="is the input itself"):
        verb.main([str(lora(tmp_path, three_layers())), "--base", str(own), "-r", "thr=-3", "-o", str(own)])


def test_of_several_recipes_all_files_are_written_or_none(tmp_path: Path, base: Path):
    """The second one does not fit into halves."""
    path, folder = lora(tmp_path), tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(JobError):
        run(path, base, "max_rank=2:max_rank=2,rescale=1e30", out=folder)
    assert os.listdir(folder) == []
    run(path, base, "max_rank=2:max_rank=3", out=folder)
    assert sorted(os.listdir(folder)) == ["lora_max_rank2.safetensors", "lora_max_rank3.safetensors"]
