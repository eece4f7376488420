"""Each mistake in a TOML file is told in one line: the file, the line of the fault, what was expected, a near miss."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifest_world import GOOD, Files

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.toml"))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def marked(text: str) -> list[tuple[int, str]]:
    """(line, words) of each `#! words` in a sample: what the user must see of that line."""
    lines = enumerate(text.splitlines(), 1)
    return [(number, line.partition("#! ")[2]) for number, line in lines if "#! " in line]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_flaw_is_told_at_its_line_in_the_users_words(files: Files, sample: Path):
    shared = sample.stem.startswith("shared-")
    files.write("projects/ember/lora.toml", GOOD)
    name = files.write("lorabuild.toml" if shared else "projects/ember/lora.toml", sample.read_text())
    said, expected = files.mistakes(), marked(sample.read_text())
    assert expected, f"{sample.name} has no mark"
    assert [(one.file, one.line) for one in said] == [(name, line) for line, _ in expected]
    for problem, (_, words) in zip(said, expected, strict=True):
        assert words in problem.message
        assert "\n" not in str(problem)


def test_all_mistakes_of_all_files_are_told_at_once(files: Files):
    files.write("lorabuild.toml", "[slots]\ngpu = 0\n")
    files.write("recipes/wrong.toml", "[recipe]\nseed = 'x'\n")
    files.write("projects/a/lora.toml", 'extends = "wrong"\n' + GOOD + "[chop]\nkeep = ['NOPE']\nkep = []\n")
    files.write("projects/b/lora.toml", 'extends = "wrong"\n[project]\n')
    files.write("projects/c/lora.toml", "[")
    assert [(one.file, one.line) for one in files.mistakes()] == [
        ("lorabuild.toml", 2),
        ("projects/a/lora.toml", 7),
        ("projects/a/lora.toml", 8),
        ("projects/b/lora.toml", 1),  # no [dataset]
        ("projects/b/lora.toml", 2),  # no base
        ("projects/c/lora.toml", 1),
        ("recipes/wrong.toml", 2),  # once, though two projects extend it
    ]


def test_a_mistake_stands_where_the_value_was_written(files: Files):
    files.write("recipes/low.toml", "[recipe]\n\nnetwork_dim = 0\nnetwork_alpha = 'x'\n")
    files.write("recipes/high.toml", "extends = 'low'\n[recipe]\nseed = 'x'\n")
    files.write("projects/ember/lora.toml", "extends = 'high'\n" + GOOD + "[recipe]\nnetwork_alpha = 4\n")
    assert [(one.file, one.line) for one in files.mistakes()] == [("recipes/high.toml", 3), ("recipes/low.toml", 3)]


def test_a_variant_of_several_layers_has_its_mistakes_in_each(files: Files):
    files.write("recipes/low.toml", "[variants.mini.resize]\n\nthr = 'x'\n")
    files.write("projects/ember/lora.toml", "extends = 'low'\n" + GOOD + "[variants.mini.resize]\nstep = 0\n")
    assert [(one.file, one.line) for one in files.mistakes()] == [
        ("projects/ember/lora.toml", 7),
        ("recipes/low.toml", 3),
    ]


def test_what_the_project_lacks_is_not_told_again_for_each_variant(files: Files):
    files.write("projects/ember/lora.toml", GOOD + "[resize]\n[variants.mini.resize]\nstep = 4\n")
    (said,) = files.mistakes()
    assert said.line == 5 and said.message.startswith("resize.thr: nothing says how many ranks stay")


def test_a_recipe_is_in_the_recipes_folder_and_nowhere_else(files: Files):
    files.write("secret.toml", "")
    files.write("recipes/inner/own.toml", "")
    files.write("projects/ember/lora.toml", "extends = ['../secret', 'inner/own']\n" + GOOD)
    assert [one.line for one in files.mistakes()] == [1, 1]


def test_a_byte_order_mark_shifts_no_line(files: Files):
    files.write("projects/ember/lora.toml", b"\xef\xbb\xbf" + GOOD.replace("base", "bse").encode())
    assert [(one.file, one.line) for one in files.mistakes()] == [("projects/ember/lora.toml", 2)]


def test_a_local_file_is_named_for_its_own_mistakes(files: Files):
    files.write("lorabuild.toml", "[slots]\ncpu = 4\n")
    files.write("lorabuild.local.toml", "[slots]\n\ngpu = -1\n")
    assert [(one.file, one.line) for one in files.mistakes()] == [("lorabuild.local.toml", 3)]


def test_an_unknown_recipe_has_a_near_miss_and_hides_no_other_mistake(files: Files):
    files.write("recipes/schnell.toml", "[project]\nbase = 'tiny'\n")
    files.write(
        "projects/ember/lora.toml", "extends = 'schnel'\n[[dataset.subset]]\nimage_dir = 'i'\n[recipe]\nsede = 1\n"
    )
    assert [str(one) for one in files.mistakes()] == [
        'projects/ember/lora.toml:1: extends: "schnel" is not in recipes/ (did you mean "schnell"?)',
        'projects/ember/lora.toml:5: recipe.sede: unknown key (did you mean "seed"?)',
    ]  # and not that `base` is missing: the recipe that was meant has it


def test_a_recipe_given_as_a_path_has_a_near_miss(files: Files):
    files.write("recipes/schnell.toml", "")
    files.write("projects/ember/lora.toml", "extends = 'recipes/schnell.toml'\n" + GOOD)
    (said,) = files.mistakes()
    assert 'did you mean "schnell"?' in said.message


def test_a_circle_of_recipes_is_told_once(files: Files):
    files.write("recipes/a.toml", "extends = 'b'\n")
    files.write("recipes/b.toml", "\nextends = ['a']\n")
    files.write("projects/ember/lora.toml", "extends = 'a'\n" + GOOD)
    files.write("projects/other/lora.toml", "extends = 'a'\n" + GOOD)
    assert [str(one) for one in files.mistakes()] == [
        "recipes/b.toml:2: extends: a circle: recipes/a.toml -> recipes/b.toml -> recipes/a.toml"
    ]


def test_a_broken_recipe_is_one_line(files: Files):
    files.write("recipes/broken.toml", "[project]\nbase = tiny\n")
    files.write("projects/ember/lora.toml", "extends = 'broken'\n[[dataset.subset]]\nimage_dir = 'i'\n")
    assert [str(one) for one in files.mistakes()] == ["recipes/broken.toml:2: wrong TOML: Invalid value"]


def test_a_broken_lorabuild_toml_does_not_make_bases_unknown(files: Files):
    files.write("lorabuild.toml", "[bases.mine]\nbuiltin = 'tiny-sdxl'\n[")
    files.write("projects/ember/lora.toml", GOOD.replace('"tiny"', '"mine"'))
    (said,) = files.mistakes()
    assert (said.file, said.line) == ("lorabuild.toml", 3)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b'[project]\ntitle = "caf\xe9"\n', 2, "not UTF-8 (byte 0xe9): save the file as UTF-8"),
        ("[project]\n".encode("utf-16"), 1, "not UTF-8"),
        (b'[project]\ntitle = """never\nclosed\n', 3, "wrong TOML"),
        (b"seed = " + b"9" * 5000, 1, "wrong TOML"),
        (b"seed = 0x" + b"f" * 5000, 1, "wrong TOML: whole numbers have at most 64 bits"),
        (b"a = " + b"[" * 2000 + b"]" * 2000, 1, "nested too deeply"),
        (b".".join([b"a"] * 400) + b" = 1\n[variants.x.chop]\n", 1, "nested too deeply"),
    ],
)
def test_whatever_stands_in_a_file_gives_one_line(files: Files, content: bytes, line: int, words: str):
    files.write("projects/ember/lora.toml", content)
    (said,) = files.mistakes()
    assert (said.file, said.line) == ("projects/ember/lora.toml", line)
    assert words in said.message


