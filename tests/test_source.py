"""A project that starts from an existing LoRA: nothing is trained, its metadata stays, and only what changed is built."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from sgm_base import write_sgm
from world import World

from lorabuild.hashing import sha256_from
from lorabuild.header import read_header

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
        assert found["ss_network_dim"] == "Dynamic"
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
    assert "a.safetensors: content" in result.why("spectrum:guide")


def test_a_missing_and_a_broken_file_are_one_line(started: World):
    source = started.root / "projects/guide/a.safetensors"
    data = source.read_bytes()
    source.unlink()
    manifest(started, resize="thr = -2.3")
    result = started.doit()
    assert result.code == 1 and "a.safetensors: no such file (project.source)" in result.out + result.err
    source.write_bytes(data[:-10])
    result = started.doit()
    assert result.code == 1 and "truncated" in result.out + result.err
    assert "Traceback" not in result.out + result.err
    source.write_bytes(data)
    assert started.doit().code == 0


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
    from lorabuild.header import write_body

    name = "lora_unet_input_blocks_4_1_proj_in"
    write_body(
        started.root / "projects/guide/a.safetensors",
        [(f"{name}.lora_up.weight", "F32", (3, 1), bytes(12)), (f"{name}.lora_down.weight", "F32", (1, 5), bytes(20))],
    )
    result = started.doit()
    said = result.out + result.err
    assert result.code == 1
    assert "not a LoRA for this base" in said and name in said and "Traceback" not in said


def rewritten(path: Path, **changes: str) -> None:
    """The same tensors under other metadata."""
    from lorabuild.header import header_bytes

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
        Engine._unchanged(engine, found)
        data = bytearray(path.read_bytes())
        data[-200_000:-100_000] = bytes(100_000)  # in the U-Net or beside it: some component is another now
        middle = len(data) // 2
        data[middle : middle + 100_000] = bytes(100_000)
        path.write_bytes(data)
        with pytest.raises(InputChanged):
            Engine._unchanged(engine, found)
