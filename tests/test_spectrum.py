"""A spectrum holds the trained LoRA in its singular basis, and all that cannot be decomposed as it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lora_lab import GOLDENS, deltas, distance, layer, read, run, write_lora, write_norms

from lorabuild.errors import JobError
from lorabuild.header import header_bytes, read_header
from lorabuild.stage import Artifact
from lorabuild.stages.spectrum import STAGE

NAMES = ("lora_te1_linear", "lora_unet_conv", "lora_unet_wide")


@pytest.fixture
def norms(tmp_path: Path) -> Path:
    return write_norms(tmp_path / "norms.json", {name: 2.5 + number for number, name in enumerate(NAMES)})


def three_layers(alpha: float | None = 2.0) -> dict[str, torch.Tensor]:
    return {
        **layer(NAMES[0], 24, 4, 16, alpha=alpha, seed=1),
        **layer(NAMES[1], 12, 6, 8, 3, 3, alpha=alpha, seed=2),
        **layer(NAMES[2], 5, 8, 20, 1, 1, alpha=alpha, seed=3),  # rank above out
    }


def spectrum(folder: Path, tensors: dict[str, torch.Tensor], norms: Path, dtype: torch.dtype | None = torch.float16):
    return run(STAGE, folder, {}, weights=write_lora(folder / "in", tensors, dtype), norms=norms)


def effect(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    u, s, vh = (tensors[f"{name}.{part}"].double() for part in ("U", "S", "Vh"))
    return u * s @ vh.flatten(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("alpha", [2.0, 0.7, -3.0, None])
def test_it_is_what_the_file_adds_to_the_base(tmp_path: Path, norms: Path, dtype: torch.dtype, alpha: float | None):
    done = spectrum(tmp_path, three_layers(alpha), norms, dtype)
    found = read(done.path("spectrum"))
    for name, delta in deltas(tmp_path / "in").items():
        assert distance(effect(found, name), delta) < 1e-6
        singular = found[f"{name}.S"]
        assert (singular.diff() <= 0).all() and (singular >= 0).all()
    assert done.notes == {"decomposed": 3, "passed": 0}
    assert done.progress == [(0, 3, NAMES[0]), (1, 3, NAMES[1]), (2, 3, NAMES[2])], "each layer is decomposed once"


def test_shapes_and_norms(tmp_path: Path, norms: Path):
    found = read(spectrum(tmp_path, three_layers(), norms).path("spectrum"))
    assert {name: tuple(one.shape) for name, one in found.items()} == {
        "alpha": (),
        "lora_te1_linear.U": (24, 4), "lora_te1_linear.S": (4,), "lora_te1_linear.Vh": (4, 16),
        "lora_unet_conv.U": (12, 6), "lora_unet_conv.S": (6,), "lora_unet_conv.Vh": (6, 8, 3, 3),
        "lora_unet_wide.U": (5, 5), "lora_unet_wide.S": (5,), "lora_unet_wide.Vh": (5, 20, 1, 1),
        **{f"{name}.fro_ckpt": () for name in NAMES},
    }  # fmt: skip
    assert {one.dtype for one in found.values()} == {torch.float32}
    assert [found[f"{name}.fro_ckpt"].item() for name in NAMES] == [2.5, 3.5, 4.5]
    assert found["alpha"].item() == 2.0


def test_the_body_is_canonical(tmp_path: Path, norms: Path):
    path = spectrum(tmp_path, three_layers(), norms).path("spectrum")
    header = read_header(path)
    assert list(header.tensors) == sorted(header.tensors)
    rebuilt = header_bytes([(name, one.dtype, one.shape) for name, one in header.tensors.items()])
    assert path.read_bytes().startswith(rebuilt)


def test_what_cannot_be_decomposed_travels_as_it_is(tmp_path: Path, norms: Path):
    strange = {
        **layer("lora_unet_tucker", 8, 4, 8), "lora_unet_tucker.lora_mid.weight": torch.randn(4, 4, 3, 3),
        "lora_unet_loha.hada_w1_a": torch.randn(8, 4), "lora_unet_loha.alpha": torch.tensor(4.0),
        "lora_unet_norm.w_norm": torch.randn(8), "lora_unet_norm.b_norm": torch.randn(8),
        "lora_unet_full.diff": torch.randn(8, 8),
        "lora_te1_linear.dora_scale": torch.randn(24, 1),
        "lora_unet_odd.lora_up.weight": torch.randn(8, 4), "lora_unet_odd.lora_down.weight": torch.randn(5, 8),
        "lora_unet_half.lora_up.weight": torch.randn(8, 4),
        "lora_unet_empty.lora_up.weight": torch.zeros(8, 0), "lora_unet_empty.lora_down.weight": torch.zeros(0, 8),
    }  # fmt: skip
    known = write_norms(tmp_path / "all.json", {name.partition(".")[0]: 1.0 for name in [*strange, *three_layers()]})
    done = spectrum(tmp_path, {**three_layers(), **strange}, known)
    before, after = read(tmp_path / "in"), read(done.path("spectrum"))
    for name in strange:
        assert torch.equal(before[name], after[name]) and after[name].dtype == torch.float16
    assert done.notes == {"decomposed": 3, "passed": len(strange)}
    assert not done.warnings


def test_layers_that_the_base_lacks_travel_as_they_are_with_one_warning(tmp_path: Path, norms: Path):
    unknown = {key: one for number in range(5) for key, one in layer(f"lora_unet_new_{number}", 4, 2, 4).items()}
    done = spectrum(tmp_path, {**three_layers(), **unknown}, norms)
    assert unknown.keys() < read(done.path("spectrum")).keys()
    assert done.notes == {"decomposed": 3, "passed": 15}
    (warning,) = done.warnings
    assert warning.startswith("5 layers are not in the base and stay as they are: lora_unet_new_0, lora_unet_new_1, ")


def test_the_files_alpha_is_the_one_that_most_layers_have(tmp_path: Path, norms: Path):
    tensors = three_layers(alpha=3.0) | {f"{NAMES[0]}.alpha": torch.tensor(8.0)}
    assert read(spectrum(tmp_path, tensors, norms).path("spectrum"))["alpha"].item() == 3.0


def test_broken_weights_are_named(tmp_path: Path, norms: Path):
    tensors = three_layers()
    tensors[f"{NAMES[1]}.lora_down.weight"][0, 0, 0, 0] = torch.inf
    with pytest.raises(JobError, match=r"lora_unet_conv\.lora_down\.weight: holds NaN or infinity"):
        spectrum(tmp_path, tensors, norms)


def test_a_file_that_resize_lora_reads_too(tmp_path: Path):
    """A file with untrained layers (zeros), ranks above the number of outputs, all kinds of layers."""
    done = run(STAGE, tmp_path, {}, weights=GOLDENS / "locon.safetensors", norms=GOLDENS / "norms.json")
    found, wanted = read(done.path("spectrum")), deltas(GOLDENS / "locon.safetensors")
    for name, delta in wanted.items():
        assert (effect(found, name) - delta).norm() <= 1e-6 * delta.norm()
    assert sum(not delta.any() for delta in wanted.values()) == 3
    assert all(one.isfinite().all() for one in found.values())


def test_options_change_no_byte(tmp_path: Path, norms: Path):
    one = spectrum(tmp_path, three_layers(), norms)
    two = run(STAGE, tmp_path / "2", {}, {"threads": 2, "named": [1]}, weights=tmp_path / "in", norms=norms)
    assert one.path("spectrum").read_bytes() == two.path("spectrum").read_bytes()


def settings(step: str | int | None) -> dict:
    resize = None if step is None else {"fro_ckpt": 1.0, "thr": -3.5, "step": step}
    return {"project": {"base": "tiny"}, "recipe": {"save_precision": "fp16"}, "resize": resize, "chop": None}


def declared(step: str | int | None, **variants: str | int | None) -> dict:
    project = SimpleNamespace(settings=settings(step), variants={name: settings(s) for name, s in variants.items()})
    return {job.name: job for job in STAGE.jobs(SimpleNamespace(projects={"ember": project}))}


def test_one_job_a_project_and_one_for_a_variant_of_another_step():
    jobs = declared("last", mini="last", early=4)
    assert list(jobs) == ["spectrum:ember", "spectrum:ember@early"]
    assert jobs["spectrum:ember"].inputs == {
        "weights": Artifact("train:ember", "weights"), "norms": Artifact("norms:tiny", "norms.json"),
    }  # fmt: skip
    assert jobs["spectrum:ember@early"].inputs["weights"] == Artifact("train:ember", "step/4")
    assert all(job.params == {} and job.outputs == ["spectrum"] for job in jobs.values())


def test_without_resize_there_is_no_job_but_for_the_variant_that_has_one():
    assert declared(None) == {}
    assert list(declared(None, mini=8)) == ["spectrum:ember@mini"]
