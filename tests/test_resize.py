"""A resize keeps exactly the ranks that resize_lora keeps, and the file's effect with them."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lora_lab import (
    CONV,
    GOLDENS,
    LINEAR,
    POINT,
    best,
    deltas,
    distance,
    layer,
    ranks,
    read,
    resize,
    resize_params,
    run,
    write_bases,
    write_lora,
    write_measures,
    write_norms,
)

from lorabuild.errors import JobError
from lorabuild.header import read_header
from lorabuild.lora.lowrank import common_alpha
from lorabuild.stage import Artifact
from lorabuild.stages.resize import STAGE
from lorabuild.stages.spectrum import STAGE as SPECTRUM
from lorabuild.writing import header_bytes

DTYPE = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# resize_lora scores each of these against the other's base weights: it takes OpenCLIP's q, k, v for k, q, v.
SWAPPED = re.compile("te2_.*self_attn_[qk]_proj")
MEASURES = json.loads((GOLDENS / "norms.json").read_text())
RANKS = json.loads((GOLDENS / "ranks.json").read_text())
RANK = {LINEAR: 4, CONV: 6}  # of `lora`


@pytest.mark.parametrize(
    ("lora", "thr", "golden", "save_precision"),
    [
        ("locon", -3.55, "locon-thr3.55", "fp16"),
        ("locon", -2.5, "locon-thr2.5", "fp16"),
        ("a", -3.5, "a-thr3.5", "fp16"),
        ("a", -3.55, "a-thr3.55-float", "fp32"),
        ("bf16", -3.55, "bf16-thr3.55", "fp16"),
    ],
)
def test_it_keeps_what_resize_lora_keeps(tmp_path: Path, lora: str, thr: float, golden: str, save_precision: str):
    """Goldens: resize_lora at efe6f69 on synthetic files, cut to fewer layers (layers do not influence each other)."""
    done = resize(tmp_path, GOLDENS / f"{lora}.safetensors", GOLDENS / "norms.json", thr, save_precision)
    ours, theirs = done.path("weights"), GOLDENS / f"{golden}.safetensors"
    wanted = {name: rank for name, rank in ranks(theirs).items() if not SWAPPED.search(name)}
    assert {name: rank for name, rank in ranks(ours).items() if not SWAPPED.search(name)} == wanted
    effects = deltas(theirs)
    tolerance = 1e-5 if save_precision == "fp32" else 2e-3
    assert all(distance(delta, effects[name]) < tolerance for name, delta in deltas(ours).items() if name in wanted)


@pytest.mark.parametrize("recipe", RANKS)
def test_by_other_terms_it_keeps_what_resize_lora_keeps(tmp_path: Path, recipe: str):
    """Goldens: ranks of locon's layers in resize_lora's own output; its spectral norms are to a millionth ours."""
    done = resize(tmp_path, GOLDENS / "locon.safetensors", GOLDENS / "norms.json", recipe)
    mistaken = SWAPPED if "ckpt" in recipe else re.compile("$.")
    found = {name: rank for name, rank in ranks(done.path("weights")).items() if not mistaken.search(name)}
    assert found == {name: rank for name, rank in RANKS[recipe].items() if not mistaken.search(name)}


def test_the_swapped_layers_follow_their_own_base_weights(tmp_path: Path):
    """With the two norms exchanged we keep the ranks that resize_lora keeps: nothing else differs."""
    norms = MEASURES["fro_ckpt"]
    swap = {name: name.replace("q_proj", "K").replace("k_proj", "q_proj").replace("K", "k_proj") for name in norms}
    exchanged = {name: norms[swap[name] if SWAPPED.search(name) else name] for name in norms}
    path = write_measures(tmp_path / "n", MEASURES["shape"], exchanged, MEASURES["spn_ckpt"])
    done = resize(tmp_path, GOLDENS / "locon.safetensors", path, -3.55)
    assert ranks(done.path("weights")) == ranks(GOLDENS / "locon-thr3.55.safetensors")


@pytest.fixture
def known(tmp_path: Path) -> Path:
    ones = {LINEAR: 1.0, CONV: 1.0}
    return write_measures(tmp_path / "norms.json", {LINEAR: (24, 16), CONV: (12, 8, 3, 3)}, ones, ones)


def lora(tmp_path: Path, dtype: torch.dtype | None = torch.float32, alpha: float = 2.0, **more: torch.Tensor) -> Path:
    tensors = {**layer(LINEAR, 24, 4, 16, alpha=alpha), **layer(CONV, 12, 6, 8, 3, 3, alpha=alpha)}
    return write_lora(
        tmp_path / "lora", {**tensors, **{name.replace("__", "."): one for name, one in more.items()}}, dtype
    )


@pytest.mark.parametrize("save_precision", DTYPE)
def test_all_ranks_kept_is_the_file_itself_in_any_precision(tmp_path: Path, known: Path, save_precision: str):
    done = resize(tmp_path, lora(tmp_path), known, -9, save_precision)
    tensors = read(done.path("weights"))
    assert {one.dtype for one in tensors.values()} == {DTYPE[save_precision]}
    assert ranks(done.path("weights")) == RANK
    assert tensors[f"{CONV}.lora_up.weight"].shape == (12, 6, 1, 1)
    assert tensors[f"{CONV}.lora_down.weight"].shape == (6, 8, 3, 3)
    wanted = deltas(tmp_path / "lora")
    for name, delta in deltas(done.path("weights")).items():
        assert distance(delta, wanted[name]) < 2 * torch.finfo(DTYPE[save_precision]).eps


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_rank_counts_from_exactly_its_score_on(tmp_path: Path, rank: int):
    """score = log10 σ - log10 ‖W‖, and >= keeps; the effect is the best of that rank (Eckart-Young)."""
    path = lora(tmp_path)
    delta = deltas(path)[LINEAR]
    singular = torch.linalg.svdvals(delta)
    norms = write_norms(tmp_path / "norms", {LINEAR: 8.0}, path)
    score = math.log10(singular[rank - 1]) - math.log10(8)
    for thr, kept in ((score - 1e-6, rank), (score + 1e-6, rank - 1)):
        done = resize(tmp_path / str(thr), path, norms, thr, "fp32")
        found = {name: one for name, one in ranks(done.path("weights")).items() if name == LINEAR}
        assert found.get(LINEAR, 0) == kept
        if kept:
            assert distance(deltas(done.path("weights"))[LINEAR], best(delta, kept)) < 1e-5


@pytest.mark.parametrize(
    ("alpha", "save_precision", "written"),
    [
        (4.0, "fp16", 4.0),
        (0.3, "fp16", 0.300048828125),
        (0.3, "bf16", 0.30078125),
        (1e-9, "fp16", 1.0),
        (1e6, "fp16", 1.0),
        (-4.0, "fp16", 1.0),
    ],
)
def test_one_alpha_for_the_file_whatever_its_precision_and_ranks(
    tmp_path: Path, known: Path, alpha: float, save_precision: str, written: float
):
    """Kept ranks differ by layer, alpha does not; what the dtype cannot hold of it is in the weights."""
    tensors = {**layer(LINEAR, 24, 4, 16, alpha=alpha), **layer(CONV, 12, 6, 8, 3, 3, alpha=alpha)}
    for name in (f"{LINEAR}.lora_up.weight", f"{CONV}.lora_up.weight"):
        tensors[name] *= 2 / abs(alpha)  # so that the effect is of the same size in every case
    path = write_lora(tmp_path / "in", tensors, torch.float32)
    done = resize(tmp_path, path, known, -0.4, save_precision)
    kept, found, wanted = ranks(done.path("weights")), deltas(done.path("weights")), deltas(path)
    assert len(kept) == len(set(kept.values())) == 2
    assert {one.item() for name, one in read(done.path("weights")).items() if name.endswith(".alpha")} == {written}
    for name, rank in kept.items():
        assert distance(found[name], best(wanted[name], rank)) < 4 * torch.finfo(DTYPE[save_precision]).eps


@pytest.mark.parametrize(
    ("alphas", "common"),
    [([4, 4, 8], 4), ([8, 4], 4), ([-4, -4, 2], 2), ([-4], 1), ([0, 0, 3], 3), ([], 1), ([math.inf, 3], 3)],
)
def test_the_alpha_of_a_file_is_that_of_most_layers_and_positive(alphas: list[float], common: float):
    assert common_alpha(alphas, "F16") == common


def test_the_body_is_canonical(tmp_path: Path, known: Path):
    path = resize(tmp_path, lora(tmp_path), known, -3).path("weights")
    header = read_header(path)
    assert list(header.tensors) == sorted(header.tensors) and header.metadata == {}
    assert path.read_bytes().startswith(
        header_bytes([(name, one.dtype, one.shape) for name, one in header.tensors.items()])
    )


def test_layers_without_a_rank_are_absent_and_untrained_ones_counted(tmp_path: Path):
    tensors = {**layer(LINEAR, 24, 4, 16), **layer(CONV, 12, 6, 8, 3, 3), **layer(POINT, 8, 4, 8, 1, 1)}
    tensors[f"{POINT}.lora_up.weight"].zero_()
    path = write_lora(tmp_path / "in", tensors)
    norms = write_norms(tmp_path / "norms", {LINEAR: 1.0, CONV: 1e6, POINT: 1e-9}, path)
    done = resize(tmp_path, path, norms, -3)
    assert {name.partition(".")[0] for name in read(done.path("weights"))} == {LINEAR}
    assert done.notes == {"layers": 1, "ranks": 4, "zero": 1, "passed": 0}


def test_nothing_left_is_an_error_that_says_which_threshold_would_do(tmp_path: Path, known: Path):
    path = lora(tmp_path)
    scores = {name: math.log10(torch.linalg.matrix_norm(delta, 2)) for name, delta in deltas(path).items()}
    highest = max(scores, key=lambda name: scores[name])
    with pytest.raises(JobError) as error:
        resize(tmp_path, path, known, 5)
    said = f"thr = 5 keeps nothing of this LoRA: the highest score is {scores[highest]:.4f} ({highest})"
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_nothing_left_may_be_wanted(tmp_path: Path, known: Path):
    spectrum = run(SPECTRUM, tmp_path / "s", {}, weights=lora(tmp_path), norms=known).path("spectrum")
    done = run(STAGE, tmp_path, resize_params(5.0, allow_empty=True), spectrum=spectrum)
    assert read(done.path("weights")) == {}
    assert done.notes == {"layers": 0, "ranks": 0, "zero": 0, "passed": 0}


def test_an_untrained_file_is_an_error(tmp_path: Path, known: Path):
    zeros = {name: one * ("alpha" in name) for name, one in read(lora(tmp_path)).items()}
    with pytest.raises(JobError, match="nothing is left of this LoRA: it has no trained layer that the base has"):
        resize(tmp_path, write_lora(tmp_path / "zeros", zeros), known, -9)


def test_other_tensors_stay_as_they_are_but_not_those_of_a_dropped_layer(tmp_path: Path):
    """DoRA's scale of a layer that is gone would be an orphan, which diffusers refuses."""
    norm, unknown = "lora_unet_input_blocks_1_0_in_layers_0", "lora_unet_strange"
    more = {
        f"{norm}__w_norm": torch.full((3,), 1 + 2**-12), f"{LINEAR}__dora_scale": torch.ones(24, 1).bfloat16(),
        f"{CONV}__dora_scale": torch.ones(12, 1, 1, 1), f"{norm}__steps": torch.tensor([7]),
        f"{unknown}__lora_up__weight": torch.ones(4, 2), f"{unknown}__lora_down__weight": torch.ones(2, 4),
    }  # fmt: skip
    path = lora(tmp_path, None, **more)
    norms = write_norms(tmp_path / "norms", {LINEAR: 1.0, CONV: 1e6}, path)
    done = resize(tmp_path, path, norms, -3)
    before, after = read(path), read(done.path("weights"))
    kept = {name.replace("__", ".") for name in more} - {f"{CONV}.dora_scale"}
    assert kept == {name for name in after if not name.startswith((f"{LINEAR}.lora", f"{LINEAR}.alpha"))}
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in kept)
    assert done.notes["passed"] == 5


