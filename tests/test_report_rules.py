"""The page's rules of blocks, vectors and sizes are those of Python: the same selections, the same words, the same bytes."""

from __future__ import annotations

import json
import random
import tomllib
from typing import Any

import pytest
from browser import Browser
from picking import STATIC

from lorabuild.lora.loaders import Signs
from lorabuild.names import BLOCKS, TEXT_ENCODERS, UNET_BLOCKS, kept_blocks, resolve_chop
from lorabuild.report.blocks import RULES
from lorabuild.vectors import ATTENTION_BLOCKS, PRESETS, vector_strings, vector_weights

pytestmark = pytest.mark.browser

FULL = [block for block in BLOCKS if block != "INP00"]
FILES = {
    "full": FULL,
    "with INP00": list(BLOCKS),
    "attention": [*ATTENTION_BLOCKS, *TEXT_ENCODERS],
    "no text": UNET_BLOCKS[1:],
}


class Rules:
    """Functions of blocks.rules.js, called many at a time."""

    def __init__(self, browser: Browser):
        self.browser = browser
        self.text = (STATIC / "blocks.rules.js").read_text()
        browser.open("about:blank")

    def __call__(self, expression: str, cases: list[Any]) -> list[Any]:
        """The expression's value for each case `c`; an error is {"error": message}."""
        code = f"""const R = JSON.parse(arguments[0]);
          {self.text}
          return arguments[1].map((c) => {{ try {{ return {expression}; }} catch (error) {{ return {{ error: error.message }}; }} }});"""
        return self.browser.js(code, json.dumps(RULES), cases)


@pytest.fixture
def rules(browser: Browser) -> Rules:
    return Rules(browser)


def selections(count: int, fractions: bool, seed: int = 0) -> list[list[Any]]:
    """(present, selection of these) at random: sparse, dense, whole sections."""
    chance, found = random.Random(seed), []
    for number in range(count):
        present = list(list(FILES.values())[number % len(FILES)])
        weights = [0, 1, 1, 0.5, 0.75, 1.5, -0.25] if fractions else [0, 1]
        part = chance.choice([0.05, 0.3, 0.7, 0.95])
        selection = {block: chance.choice(weights[1:]) if chance.random() < part else 0 for block in present}
        for start in ("INP", "MID", "OUT", "TE"):
            if chance.random() < 0.4:
                whole = chance.choice(weights)
                selection |= {block: whole for block in present if block.startswith(start)}
        found.append([present, selection])
    return found


def test_copied_lines_mean_the_selection_by_pythons_rules(rules: Rules):
    cases = selections(240, fractions=True)
    for (present, selection), lines in zip(cases, rules("chopLines(R, c[1], c[0])", cases), strict=True):
        table = tomllib.loads(f"{lines['keep']}\n{lines['weights']}")
        resolved = resolve_chop(table)
        assert {block: resolved[block] for block in present} == selection, lines


def test_a_weight_that_stands_elsewhere_is_overruled(rules: Rules):
    """Tables merge, so a recipe's `weights` stay under what is copied: they must not change what was chosen."""
    cases = []
    for number, (present, selection) in enumerate(selections(120, fractions=True, seed=2)):
        cases.append([present, selection, [["OUT01", "TE"], ["TE1"], ["TE", "TE2", "MID01"]][number % 3]])
    for (present, selection, named), lines in zip(cases, rules("chopLines(R, c[1], c[0], c[2])", cases), strict=True):
        table = tomllib.loads(f"{lines['keep']}\n{lines['weights']}")
        merged = table | {"weights": dict.fromkeys(named, 0.25) | table.get("weights", {})}
        resolved = resolve_chop(merged)
        assert {block: resolved[block] for block in present} == selection, (named, lines)


def test_what_is_kept_is_spelled_short(rules: Rules):
    def spelled(*kept: str) -> list[Any]:
        return [FULL, {block: int(block in kept_blocks(kept)) for block in FULL}]

    wanted = {
        ("TE", "OUT01"): ["TE", "OUT01"],
        ("*",): ["*"],
        ("!OUT08",): ["!OUT08"],
        ("!TE1",): ["!TE1"],
        ("IN*",): ["IN*"],
        ("TE", "IN*", "OUT0[0-3]"): ["TE", "IN*", "OUT0[0-3]"],
        ("!INP04", "!INP05", "!INP06", "!TE"): ["!TE", "!INP0[4-6]"],
        ("OUT*", "!OUT03"): ["OUT*", "!OUT03"],
    }
    assert rules("spellKeep(R, c[1], c[0])", [spelled(*kept) for kept in wanted]) == list(wanted.values())


def test_vectors_are_pythons(rules: Rules):
    """Ones and zeros with the text encoders kept are what `lorabuild blocks` prints; others are read back by Python."""
    cases = [case for case in selections(160, fractions=False) if case[1].get("TE1", 1) and case[1].get("TE2", 1)]
    cases = [
        case for case in cases if case[1].get("INP00", 1)
    ]  # without it, 21 numbers would do, but not for this file
    counts = {"inspire": "c[0].includes('INP00') ? 22 : 21", "lbw20": "20", "lbw12": "12"}
    for name, count in counts.items():
        wanted = [vector_strings([block for block, weight in one.items() if weight])[name] for _, one in cases]
        assert rules(f"vectorOf(R, {count}, c[1], c[0])", cases) == wanted

    cases = selections(200, fractions=True, seed=1)
    code = "(() => { const n = c[0].includes('INP00') ? 22 : 21, v = vectorOf(R, n, c[1], c[0]); return [v, vectorDiffers(R, v, c[1], c[0])]; })()"
    for (present, selection), (vector, differs) in zip(cases, rules(code, cases), strict=True):
        said = vector_weights(vector, "inspire")
        assert differs == [block for block in present if said.get(block, 1.0) != selection[block]]
        if selection.get("TE1") == selection.get("TE2"):
            assert not differs


