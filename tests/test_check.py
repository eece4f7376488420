"""`check` finds all that is wrong at once, at its place, and changes nothing."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import zlib
from functools import reduce
from operator import xor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bad_images import drawn
from checking import MANIFEST, NoTrials, checked, one_project, picture, without_trials
from PIL import Image
from world import World

from lorabuild.checks.batches import share_findings
from lorabuild.checks.captions import doubled, holds
from lorabuild.checks.images import near, twins
from lorabuild.checks.pictures import dhash, facts_of
from lorabuild.codes import CODES, LEVELS
from lorabuild.errors import UsageError
from lorabuild.findings import page
from lorabuild.session import state_of
from lorabuild.verbs import check as verb


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    without_trials(monkeypatch)


@pytest.fixture
def world(empty: World, light: None) -> World:
    return one_project(empty)


def enlarged(png: bytes, side: int) -> bytes:
    """The same PNG, whose header says that it is larger."""
    head = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


def told(world: World, name: str = "ember") -> dict[str, list[str]]:
    """code -> "file:line: message" of the project's findings."""
    found: dict[str, list[str]] = {}
    for one in checked(world).findings[name]:
        found.setdefault(one.code, []).append(f"{one.file.removeprefix('projects/ember/')}:{one.line}: {one.message}")
    return found


def test_a_good_project_has_no_findings_and_its_images_are_told(world: World):
    report = checked(world)
    assert report.exit_code == 0 and report.findings == {"ember": []} and report.others == []
    assert report.projects["ember"].images()[0] == {
        "path": "projects/ember/images/1.png",
        "repeats": 1,
        "size": [64, 64],
        "bucket": [64, 64],
        "resized": [64, 64],
        "crop": [0, 0],
        "tokens": 7,  # ember , red , sit , 1
    }


def test_every_bad_picture_is_found_in_one_run(world: World):
    whole = picture(world, "whole.png", 3).read_bytes()
    cmyk = io.BytesIO()
    drawn(4).convert("CMYK").save(cmyk, "JPEG")
    grey = io.BytesIO()
    Image.new("I;16", (64, 64), 900).save(grey, "PNG")
    moving = io.BytesIO()
    drawn(5).save(moving, "PNG", save_all=True, append_images=[drawn(6)])
    images = {
        "truncated.png": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "no picture.webp": b"hello",
        "really a png.jpg": whole,
        "cmyk.jpg": cmyk.getvalue(),
        "grey16.png": grey.getvalue(),
        "moving.png": moving.getvalue(),
        "line\nbreak.png": b"",
        "“quoted” 'name'.png": b"x",
        "日本語 🔥.png": b"x",
        "clip.gif": b"GIF89a",
        "bomb.png": enlarged(whole, 40_000),
    }
    for name, data in images.items():
        world.write(f"projects/ember/images/{name}", data)
    with open(os.path.join(os.fsencode(world.root), b"projects/ember/images/\xff.png"), "wb") as file:
        file.write(whole)
    os.symlink("round.png", world.root / "projects/ember/images/round.png")
    os.symlink("nowhere.png", world.root / "projects/ember/images/link.png")
    (world.root / "projects/ember/images/folder.png").mkdir()
    found = told(world)
    bad = {line.partition(":0")[0].removeprefix("images/") for line in found["LB031"]}
    assert bad == {
        "truncated.png", "empty.jpg", "no picture.webp", "line\nbreak.png", "“quoted” 'name'.png", "日本語 🔥.png", "round.png", "link.png", "bomb.png", "\udcff.png",
    }  # fmt: skip
    assert "images/really a png.jpg:0: is a PNG file: its name should end in .png" in found["LB037"]
    assert "first of 2 frames" in found["LB038"][0]
    assert [line.partition(":")[0] for line in found["LB039"]] == ["images/cmyk.jpg", "images/grey16.png"]
    assert "clip.gif" in found["LB040"][0]
    assert "images/whole.png" in found["LB035"][0] or "really a png" in found["LB035"][0]
    lines = "\n".join(map(str, checked(world).findings["ember"]))
    assert all(": error: " in line or ": warn: " in line for line in lines.splitlines()) and lines.encode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_that_may_not_be_read_is_found(world: World):
    picture(world, "secret.png", 4).chmod(0)
    assert "images/secret.png:0: Permission denied" in told(world)["LB031"]