def test_a_weight_beyond_half_precision_is_named(tmp_path: Path):
    tensors = {**layer(LINEAR, 2, 1, 2, alpha=1.0), f"{LINEAR}.lora_up.weight": torch.tensor([[1e10], [0.0]])}
    path = write_lora(tmp_path / "in", tensors | {f"{LINEAR}.lora_down.weight": torch.tensor([[1e3, 0.0]])}, None)
    norms = write_norms(tmp_path / "norms", {LINEAR: 1.0}, path)
    with pytest.raises(JobError, match=rf"{LINEAR}\.lora_(up|down)\.weight: .* does not fit F16"):
        resize(tmp_path, path, norms, -9)
    assert resize(tmp_path / "ok", path, norms, -9, "bf16").notes["layers"] == 1


def test_a_layer_of_a_base_without_weights_is_kept_whole(tmp_path: Path):
    path = lora(tmp_path)
    done = resize(tmp_path, path, write_norms(tmp_path / "norms", {LINEAR: 0.0, CONV: 1.0}, path), 3)
    assert ranks(done.path("weights")) == {LINEAR: 4}


@pytest.mark.parametrize("rescale", [0.5, 3.0])
def test_rescale_is_in_the_weights(tmp_path: Path, known: Path, rescale: float):
    path = lora(tmp_path)
    done = resize(tmp_path, path, known, f"max_rank=3,rescale={rescale}", "fp32")
    for name, delta in deltas(done.path("weights")).items():
        assert distance(delta, rescale * best(deltas(path)[name], 3)) < 1e-5


