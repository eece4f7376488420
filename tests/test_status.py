"""`lorabuild status` shows projects and stages at a glance, and what reading verbs print is documented."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_plan import damage, edit, kept
from world import World

from lorabuild import colours
from lorabuild.verbs.reading import table
from lorabuild.verbs.status import COLOURS, main

DOCS = Path(__file__).resolve().parents[1] / "docs/commands.md"
FRESH = dict.fromkeys(("dataset", "latents", "train", "spectrum", "resize", "chop"), "fresh")


def status(world: World) -> dict[str, Any]:
    result = world.lorabuild("status", "--json")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_a_built_repository_is_fresh_with_the_size_of_what_stands_in_build(built: World):
    found = status(built)
    assert found["projects"]["ember"]["stages"] == FRESH
    assert found["bases"]["tiny"]["stages"] == {"base": "fresh", "norms": "fresh"}
    size = sum(map(len, built.built_files().values()))
    assert found["projects"]["ember"]["bytes"] == size
    assert found["total"] == {"states": {"fresh": 8}, "bytes": size + found["bases"]["tiny"]["bytes"]}


def test_each_state_is_told_and_nothing_is_changed(built: World):
    edit(built, "[chop]", "[variants.mini.resize]\nthr = -2.7\n\n[chop]")
    edit(built, "thr = -2.6", "thr = -2.5")
    (built.root / "build/ember/ember.safetensors").unlink()
    built.project("other", seed=9)
    shutil.rmtree(built.root / "projects/other/images")
    damage(built.root / "build/ember/dataset.json")
    before = kept(built)
    found = status(built)
    assert kept(built) == before
    assert found["projects"]["ember"]["stages"] == {
        "dataset": "stale", "latents": "fresh", "train": "missing", "spectrum": "fresh", "resize": "stale",
        "chop": "stale",
    }  # fmt: skip
    assert found["projects"]["ember@mini"] == {"stages": {"resize": "never", "chop": "never"}, "bytes": 0}
    assert set(found["projects"]["other"]["stages"].values()) == {"fails"}
    assert list(found["projects"]) == ["ember", "ember@mini", "other"]
    assert found["total"]["states"] == {"fresh": 4, "stale": 3, "missing": 1, "never": 2, "fails": 6}


def test_the_table_is_aligned_and_without_colours_where_there_is_no_terminal(built: World):
    out = built.lorabuild("status", NO_COLOR="").out
    head, *rows, said = out.splitlines()
    assert "\033" not in out
    assert head.split() == ["base", "norms", "dataset", "latents", "train", "spectrum", "resize", "chop", "size"]
    assert [re.split(r"\s{2,}", row)[0] for row in rows] == ["ember", "base tiny", "total"]
    (column,) = {row.index("fresh") for row in rows[1:2]}
    assert head[column:].startswith("base") and len({len(line) for line in (head, *rows)}) == 1
    assert said == "8 fresh"
    assert built.doit("status").out == out


def test_a_terminal_has_colours_unless_NO_COLOR_is_set(built: World, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(built.root)
    monkeypatch.setattr(colours.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for value, painted in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        assert main([]) == 0
        assert ("\033[32mfresh" in capsys.readouterr().out) is painted


def test_a_cell_is_coloured_and_a_project_of_that_name_is_not():
    (line,) = table([["fresh", "fresh", "x"]], colours=COLOURS)
    assert line == "fresh  \033[32mfresh\033[0m  x"


def test_without_projects_or_repository_it_says_so(empty: World, tmp_path: Path):
    empty.write("lorabuild.toml", "")
    assert empty.lorabuild("status").out == "no projects/**/lora.toml here\n"
    assert empty.lorabuild("plan").code == 0
    (tmp_path / "nowhere").mkdir()
    for verb in (["status"], ["plan"], ["why", "ember"]):
        result = World(tmp_path / "nowhere").lorabuild(*verb)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert result.err.startswith("no repository here or above")


# docs


def keys(value: Any, names: tuple[str, ...] = ("projects", "bases", "stages", "states")) -> Iterator[str]:
    """The keys of a JSON object, but for those that are names of the user's."""
    if isinstance(value, list):
        for one in value:
            yield from keys(one, names)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            if key in ("stages", "states"):
                continue
            yield from keys(list(inner.values()) if key in names else inner, names)


def test_every_key_of_the_json_is_documented_in_its_section(built: World):
    built.write("projects/ember/images/1.png", b"junk")
    built.doit()
    sections = dict(re.findall(r"^## `lorabuild (\w+).*?\n(.*?)(?=^## |\Z)", DOCS.read_text(), re.M | re.S))
    for verb, *args in (["plan"], ["why", "ember"], ["status"]):
        found = set(keys(json.loads(built.lorabuild(verb, *args, "--json").out)))
        assert found and {key for key in found if f"`{key}`" not in sections[verb]} == set(), verb
