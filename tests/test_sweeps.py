"""A sweep builds what is new of it and nothing else, as its user sees it. The stages are stand-ins, all else is real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from standin import Stage

MANIFEST = "projects/p0/lora.toml"
SWEEP = "\n[matrix]\nthr = [-3.2, -3.9]\n"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A project with a sweep of two thresholds, built."""
    found = Stage(tmp_path_factory.mktemp("swept"))
    said(found, SWEEP)
    done = found.doit()
    assert done.code == 0, done.out + done.err
    found.first = done.built
    return found


@pytest.fixture
def stage(template: Stage, tmp_path: Path) -> Stage:
    return template.copy(tmp_path / "copy")


def said(stage: Stage, matrix: str) -> None:
    path = stage.world.root / MANIFEST
    path.write_text(path.read_text().partition("\n[matrix]")[0] + matrix)


def files(stage: Stage) -> set[str]:
    return {path.name for path in (stage.world.root / "build/p0").glob("*") if path.is_file()}


def test_a_sweep_of_thresholds_trains_once(template: Stage):
    assert {job for job in template.first if not job.startswith("chop")} == {
        "base:tiny", "norms:tiny", "dataset:p0", "latents:p0", "train:p0", "spectrum:p0",
        "resize:p0", "resize:p0@thr-3.2", "resize:p0@thr-3.9",
    }  # fmt: skip
    assert {"p0-thr-3.2-resized.safetensors", "p0-thr-3.9-chopped.safetensors"} <= files(template)
    assert template.doit().events == []


def test_a_value_that_is_added_builds_itself_alone_and_a_no_op_stays_fast(stage: Stage):
    said(stage, "\n[matrix]\nthr = [-3.9, -3.5, -3.2]\n")
    assert set(stage.doit().ran.items()) == {("resize:p0@thr-3.5", "built"), ("chop:p0@thr-3.5", "built")}
    assert stage.doit().events == []
    assert "thr-3.5" in (stage.world.root / "projects/p0/lora.lock").read_text()


def test_a_value_that_is_removed_takes_its_files_and_lines_along(stage: Stage):
    before = files(stage)
    said(stage, "\n[matrix]\nthr = [-3.2]\n")
    assert stage.doit().built == set()
    assert before - files(stage) == {"p0-thr-3.9-resized.safetensors", "p0-thr-3.9-chopped.safetensors"}
    assert "thr-3.9" not in (stage.world.root / "projects/p0/lora.lock").read_text()
    said(stage, SWEEP)
    assert set(stage.doit().ran.values()) == {"restored"}, "the store still has it"
    assert files(stage) == before


def test_a_variant_is_a_target_with_all_that_it_needs(stage: Stage):
    said(stage, "\n[matrix]\nthr = [-3.4, -3.6]\nunet_lr = [1e-3]\n")
    assert stage.doit("p0@unet_lr1e-3_thr-3.4").built == {
        "train:p0@unet_lr1e-3", "spectrum:p0@unet_lr1e-3", "resize:p0@unet_lr1e-3_thr-3.4", "chop:p0@unet_lr1e-3_thr-3.4"
    }  # fmt: skip
    assert "p0@" not in stage.doit("list").out and "p0@unet_lr1e-3_thr-3.6" in stage.doit("list", "--all").out.split()
    near = stage.doit("p0@unet_lr1e-3_thr-3.5")
    assert near.code == 2 and "did you mean" in near.err


def test_the_order_of_values_is_nothing(stage: Stage):
    said(stage, "\n[matrix]\nthr = [-3.9, -3.20]\n")
    assert stage.doit().events == []


def test_two_recipes_are_trained_once_each_from_the_same_latents(stage: Stage):
    said(stage, "\n[matrix]\nthr = [-3.2, -3.9]\nunet_lr = [5e-3, 1e-3]\n")
    built = stage.doit().built
    assert {job for job in built if job.startswith(("train", "latents", "spectrum", "dataset"))} == {
        "train:p0@unet_lr1e-3", "spectrum:p0@unet_lr1e-3",
    }  # fmt: skip
    assert {"resize:p0@unet_lr1e-3_thr-3.2", "resize:p0@unet_lr1e-3_thr-3.9"} < built
    found = files(stage)
    own = {"p0-unet_lr1e-3.safetensors", "p0-unet_lr1e-3-step00000002.safetensors", "p0-unet_lr1e-3-train.jsonl"}
    assert own < found and {"p0.safetensors", "train.jsonl", "p0-unet_lr5e-3_thr-3.2-resized.safetensors"} < found
    assert not any(name.startswith("p0-thr") for name in found), "what they were called before"


