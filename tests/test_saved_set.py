"""Which snapshots are wanted changes no training; what is wanted and missing costs one, and `plan` says so before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from standin import Stage

from lorabuild.training.updates import surely_wanted_steps, wanted_steps

MANIFEST = "projects/p0/lora.toml"
JOB = "train:p0"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A project of three pictures, two a batch: two batches an epoch, four updates. Built."""
    found = Stage(tmp_path_factory.mktemp("saved"))
    for number in (2, 3):
        found.world.picture(f"projects/p0/images/{number}.png", number)
    said = found.doit()
    assert said.code == 0, said.out + said.err
    return found


@pytest.fixture
def stage(template: Stage, tmp_path: Path) -> Stage:
    return template.copy(tmp_path / "copy")


def edit(stage: Stage, old: str, new: str) -> None:
    path = stage.world.root / MANIFEST
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def planned(stage: Stage, *targets: str) -> dict[str, Any]:
    """job -> its line of the plan."""
    result = stage.world.lorabuild("plan", "--json", *targets, **stage.env)
    assert result.code in (0, 1), result.err
    return {job["job"]: job for job in json.loads(result.out)["jobs"]}


def files(stage: Stage) -> list[int]:
    """The steps whose snapshots stand in build/."""
    return sorted(int(path.stem[-8:]) for path in (stage.world.root / "build/p0").glob("p0-step*"))


def drawn_with(stage: Stage) -> list[str]:
    """The snapshots among the inputs of the last drawing."""
    found = [json.loads(path.read_text()) for path in (stage.world.root / ".lorabuild/store/record").rglob("*.json")]
    last = max((one for one in found if one["stage"] == "samples"), key=lambda one: len(one["inputs"]))
    return sorted(role for role in last["inputs"] if role.startswith("step"))


def test_snapshots_by_epochs_are_drawn_as_those_by_steps_are(stage: Stage):
    edit(stage, "save_every_n_steps = 2", "save_every_n_epochs = 1")
    edit(stage, "max_train_steps = 4", "max_train_epochs = 3")
    stage.world.write("projects/p0/prompts.txt", "ember --s 1")
    with (stage.world.root / MANIFEST).open("a") as manifest:
        manifest.write('\n[samples]\nprompts = "prompts.txt"\n')
    first = planned(stage, "samples:p0")["samples:p0"]
    assert first["event"] == "built"
    assert first["pictures"] == {"prompts": 1, "columns": 6, "blocks": 0, "exact": True, "total": 6}
    built = stage.doit("samples:p0")
    assert built.code == 0, built.out + built.err
    assert drawn_with(stage) == ["step/2", "step/4"], "the end of the third epoch is what was trained"
    assert stage.doit("samples:p0").ran == {}
    assert planned(stage, "samples:p0") == {}
    edit(stage, 'keep = ["TE", "OUT01"]', 'keep = ["OUT01"]')
    then = planned(stage, "samples:p0")["samples:p0"]
    assert then["event"] == "maybe", "a chop that is not made yet is all that is unknown"
    assert set(stage.doit("samples:p0").built) == {"chop:p0", "samples:p0"}
    edit(stage, "save_every_n_epochs = 1", "save_every_n_epochs = 2")
    assert stage.doit("samples:p0").built == {"samples:p0"}, "one picture less, and nothing is trained for it"
    stage.world.picture("projects/p0/images/4.png", 4)
    assert planned(stage, "samples:p0")["samples:p0"]["event"] == "maybe", "no snapshot is said to be gone"
    (stage.world.root / "projects/p0/images/4.png").unlink()
    edit(stage, 'prompts = "prompts.txt"', 'prompts = "prompts.txt"\nblocks_ablation = true')
    said = stage.world.lorabuild("plan", "samples:p0", **stage.env).out
    assert "samples.blocks_ablation: unset -> true" in said
    assert "1 prompt × (5 files + 2 × 1 blocks) = 7 pictures" in said, "the stand-in's LoRA has but one block"
    stage.world.picture("projects/p0/images/4.png", 4)
    unknown = planned(stage, "samples:p0")["samples:p0"]["pictures"]
    assert unknown == {"prompts": 1, "columns": 4, "blocks": 22, "exact": False, "total": 48}, "nothing is made yet"


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        ("save_every_n_steps = 4", [4]),
        ('save_every_n_steps = 2\nkeep = "last 1"', [4]),
        ("save_every_n_steps = 2\nsave_last_n_steps = 1", [4]),
        ("save_every_n_epochs = 1", [2]),
        ("", []),
    ],
)
def test_to_want_less_trains_nothing_and_clears_build(stage: Stage, policy: str, steps: list[int]):
    assert files(stage) == [2, 4]
    edit(stage, "save_every_n_steps = 2", policy)
    assert planned(stage) == {}
    result = stage.doit()
    assert (result.code, result.built) == (0, set()), result.out
    assert files(stage) == steps
    edit(stage, policy or "train_batch_size = 2", f"{'' if policy else 'train_batch_size = 2'}\nsave_every_n_steps = 2")
    assert planned(stage)[JOB]["event"] == "restored", "the store has them until gc"
    assert stage.doit().built == set()
    assert files(stage) == [2, 4]


