"""What the docs say to type is typed: each command of README and docs/ runs, and ends with the exit code that it should.

The repository is one of this one's examples, built by stand-ins (benchmarks/standins.py), with a history, a remote store
and the files that the pages name. Each command has a copy of it for itself.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import standins
from shared import once
from test_docs import LINES, REPOSITORY
from world import World

from lorabuild import cli
from lorabuild.stages import STAGES

pytestmark = pytest.mark.slow

STANDINS = ("base", "norms", "latents", "train", "spectrum", "resize", "chop", "samples")
DODO = f"""\
import standins
standins.install(*{STANDINS})
from lorabuild.graph import DOIT_CONFIG, task_lorabuild
"""
EXPORT = '[export]\na1111 = "~/forge"\ncomfy = "~/ComfyUI"\ndiffusers = "~/pictures"\nfolder = "~/pictures"\n'
# What the pages put in place of a name
STANDS_FOR = {
    "NAME": "ember",
    "PROJECT": "ember",
    "TARGET": "chop:ember",
    "NAME|FILE": "ember",
    "FILE": "any.safetensors",
    "CKPT": "sdxl.safetensors",
    "OUT": "out.safetensors",
    "DIR": "folder",
    "A": "any.safetensors",
    "B": "big.safetensors",
    "A:0.7": "any.safetensors:0.7",
    "B:0.3": "big.safetensors:0.3",
    "KEY=VALUE": "recipe.seed=3",
    "KEY": "project.trigger",
    "CODE": "LB051",
    "RECIPE": "schnell",
    "BASE": "tiny",
    "KIND": "style",
    "WORD": "ember",
    "VERB": "status",
    "N": "3",
    "samples:NAME": "samples:ember",
    "a1111|comfy|diffusers|folder": "folder",
}
OF_A_VERB = {("import", "FILE"): "train.sh", ("new", "DIR"): "~/pictures"}
# Command -> why it cannot run here
NOT_RUN = {
    "lorabuild doctor": "tests/test_doctor.py runs it: it imports torch to ask for GPUs, which takes seconds",
    "lorabuild doctor --fetch-tokenizer": "asks the internet",
    "lorabuild doctor [--json] [--fetch-tokenizer]": "asks the internet",
}
# Named in a sentence, without what they need: that is a usage error of one line
NAMED = """
doit forget, doit new, doit set, lorabuild blocks, lorabuild chop, lorabuild diff, lorabuild export,
lorabuild import, lorabuild merge, lorabuild new, lorabuild resize, lorabuild show, lorabuild why
"""
# Command -> its exit code, where that is not 0
CODES = {
    **dict.fromkeys(NAMED.replace("\n", " ").strip().split(", "), 2),
    "lorabuild diff A B": 1,  # they differ
}


TIME = re.compile(r" in [\d.]+ s")


def typed(line: str) -> list[str]:
    """The words of a command, with everything that may be left out, and something for each name."""
    plain = re.sub(r"[\[\]…]", " ", re.sub(r" \| [^\]]*", "", line))  # of `[--name NAME | -o OUT]` the first
    words = shlex.split(plain, comments=True)
    names = STANDS_FOR | {name: one for (verb, name), one in OF_A_VERB.items() if verb in words[1:2]}
    return [names.get(word, word) for number, word in enumerate(words) if "=" not in word or word not in words[:number]]


COMMANDS = {line: typed(line) for page, line in LINES if page != "tutorial.md"}  # which tests/test_tutorial.py runs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "home-of-the-docs", _make)


def _make(home: Path) -> None:
    world = World(home / "loras")
    world.write("dodo.py", DODO)
    world.write("lorabuild.toml", (REPOSITORY / "lorabuild.toml").read_text())
    world.write("lorabuild.local.toml", f'[store]\nremote = "file://{home}/remote"\n{EXPORT}')
    world.write(".gitignore", "/build/\n/.lorabuild/\n/lorabuild.local.toml\n")
    shutil.copytree(REPOSITORY / "recipes", world.root / "recipes")
    for name, like in (("ember", "ember"), ("blueprint", "blueprint"), ("style-x", "blueprint")):
        text = (REPOSITORY / f"projects/{like}/lora.toml").read_text()
        variant = "[variants.mini.resize]\nthr = -2\n" if name == "ember" else ""
        world.write(f"projects/{name}/lora.toml", f'{text}\n[samples]\nprompts = "prompts.txt"\n\n{variant}')
        world.write(f"projects/{name}/prompts.txt", "ember, sitting --w 64 --h 64 --s 2\n")
        for number in range(2):
            world.picture(f"projects/{name}/images/{number}.png", number + len(name), (128, 128))
            world.write(f"projects/{name}/images/{number}.txt", f"ember, red, {number}")
    shutil.copytree(world.root / "projects/ember/images", home / "pictures")
    for folder in ("forge/models/Lora", "ComfyUI/models/loras"):
        (home / folder).mkdir(parents=True)
    _files(world.root)
    for message in ("one", "two", "three", "four"):
        world.write("notes.txt", message)
        for command in (["init", "-q"], ["add", "-A"], [*WHO, "commit", "-qm", message]):
            subprocess.run(["git", *command], cwd=world.root, check=True)
    for command in (["doit"], ["doit", "samples"], ["lorabuild", "check"]):
        done = world.run(sys.executable, "-m", *command, **_environment(home))
        assert done.code == 0, done.out + done.err


def _files(root: Path) -> None:
    """LoRAs of one layer, a base that has it, and a command of sd-scripts."""
    import torch
    from lora_lab import write_bases, write_lora

    layer, generator = standins.LAYER, torch.Generator().manual_seed(0)
    for name in ("any", "big"):
        parts = {f"{layer}.lora_{part}.weight": torch.randn(4, 4, generator=generator) for part in ("down", "up")}
        write_lora(root / f"{name}.safetensors", {**parts, f"{layer}.alpha": torch.tensor(4.0)})
    write_bases(root / "base", {layer: torch.randn(4, 4, generator=generator)})
    (root / "base/sdxl.safetensors").rename(root / "sdxl.safetensors")
    shutil.rmtree(root / "base")
    shutil.copy(next((REPOSITORY / "tests/samples").rglob("pony-guide.sh")), root / "train.sh")


def _environment(home: Path) -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY / "benchmarks"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "HOME": str(home), "NO_COLOR": "1"}


WHO = ["-c", "user.name=me", "-c", "user.email=me@localhost"]


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy of all of it, where commands of this process run as in a shell."""
    shutil.copytree(home, tmp_path / "home", symlinks=True)
    local = tmp_path / "home/loras/lorabuild.local.toml"
    local.write_text(local.read_text().replace(str(home), str(tmp_path / "home")))
    for key, value in _environment(tmp_path / "home").items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path / "home/loras")
    for name in STANDINS:
        monkeypatch.setitem(STAGES, name, STAGES[name])
    standins.install(*STANDINS)
    return World(tmp_path / "home/loras")


