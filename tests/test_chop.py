"""A chop copies what stays byte for byte, scales linearly what is weighted, and needs no tensor library for 0 and 1."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lora_lab import GOLDENS, deltas, distance, layer, read, run, write_lora
from safetensors.torch import save_file

from lorabuild.errors import JobError
from lorabuild.header import read_header
from lorabuild.names import BLOCKS, block_of, resolve_chop
from lorabuild.stage import Artifact, File
from lorabuild.stages.chop import STAGE
from lorabuild.writing import header_bytes

CHOPS = json.loads((GOLDENS / "chops.json").read_text())
LOCON = GOLDENS / "locon.safetensors"


def params(allow_empty: bool = False, **chop) -> dict:
    return {"chop": {"keep": resolve_chop(chop)} | ({"allow_empty": True} if allow_empty else {})}


def weights(allow_empty: bool = False, **blocks: float) -> dict:
    return {"chop": {"keep": dict.fromkeys(BLOCKS, 1.0) | blocks} | ({"allow_empty": True} if allow_empty else {})}


@pytest.mark.parametrize("case", CHOPS)
def test_zeros_and_ones_leave_what_chop_blocks_leaves(tmp_path: Path, case: str):
    """Goldens: chop_blocks at efe6f69, digests of its tensors' bytes, cut to the layers of our smaller input."""
    chop = CHOPS[case]
    done = run(STAGE, tmp_path, params(vector=chop["vector"]), weights=GOLDENS / f"{chop['input']}.safetensors")
    raw = done.path("weights").read_bytes()
    found = {
        name: hashlib.sha256(raw[info.start : info.stop]).hexdigest()[:16]
        for name, info in read_header(done.path("weights")).tensors.items()
    }
    assert found == chop["tensors"]


def test_names_and_vector_are_two_ways_to_say_the_same(tmp_path: Path):
    by_name = run(STAGE, tmp_path / "1", params(keep=["OUT01", "TE"]), weights=LOCON)
    by_vector = run(STAGE, tmp_path / "2", params(vector=CHOPS["c01_out01"]["vector"]), weights=LOCON)
    assert by_name.path("weights").read_bytes() == by_vector.path("weights").read_bytes()


