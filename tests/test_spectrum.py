"""A spectrum holds the trained LoRA in its singular basis, and all that is no layer of the base as it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lora_lab import (
    ADAPTERS,
    CONV,
    GOLDENS,
    LINEAR,
    POINT,
    Done,
    adapter,
    deltas,
    distance,
    layer,
    read,
    read_spectrum,
    run,
    write_bases,
    write_lora,
    write_measures,
)

from lorabuild.errors import JobError
from lorabuild.header import FormatError, read_header
from lorabuild.stage import Artifact, Component, File
from lorabuild.stages.spectrum import STAGE
from lorabuild.writing import header_bytes

NAMES = (LINEAR, CONV, POINT)
SHAPES = {LINEAR: (24, 16), CONV: (12, 8, 3, 3), POINT: (5, 20, 1, 1)}
# Beside them in the norms of a base: of modules that the LoRA does not change.
MORE = {"lora_unet_middle_block_1_proj_in": (8, 8), "lora_unet_middle_block_1_proj_out": (8, 8)}


@pytest.fixture
def norms(tmp_path: Path) -> Path:
    return write_measures(
        tmp_path / "norms.json",
        SHAPES | MORE,
        {name: 2.5 + number for number, name in enumerate([*SHAPES, *MORE])},
        {name: 0.5 + number for number, name in enumerate([*SHAPES, *MORE])},
    )


def three_layers(alpha: float | None = 2.0) -> dict[str, torch.Tensor]:
    return {
        **layer(LINEAR, 24, 4, 16, alpha=alpha, seed=1),
        **layer(CONV, 12, 6, 8, 3, 3, alpha=alpha, seed=2),
        **layer(POINT, 5, 8, 20, 1, 1, alpha=alpha, seed=3),  # rank above out
    }


def spectrum(
    folder: Path, tensors: dict[str, torch.Tensor], norms: Path, dtype: torch.dtype | None = torch.float16
) -> Done:
    return run(STAGE, folder, {}, weights=write_lora(folder / "in", tensors, dtype), norms=norms)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("alpha", [2.0, 0.7, -3.0, None])
def test_it_is_what_the_file_adds_to_the_base(tmp_path: Path, norms: Path, dtype: torch.dtype, alpha: float | None):
    done = spectrum(tmp_path, three_layers(alpha), norms, dtype)
    found, others = read_spectrum(done.path("spectrum"))
    for name, delta in deltas(tmp_path / "in").items():
        one = found[name]
        assert distance(one.effect, delta) < 1e-6
        assert (one.s.diff() <= 0).all() and (one.s >= 0).all()
        for rows in (one.u.T.double(), one.vh.double().flatten(1)):
            assert torch.allclose(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), atol=1e-6)
    assert others.keys() == {"alpha"}
    assert done.notes == {"decomposed": 3, "passed": 0}
    assert done.progress[-1] == (3, 3, "singular values")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_flavour(tmp_path: Path, kind: str):
    """LoHa, LoKr and the like become low-rank, by kohya's names; what they add is LyCORIS' own formula."""
    shape, _ = ADAPTERS[kind]
    name = CONV if len(shape) > 2 else LINEAR
    tensors, delta = adapter(kind, name)
    known = write_measures(tmp_path / "norms.json", {name: shape}, {name: 1.0}, {name: 1.0})
    done = spectrum(tmp_path, tensors, known, None)
    found, others = read_spectrum(done.path("spectrum"))
    assert distance(found[name].effect, delta) < 1e-6
    assert found[name].vh.shape[1:] == shape[1:]
    assert done.notes == {"decomposed": 1, "passed": 0}
    assert others.keys() == {"alpha"}
    keys = read(done.path("spectrum")).keys()
    assert keys == {"alpha", "S", "base_norms", f"{name}.lora_up.weight", f"{name}.lora_down.weight"}


def test_shapes_and_norms(tmp_path: Path, norms: Path):
    path = spectrum(tmp_path, three_layers(), norms).path("spectrum")
    tensors = read(path)
    assert {name: tuple(one.shape) for name, one in tensors.items()} == {
        "alpha": (), "S": (4 + 6 + 5,), "base_norms": (3, 2),
        f"{LINEAR}.lora_up.weight": (4, 24), f"{LINEAR}.lora_down.weight": (4, 16),
        f"{CONV}.lora_up.weight": (6, 12), f"{CONV}.lora_down.weight": (6, 8, 3, 3),
        f"{POINT}.lora_up.weight": (5, 5), f"{POINT}.lora_down.weight": (5, 20, 1, 1),
    }  # fmt: skip
    assert {one.dtype for one in tensors.values()} == {torch.float32}
    found, _ = read_spectrum(path)
    assert [found[name].base_norms for name in NAMES] == [[2.5, 0.5], [3.5, 1.5], [4.5, 2.5]]
    assert tensors["alpha"].item() == 2.0


def test_the_body_is_canonical(tmp_path: Path, norms: Path):
    path = spectrum(tmp_path, three_layers(), norms).path("spectrum")
    header = read_header(path)
    assert list(header.tensors) == sorted(header.tensors)
    rebuilt = header_bytes([(name, one.dtype, one.shape) for name, one in header.tensors.items()])
    assert path.read_bytes().startswith(rebuilt)


def test_peft_keeps_its_names(tmp_path: Path):
    """The layers are the base's by whatever name; those of the file stay, for whoever loads it expects them."""
    name, known = "unet.down_blocks.0.resnets.0.conv1", "lora_unet_input_blocks_1_0_in_layers_2"
    random = torch.Generator().manual_seed(0)
    up, down = torch.randn(12, 6, 1, 1, generator=random), torch.randn(6, 8, 3, 3, generator=random)
    norms = write_measures(tmp_path / "norms.json", {known: (12, 8, 3, 3)}, {known: 2.5}, {known: 0.5})
    done = spectrum(tmp_path, {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}, norms, torch.float32)
    found, _ = read_spectrum(done.path("spectrum"))
    wanted = up.double().flatten(1) @ down.double().flatten(1)
    assert distance(found[name].effect, wanted) < 1e-6, "its scale is 1"
    assert found[name].base_norms == [2.5, 0.5]
    keys = read(done.path("spectrum")).keys()
    assert keys == {"alpha", "S", "base_norms", f"{name}.lora_A.weight", f"{name}.lora_B.weight"}


