"""Unchanged files are neither parsed nor checked again; whatever shapes the settings changes what is remembered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from manifest_world import GOOD, Files

from lorabuild.errors import ConfigError
from lorabuild.manifest import load, repository

LOAD = """
import json, sys
from pathlib import Path
from lorabuild.manifest import load

class Memo(dict):
    def get(self, key): return dict.get(self, key)
    def put(self, key, value): self[key] = value

root, file = map(Path, sys.argv[1:])
memo = Memo(json.loads(file.read_text()) if file.exists() else {})
settings = {name: [one.settings, one.variants] for name, one in load(root, memo).projects.items()}
file.write_text(json.dumps(memo))
print(json.dumps([settings, sorted({"pydantic", "tree_sitter", "tomllib"} & set(sys.modules))]))
"""


class Memo(dict):
    """What State is, in a dict; `made` counts what had to be worked out."""

    made = 0

    def put(self, key: str, value: str) -> None:
        self[key] = value
        self.made += 1


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_second_load_gives_the_same_and_imports_neither_pydantic_nor_a_parser(files: Files):
    files.write("recipes/low.toml", "[recipe]\nseed = 1\n")
    files.project('extends = "low"\n' + GOOD + "[resize]\nthr = -3\n[variants.mini.resize]\nthr = -2\n")
    memo = files.root / "memo.json"

    def loaded() -> list:
        command = [sys.executable, "-c", LOAD, str(files.root), str(memo)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    first, imported = loaded()
    assert imported == ["pydantic", "tomllib"]
    assert loaded() == [first, []]


def test_importing_the_package_is_light():
    code = "import sys, lorabuild.manifest, lorabuild.manifest.keys, lorabuild.names; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "tree_sitter", "tomllib", "numpy", "torch"} & set(modules)


@pytest.mark.parametrize(
    "changed",
    ["projects/ember/lora.toml", "recipes/low.toml", "recipes/lower.toml", "lorabuild.toml", "lorabuild.local.toml"],
)
def test_a_change_in_any_layer_is_seen(files: Files, changed: str):
    files.write("recipes/lower.toml", "")
    files.write("recipes/low.toml", "extends = 'lower'\n")
    memo = Memo()
    files.project('extends = "low"\n' + GOOD, memo=memo)
    before = memo.made
    load(files.root, memo)
    assert memo.made == before
    path = files.root / changed
    path.write_text((path.read_text() if path.exists() else "") + "# changed\n")
    load(files.root, memo)
    assert memo.made > before


def test_settings_follow_a_recipe_there_and_back(files: Files):
    memo = Memo()
    for seed in (1, 2, 1):
        files.write("recipes/low.toml", f"[recipe]\nseed = {seed}\n")
        assert files.settings('extends = "low"\n' + GOOD, memo=memo)["recipe"]["seed"] == seed


def test_another_version_of_the_code_remembers_nothing(files: Files, monkeypatch: pytest.MonkeyPatch):
    memo = Memo()
    files.project(memo=memo)
    before = memo.made
    code = files.root / "schema.py"
    code.write_text("other rules")
    monkeypatch.setattr(repository, "CODE", [code])
    load(files.root, memo)
    assert memo.made == before + 2  # the project and lorabuild.toml; which recipes a file names needs no schema


def test_a_mistake_is_never_remembered(files: Files):
    memo = Memo()
    files.write("projects/ember/lora.toml", GOOD + "[recipe]\nsede = 1\n")
    for _ in range(2):
        with pytest.raises(ConfigError):
            load(files.root, memo)


def test_a_base_that_went_away_is_noticed(files: Files):
    memo = Memo()
    files.write("lorabuild.toml", "[bases.own]\nbuiltin = 'tiny-sdxl'\n")
    files.project(GOOD.replace('"tiny"', '"own"'), memo=memo)
    files.write("lorabuild.toml", "")
    with pytest.raises(ConfigError, match='"own" is not a base'):
        load(files.root, memo)
