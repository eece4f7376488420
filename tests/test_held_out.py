"""The held-out loss of files: the training's own for base and trained, and how much of the gain the others keep."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from drawn import draw, files_of, page_of
from manifest_world import Files
from test_samples import NAMES, RECIPE, SAMPLES, TABLE, project
from tiny_base import dataset, outputs, tiny_base, tiny_digests, tiny_folder, training
from world import World

from lorabuild.hashing import digest_file, digest_json
from lorabuild.header import read_header
from lorabuild.lora.chopping import Blocks, chopped
from lorabuild.manifest import load
from lorabuild.manifest.whence import Whence
from lorabuild.names import BLOCKS
from lorabuild.nn.applied import applied
from lorabuild.nn.held_out import Yardstick
from lorabuild.reasons import changes
from lorabuild.sampling.held_out import kept, lines, read
from lorabuild.stage import Artifact, Job
from lorabuild.stages.train import STAGE as TRAIN
from lorabuild.workspace import Workspace
from lorabuild.writing import write_body

ON = TABLE | {"held_out": True}
MEASURED = {"max_train_steps": 2, "text_encoder_lr": 1e-3, "train_batch_size": 3, "gradient_accumulation_steps": 1}


# what a file keeps


def test_what_is_kept_is_the_share_of_the_trainings_gain():
    losses = {"base": 0.4, "trained": 0.3, "resized": 0.31, "chopped": 0.42, "a/base": 0.5, "a/trained": 0.4}
    found = kept(
        losses | {"a/resized": 0.45},
        dict.fromkeys(losses, "") | dict.fromkeys(("a/base", "a/trained", "a/resized"), "a"),
    )
    assert found["base"] == {"loss": 0.4} and found["trained"] == {"loss": 0.3, "gain": 0.25}
    assert found["resized"] == {"loss": 0.31, "gain": 0.225, "kept": 0.9}
    assert found["chopped"]["kept"] == -0.2, "worse than the base"
    assert found["a/trained"]["gain"] == 0.2 and found["a/resized"]["kept"] == 0.5, "of its own training"


def test_where_nothing_was_gained_nothing_is_kept():
    found = kept({"base": 0.4, "trained": 0.5, "resized": 0.45}, dict.fromkeys(("base", "trained", "resized"), ""))
    assert found["resized"] == {"loss": 0.45, "gain": -0.125, "kept": None}
    found["base"] |= {"samples": 2, "unseen": False}
    assert lines("ember", found) == [
        "ember: held-out loss 0.4000 (2 samples of trained pictures), trained 0.5000 (+25.0 %); resized 0.4500"
    ]


def test_a_project_and_each_variant_have_a_line():
    told: dict[str, dict[str, Any]] = {
        "base": {"loss": 0.2188, "samples": 3, "unseen": True},
        "trained": {"loss": 0.1595, "gain": 0.271},
        "resized": {"loss": 0.1619, "gain": 0.26, "kept": 0.9595},
        "chopped": {"loss": 0.1767, "gain": 0.192, "kept": 0.71},
        "mini/resized": {"loss": 0.17, "gain": 0.223, "kept": 0.823},
    }
    assert lines("ember", told) == [
        "ember: held-out loss 0.2188 (3 unseen pictures), trained 0.1595 (-27.1 %); resized keeps 96 %, chopped 71 %",
        "ember@mini: resized keeps 82 %",
    ]


def test_a_samples_json_without_it_or_that_is_none_tells_nothing(tmp_path: Path):
    path = tmp_path / "samples.json"
    assert read(path) is None
    for text in ('{"pictures": []}', "junk", "[]", '{"held_out": 3}', '{"held_out": {"base": {}}}'):
        path.write_text(text)
        assert read(path) is None, text
    path.write_text('{"held_out": {"base": {"loss": 1}}}')
    assert read(path) == {"base": {"loss": 1}}


# the job


def test_without_it_the_job_is_what_it_was(tmp_path: Path):
    (job,) = SAMPLES.jobs(project())
    told = {role: repr(item) for role, item in sorted(job.inputs.items())}
    assert digest_json([job.params, told, job.outputs]) == "79098236c406e704e448d7650307cedd"
    files, begin = Files(tmp_path), '[samples]\nprompts = "p.txt"\n'
    assert files.settings(begin + "held_out = false\n") == files.settings(begin)


def test_with_it_the_job_reads_the_data_and_what_shapes_the_loss():
    recipe = {**project().projects["ember"].settings["recipe"], "validation_split": 0.2, "save_precision": "fp16"}
    (job,) = SAMPLES.jobs(project(samples=ON, recipe=recipe))
    assert job.inputs["dataset"] == Artifact("dataset:ember", "dataset.json")
    assert job.inputs["latents"] == Artifact("latents:ember", "latents")
    assert job.params["recipe"] == RECIPE
    measured = {**RECIPE, "max_train_steps": 4, "validation_split": 0.2}
    assert job.params["held_out"] == {"recipe": measured, "learns_text": False}


def test_a_variant_that_trains_is_measured_as_its_own_training_is():
    found = project(samples=ON)
    ember = found.projects["ember"]
    other = {**ember.settings["recipe"], "seed": 8, "text_encoder_lr": 1e-4}
    ember.variants = {"mini": {**ember.settings, "recipe": other}, "small": ember.settings}
    (job,) = SAMPLES.jobs(found)
    assert job.params["held_out"]["trainings"] == {
        "mini": {
            "recipe": {**RECIPE, "seed": 8, "max_train_steps": 4},
            "learns_text": True,
            "files": ["mini/chopped", "mini/resized", "mini/trained"],
        }
    }


def test_the_reasons_are_in_the_users_words():
    def side(recipe: dict[str, Any], samples: dict[str, Any] = ON) -> dict[str, Any]:
        (job,) = SAMPLES.jobs(project(samples=samples, recipe=project().projects["ember"].settings["recipe"] | recipe))
        return {"version": 2, "params": job.params, "inputs": {}}

    def told(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        return [reason.text for reason in changes(old, new)]

    assert told(side({}, TABLE), side({})) == ["samples.held_out: unset -> true"]
    assert told(side({}), side({}, TABLE)) == ["samples.held_out: true -> unset"]
    assert told(side({}), side({"validation_split": 0.2})) == ["held_out.recipe: validation_split unset -> 0.2"]


def test_a_recipe_that_only_the_loss_reads_has_its_line(tmp_path: Path):
    files = Files(tmp_path)
    files.project("[recipe]\nvalidation_split = 0.2\n")
    whence = Whence(load(tmp_path))
    assert whence.key("ember", "held_out.recipe", ("validation_split",)) == ("projects/ember/lora.toml", 6)


def test_a_lora_that_is_not_trained_here_has_none(tmp_path: Path):
    files = Files(tmp_path)
    begin = '[project]\nbase = "tiny"\nsource = "a.safetensors"\n[samples]\nprompts = "p.txt"\n'
    files.write("projects/ember/lora.toml", begin + "held_out = true\n")
    (problem,) = files.mistakes()
    assert str(problem).startswith("projects/ember/lora.toml:6: samples.held_out: a LoRA that is not trained here")
    assert "held_out" not in files.settings(begin + "held_out = false\n")["samples"]


# the stage


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two updates of U-Net and text encoders, saved as they are; and what runs the stage on these files."""
    folder = tmp_path_factory.mktemp("measured")
    job, workspace = training(folder, recipe=MEASURED | {"save_precision": "fp32"})
    TRAIN.run(job, workspace, lambda done, total, text: None)
    records = [json.loads(line) for line in outputs(folder)["log"].splitlines()]
    log = {record["when"]: record["loss"] for record in records if record["event"] == "held_out"}
    whole = folder / "staging/weights"
    prompts = folder / "prompts.txt"
    prompts.write_text("ember --w 64 --h 64 --s 1 --d 3 --l 1\n")
    found = project(samples=ON, recipe=job.params["recipe"])
    (samples,) = SAMPLES.jobs(found)

    def chop(name: str, *blocks: str) -> Path:
        tensors = read_header(whole).tensors
        weights = {block: float(block in blocks) for block in BLOCKS}
        write_body(folder / name, list(chopped(whole, tensors, Blocks.read(tensors), weights)))
        return folder / name

    def run(**files: Path) -> SimpleNamespace:
        inputs = {"prompts": prompts, "dataset": folder / "dataset.json", "latents": folder / "latents"}
        paths = {**inputs, **{name: tiny_folder() for name in NAMES}, "trained": whole, **files}
        digests = {role: digest_file(paths[role]) for role in (*inputs, "trained", *files)} | tiny_digests()
        workspace = Workspace(folder / "samples", folder, folder / "pieces", paths, digests)
        job = Job(samples.name, samples.params, {}, samples.outputs, options={"prompts": "prompts.txt"})
        SAMPLES.run(job, workspace, lambda *told: None)
        told = json.loads((folder / "samples/samples.json").read_bytes())
        return SimpleNamespace(held_out=told["held_out"], notes=workspace.notes)

    return SimpleNamespace(run=run, chop=chop, log=log, whole=whole)