def test_what_is_pasted_is_read_as_python_reads_it(rules: Rules):
    keeps = ["TE,OUT01", "!OUT08", "IN*,!INP0[1-3]", "OUT0[!0-7]", "*,!TE2", "?UT00,TE", "!TE,TE1"]
    vectors = [
        *PRESETS,
        "%default=0,out2=1",
        "%in=0.5,default=1,base=0",
        "0.5" + ",1" * 20,
        "1" + ",.5" * 11,
        "1" + ",-1" * 19,
        "1" + ",2" * 21,
    ]
    for present in FILES.values():
        cases = [[text, list(present)] for text in keeps]
        for (text, _), found in zip(cases, rules("pasted(R, c[0], c[1])", cases), strict=True):
            assert found == resolve_chop({"keep": text.split(",")}), text
        cases = [[text, list(present)] for text in vectors]
        for (text, _), found in zip(cases, rules("pasted(R, c[0], c[1])", cases), strict=True):
            assert found == dict.fromkeys(BLOCKS, 1.0) | vector_weights(text, "inspire", present), text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "keep = ['TE', \"OUT0?\"]  # comment\nweights = { OUT01 = 0.5, TE = 0.8, TE2 = 1 }",
            {"keep": ["TE", "OUT0?"], "weights": {"OUT01": 0.5, "TE": 0.8, "TE2": 1}},
        ),
        ('[chop]\nkeep = [\n  "TE",\n  "IN*",\n]\nallow_empty = true', {"keep": ["TE", "IN*"]}),
        (
            'vector = "0.5' + ",1" * 20 + '"\nvector_style = "resize_lora"',
            {"vector": "0.5" + ",1" * 20, "vector_style": "resize_lora"},
        ),
        ("weights = { OUT01 = -1e-1 }", {"weights": {"OUT01": -0.1}}),
        (
            "lorabuild chop a.safetensors --keep 'TE,OUT*' --weights OUT01=0.5 -o b.safetensors",
            {"keep": ["TE", "OUT*"], "weights": {"OUT01": 0.5}},
        ),
        ("--vector=SDXL-LyC-OUTALL", {"vector": "SDXL-LyC-OUTALL"}),
        ('["TE1", "MID*"]', {"keep": ["TE1", "MID*"]}),
        ("OUT01", {"keep": ["OUT01"]}),
        ("MY OWN:1" + ",0" * 20, {"vector": "1" + ",0" * 20}),
        ("<lora:a:0.8:lbw=0" + ",1" * 19 + ">", {"vector": "0" + ",1" * 19, "vector_style": "inspire"}),
    ],
)
def test_what_a_guide_or_a_manifest_says_can_be_pasted(rules: Rules, text: str, wanted: dict):
    assert rules("pasted(R, c[0], c[1])", [[text, FULL]]) == [resolve_chop(wanted, FULL)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to read"),
        ("OUT1", 'no such block (did you mean "OUT01"?)'),
        ('keep = ["ON*"]', "matches no block"),
        ("keep = [TE]", '"TE" has no quotes'),
        ("1,0,1", "12, 20, 21 or 22 numbers are expected, got 3"),
        ("1,x" + ",0" * 19, 'number 2 is "x"'),
        ("1,R" + ",0" * 19, "random in Inspire-Pack"),
        ('vector = "0.5' + ",1" * 20 + '"', "the first number is 0.5"),
        ('vector = "1,1"\nkeep = ["TE"]', "one of them is enough"),
        ("weights = { OUT1 = 0.5 }", 'did you mean "OUT01"?'),
        ("weights = { OUT01 : 0.5 }", "BLOCK = number is expected"),
        ('keep = ["TE"]\nthr = -3', '"thr = -3" cannot be read'),
        ("SD-ALL", "another model family"),
        ("SDXL-LyC-OUTAL", 'did you mean "SDXL-LyC-OUTALL"?'),
        ("%out9=1,default=0", None),
        ("%out10=1,default=0", "the file has 9 OUT blocks"),
        ("%double=1", "Flux's"),
        ("<lora:a:1>", "no lbw="),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(rules: Rules, text: str, words: str | None):
    (found,) = rules("pasted(R, c[0], c[1])", [[text, FULL]])
    if words is None:
        assert "error" not in found
    else:
        assert words in found["error"] and "\n" not in found["error"]


def test_invokeai_is_judged_as_loaders_does(rules: Rules):
    chance, cases, wanted = random.Random(3), [], []
    for _ in range(200):
        blocks = []
        for name in ("INP01", "OUT01", "TE1", "TE2"):
            pick = lambda *widths: [one for one in widths if chance.random() < 0.3]  # noqa: E731
            signs = {"unet": pick(2048, 640), "te1": pick(768), "te2": pick(1280), "deep": chance.random() < 0.1}
            blocks.append({"block": name, "signs": signs})
        selection = {one["block"]: chance.choice([0, 0.5, 1]) for one in blocks}
        cases.append([{"blocks": blocks}, selection])
        left = [one["signs"] for one in blocks if selection[one["block"]]]
        together = [frozenset(width for one in left for width in one[name]) for name in ("unet", "te1", "te2")]
        wanted.append(Signs(*together, any(one["deep"] for one in left)).is_sdxl)
    assert rules("invokeKnows(R, c[0], c[1])", cases) == wanted
    assert True in wanted and False in wanted
