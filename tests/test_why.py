"""`lorabuild why` names the value: which key, file or part changed, and in which file and line it stands now."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manifest_world import Files
from test_plan import blob, damage, edit, kept
from world import World

from lorabuild.history import Past, failure, history, job_log, last_success
from lorabuild.manifest import load
from lorabuild.manifest.whence import Whence
from lorabuild.reasons import RENAMED, changes
from lorabuild.stages import STAGES
from lorabuild.verbs.why import main

MANIFEST = "projects/ember/lora.toml"


def line_of(world: World, text: str, file: str = MANIFEST) -> int:
    """The number of the one line that holds `text`."""
    (number,) = [n for n, line in enumerate((world.root / file).read_text().splitlines(), 1) if text in line]
    return number


def why(world: World, target: str) -> str:
    result = world.lorabuild("why", target)
    assert (result.code, result.err) == (0, "")
    return result.out


def reasons(world: World, job: str, target: str | None = None) -> list[str]:
    """What is told of `job`, asked for `target` or itself."""
    return [reason["text"] for reason in link(world, job, target)["reasons"]]


def link(world: World, job: str, target: str | None = None) -> dict[str, Any]:
    result = world.lorabuild("why", target or job, "--json")
    assert result.code == 0, result.err
    return {one["job"]: one for one in json.loads(result.out)["jobs"]}[job]


# settings, with their place


def test_the_chain_goes_down_to_the_value_in_the_recipe_that_sets_it_last(built: World):
    edit(built, "unet_lr = 5e-3\n", "")
    edit(built, "[project]", 'extends = ["first", "second"]\n\n[project]')
    built.write("recipes/first.toml", "[recipe]\nunet_lr = 1e-2\n")
    built.write("recipes/second.toml", 'extends = "third"\n# the one that counts\n\n[recipe]\n\n\nunet_lr = 2e-4\n')
    built.write("recipes/third.toml", "[recipe]\nunet_lr = 1e-2\n")
    before = kept(built)
    assert why(built, "chop:ember") == (
        "chop:ember may be stale because of resize:ember\n"
        "resize:ember may be stale because of spectrum:ember\n"
        "spectrum:ember may be stale because of train:ember\n"
        "train:ember is stale:\n"
        "    recipe.unet_lr: 0.005 -> 2e-4 (recipes/second.toml:7)\n"
    )
    (reason,) = link(built, "train:ember", "chop:ember")["reasons"]
    assert (reason["kind"], reason["name"]) == ("key", "recipe.unet_lr")
    assert (reason["file"], reason["line"]) == ("recipes/second.toml", 7)
    assert kept(built) == before  # no run log either


def test_a_value_of_the_manifest_has_its_line_and_an_argument_its_own(built: World):
    built.manifest(thr=-2.8)
    assert reasons(built, "resize:ember") == [f"resize.thr: -2.6 -> -2.8 ({MANIFEST}:{line_of(built, 'thr = ')})"]
    built.manifest()
    edit(built, "{ conv_dim = 2, conv_alpha = 2 }", "{ conv_dim = 2, conv_alpha = 1 }\nmixed_precision = 'bf16'")
    assert reasons(built, "train:ember") == [
        f'recipe.mixed_precision: "no" -> "bf16" ({MANIFEST}:{line_of(built, "mixed")})',
        f"recipe.network_args: conv_alpha 2 -> 1 ({MANIFEST}:{line_of(built, 'conv_alpha')})",
    ]


def test_a_value_that_nobody_writes_any_more_is_the_default(built: World):
    edit(built, "multires_noise_iterations = 2\n", "")
    edit(built, "text_encoder_lr = 1e-3", "learning_rate = 2e-3")
    assert reasons(built, "train:ember") == [
        "recipe.multires_noise_iterations: 2 -> 0 (the default)",
        f"recipe.text_encoder_lr: 0.001 -> 0.002 ({MANIFEST}:{line_of(built, 'learning_rate')})",
    ]


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ('keep = ["TE"]', "keep ="),
        ('vector = "1,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0"', "vector ="),
        ('keep = ["TE", "OUT01"]\nweights = { OUT01 = 0.5 }', "weights ="),
        ("[chop.weights]\nOUT00 = 0.5", "[chop.weights]"),
    ],
)
def test_blocks_are_told_with_the_key_that_chooses_them(built: World, lines: str, place: str):
    edit(built, 'keep = ["TE", "OUT01"]', lines)
    (reason,) = reasons(built, "chop:ember")
    assert reason.startswith("chop.keep: ") and reason.endswith(f" ({MANIFEST}:{line_of(built, place)})")


def test_a_variant_has_the_line_of_the_variant_and_else_that_of_its_project(built: World):
    edit(built, "[chop]", "[variants.mini.resize]\nthr = -2.7\n\n[chop]")
    assert built.doit().built == {"resize:ember@mini", "chop:ember@mini"}
    edit(built, "thr = -2.7", "thr = -2.9")
    edit(built, "[chop]\nkeep", "[chop]\nallow_empty = true\nkeep")
    thr, empty = line_of(built, "thr = -2.9"), line_of(built, "allow_empty")
    assert reasons(built, "resize:ember@mini") == [f"resize.thr: -2.7 -> -2.9 ({MANIFEST}:{thr})"]
    assert reasons(built, "chop:ember@mini") == [f"chop.allow_empty: unset -> true ({MANIFEST}:{empty})"]


def test_a_title_is_named_too(built: World):
    built.manifest(title='title = "Ember, the fox"')
    assert reasons(built, "chop:ember") == [f'project.title: unset -> "Ember, the fox" ({MANIFEST}:4)']


def test_another_step_for_the_resize_is_the_input_that_it_chooses(built: World):
    edit(built, "fro_ckpt = 1", "fro_ckpt = 1\nstep = 2")
    (reason,) = reasons(built, "spectrum:ember")
    assert reason == f"weights: train:ember weights -> train:ember step/2 ({MANIFEST}:{line_of(built, 'step = 2')})"


# data


def test_images_and_captions_are_told_by_name(built: World):
    images = "projects/ember/images"
    built.picture(f"{images}/1.png", seed=9)
    built.write(f"{images}/2.txt", "ember, blue, sit, 2")
    built.picture(f"{images}/9.png", seed=10)
    (built.root / images / "3.png").unlink()
    assert reasons(built, "dataset:ember", "chop:ember") == [
        f"{images}/1.png: content",
        f"{images}/2.txt: content",
        f"{images}/9.png: added",
        f"{images}/3.png: removed",
        f"{images}/3.txt: removed",
    ]
    assert reasons(built, "latents:ember") == [
        f"{images}/1.png: content",
        f"{images}/9.png: added",
        f"{images}/3.png: removed",
    ]


def test_all_files_are_told_not_only_the_first(built: World):
    for number in range(20, 40):
        built.picture(f"projects/ember/images/{number}.png", seed=number)
    assert len(reasons(built, "dataset:ember")) == 20


def test_repeats_are_told_with_the_subset_that_sets_them(built: World):
    built.picture("projects/ember/more/1.png", seed=20)
    edit(built, "\n[recipe]", '[[dataset.subset]]\nimage_dir = "./more/"\nnum_repeats = 2\n\n[recipe]')
    assert built.doit("dataset:ember").code == 0
    edit(built, "num_repeats = 2", "num_repeats = 5")
    assert reasons(built, "dataset:ember") == [
        f"dataset.subset.num_repeats: projects/ember/more 2 -> 5 ({MANIFEST}:{line_of(built, 'num_repeats')})"
    ]


def test_what_a_folder_has_otherwise_is_told_where_it_stands(built: World):
    before = (built.root / MANIFEST).read_text()
    edit(built, "[[dataset.subset]]\n", '[[dataset.subset]]\ncaption_prefix = "a fox"\nkeep_tokens = 1\n')
    assert reasons(built, "dataset:ember") == [
        f'dataset.subset.caption_prefix: projects/ember/images unset -> "a fox" '
        f"({MANIFEST}:{line_of(built, 'caption_prefix')})"
    ], "keep_tokens is the data set's own"
    built.write(MANIFEST, before)


# base, stage


def test_a_part_of_a_base_is_named_and_another_base_by_the_key_that_names_it(built: World):
    built.write("lorabuild.toml", '# ours\n\n[bases.mine]\nfile = "models/mine"\n')
    shutil.copytree(built.root / ".lorabuild/base/tiny", built.root / "models/mine")
    edit(built, 'base = "tiny"', 'base = "mine"')
    assert built.doit().built == set(), "the same content under another name"

    damage(built.root / "models/mine/unet/diffusion_pytorch_model.safetensors")
    assert reasons(built, "norms:mine", "chop:ember") == ["base mine: unet: content (lorabuild.toml:4)"]
    assert reasons(built, "train:ember", "chop:ember") == [
        f'project.base: "tiny" -> "mine" ({MANIFEST}:{line_of(built, "base =")})'
    ]
    assert link(built, "latents:ember")["event"] == "fresh", "the VAE is what it was"


def test_a_raised_stage_version_is_told(built: World, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(STAGES, "resize", replace(STAGES["resize"], version=99))
    monkeypatch.chdir(built.root)
    assert main(["chop:ember"]) == 0
    said = capsys.readouterr().out
    assert "chop:ember may be stale because of resize:ember\n" in said
    assert f"    stage version: {STAGES['chop'].version} -> 99" in said


# what is kept


def test_what_is_not_as_it_was_left_is_told(built: World):
    chopped, trained = (f"build/ember/{name}.safetensors" for name in ("ember-chopped", "ember"))
    (built.root / chopped).unlink()
    (built.root / trained).write_bytes(b"junk")
    damage(blob(built, "spectrum", "spectrum"))
    assert reasons(built, "train:ember") == [f"{trained}: changed on disk"]
    assert reasons(built, "spectrum:ember") == ["spectrum: blob damaged or gone"]
    damaged = blob(built, "spectrum", "spectrum")
    assert damaged.exists(), "who only asks does not clear away"
    built.doit("spectrum:ember")
    assert reasons(built, "chop:ember") == [f"{chopped}: missing"]


def test_what_was_never_built_and_what_has_failed_is_told(built: World):
    built.project("other", seed=9)
    built.write("projects/other/images/1.png", b"not an image")
    assert reasons(built, "dataset:other") == ["never built"]
    assert link(built, "dataset:other")["failed"] is None
    built.doit("--continue")
    found = link(built, "dataset:other", "chop:other")
    assert [reason["text"] for reason in found["reasons"]] == ["never built"]
    assert "projects/other/images/1.png: truncated" in found["failed"]["why"][0]
    assert (built.root / found["failed"]["log"]).is_file()
    assert (built.root / found["failed"]["run"]).resolve() == built.latest()
    said = why(built, "chop:other")
    assert "failed before, " in said and "log: .lorabuild/logs/dataset-other.log" in said

    built.picture("projects/other/images/1.png", 1)
    assert built.doit("dataset:other").code == 0
    assert link(built, "dataset:other")["failed"] is None, "it has not failed since"


def test_what_cannot_even_be_looked_at_is_said(built: World):
    shutil.rmtree(built.root / "projects/ember/images")
    said = why(built, "latents:ember")
    assert said.startswith("latents:ember cannot be built because of dataset:ember\ndataset:ember cannot be built:\n")
    assert "projects/ember/images: no such folder" in said


# fresh


def test_a_fresh_job_says_when_and_why_it_was_built(built: World):
    built.manifest(keep='["TE"]')
    built.doit()
    said = why(built, "chop:ember")
    assert said.startswith("chop:ember is fresh\n    built ") and "chop.keep: OUT01 1 -> 0 (.lorabuild/runs/" in said
    (built.root / "build/ember/ember-chopped.safetensors").unlink()
    built.doit()
    assert "chop.keep: OUT01 1 -> 0" in why(built, "chop:ember"), "why it was built, not that it was restored"
    shutil.rmtree(built.root / ".lorabuild/runs")
    assert "do not tell" in why(built, "chop:ember")


def test_what_was_built_anew_since_is_a_cause_with_a_cause_of_its_own(built: World):
    built.manifest(seed=8)
    assert built.doit("train:ember").code == 0
    said = why(built, "spectrum:ember")
    assert said.startswith("spectrum:ember is stale because of train:ember\n    weights of train:ember: content\n")
    assert "train:ember is fresh\n    built " in said and "recipe.seed: 7 -> 8" in said


# targets


def test_a_project_is_each_of_its_stale_jobs(built: World):
    built.manifest(keep='["TE"]', title='title = "x"')
    said = [line for line in why(built, "ember").splitlines() if not line.startswith(" ")]
    assert said == ["chop:ember is stale:", "resize:ember is stale:", "train:ember is stale:"]
    assert why(built, "dataset").startswith("dataset:ember is fresh\n")


def test_a_target_that_is_none_is_exit_2_with_a_near_miss(built: World):
    result = built.lorabuild("why", "chop:embr")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith('chop:embr: no such target (did you mean "chop:ember"?)')
    assert built.lorabuild("why").code == 2


# parts


def test_run_logs_are_read_the_newest_first_and_damaged_lines_passed_over(tmp_path: Path):
    def log(name: str, *lines: str) -> None:
        (tmp_path / f"{name}.000001Z.jsonl").write_text("\n".join(lines))

    def one(event: str, why: str) -> str:
        return json.dumps({"job": "chop:ember", "event": event, "seconds": 1, "why": [why]})

    log("2026-01-01T10-00-00", one("built", "old"), one("restored", "later"))
    log("2026-01-02T10-00-00", one("failed", "disk full"), '{"job": "chop:em', "[]", "{}")
    pasts = history(tmp_path)["chop:ember"]
    assert [past.why[0] for past in pasts] == ["disk full", "later", "old"]
    assert pasts[0].when == "2026-01-02 10:00:00 UTC"
    assert failure(pasts) is pasts[0] and last_success(pasts) is pasts[2]
    assert (failure(pasts[1:]), failure([]), last_success(pasts[:1])) == (None, None, None)


def test_a_log_from_before_the_failure_is_not_shown(tmp_path: Path):
    past = Past("chop:ember", "failed", 1.0, (), "", tmp_path / "2099-01-01T10-00-00.000001Z.jsonl")
    assert job_log(tmp_path, past) is None
    (tmp_path / "chop-ember.log").touch()
    assert job_log(tmp_path, past) is None
    assert job_log(tmp_path, replace(past, run=tmp_path / "2020-01-01T10-00-00.000001Z.jsonl")) is not None


def test_files_that_only_have_other_names_are_no_reason_beside_a_real_one():
    def side(seed: int, **files: str) -> dict[str, Any]:
        return {"version": 1, "params": {"recipe": {"seed": seed}}, "inputs": {"images": files}}

    assert changes(side(1, a="1"), side(1, b="1")) == [RENAMED]
    assert [reason.text for reason in changes(side(1, a="1"), side(2, b="1"))] == ["recipe.seed: 1 -> 2"]


def test_small_numbers_read_like_learning_rates():
    old, new = ({"version": 1, "params": {"recipe": {"unet_lr": rate}}, "inputs": {}} for rate in (3e-4, 1.5e-5))
    assert changes(old, new)[0].text == "recipe.unet_lr: 3e-4 -> 1.5e-5"


def test_the_file_that_a_project_starts_from_is_told_by_its_name():
    old, same, other = (
        {"version": 1, "params": {}, "inputs": {"weights": digest}, "told": {"from": {"weights": ["file", name]}}}
        for digest, name in (("1", "a.safetensors"), ("2", "a.safetensors"), ("2", "b.safetensors"))
    )
    (content,), (named,) = changes(old, same), changes(old, other)
    assert (content.text, content.inner) == ("a.safetensors: content", ("project.source",))
    assert (named.kind, named.text) == ("key", 'project.source: "a.safetensors" -> "b.safetensors"')


def test_settings_of_a_base_stand_in_the_file_of_this_machine_if_it_has_them(tmp_path: Path):
    files = Files(tmp_path)
    files.write("lorabuild.toml", '[bases.mine]\nfile = "a"\n[bases.other]\nfile = "b"\n')
    files.write("lorabuild.local.toml", '\n\n[bases.mine]\nfile = "c"\n')
    files.project()
    whence = Whence(load(tmp_path))
    assert whence.base("mine") == ("lorabuild.local.toml", 4)
    assert whence.base("other") == ("lorabuild.toml", 4)
    assert whence.base("tiny") is None, "embedded: nobody wrote it"
    assert whence.key("mine", "base.file") == ("lorabuild.local.toml", 4)
    assert whence.key("ember", "base.prediction_type") is None
    files.write(MANIFEST, "[project\n")
    assert Whence(whence._repository).key("ember", "project.base") is None, "broken since: no place, no traceback"
