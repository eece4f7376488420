"""What the picker is told: of each block what `lorabuild blocks` shows, and what its weight and loaders make of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from chops import safetensors
from picking import every_block, picking
from world import World

from lorabuild.report.blocks import data
from lorabuild.report.files import ProjectFiles, StageState
from lorabuild.verbs.blocks import main as blocks

CHOP = {"keep": ["TE", "OUT01"], "weights": {"OUT01": 0.5}, "vector": None, "allow_empty": False}


@pytest.fixture
def files(tmp_path: Path) -> ProjectFiles:
    world = picking(tmp_path / "repository")
    settings = {"project": {"source": "a.safetensors"}, "resize": None, "chop": CHOP}
    paths = {"source": world.root / "projects/ember/a.safetensors"}
    return ProjectFiles("ember", world.root, settings, {}, paths, {})


def test_blocks_hold_what_lorabuild_blocks_shows(files: ProjectFiles, capsys):
    (picker,) = data(files)["pickers"]
    assert blocks([str(files.path("source")), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["blocks"]
    keys = ("block", "modules", "tensors", "bytes", "rank_median", "rank_max", "share")
    assert [{key: row[key] for key in keys} for row in picker["blocks"]] == [
        {key: row[key] for key in keys} for row in shown
    ]
    assert sum(row["share"] for row in picker["blocks"]) == pytest.approx(1)
    assert len(picker["layout"]["bytes"]) == 3 * len(every_block())


def test_it_starts_from_the_manifest(files: ProjectFiles):
    (picker,) = data(files)["pickers"]
    assert {block: weight for block, weight in picker["weights"].items() if weight} == {
        "TE1": 1,
        "TE2": 1,
        "OUT01": 0.5,
    }
    without = replace(files, settings={**files.settings, "chop": None})
    assert set(data(without)["pickers"][0]["weights"].values()) == {1}


def test_it_is_of_the_file_that_the_chop_reads(files: ProjectFiles, tmp_path: Path):
    source = files.path("source")
    resized = replace(files, settings={**files.settings, "resize": {"thr": -3}})
    assert data(resized) is None  # not built yet
    other = {"resized": source, "trained": None, "source": None}
    states = {"resize": StageState("resize", "resize:ember", "stale")}
    (picker,) = data(replace(resized, paths=other, states=states))["pickers"]
    assert (picker["role"], picker["state"]) == ("resized", "stale")


def test_variants_have_pickers_of_their_own(files: ProjectFiles):
    mini = replace(
        files, name="ember@mini", settings={**files.settings, "chop": {**CHOP, "keep": ["IN*"], "weights": None}}
    )
    whole, variant = data(replace(files, variants={"mini": mini}))["pickers"]
    assert (whole["variant"], variant["variant"]) == ("", "mini")
    assert variant["weights"]["INP04"] == 1 and variant["weights"]["OUT01"] == 0


def test_what_a_fraction_does_not_reach_is_told(tmp_path: Path, files: ProjectFiles):
    name = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": ((2, 2048), [0.5] * 4096), f"{name}.lora_up.weight": ((3, 2), [1.0] * 6)}
    tensors |= {f"{name}.dora_scale": ((3, 1), [1.0] * 3), "lora_unet_input_blocks_4_1_x.odd": ((2,), [1.0, 2.0])}
    path = tmp_path / "dora.safetensors"
    path.write_bytes(safetensors(tensors))
    (picker,) = data(replace(files, paths={"source": path}))["pickers"]
    found = {row["block"]: row for row in picker["blocks"]}
    assert (found["OUT01"]["dora"], found["OUT01"]["unscaled"]) == (1, 0)
    assert (found["INP04"]["dora"], found["INP04"]["unscaled"]) == (0, 1)
    assert found["OUT01"]["signs"] == {"unet": [2048], "te1": [], "te2": [], "deep": False}


def test_a_file_without_blocks_has_no_picker(tmp_path: Path, files: ProjectFiles):
    path = World(tmp_path / "w").write("x.safetensors", safetensors({"x": ((1,), [1.0])}))
    assert data(replace(files, paths={"source": path})) is None