def test_captions_are_judged_at_their_lines(world: World):
    for number, text in enumerate(
        [b"red, caf\xe9", b"", b"ember, Red, sit, red", b"a dog", b"ember " + b"red " * 80, b"ember, one\nmore"], 3
    ):
        picture(world, f"{number}.png", number)
        world.write(f"projects/ember/images/{number}.txt", text)
    picture(world, "9.png", 9)
    world.write("projects/ember/images/lonely.txt", "ember")
    found = told(world)
    assert "offset 8" in found["LB050"][0] and found["LB050"][0].startswith("images/3.txt:1:")
    assert found["LB051"] == ["images/9.png:0: no caption (9.txt)"]
    assert found["LB052"] == ["images/4.txt:1: empty"]
    assert found["LB053"] == ['images/5.txt:1: "red" stands twice']
    assert found["LB054"] == ['images/6.txt:1: the trigger "ember" is not in it']
    assert found["LB055"] == ["images/7.txt:1: 81 tokens, 6 more than max_token_length 75: they are cut off"]
    assert found["LB056"] == ["images/lonely.txt:0: a caption without an image"]
    assert found["LB057"][0].startswith("images/8.txt:2:")


def test_captions_are_judged_as_training_sees_them(world: World):
    dataset = 'caption_prefix = "ember,"\nenable_wildcard = true\n[[dataset'
    world.write("projects/ember/lora.toml", MANIFEST.replace("[[dataset", dataset))
    world.write("projects/ember/images/1.txt", "a {red|small big blue} cat\na dog")
    world.write("projects/ember/images/2.txt", "ember, red")
    found = told(world)
    assert found == {"LB053": ['images/2.txt:1: "ember" stands twice']}
    tokens = [row["tokens"] for row in checked(world).projects["ember"].images()]
    assert tokens == [7, 5]  # ember , a small big blue cat


def test_folders_named_by_repeats_and_regularisation_are_looked_into(world: World):
    picture(world, "../raw/3_ember fox/1.png", 5)
    picture(world, "../reg/1_fox/1.png", 6, (32, 128))
    picture(world, "../reg/1_fox/2.png", 7, (32, 128)).with_suffix(".txt").write_text("a fox")
    folders = 'train_data_dir = "raw"\nreg_data_dir = "reg"\n'
    world.write("projects/ember/lora.toml", MANIFEST.replace('[[dataset.subset]]\nimage_dir = "images"\n', folders))
    report = checked(world)
    rows = {row["path"]: row["repeats"] for row in report.projects["ember"].images()}
    assert rows == {
        "projects/ember/raw/3_ember fox/1.png": 3,
        "projects/ember/reg/1_fox/1.png": 1,
        "projects/ember/reg/1_fox/2.png": 1,
    }
    assert report.findings == {"ember": []}  # class tokens are captions; regularisation needs no trigger
    assert [one.samples for one in report.projects["ember"].buckets] == [3, 3]
    world.write("projects/ember/lora.toml", MANIFEST.replace("[[dataset", 'train_data_dir = "images"\n[[dataset'))
    assert told(world)["LB030"][0].startswith("lora.toml:11: dataset.train_data_dir: projects/ember/images: no folders")


def test_tags_and_triggers_are_found_as_words():
    assert doubled("a, b, A, , , c, b", ",") == ["A", "b"]
    assert holds("A photo of Ember.", "ember") and not holds("embers, remember", "ember")
    assert holds("a (ember fox:1.2)", "ember fox")


def test_tokens_are_those_of_the_tokenizers_that_train(world: World):
    from tiny_base import tiny_folder

    from lorabuild.nn.base import load_tokenizers

    texts = ["ember, Red cat's  dog", "(weird:1.2), 日本語 123 <|endoftext|> é", "x" * 400, ""]
    lengths = [[len(row) - 2 for row in one(texts).input_ids] for one in load_tokenizers(tiny_folder())]
    from lorabuild.checks.tokens import token_counts

    with state_of(world.root) as state:
        for folder in (None, tiny_folder()):
            counts = token_counts({"builtin": "tiny-sdxl"}, folder, texts, state)
            assert counts == [max(both) for both in zip(*lengths, strict=True)]
            assert token_counts({"builtin": "tiny-sdxl"}, folder, texts, state) == counts  # remembered