def test_ranks_that_are_no_prefix_are_those_that_matter(tmp_path: Path):
    """By subspace the best ranks need not be the first."""
    path = lora(tmp_path)
    shapes = {LINEAR: (24, 16), CONV: (12, 8, 3, 3)}
    delta = deltas(path)[LINEAR]
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    weight = (u[:, :4] * torch.tensor([9.0, 0.1, 9.0, 0.1])) @ vh[:4]  # what the base uses counts less
    base, _ = write_bases(tmp_path / "base", {LINEAR: weight.float(), CONV: torch.ones(12, 8, 3, 3)})
    norms = write_measures(tmp_path / "norms", shapes, dict.fromkeys(shapes, 1.0), dict.fromkeys(shapes, 1.0))
    inputs = {"weights": path, "norms": norms, "unet": base, "te1": base, "te2": base}
    spectrum = run(SPECTRUM, tmp_path / "s", {"spectrum": {"subspace": True}}, **inputs).path("spectrum")
    done = run(STAGE, tmp_path, resize_params("subspace=1,max_rank=2", "fp32"), spectrum=spectrum)
    chosen = [1, 3]
    assert distance(deltas(done.path("weights"))[LINEAR], u[:, chosen] * s[chosen] @ vh[chosen]) < 1e-5


@pytest.mark.parametrize("size", [0.0011, 0.0013, 0.0016])
def test_a_size_is_hit_from_below(tmp_path: Path, known: Path, size: float):
    """The file with its header is not larger; with the next best rank it would be."""
    path = lora(tmp_path)
    done = resize(tmp_path, path, known, f"fro_ckpt=1,size={size}")
    assert done.path("weights").stat().st_size <= size * 2**20
    scores = [s for name, delta in deltas(path).items() for s in torch.linalg.svdvals(delta).log10()[: RANK[name]]]
    scores = sorted(map(float, scores), reverse=True)
    kept = sum(ranks(done.path("weights")).values())
    assert 0 < kept < len(scores)
    more = resize(tmp_path / "more", path, known, scores[kept] - 1e-6)
    assert sum(ranks(more.path("weights")).values()) == kept + 1
    assert more.path("weights").stat().st_size + len("{}{}") > size * 2**20