def test_a_sweep_is_planned_and_shown_and_told_why(stage: Stage):
    said(stage, "\n[matrix]\nthr = [-3.2, -3.9, -10]\nunet_lr = [1e-3]\n")
    plan = stage.world.lorabuild("plan", **stage.env)
    assert plan.out.splitlines()[0] == (
        "p0: unet_lr 1 × thr 3 = 3 variants: 1 training, 1 spectrum, 3 resizes, 3 chops beside the project's own"
    )
    assert json.loads(stage.world.lorabuild("plan", "--json", **stage.env).out)["sweeps"].keys() == {"p0"}
    rows = json.loads(stage.world.lorabuild("status", "--json", **stage.env).out)["projects"]
    assert list(rows) == [
        "p0", "p0@unet_lr1e-3", "p0@unet_lr1e-3_thr-3.2", "p0@unet_lr1e-3_thr-3.9", "p0@unet_lr1e-3_thr-10",
    ]  # fmt: skip
    assert rows["p0@unet_lr1e-3"]["stages"] == {"train": "never", "spectrum": "never"}
    why = stage.world.lorabuild("why", "train:p0@unet_lr1e-3", **stage.env)
    assert why.code == 0 and "never built" in why.out


def test_check_tries_the_recipe_of_each_training(stage: Stage):
    said(stage, '\n[matrix]\noptimizer_type = [\n"AdamW",\n"torch.optim.NoSuch",\n]\n')
    found = stage.world.lorabuild("check", "--json", "p0", **stage.env)
    (error,) = [one for one in json.loads(found.out)["projects"]["p0"]["findings"] if one["level"] == "error"]
    line = (stage.world.root / MANIFEST).read_text().splitlines().index('"torch.optim.NoSuch",') + 1
    assert (error["code"], error["line"]) == ("LB071", line) and "NoSuch" in error["message"]


def test_a_variant_by_hand_may_be_trained_by_itself(stage: Stage):
    path = stage.world.root / MANIFEST
    path.write_text(path.read_text() + "\n[variants.slow.recipe]\nunet_lr = 1e-5\n")
    assert stage.doit().built == {"train:p0@slow", "spectrum:p0@slow", "resize:p0@slow", "chop:p0@slow"}
    assert {"p0-slow.safetensors", "p0-slow-step00000002.safetensors", "p0-slow-resized.safetensors"} < files(stage)


def test_why_names_the_line_in_the_matrix(stage: Stage):
    said(stage, "\n[matrix]\nthr = [-3.2, -3.9]\nfro_ckpt = [1]\n")
    stage.doit()
    path = stage.world.root / MANIFEST
    path.write_text(path.read_text().replace("max_train_steps = 4", "max_train_steps = 6"))
    why = stage.world.lorabuild("why", "resize:p0@fro_ckpt1_thr-3.2", **stage.env)
    assert "recipe.max_train_steps: 4 -> 6 (projects/p0/lora.toml:" in why.out


def test_variants_are_exported_and_compared_by_what_they_are_made_of(stage: Stage, tmp_path: Path):
    said(stage, '\n[matrix]\nthr = [-3.2]\nunet_lr = [1e-3]\nkeep = [["TE"], ["TE", "OUT01"]]\n')
    assert stage.doit().code == 0
    name = "p0@unet_lr1e-3_thr-3.2_keep-te"
    found = stage.world.lorabuild(
        "export", name, "--to", "folder", "-o", str(tmp_path / "out"), "--artifact", "resized", **stage.env
    )
    assert found.code == 0, found.out + found.err
    assert [path.name for path in (tmp_path / "out").rglob("*.safetensors")] == [
        "p0-unet_lr1e-3_thr-3.2-resized.safetensors"
    ]
    diff = stage.world.lorabuild("diff", name, f"{name}-out01", "--json", **stage.env)
    assert diff.code in (0, 1), diff.err
    told = json.loads(diff.out)
    assert {row["key"] for row in told["settings"]} == {"chop.keep.OUT01"}
    assert {row["job"] for row in told["artifacts"]} == {"chop"}, "the rest of both is the same"
    unknown = stage.world.lorabuild("diff", "p0", "p0@unet_lr1e-3", **stage.env)
    (line,) = unknown.err.strip().splitlines()
    assert line.startswith("p0@unet_lr1e-3: no such variant"), "a training of a sweep is none"


def test_a_lock_with_a_sweep_is_pulled(stage: Stage, tmp_path: Path):
    url = f"file://{tmp_path}/remote"
    stage.world.write("lorabuild.local.toml", f'[store]\nremote = "{url}"\n')
    assert stage.world.lorabuild("push", **stage.env).code == 0
    before = stage.world.built_files()
    other = stage.copy(tmp_path / "other")
    for folder in (".lorabuild", "build"):
        (other.world.root / folder).rename(tmp_path / f"gone{folder}")
    done = other.world.lorabuild("pull", **other.env)
    assert done.code == 0, done.out + done.err
    assert other.world.built_files() == before
    assert other.doit().built == set()