def test_images_that_do_not_fit_their_bucket_are_told(world: World):
    picture(world, "long.png", 3, (300, 20))
    picture(world, "small.png", 4, (16, 16))
    found = told(world)
    assert found["LB033"][0].startswith("images/long.png") and "of its area" in found["LB033"][0]
    assert any(line.startswith("images/small.png:0: 16x16 is enlarged 4.00 times") for line in found["LB034"])


def test_an_image_for_which_there_is_no_bucket_is_an_error(world: World):
    world.write("projects/ember/lora.toml", MANIFEST.replace("[[dataset", "bucket_no_upscale = true\n[[dataset"))
    picture(world, "small.png", 4, (16, 16))
    assert told(world)["LB032"][0].startswith("images/small.png:0: 16x16 is smaller than one bucket step")


def test_copies_and_near_copies_are_told_once_and_others_not(world: World):
    picture(world, "same.png", 1, compress_level=1)
    data = io.BytesIO()
    drawn(2, (64, 64)).resize((80, 80)).save(data, "JPEG", quality=80)
    world.write("projects/ember/images/smaller.jpg", data.getvalue())
    found = told(world)
    assert found["LB035"] == ["images/same.png:0: the same pixels as projects/ember/images/1.png"]
    assert len(found["LB036"]) == 1 and "as projects/ember/images/2.png" in found["LB036"][0]


def test_pictures_without_edges_are_near_to_none():
    flat = {}
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        data = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(data, "PNG")
        flat[Path(name)] = (name, facts_of(data.getvalue()))
    assert twins(flat) == []
    assert dhash(Image.new("RGB", (32, 32))) == 0


@pytest.mark.parametrize("seed", range(8))
def test_near_pictures_are_found_as_by_comparing_each_with_each(seed: int):
    chance = random.Random(seed)
    hashes = [chance.getrandbits(64) & 0xFFFF_FFFF for _ in range(12)]
    while len(hashes) < 150:
        flips = [1 << chance.randrange(64) for _ in range(chance.randrange(7))]
        hashes.append(reduce(xor, flips, chance.choice(hashes)))
    chance.shuffle(hashes)
    wanted = []
    for number, one in enumerate(hashes):
        bits = [(one ^ other).bit_count() for other in hashes[:number]]
        wanted += [(number, at, count) for at, count in enumerate(bits) if count <= 4][:1]
    assert len(wanted) > 50 and list(near(hashes)) == wanted


def test_many_pictures_are_not_compared_each_with_each():
    chance = random.Random(1)
    hashes = [chance.getrandbits(64) for _ in range(100_000)]  # each with each: 5 thousand million
    hashes.append(hashes[77] ^ 0b1011)
    assert list(near(hashes)) == [(100_000, 77, 3)]


def test_a_smaller_or_recompressed_picture_has_nearly_the_same_dhash():
    grain = Image.effect_noise((96, 128), 60).resize((384, 512), Image.Resampling.BILINEAR)
    shapes = Image.radial_gradient("L").resize((384, 512)).rotate(31)
    whole = Image.blend(shapes, grain, 0.15).convert("RGB")
    file = io.BytesIO()
    whole.save(file, "JPEG", quality=60)
    for other in (Image.open(file), whole.resize((192, 256)), whole.resize((1000, 1333))):
        assert (dhash(whole) ^ dhash(other)).bit_count() <= 4


def test_dhash_is_a_bit_a_pair_of_neighbours():
    rising = Image.linear_gradient("L").rotate(90).convert("RGB")
    assert dhash(rising) in (2**64 - 1, 0) and dhash(rising.rotate(180)) == 2**64 - 1 - dhash(rising)


def test_buckets_that_do_not_fill_a_batch_are_told(world: World):
    world.write("projects/ember/lora.toml", MANIFEST + "train_batch_size = 3\ngradient_accumulation_steps = 2\n")
    found = told(world)
    assert found["LB060"] == [
        "lora.toml:16: recipe.train_batch_size: 1 of 1 buckets do not fill one batch of 3: 64x64 (2)"
    ]
    assert found["LB061"] == [
        "lora.toml:16: recipe.train_batch_size: batch 3 x accumulation 2 is an epoch or more: 2 samples"
    ]
    (bucket,) = checked(world).projects["ember"].buckets
    assert (bucket.samples, bucket.batches, bucket.tail) == (2, 1, 2)