def test_the_header_of_the_published_file_is_part_of_its_size(tmp_path: Path, known: Path):
    """What a build tells in it is known only later: room is left."""
    path = lora(tmp_path)
    plain = resize(tmp_path, path, known, "fro_ckpt=1,size=0.0013").path("weights").stat().st_size
    kib = 1024 / 2**20
    roomy = resize(tmp_path / "2", path, known, f"fro_ckpt=1,size={0.0013 + kib}", header_kib=1)
    assert roomy.path("weights").stat().st_size == plain
    told = write_measures(tmp_path / "dataset.json", {}, {}, {})
    spectrum = tmp_path / "spectrum/staging/spectrum"
    told.write_text(
        json.dumps({"images": [{"caption": f"tag {n}", "bucket": [1024, 1024], "repeats": 1} for n in range(60)]})
    )
    params = resize_params("fro_ckpt=1,size=0.0013")
    params["resize"]["header_kib"] = 0
    with pytest.raises(JobError, match=r"size = 0\.0013 MiB: the header and what stays"):
        run(STAGE, tmp_path / "3", params, spectrum=spectrum, told=told)


def test_options_change_no_byte(tmp_path: Path, known: Path):
    one = resize(tmp_path, lora(tmp_path), known, -3)
    spectrum = tmp_path / "spectrum/staging/spectrum"
    two = run(STAGE, tmp_path / "2", resize_params(-3), {"threads": 2, "named": ["OUT01"]}, spectrum=spectrum)
    assert one.path("weights").read_bytes() == two.path("weights").read_bytes()


