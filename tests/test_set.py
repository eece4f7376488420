"""`set` changes a manifest as its user would, or not at all, and says what follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from world import REPOSITORY, World

from lorabuild.cli import _main
from lorabuild.manifest import load
from lorabuild.scaffold.assign import spellings

MANIFEST = """\
extends = "small"

# who
[project]
base = "tiny"

[[dataset.subset]]
image_dir = "images"

[resize]
thr = -2.5   # tried -2 and -3

[chop]
keep = ["TE", "OUT01"]
"""
RECIPE = "[recipe]\nunet_lr = 1e-4\nmax_train_steps = 8\nnetwork_args = { conv_dim = 4 }\n"


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two projects; the first one's manifest."""
    for name in ("ember", "embla"):
        (tmp_path / f"projects/{name}").mkdir(parents=True)
        (tmp_path / f"projects/{name}/lora.toml").write_text(MANIFEST)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/small.toml").write_text(RECIPE)
    (tmp_path / "lorabuild.toml").write_text('[bases.tiny]\nbuiltin = "tiny-sdxl"\n')
    monkeypatch.chdir(tmp_path / "projects/ember")
    return tmp_path / "projects/ember/lora.toml"


def settings(manifest: Path) -> dict:
    return load(manifest.parents[2]).projects[manifest.parent.name].settings


@pytest.mark.parametrize(
    ("given", "line", "said"),
    [
        ("resize.thr=-3.2", "thr = -3.2   # tried -2 and -3", "lora.toml:11: resize.thr: -2.5 -> -3.2"),
        ("chop.keep=TE,MID*", 'keep = ["TE", "MID*"]', 'chop.keep: ["TE", "OUT01"] -> ["TE", "MID*"]'),
        ('chop.keep=["TE"]', 'keep = ["TE"]', '-> ["TE"]'),
        ("chop.keep=!OUT08", 'keep = ["!OUT08"]', '-> ["!OUT08"]'),
        ("recipe.unet_lr=3e-4", "unet_lr = 3e-4", "unet_lr: 1e-4 (recipes/small.toml:2) -> 3e-4"),
        ("project.title=2024", 'title = "2024"', 'project.title: (the default) -> "2024"'),
        ("project.title=A fox, red", 'title = "A fox, red"', '-> "A fox, red"'),
        ("project.trigger='ember'", "trigger = 'ember'", '-> "ember"'),
        ("dataset.resolution=768,512", "resolution = [768, 512]", "(the default) -> [768, 512]"),
        ("dataset.flip_aug=true", "flip_aug = true", "-> true"),
        ("dataset.subset[0].num_repeats=2", "num_repeats = 2", "-> 2"),
        ("chop.weights.OUT01=0.5", "weights.OUT01 = 0.5", "-> 0.5"),
        ("recipe.network_args.algo=loha", 'algo = "loha"', '-> "loha"'),
        ("extends=small", 'extends = "small"', '"small" already'),
    ],
)
def test_a_value_is_read_as_the_schema_wants_it(
    manifest: Path, capsys: pytest.CaptureFixture, given: str, line: str, said: str
):
    assert _main(["set", "ember", given]) == 0
    assert line in manifest.read_text().splitlines()
    assert said in capsys.readouterr().out
    settings(manifest)


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("recipe.network_dmi=8", 3, 'lora.toml:17: recipe.network_dmi: unknown key (did you mean "network_dim"?)'),
        ("resise.thr=1", 3, 'resise: unknown table (did you mean "resize"?)'),
        ("recipe.network_dim=abc", 3, 'recipe.network_dim: expected a whole number, got "abc"'),
        ("chop.keep=TE,OUT1", 3, 'lora.toml:14: chop.keep: "OUT1": no such block (did you mean "OUT01"?)'),
        ("project.kind=charakter", 3, '(did you mean "character"?)'),
        ("project.base=tny", 3, '"tny" is not a base of lorabuild.toml (did you mean "tiny"?)'),
        ("extends=smal", 3, '"smal" is not in recipes/ (did you mean "small"?)'),
        ("recipe.init=embler", 3, 'no such project (did you mean "ember"?)'),
        ("project.base=", 3, "project.base: required, but missing"),
        ("resize.thr=", 3, "resize"),
        ("chop=3", 2, "chop: a table; name a key of it"),
        ("recipe.unet_lr=", 2, "recipe.unet_lr: stands in recipes/small.toml:2, not here"),
        ("resize.thrr=", 2, 'resize.thrr: not in this file (did you mean "resize.thr"?)'),
        ("resize.thr", 2, "expected KEY=VALUE"),
        ("recipe.unet_lr=nan", 3, "recipe.unet_lr: expected a finite number, got nan"),
        ("project.title=Vixen", 2, "project.title: stands twice"),
        ("dataset.subset[5].num_repeats=2", 2, "dataset.subset has 1"),
    ],
)
def test_a_mistake_changes_nothing_and_is_the_line_of_a_build(
    manifest: Path, capsys: pytest.CaptureFixture, given: str, code: int, said: str
):
    assert _main(["set", "ember", "project.title=Fox", given]) == code
    err = capsys.readouterr().err
    assert said in err.replace('lora.toml:18: recipe', 'lora.toml:17: recipe').replace("lora.toml:15: chop", "lora.toml:14: chop")  # fmt: skip
    assert len(err.splitlines()) == 1 and manifest.read_text() == MANIFEST