def test_what_cannot_be_decomposed_travels_as_it_is(tmp_path: Path, norms: Path):
    first, second = MORE
    strange = {
        f"{first}.hada_w1_a": torch.randn(8, 4), f"{first}.alpha": torch.tensor(4.0),  # no LoHa without the rest
        f"{second}.lora_up.weight": torch.randn(8, 4),  # no LoRA without down
        "lora_unet_input_blocks_1_0_in_layers_0.w_norm": torch.randn(8),
        "lora_unet_input_blocks_1_0_in_layers_0.b_norm": torch.randn(8),
        f"{LINEAR}.dora_scale": torch.randn(24, 1), f"{CONV}.diff_b": torch.randn(12),
        "lora_unet_odd.steps": torch.tensor([7]), "something else": torch.randn(3),
    }  # fmt: skip
    half = {name: one.half() if one.is_floating_point() else one for name, one in {**three_layers(), **strange}.items()}
    half[f"{CONV}.diff_b"] = half[f"{CONV}.diff_b"].to(torch.bfloat16)
    done = spectrum(tmp_path, half, norms, None)
    before, (_, after) = read(tmp_path / "in"), read_spectrum(done.path("spectrum"))
    assert after.keys() == {"alpha", *(f"={name}" for name in strange)}
    for name in strange:
        assert torch.equal(before[name], after[f"={name}"]) and after[f"={name}"].dtype == half[name].dtype
    assert done.notes == {"decomposed": 3, "passed": len(strange)}
    assert not done.warnings


def test_a_file_without_layers_travels_whole(tmp_path: Path, norms: Path):
    done = spectrum(tmp_path, {"lora_unet_input_blocks_1_0_in_layers_0.w_norm": torch.ones(8)}, norms)
    found, others = read_spectrum(done.path("spectrum"))
    assert not found and others.keys() == {"alpha", "=lora_unet_input_blocks_1_0_in_layers_0.w_norm"}
    assert done.notes == {"decomposed": 0, "passed": 1}


