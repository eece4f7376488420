"""[matrix] makes a variant of each combination, by a name that stays, and what they have in common is one job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifest_world import GOOD, Files

from lorabuild.manifest import Project, load
from lorabuild.manifest.matrix import MOST, point_name, text
from lorabuild.manifest.whence import Whence
from lorabuild.names import name_problem
from lorabuild.session import jobs_of
from lorabuild.stage import Artifact, Job
from lorabuild.state import State

BEFORE = "[recipe]\nunet_lr = 3e-4\n[resize]\nthr = -3.55\n[chop]\nkeep = ['TE']\n"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def jobs(files: Files, matrix: str = "", before: str = BEFORE) -> dict[str, Job]:
    files.write("projects/ember/lora.toml", GOOD + before + (f"[matrix]\n{matrix}" if matrix else ""))
    found = jobs_of(load(files.root))
    return {name: job for name, job in found.items() if job.project and job.stage not in ("dataset", "latents")}


def own(found: dict[str, Job]) -> set[str]:
    return {name for name in found if "@" in name}


def takes(job: Job) -> set[str]:
    return {item.job for item in job.inputs.values() if isinstance(item, Artifact)}


# names


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ({"resize.thr": -3.2}, "thr-3.2"),
        ({"resize.thr": 3.2}, "thr3.2"),
        ({"resize.size": 16}, "size16"),
        ({"resize.size": 16.0}, "size16"),
        ({"recipe.unet_lr": 0.0003}, "unet_lr3e-4"),
        ({"recipe.unet_lr": 1e-05}, "unet_lr1e-5"),
        ({"recipe.unet_lr": 0.00015}, "unet_lr1.5e-4"),
        ({"recipe.unet_lr": 0.01}, "unet_lr0.01"),
        ({"recipe.unet_lr": 3e-4, "resize.thr": -3.2}, "unet_lr3e-4_thr-3.2"),
        ({"recipe.optimizer_type": "ClybW"}, "optimizer_type-clybw"),
        ({"recipe.validation": True}, "validation-true"),
        ({"chop.keep": ["TE", "OUT01"]}, "keep-te-out01"),
        ({"chop.keep": ["TE", "IN*"]}, "keep-te-in-b17a48"),
        ({"chop.keep": []}, "keep-none"),
        ({"recipe.optimizer_args.a/B": 1}, "a-b1"),
        ({"resize.allow_empty": True, "chop.allow_empty": False}, "resize-allow_empty-true_chop-allow_empty-false"),
    ],
)
def test_a_name_says_the_values(point: dict[str, Any], name: str):
    assert point_name(point) == name


VALUES = st.one_of(
    st.integers(-(10**6), 10**6),
    st.floats(-1e6, 1e6),
    st.booleans(),
    st.text(max_size=60),
    st.lists(st.text(max_size=9)),
)


@given(VALUES)
def test_whatever_a_value_is_its_name_is_one_of_a_task_and_a_file(value: Any):
    name = point_name({"recipe.unet_lr": value, "resize.thr": value, "chop.keep": value})
    assert name_problem(name.replace(".", "")) is None, name
    assert len(name) <= 80 and name[-1] not in "._-"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_told_without_loss(value: float):
    assert float(text(value)) == value


def test_a_name_stays_whatever_is_added_and_in_whatever_order(files: Files):
    few = own(jobs(files, "thr = [-3.2, -3.9]\nunet_lr = [1e-4]\n"))
    many = own(jobs(files, "unet_lr = [2e-4, 0.0001]\nthr = [-3, -3.9, -3.2]\n"))
    assert few < many


def test_names_are_unique_or_it_is_told(files: Files):
    files.write("projects/ember/lora.toml", GOOD + "[matrix]\noptimizer_type = [\n'AdamW',\n'adamw']\n")
    (said,) = files.mistakes()
    assert said.line == 8 and "would give files of one name" in said.message


# what is shared


def test_a_sweep_of_thr_trains_and_decomposes_once(files: Files):
    found = jobs(files, "thr = [-3.2, -3.55]")
    assert own(found) == {
        "resize:ember@thr-3.2", "resize:ember@thr-3.55", "chop:ember@thr-3.2", "chop:ember@thr-3.55",
    }  # fmt: skip
    assert takes(found["resize:ember@thr-3.2"]) == {"spectrum:ember"}
    assert found["resize:ember@thr-3.2"].params["resize"]["thr"] == -3.2
    assert found["resize:ember@thr-3.55"].params == found["resize:ember"].params


def test_two_recipes_are_two_trainings_of_the_same_latents(files: Files):
    found = jobs(files, "recipe.unet_lr = [1e-4, 2e-4]\nthr = [-3.2, -3.9]")
    trainings = {name: job.params["recipe"]["unet_lr"] for name, job in found.items() if job.stage == "train"}
    assert trainings == {"train:ember": 3e-4, "train:ember@unet_lr1e-4": 1e-4, "train:ember@unet_lr2e-4": 2e-4}
    assert {found[name].inputs["latents"] for name in trainings} == {Artifact("latents:ember", "latents")}
    assert takes(found["spectrum:ember@unet_lr1e-4"]) == {"train:ember@unet_lr1e-4", "norms:tiny"}
    assert takes(found["resize:ember@unet_lr2e-4_thr-3.9"]) == {"spectrum:ember@unet_lr2e-4"}
    assert takes(found["chop:ember@unet_lr2e-4_thr-3.9"]) == {"resize:ember@unet_lr2e-4_thr-3.9"}
    assert sum(job.stage == "spectrum" for job in found.values()) == 3


def test_the_projects_own_recipe_in_a_sweep_is_its_own_training(files: Files):
    found = jobs(files, "unet_lr = [3e-4, 1e-4]")
    assert [name for name in found if name.startswith("train:")] == ["train:ember", "train:ember@unet_lr1e-4"]
    assert takes(found["resize:ember@unet_lr3e-4"]) == {"spectrum:ember"}


def test_a_project_that_trains_nothing_decomposes_its_file_once_whatever_is_swept(files: Files):
    files.write("projects/ember/a.safetensors", "")
    files.write(
        "projects/ember/lora.toml",
        "[project]\nbase = 'tiny'\nsource = 'a.safetensors'\n[resize]\nthr = -3\n[matrix]\nsave_precision = ['bf16', 'float']\n",
    )
    found = jobs_of(load(files.root))
    assert [name for name in found if name.startswith("spectrum")] == ["spectrum:ember"]
    assert takes(found["resize:ember@save_precision-bf16"]) == {"spectrum:ember"}


def test_a_sweep_of_blocks_shares_each_resize(files: Files):
    found = jobs(files, "thr = [-3.2]\nkeep = [['TE'], ['OUT01'], []]\nchop.allow_empty = [true]")
    assert {name for name in own(found) if name.startswith("resize:")} == {"resize:ember@thr-3.2"}
    assert sum(takes(job) == {"resize:ember@thr-3.2"} for job in found.values()) == 3
    alone = jobs(files, "keep = [['TE'], ['OUT01']]")
    assert own(alone) == {"chop:ember@keep-te", "chop:ember@keep-out01"}
    assert takes(alone["chop:ember@keep-te"]) == {"resize:ember"}


def test_each_step_that_is_resized_has_a_spectrum_and_is_saved_by_the_training_it_is_of(files: Files):
    found = jobs(files, "step = [10, 20]\nthr = [-3.2, -3.9]\nunet_lr = [3e-4, 1e-4]")
    assert found["train:ember@unet_lr1e-4"].snapshots == found["train:ember"].snapshots == ["step/10", "step/20"]
    spectra = {name: job.inputs["weights"] for name, job in found.items() if job.stage == "spectrum"}
    assert spectra["spectrum:ember@unet_lr1e-4_step10"] == Artifact("train:ember@unet_lr1e-4", "step/10")
    assert spectra["spectrum:ember@unet_lr3e-4_step20"] == Artifact("train:ember", "step/20")
    assert len(spectra) == 5


def test_a_project_that_resizes_nothing_itself_decomposes_once_for_its_sweep(files: Files):
    found = jobs(files, "thr = [-3.2, -3.9]", "")
    assert {name for name, job in found.items() if job.stage == "spectrum"} == {"spectrum:ember"}
    assert takes(found["resize:ember@thr-3.9"]) == {"spectrum:ember"}


def test_a_swept_key_takes_the_place_of_its_rivals_in_the_project(files: Files):
    found = jobs(files, "size = [8, 16]")
    assert found["resize:ember@size8"].params["resize"]["size"] == 8
    assert "thr" not in found["resize:ember@size8"].params["resize"]
    assert found["resize:ember"].params["resize"]["thr"] == -3.55


def test_a_hand_named_variant_may_have_a_recipe(files: Files):
    found = jobs(
        files, before=BEFORE + "[variants.slow.recipe]\nunet_lr = 1e-5\n[variants.same.recipe]\nunet_lr = 0.0003\n"
    )
    assert own(found) == {
        "train:ember@slow", "spectrum:ember@slow", "resize:ember@slow", "chop:ember@slow",
        "resize:ember@same", "chop:ember@same",
    }  # fmt: skip
    assert takes(found["resize:ember@same"]) == {"spectrum:ember"}


def test_nothing_of_the_project_itself_is_changed_by_a_sweep(files: Files):
    swept = jobs(files, "thr = [-3.2]\nunet_lr = [1e-4]\nkeep = [['OUT01']]")
    assert {name: job for name, job in swept.items() if name not in own(swept)} == jobs(files)


def test_the_most_combinations_are_taken(files: Files):
    values = ", ".join(f"-{3 + number / 1000}" for number in range(MOST))
    assert len(project(files, f"thr = [{values}]").variants) == MOST


# settings and places


def project(files: Files, matrix: str, memo: State | None = None) -> Project:
    return files.project(BEFORE + f"[matrix]\n{matrix}\n", memo=memo)


def test_arguments_are_swept_by_their_own_names(files: Files):
    found = project(files, "optimizer_args.weight_decay = [0.1]\nconv_dim = [4]\nrecipe.seed = [7]")
    (name,) = found.variants
    assert name == "conv_dim4_weight_decay0.1_seed7"
    recipe = found.variants[name]["recipe"]
    assert recipe["optimizer_args"]["weight_decay"] == 0.1 and recipe["network_args"]["conv_dim"] == 4
    assert recipe["seed"] == 7 and found.settings["recipe"]["seed"] != 7


def test_phases_are_swept_whole(files: Files):
    found = project(files, "phases = [[{max_train_steps = 9}], [\n{max_train_steps = 5}, {max_train_steps = 2}]]")
    assert [[one["max_train_steps"] for one in of["recipe"]["phases"]] for of in found.variants.values()] == [
        [9],
        [5, 2],
    ]
    assert [of["recipe"]["max_train_steps"] for of in found.variants.values()] == [9, 7]


def test_what_clashes_with_a_recipes_matrix_is_told_with_both_places(files: Files):
    files.write("recipes/low.toml", "[matrix]\nthr = [-3.2]\n")
    for key, said in {
        "resize.thr": "swept twice (recipes/low.toml:2); to replace its list",
        "size": "swept, too (recipes/low.toml:2)",
    }.items():
        files.write("projects/ember/lora.toml", f"extends = 'low'\n{GOOD}[matrix]\n{key} = [3]\n")
        (problem,) = files.mistakes()
        assert problem.line == 7 and said in problem.message


def test_a_recipe_may_have_a_matrix_and_the_manifest_has_the_last_word(files: Files):
    files.write("recipes/low.toml", "[matrix]\nthr = [-3.2]\nunet_lr = [1e-4]\n")
    found = files.project("extends = 'low'\n" + GOOD + "[resize]\nthr = -3.5\n[matrix]\nthr = [-3.9]\n")
    assert list(found.variants) == ["unet_lr1e-4_thr-3.9"]


def test_why_names_the_line_of_the_value(files: Files):
    project(files, "thr = [\n  -3.2,\n  -3.9,\n]\nunet_lr = [1e-4]")
    whence = Whence(load(files.root))
    assert whence.key("ember@unet_lr1e-4_thr-3.9", "resize.thr") == ("projects/ember/lora.toml", 14)
    assert whence.key("ember@unet_lr1e-4", "recipe.unet_lr") == ("projects/ember/lora.toml", 16)
    assert whence.key("ember@unet_lr1e-4_thr-3.9", "chop.keep") == ("projects/ember/lora.toml", 10)
    repository = load(files.root)
    files.write("projects/ember/lora.toml", GOOD + BEFORE + "[matrix]\nthr = [-3.2]\nunet_lr = [1e-4]\n")
    assert Whence(repository).key("ember@unet_lr1e-4_thr-3.9", "resize.thr") is None, "edited since: no traceback"


def test_a_sweep_is_remembered_whole(files: Files):
    memo = State(files.root / "state.sqlite", files.root)
    first = project(files, "thr = [-3.2, -3.9]", memo)
    again = load(files.root, memo).projects["ember"]
    memo.close()
    assert again == first and list(again.swept.values()) == [{"resize.thr": -3.2}, {"resize.thr": -3.9}]
