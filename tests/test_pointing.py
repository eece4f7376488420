"""Below a message stands the line of TOML that it is about, with ^~~~ under what is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabuild.pointing import WIDTH, columns, pointed, span

CASES = [
    ("network_dmi = 8", 'recipe.network_dmi: unknown key (did you mean "network_dim"?)', "network_dmi"),
    ("network_dim = 0  # rank", "recipe.network_dim: expected 1 or more, got 0", "0"),
    ('base = "poony" # mine', 'project.base: no base "poony" (did you mean "pony"?)', '"poony"'),
    ('keep = ["TE", "OUTT01"]', 'chop.keep: "OUTT01": no such block', '"OUTT01"'),
    ("keep = ['OUTT01']", 'chop.keep: "OUTT01": no such block', "'OUTT01'"),
    ('  "OUTT01",', 'chop.keep: "OUTT01": no such block', '"OUTT01"'),
    ("  7, # seven", "chop.keep: expected a text, got a number", "7"),
    ('args = { algo = "locon", conv_dmi = 4 }', "recipe.args.conv_dmi: unknown key", "conv_dmi"),
    ("args = { conv_dim = 4, conv_alpha = -1 }", "recipe.args.conv_alpha: expected 0 or more, got -1", "-1"),
    ("[resizze]", 'resizze: unknown table (did you mean "resize"?)', "resizze"),
    ("[[dataset.subset]]", "dataset.subset.image_dir: not set", "dataset.subset"),
    ('title = "a # b, ]"', "project.title: too long", '"a # b, ]"'),
    ('title = "a \\" b" # c', "project.title: too long", '"a \\" b"'),
    ("recipe.seed = x", "wrong TOML: Invalid value", "recipe.seed = x"),
    ("train_batch_size = 2", "recipe: the card has 8.0 GB", "2"),
    ("keep = [", "chop.keep: expected a table", "["),
    ('file = "odd.safetensors"', "bases.odd: truncated", '"odd.safetensors"'),
]


@pytest.mark.parametrize(("line", "message", "meant"), CASES)
def test_what_is_meant_is_pointed_at(line: str, message: str, meant: str):
    found = span(line, message)
    assert found is not None and line[slice(*found)] == meant


@pytest.mark.parametrize("line", ["", "   ", "# only a comment"])
def test_at_nothing_nothing_is_pointed(line: str):
    assert span(line, "project: not set") is None


def test_the_caret_stands_below_whatever_comes_before(tmp_path: Path):
    tmp_path.joinpath("lora.toml").write_bytes('[project]\r\ntitle = "日本", base = "x"\r\n\tseed = -1\r\n'.encode())
    text, below = pointed(tmp_path, "lora.toml", 2, 'project.base: no base "x"')
    assert text == '  2 | title = "日本", base = "x"' and below == "    | " + " " * 23 + "^~~"
    assert pointed(tmp_path, "lora.toml", 3, "recipe.seed: less than 0") == ["  3 |  seed = -1", "    |         ^~"]
    assert columns("日本é") == 5


def test_of_a_long_line_the_part_is_shown_that_is_meant(tmp_path: Path):
    words = ", ".join(f'"OUT{number:03}"' for number in range(60))
    tmp_path.joinpath("lora.toml").write_text(f"keep = [{words}]\n")
    text, below = pointed(tmp_path, "lora.toml", 1, 'chop.keep: "OUT050": no such block')
    assert len(text) <= WIDTH + 10 and text.startswith("  1 | …") and text.endswith("…")
    assert text[below.index("^") :].startswith('"OUT050"') and below.endswith("^" + "~" * 7)


def test_what_is_no_line_of_toml_is_not_shown(tmp_path: Path):
    tmp_path.joinpath("1.txt").write_text("ember")
    assert pointed(tmp_path, "1.txt", 1, "empty") == []
    assert pointed(tmp_path, "none.toml", 1, "project: x") == []
    tmp_path.joinpath("lora.toml").write_text("a = 1")
    assert pointed(tmp_path, "lora.toml", 9, "a: x") == [] and pointed(tmp_path, "lora.toml", 0, "a: x") == []
