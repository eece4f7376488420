"""The stage dataset: what it writes, what it reads again, what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from lab import DATASET, LATENTS, SETTINGS, SIZES, Lab
from PIL import Image

from lorabuild.data.images import decode, pixels_digest
from lorabuild.errors import InputChanged, JobError
from lorabuild.hashing import digest_file
from lorabuild.inputs import Resolver


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path, vae=tmp_path / "nowhere")


def test_a_data_set_holds_all_that_training_reads_and_no_file_names(lab: Lab):
    lab.run(DATASET)
    dataset = lab.json("dataset.json")
    assert dataset["settings"] == {key: value for key, value in SETTINGS.items() if key != "subset"}
    assert [image["digest"] for image in dataset["images"]] == sorted(image["digest"] for image in dataset["images"])
    (third,) = (image for image in dataset["images"] if image["caption"] == "ember, 3")
    assert third == {
        "digest": pixels_digest(decode((lab.project / "images/3.png").read_bytes(), "3.png")),
        "caption": "ember, 3",
        "repeats": 2,
        "size": [200, 90],
        "resized": [96, 43],
        "bucket": [96, 32],
        "crop": [0, 5],
    }
    assert b"png" not in lab.output("dataset.json").read_bytes()
    geometry = lab.json("geometry.json")
    assert [set(row) for row in geometry] == [{"file", "digest", "size", "resized", "bucket", "crop"}] * 3


def test_renaming_images_gives_the_same_bytes(lab: Lab):
    lab.run(DATASET)
    before = [lab.output(role).read_bytes() for role in ("dataset.json", "geometry.json")]
    for suffix in (".png", ".txt"):
        (lab.project / f"images/1{suffix}").rename(lab.project / f"images/zzz{suffix}")
    lab.run(DATASET)
    assert [lab.output(role).read_bytes() for role in ("dataset.json", "geometry.json")] == before


def test_a_missing_and_an_empty_caption_file_are_an_empty_caption(lab: Lab):
    lab.write("images/1.txt", b"")
    (lab.project / "images/2.txt").unlink()
    lab.run(DATASET)
    assert sorted(row["caption"] for row in lab.json("dataset.json")["images"]) == ["", "", "ember, 3"]


def test_a_folder_may_have_a_caption_extension_of_its_own(lab: Lab):
    lab.settings["subset"].append({"image_dir": "more", "num_repeats": 1, "caption_extension": "caption"})
    lab.write("more/x.png", (lab.project / "images/1.png").read_bytes())
    lab.write("more/x.caption", b"coal")
    lab.write("more/x.txt", b"not this one")
    lab.run(DATASET)
    captions = [row["caption"] for row in lab.json("dataset.json")["images"]]
    assert sorted(captions) == ["coal", "ember, 1", "ember, 2", "ember, 3"]


def test_another_caption_decodes_no_image_again(lab: Lab):
    lab.run(DATASET)
    lab.write("images/1.txt", b"ember, green")
    job, workspace = lab.prepare(DATASET)
    for name in SIZES:
        (lab.project / "images" / name).unlink()  # whoever read one now would fail
    DATASET.run(job, workspace, lambda done, total, text: None)
    assert "ember, green" in {row["caption"] for row in lab.json("dataset.json")["images"]}


def test_everything_wrong_is_told_at_once(lab: Lab):
    lab.settings["bucket_no_upscale"] = True
    good = (lab.project / "images/1.png").read_bytes()
    lab.write("images/1.png", good[: len(good) // 2])
    lab.write("images/1.txt", b"ember, caf\xe9")
    lab.write("images/2.png", b"not an image")
    lab.picture("3.png", 3, (20, 90))
    with pytest.raises(JobError) as caught:
        lab.run(DATASET)
    truncated, encoding, unknown, small = map(str, caught.value.problems)
    assert truncated.startswith("projects/ember/images/1.png: truncated")
    assert encoding.startswith("projects/ember/images/1.txt: not UTF-8 (byte 0xe9 at offset 10)")
    assert unknown.startswith("projects/ember/images/2.png: ")
    assert small.startswith("projects/ember/images/3.png: 20x90 is smaller than one bucket step (32 px)")
    assert not lab.output("dataset.json").exists()


def test_a_folder_without_images_is_refused(lab: Lab):
    lab.settings["subset"].append({"image_dir": "empty", "num_repeats": 1})
    lab.write("empty/notes.md", b"")
    with pytest.raises(JobError, match=r"^projects/ember/empty: no images \(png, jpg"):
        lab.prepare(DATASET)


def test_settings_that_contradict_each_other_are_refused(lab: Lab):
    lab.settings["max_bucket_reso"] = 32
    with pytest.raises(JobError, match=r"^dataset\.resolution 64x64: a side is above 32 \(max_bucket_reso\)$"):
        lab.run(DATASET)


@pytest.mark.parametrize("name", ["1.png", "1.txt"])
def test_a_file_that_changes_while_it_is_built_is_noticed(lab: Lab, name: str):
    job, workspace = lab.prepare(DATASET)
    lab.write(f"images/{name}", b"ember, edited")
    with pytest.raises(InputChanged):
        DATASET.run(job, workspace, lambda done, total, text: None)


def test_jobs_name_what_shapes_them_and_nothing_else(lab: Lab):
    dataset, latents = lab.job(DATASET), lab.job(LATENTS)
    assert dataset.params == {"dataset": {key: value for key, value in SETTINGS.items() if key != "subset"}}
    assert dataset.inputs["images"].captions and not latents.inputs["images"].captions
    assert dataset.inputs["images"].subsets[0].shown == "projects/ember/images"
    assert latents.params == {"dataset": {"flip_aug": True}}
    outside = lab.root.parent / "pictures"
    lab.settings["subset"][0]["image_dir"] = str(outside)
    assert lab.job(DATASET).inputs["images"].subsets[0].shown == outside.as_posix()


def test_a_project_without_a_data_set_has_no_such_jobs():
    project = SimpleNamespace(settings={"project": {"base": "tiny", "source": None}, "dataset": None})
    repository = SimpleNamespace(root=Path("/r"), projects={"x": project})
    assert not [*DATASET.jobs(repository), *LATENTS.jobs(repository)]


# folders with settings of their own


def rows_by_caption(lab: Lab) -> dict[str, dict]:
    return {row["caption"]: row for row in lab.json("dataset.json")["images"]}


def digest(lab: Lab) -> str:
    return (
        Resolver(state=SimpleNamespace(digest=digest_file), artifact=None, component=None)
        .resolve(lab.job(DATASET))["images"]
        .digest
    )


def test_a_folder_may_differ_from_its_data_set_and_only_that_is_written(lab: Lab):
    own = {"shuffle_caption": False, "keep_tokens": 1, "caption_prefix": "coal", "flip_aug": False}
    lab.settings["subset"].append({"image_dir": "more", "num_repeats": 1, **own})
    lab.write("more/x.png", (lab.project / "images/1.png").read_bytes())
    lab.write("more/x.txt", b"other")
    lab.run(DATASET)
    rows = rows_by_caption(lab)
    assert rows["other"]["settings"] == {"shuffle_caption": False, "caption_prefix": "coal", "flip_aug": False}
    assert "settings" not in rows["ember, 1"]
    assert [row.get("flip") for row in lab.json("geometry.json")].count(False) == 1


def test_a_folders_setting_counts_by_its_value(lab: Lab):
    before, told = digest(lab), lab.job(DATASET).inputs["images"]
    lab.settings["subset"][0] |= {"shuffle_caption": True, "caption_prefix": "", "class_tokens": "unused, all have one"}
    assert digest(lab) == before, "the data set's own values, said again"
    lab.settings["subset"][0]["keep_tokens"] = 2
    assert digest(lab) != before
    assert told != lab.job(DATASET).inputs["images"]


def test_class_tokens_are_the_caption_of_images_without_one(lab: Lab):
    before = digest(lab)
    (lab.project / "images/2.txt").unlink()
    lab.settings["subset"][0]["class_tokens"] = "a fox"
    assert digest(lab) != before
    job, workspace = lab.prepare(DATASET)
    warnings: list[str] = []
    workspace.warn = warnings.append
    DATASET.run(job, workspace, lambda done, total, text: None)
    assert set(rows_by_caption(lab)) == {"ember, 1", "a fox", "ember, 3"}
    assert warnings == [
        "1 of 3 images have no caption file: projects/ember/images/2.png (class_tokens are their caption)"
    ]


def test_with_wildcards_all_lines_are_the_caption(lab: Lab):
    lab.write("images/1.txt", b"ember, {red|blue}\n\n second \n")
    lab.settings["enable_wildcard"] = True
    lab.run(DATASET)
    assert "ember, {red|blue}\nsecond" in rows_by_caption(lab)


# regularisation


def test_regularisation_images_are_repeated_to_be_as_many_as_the_others(lab: Lab):
    lab.settings["subset"].append({"image_dir": "fox", "num_repeats": 1, "is_reg": True, "class_tokens": "fox"})
    for number in range(4):
        lab.picture(f"../fox/{number}.png", 10 + number, (64, 64))
    lab.run(DATASET)
    rows = lab.json("dataset.json")["images"]
    assert sorted(row["repeats"] for row in rows if row.get("is_reg")) == [1, 1, 2, 2], "six, as three images twice"
    assert [row["digest"] for row in rows] == sorted(row["digest"] for row in rows)
    assert {row["caption"] for row in rows if row.get("is_reg")} == {"fox"}
    before = lab.output("dataset.json").read_bytes()
    for number in range(4):
        (lab.project / f"fox/{number}.png").rename(lab.project / f"fox/renamed{3 - number}.png")
    lab.run(DATASET)
    assert lab.output("dataset.json").read_bytes() == before, "which are shown more often is not a matter of names"


def test_too_many_regularisation_images_are_left_out_with_a_warning(lab: Lab):
    lab.settings["subset"][0]["num_repeats"] = 1
    lab.settings["subset"].append({"image_dir": "fox", "num_repeats": 2, "is_reg": True})
    for number in range(4):
        lab.picture(f"../fox/{number}.png", 10 + number, (64, 64))
        lab.write(f"fox/{number}.txt", b"fox")
    job, workspace = lab.prepare(DATASET)
    warnings: list[str] = []
    workspace.warn = warnings.append
    DATASET.run(job, workspace, lambda done, total, text: None)
    assert warnings == ["2 of 4 regularisation images are not used: there are fewer to train on"]
    rows = lab.json("dataset.json")["images"]
    assert [row["repeats"] for row in rows if row.get("is_reg")] == [2, 2]
    assert len(lab.json("geometry.json")) == 5, "and what is not used is not encoded"


# folders named as sd-scripts wants them


def test_a_folder_of_named_folders_is_read_as_sd_scripts_reads_it(lab: Lab):
    images = lab.project / "images"
    images.rename(lab.project / "moved")
    for number, folder in ((1, "3_ember fox"), (2, "1_coal"), (3, "notes")):
        for suffix in (".png", ".txt"):
            lab.write(f"train/{folder}/{number}{suffix}", (lab.project / f"moved/{number}{suffix}").read_bytes())
    (lab.project / "train/1_coal/2.txt").unlink()
    lab.settings |= {"subset": [], "train_data_dir": "train"}
    lab.run(DATASET)
    assert {caption: row["repeats"] for caption, row in rows_by_caption(lab).items()} == {"ember, 1": 3, "coal": 1}
    assert "train_data_dir" not in lab.json("dataset.json")["settings"]
    by_hand = [
        {"image_dir": "train/3_ember fox", "num_repeats": 3},
        {"image_dir": "train/1_coal", "num_repeats": 1, "class_tokens": "coal"},
    ]
    named = digest(lab)
    lab.settings |= {"subset": by_hand}
    del lab.settings["train_data_dir"]
    assert digest(lab) == named, "said either way, it is the same data set"

    lab.picture("../reg/1_fox/9.png", 9, (64, 64))
    lab.settings["reg_data_dir"] = "reg"
    lab.run(DATASET)
    assert rows_by_caption(lab)["fox"]["is_reg"] and rows_by_caption(lab)["fox"]["repeats"] == 4


def test_a_folder_of_the_wrong_kind_is_one_line_that_says_what_would_do(lab: Lab):
    lab.write("train/2_ember/1.png", (lab.project / "images/1.png").read_bytes())
    lab.settings["subset"][0]["image_dir"] = "train"
    with pytest.raises(JobError, match=r"^projects/ember/train: no images .* \(dataset.train_data_dir .* 2_ember/"):
        lab.prepare(DATASET)
    lab.settings |= {"subset": [], "train_data_dir": "images"}
    with pytest.raises(JobError, match=r"^projects/ember/images: no folders in it that are named as 10_ember"):
        lab.prepare(DATASET)
    lab.write("many/20000_ember/1.png", b"")
    lab.settings["train_data_dir"] = "many"
    with pytest.raises(JobError, match=r"^projects/ember/many/20000_ember: 20000 repeats, at most 10000"):
        lab.prepare(DATASET)
    lab.settings["train_data_dir"] = "nowhere"
    with pytest.raises(JobError, match=r"^projects/ember/nowhere: no such folder \(train_data_dir or reg_data_dir"):
        lab.prepare(DATASET)


# what is seen of an image


def test_a_resize_by_choice_is_noted_where_it_makes_a_difference(lab: Lab):
    for name, seen in (("lanczos", "lanczos"), ("area", None)):  # all but the first are shrunk, which is by area anyway
        lab.settings["resize_interpolation"] = name
        lab.run(DATASET)
        chosen = {row["caption"]: row.get("interpolation") for row in lab.json("dataset.json")["images"]}
        assert chosen == {"ember, 1": None, "ember, 2": seen, "ember, 3": seen}


def test_masks_are_of_images_that_have_something_transparent(lab: Lab):
    half = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    half.paste((0, 200, 0, 0), (0, 0, 32, 64))
    half.save(lab.project / "images/1.png")
    Image.new("RGBA", (64, 64), (0, 0, 200, 255)).save(lab.project / "images/2.png")
    lab.run(DATASET)
    before = rows_by_caption(lab)
    lab.settings["alpha_mask"] = True
    lab.run(DATASET)
    after = rows_by_caption(lab)
    assert {caption: "mask" in row for caption, row in after.items()} == {
        "ember, 1": True,
        "ember, 2": False,
        "ember, 3": False,
    }
    assert all(after[caption]["digest"] == row["digest"] for caption, row in before.items())
    lab.settings["alpha_policy"] = "drop"
    lab.run(DATASET)
    dropped = rows_by_caption(lab)
    assert [dropped[caption]["digest"] == row["digest"] for caption, row in after.items()].count(False) == 1
    assert dropped["ember, 1"]["mask"] == after["ember, 1"]["mask"]