def test_an_empty_and_a_missing_folder_are_errors_at_the_line_that_names_them(world: World):
    (world.root / "projects/ember/none").mkdir()
    world.write(
        "projects/ember/lora.toml",
        MANIFEST.replace(
            'image_dir = "images"', 'image_dir = "none"\n[[dataset.subset]]\nimage_dir = "gone"\nnum_repeats = 2'
        ),
    )
    lines = [line.partition(": projects")[0] for line in told(world)["LB030"]]
    assert lines == ["lora.toml:12: dataset.subset.image_dir", "lora.toml:14: dataset.subset.image_dir"]
    assert checked(world).exit_code == 1


def test_an_image_in_two_subsets_has_two_rows_and_its_findings_once(world: World):
    world.write(
        "projects/ember/lora.toml",
        MANIFEST.replace("[recipe]", '[[dataset.subset]]\nimage_dir = "images"\nnum_repeats = 3\n[recipe]'),
    )
    picture(world, "9.png", 9)
    report = checked(world)
    rows = report.projects["ember"].images()
    assert [row["repeats"] for row in rows] == [1, 1, 1, 3, 3, 3]
    assert [one.code for one in report.findings["ember"]] == ["LB051"]


def test_a_wrong_manifest_is_told_beside_the_findings_of_the_others(world: World):
    world.write("projects/frost/lora.toml", MANIFEST + "max_train_stepz = 3\n")
    picture(world, "bad.png").write_bytes(b"x")
    report = checked(world)
    (wrong,) = report.findings["frost"]
    assert (wrong.code, wrong.file, wrong.line) == ("LB001", "projects/frost/lora.toml", 16)
    assert "LB031" in [one.code for one in report.findings["ember"]]
    assert report.exit_code == 3


def test_the_line_and_what_is_meant_in_it_stand_below_a_message(world: World, capsys, monkeypatch):
    world.write("projects/ember/lora.toml", MANIFEST.replace("max_train_steps = 4", "max_train_stesp = 4"))
    monkeypatch.chdir(world.root)
    monkeypatch.setenv("NO_COLOR", "1")
    assert verb.main([]) == 3
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if "[LB001]" in line)
    assert lines[at].startswith("projects/ember/lora.toml:15: error: recipe.max_train_stesp: unknown key")
    assert lines[at + 1 : at + 3] == ["  15 | max_train_stesp = 4", "     | ^~~~~~~~~~~~~~~"]
    verb.main(["--json"])
    assert json.loads(capsys.readouterr().out)["projects"]["ember"]["findings"][0]["line"] == 15


def test_a_clash_with_a_recipe_names_the_manifest_that_has_it(world: World):
    world.write("recipes/text.toml", "[recipe]\nnetwork_train_text_encoder_only = true\n")
    world.write("projects/ember/lora.toml", f'extends = "text"\n{MANIFEST}network_train_unet_only = true\n')
    (one,) = checked(world).others
    assert str(one).startswith("recipes/text.toml:2: error: recipe.network_train_text_encoder_only: ")
    assert one.message.endswith("nothing would be trained (in projects/ember/lora.toml)")


def test_wrong_shared_files_and_recipes_are_of_no_project(world: World):
    world.write("lorabuild.toml", "[base]\n")
    report = checked(world, "ember")
    assert report.exit_code == 3 and [one.file for one in report.others] == ["lorabuild.toml"]


def test_levels_of_a_manifest_count(world: World):
    picture(world, "9.png", 9)
    assert checked(world).exit_code == 0
    world.write("projects/ember/lora.toml", MANIFEST + '[check]\nlevels = { lb051 = "error" }\n')
    assert checked(world).exit_code == 1
    world.write("projects/ember/lora.toml", MANIFEST + '[check.levels]\nLB051 = "off"\n')
    assert checked(world).findings == {"ember": []}
    world.write("projects/ember/lora.toml", MANIFEST + '[check.levels]\nLB001 = "off"\nLB51 = "off"\n')
    said = " ".join(one.message for one in checked(world).findings["ember"])
    assert "always an error" in said and 'did you mean "LB051"' in said


