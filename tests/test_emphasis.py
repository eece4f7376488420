"""Weights in prompts, read as A1111's web UI reads them."""

from __future__ import annotations

import pytest

from lorabuild.data.emphasis import weighted_parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain, words: 3:4", [("plain, words: 3:4", 1)]),
        ("", []),
        ("a (b) c", [("a ", 1), ("b", 1.1), (" c", 1)]),
        ("a [b]", [("a ", 1), ("b", 1 / 1.1)]),
        ("(b:1.3)", [("b", 1.3)]),
        ("(b : .5 )c", [("b ", 0.5), ("c", 1)]),
        ("((a) b:2)", [("a", 2.2), (" b", 2)]),
        ("(a)(b)", [("ab", 1.1)]),
        (r"a \(series\) \\", [("a (series) \\", 1)]),
        ("(never closed", [("never closed", 1.1)]),
        ("[never closed", [("never closed", 1 / 1.1)]),
        ("never opened) :1.5)", [("never opened) :1.5)", 1)]),
        ("a [b:0.5] c", [("a ", 1), ("b:0.5", 1 / 1.1), (" c", 1)]),
    ],
)
def test_brackets_weigh(text: str, parts: list[tuple[str, float]]):
    found = weighted_parts(text)
    assert [part for part, _ in found] == [part for part, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])
