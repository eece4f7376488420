"""The stage dataset: what it writes, what it reads again, what it refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from lab import DATASET, LATENTS, SETTINGS, SIZES, Lab

from lorabuild.errors import InputChanged, JobError
from lorabuild.images import decode, pixels_digest


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