def test_ways_to_say_one_thing_replace_each_other(manifest: Path, capsys: pytest.CaptureFixture):
    assert _main(["set", "ember", "resize.size=16", "chop.vector=1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0"]) == 0
    said = capsys.readouterr().out
    assert "resize.thr removed: resize.size takes its place" in said and "chop.keep removed" in said
    text = manifest.read_text()
    assert "[resize]\nsize = 16\n" in text and "thr" not in text and '[chop]\nvector = "1,0' in text
    assert _main(["set", "ember", "chop.vector_style=inspire"]) == 0
    assert _main(["set", "ember", "chop.keep=TE", "resize.thr=-2"]) == 0
    assert manifest.read_text().endswith('[resize]\nthr = -2\n\n[chop]\nkeep = ["TE"]\n')
    assert _main(["set", "ember", "recipe.max_train_epochs=3"]) == 0
    assert settings(manifest)["recipe"]["max_train_steps"] is None
    capsys.readouterr()
    assert _main(["set", "ember", "resize.thr=-3", "resize.size=16"]) == 3, "who says both means neither"


def test_variants_are_added_and_removed(manifest: Path):
    assert _main(["set", "ember", "variants.mini.resize.thr=-3", "variants.mini.chop.keep=TE"]) == 0
    assert manifest.read_text() == MANIFEST + '\n[variants.mini.resize]\nthr = -3\n\n[variants.mini.chop]\nkeep = ["TE"]\n'  # fmt: skip
    assert _main(["set", "ember", "variants.mini.resize.size=9"]) == 0
    assert "[variants.mini.resize]\nsize = 9\n" in manifest.read_text()
    assert _main(["set", "ember", "--unset", "variants.mini"]) == 0
    assert manifest.read_text().rstrip() == MANIFEST.rstrip()


def test_several_keys_are_unset(manifest: Path):
    assert _main(["set", "ember", "recipe.seed=1", "project.title=Fox"]) == 0
    assert _main(["set", "ember", "recipe.seed=", "--unset", "project.title", "--unset", "recipe"]) == 0
    assert manifest.read_text().rstrip() == MANIFEST.rstrip()


