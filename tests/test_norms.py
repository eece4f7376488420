"""Norms of a base: exact, of every adaptable module by kohya's name, in memory that does not grow with the base."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lora_lab import run
from safetensors.torch import save_file

from lorabuild.errors import JobError
from lorabuild.header import header_bytes
from lorabuild.lora.keymap import EXPECTED
from lorabuild.nn.norms import frobenius_norms
from lorabuild.stage import Component
from lorabuild.stages.norms import STAGE

KEYMAP = Path(__file__).parent / "goldens/unet_keymap.tsv"
LARGE = "text_model.encoder.layers.3.mlp.fc1.weight"


def unet_modules() -> list[tuple[str, str, bool]]:
    """(kohya's name, diffusers' path, can have an adapter) of every layer of SDXL's U-Net."""
    rows = [line.split("\t") for line in KEYMAP.read_text().splitlines() if not line.startswith("#")]
    return [(kohya, path, state == "adapted") for kohya, path, state in rows]


def clip(layers: int) -> dict[str, torch.Tensor]:
    """A text encoder's weights, by name, small and different."""
    parts = [*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2", "layer_norm1"]
    names = [f"text_model.encoder.layers.{number}.{part}.weight" for number in range(layers) for part in parts]
    return {name: torch.full((3, 2), float(number)) for number, name in enumerate(names, 1)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in diffusers' layout with all of SDXL's names, and matrices of 3 x 2 under them."""
    folder = tmp_path_factory.mktemp("base")
    random = torch.Generator().manual_seed(0)
    unet = {f"{path}.weight": torch.randn(3, 2, 1, 1, generator=random).half() for _, path, _ in unet_modules()}
    files = {
        "unet/diffusion_pytorch_model": {**unet, "down_blocks.0.resnets.0.conv1.bias": torch.ones(3)},
        "text_encoder/model": clip(12),
        "text_encoder_2/model": clip(32),
    }
    for name, tensors in files.items():
        (folder / name).parent.mkdir()
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def test_every_adaptable_module_has_its_norm_by_kohyas_name(base: Path, tmp_path: Path):
    done = run(STAGE, tmp_path, {}, unet=base, te1=base, te2=base)
    norms = json.loads(done.path("norms.json").read_bytes())["fro_ckpt"]
    assert len(norms) == len(done.progress) == sum(EXPECTED.values()) == 1052
    random = torch.Generator().manual_seed(0)
    for name, _, adapted in unet_modules():
        norm = torch.randn(3, 2, generator=random).half().double().norm().item()
        assert norms.get(name) == (pytest.approx(norm, rel=1e-14) if adapted else None)
    assert norms["lora_te1_text_model_encoder_layers_1_mlp_fc2"] == pytest.approx(13 * 6**0.5, rel=1e-14)
    assert norms["lora_te2_text_model_encoder_layers_31_self_attn_q_proj"] == pytest.approx(218 * 6**0.5, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_are_exact_in_any_dtype(tmp_path: Path, dtype: torch.dtype):
    """Of a tensor of several chunks, where torch's own float32 norm is not."""
    random = (torch.randn(1100, 999, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    save_file({**{name: one.to(dtype) for name, one in clip(12).items()}, LARGE: random}, tmp_path / "te1.safetensors")
    norms = dict(frobenius_norms(tmp_path / "te1.safetensors", "te1"))
    exact = np.sqrt(np.square(random.to(torch.float64).numpy()).sum(dtype=np.longdouble))
    assert norms["lora_te1_text_model_encoder_layers_3_mlp_fc1"] == pytest.approx(float(exact), rel=1e-13)
    assert norms["lora_te1_text_model_encoder_layers_0_self_attn_v_proj"] == pytest.approx(3 * 6**0.5, rel=1e-14)


def test_the_base_has_exactly_sdxls_modules(tmp_path: Path):
    """Of a layer that is not there, nothing could say later how much a LoRA matters to it."""
    tensors = clip(12)
    tensors.pop(LARGE)
    save_file(tensors, tmp_path / "te1.safetensors")
    with pytest.raises(JobError, match=r"te1\.safetensors: has 71 adaptable modules, SDXL's te1 has 72"):
        dict(frobenius_norms(tmp_path / "te1.safetensors", "te1"))


@pytest.mark.parametrize(
    ("value", "said"),
    [(torch.full((4, 4), torch.nan), "NaN or infinity"), (torch.ones(4, dtype=torch.int8), "dtype I8")],
)
def test_a_broken_weight_is_named(tmp_path: Path, value: torch.Tensor, said: str):
    save_file({**clip(12), LARGE: value}, tmp_path / "te1.safetensors")
    with pytest.raises(JobError, match=rf"te1.safetensors: {re.escape(LARGE)} .*{said}"):
        dict(frobenius_norms(tmp_path / "te1.safetensors", "te1"))


def test_memory_does_not_grow_with_the_base(tmp_path: Path):
    """A layer of 512 MiB, which is a hole on disk."""
    tensors = [(name, "F16", [1 << 28 if name == LARGE else 1]) for name in clip(12)]
    head = header_bytes(tensors)
    path = tmp_path / "large.safetensors"
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + 2 * (len(tensors) - 1) + (1 << 29))
    code = f"""
import resource
from lorabuild.nn.norms import frobenius_norms
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = used()
assert len(dict(frobenius_norms({str(path)!r}, "te1"))) == 72
print(used() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40, f"{done.stdout} MiB more"


def test_one_job_a_base_that_is_used():
    jobs = list(STAGE.jobs(SimpleNamespace(bases={"tiny": {}, "pony": {}, "idle": {}}, used_bases=["tiny", "pony"])))
    assert [job.name for job in jobs] == ["norms:tiny", "norms:pony"]
    assert jobs[1].inputs == {name: Component("pony", name) for name in ("unet", "te1", "te2")}
    assert (jobs[0].params, jobs[0].outputs) == ({}, ["norms.json"])