@pytest.mark.parametrize("weight", [0.5, 0.25, 1.5, 0.3])
def test_a_weight_is_linear_in_the_effect(tmp_path: Path, weight: float):
    """chop_blocks gives the third power of it."""
    done = run(STAGE, tmp_path, weights(OUT01=weight, INP03=0.0), weights=LOCON)
    before, after = deltas(LOCON), deltas(done.path("weights"))
    assert {block_of(name) for name in before.keys() - after.keys()} == {"INP03"}
    for name, delta in after.items():
        if block_of(name) == "OUT01":
            assert distance(delta, weight * before[name]) < 1e-3  # the roundings of fp16, of small numbers too
        else:
            assert torch.equal(delta, before[name])
    old, new = read(LOCON), read(done.path("weights"))
    assert {name.rpartition(".lora_")[2] for name in new if not torch.equal(new[name], old[name])} == {"up.weight"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_is_exact_in_any_dtype(tmp_path: Path, dtype: torch.dtype):
    path = write_lora(tmp_path / "in", layer("lora_unet_middle_block_1_proj_in", 16, 4, 16), dtype)
    done = run(STAGE, tmp_path, weights(MID01=0.5), weights=path)
    name = "lora_unet_middle_block_1_proj_in.lora_up.weight"
    assert torch.equal(read(done.path("weights"))[name], (read(path)[name].double() / 2).to(dtype))


def test_tensors_of_no_block_pass_and_are_counted(tmp_path: Path):
    tensors = {**layer("lora_unet_time_embed_0", 8, 2, 8), **layer("lora_unet_output_blocks_1_1_proj_in", 8, 2, 8)}
    done = run(STAGE, tmp_path, weights(OUT01=0.0), weights=write_lora(tmp_path / "in", tensors))
    assert {name.partition(".")[0] for name in read(done.path("weights"))} == {"lora_unet_time_embed_0"}
    assert done.notes == {"kept": 3, "dropped": 3, "passed": 3}


def test_nothing_left_is_an_error_unless_allowed(tmp_path: Path):
    path = write_lora(
        tmp_path / "in", {**layer("lora_te2_x", 4, 2, 4), **layer("lora_unet_input_blocks_4_1_x", 4, 2, 4)}
    )
    with pytest.raises(JobError) as error:
        run(STAGE, tmp_path, params(keep=["OUT01"]), weights=path)
    assert str(error.value) == (
        "[chop] keeps nothing of this LoRA: it has INP04, TE2 (chop.allow_empty = true permits it)"
    )
    done = run(STAGE, tmp_path, params(keep=["OUT01"], allow_empty=True), weights=path)
    assert read(done.path("weights")) == {}


def test_a_named_block_that_the_file_lacks_is_a_warning(tmp_path: Path):
    path = write_lora(tmp_path / "in", layer("lora_unet_output_blocks_1_1_proj_in", 4, 2, 4))
    done = run(STAGE, tmp_path, params(keep=["OUT01", "OUT02"]), {"named": ["OUT01", "OUT02"]}, weights=path)
    assert done.warnings == ["OUT02 is kept, but has no tensors here: it has OUT01"]
    quiet = run(STAGE, tmp_path / "2", params(keep=["OUT0*"]), {"named": []}, weights=path)
    assert not quiet.warnings
    assert quiet.path("weights").read_bytes() == done.path("weights").read_bytes(), "options change no byte"


@pytest.mark.parametrize("suffix", ["hada_w1_a", "lokr_w1", "diff", "w_norm"])
def test_layers_of_any_flavour_are_scaled(tmp_path: Path, suffix: str):
    """In the one factor in which they are linear; test_chop_verb.py has them whole."""
    name = f"lora_unet_output_blocks_1_1_proj_in.{suffix}"
    path = write_lora(tmp_path / "in", {name: torch.ones(4, 4), **layer("lora_te1_x", 4, 2, 4)})
    before, after = read(path), read(run(STAGE, tmp_path, weights(OUT01=0.5), weights=path).path("weights"))
    assert torch.equal(after.pop(name), before.pop(name) / 2)
    assert before.keys() == after.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_the_magnitudes_of_dora_stay_and_a_warning_says_so(tmp_path: Path):
    name = "lora_unet_output_blocks_1_1_proj_in"
    path = write_lora(tmp_path / "in", {f"{name}.dora_scale": torch.ones(4, 1), **layer(name, 4, 2, 4)})
    done = run(STAGE, tmp_path, weights(OUT01=0.5), weights=path)
    before, after = read(path), read(done.path("weights"))
    assert {key for key in before if not torch.equal(after[key], before[key])} == {f"{name}.lora_up.weight"}
    assert done.warnings == ["1 DoRA layers: their low-rank part is scaled, their magnitude stays as it is"]


def test_what_is_of_no_known_flavour_is_kept_or_dropped_but_not_scaled(tmp_path: Path):
    name = "lora_unet_output_blocks_1_1_proj_in.oft_blocks"
    path = write_lora(tmp_path / "in", {name: torch.ones(4, 4), **layer("lora_te1_x", 4, 2, 4)})
    with pytest.raises(JobError, match=rf"{name}: cannot be scaled by 0.5: of no flavour known here"):
        run(STAGE, tmp_path, weights(OUT01=0.5), weights=path)
    assert name in read(run(STAGE, tmp_path, weights(OUT01=1.0), weights=path).path("weights"))
    assert name not in read(run(STAGE, tmp_path, weights(OUT01=0.0), weights=path).path("weights"))


def test_a_weight_that_leaves_half_precision_is_named(tmp_path: Path):
    tensors = layer("lora_te1_x", 2, 1, 2) | {"lora_te1_x.lora_up.weight": torch.tensor([[60000.0], [1.0]])}
    with pytest.raises(JobError, match=r"lora_te1_x\.lora_up\.weight: 120000 does not fit F16"):
        run(STAGE, tmp_path, weights(TE1=2.0), weights=write_lora(tmp_path / "in", tensors))


def test_the_body_is_canonical_whatever_the_input_is(tmp_path: Path):
    """In name order, and without metadata."""
    tensors = {name: one.to(torch.float32 if "alpha" in name else torch.float16) for name, one in read(LOCON).items()}
    save_file(tensors, tmp_path / "in", {"ss_tag": "x"})  # the library puts the largest dtype first
    assert list(read_header(tmp_path / "in").tensors) != sorted(tensors)
    path = run(STAGE, tmp_path, params(keep=["!MID*"]), weights=tmp_path / "in").path("weights")
    header = read_header(path)
    assert list(header.tensors) == sorted(header.tensors) and header.metadata == {}
    assert path.read_bytes().startswith(
        header_bytes([(name, one.dtype, one.shape) for name, one in header.tensors.items()])
    )
    assert all(torch.equal(one, tensors[name]) for name, one in read(path).items())


@pytest.mark.parametrize(("weight", "imported"), [(0.0, set()), (0.5, {"numpy"})])
def test_it_imports_no_torch_and_for_zeros_and_ones_no_numpy(tmp_path: Path, weight: float, imported: set[str]):
    code = f"""
import sys
from pathlib import Path
from lorabuild.stage import Job
from lorabuild.stages.chop import STAGE
from lorabuild.workspace import Workspace
folder = Path({str(tmp_path)!r})
workspace = Workspace(folder, folder, folder, paths={{"weights": Path({str(LOCON)!r})}})
STAGE.run(Job("chop:ember", {weights(OUT01=weight)!r}, {{}}, []), workspace, lambda *step: None)
print(sorted({{"torch", "numpy", "diffusers", "transformers", "safetensors", "pydantic"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(sorted(imported))


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    """A file of 512 MiB, all of one block kept and one dropped."""
    names = [f"lora_unet_output_blocks_{block}_1_x.lora_up.weight" for block in (0, 1)]
    head = header_bytes([(name, "F16", [1 << 27]) for name in names])
    with open(tmp_path / "in", "wb") as file:
        file.write(head)
        file.truncate(len(head) + (1 << 29))  # a hole
    code = f"""
import resource
from pathlib import Path
from lorabuild.stage import Job
from lorabuild.stages.chop import STAGE
from lorabuild.workspace import Workspace
folder = Path({str(tmp_path)!r})
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = used()
workspace = Workspace(folder, folder, folder, paths={{"weights": folder / "in"}})
STAGE.run(Job("chop:ember", {weights(OUT00=0.0)!r}, {{}}, []), workspace, lambda *step: None)
assert (folder / "weights").stat().st_size > 1 << 28
print(used() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10, f"{done.stdout} MiB more"
    (tmp_path / "weights").unlink()


def settings(keep: list[str] | None, resized: bool = True, source: str | None = None) -> dict:
    chop = None if keep is None else {"keep": keep, "allow_empty": False}
    resize = {"thr": -3.5, "step": "last"} if resized else None
    return {"project": {"source": source}, "recipe": {}, "resize": resize, "chop": chop}


def declared(project: dict, **variants: dict) -> dict:
    one = SimpleNamespace(name="ember", folder=Path("projects/ember"), settings=project, variants=variants, swept={})
    return {job.name: job for job in STAGE.jobs(SimpleNamespace(projects={"ember": one}))}


def test_jobs_of_project_and_variants():
    jobs = declared(settings(["TE", "OUT01"]), mini=settings(["OUT0*"]))
    assert {name: job.inputs["weights"] for name, job in jobs.items()} == {
        "chop:ember": Artifact("resize:ember", "weights"),
        "chop:ember@mini": Artifact("resize:ember@mini", "weights"),
    }
    assert jobs["chop:ember"].params == params(keep=["OUT01", "TE1", "TE2"]), "order and spelling are not in the key"
    assert jobs["chop:ember"].options == {"named": ["OUT01", "TE1", "TE2"]}
    assert jobs["chop:ember@mini"].options == {"named": []}


def test_without_resize_the_trained_weights_are_chopped():
    jobs = declared(settings(["TE"], resized=False), mini=settings(["TE"]))
    assert jobs["chop:ember"].inputs == {"weights": Artifact("train:ember", "weights")}
    assert jobs["chop:ember@mini"].inputs == {"weights": Artifact("resize:ember@mini", "weights")}
    assert declared(settings(None), mini=settings(None)) == {}


def test_a_weight_of_a_block_that_is_dropped_is_told():
    project = settings(["TE"])
    project["chop"]["weights"] = {"OUT01": 0.5, "TE1": 0.5}
    assert declared(project)["chop:ember"].options["idle"] == ["OUT01"]


def test_without_resize_and_training_the_source_is_chopped():
    jobs = declared(settings(["TE"], resized=False, source="old.safetensors"))
    assert jobs["chop:ember"].inputs == {"weights": File(Path("projects/ember/old.safetensors"), "old.safetensors")}
