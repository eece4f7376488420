"""Completion in real shells: verbs, options, targets, blocks, by scripts that each shell reads without a word."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from world import HEAVY, REPOSITORY, World

from lorabuild import cli
from lorabuild.completing.candidates import KINDS, candidates
from lorabuild.completing.commands import OPTIONAL, POSITIONAL, commands
from lorabuild.completing.shells import SHELLS
from lorabuild.names import BLOCKS, STAGES


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with projects, a variant, a base and recipes; the scripts; and `lorabuild` on the path."""
    root = tmp_path_factory.mktemp("completion")
    world = World(root / "repository")
    world.manifest("ember", title="\n[variants.mini.chop]\nkeep = ['TE']\n")
    world.manifest("embassy")
    world.manifest("sub/blueprint")
    world.write("lorabuild.toml", '[bases.pony]\ncheckpoint = "pony.safetensors"\n')
    world.write("recipes/schnell.toml", "")
    world.write("kept.safetensors", b"")
    (root / "bin").mkdir()
    command = root / "bin/lorabuild"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lorabuild "$@"\n')
    command.chmod(0o755)
    for shell, script in SHELLS.items():
        (root / f"script.{shell}").write_text(script(commands()))
    return root


def said(place: Path, *command: str, **env: str) -> list[str]:
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY), "HOME": str(place)} | env
    done = subprocess.run(
        command, cwd=place / "repository", env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


BASH = """\
source "$1"
line="$2" COMP_LINE="$2" COMP_POINT=${#2}
_lorabuild
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """\
compdef() { :; }
compadd() { [[ "$1" == -a ]] && print -l -- ${(M)${(P)2}:#${words[CURRENT]}*}; }
source "$1"
words=(${=2})
[[ "$2" == *" " ]] && words+=("")
CURRENT=${#words}
_lorabuild
"""


def completed(place: Path, shell: str, line: str) -> list[str]:
    """What the shell puts in place of the last word of the line."""
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell} here")
    script = str(place / f"script.{shell}")
    if shell == "fish":
        asked = 'source $argv[1]; complete -C "$argv[2]"'
        return [one.partition("\t")[0] for one in said(place, "fish", "--no-config", "-c", asked, script, line)]
    if shell == "zsh":
        return [one for one in said(place, "zsh", "-f", "-c", ZSH, "zsh", script, line) if one]
    found = said(place, "bash", "--norc", "-c", BASH, "bash", script, line)
    word = re.split(r"\s", line)[-1]
    kept = re.match(r".*[:=@]|", word)[0]  # what bash leaves as it is
    return [f"{kept}{one}" for one in found if one]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("lorabuild pl", {"plan"}),
        ("lorabuild build --js", {"--json"}),
        ("lorabuild plan em", {"ember", "embassy"}),
        ("lorabuild build chop:em", {"chop:ember", "chop:ember@mini", "chop:embassy"}),
        ("lorabuild build chop:ember@", {"chop:ember@mini"}),
        ("lorabuild build base:", {"base:tiny", "base:pony"}),
        ("lorabuild check bl", {"blueprint"}),
        ("lorabuild chop x.safetensors --keep TE,OUT0", {f"TE,OUT0{n}" for n in range(9)}),
        ("lorabuild merge --dtype ", {"fp16", "bf16", "fp32"}),
        ("lorabuild explain LB00", {"LB001"}),
    ],
)
def test_a_press_of_tab(shell: str, line: str, wanted: set[str], place: Path):
    found = set(completed(place, shell, line))
    assert found == wanted if "LB" not in line else wanted <= found


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_is_offered(shell: str, place: Path):
    offered = set(completed(place, shell, "lorabuild "))
    assert {*cli.DOIT_VERBS, *cli.VERBS} - {"run"} <= offered and "_complete" not in offered


def test_every_option_of_every_verb_is_in_every_script(place: Path):
    for command in commands():
        for flag in (flag for option in command.options for flag in option.flags):
            for shell in ("bash", "zsh"):
                assert re.search(rf"^ *{command.name}\) .*{flag}\b", (place / f"script.{shell}").read_text(), re.M)
            fish = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            lines = (place / "script.fish").read_text().splitlines()
            assert any(f"from {command.name}'" in line and f"{fish} " in line for line in lines)


def test_doits_own_options_are_as_it_has_them():
    from doit.cmd_base import ModuleTaskLoader

    from lorabuild import graph

    for command in commands():
        if command.name in cli.DOIT_VERBS:
            its = graph.COMMANDS["run" if command.name == "build" else command.name](task_loader=ModuleTaskLoader({}))
            known = {f"-{one.short}" for one in its.get_options()} | {f"--{one.long}" for one in its.get_options()}
            assert {flag for option in command.options for flag in option.flags} <= known


def test_kinds_are_those_that_can_be_told():
    assert {*POSITIONAL.values(), *OPTIONAL.values()} <= KINDS.keys()


def test_candidates_of_each_kind(place: Path):
    root = place / "repository"
    assert candidates("projects", "", root) == ["embassy", "ember", "blueprint"]
    assert set(candidates("targets", "", root)) == {*STAGES, "report", "ember", "embassy", "blueprint"}
    assert candidates("blocks", "!MID0", root) == ["!MID00", "!MID01", "!MID02"]
    assert candidates("blocks", "TE1,!TE", root) == ["TE1,!TE", "TE1,!TE1", "TE1,!TE2"]
    assert set(candidates("blocks", "", None)) == {"TE", *BLOCKS}
    assert "schnell" in candidates("recipes", "", root) and candidates("bases", "p", root) == ["pony"]
    assert candidates("projects", "", None) == [] and candidates("nonsense", "", root) == []


def test_an_answer_imports_nothing_heavy_and_never_complains(place: Path):
    code = (
        "import sys; from lorabuild.cli import _main; _main(['_complete', 'targets', 'chop:e']);"
        f"print(set({(*HEAVY, 'doit', 'pydantic', 'sqlite3', 'argparse', 'lorabuild.manifest')}) & set(sys.modules))"
    )
    assert said(place, sys.executable, "-c", code) == [
        "chop:embassy",
        "chop:ember",
        "chop:ember@mini",
        "set()",
    ]
    assert said(place, sys.executable, "-m", "lorabuild", "_complete") == []


def test_the_jobs_of_a_sweep_are_candidates_of_the_stage_they_are_of(tmp_path: Path):
    world = World(tmp_path / "repository")
    world.manifest("ash", title="\n[matrix]\nthr = [-3.2]\nrecipe.unet_lr = [1e-3]\n")
    world.manifest("birch", title="\n[matrix]\nthr = [-3.2\n")
    for stage, name in (("train", "unet_lr1e-3"), ("resize", "unet_lr1e-3_thr-3.2"), ("chop", "unet_lr1e-3_thr-3.2")):
        assert candidates("targets", f"{stage}:ash@", world.root) == [f"{stage}:ash@{name}"]
    assert candidates("targets", "chop:birch@", world.root) == []