def test_odd_characters_keep_a_message_on_one_line(files: Files):
    odd = r"""
        [project]
        base = "ti\nny"
        "my\nkey" = 1
        [[dataset.subset]]
        image_dir = "i\u0000"
        [chop]
        keep = ["\n"]
    """
    files.write("projects/ember/lora.toml", odd)
    assert [str(one).partition("toml:")[2] for one in files.mistakes()] == [
        r'3: project.base: "ti\nny" is not a base of lorabuild.toml (did you mean "tiny"?)',
        r'4: project."my\nkey": unknown key',
        "6: dataset.subset.image_dir: a folder's name cannot hold a zero character",
        r'8: chop.keep: "\n": no such block',
    ]


def test_an_unreadable_file_is_one_line(files: Files):
    for name in ("projects/ember/lora.toml", "lorabuild.local.toml"):
        (files.root / name).mkdir(parents=True)
    files.write("projects/other/lora.toml", "extends = 'folder'\n" + GOOD)
    (files.root / "recipes/folder.toml").mkdir(parents=True)
    assert [str(one) for one in files.mistakes()] == [
        "lorabuild.local.toml:1: cannot be read: Is a directory",
        "recipes/folder.toml:1: cannot be read: Is a directory",
    ]  # a folder called lora.toml is no manifest


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("Ember", 'for example "ember"'),
        ("my fox", 'for example "my-fox"'),
        ("_x", "starts with a letter or digit"),
        ("train", '"train" is the name of a stage or command'),
        ("reset-dep", '"reset-dep" is the name of a stage or command'),
    ],
)
def test_a_bad_project_name_is_told(files: Files, folder: str, words: str):
    files.write(f"projects/{folder}/lora.toml", GOOD)
    (said,) = files.mistakes()
    assert (said.file, said.line) == (f"projects/{folder}/lora.toml", 1)
    assert words in said.message


def test_two_projects_of_one_name_are_told(files: Files):
    files.write("projects/a/ember/lora.toml", GOOD)
    files.write("projects/b/ember/lora.toml", "[")
    assert [one.line for one in files.mistakes()] == [1, 1]
    assert "here and in projects/a/ember/lora.toml" in files.mistakes()[0].message