@pytest.mark.slow
def test_base_and_trained_have_the_trainings_own_losses_and_one_file_is_measured_anew(measured: Any):
    first = measured.run(chopped=measured.chop("one", "OUT01", "TE1", "TE2"))
    assert first.held_out["base"] == {"loss": measured.log["before"], "samples": 9, "unseen": False}
    assert first.held_out["trained"]["loss"] == measured.log["after"] < measured.log["before"]
    assert 0.0 < first.held_out["chopped"]["kept"] < 0.99
    assert first.notes["measured"] == 3
    edited = measured.run(chopped=measured.chop("two", "OUT01"))
    assert edited.notes["measured"] == 1
    assert edited.held_out["trained"] == first.held_out["trained"]
    assert edited.held_out["chopped"]["loss"] != first.held_out["chopped"]["loss"], (
        "captions are encoded with each file"
    )
    all_of_it, nothing = measured.chop("all", *BLOCKS), measured.chop("none")
    ends = measured.run(resized=all_of_it, chopped=nothing)
    assert ends.held_out["resized"] == {**first.held_out["trained"], "kept": 1.0}
    assert ends.held_out["chopped"] == {"loss": measured.log["before"], "gain": 0.0, "kept": 0.0}
    assert measured.run(resized=all_of_it, chopped=nothing).notes["measured"] == 0