def test_a_base_that_is_not_there_or_not_whole_is_an_error_of_no_project(world: World):
    world.write("projects/ember/lora.toml", MANIFEST.replace('"tiny"', '"big"'))
    world.write("lorabuild.toml", '[bases.big]\nfile = "big"\n')
    report = checked(world)
    assert [(one.code, one.line) for one in report.others] == [("LB020", 2)] and report.exit_code == 1
    assert "not tried" in " ".join(report.projects["ember"].notes)
    world.write("big/unet/config.json", "{}")
    others = checked(world).others
    assert {one.code for one in others} == {"LB021"}
    assert any("tokenizer1" in one.message for one in others) and any("unet" in one.message for one in others)


def test_what_is_saved_is_counted_and_has_to_fit_on_the_disk(world: World, monkeypatch: pytest.MonkeyPatch):
    adapter = {"modules": {"unet": 788}, "parameters": 9, "bytes": 3_000_000, "networks": {"unet": 9}}
    tried = {"adapter": adapter, "faults": [], "notes": []}
    monkeypatch.setattr(NoTrials, "outcome", lambda self: {name: tried for name in self.tasks})
    manifest = MANIFEST + "save_every_n_epochs = 1\n"
    world.write("projects/ember/lora.toml", manifest)
    assert checked(world).projects["ember"].snapshots == 1  # 4 updates are two epochs of two batches
    assert "LB075" not in told(world)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=11_000_000))
    assert told(world)["LB075"] == ["lora.toml:14: recipe: the weights that are saved take 12 MB, and 11 MB are free"]


@pytest.mark.parametrize(
    ("processes", "accumulation", "batch", "said"),
    [
        (1, 6, 1, ""),
        (2, 6, 1, ""),
        (4, 6, 1, "6 micro-batches ÷ 4 processes: some have 2, others 1 and wait"),
        (4, 1, 4, ""),
        (4, 1, 2, "1 micro-batch, cut into 2 parts, ÷ 4 processes: 2 idle"),
        (2, 1, 1, "1 micro-batch ÷ 2 processes: 1 idle"),
        (4, 3, 8, "3 micro-batches, cut into 6 parts, ÷ 4 processes: some have 2, others 1 and wait"),
    ],
)
def test_the_shares_of_processes_are_those_that_are_dealt(processes: int, accumulation: int, batch: int, said: str):
    from lorabuild.nn.parallel import units

    recipe = {"processes": processes, "gradient_accumulation_steps": accumulation, "train_batch_size": batch}
    lines = [one.message for one in share_findings(recipe, "lora.toml", 3)]
    assert lines == ([f"recipe.processes: an update's {said}"] if said else [])
    assert bool(said) == bool(len(units([batch] * accumulation, processes)) % processes)


def test_several_processes_and_prompts_are_told(world: World):
    world.write("projects/ember/prompts.txt", "a cat\na dog\na bird\n")
    extra = 'processes = 2\n[samples]\nprompts = "prompts.txt"\n'
    world.write("projects/ember/lora.toml", MANIFEST + extra)
    found = told(world)
    assert found["LB083"] == [
        "lora.toml:18: samples.prompts: 3 prompts ÷ 2 processes: one draws, 1 wait for it each time"
    ]
    assert found["LB062"][0].startswith("lora.toml:16: ")
    world.write("projects/ember/lora.toml", MANIFEST + extra.replace("= 2", "= 1"))
    assert not {"LB083", "LB062"} & told(world).keys()


def test_a_base_that_is_not_the_pinned_one_is_an_error_at_its_pin(world: World):
    from tiny_base import tiny_folder

    from lorabuild.components import pinned_file
    from lorabuild.hashing import sha256_from

    right = sha256_from(pinned_file(tiny_folder()))
    world.write("projects/ember/lora.toml", MANIFEST.replace('"tiny"', '"mine"'))
    world.write("lorabuild.toml", f'[bases.mine]\nfile = "{tiny_folder()}"\ndigest = "{right[:12]}"\n')
    assert checked(world).others == []
    wrong = f"{'0' * 12}"
    world.write("lorabuild.toml", f'[bases.mine]\nfile = "{tiny_folder()}"\ndigest = "{wrong}"\n')
    (one,) = checked(world).others
    assert (one.code, one.file, one.line) == ("LB025", "lorabuild.toml", 3)
    assert f"its sha256 is {right}, not {wrong}" in one.message