def test_what_shapes_no_result_trains_nothing(stage: Stage):
    edit(stage, "save_every_n_steps = 2", 'save_every_n_steps = 2\ngradient_checkpointing = true\nkeep = "last 9"')
    assert planned(stage) == {} and stage.doit().built == set() and files(stage) == [2, 4]


def test_a_wanted_snapshot_that_is_missing_is_told_before_it_costs_a_training(stage: Stage):
    edit(stage, "save_every_n_steps = 2", "save_every_n_steps = 1")
    plan = planned(stage)
    assert plan[JOB]["event"] == "built"
    assert plan[JOB]["why"] == ["step/1: wanted, but never saved", "step/3: wanted, but never saved"]
    counted = plan[JOB]["training"]
    assert (counted["snapshots"], counted["missing"], counted["trained"]) == (4, [1, 3], 3)
    assert counted["notes"] == [
        "snapshots 1 and 3 were not saved: it is trained again from the start to step 3; the 2 that are there are kept, "
        "and so are the weights"
    ]
    assert counted["notes"][0] in stage.world.lorabuild("plan", **stage.env).out
    records = {path: path.read_bytes() for path in (stage.world.root / ".lorabuild/store/record").rglob("*.json")}
    result = stage.doit()
    assert result.built == {JOB}
    assert files(stage) == [1, 2, 3, 4]
    assert {path: path.read_bytes() for path in records} == records, "what was on record is kept"


def test_an_epoch_is_counted_in_batches_of_the_data_set(stage: Stage):
    edit(stage, "save_every_n_steps = 2", "save_every_n_epochs = 1")
    edit(stage, "max_train_steps = 4", "max_train_epochs = 3")
    training = planned(stage)[JOB]["training"]
    assert (training["updates"], training["snapshots"], training["exact"]) == (6, 2, True)
    assert stage.doit().built >= {JOB}
    assert files(stage) == [2, 4]
    stage.world.picture("projects/p0/images/4.png", 4)
    stage.world.picture("projects/p0/images/5.png", 5)
    training = planned(stage)[JOB]["training"]
    assert (training["updates"], training["missing"], training["exact"]) == (9, [3, 6], False)
    assert JOB in stage.doit().built
    assert files(stage) == [3, 6], "of another key: the old ones are no longer wanted"
    assert planned(stage) == {}


def test_another_length_is_another_training_and_init_is_named(stage: Stage):
    edit(stage, "max_train_steps = 4", "max_train_steps = 6")
    job = planned(stage)[JOB]
    assert job["why"] == ["recipe.max_train_steps: 4 -> 6"]
    assert job["training"]["notes"] == [
        "another length is another training, from the start; to go on from the finished one: "
        'init = "p0" in a project of its own, or init = a copy of build/p0/p0.safetensors'
    ]


