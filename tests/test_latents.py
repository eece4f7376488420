"""The stage latents: encoded once, image by image, in bytes that depend on nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from lab import DATASET, LATENTS, SIZES, Lab, write_vae
from PIL import Image, PngImagePlugin

import lorabuild.stages.latents
from lorabuild.ahead import AHEAD
from lorabuild.data.buckets import Geometry
from lorabuild.data.images import decode, latent_name, mask_name, resize_and_crop, to_chw
from lorabuild.errors import InputChanged, JobError
from lorabuild.hashing import digest_file
from lorabuild.header import read_header
from lorabuild.nn.latents import open_latents
from lorabuild.nn.vae import encode, load_vae
from lorabuild.workspace import Workspace


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("base"), 1)


@pytest.fixture
def lab(tmp_path: Path, vae: Path) -> Lab:
    return Lab(tmp_path, vae)


def test_latents_are_the_posterior_mean_of_the_pixels_and_of_the_flipped_pixels(lab: Lab):
    assert lab.both() == {"encoded": 3, "reused": 0}
    vae, latents = load_vae(lab.vae), lab.latents()
    assert len(latents) == 6 and list(latents) == sorted(latents)
    header = read_header(lab.output("latents"))
    assert header.metadata == {} and {info.dtype for info in header.tensors.values()} == {"F32"}
    files = {digest_file(path): path for path in (lab.project / "images").glob("*.png")}
    for row in lab.json("geometry.json"):
        place = Geometry(tuple(row["resized"]), tuple(row["bucket"]), tuple(row["crop"]))
        path = files[row["file"]]
        pixels = torch.from_numpy(to_chw(resize_and_crop(decode(path.read_bytes(), path.name), place)))[None]
        name = f"{row['digest']}.{row['bucket'][0]}x{row['bucket'][1]}"
        assert latents[name].shape == (4, row["bucket"][1] // 8, row["bucket"][0] // 8)
        assert np.array_equal(latents[name], encode(vae, pixels)[0])
        assert np.array_equal(latents[f"{name}.flip"], encode(vae, pixels.flip(3))[0])
        assert not np.allclose(latents[f"{name}.flip"], latents[name][:, :, ::-1]), "flipped latents are not the same"


def test_what_is_encoded_is_reused_without_opening_the_vae_or_an_image(lab: Lab, tmp_path: Path):
    lab.both()
    before = lab.output("latents").read_bytes()
    job, workspace = lab.prepare(LATENTS)
    workspace.paths = {**workspace.paths, "vae": tmp_path / "nowhere"}
    for name in SIZES:
        (lab.project / "images" / name).unlink()
    LATENTS.run(job, workspace, lambda done, total, text: None)
    assert workspace.notes == {"encoded": 0, "reused": 3}
    assert lab.output("latents").read_bytes() == before


def test_a_replaced_image_encodes_one_and_leaves_the_others_alone(lab: Lab):
    lab.both()
    before = lab.latents()
    lab.picture("2.png", 9, SIZES["2.png"])
    assert lab.both() == {"encoded": 1, "reused": 2}
    after = lab.latents()
    common = before.keys() & after.keys()
    assert len(common) == 4 and len(after) == 6
    assert all(np.array_equal(before[name], after[name]) for name in common)


def test_a_comment_in_a_png_changes_neither_data_set_nor_latents(lab: Lab):
    lab.both()
    before = [lab.output(role).read_bytes() for role in ("dataset.json", "latents")]
    comment = PngImagePlugin.PngInfo()
    comment.add_text("parameters", "masterpiece")
    lab.picture("1.png", 1, SIZES["1.png"], pnginfo=comment)
    assert lab.both() == {"encoded": 0, "reused": 3}
    assert [lab.output(role).read_bytes() for role in ("dataset.json", "latents")] == before


def test_one_picture_in_two_folders_is_two_entries_and_one_latent(lab: Lab):
    lab.settings["subset"].append({"image_dir": "more", "num_repeats": 5})
    lab.write("more/x.png", (lab.project / "images/1.png").read_bytes())
    assert lab.both() == {"encoded": 3, "reused": 0}
    rows = [row for row in lab.json("dataset.json")["images"] if row["size"] == [64, 64]]
    assert sorted((row["caption"], row["repeats"]) for row in rows) == [("", 5), ("ember, 1", 2)]
    assert len({row["digest"] for row in rows}) == 1


def test_what_is_not_hashed_changes_no_byte(lab: Lab):
    lab.both()
    before = {role: lab.output(role).read_bytes() for role in ("dataset.json", "geometry.json", "latents")}
    for stage in (DATASET, LATENTS):
        job, workspace = lab.prepare(stage)
        stage.run(replace(job, options={"folders": ["elsewhere"]}), workspace, lambda done, total, text: None)
    assert {role: lab.output(role).read_bytes() for role in before} == before


def test_latents_of_an_image_do_not_depend_on_the_others(lab: Lab, tmp_path: Path):
    lab.both()
    together = lab.latents()
    for number, (name, size) in enumerate(SIZES.items(), 1):
        alone = Lab(tmp_path / f"alone{number}", lab.vae)
        for other in SIZES.keys() - {name}:
            (alone.project / "images" / other).unlink()
        assert alone.both() == {"encoded": 1, "reused": 0}
        assert all(np.array_equal(value, together[key]) for key, value in alone.latents().items()), size


def test_turning_flips_off_and_on_encodes_nothing_twice(lab: Lab):
    lab.settings["flip_aug"] = False
    assert lab.both() == {"encoded": 3, "reused": 0}
    plain = lab.latents()
    lab.settings["flip_aug"] = True
    assert lab.both() == {"encoded": 3, "reused": 0}
    assert {name: value.tobytes() for name, value in lab.latents().items() if not name.endswith(".flip")} == {
        name: value.tobytes() for name, value in plain.items()
    }
    lab.settings["flip_aug"] = False
    assert lab.both() == {"encoded": 0, "reused": 3}


def test_another_resolution_is_other_latents_and_the_old_ones_are_kept(lab: Lab):
    lab.both()
    lab.settings["resolution"] = [96, 96]
    assert lab.both()["encoded"] == 3
    lab.settings["resolution"] = [64, 64]
    assert lab.both() == {"encoded": 0, "reused": 3}


def test_another_vae_encodes_all(lab: Lab, tmp_path: Path):
    lab.both()
    before = lab.latents()
    lab.vae = write_vae(tmp_path / "other", 2)
    assert lab.both() == {"encoded": 3, "reused": 0}
    assert not any(np.allclose(value, before[name]) for name, value in lab.latents().items())


def test_a_damaged_piece_is_made_again(lab: Lab):
    lab.both()
    before = lab.output("latents").read_bytes()
    piece = max((lab.root / "pieces").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    piece.write_bytes(piece.read_bytes()[:-4] + b"junk")
    assert lab.both() == {"encoded": 1, "reused": 2}
    assert lab.output("latents").read_bytes() == before


def test_latents_that_are_not_finite_name_the_image(lab: Lab, tmp_path: Path):
    broken = AutoencoderKL.from_pretrained(lab.vae / "vae")
    broken.encoder.conv_in.bias.data.fill_(float("nan"))
    lab.vae = tmp_path / "broken"
    broken.save_pretrained(lab.vae / "vae")
    with pytest.raises(JobError) as caught:
        lab.both()
    (line,) = map(str, caught.value.problems)
    assert line.startswith("projects/ember/images/") and "not finite" in line


def test_a_vae_of_another_model_is_refused(lab: Lab, tmp_path: Path):
    lab.vae = write_vae(tmp_path / "flux", 1, latent_channels=16)
    with pytest.raises(JobError, match=r"latents of shape \(16, .* not one of SDXL"):
        lab.both()


def test_a_vae_with_missing_weights_is_refused(tmp_path: Path):
    folder = write_vae(tmp_path, 1)
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    with pytest.raises(JobError, match="not the weights of its config"):
        load_vae(folder)


def test_a_warm_vae_is_found_by_its_digest_wherever_it_lies(vae: Path, tmp_path: Path):
    first = load_vae(vae, "digest")
    assert load_vae(tmp_path / "moved", "digest") is first
    assert load_vae(vae, "another") is not first


def test_an_image_that_vanished_after_its_data_set_was_made_is_one_line(lab: Lab):
    lab.run(DATASET)
    lab.picture("1.png", 5, SIZES["1.png"])
    with pytest.raises(JobError, match="build again"):
        lab.run(LATENTS)


def test_progress_counts_images(lab: Lab):
    lab.run(DATASET)
    job, workspace = lab.prepare(LATENTS)
    told: list[tuple[int, int]] = []
    LATENTS.run(job, workspace, lambda done, total, text: told.append((done, total)))
    assert told == sorted(told) and {total for _, total in told} == {3}


# views of one image by settings of its folder, and masks


def test_each_folder_has_its_own_flips(lab: Lab):
    lab.settings["subset"].append({"image_dir": "more", "num_repeats": 1, "flip_aug": False})
    lab.picture("../more/x.png", 7, (64, 64))
    lab.write("more/y.png", (lab.project / "images/1.png").read_bytes())
    assert lab.both() == {"encoded": 4, "reused": 0}
    names = list(lab.latents())
    assert len(names) == 7 and sum(name.endswith(".flip") for name in names) == 3


def test_an_interpolation_by_choice_encodes_only_what_it_changes(lab: Lab):
    lab.both()
    before = lab.latents()
    lab.settings["resize_interpolation"] = "bicubic"
    assert lab.both() == {"encoded": 2, "reused": 1}
    after = lab.latents()
    assert len(before.keys() & after.keys()) == 2
    assert all(".bicubic" in name for name in after.keys() - before.keys())
    (row,) = (row for row in lab.json("geometry.json") if row["size"] == [50, 100])
    (path,) = (p for p in (lab.project / "images").glob("*.png") if digest_file(p) == row["file"])
    place = Geometry(tuple(row["resized"]), tuple(row["bucket"]), tuple(row["crop"]))
    pixels = to_chw(resize_and_crop(decode(path.read_bytes(), ""), place, "bicubic"))
    name = latent_name(row, False)
    assert name.endswith(".bicubic")
    assert np.array_equal(after[name], encode(load_vae(lab.vae), torch.from_numpy(pixels)[None])[0])


def test_masks_lie_beside_the_latents_and_encode_nothing_anew(lab: Lab):
    transparent = Image.open(lab.project / "images/3.png").convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    transparent.save(lab.project / "images/3.png")
    lab.both()
    before = lab.latents()
    lab.settings["alpha_mask"] = True
    assert lab.both() == {"encoded": 0, "reused": 3}
    after = lab.latents()
    (name,) = after.keys() - before.keys()
    assert all(np.array_equal(value, after[key]) for key, value in before.items())
    (row,) = (row for row in lab.json("dataset.json")["images"] if "mask" in row)
    assert name == mask_name(row) and name.endswith(".mask")
    width, height = row["bucket"]
    assert after[name].shape == (height // 8, width // 8)
    # area twice: to the resized picture and to the latents; the gradient runs from 0 to 1 down the picture
    top = row["crop"][1] / row["resized"][1]
    bottom = top + row["bucket"][1] / row["resized"][1]
    assert after[name].mean() == pytest.approx((top + bottom) / 2, abs=0.02)
    assert (np.diff(after[name][:, 0]) > 0).all()


def test_pictures_that_look_the_same_may_have_different_masks(lab: Lab):
    lab.settings["alpha_mask"] = True
    for name, alpha in (("1.png", 0), ("2.png", 255)):
        image = Image.new("RGBA", (64, 64), (255, 255, 255, alpha))
        image.putpixel((0, 0), (255, 255, 255, 10))
        image.save(lab.project / "images" / name)
    assert lab.both() == {"encoded": 2, "reused": 0}
    rows = [row for row in lab.json("dataset.json")["images"] if "mask" in row]
    assert len({row["digest"] for row in rows}) == 1 and len({row["mask"] for row in rows}) == 2
    means = sorted(lab.latents()[mask_name(row)].mean() for row in rows)
    assert means == pytest.approx([0, 1], abs=1e-3)


def test_a_sample_is_drawn_once_an_image_and_near_its_mean(lab: Lab, tmp_path: Path):
    lab.both()
    means = lab.latents()
    lab.settings["latents"] = "sample"
    assert lab.both() == {"encoded": 3, "reused": 0}
    drawn = lab.latents()
    assert not any(np.array_equal(means[name], value) for name, value in drawn.items())
    (lab.project / "images/2.png").unlink()
    lab.both()
    assert all(np.array_equal(value, drawn[name]) for name, value in lab.latents().items()), "whatever is beside it"
    lab.settings["latents"] = "mean"
    assert lab.both() == {"encoded": 0, "reused": 2}


def test_latents_are_mapped_on_a_cpu_and_kept_on_another_device_where_they_fit(lab: Lab):
    lab.both()
    path, expected = lab.output("latents"), lab.latents()
    name = next(iter(expected))
    assert np.array_equal(open_latents(path)(name).numpy(), expected[name])
    kept = open_latents(path, "meta", room_bytes=path.stat().st_size)
    assert kept(name).device.type == "meta" and kept(name) is kept(name)
    assert open_latents(path, "meta", room_bytes=path.stat().st_size - 1)(name).device.type == "cpu"


@pytest.mark.parametrize(
    ("key", "value"), [("resize_interpolation", "area"), ("alpha_policy", "drop"), ("alpha_mask", True)]
)
def test_what_makes_no_difference_to_these_images_makes_none_to_the_training(lab: Lab, key: str, value: object):
    lab.both()
    before = {role: lab.output(role).read_bytes() for role in ("dataset.json", "geometry.json", "latents")}
    lab.settings[key] = value
    assert lab.both()["encoded"] == 0
    assert {role: lab.output(role).read_bytes() for role in before} == before


# the next images are read while one is encoded


def test_images_are_read_ahead_in_their_order_a_few_at_a_time_and_only_those_that_are_encoded(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
):
    """Seven pictures, one of which has its latents already: three at most have been read beyond the one encoded."""
    lab.both()
    for number in range(4, 10):
        lab.picture(f"{number}.png", number, (64, 64))
    lab.run(DATASET)
    job, workspace = lab.prepare(LATENTS)
    read: list[Path] = []
    encoded: list[int] = []
    plain_read, plain_encode = Workspace.read, lorabuild.stages.latents._encode

    def reading(self: Workspace, path: Path, digest: str | None) -> bytes:
        read.append(path)
        return plain_read(self, path, digest)

    def encoding(*args: object) -> bytes:
        encoded.append(len(read))
        return plain_encode(*args)

    monkeypatch.setattr(Workspace, "read", reading)
    monkeypatch.setattr(lorabuild.stages.latents, "_encode", encoding)
    LATENTS.run(job, workspace, lambda done, total, text: None)
    assert len(encoded) == 12 and len(read) == len(set(read)) == 6
    assert all(have <= number // 2 + 1 + AHEAD for number, have in enumerate(encoded))
    assert workspace.notes == {"encoded": 6, "reused": 3}


def test_a_picture_that_cannot_be_read_ahead_is_told_in_its_turn(lab: Lab):
    """The pieces of those before it are kept, as when one was read after another."""
    lab.run(DATASET)
    job, workspace = lab.prepare(LATENTS)
    rows = sorted(lab.json("geometry.json"), key=lambda row: row["digest"])
    last = next(image for image in workspace.images["images"] if image.digest == rows[-1]["file"])
    last.path.unlink()
    with pytest.raises(InputChanged):
        LATENTS.run(job, workspace, lambda done, total, text: None)
    assert len(workspace.used_pieces) == 5  # two views each of two, and the one that failed
