"""Exit codes of every command and kind of mistake: one line, never a traceback, and with --json stdout is JSON alone."""

from __future__ import annotations

import json
import os
import signal
from importlib import import_module
from pathlib import Path

import pytest
from world import World

from lorabuild import cli

REPOSITORY = "repository"  # a sound one, of which nothing is built
KINDS = {REPOSITORY: 0, "nowhere": 2, "wrong manifest": 3, "wrong lorabuild.toml": 3}
ARGUMENTS = {"why": ["ember"], "diff": ["ember", "HEAD:ember"]}
# Commands that open the repository before anything else
LOOKING = [*cli.DOIT_VERBS, "report", "check", "plan", "why", "status", "verify", "gc", "diff", "pull", "push"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of KINDS."""
    root = tmp_path_factory.mktemp("places")
    for kind in KINDS:
        if kind == "nowhere":
            (root / kind).mkdir()
        else:
            World(root / kind).project()
    World(root / "wrong manifest").write("projects/ember/lora.toml", '[project]\nbase = "tiny"\nbse = 3\n')
    World(root / "wrong lorabuild.toml").write("lorabuild.toml", "[[[\n")
    return root


class Said:
    """What a command came to, run in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], *args: str):
        before = Path.cwd()
        os.chdir(folder)
        capsys.readouterr()
        try:
            self.code = cli._main(list(args))
        except SystemExit as end:  # argparse, after --help
            self.code = int(end.code or 0)
        finally:
            os.chdir(before)
        self.out, self.err = capsys.readouterr()
        assert "Traceback" not in self.out + self.err

    @property
    def mistake(self) -> str:
        """The one line that stderr has, where stdout has none."""
        assert (self.out, self.err.count("\n")) == ("", 1), self.out + self.err
        return self.err


def has_json(verb: str) -> bool:
    return verb in ("build", "run") or (
        verb not in cli.DOIT_VERBS and "--json" in import_module(f"lorabuild.verbs.{verb}").parser().format_help()
    )


@pytest.mark.parametrize("kind", [kind for kind, code in KINDS.items() if code])
@pytest.mark.parametrize("verb", LOOKING)
def test_a_repository_that_is_not_there_or_wrong(verb: str, kind: str, places: Path, capsys):
    options = ["--json"] if has_json(verb) else []
    said = Said(places / kind, capsys, verb, *options, *ARGUMENTS.get(verb, []))
    assert said.code == KINDS[kind]
    if verb == "check" and said.code == 3:  # a wrong manifest is a finding among others
        assert "wrong TOML" in said.out or "bse" in said.out
        json.loads(said.out)
    elif kind == "wrong manifest":  # each mistake has its line
        assert said.out == "" and "projects/ember/lora.toml:3: project.bse: unknown key" in said.err
    else:
        assert said.mistake


@pytest.mark.parametrize("verb", [*cli.DOIT_VERBS, *cli.VERBS])
def test_an_option_that_there_is_not(verb: str, places: Path, capsys):
    said = Said(places / REPOSITORY, capsys, verb, "--nonsense")
    assert said.code == 2 and said.mistake


@pytest.mark.parametrize("verb", ["build", "clean", "forget", "list", "plan", "why", "check", "verify", "pull"])
def test_a_name_that_there_is_not(verb: str, places: Path, capsys):
    said = Said(places / REPOSITORY, capsys, verb, *(["--json"] if has_json(verb) else []), "embr")
    assert said.code == 2 and 'did you mean "ember"?' in said.mistake


def test_a_command_that_there_is_not(places: Path, capsys):
    said = Said(places / REPOSITORY, capsys, "biuld")
    assert said.code == 2 and 'did you mean "build"?' in said.mistake


@pytest.mark.parametrize(
    "args",
    [
        ["show", "none.safetensors"],
        ["blocks", "none.safetensors"],
        ["chop", "none.safetensors", "--keep", "TE", "-o", "out.safetensors"],
        ["merge", "none.safetensors:1", "-o", "out.safetensors"],
        ["resize", "none.safetensors", "--base", "b.safetensors", "-r", "fro_ckpt=1,thr=-3", "-o", "out.safetensors"],
    ],
    ids=lambda args: args[0],
)
def test_a_file_that_there_is_not(args: list[str], places: Path, capsys):
    said = Said(places / "nowhere", capsys, *args)
    assert said.code == 1 and "no such file" in said.mistake


def test_what_is_stale_is_1_and_json_all_the_same(places: Path, capsys):
    assert Said(places / REPOSITORY, capsys, "plan").code == 1
    said = Said(places / REPOSITORY, capsys, "plan", "--json")
    assert said.code == 1 and json.loads(said.out)["stale"] is True and said.err == ""
    said = Said(places / REPOSITORY, capsys, "status", "--json")
    assert said.code == 0 and json.loads(said.out)


@pytest.mark.parametrize("verb", LOOKING)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_who_is_interrupted(verb: str, number: signal.Signals, places: Path, capsys, monkeypatch):
    """A signal while the command opens the repository: a word, and the code that a shell gives; a build's is always 130."""

    def interrupted(*args: object, **settings: object) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did not come")

    where = "lorabuild.graph.tasks.opened" if verb in cli.DOIT_VERBS else f"lorabuild.verbs.{verb}.main"
    monkeypatch.setattr(where, interrupted)
    said = Said(places / REPOSITORY, capsys, verb, *(["--json"] if verb == "build" else []))
    assert said.code == (130 if verb in cli.DOIT_VERBS else 128 + number) and "interrupted" in said.mistake


@pytest.mark.parametrize("verb", ["", "--help", "-h", "help"])
def test_help_is_0_and_nothing_at_all_is_2(verb: str, places: Path, capsys):
    said = Said(places / "nowhere", capsys, *[verb] * bool(verb))
    assert said.code == (0 if verb else 2) and said.out.startswith("lorabuild: make for LoRAs")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_anywhere(verb: str, places: Path, capsys):
    said = Said(places / "nowhere", capsys, verb, "--help")
    assert said.code == 0 and said.out.startswith("usage: lorabuild")