def test_a_disk_without_room_for_the_snapshots_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    from types import SimpleNamespace

    from lorabuild.verbs import plan

    edit(stage, "save_every_n_steps = 2", "save_every_n_steps = 1")
    monkeypatch.chdir(stage.world.root)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    assert plan.main(["--json"]) == 1
    (job,) = (job for job in json.loads(capsys.readouterr().out)["jobs"] if job["job"] == JOB)
    size = job["training"]["snapshot_bytes"]
    assert job["training"]["notes"][-1] == (
        f"the disk has 0.0 kB free, and the snapshots alone take {4 * size / 1000:.1f} kB"
    )


def test_a_pulled_job_is_not_stale_for_repeats_that_it_does_not_read(stage: Stage):
    """A pull knows the images by one digest alone, not by file."""
    import sqlite3

    with sqlite3.connect(stage.world.root / ".lorabuild/state.sqlite") as state:
        ((text,),) = state.execute("select components from job where name = 'latents:p0'").fetchall()
        old = json.loads(text)
        old["inputs"]["images"] = old["told"]["digests"]["images"]
        old["told"] = {"from": {}, "repeats": {}}
        state.execute("update job set components = ? where name = 'latents:p0'", (json.dumps(old),))
    edit(stage, 'image_dir = "images"', 'image_dir = "images"\nnum_repeats = 3')
    job = planned(stage)["latents:p0"]
    assert (job["event"], job["why"]) == ("maybe", [])


def test_what_has_no_effect_or_says_it_twice_is_one_line(stage: Stage):
    for lines, said in {
        'keep = "last 1"\nsave_last_n_steps = 2\nsave_every_n_steps = 2': "recipe.keep: takes the place of save_last_n_steps",
        "save_last_n_epochs = 2\nsave_every_n_steps = 2": "recipe.save_last_n_epochs: has no effect without save_every_n_epochs",
        'keep = "last 1"': "recipe.keep: has no effect without save_every_n_steps or save_every_n_epochs",
        'keep = "every"\nsave_every_n_steps = 2': 'recipe.keep: expected "last 3" (saves), "every 20" (steps)',
        "max_train_epochs = 2": "recipe.max_train_epochs: takes the place of max_train_steps: leave one of them out",
        'network_weights = "p1"': "recipe.network_weights: expected a file; `init` takes projects, too",
        "dim_from_weights = true": "recipe.dim_from_weights: has no effect without init",
    }.items():
        before = (stage.world.root / MANIFEST).read_text()
        edit(stage, "save_every_n_steps = 2", lines)
        result = stage.world.lorabuild("plan", **stage.env)
        assert (result.code, result.err.count("\n")) == (3, 1) and said in result.err, result.err
        (stage.world.root / MANIFEST).write_text(before)


@pytest.mark.parametrize(
    ("saved", "steps"),
    [
        ({"save_every_n_steps": 2}, [2, 4]),
        ({"save_every_n_steps": 2, "save_every_n_epochs": 1}, [2, 4]),
        ({"save_every_n_steps": 2, "save_every_n_epochs": 1, "keep": "every 4"}, [4]),
        ({"save_every_n_steps": 2, "save_every_n_epochs": 1, "keep": "last 2"}, []),
        ({"save_every_n_epochs": 1}, []),
    ],
)
def test_what_does_not_hang_on_the_data_set_is_known_without_it(saved: dict[str, Any], steps: list[int]):
    """`samples` draws those snapshots: both guides' recipes on `tiny` save by steps, and pony's by epochs, too."""
    recipe = {"max_train_steps": 4, "gradient_accumulation_steps": 1}
    saved = {"resized": [], **saved}
    assert surely_wanted_steps(recipe, saved) == steps
    for batches in (1, 2, 3):
        assert set(steps) <= set(wanted_steps(recipe, saved, batches))
    assert surely_wanted_steps({"max_train_epochs": 2, "gradient_accumulation_steps": 1}, saved) == []
