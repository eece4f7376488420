"""A project that starts from an existing LoRA: nothing is trained, its metadata stays, and only what changed is built."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sgm_base import write_sgm
from world import World

from lorabuild.hashing import sha256_from
from lorabuild.header import read_header
from lorabuild.writing import write_body

MANIFEST = """\
[project]
base = "{base}"
source = "a.safetensors"
title = "A guide"
[resize]
{resize}
[chop]
keep = {keep}
"""


def manifest(world: World, base: str = "tiny", resize: str = "thr = -2.6", keep: str = '["TE", "OUT01"]') -> None:
    world.write("projects/guide/lora.toml", MANIFEST.format(base=base, resize=resize, keep=keep))


@pytest.fixture
def started(built: World) -> World:
    """The built repository with a project `guide` beside it, that starts from what the first one trained; built, too."""
    manifest(built)
    shutil.copy(built.root / "build/ember/ember.safetensors", built.root / "projects/guide/a.safetensors")
    built.first = built.doit()
    assert built.first.code == 0, built.first.out + built.first.err
    return built


def body(path: Path) -> bytes:
    return path.read_bytes()[read_header(path).data_start :]


def test_it_is_resized_and_chopped_as_what_it_was_made_of(started: World):
    """Equal weights, equal results; and the resize was built once: its key is of weights alone."""
    assert not {job for job in started.first.ran if job.startswith(("train:", "latents:"))}
    assert started.first.ran["spectrum:guide"] == "built"  # from another file
    assert started.first.ran["resize:guide"] == started.first.ran["chop:guide"] == "restored"
    build = started.root / "build"
    for kind in ("resized", "chopped"):
        assert body(build / f"guide/guide-{kind}.safetensors") == body(build / f"ember/ember-{kind}.safetensors")


def test_its_metadata_stays_and_is_amended(started: World):
    before = read_header(started.root / "projects/guide/a.safetensors").metadata
    for kind in ("resized", "chopped"):
        path = started.root / f"build/guide/guide-{kind}.safetensors"
        found = read_header(path).metadata
        for key in ("ss_tag_frequency", "ss_learning_rate", "ss_unet_lr", "ss_seed", "lorabuild.dataset"):
            assert found.get(key) == before.get(key), key
        assert found["ss_output_name"] == f"guide-{kind}"
        assert found["modelspec.title"] == "A guide"
        assert found["ss_network_dim"] == "Dynamic" and "ss_network_args" not in found
        digest = sha256_from(path, read_header(path).data_start)
        assert (found["sshs_model_hash"], found["modelspec.hash_sha256"]) == (digest, f"0x{digest}")
        assert json.loads(found["lorabuild.resize"]) == {"fro_ckpt": 1.0, "thr": -2.6}


@pytest.mark.parametrize(
    ("change", "ran"),
    [
        ({"resize": "thr = -2.4"}, {"resize:guide", "chop:guide"}),
        ({"resize": "fro_lora = 1\nspn_ckpt = 2\nthr = -1.5"}, {"resize:guide", "chop:guide"}),
        ({"resize": "sv_fro = 0.9"}, {"resize:guide", "chop:guide"}),
        ({"resize": "size = 0.5"}, {"resize:guide", "chop:guide"}),
        ({"resize": "subspace = 1\nthr = 0.5"}, {"spectrum:guide", "resize:guide", "chop:guide"}),
        ({"keep": '["OUT00"]'}, {"chop:guide"}),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_an_edit_builds_what_it_changes(started: World, change: dict[str, str], ran: set[str]):
    manifest(started, **change)
    assert started.doit().built == ran
    if "size" in change.get("resize", ""):
        size = (started.root / "build/guide/guide-resized.safetensors").stat().st_size
        assert 0.9 * 2**19 < size <= 2**19
    manifest(started)
    assert started.doit().built == set()


def test_resize_and_chop_import_no_torch(started: World):
    manifest(started, resize="spn_ckpt = 1\nthr = -2", keep='["OUT00"]')
    result, heavy = started.imports()
    assert result.built == {"resize:guide", "chop:guide"}
    assert heavy <= {"numpy"}


def test_touching_the_file_runs_nothing_and_other_weights_do(started: World):
    source = started.root / "projects/guide/a.safetensors"
    os.utime(source, (1, 1))
    assert started.doit().events == []
    shutil.copy(started.root / "build/ember/ember-step00000002.safetensors", source)
    result = started.doit()
    assert result.built == {"spectrum:guide", "resize:guide", "chop:guide"}
    assert result.why("spectrum:guide") == "a.safetensors: content"
    assert result.why("resize:guide") == "spectrum:guide: content"


def test_a_missing_and_a_broken_file_are_one_line(started: World):
    source = started.root / "projects/guide/a.safetensors"
    data = source.read_bytes()
    source.unlink()
    manifest(started, resize="thr = -2.3")
    result = started.doit()
    assert (
        result.code == 1 and 'projects/guide/lora.toml:3: project.source: "a.safetensors": no such file' in result.err
    )
    source.write_bytes(data[:-10])
    result = started.doit()
    assert result.code == 1 and "truncated" in result.out + result.err
    assert "Traceback" not in result.out + result.err
    source.write_bytes(data)
    assert started.doit().code == 0


def source_is(world: World, source: str) -> str:
    """What a build says of a `source`; one line."""
    text = (world.root / "projects/guide/lora.toml").read_text()
    world.write("projects/guide/lora.toml", re.sub("source = .*", f"source = {json.dumps(source)}", text))
    result = world.doit("guide")
    assert "Traceback" not in result.out + result.err
    (line,) = result.err.splitlines() or [""]
    assert (result.code, bool(line)) in ((0, False), (1, True))
    return line.removeprefix(f'projects/guide/lora.toml:3: project.source: "{source}": ')


def test_a_source_that_cannot_be_one_is_told_at_its_line(started: World):
    folder = started.root / "projects/guide"
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "link.safetensors").symlink_to("../../build/ember/ember.safetensors")
    for name in ("a.ckpt", "a.txt"):
        (folder / name).write_bytes(b"")
    in_build = "lies in build/, which is made from the manifests: copy the file beside this one, or give the project"
    for source, said in {
        "aa.safetensors": 'no such file (did you mean "a.safetensors"?)',
        "a.ckpt": "safetensors only: a .ckpt can run code when it is loaded",
        "a.txt": "a .safetensors file was expected",
        "../guide": "a folder; a .safetensors file was expected",
        "pipe.safetensors": "not a regular file",
        "../../build/ember/ember.safetensors": in_build,
        "../../build/none/none.safetensors": in_build,
        "link.safetensors": in_build,
    }.items():
        assert source_is(started, source).startswith(said), source


def test_a_source_may_lie_in_the_home_folder(started: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert source_is(started, "~/a.safetensors").startswith("no such file")
    (tmp_path / "home").mkdir()
    shutil.move(started.root / "projects/guide/a.safetensors", tmp_path / "home")
    assert source_is(started, "~/a.safetensors") == ""


def test_of_a_source_without_resize_and_chop_nothing_is_made(empty: World):
    empty.write("projects/guide/lora.toml", '[project]\nbase = "tiny"\nsource = "a.safetensors"\n')
    result = empty.doit("guide")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "nothing to build: without [resize] and [chop], nothing is made of a project that starts from a file: guide"
    ]


def test_settings_of_a_training_beside_a_source_are_a_warning_at_their_line(started: World):
    text = (started.root / "projects/guide/lora.toml").read_text()
    started.write("recipes/shared.toml", "[recipe]\nseed = 3\n[dataset]\nkeep_tokens = 1\n")
    started.write("projects/guide/lora.toml", 'extends = "shared"\n' + text + '[recipe]\nsave_precision = "fp16"\n')
    assert started.doit().out.splitlines() == ["nothing to do: 11 jobs are fresh"]
    with open(started.root / "projects/guide/lora.toml", "a") as file:
        file.write("network_dim = 8\nseed = 4\n")
    said = "nothing is trained here (project.source), so without effect: network_dim, seed"
    for _ in range(2):  # also where the manifest is remembered
        result = started.doit()
        assert result.out.splitlines()[0] == f"warning: projects/guide/lora.toml:12: recipe: {said}"
        assert result.events == []


def test_without_a_resize_the_file_is_chopped(started: World):
    text = (started.root / "projects/guide/lora.toml").read_text()
    started.write("projects/guide/lora.toml", text.replace("[resize]\nthr = -2.6\n", ""))
    assert started.doit().built == {"chop:guide"}
    found = read_header(started.root / "build/guide/guide-chopped.safetensors")
    whole = read_header(started.root / "projects/guide/a.safetensors").tensors
    kept = {key for key in whole if key.startswith(("lora_te", "lora_unet_output_blocks_1_"))}
    assert set(found.tensors) == kept
    assert not (started.root / "build/guide/guide-resized.safetensors").exists()


def test_a_data_set_beside_a_source_is_read_and_not_trained_on(started: World):
    text = (started.root / "projects/guide/lora.toml").read_text()
    started.write("projects/guide/lora.toml", text + '[[dataset.subset]]\nimage_dir = "../ember/images"\n')
    assert started.doit().built == {"dataset:guide"}


def test_a_single_file_checkpoint_of_equal_weights_gives_the_same_files(started: World):
    """SGM's layout, with q, k, v of the second text encoder in one matrix, as UIs load it."""
    write_sgm(started.root / "real.safetensors")
    started.write("lorabuild.toml", '[bases.real]\nfile = "real.safetensors"\n')
    before = body(started.root / "build/guide/guide-chopped.safetensors")
    manifest(started, base="real")
    result = started.doit()
    assert result.code == 0, result.out + result.err
    assert result.built >= {"norms:real"}
    assert not {job for job in result.ran if job.startswith("base:")}
    assert body(started.root / "build/guide/guide-chopped.safetensors") == before
    assert started.doit().events == []


