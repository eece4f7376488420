"""A file verb that is told to end: nothing half-written stays, nobody works on, and the exit code says what it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from lora_lab import CONV, LINEAR, POINT, layer, write_bases, write_lora
from torch import ones

from lorabuild.cli import _main
from lorabuild.files import remove_leftovers, staged

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
LORABUILD = [sys.executable, "-m", "lorabuild"]


def lora(folder: Path) -> Path:
    return write_lora(folder / "lora.safetensors", layer(LINEAR, 24, 4, 16) | layer(CONV, 12, 6, 8, 3, 3))


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    "verb", ["chop {} --keep INP* -o {}", "merge {}:0.5 -o {}"], ids=lambda text: text.partition(" ")[0]
)
def test_a_signal_in_the_middle_of_writing_leaves_the_old_file_alone(
    tmp_path: Path, number: int, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path, out = lora(tmp_path), tmp_path / "out.safetensors"
    out.write_bytes(b"old")

    def half(part: Path, *rest: object) -> None:
        part.write_bytes(b"half")
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a terminal that closes sends it twice
        pytest.fail("it goes on")

    monkeypatch.setattr("lorabuild.verbs.common.write_file", half)
    before = {one: signal.getsignal(one) for one in CODES}
    assert _main(verb.format(path, out).split()) == CODES[number]
    assert capsys.readouterr().err == "interrupted\n"
    assert sorted(os.listdir(tmp_path)) == ["lora.safetensors", "out.safetensors"] and out.read_bytes() == b"old"
    assert {one: signal.getsignal(one) for one in CODES} == before


def test_what_a_killed_run_left_is_removed_by_the_next_and_nothing_else_is(tmp_path: Path):
    path, out = lora(tmp_path), tmp_path / "out.safetensors"
    killed = f"""
import os, signal
import lorabuild.verbs.common as common
common.write_file = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)
common.write_loras(common.NewFile(common.Path({str(out)!r}), [], {{}}))
"""
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    others = [tmp_path / ".out.safetensors.swp", tmp_path / ".other.safetensors.abcdefgh.part"]
    for other in others:
        other.touch()
    with staged(out, tmp_path) as part:  # of a run that lives
        remove_leftovers(out, tmp_path)
        assert part.exists() and len(os.listdir(tmp_path)) == 4
        assert _main(["chop", str(path), "--keep", "INP*", "-o", str(out)]) == 0
        assert part.exists()
        part.write_bytes(out.read_bytes())
    assert {tmp_path / name for name in os.listdir(tmp_path)} == {path, out, *others}


def running(group: int) -> list[str]:
    """The processes of a group, without those that have ended and that nobody has asked after."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            lines.append(path.read_text())
    fields = [(line, line.rpartition(")")[2].split()) for line in lines]
    return [line for line, (state, _, found, *_) in fields if int(found) == group and state != "Z"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_ctrl_c_ends_resize_and_its_processes_without_a_traceback(tmp_path: Path, seconds: float):
    """Ctrl-C at a terminal goes to all processes of the group: those that are just being started, too."""
    shapes = {LINEAR: (24, 16), CONV: (12, 8, 3, 3), POINT: (8, 20, 1, 1)}
    base, _ = write_bases(tmp_path / "base", {name: ones(shape) for name, shape in shapes.items()})
    args = ["resize", str(lora(tmp_path)), "--base", str(base), "-r", "spn_ckpt=1,thr=-3"]
    (tmp_path / "slow.py").write_text("import time\ndef norm(weight): time.sleep(60)\n")
    code = "import lorabuild.cli, lorabuild.nn.norms, slow; lorabuild.nn.norms.spectral_norm = slow.norm; lorabuild.cli.main()"
    command = [sys.executable, "-c", code, *args, "-o", str(tmp_path / "out.safetensors")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(["", *sys.path, str(tmp_path)])}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and len(children.read_text().split()) < 2:  # the first tracks resources
        time.sleep(0.005)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert not (tmp_path / "out.safetensors").exists()
    for _ in range(100):  # what tracks resources ends a moment later
        if left := running(process.pid):
            time.sleep(0.05)
    assert left == []


@pytest.mark.parametrize("args", [["blocks", "FILE"], ["show", "FILE"], ["--help"]], ids=" ".join)
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_goes_early_is_no_mistake(tmp_path: Path, args: list[str], buffered: bool):
    command = [*LORABUILD, *(str(lora(tmp_path)) if arg == "FILE" else arg for arg in args)]
    env = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_file_is_one_line_and_not_waited_for(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    path, out = tmp_path / "odd.safetensors", str(tmp_path / "out.safetensors")
    {"fifo": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    whole = str(lora(tmp_path))
    for args in (
        ["blocks", str(path)],
        ["show", str(path)],
        ["chop", str(path), "--keep", "TE", "-o", out],
        ["merge", f"{path}:0.5", whole, "-o", out],
        ["resize", str(path), "--base", whole, "-r", "thr=-3", "-o", out],
        ["resize", whole, "--base", str(path), "-r", "thr=-3", "-o", out],
    ):
        assert _main(args) in (1, 2)
        said = capsys.readouterr().err
        assert said.startswith(str(path)) and len(said.splitlines()) == 1, said
