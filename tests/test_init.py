"""`init`: a training continues another project's weights, or a file; both are dependencies like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from standin import Stage

from lorabuild.writing import write_body

MANIFEST = "projects/p1/lora.toml"


def init(stage: Stage, value: str, key: str = "init", project: str = "p1") -> None:
    path = stage.world.root / f"projects/{project}/lora.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("init =", "network_weights ="))]
    text = "\n".join(lines) + "\n"
    path.write_text(text.replace("[recipe]\n", f'[recipe]\n{key} = "{value}"\n'))


def edit(stage: Stage, project: str, old: str, new: str) -> None:
    path = stage.world.root / f"projects/{project}/lora.toml"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))


def planned(stage: Stage, *targets: str) -> dict[str, Any]:
    result = stage.world.lorabuild("plan", "--json", *targets, **stage.env)
    assert result.code in (0, 1), result.err
    return {job["job"]: job for job in json.loads(result.out)["jobs"]}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Two projects, of which p1 continues p0. Built."""
    found = Stage(tmp_path_factory.mktemp("init"), projects=2)
    init(found, "p0")
    said = found.doit()
    assert said.code == 0, said.out + said.err
    return found


@pytest.fixture
def stage(template: Stage, tmp_path: Path) -> Stage:
    return template.copy(tmp_path / "copy")


def test_a_project_that_is_continued_is_built_first_and_another_of_its_bytes_is_another_training(stage: Stage):
    assert stage.doit().built == set()
    edit(stage, "p0", "seed = 0", "seed = 5")
    plan = planned(stage, "train:p1")
    assert (plan["train:p0"]["event"], plan["train:p1"]["event"]) == ("built", "maybe")
    assert plan["train:p1"]["after"] == ["train:p0"]
    result = stage.doit("train:p1")
    assert (result.code, result.built) == (0, {"train:p0", "train:p1"}), result.err
    assert result.why("train:p1") == "init of train:p0: content"
    edit(stage, "p0", "seed = 5", "seed = 0")
    assert stage.doit().built == set(), "what was built once is restored"


def test_a_stale_project_is_built_though_the_one_that_it_continues_is_left_alone(stage: Stage):
    """Nothing of p0 has changed, so that it is not even loaded, but for p1."""
    stage.doit()
    edit(stage, "p1", "seed = 1", "seed = 6")
    assert stage.doit().built >= {"train:p1"}
    edit(stage, "p1", "seed = 6", "seed = 8")
    assert stage.doit("p1").built >= {"train:p1"}


def test_a_no_op_stays_one_and_sees_an_edit_of_what_is_continued(stage: Stage):
    stage.doit()
    assert "nothing to do" in (said := stage.doit()).out or said.built == set()
    edit(stage, "p0", "max_train_steps = 4", "max_train_steps = 5")
    assert {"train:p0", "train:p1"} <= stage.doit().built


def test_headers_tell_of_their_own_project_and_of_the_continued_one_by_its_digest(stage: Stage):
    from lorabuild.header import read_header

    headers = [read_header(stage.world.root / f"build/p{n}/p{n}-chopped.safetensors").metadata for n in (0, 1)]
    assert [header["ss_seed"] for header in headers] == ["0", "1"]
    inputs = json.loads(headers[1]["lorabuild.inputs"])["train"]
    lock = (stage.world.root / "projects/p0/lora.lock").read_text()
    assert inputs["init"] in lock and "init" not in json.loads(headers[0]["lorabuild.inputs"])["train"]
    step = read_header(stage.world.root / "build/p1/p1-step00000002.safetensors").metadata
    assert step["ss_steps"] == "2", "of its own step, not of the weights that it continues"


@pytest.mark.parametrize("key", ["init", "network_weights"])
def test_a_file_counts_by_its_content(stage: Stage, key: str):
    shutil.copy(stage.world.root / "build/p0/p0.safetensors", stage.world.root / "projects/p1/old.safetensors")
    init(stage, "old.safetensors", key)
    assert planned(stage)["train:p1"]["why"] == ["old.safetensors: content"]
    assert stage.doit().built >= {"train:p1"}
    (stage.world.root / "projects/p1/old.safetensors").unlink()
    name = "projects/p1/new.safetensors"
    shutil.copy(stage.world.root / "build/p0/p0-step00000002.safetensors", stage.world.root / name)
    init(stage, "./new.safetensors", key)
    assert stage.doit().built == set(), "neither name nor header are content: stand-ins have one tensor each"
    write_body(stage.world.root / name, [("lora_unet_output_blocks_1_1_proj_in.alpha", "F32", (1,), b"1234")])
    assert "train:p1" in planned(stage)
    assert stage.doit().built >= {"train:p1"}
    (stage.world.root / "projects/p1/new.safetensors").unlink()
    result = stage.doit("train:p1")
    assert result.code == 1
    assert f'{MANIFEST}:17: recipe.{key}: "./new.safetensors": no such file' in result.err + result.out


def test_no_init_any_more_is_told_by_its_key(stage: Stage):
    edit(stage, "p1", 'init = "p0"\n', "")
    assert planned(stage)["train:p1"]["why"] == ['recipe.init: "p0" -> unset']
    out = stage.world.lorabuild("why", "train:p1", **stage.env).out
    assert 'recipe.init: "p0" -> unset' in out


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("p00", 'recipe.init: "p00": no such project (did you mean "p0"?)'),
        ("p1", 'recipe.init: "p1": a circle: p1 -> p1'),
        ("nothing", 'recipe.init: "nothing": no such project; a file\'s name ends with .safetensors'),
    ],
)
def test_a_name_that_is_none_is_one_line(stage: Stage, value: str, said: str):
    init(stage, value)
    result = stage.doit()
    assert result.code == 3 and result.err.count("\n") == 1
    assert result.err.startswith(f"{MANIFEST}:17: {said}")


def test_a_circle_is_one_line(stage: Stage):
    init(stage, "p1", project="p0")
    result = stage.doit()
    assert result.code == 3
    assert result.err == 'projects/p0/lora.toml:17: recipe.init: "p1": a circle: p0 -> p1 -> p0\n'


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("../../build/p0/p0.safetensors", "lies in build/, which is made from the manifests: copy the file beside"),
        ("old.ckpt", "safetensors only"),
        ("note.safetensors", "not a LoRA"),
        ("junk.safetensors", "not a safetensors file: 4 bytes long"),
    ],
)
def test_a_file_that_cannot_be_continued_is_one_line_before_any_work(stage: Stage, value: str, said: str):
    write_body(stage.world.root / "projects/p1/note.safetensors", [("emb_params", "F32", (1,), b"1234")])
    stage.world.write("projects/p1/junk.safetensors", b"junk")
    init(stage, value)
    result = stage.doit()
    assert result.code == 1 and result.built == set()
    assert f'{MANIFEST}:17: recipe.init: "{value}": {said}' in result.err


def test_a_project_that_starts_from_a_file_is_named_by_that(stage: Stage):
    edit(stage, "p0", 'base = "tiny"', 'base = "tiny"\nsource = "x.safetensors"')
    result = stage.doit()
    assert result.code == 3
    assert 'recipe.init: "p0": starts from a file itself (project.source): name that file' in result.err
