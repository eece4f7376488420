"""What the docs say to type is there: each command, its options, and that every code and verb has its place."""

from __future__ import annotations

import ast
import errno
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorabuild.codes import CODES
from lorabuild.completing.commands import commands
from lorabuild.findings import index, page
from lorabuild.manifest.reference import reference
from lorabuild.names import REPORT

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PAGES = [path for path in PAGES if path.name not in ("log.md",)]  # the log tells of what was, too
VERBS = {command.name: command for command in commands()}
DOITS_OWN = {"--continue", "-n", "-a", "--json", "-h", "--help", "--version", "--all", "--process"}


def told(text: str) -> Iterator[str]:
    """Every command line of lorabuild or doit: in blocks of code, and in the running text between backticks."""
    for fence, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        for line in block.splitlines() if fence in ("sh", "console", "bash") else ():
            line = line.removeprefix("$ ") if fence == "console" and line.startswith("$ ") else line
            if fence != "console" or block.count(f"$ {line}"):
                for part in re.split(r"&&|\||;", line.partition(" #")[0]):
                    if re.match(r"\s*(lorabuild|doit)( |$)", part):
                        yield part.strip()
    for line in re.findall(r"`((?:lorabuild|doit) [^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        yield line


def words(line: str) -> list[str]:
    """Without brackets of what may be left out: `plan [TARGET…] [--json]`."""
    try:
        return shlex.split(re.sub(r"[\[\]…]", " ", line), comments=True)
    except ValueError:
        return line.split()


LINES = sorted({(path.name, line) for path in PAGES for line in told(path.read_text())})


def test_commands_were_found():
    assert len(LINES) > 50


@pytest.mark.parametrize(("page_name", "line"), LINES, ids=lambda value: value)
def test_a_command_of_the_docs_is_one_with_its_options(page_name: str, line: str):
    program, *args = words(line)
    verb = args[0] if args else ""
    if program == "doit" and verb not in VERBS:  # a build: of targets, with options
        assert {arg for arg in args if arg.startswith("-") and arg != "-"} <= DOITS_OWN
        return
    if verb in ("--help", "--version", "VERB", "--json"):
        return
    assert verb in VERBS, f"{page_name}: {line}"
    known = {flag for option in VERBS[verb].options for flag in option.flags} | {"--help", "-h"}
    given = {arg.partition("=")[0] for arg in args[1:] if re.match(r"--?[a-z]", arg)}
    assert given <= known, f"{page_name}: {line}"
    for choices in (option for option in VERBS[verb].options if option.choices):
        for flag in choices.flags:
            if flag in args and args.index(flag) + 1 < len(args):
                given = args[args.index(flag) + 1].split("|")
                assert {one for one in given if one.islower()} <= set(choices.choices), f"{page_name}: {line}"


def test_every_verb_has_a_page_that_shows_it():
    shown = {words(line)[1] for _, line in LINES if len(words(line)) > 1}
    assert {*VERBS, REPORT} - shown <= {"build"}, "no page shows this"


def test_the_pages_that_are_made_are_up_to_date():
    assert (REPOSITORY / "docs/findings.md").read_text() == page()
    assert (REPOSITORY / "docs/manifest.md").read_text() == reference() + "\n"


TROUBLES = (REPOSITORY / "docs/troubleshooting.md").read_text()
SEEN = [line for block in re.findall(r"^```text\n(.*?)^```", TROUBLES, re.M | re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def messages() -> set[tuple[str, ...]]:
    """Every text of the source, as its parts between the values that are put in."""
    found = {(os.strerror(errno.ENOSPC),)}  # the system's
    for path in (REPOSITORY / "lorabuild").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.add(tuple(one.value.strip("\n") for one in node.values if isinstance(one, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add((node.value,))
    return {parts for parts in found if len("".join(parts)) > 8}


@pytest.mark.parametrize("line", SEEN)
def test_a_line_of_the_troubles_is_one_that_the_program_says(line: str, messages: set[tuple[str, ...]]):
    """Most of its letters, but for the file before it, are those of texts in the source that it matches."""
    matching = [parts for parts in messages if all(map(line.__contains__, parts)) and _in_order(parts, line)]
    where = re.match(r"(\S+/\S+: )?", line)
    assert where and sum(len("".join(parts)) for parts in matching) >= (len(line) - where.end()) * 0.6, matching


def _in_order(parts: tuple[str, ...], line: str) -> object:
    return re.search(".*".join(map(re.escape, parts)), line)


def test_the_troubles_have_every_code():
    assert TROUBLES.endswith(f"\n\n{index()}"), "python -m lorabuild.findings index"
    headings = {
        "findings.md#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^## (.*)", page(), re.M)
    }
    assert set(re.findall(r"\[LB\d+\]\(([^)]*)\)", TROUBLES)) == headings and len(headings) == len(CODES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_link_leads_nowhere(path: Path):
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        assert "://" in link or (path.parent / link).exists(), link


def test_the_index_leads_to_every_page():
    links = set(re.findall(r"\]\(([^)#]+)", (REPOSITORY / "docs/README.md").read_text()))
    assert {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"README.md"} <= links


def test_the_glossary_is_in_order():
    words_ = re.findall(r"^\| \*\*(\w+)", (REPOSITORY / "docs/glossary.md").read_text(), re.M)
    assert words_ == sorted(set(words_)) and {"finding", "key", "stage", "variant"} <= set(words_)