def test_prompts_are_judged_at_their_lines(world: World):
    world.write("projects/ember/lora.toml", MANIFEST + '[samples]\nprompts = "prompts.txt"\n')
    assert told(world)["LB080"] == ["lora.toml:17: samples.prompts: projects/ember/prompts.txt: no such file"]
    world.write("projects/ember/prompts.txt", "ember --w 64\n\nember --q 3\n")
    assert [line[:18] for line in told(world)["LB080"]] == ["prompts.txt:3: --q"]
    world.write("projects/ember/prompts.txt", "# two\nember --w 67 --d 1\nember" + " red" * 80)
    found = told(world)
    assert found["LB081"][0].startswith("prompts.txt:2: --w 67") and found["LB082"][0].startswith(
        "prompts.txt:3: 81 tok"
    )
    assert checked(world).exit_code == 0


def test_a_lora_to_start_from_that_is_none_is_an_error_at_its_line(world: World):
    start = 'kind = "character"\nsource = "old.safetensors"\n'
    world.write("projects/ember/lora.toml", MANIFEST.replace('kind = "character"\n', start) + "[chop]\n")
    assert told(world)["LB023"] == ['lora.toml:4: project.source: "old.safetensors": no such file']
    world.write("projects/ember/old.safetensors", b"\x80\x04")
    assert told(world)["LB023"][0].startswith('lora.toml:4: project.source: "old.safetensors": ')


def test_a_lora_to_continue_from_that_is_none_is_an_error_at_its_line(world: World):
    world.write("projects/ember/lora.toml", MANIFEST + 'network_weights = "old.safetensors"\n')
    (said,) = told(world)["LB073"]
    assert said.startswith("lora.toml:16: recipe.network_weights: ") and "no such file" in said


def test_a_place_that_cannot_be_written_to_is_an_error(world: World):
    world.write("build", "a file")
    (one,) = checked(world).others
    assert (one.code, one.file) == ("LB090", "build")


