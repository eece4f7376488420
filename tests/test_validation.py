"""The held-out loss: which images are held back, that they are never trained on, and when it is logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from manifest_world import Files
from test_training import log_of, run
from tiny_base import RECIPE, dataset, outputs, training

from lorabuild.errors import JobError
from lorabuild.nn import feed
from lorabuild.stages.train import STAGE
from lorabuild.training.validation import held_back, points, split


def pictures(count: int) -> list[dict[str, Any]]:
    return [{"digest": f"{number:032x}", "repeats": 3} for number in range(count)]


def digests(images: Any) -> set[str]:
    return {image["digest"] for image in images}


def test_without_a_split_all_is_trained():
    assert split(pictures(4), {"seed": 1}) == (pictures(4), [])


def test_every_image_is_either_trained_or_held_back():
    images = pictures(20)
    trained, others = split(images, {"seed": 1, "validation_split": 0.25})
    assert len(others) == 5 and not digests(trained) & digests(others)
    assert digests(trained) | digests(others) == digests(images)
    assert {image["repeats"] for image in trained} == {3} and {image["repeats"] for image in others} == {1}


def test_the_choice_follows_from_the_seed_and_the_pictures_alone():
    images, half = pictures(20), {"seed": 1, "validation_split": 0.5}
    chosen = digests(split(images, half)[1])
    assert digests(split(images[::-1], half)[1]) == chosen
    assert digests(split(images, {**half, "seed": 2})[1]) != chosen
    assert digests(split(images, {**half, "seed": 2, "validation_seed": 1})[1]) == chosen
    more = digests(split([*images, {"digest": "f" * 32, "repeats": 1}], half)[1])
    assert len(chosen - more) <= 1


def test_the_default_seed_spelled_out_is_the_same_training(tmp_path: Path):
    files = Files(tmp_path)

    def recipe(line: str) -> dict[str, Any]:
        return files.settings(f"[recipe]\nseed = 7\nvalidation_split = 0.5\n{line}")["recipe"]

    assert recipe("validation_seed = 7") == recipe("") != recipe("validation_seed = 8")


def test_a_picture_goes_with_all_its_entries_and_regularisation_stays():
    twice = [*pictures(4), *pictures(4), {"digest": "0" * 32, "repeats": 1, "is_reg": True}]
    trained, others = split(twice, {"seed": 1, "validation_split": 0.5})
    assert len(others) == 4 and len(digests(others)) == 2
    assert not digests(image for image in trained if "is_reg" not in image) & digests(others)
    assert sum("is_reg" in image for image in trained) == 1


def test_check_counts_the_batches_of_what_is_trained():
    from types import SimpleNamespace

    from lorabuild.checks.batches import bucket_rows

    entry = SimpleNamespace(settings={}, subset=SimpleNamespace(repeats=3))
    place = SimpleNamespace(bucket=(64, 64))
    placed: Any = [
        SimpleNamespace(digest=one["digest"], entry=entry, place=place, crop_loss=0.0, scale=1.0) for one in pictures(8)
    ]
    recipe = {"seed": 1, "train_batch_size": 4}
    assert [(row.images, row.batches) for row in bucket_rows(placed, recipe)] == [(8, 6)]
    assert [(row.images, row.batches) for row in bucket_rows(placed, {**recipe, "validation_split": 0.25})] == [(6, 5)]


def test_one_at_least_is_held_back_and_one_is_trained():
    assert [held_back(count, {"validation_split": 0.1}) for count in (1, 2, 5, 50)] == [0, 1, 1, 5]
    assert held_back(3, {"validation_split": 0.99}) == 2
    assert held_back(3, {}) == 0


def test_it_is_logged_at_each_tenth():
    assert points({"max_train_steps": 100, "validation": True}) == set(range(10, 100, 10))
    assert points({"max_train_steps": 3, "validation_split": 0.1}) == {1, 2}
    assert points({"max_train_steps": 1, "validation": True}) == points({"max_train_steps": 100}) == set()


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training with a part held back, and the pictures that were trained and measured."""
    folder, seen = tmp_path_factory.mktemp("validated"), {"micro_batch": set(), "held_out_batches": set()}
    with pytest.MonkeyPatch.context() as patch:
        real, measured = feed.micro_batch, feed.held_out_batches

        def spied(data: Any, *args: Any) -> Any:
            seen["micro_batch"] |= {data.images[index]["digest"][0] for index, _ in args[3]}
            return real(data, *args)

        def spied_held_out(data: Any, *args: Any) -> Any:
            seen["held_out_batches"] |= {image["digest"][0] for image in data.images}
            return measured(data, *args)

        patch.setattr(feed, "micro_batch", spied)
        patch.setattr(feed, "held_out_batches", spied_held_out)
        recipe = {"validation_split": 0.5, "max_validation_steps": 1, "train_batch_size": 2}
        run(folder, recipe=recipe)
    return {**seen, "outputs": outputs(folder), "folder": folder, "recipe": recipe}


def test_what_is_held_back_is_never_trained(validated: dict[str, Any]):
    trained, measured = validated["micro_batch"], validated["held_out_batches"]
    assert len(measured) == 2 and not trained & measured
    assert trained | measured == {image["digest"][0] for image in dataset()["images"]}
    facts = json.loads(validated["outputs"]["facts.json"])
    assert facts["num_validation_images"] + facts["num_images"] == len(dataset()["images"])


def test_the_log_has_its_loss_on_the_way(validated: dict[str, Any]):
    log = log_of(validated["outputs"])
    assert [record["when"] for record in log if record["event"] == "held_out"] == [
        "before",
        "during",
        "during",
        "after",
    ]
    assert [(r["event"], r.get("step")) for r in log if "step" in r] == [
        ("step", 1), ("held_out", 1), ("step", 2), ("held_out", 2), ("step", 3),
    ]  # fmt: skip


def test_measuring_changes_no_weight(tmp_path: Path):
    recipe = {"max_train_steps": 2, "text_encoder_lr": 0.0}
    weights = []
    for name, more in {"plain": {}, "measured": {"validation": True, "max_validation_steps": 1}}.items():
        folder = tmp_path / name
        folder.mkdir()
        run(folder, recipe=recipe | more)
        weights.append(outputs(folder)["weights"])
    assert weights[0] == weights[1]


def test_with_one_image_none_can_be_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job, workspace = training(tmp_path, recipe={"validation_split": 0.1})
    one = {**dataset(), "images": dataset()["images"][:1]}
    workspace.path("dataset").write_text(json.dumps(one))
    with pytest.raises(JobError, match=r"^recipe.validation_split: with one image there is none to hold back"):
        STAGE.run(job, workspace, lambda done, total, text: None)
    assert RECIPE.get("validation_split") is None