def code_of(world: World, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code, and all that was said. `doit` has a process of its own."""
    program, *args = [re.sub("^~", os.environ["HOME"], word) for word in words]
    if program == "doit":
        done = world.doit(*args)
        return done.code, done.out + done.err
    try:
        code = cli._main(args)
    except SystemExit as end:  # --help
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out + err


@pytest.mark.parametrize("line", sorted(COMMANDS.keys() - NOT_RUN.keys()))
def test_a_command_of_the_docs_runs(line: str, place: World, capsys: pytest.CaptureFixture[str]):
    words = COMMANDS[line]
    if words[:2] == ["lorabuild", "init"]:  # in a folder that is no repository yet
        (place.root.parent / "empty").mkdir()
        os.chdir(place.root.parent / "empty")
    if words[1:2] in (["new"], ["import"]):
        shutil.rmtree(place.root / "projects/ember")
    code, said = code_of(place, words, capsys)
    assert code == CODES.get(line, 0), said
    assert "Traceback" not in said


def test_what_is_said_of_commands_is_of_commands_that_stand_there():
    assert NOT_RUN.keys() | CODES.keys() <= COMMANDS.keys() and not NOT_RUN.keys() & CODES.keys()


def test_the_demo_goes_as_the_readme_shows_it(place: World):
    """Line by line, with `sed` and `git`: as often built, restored, or refused with the line that the page has."""
    block = re.search(r"^```console\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    assert block
    shutil.rmtree("projects/style-x")
    (place.root / "projects/ember/lora.toml").write_text((REPOSITORY / "projects/ember/lora.toml").read_text())
    for command in (["add", "-A"], [*WHO, "commit", "-qm", "as it is"]):
        subprocess.run(["git", *command], check=True)
    shutil.rmtree("build")
    shutil.rmtree(".lorabuild")
    shutil.rmtree("../remote")
    for step in re.split(r"^\$ ", block[1], flags=re.M)[1:]:
        command, *shown = step.strip().splitlines()
        typed = command.partition("  #")[0].strip().removesuffix("doit") + f"{sys.executable} -m doit"
        done = place.run("sh", "-c", typed)
        said = (done.out + done.err).splitlines()
        assert [TIME.sub("", line) for line in said[-1:]] == [TIME.sub("", line) for line in shown[-1:]]
        assert done.code == (3 if "did you mean" in shown[-1] else 0)