def test_a_lora_that_is_not_for_the_base_is_one_line(started: World):
    name = "lora_unet_input_blocks_4_1_proj_in"
    write_body(
        started.root / "projects/guide/a.safetensors",
        [(f"{name}.lora_up.weight", "F32", (3, 1), bytes(12)), (f"{name}.lora_down.weight", "F32", (1, 5), bytes(20))],
    )
    result = started.doit()
    said = result.out + result.err
    assert result.code == 1
    assert "not a LoRA for this base" in said and name in said and "Traceback" not in said


def checkpoint(path: Path) -> None:
    write_sgm(path)


def lora_for_wan(path: Path) -> None:
    name = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
    write_body(path, [(name.format(end), "F32", (2, 2), bytes(16)) for end in ("down", "up")])


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (checkpoint, "not a LoRA: it has no LoRA layer, but 'conditioner."),
        (
            lora_for_wan,
            "a LoRA for another model, not for SDXL: it has 'diffusion_model.blocks.0.self_attn.q.lora_down",
        ),
    ],
)
@pytest.mark.parametrize("resized", [True, False])
def test_a_file_that_is_no_lora_for_sdxl_is_refused_at_its_line_before_any_work(
    built: World, write: Callable[[Path], None], said: str, resized: bool
):
    """Of the base, too, which nobody has measured yet; and a project beside it can be built."""
    built.write("lorabuild.toml", '[bases.real]\nfile = "real.safetensors"\n')
    write_sgm(built.root / "real.safetensors")
    text = MANIFEST.format(base="real", resize="thr = -2.6", keep='["OUT01"]')
    built.write("projects/guide/lora.toml", text if resized else text.replace("[resize]\nthr = -2.6\n", ""))
    write(built.root / "projects/guide/a.safetensors")
    result = built.doit()
    (line,) = result.err.splitlines()
    assert result.code == 1 and result.events == []
    assert line.startswith(f'projects/guide/lora.toml:3: project.source: "a.safetensors": {said}')
    assert built.doit("ember").code == 0
    result = built.doit("--continue", "-n", "2")
    assert result.code == 1 and said in result.out + result.err
    assert not (built.root / "build/guide").exists()