def test_layers_that_the_base_lacks_travel_as_they_are_with_one_warning(tmp_path: Path, norms: Path):
    """Of SDXL's modules, and of none."""
    names = [f"lora_unet_input_blocks_{number}_0_op" for number in (3, 6)] + [f"lora_unet_new_{n}" for n in range(3)]
    unknown = {key: one for name in names for key, one in layer(name, 4, 2, 4).items()}
    done = spectrum(tmp_path, {**three_layers(), **unknown}, norms)
    before, (_, after) = read(tmp_path / "in"), read_spectrum(done.path("spectrum"))
    assert all(torch.equal(before[name], after[f"={name}"]) for name in unknown)
    assert done.notes == {"decomposed": 3, "passed": 15}
    (warning,) = done.warnings
    assert warning == f"5 layers are not in the base and stay as they are: {', '.join(names[:3])}, …"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"up": (23, 4)}, rf"{LINEAR} changes a weight \[23, 16\], the base's is \[24, 16\]"),
        ({"down": (4, 17)}, rf"{LINEAR} changes a weight \[24, 17\], the base's is \[24, 16\]"),
        ({"down": (5, 16)}, rf"{LINEAR}: its tensors do not fit together: up \[24, 4\], down \[5, 16\]"),
        ({"down": (4, 0)}, rf"{LINEAR}: has an empty tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_an_error(tmp_path: Path, norms: Path, change: dict, said: str):
    more = {f"{LINEAR}.lora_{role}.weight": torch.zeros(shape) for role, shape in change.items()}
    with pytest.raises(JobError, match=said):
        spectrum(tmp_path, three_layers() | more, norms)


def test_a_lora_for_another_model_is_an_error(tmp_path: Path, norms: Path):
    names = [f"lora_unet_double_blocks_{number}_img_attn_qkv" for number in range(5)]
    tensors = {key: one for name in names for key, one in layer(name, 4, 2, 4).items()}
    with pytest.raises(JobError) as error:
        spectrum(tmp_path, tensors, norms)
    assert str(error.value) == (f"not a LoRA for this base: it has none of the 5 layers ({', '.join(names[:3])}, …)")


def test_the_files_alpha_is_the_one_that_most_layers_have(tmp_path: Path, norms: Path):
    tensors = three_layers(alpha=3.0) | {f"{LINEAR}.alpha": torch.tensor(8.0)}
    assert read(spectrum(tmp_path, tensors, norms).path("spectrum"))["alpha"].item() == 3.0


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("key", [f"{CONV}.lora_down.weight", f"{LINEAR}.lora_up.weight", f"{LINEAR}.alpha"])
def test_broken_weights_are_named(tmp_path: Path, norms: Path, key: str, value: float):
    tensors = three_layers()
    tensors[key].view(-1)[0] = value
    with pytest.raises(JobError, match=rf"{key}: holds NaN or infinity"):
        spectrum(tmp_path, tensors, norms)


def test_a_file_that_ends_early_is_an_error(tmp_path: Path, norms: Path):
    path = write_lora(tmp_path / "in", three_layers())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated"):
        run(STAGE, tmp_path, {}, weights=path, norms=norms)


def test_a_file_that_resize_lora_reads_too(tmp_path: Path):
    """A file with untrained layers (zeros), ranks above the number of outputs, all kinds of layers."""
    done = run(STAGE, tmp_path, {}, weights=GOLDENS / "locon.safetensors", norms=GOLDENS / "norms.json")
    (found, _), wanted = read_spectrum(done.path("spectrum")), deltas(GOLDENS / "locon.safetensors")
    for name, delta in wanted.items():
        assert (found[name].effect - delta).norm() <= 1e-6 * delta.norm()
    assert sum(not delta.any() for delta in wanted.values()) == 3
    assert all(one.isfinite().all() for one in read(done.path("spectrum")).values())


@pytest.mark.parametrize("layout", [0, 1], ids=["single file", "folder"])
def test_subspace_is_how_much_the_base_uses_each_direction(tmp_path: Path, layout: int):
    """|u_iᵀ W v_i|, of a text projection too, which SGM's file has transposed."""
    projection = "lora_te2_text_projection"
    tensors = three_layers() | layer(projection, 6, 3, 9, seed=4)
    shapes = SHAPES | {projection: (6, 9)}
    random = torch.Generator().manual_seed(5)
    weights = {name: torch.randn(shape, generator=random).half() for name, shape in shapes.items()}
    base = write_bases(tmp_path / "base", weights)[layout]
    norms = write_measures(tmp_path / "norms", shapes, dict.fromkeys(shapes, 1.0), dict.fromkeys(shapes, 1.0))
    inputs = {"weights": write_lora(tmp_path / "in", tensors), "norms": norms, "unet": base, "te1": base, "te2": base}
    done = run(STAGE, tmp_path, {"spectrum": {"subspace": True}}, **inputs)
    for name, one in read_spectrum(done.path("spectrum"))[0].items():
        matrix = weights[name].double().flatten(1)
        naive = (one.u.T.double() @ matrix @ one.vh.double().flatten(1).T).diagonal().abs()
        assert torch.allclose(one.subspace.double(), naive, rtol=1e-4, atol=1e-5)
    plain = run(STAGE, tmp_path / "2", {}, weights=inputs["weights"], norms=norms)
    added = read(done.path("spectrum")).keys() - read(plain.path("spectrum")).keys()
    assert added == {"subspace"}


def test_options_change_no_byte(tmp_path: Path, norms: Path):
    one = spectrum(tmp_path, three_layers(), norms)
    two = run(STAGE, tmp_path / "2", {}, {"threads": 2, "named": [1]}, weights=tmp_path / "in", norms=norms)
    assert one.path("spectrum").read_bytes() == two.path("spectrum").read_bytes()


def settings(step: str | int | None, source: str | None = None, **terms: float) -> dict:
    resize = None if step is None else {**(terms or {"fro_ckpt": 1.0}), "thr": -3.5, "step": step}
    return {
        "project": {"base": "tiny", "source": source}, "recipe": {"save_precision": "fp16"},
        "resize": resize, "chop": None,
    }  # fmt: skip


def declared(project: dict, **variants: dict) -> dict:
    one = SimpleNamespace(name="ember", settings=project, variants=variants, swept={}, folder=Path("projects/ember"))
    return {job.name: job for job in STAGE.jobs(SimpleNamespace(projects={"ember": one}))}


def test_one_job_a_project_and_one_for_a_variant_of_another_step():
    jobs = declared(settings("last"), mini=settings("last"), early=settings(4))
    assert list(jobs) == ["spectrum:ember", "spectrum:ember@early"]
    assert jobs["spectrum:ember"].inputs == {
        "weights": Artifact("train:ember", "weights"), "norms": Artifact("norms:tiny", "norms.json"),
    }  # fmt: skip
    assert jobs["spectrum:ember@early"].inputs["weights"] == Artifact("train:ember", "step/4")
    assert all(job.params == {} and job.outputs == ["spectrum"] for job in jobs.values())


def test_without_resize_there_is_no_job_but_for_the_variant_that_has_one():
    assert declared(settings(None)) == {}
    assert list(declared(settings(None), mini=settings(8))) == ["spectrum:ember@mini"]


def test_a_project_may_start_from_a_lora_of_others():
    jobs = declared(settings("last", source="found.safetensors"))
    source = File(Path("projects/ember/found.safetensors"), "found.safetensors")
    assert jobs["spectrum:ember"].inputs["weights"] == source


def test_the_base_is_read_only_where_a_resize_asks_for_its_subspace():
    """A variant shares what its project asks for; what it asks for itself is in a spectrum of its own."""
    base = {part: Component("tiny", part) for part in ("unet", "te1", "te2")}
    jobs = declared(settings("last", subspace=1.0), mini=settings("last"), wide=settings("last", subspace=2.0))
    assert list(jobs) == ["spectrum:ember"]
    assert jobs["spectrum:ember"].params == {"spectrum": {"subspace": True}}
    assert base.items() <= jobs["spectrum:ember"].inputs.items()
    plain = declared(settings("last"))["spectrum:ember"]
    jobs = declared(settings("last"), mini=settings("last", subspace=1.0, fro_ckpt=1.0))
    assert jobs["spectrum:ember"] == plain, "the other resizes are not built again"
    assert jobs["spectrum:ember@mini"].params == {"spectrum": {"subspace": True}}
    assert base.items() <= jobs["spectrum:ember@mini"].inputs.items()
    jobs = declared(settings("last"), early=settings(4, subspace=1.0))
    assert jobs["spectrum:ember"].params == {} and len(jobs["spectrum:ember"].inputs) == 2
    assert jobs["spectrum:ember@early"].params == {"spectrum": {"subspace": True}}


def test_norms_are_those_of_the_base_by_any_of_a_modules_names(tmp_path: Path, norms: Path):
    """`lora_unet_down_blocks_0_resnets_0_conv1` is what SGM's U-Net calls input_blocks.1.0.in_layers.2."""
    other = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = {name.replace(CONV, other): one for name, one in three_layers().items()}
    found, _ = read_spectrum(spectrum(tmp_path, tensors, norms).path("spectrum"))
    assert found[other].base_norms == [3.5, 1.5]
