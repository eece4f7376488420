"""`init` and `new`: what they write builds at once, and what stands there already stays."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from world import REPOSITORY, World

from lorabuild import __version__
from lorabuild.cli import _main
from lorabuild.manifest import load
from lorabuild.manifest.editors import FILES, SCHEMAS
from lorabuild.manifest.editors import text as text_of
from lorabuild.names import RESERVED
from lorabuild.scaffold.recipes import packaged
from lorabuild.scaffold.repository import REGISTERED, SHARED

NAMED = "#:schema ../../schema/lora.schema.json\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working folder; pictures lie beside it."""
    folder = tmp_path / "my loras"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def repository(here: Path, capsys: pytest.CaptureFixture) -> Path:
    assert _main(["init"]) == 0
    capsys.readouterr()
    return here


def pictures(folder: Path, extension: str = ".txt", tags: str = "ember, red", count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder)
    for number in range(1, count + 1):
        world.picture(f"{number}.png", number)
        if extension:
            world.write(f"{number}{extension}", f"{tags}, {number}")
    return folder


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_init_makes_a_repository_and_a_second_one_changes_nothing(here: Path, capsys: pytest.CaptureFixture):
    assert _main(["init"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("next:\n  lorabuild new NAME --images FOLDER\n  doit\n") and "made dodo.py" in said
    made = files(here)
    recipes = {f"recipes/{path.name}" for path in (REPOSITORY / "recipes").glob("*.toml")}
    schemas = {f"schema/{kind}.schema.json" for kind in SCHEMAS}
    assert made.keys() == {"dodo.py", "doit.cfg", "lorabuild.toml", ".gitignore", *recipes, *schemas}
    assert (here / "projects").is_dir()
    assert load(here).bases.keys() == {"tiny"}
    assert _main(["init"]) == 0
    assert files(here) == made and capsys.readouterr().out.startswith("nothing to do: this folder is a repository")


def test_a_copied_recipe_says_where_it_came_from_and_says_the_same(repository: Path):
    for name, path in packaged().items():
        copy = (repository / "recipes" / f"{name}.toml").read_text()
        assert f"recipe {name} of lorabuild {__version__}" in copy.splitlines()[1]
        assert tomllib.loads(copy) == tomllib.loads(path.read_text())


def test_the_recipes_are_in_the_wheel():
    said = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert said["package-dir"] == {"lorabuild.recipes": "recipes"} and "lorabuild.recipes" in said["packages"]
    assert said["package-data"]["lorabuild.recipes"] == ["*.toml"]


def test_what_is_made_names_its_schema_in_its_first_line(repository: Path):
    """By a path from the file that names it, as taplo reads it: editors complete and check with no setting."""
    assert _main(["new", "ember"]) == _main(["new", "frost", "--from", "ember", "--trigger", "frost"]) == 0
    assert _main(["set", "ember", "project.trigger=ember"]) == 0
    found = [(kind, path) for kind, patterns in FILES.items() for one in patterns for path in repository.glob(one)]
    assert {path.name for _, path in found} >= {"lorabuild.toml", "lora.toml", "tiny.toml"}
    for kind, path in found:
        directive, _, schema = path.read_text().splitlines()[0].partition(" ")
        assert directive == "#:schema" and schema.startswith(("./", "../")), path
        assert (path.parent / schema).read_text() == text_of(SCHEMAS[kind]()), path
    assert (repository / "projects/frost/lora.toml").read_text().count("#:schema") == 1


def test_without_a_schema_in_the_repository_none_is_named(repository: Path):
    for path in [*(repository / "schema").iterdir(), *(repository / "recipes").iterdir()]:
        path.unlink()
    assert _main(["new", "ember"]) == 0
    made = [*(repository / "recipes").iterdir(), repository / "projects/ember/lora.toml"]
    assert len(made) == 3 and not [path for path in made if "#:schema" in path.read_text()]


def test_init_overwrites_nothing_and_says_what_it_left(here: Path, capsys: pytest.CaptureFixture):
    mine = {
        "dodo.py": b"def task_mine(): ...\n",
        "lorabuild.toml": b"[slots]\ngpu = 4\n",
        "recipes/schnell.toml": b"# mine\n",
        "notes.txt": b"mine\n",
    }
    (here / "recipes").mkdir()
    for name, data in mine.items():
        (here / name).write_bytes(data)
    (here / ".gitignore").write_bytes(b"*.log\r\n.lorabuild")
    assert _main(["init"]) == 0
    said = capsys.readouterr().out
    assert {name: (here / name).read_bytes() for name in mine} == mine
    for name in ("lorabuild.toml", "recipes/schnell.toml"):
        assert f"left {name} as it is" in said
    assert "left dodo.py and doit's settings as they are" in said and said.endswith("  lorabuild build\n")
    assert not (here / "doit.cfg").exists()  # under our commands doit would not find the task mine
    (here / "recipes/schnell.toml").write_text("")
    assert _main(["new", "ember"]) == 0 and capsys.readouterr().out.endswith("  lorabuild build ember\n")
    ignored = (here / ".gitignore").read_bytes()
    assert ignored.startswith(b"*.log\r\n.lorabuild\r\n/build/\r\n") and ignored.count(b"lorabuild/") == 0


def test_init_adds_to_a_pyproject_and_leaves_the_rest_of_it(here: Path, capsys: pytest.CaptureFixture):
    text = (
        '[project]\nname = "mine"  # ours\n\n[tool.doit.plugins.command]\nmine = "mine:Mine"\n\n# style\n[tool.ruff]\n'
    )
    (here / "pyproject.toml").write_text(text)
    assert _main(["init"]) == 0
    assert not (here / "doit.cfg").exists()
    new = (here / "pyproject.toml").read_text()
    assert tomllib.loads(new)["tool"]["doit"]["plugins"]["command"] == {"mine": "mine:Mine", **REGISTERED}
    assert [line for line in new.splitlines() if "lorabuild.graph" not in line] == text.splitlines()
    assert _main(["init"]) == 0 and (here / "pyproject.toml").read_text() == new


def test_init_adds_to_a_doit_cfg(here: Path):
    (here / "doit.cfg").write_text("[GLOBAL]\nverbosity = 2\n[COMMAND]\nmine = mine:Mine\n[other]\na = 1")
    assert _main(["init"]) == 0
    text = (here / "doit.cfg").read_text()
    assert "plan = lorabuild.graph:Plan\n" in text and text.index("push =") < text.index("mine = mine:Mine")
    assert text.startswith("[GLOBAL]\nverbosity = 2\n[COMMAND]\n") and text.endswith("[other]\na = 1")
    assert _main(["init"]) == 0 and (here / "doit.cfg").read_text() == text


def test_what_init_adds_to_keeps_its_line_ends_its_mode_and_its_place(here: Path, tmp_path: Path):
    (here / "doit.cfg").write_bytes(b"[GLOBAL]\r\nverbosity = 2\r\n")
    (tmp_path / "ignored").write_text("*.log\n")
    (tmp_path / "ignored").chmod(0o600)
    (here / ".gitignore").symlink_to(tmp_path / "ignored")
    (here / "lorabuild.toml").symlink_to(tmp_path / "nowhere")
    assert _main(["init"]) == 0
    settings = (here / "doit.cfg").read_bytes()
    assert (
        settings.startswith(b"[GLOBAL]\r\nverbosity = 2\r\n") and settings.count(b"\n") == settings.count(b"\r\n") > 9
    )
    assert (here / ".gitignore").is_symlink() and "/build/" in (tmp_path / "ignored").read_text()
    assert (tmp_path / "ignored").stat().st_mode & 0o777 == 0o600
    assert (here / "lorabuild.toml").is_symlink() and not (tmp_path / "nowhere").exists()


def test_init_without_a_name_is_not_this_folder(here: Path, capsys: pytest.CaptureFixture):
    assert _main(["init", ""]) == 2  # "$UNSET"
    assert "this folder" in capsys.readouterr().err and not files(here)


@pytest.mark.parametrize("content", ["[project\n", "\n[COMMAND]\n[COMMAND]\n", "\n\udce4 = 1\n"])
def test_settings_that_cannot_be_read_are_one_line_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture, content: str
):
    (here / ("pyproject.toml" if "project" in content else "doit.cfg")).write_text(content, errors="surrogateescape")
    assert _main(["init"]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1 and len(files(here)) == 1


def test_a_folder_within_a_repository_is_one_line(repository: Path, capsys: pytest.CaptureFixture):
    before = files(repository)
    for folder in ("projects", "new", "projects/deep/er"):
        assert _main(["init", folder]) == 2
        assert "lies in the repository" in capsys.readouterr().err
    assert files(repository) == before


def test_init_of_another_folder_says_how_to_go_there(here: Path, capsys: pytest.CaptureFixture):
    assert _main(["init", "sub folder"]) == 0
    assert "  cd 'sub folder' && lorabuild new NAME" in capsys.readouterr().out
    (here / "file").write_text("")
    assert _main(["init", "file"]) == 2 and "not a folder" in capsys.readouterr().err


def test_all_that_lorabuild_toml_has_as_comments_can_be_uncommented(repository: Path):
    plain = re.sub(r"(?m)^# (?=\[|\w+ = )", "", SHARED)
    assert plain != SHARED
    (repository / "lorabuild.toml").write_text(plain)
    assert load(repository).bases.keys() == {"tiny", "pony"}


def test_new_with_images_uses_them_where_they_are(repository: Path, capsys: pytest.CaptureFixture):
    pictures(repository.parent / "pics", ".caption")
    assert _main(["new", "ember", "--images", "../pics", "--trigger", "ember"]) == 0
    said = capsys.readouterr().out
    assert "3 images in ../pics, 3 with captions (.caption)" in said and said.endswith("  doit ember\n")
    settings = load(repository).projects["ember"].settings
    (subset,) = settings["dataset"]["subset"]
    assert (subset["image_dir"], subset["caption_extension"]) == ("../../../pics", ".caption")
    assert settings["project"] | {"base": "tiny", "kind": "character", "trigger": "ember"} == settings["project"]
    assert settings["recipe"]["max_train_steps"] == 12, "the recipe tiny, as the base is"
    assert files(repository / "projects").keys() == {"ember/lora.toml"}


def test_new_without_images_makes_a_folder_and_says_what_to_put_there(repository: Path, capsys: pytest.CaptureFixture):
    assert _main(["new", "ember"]) == 0
    assert (repository / "projects/ember/images").is_dir()
    assert "put images into projects/ember/images" in capsys.readouterr().out
    assert load(repository).projects["ember"].settings["project"]["trigger"] is None


def test_images_that_lie_in_the_projects_folder_already_are_found(repository: Path):
    pictures(repository / "projects/ember/images")
    pictures(repository / "projects/frost")
    assert _main(["new", "ember"]) == _main(["new", "frost"]) == 0
    projects = load(repository).projects
    assert [projects[name].settings["dataset"]["subset"][0]["image_dir"] for name in ("ember", "frost")] == ["images", "."]  # fmt: skip


def test_folders_with_repeats_in_their_names_are_taken_as_such(repository: Path):
    pictures(repository.parent / "pics/10_ember")
    assert _main(["new", "ember", "--images", "../pics"]) == 0
    assert load(repository).projects["ember"].settings["dataset"]["train_data_dir"] == "../../../pics"


def test_a_trigger_is_guessed_in_a_comment_alone(repository: Path, capsys: pytest.CaptureFixture):
    pictures(repository.parent / "pics", tags="blobby, red")
    assert _main(["new", "ember", "--images", "../pics"]) == 0
    text = (repository / "projects/ember/lora.toml").read_text()
    assert '# trigger = "blobby" ' in text and "begins 3 of 3 captions" in text
    assert "lorabuild set ember project.trigger=blobby" in capsys.readouterr().out
    assert load(repository).projects["ember"].settings["project"]["trigger"] is None
    assert _main(["set", "ember", "project.trigger=blobby"]) == 0
    assert (repository / "projects/ember/lora.toml").read_text() == text.replace('# trigger = "blobby"  ', 'trigger = "blobby"    ')  # fmt: skip


@pytest.mark.parametrize(
    "name", ["Ember", "fox girl", "épée", "a/b", *sorted({"train", "new", "report"} & {*RESERVED})]
)
def test_a_name_that_cannot_be_is_one_line_with_one_that_could(
    repository: Path, capsys: pytest.CaptureFixture, name: str
):
    assert _main(["new", name]) == 2
    err = capsys.readouterr().err
    better = re.search(r'for example "(.+)"', err)
    assert len(err.splitlines()) == 1 and better and not list((repository / "projects").iterdir())
    assert _main(["new", better[1]]) == 0


def test_a_taken_name_is_one_line_with_a_free_one(repository: Path, capsys: pytest.CaptureFixture):
    (repository / "projects/deep/ember").mkdir(parents=True)
    (repository / "projects/deep/ember/lora.toml").write_text("broken")
    assert _main(["new", "ember"]) == 2
    assert 'is a project already, projects/deep/ember/lora.toml: take another name (for example "ember2")' in capsys.readouterr().err  # fmt: skip
    assert _main(["new", "ember2"]) == 0, "another project's mistake is none of this one"


def test_the_base_is_the_only_one_or_the_marked_one_or_asked_for(repository: Path, capsys: pytest.CaptureFixture):
    shared = repository / "lorabuild.toml"
    shared.write_text('[bases.tiny]\nbuiltin = "tiny-sdxl"\n[bases.pony]\nfile = "pony.safetensors"\n')
    assert _main(["new", "a"]) == 2
    assert capsys.readouterr().err.startswith("which base? --base tiny or --base pony (or mark one with default = true")
    assert _main(["new", "a", "--base", "pny"]) == 2 and 'did you mean "pony"?' in capsys.readouterr().err
    assert _main(["new", "a", "--base", "tiny"]) == 0
    shared.write_text(shared.read_text() + "default = true\n")
    capsys.readouterr()
    assert _main(["new", "b"]) == 0
    assert "lorabuild.toml:4: bases.pony.file" in capsys.readouterr().err, "the file is not here, which is told at once"
    settings = {name: project.settings for name, project in load(repository).projects.items()}
    assert settings["a"]["project"]["base"] == "tiny" and settings["b"]["project"]["base"] == "pony"
    assert settings["b"]["recipe"]["max_train_steps"] == 80 and settings["b"]["resize"]["thr"] == -3.55


@pytest.mark.parametrize("kind", ["character", "style", "concept"])
def test_each_recipe_and_kind_is_valid_also_with_its_comments_uncommented(repository: Path, kind: str):
    for name in packaged():
        assert _main(["new", f"{name}-x", "--from", name, "--kind", kind]) == 0
    text = (path := repository / "projects/pony-x/lora.toml").read_text()
    path.write_text(re.sub(r"(?m)^# (?=\[|\w+ = )", "", text).replace('trigger = "…"', 'trigger = "x"'))
    settings = load(repository).projects["pony-x"].settings
    assert settings["project"]["kind"] == kind and settings["samples"]["prompts"] == "sample-prompts.txt"


def test_a_missing_recipe_that_comes_with_lorabuild_is_copied(repository: Path, capsys: pytest.CaptureFixture):
    for path in (repository / "recipes").iterdir():
        path.unlink()
    assert _main(["new", "ember"]) == 0
    assert sorted(path.stem for path in (repository / "recipes").iterdir()) == ["schnell", "tiny"]
    assert _main(["new", "x", "--from", "pny"]) == 2 and 'did you mean "pony"?' in capsys.readouterr().err


OTHER = """\
# A style: white ink.
extends = ["pony", "tiny"]
[project]
kind = "style"
base = "tiny"
trigger = "ink"
title = "White ink"
[dataset]
flip_aug = false
[[dataset.subset]]
image_dir = "images"
num_repeats = 7
[[dataset.subset]]
image_dir = "more"
[resize]
thr = -2.0   # tried
[samples]
prompts = "p.txt"
[variants.mini.resize]
thr = -1.5
"""


def test_a_projects_settings_are_copied_and_what_it_is_is_not(repository: Path):
    (repository / "projects/ink").mkdir()
    (repository / "projects/ink/lora.toml").write_text(OTHER)
    pictures(repository.parent / "pics")
    assert _main(["new", "wash", "--from", "ink", "--images", "../pics", "--trigger", "wash"]) == 0
    text = (repository / "projects/wash/lora.toml").read_text()
    assert text.startswith(f"{NAMED}# wash, with the settings of ink.\nextends") and "thr = -2.0   # tried" in text
    old, new = (load(repository).projects[name] for name in ("ink", "wash"))
    for table in ("recipe", "resize", "chop"):
        assert new.settings[table] == old.settings[table]
    assert new.variants["mini"]["resize"] == old.variants["mini"]["resize"]
    assert new.settings["project"] | {"trigger": "wash", "title": None, "kind": "style"} == new.settings["project"]
    (subset,) = new.settings["dataset"]["subset"]
    assert (subset["image_dir"], subset["num_repeats"]) == ("../../../pics", 1)
    assert new.settings["samples"]["prompts"] == "../ink/p.txt" and new.settings["dataset"]["flip_aug"] is False


def test_a_copys_recipes_change_with_its_base_alone_and_its_captions_are_its_own(repository: Path):
    with open(repository / "lorabuild.toml", "a") as file:
        file.write('[bases.pony]\nfile = "pony.safetensors"\n')
    (repository / "projects/ink").mkdir()
    text = '[project]\nbase = "tiny"\n[dataset]\ncaption_extension = ".cap"\ntrain_data_dir = "t"\n'
    (repository / "projects/ink/lora.toml").write_text(text)
    pictures(repository.parent / "pics")
    assert _main(["new", "same", "--from", "ink", "--images", "../pics"]) == 0
    assert _main(["new", "large", "--from", "same", "--base", "pony"]) == 0
    assert _main(["new", "small", "--from", "large", "--base", "tiny"]) == 0
    texts = {name: (repository / f"projects/{name}/lora.toml").read_text() for name in ("same", "large", "small")}
    assert "extends" not in texts["same"] + texts["large"] and 'extends = ["tiny"]' in texts["small"]
    assert "kind" not in texts["same"]
    (subset,) = load(repository).projects["same"].settings["dataset"]["subset"]
    assert subset["caption_extension"] == ".txt"


def test_a_folder_without_images_is_not_taken_for_one(repository: Path, capsys: pytest.CaptureFixture):
    for folder in ("..", "nowhere", "lorabuild.toml"):
        assert _main(["new", "ember", "--images", folder]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list((repository / "projects").iterdir())


@pytest.mark.slow
def test_a_stranger_succeeds_and_a_project_without_images_hinders_nobody(tmp_path: Path):
    """The tutorial's way, as a user types it; `doit` alone, with doit.cfg."""
    pictures(tmp_path / "pictures", count=4)
    (tmp_path / "loras").mkdir()
    world = World(tmp_path / "loras")
    assert world.lorabuild("init").code == 0
    assert "lorabuild new NAME" in world.doit().out
    assert world.lorabuild("new", "ember", "--images", "../pictures", "--trigger", "ember").code == 0
    assert world.lorabuild("new", "later").code == 0
    assert world.lorabuild("set", "ember", "dataset.resolution=64,64", "recipe.max_train_steps=2").code == 0
    first = world.doit()
    assert first.code == 1 and "chop:ember" in first.built, first.out + first.err
    assert "failed: dataset:later: projects/later/images: no images in it yet" in first.out
    said = world.lorabuild("set", "ember", "chop.keep=TE,OUT01").out
    assert 'chop.keep: ["TE", "INP07"' in said and said.endswith("chop:ember will be built\n")
    assert world.doit("ember").built == {"chop:ember"}
    assert world.doit("later").code == 1
    assert world.doit("new", "train").code == 2, "the verbs are doit's, too"