def test_so_it_is_of_pictures_held_back_with_frozen_text_encoders(tmp_path: Path):
    held_back = {"text_encoder_lr": 0.0, "validation_split": 0.5, "save_precision": "fp32"}
    job, workspace = training(tmp_path, recipe=MEASURED | held_back)
    TRAIN.run(job, workspace, lambda done, total, text: None)
    records = [json.loads(line) for line in outputs(tmp_path)["log"].splitlines()]
    log = [record["loss"] for record in records if record["event"] == "held_out"]
    yardstick = Yardstick.of(dataset(), tmp_path / "latents", job.params["recipe"], "epsilon", learns_text=False)
    assert yardstick.unseen
    base = tiny_base()
    before = yardstick.loss(base, "cpu")
    with applied(base, tmp_path / "staging/weights"):
        after = yardstick.loss(base, "cpu")
    assert [float(f"{loss:.6g}") for loss in (before, after)] == [log[0], log[-1]]


# by doit


@pytest.mark.slow
def test_a_build_and_status_say_what_each_file_keeps(built: World):
    path = built.root / "projects/ember/lora.toml"
    samples = '[samples]\nprompts = "prompts.txt"\nsample_every_n_steps = 100\nheld_out = true\n'
    built.write("projects/ember/prompts.txt", "ember --s 1\n")

    def manifest(**changes: Any) -> None:
        built.manifest(title=samples, thr=-20, **changes)
        path.write_text(
            path.read_text().replace("seed = 7", 'seed = 7\nmixed_precision = "no"\nvalidation_split = 0.5')
        )

    manifest()
    result = built.doit("samples:ember")
    assert result.code == 0, result.out + result.err
    told = json.loads((built.root / "build/ember/samples.json").read_bytes())["held_out"]
    log = [json.loads(line) for line in (built.root / "build/ember/train.jsonl").read_text().splitlines()]
    assert told["base"] == {"loss": log[0]["loss"], "samples": 2, "unseen": True}
    assert told["trained"]["loss"] == pytest.approx(log[-1]["loss"], rel=1e-3), "but for the rounding of its file"
    assert told["resized"]["kept"] == pytest.approx(1.0, abs=0.01), "nothing falls below that threshold"
    (line,) = lines("ember", told)
    assert line in result.out.splitlines()
    status = built.lorabuild("status").out.splitlines()
    assert status[-1] == line
    assert json.loads(built.lorabuild("status", "--json").out)["projects"]["ember"]["held_out"] == told
    manifest(keep='["OUT*"]')
    assert f"{line} (measured before; the samples are stale)" in built.lorabuild("status").out
    again = built.lorabuild("build", "samples:ember", "--json")
    done = {job["job"]: job for job in json.loads(again.out)["jobs"]}
    assert set(done) == {"chop:ember", "samples:ember"}
    assert built.log()[-1]["measured"] == 1
    now = done["samples:ember"]["held_out"]
    assert now["chopped"] != told["chopped"] and now["resized"] == told["resized"]
    assert "held_out" not in done["chop:ember"]
    assert "nothing" in built.doit("samples:ember").out
    assert "Held-out loss" in page_after(built)


def page_after(built: World) -> str:
    assert built.lorabuild("report").code == 0
    return (built.root / "build/report/ember.html").read_text()


# the report


def test_the_contact_sheet_has_a_table_of_it(tmp_path: Path):
    path = draw(tmp_path)
    assert "Held-out loss" not in page_of(files_of(tmp_path), tmp_path / "report").read_text()
    held_out = {
        "base": {"loss": 0.2188, "samples": 3, "unseen": True},
        "trained": {"loss": 0.1595, "gain": 0.271},
        "resized": {"loss": 0.1619, "gain": 0.26, "kept": 0.9595},
        "mini/chopped": {"loss": 0.3, "gain": -0.371, "kept": None},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"held_out": held_out}))
    page = page_of(files_of(tmp_path), tmp_path / "report").read_text()
    table = page[page.index("Held-out loss") :]
    cells = re.sub(r"<[^>]+>", " ", table[table.index("<tbody>") : table.index("</tbody>")]).split()
    assert " ".join(cells) == (
        "base (3 unseen pictures) 0.2188 trained 0.1595 27.1 % resized 0.1619 26.0 % 96 % @mini chopped 0.3 -37.1 %"
    )