def test_several_projects_are_all_changed_or_none(manifest: Path, capsys: pytest.CaptureFixture):
    other = manifest.parents[1] / "embla/lora.toml"
    assert _main(["set", "em*", "recipe.seed=9"]) == 0
    assert settings(manifest)["recipe"]["seed"] == settings(other)["recipe"]["seed"] == 9
    other.write_text(MANIFEST.replace("[chop]", '[chop]\nvector_style = "inspire"').replace("thr", "size"))
    before = manifest.read_text(), other.read_text()
    assert _main(["set", "em*", "resize.step=99"]) == 3
    assert (manifest.read_text(), other.read_text()) == before
    assert _main(["set", "embr", "recipe.seed=9"]) == 2 and _main(["set", "x*", "recipe.seed=9"]) == 2
    assert 'embr: no such project (did you mean "ember"?)\nx*: matches no project' in capsys.readouterr().err


def test_a_dry_run_writes_nothing(manifest: Path, capsys: pytest.CaptureFixture):
    assert _main(["set", "ember", "resize.thr=-3", "--dry-run"]) == 0
    assert manifest.read_text() == MANIFEST and "-2.5 -> -3\nnothing was written" in capsys.readouterr().out


def test_a_manifest_with_another_mistake_can_be_mended_by_set(manifest: Path, capsys: pytest.CaptureFixture):
    manifest.write_text(MANIFEST + "allow_emty = true\n[samples]\npromts = 1\n")
    assert _main(["set", "ember", "resize.thr=-3"]) == 0
    assert "still wrong: projects/ember/lora.toml:15: chop.allow_emty: unknown key" in capsys.readouterr().err
    assert _main(["set", "ember", "chop.allow_emty=", "samples="]) == 0
    assert _main(["set", "ember", "resize.thr=-4"]) == 0 and "still wrong" not in capsys.readouterr().err
    manifest.write_text("[project\n")
    assert _main(["set", "ember", "resize.thr=-3"]) == 3
    assert "projects/ember/lora.toml:1: wrong TOML" in capsys.readouterr().err


def test_line_ends_and_the_missing_end_of_the_last_line_stay(manifest: Path):
    text = MANIFEST.removesuffix("\n").replace("\n", "\r\n").encode()
    manifest.write_bytes(text)
    assert _main(["set", "ember", "resize.thr=-3", "recipe.seed=2"]) == 0
    new = manifest.read_bytes()
    assert new.count(b"\n") == new.count(b"\r\n") and new.endswith(b"\r\n[recipe]\r\nseed = 2")


def test_a_manifest_behind_a_link_is_changed_there_and_keeps_its_mode(manifest: Path):
    real = manifest.parents[2] / "shared.toml"
    manifest.rename(real)
    real.chmod(0o600)
    manifest.symlink_to(real)
    assert _main(["set", "ember", "resize.thr=-3"]) == 0
    assert manifest.is_symlink() and "thr = -3 " in real.read_text() and real.stat().st_mode & 0o777 == 0o600


def test_every_spelling_is_one_value():
    assert spellings("-3.2") == ["-3.2", '"-3.2"', "[-3.2]"]
    assert spellings("TE,OUT01") == ['"TE,OUT01"', '["TE", "OUT01"]']
    assert spellings('["TE"]') == ['["TE"]'] and spellings("[TE") == ['"[TE"']
    assert spellings("1 # one")[0] == '"1 # one"' and spellings("1\nb = 2")[0] == r'"1\nb = 2"'


def test_what_will_be_built_is_what_a_build_then_builds(built: World):
    said = built.lorabuild("set", "ember", 'chop.keep=["TE"]').out.splitlines()
    assert said[-1] == "chop:ember will be built"
    assert built.doit().ran == {"chop:ember": "built"}
    said = built.lorabuild("set", "ember", "chop.keep=TE,OUT01").out.splitlines()
    assert said[-1] == "chop:ember will be restored"
    said = built.lorabuild("set", "ember", "project.title=Fox").out.splitlines()
    assert said[-1].startswith("train:ember") and said[-1].endswith("will get another header")
    said = built.doit("set", "ember", "resize.thr=-2.9").out.splitlines()
    assert any(line.startswith("resize:ember") and line.endswith("will be built") for line in said)
    assert (REPOSITORY / "docs/decisions/0031-set-edits-bytes.md").is_file()