def test_nothing_changes_but_the_cache_and_nothing_is_decoded_twice(world: World, monkeypatch: pytest.MonkeyPatch):
    def files() -> dict[str, tuple[int, bytes]]:
        paths = [path for path in world.root.rglob("*") if path.is_file() and ".lorabuild" not in path.parts]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    before, first = files(), checked(world)
    assert files() == before
    assert {path.name.partition("-")[0] for path in (world.root / ".lorabuild").iterdir()} == {"state.sqlite"}

    def decode(data: bytes, *args: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("lorabuild.checks.pictures.opened", decode)
    assert checked(world).projects["ember"].images() == first.projects["ember"].images()


def test_the_json_is_the_public_face(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    picture(world, "bad.png").write_bytes(b"")
    monkeypatch.chdir(world.root / "projects")
    assert verb.main(["--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["findings"] == [] and [*facts["projects"]] == ["ember"]
    assert [row["path"][-5:] for row in facts["projects"]["ember"]["images"]] == ["1.png", "2.png"]
    assert {
        "code": "LB031",
        "level": "error",
        "file": "projects/ember/images/bad.png",
        "line": None,
        "message": "an empty file",
    } in facts["projects"]["ember"]["findings"]


def test_an_unknown_project_is_a_mistake_of_usage(world: World):
    with pytest.raises(UsageError, match='did you mean "ember"'):
        checked(world, "embr")


def test_the_page_of_codes_is_the_tables():
    docs = Path(__file__).resolve().parents[1] / "docs/findings.md"
    assert docs.read_text() == page(), "python -m lorabuild.findings > docs/findings.md"
    assert all(code.level in LEVELS and code.title and code.text for code in CODES.values())


def test_the_light_part_imports_no_torch(world: World):
    code = (
        "import sys; from pathlib import Path; from lorabuild.checks import repository as r; from lorabuild.session import state_of\n"
        "sys.path.insert(0, sys.argv[2]); from test_check import NoTrials; r.Trials = NoTrials\n"
        "before = set(sys.modules)\n"
        "with state_of(Path(sys.argv[1])) as state: r.check(Path(sys.argv[1]), (), state)\n"
        "print({'torch', 'diffusers', 'lycoris'} & set(sys.modules))"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, str(world.root), here], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_of_a_usual_recipe_no_process_has_torch(empty: World, monkeypatch: pytest.MonkeyPatch):
    def start(tasks: Any) -> Any:
        raise AssertionError("started")

    monkeypatch.setattr("lorabuild.checks.recipe._start", start)
    empty.write("projects/ember/lora.toml", MANIFEST)
    picture(empty, "1.png")
    empty.write("projects/ember/images/1.txt", "ember")
    report = checked(empty)
    adapter = report.projects["ember"].adapter
    assert report.findings["ember"] == [] and adapter is not None and adapter["modules"] == {"unet": 788, "te": 264}
    empty.write("projects/ember/lora.toml", MANIFEST + 'optimizer_type = "Prodigy"\n')
    with pytest.raises(AssertionError, match="started"):
        checked(empty)


def test_recipes_are_tried_dry_and_what_went_well_is_remembered(empty: World, monkeypatch: pytest.MonkeyPatch):
    from tiny_base import tiny_folder

    for name in ("ember", "frost"):
        empty.write(f"projects/{name}/lora.toml", MANIFEST.replace('"tiny"', '"odd"' if name == "frost" else '"tiny"'))
        empty.write(f"projects/{name}/images/1.txt", "ember")
        empty.write(f"projects/{name}/images/1.png", picture(empty, "1.png").read_bytes())
    shutil.copytree(tiny_folder(), empty.root / "odd", copy_function=os.link)
    config = empty.root / "odd/unet/config.json"
    facts = json.loads(config.read_text()) | {"layers_per_block": 1}
    config.unlink()
    config.write_text(json.dumps(facts))
    empty.write("lorabuild.toml", '[bases.odd]\nfile = "odd"\n')
    wrong_optimizer = 'optimizer_type = "torch.optim.Adamm"\nlr_scheduler_type = "StepLRR"\n'
    empty.write("projects/glow/lora.toml", MANIFEST.replace('"images"', '"../ember/images"') + wrong_optimizer)
    report = checked(empty)
    assert [(one.code, one.line) for one in report.findings["glow"]] == [("LB071", 16), ("LB072", 17)]
    assert report.findings["ember"] == []
    adapter = report.projects["ember"].adapter
    assert adapter is not None and adapter["modules"] == {"unet": 788, "te": 264}
    (wrong,) = report.findings["frost"]
    assert (wrong.code, wrong.file, wrong.line) == ("LB021", "lorabuild.toml", 2) and report.exit_code == 1
    assert "not the weights of its config.json" in wrong.message and "unexpected, such as down_blocks" in wrong.message

    started: list[Any] = []

    def start(tasks: Any) -> Any:
        started.extend(tasks)
        return subprocess.Popen([sys.executable, "-c", "import sys; sys.exit('no torch')"], **PIPES)

    monkeypatch.setattr("lorabuild.checks.recipe._start", start)
    report = checked(empty)
    assert len(started) == 2 and report.findings["ember"] == []
    assert "ended early: no torch" in report.findings["frost"][0].message


PIPES: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def test_the_size_told_is_that_of_the_file_but_for_its_metadata(tmp_path: Path):
    from tiny_base import RECIPE, tiny_base

    from lorabuild.nn.adapter import Shape, adapted
    from lorabuild.nn.dry import dry
    from lorabuild.nn.export import write_adapter
    from lorabuild.nn.trainer import trained_parts

    shape = Shape.of(RECIPE)
    with adapted(tiny_base(), shape, 1, trained_parts(RECIPE)) as adapter:
        write_adapter(tmp_path / "a.safetensors", adapter, shape.alpha, "fp16")
        parameters = sum(p.numel() for part in adapter.parts for p in adapter.parameters(part).values())
    told = dry(RECIPE, None)
    assert (told.bytes, told.parameters) == ((tmp_path / "a.safetensors").stat().st_size, parameters)