def rewritten(path: Path, **changes: str) -> None:
    """The same tensors under other metadata."""
    from lorabuild.writing import header_bytes

    header, data = read_header(path), path.read_bytes()
    entries = [(name, info.dtype, info.shape) for name, info in header.tensors.items()]
    path.write_bytes(header_bytes(entries, {**header.metadata, **changes}) + data[header.data_start :])


def test_what_a_source_says_of_itself_is_not_overwritten_by_a_guess(started: World):
    source = started.root / "projects/guide/a.safetensors"
    rewritten(
        source,
        **{
            "modelspec.prediction_type": "v",
            "ss_sd_model_name": "pony",
            "modelspec.title": "My own",
            "ss_network_alpha": "1",
        },
    )
    text = (started.root / "projects/guide/lora.toml").read_text()
    started.write("projects/guide/lora.toml", text.replace('title = "A guide"\n', ""))
    assert started.doit().code == 0
    found = read_header(started.root / "build/guide/guide-chopped.safetensors").metadata
    assert (found["modelspec.prediction_type"], found["ss_sd_model_name"]) == ("v", "pony")
    assert (found["modelspec.title"], found["ss_output_name"]) == ("My own", "guide-chopped")
    assert found["ss_network_alpha"] == "Dynamic"
    assert json.loads(found["lorabuild.recipe"])["seed"] == 7
    assert {"train", "spectrum", "resize", "chop"} <= set(json.loads(found["lorabuild.stages"]))


def test_other_metadata_of_the_source_is_told_as_what_a_size_counts(started: World):
    manifest(started, resize="size = 0.5")
    assert started.doit().code == 0
    rewritten(started.root / "projects/guide/a.safetensors", my="own")
    result = started.doit()
    assert result.built == {"spectrum:guide", "resize:guide"}
    assert result.why("spectrum:guide") == "a.safetensors: content"
    assert result.why("resize:guide").startswith("other metadata of the source, or tags of the data set, in the file's")


def test_a_base_that_changes_while_it_is_measured_is_measured_again(started: World, monkeypatch: pytest.MonkeyPatch):
    """The record under a base's key holds the norms of that base, and of no other."""
    from lorabuild.engine import Engine
    from lorabuild.errors import InputChanged
    from lorabuild.session import opened

    path = write_sgm(started.root / "real.safetensors")
    started.write("lorabuild.toml", '[bases.real]\nfile = "real.safetensors"\n')
    manifest(started, base="real")
    monkeypatch.chdir(started.root)
    with opened(started.root, writing=True, building=False) as engine:
        found = engine.assess("norms:real")
        Engine.unchanged(engine, found)
        data = bytearray(path.read_bytes())
        data[-200_000:-100_000] = bytes(100_000)  # in the U-Net or beside it: some component is another now
        middle = len(data) // 2
        data[middle : middle + 100_000] = bytes(100_000)
        path.write_bytes(data)
        with pytest.raises(InputChanged):
            Engine.unchanged(engine, found)