def test_it_imports_no_torch(tmp_path: Path, known: Path):
    run(SPECTRUM, tmp_path / "s", {}, weights=lora(tmp_path), norms=known)
    code = f"""
import sys
from pathlib import Path
from lorabuild.stage import Job
from lorabuild.stages.resize import STAGE
from lorabuild.workspace import Workspace
folder = Path({str(tmp_path)!r})
workspace = Workspace(folder, folder, folder, paths={{"spectrum": folder / "s/staging/spectrum"}})
STAGE.run(Job("resize:ember", {resize_params(-3)!r}, {{}}, []), workspace, lambda *step: None)
assert (folder / "weights").stat().st_size > 100
print({{"torch", "diffusers", "transformers", "safetensors", "pydantic"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def settings(step: str | int | None, thr: float | None = -3.55, **more) -> dict:
    resize = None if step is None else {"fro_ckpt": 1.0, "thr": thr, "step": step, "allow_empty": False, **more}
    return {
        "project": {"base": "tiny", "source": None}, "recipe": {"save_precision": "bf16"},
        "resize": resize, "chop": None,
    }  # fmt: skip


def declared(project: dict, **variants: dict) -> dict:
    one = SimpleNamespace(name="ember", settings=project, variants=variants, swept={})
    return {job.name: job for job in STAGE.jobs(SimpleNamespace(projects={"ember": one}))}


def test_jobs_of_project_and_variants():
    jobs = declared(settings("last"), mini=settings("last", -3.2), early=settings(4))
    assert jobs["resize:ember"].params == {
        "resize": {"fro_ckpt": 1.0, "thr": -3.55}, "recipe": {"save_precision": "bf16"},
    }  # fmt: skip
    assert jobs["resize:ember@mini"].params["resize"]["thr"] == -3.2
    assert {name: job.inputs["spectrum"] for name, job in jobs.items()} == {
        "resize:ember": Artifact("spectrum:ember", "spectrum"),
        "resize:ember@mini": Artifact("spectrum:ember", "spectrum"),
        "resize:ember@early": Artifact("spectrum:ember@early", "spectrum"),
    }


def test_the_same_recipe_in_other_words_is_the_same_job():
    jobs = declared(settings("last"), same=settings("last", fro_ckpt=3.0, rescale=1.0, spn_ckpt=None, params=0.0))
    assert jobs["resize:ember"].params == jobs["resize:ember@same"].params
    other = declared(settings("last", allow_empty=True))["resize:ember"].params
    assert other["resize"] == {"fro_ckpt": 1.0, "thr": -3.55, "allow_empty": True}


def test_a_size_depends_on_what_the_header_will_tell():
    """The tags of the data set, or the metadata of the LoRA that a project starts from."""
    job = declared(settings("last", None, size=32.0))["resize:ember"]
    assert job.inputs["told"] == Artifact("dataset:ember", "dataset.json")
    assert job.params["resize"]["header_kib"] > 0 and job.params["resize"]["size"] == 32
    plain = declared(settings("last"))["resize:ember"]
    assert "told" not in plain.inputs and "header_kib" not in plain.params["resize"]


def test_a_variant_alone_may_resize():
    jobs = declared(settings(None), mini=settings("last"))
    assert {name: job.inputs for name, job in jobs.items()} == {
        "resize:ember@mini": {"spectrum": Artifact("spectrum:ember@mini", "spectrum")}
    }
