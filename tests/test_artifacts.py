"""What stands in build/ after a build: the modules of an SDXL LoRA, by name, in files that load everywhere."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

from world import World

from lorabuild.header import read_header
from lorabuild.names import block_of

# Tensors a block of SDXL LoCon preset=full, three a module: the layout of the ten-minute recipe.
TENSORS = (
    dict(zip([f"INP0{n}" for n in range(1, 9)], [9, 9, 3, 78, 75, 3, 318, 315], strict=True))
    | dict(zip(["MID00", "MID01", "MID02"], [9, 306, 9], strict=True))
    | dict(zip([f"OUT0{n}" for n in range(9)], [318, 318, 321, 78, 78, 81, 12, 12, 12], strict=True))
    | {"TE1": 216, "TE2": 576}
)


def trained(world: World):
    return read_header(world.root / "build/ember/ember.safetensors")


def test_the_first_build_makes_every_artifact(built_once: World):
    assert set(built_once.built_files()) == {
        f"ember/{name}"
        for name in (
            "dataset.json",
            "train.jsonl",
            "ember.safetensors",
            "ember-step00000002.safetensors",
            "ember-step00000004.safetensors",
            "ember-resized.safetensors",
            "ember-chopped.safetensors",
        )
    }
    stages = ("dataset", "latents", "train", "spectrum", "resize", "chop")
    first = {line["job"] for line in built_once.log() if line["event"] == "built"}
    assert first == {"base:tiny", "norms:tiny", *(f"{stage}:ember" for stage in stages)}


def test_the_trained_file_holds_exactly_the_modules_of_sdxl(built_once: World):
    names = trained(built_once).tensors
    assert Counter(block_of(name) for name in names) == TENSORS
    modules = {name.partition(".")[0] for name in names}
    assert sum(name.startswith("lora_unet_") for name in modules) == 788
    assert sum(name.startswith(("lora_te1_text_model_", "lora_te2_text_model_")) for name in modules) == 264


def test_files_have_one_alpha_one_dtype_and_name_order(built_once: World):
    for name in ("ember", "ember-step00000002", "ember-resized", "ember-chopped"):
        path = built_once.root / f"build/ember/{name}.safetensors"
        header, data = read_header(path), path.read_bytes()
        assert list(header.tensors) == sorted(header.tensors)
        assert {tensor.dtype for tensor in header.tensors.values()} == {"F16"}
        alphas = {data[t.start : t.stop] for key, t in header.tensors.items() if key.endswith(".alpha")}
        assert len(alphas) == 1
        assert header.metadata["ss_output_name"] == name
        assert header.metadata["sshs_model_hash"] == hashlib.sha256(data[header.data_start :]).hexdigest()
        assert header.metadata["modelspec.hash_sha256"] == "0x" + header.metadata["sshs_model_hash"]


def test_metadata_tells_what_made_the_file(built_once: World):
    metadata = trained(built_once).metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["ss_unet_lr"] == "0.005" and metadata["ss_steps"] == "4" and metadata["ss_seed"] == "7"
    assert json.loads(metadata["ss_tag_frequency"])["ember"]["red"] == 4
    assert json.loads(metadata["lorabuild.recipe"])["max_train_steps"] == 4
    everything = json.dumps(metadata)
    assert str(built_once.root) not in everything and "20" + "26-" not in everything  # no paths, no dates


def test_a_chopped_file_tells_its_blocks_and_the_trained_one_does_not(built_once: World):
    chopped = read_header(built_once.root / "build/ember/ember-chopped.safetensors").metadata
    assert chopped["block_vector_string"] == "1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0"
    assert json.loads(chopped["lorabuild.chop"])["keep"]["OUT01"] == 1
    assert not {"lorabuild.chop", "lorabuild.resize", "block_vector_string"} & trained(built_once).metadata.keys()


def test_a_snapshot_does_not_know_the_end(built_once: World):
    snapshot = read_header(built_once.root / "build/ember/ember-step00000002.safetensors").metadata
    assert snapshot["ss_steps"] == "2" and "lorabuild.loss" not in snapshot
    assert "lorabuild.loss" in trained(built_once).metadata


def test_the_held_out_loss_falls(built_once: World):
    lines = [json.loads(line) for line in (built_once.root / "build/ember/train.jsonl").read_text().splitlines()]
    held_out = {line["when"]: line["loss"] for line in lines if line["event"] == "held_out"}
    assert held_out["after"] < held_out["before"]
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3, 4]


def test_resizing_and_chopping_shrink(built_once: World):
    sizes = [
        (built_once.root / f"build/ember/ember{kind}.safetensors").stat().st_size
        for kind in ("", "-resized", "-chopped")
    ]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def test_dataset_json_names_no_file(built_once: World):
    text = (built_once.root / "build/ember/dataset.json").read_text()
    assert ".png" not in text and len(json.loads(text)["images"]) == 4
