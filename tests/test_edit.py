"""One value of a TOML text changes, and not a byte of the rest; what cannot be edited so is refused."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabuild.errors import UsageError
from lorabuild.scaffold.edit import with_value, without
from lorabuild.scaffold.keys import dotted, key_path

TEXT = """\
# A style: white ink on blue paper.
extends = ["schnell", "tiny"]   # recipes

[project]
kind = "style"
base    =   "tiny"  # ours

# The folder.
[[dataset.subset]]
image_dir = "images"

[[dataset.subset]]
image_dir = "more"  # of them
num_repeats = 3

[recipe]
  unet_lr = 1e-4   # low
  network_args = { algo = "locon", conv_dim = 8 } # both

# Which ranks stay.
[resize]
thr = -2.5

# Which blocks stay.
[chop]
keep = [
    "TE",   # the name
    "OUT01",
]
weights.OUT01 = 0.5

[variants.mini.resize]
thr = -3.2
"""


def changed(path: str, raw: str, text: str = TEXT) -> tuple[list[str], list[str]]:
    """(lines that went, lines that came)"""
    old, new = text.splitlines(), with_value(text.encode(), key_path(path), raw).decode().splitlines()
    return [line for line in old if line not in new], [line for line in new if line not in old]


@pytest.mark.parametrize(
    ("path", "raw", "gone", "come"),
    [
        ("resize.thr", "-3.0", "thr = -2.5", "thr = -3.0"),
        ("project.base", '"pony"', 'base    =   "tiny"  # ours', 'base    =   "pony"  # ours'),
        ("project.trigger", '"ink"', None, 'trigger = "ink"'),
        ("resize.fro_ckpt", "1", None, "fro_ckpt = 1"),
        ("recipe.seed", "1", None, "  seed = 1"),
        ("recipe.network_args.conv_dim", "16", 'conv_dim = 8 }', 'conv_dim = 16 }'),
        ("recipe.network_args.preset", '"full"', 'conv_dim = 8 }', 'conv_dim = 8, preset = "full" }'),
        ("dataset.subset[1].num_repeats", "5", "num_repeats = 3", "num_repeats = 5"),
        ("dataset.subset[0].num_repeats", "5", None, "num_repeats = 5"),
        ("chop.weights.OUT01", "1.0", "weights.OUT01 = 0.5", "weights.OUT01 = 1.0"),
        ("chop.weights.OUT02", "1.0", None, "weights.OUT02 = 1.0"),
        ("variants.mini.resize.thr", "-4", "thr = -3.2", "thr = -4"),
        ("extends[1]", '"8gb"', '"tiny"]   # recipes', '["schnell", "8gb"]   # recipes'),
        ("recipe.optimizer_args.d0", "1", None, "  optimizer_args.d0 = 1"),
    ],
)  # fmt: skip
def test_one_line_changes_and_its_comment_stays(path: str, raw: str, gone: str | None, come: str):
    went, came = changed(path, raw)
    assert len(went) == (gone is not None) and len(came) == 1
    assert come in came[0] and (gone is None or gone in went[0])


def test_a_new_key_stands_in_its_table_not_below_the_next_tables_comment():
    assert "[resize]\nthr = -2.5\nfro_ckpt = 1\n\n# Which blocks stay.\n[chop]" in edited("resize.fro_ckpt", "1")
    assert '# ours\ntrigger = "ink"\n\n# The folder.' in edited("project.trigger", '"ink"')


def edited(path: str, raw: str, text: str = TEXT) -> str:
    return with_value(text.encode(), key_path(path), raw).decode()


def test_a_key_that_stands_there_as_a_comment_is_set_in_its_place():
    text = '[project]\nbase = "tiny"\n# title = "…"     # for people\n# more\n\n# [recipe]\n# seed = 1\n'
    assert edited("project.title", '"Ink"', text) == text.replace('# title = "…"     #', 'title = "Ink"     #')
    assert '"tiny"\nseed = 2\n# title' in edited("project.seed", "2", text)  # that comment is of another table
    crlf = text.replace("\n", "\r\n")
    assert edited("project.title", '"Ink"', crlf) == crlf.replace('# title = "…"     #', 'title = "Ink"     #')


def test_a_comment_that_is_set_apart_stays_in_its_column():
    text = '[project]\nkind = "character"    # one of three\nbase = "tiny"         # ours\n'
    assert edited("project.kind", '"style"', text) == text.replace('"character"    #', '"style"        #')
    assert edited("project.base", '"a-very-long-name-of-a-base"', text).endswith('of-a-base"  # ours\n')


def test_a_new_table_stands_where_it_belongs():
    assert edited("samples.prompts", '"p.txt"') == TEXT + '\n[samples]\nprompts = "p.txt"\n'
    assert edited("variants.mini.chop.keep", '["TE"]') == TEXT + '\n[variants.mini.chop]\nkeep = ["TE"]\n'
    assert "[dataset]\nflip_aug = true\n\n# The folder.\n[[dataset.subset]]" in edited("dataset.flip_aug", "true")
    assert 'num_repeats = 3\n\n[[dataset.subset]]\nimage_dir = "c"\n\n[recipe]' in edited("dataset.subset[2].image_dir", '"c"')  # fmt: skip
    assert edited("extends", '"schnell"', "# Mine.\n\n# on project\n[project]\n").startswith('# Mine.\n\nextends = "schnell"\n\n# on p')  # fmt: skip


def test_a_table_of_dotted_keys_gets_one_more():
    text = 'recipe.seed = 1 # drawn\nchop.keep = ["TE"]\n\n[project]\nbase = "tiny"\n'
    assert edited("recipe.unet_lr", "1e-4", text) == text.replace("drawn\n", "drawn\nrecipe.unet_lr = 1e-4\n")
    assert "recipe.network_args.algo = 1\n" in edited("recipe.network_args.algo", "1", text)


def test_what_is_equal_to_nothing_is_written_all_the_same():
    assert edited("resize.thr", "nan") == TEXT.replace("thr = -2.5", "thr = nan")


def test_a_key_takes_another_ones_line():
    new = with_value(TEXT.encode(), key_path("resize.size"), "16", key_path("resize.thr")).decode()
    assert new == TEXT.replace("thr = -2.5", "size = 16")
    new = with_value(TEXT.encode(), key_path("chop.vector"), '"1"', key_path("chop.keep")).decode()
    assert '[chop]\nvector = "1"\nweights.OUT01 = 0.5' in new


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        ("project.base", ['base    =   "tiny"  # ours']),
        ("chop.keep", ["keep = [", '    "TE",   # the name', '    "OUT01",', "]"]),
        ("resize", ["[resize]", "thr = -2.5"]),
        ("variants.mini", ["[variants.mini.resize]", "thr = -3.2"]),
        ("variants", ["[variants.mini.resize]", "thr = -3.2"]),
        ("dataset.subset[1]", ["[[dataset.subset]]", 'image_dir = "more"  # of them', "num_repeats = 3", ""]),
    ],
)
def test_what_is_removed_takes_nothing_with_it(path: str, gone: list[str]):
    left = without(TEXT.encode(), key_path(path)).decode()
    start = TEXT.splitlines().index(gone[0], 11 if "subset" in path else 0)
    lines = TEXT.splitlines(keepends=True)
    assert left == "".join(lines[:start] + lines[start + len(gone) :])


def test_elements_and_keys_of_inline_tables_go_with_one_comma():
    assert '["tiny"]   # recipes' in without(TEXT.encode(), key_path("extends[0]")).decode()
    assert '["schnell"]   # recipes' in without(TEXT.encode(), key_path("extends[1]")).decode()
    assert "{ conv_dim = 8 } # both" in without(TEXT.encode(), key_path("recipe.network_args.algo")).decode()
    assert '{ algo = "locon" } # both' in without(TEXT.encode(), key_path("recipe.network_args.conv_dim")).decode()


@pytest.mark.parametrize("text", [TEXT, TEXT.removesuffix("\n"), TEXT.replace("\n", "\r\n"), "\ufeff" + TEXT])
@pytest.mark.parametrize("path", ["resize.thr", "resize.size", "samples.prompts", "variants.mini.resize.fro_ckpt", "dataset.subset[2].image_dir"])  # fmt: skip
def test_line_ends_the_end_of_the_file_and_its_mark_stay(text: str, path: str):
    new = with_value(text.encode(), key_path(path), "1").decode()
    assert new.endswith("\n") == text.endswith("\n")
    assert new.count("\n") - new.count("\r\n") == (0 if "\r\n" in text else new.count("\n"))
    assert new.startswith("\ufeff") == text.startswith("\ufeff")


def test_the_last_line_may_go_without_leaving_another_end():
    text = TEXT.removesuffix("\n").encode()
    assert without(text, key_path("variants.mini.resize.thr")).decode().endswith("[variants.mini.resize]")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("chop", "a table; name a key"),
        ("dataset.subset.num_repeats", "say which, dataset.subset[0].num_repeats"),
        ("dataset.subset[7].num_repeats", "has 2, counted from 0"),
        ("project.base.x", "is no table"),
        ("project.base[0]", "is no list"),
        ("re size", "not a key"),
        (".thr", "not a key"),
        ("thr.", "not a key"),
    ],
)
def test_what_has_no_place_is_one_line(path: str, said: str):
    with pytest.raises(UsageError) as caught:
        edited(path, "1")
    assert said in str(caught.value)


def test_a_value_never_smuggles_in_more_than_itself():
    with pytest.raises((UsageError, ValueError)):
        edited("resize.thr", "1\nsize = 2")
    with pytest.raises(UsageError):
        edited("recipe.network_args.conv_dim", "1 # a comment that swallows the bracket")


NAMES = st.sampled_from(["a", "b", "c", "d e"])
VALUES = st.sampled_from(["1", '"x"', "[1, 2]", "{ a = 1 }", "{}", "[]", "true"])


@given(st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), VALUES), max_size=8), st.booleans())
def test_any_row_of_edits_says_what_was_meant_or_is_refused(edits: list, drop: bool):
    data, wanted = b"# start\n\n[a]\nb = 1 # one\n\n[[c]]\na = 1\n\n[[c]]\nb.c = 2\n", None
    for names, raw in edits:
        path = tuple(names)
        try:
            data = with_value(data, path, raw)
        except UsageError:
            continue
        wanted = tomllib.loads(data.decode())
        for name in path:
            wanted = wanted[name]
        assert wanted == tomllib.loads(f"v = {raw}")["v"]
        assert key_path(dotted(path)) == path
        if drop:
            try:
                data = without(data, path)
            except UsageError:
                continue
    assert b"# start" in data
