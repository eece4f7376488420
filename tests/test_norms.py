"""Norms of a base: of every weight that a LoRA can change, by kohya's name, in memory that does not grow with the base."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_lab import base_modules, run, write_bases

from lorabuild.errors import JobError
from lorabuild.stage import Component
from lorabuild.stages.norms import STAGE
from lorabuild.writing import header_bytes

KEYMAP = Path(__file__).parent / "goldens/unet_keymap.tsv"
ADAPTABLE = 788 + 72 + 192
# Those that LyCORIS leaves alone, and other trainers do not.
OUTSIDE = [f"lora_unet_{name}" for name in ("time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2")]
OUTSIDE += ["lora_unet_input_blocks_0_0", "lora_unet_out_2", "lora_te2_text_projection"]
LARGE = "lora_te1_text_model_encoder_layers_3_mlp_fc1"


def weights(dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """A small matrix for every module of SDXL, each another; the U-Net's as convolutions."""
    random = torch.Generator().manual_seed(0)
    shapes = {name: (3, 2, 1, 1) if "unet" in name else (3, 2) for name in base_modules()}
    return {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}


def norms(folder: Path, base: Path) -> dict[str, dict]:
    return json.loads(run(STAGE, folder, {}, unet=base, te1=base, te2=base).path("norms.json").read_bytes())


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float16, 0), (torch.float16, 1), (torch.bfloat16, 0), (torch.float32, 1), (torch.float64, 0)],
)
def test_every_weight_has_its_shape_and_norms_by_kohyas_name(tmp_path: Path, dtype: torch.dtype, layout: int):
    made = weights(dtype)
    found = norms(tmp_path, write_bases(tmp_path / "base", made)[layout])
    assert list(found) == ["fro_ckpt", "shape", "spn_ckpt"]
    assert found["shape"] == {name: list(one.shape) for name, one in sorted(made.items())}
    matrices = {name: one.double().flatten(1).numpy() for name, one in made.items()}
    assert found["fro_ckpt"] == pytest.approx({name: np.linalg.norm(one) for name, one in matrices.items()}, rel=1e-6)
    assert found["spn_ckpt"] == pytest.approx(
        {name: np.linalg.norm(one, 2) for name, one in matrices.items()}, rel=1e-6
    )


def test_they_are_kohyas_modules_and_those_outside_of_the_blocks(tmp_path: Path):
    """The names of the U-Net are from a run of kohya's trainer."""
    found = norms(tmp_path, write_bases(tmp_path / "base", weights())[0])["shape"]
    rows = [line.split("\t") for line in KEYMAP.read_text().splitlines()[1:]]
    assert {name for name, *_ in rows} == {name for name in found if name.startswith("lora_unet_")}
    assert set(OUTSIDE) < found.keys()
    assert len(found) == ADAPTABLE + len(OUTSIDE)


def test_progress_is_told_of_each_weight(tmp_path: Path):
    base = write_bases(tmp_path / "base", weights())[1]
    steps = run(STAGE, tmp_path, {}, unet=base, te1=base, te2=base).progress
    assert [done for done, *_ in steps] == list(range(ADAPTABLE + len(OUTSIDE)))
    assert {total for _, total, _ in steps} == {ADAPTABLE + len(OUTSIDE)}


@pytest.mark.parametrize("layout", [0, 1], ids=["single file", "folder"])
def test_norms_are_exact_of_large_weights(tmp_path: Path, layout: int):
    """Of a tensor of several chunks, where torch's own float32 norm is not."""
    large = (torch.randn(1100, 999, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    found = norms(tmp_path, write_bases(tmp_path / "base", weights() | {LARGE: large})[layout])
    exact = np.sqrt(np.square(large.double().numpy()).sum(dtype=np.longdouble))
    assert found["fro_ckpt"][LARGE] == pytest.approx(float(exact), rel=1e-6)
    assert found["spn_ckpt"][LARGE] == pytest.approx(np.linalg.norm(large.double().numpy(), 2), rel=1e-5)


# Those outside of the blocks make up for one that is missing.
@pytest.mark.parametrize(
    "name",
    [
        LARGE,
        "lora_te2_text_model_encoder_layers_31_mlp_fc2",
        "lora_unet_output_blocks_8_0_in_layers_2",
    ],
)
def test_a_base_that_lacks_a_module_of_sdxl_is_refused(tmp_path: Path, name: str):
    """Of a layer that is not there, nothing could say later how much a LoRA matters to it."""
    made = weights()
    made.pop(name)
    with pytest.raises(JobError, match=r"sdxl\.safetensors: has \d+ adaptable modules in (unet|te1|te2), SDXL has"):
        norms(tmp_path, write_bases(tmp_path / "base", made)[0])


@pytest.mark.parametrize(
    ("value", "said"),
    [(torch.full((4, 4), torch.nan), "NaN or infinity"), (torch.ones(4, 4, dtype=torch.int8), "dtype I8")],
)
@pytest.mark.parametrize("layout", [0, 1], ids=["single file", "folder"])
def test_a_broken_weight_is_named(tmp_path: Path, value: torch.Tensor, said: str, layout: int):
    base = write_bases(tmp_path / "base", weights() | {LARGE: value})[layout]
    with pytest.raises(JobError, match=rf"\.safetensors: .*encoder\.layers\.3\.mlp\.fc1\.weight .*{said}") as error:
        norms(tmp_path, base)
    assert "\n" not in str(error.value)


def test_memory_does_not_grow_with_the_base(tmp_path: Path):
    """The Frobenius norm of a weight of 512 MiB, which is a hole on disk."""
    key = "model.diffusion_model.input_blocks.0.0.weight"
    head = header_bytes([(key, "F16", [1 << 14, 1 << 14])])
    path = tmp_path / "large.safetensors"
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + (1 << 29))
    code = f"""
import resource
from pathlib import Path
from lorabuild.lora.basefile import base_weights
from lorabuild.nn.norms import frobenius_norm
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = used()
assert [frobenius_norm(one) for one in base_weights(Path({str(path)!r})).values()] == [0]
print(used() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20, f"{done.stdout} MiB more"


def test_equal_bases_have_equal_bytes(tmp_path: Path):
    """Nothing is left to chance: the file is the input of other jobs."""
    large = torch.randn(300, 200, generator=torch.Generator().manual_seed(0)).half()
    files = []
    for number in range(2):
        base = write_bases(tmp_path / f"base{number}", weights() | {LARGE: large})[number]
        files.append(run(STAGE, tmp_path / str(number), {}, unet=base, te1=base, te2=base).path("norms.json"))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_one_job_a_base_that_is_used():
    jobs = list(STAGE.jobs(SimpleNamespace(bases={"tiny": {}, "pony": {}, "idle": {}}, used_bases=["tiny", "pony"])))
    assert [job.name for job in jobs] == ["norms:tiny", "norms:pony"]
    assert jobs[1].inputs == {name: Component("pony", name) for name in ("unet", "te1", "te2")}
    assert (jobs[0].params, jobs[0].outputs) == ({}, ["norms.json"])
