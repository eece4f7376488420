"""doctor tells of each part of an installation how it is and what helps, and falls ill of none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from manifest_world import GOOD, Files
from s3 import S3

from lorabuild.doctor import devices, disk, examine, machine, packages
from lorabuild.doctor.devices import judged
from lorabuild.doctor.disk import SKEW_SECONDS, clock, look_at_folder, look_at_room
from lorabuild.doctor.line import Line, looked, ok
from lorabuild.doctor.packages import look_at_extras, look_at_packages, look_at_pictures
from lorabuild.doctor.repository import (
    look_at_bases,
    look_at_executor,
    look_at_files,
    look_at_remote,
    look_at_tokenizers,
)
from lorabuild.errors import JobError
from lorabuild.remotes import transport
from lorabuild.verbs.doctor import main

GIB = 1 << 30


def levels(lines: Iterable[Line]) -> list[str]:
    found = list(lines)
    assert all(line.remedy for line in found if line.level != "ok"), found
    assert not any("\n" in line.said + line.remedy for line in found)
    return [line.level for line in found]


def one(lines: Iterable[Line]) -> Line:
    (line,) = lines
    assert line.level == "ok" or line.remedy
    return line


# torch and devices


CPU = {"part": "torch", "version": "2.13.0+cpu", "cuda": None, "hip": None}
CUDA = {"part": "torch", "version": "2.13.0+cu130", "cuda": "13.0", "hip": None}
CARD = {"part": "device", "number": 0, "name": "NVIDIA H200", "free": 138 * GIB, "total": 140 * GIB, "bf16": True}
LIBRARY = {"part": "library", "name": "diffusers"}


@pytest.mark.parametrize(
    ("facts", "drivers", "level", "said"),
    [
        ([CUDA, CARD], ["0"], "ok", "0: NVIDIA H200, 148 GB of 150 GB free, bf16"),
        ([CUDA, CARD | {"free": 3 * GIB, "total": 24 * GIB}], ["0"], "warn", "3.2 GB of 25.8 GB free"),
        ([CUDA, CARD | {"free": 4 * GIB, "total": 4 * GIB}], ["0"], "warn", "4.3 GB of 4.3 GB free"),
        ([CUDA, CARD | {"bf16": False}], ["0"], "warn", "no bf16"),
        ([CUDA, {"part": "cuda", "error": "RuntimeError: driver too old"}], ["0"], "fail", "driver too old"),
        ([CUDA, {"part": "cuda", "error": "RuntimeError: no NVIDIA driver"}], [], "warn", "none: all of it"),
        ([CPU], ["0", "1"], "warn", "the driver shows 2, but torch is a build without CUDA"),
        ([CPU], [], "warn", "none: all of it"),
    ],
)
def test_a_gpu_is_told_with_its_memory_and_what_it_lacks(
    facts: list[dict[str, Any]], drivers: list[str], level: str, said: str
):
    lines = list(judged([*facts, LIBRARY], "", drivers))
    assert [line.topic for line in lines] == ["torch", "gpu", "libraries"]
    levels(lines)
    assert lines[1].level == level and said in lines[1].said


def test_the_build_of_torch_is_told_with_the_drivers_cuda():
    lines = judged([CUDA, {"part": "driver", "cuda": "12.4"}], "", [])
    assert next(lines).said == "2.13.0+cu130 (CUDA 13.0 build, the driver has CUDA 12.4)"


def test_a_crash_after_torch_names_what_was_imported_last():
    lines = list(judged([CPU, LIBRARY], "signal SIGILL", []))
    assert lines[-1].level == "fail" and "beyond diffusers: signal SIGILL" in lines[-1].said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "libcudart.so.13"),
        ("import os; os.abort()", "SIGABRT"),
        ("import sys; sys.exit(7)", "SystemExit: 7"),
        ("print('chatter'); import time; time.sleep(60)", "not done within 3 s"),
        ("__version__ = '0'", "AttributeError"),
    ],
)
def test_a_broken_torch_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str):
    (tmp_path / "torch.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(devices, "LIBRARIES", {"json": "dumps"})
    lines = list(devices.look_at_devices(3))
    assert lines[0].topic == "torch" and lines[0].level == "fail" and said in lines[0].said
    assert "fail" in levels(lines)


def test_a_torch_in_the_working_folder_is_not_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "json.py").write_text("raise ImportError('mine')")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/torch.py").write_text("raise ImportError('a stand-in')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(devices, "LIBRARIES", {"nowhere": ""})
    lines = list(devices.look_at_devices())
    assert "a stand-in" in lines[0].said and "nowhere cannot be imported" in lines[1].said


# packages


WANTED = [
    "right>=2",
    "old>=3",
    "gone>=1",
    "pinned>=1",
    's3fs>=1; extra == "s3"',
    'lion<2; extra == "o"',
    'x; extra == "test"',
]
HAVE = {"right": "2.1", "old": "2.9", "pinned": "1.5+cpu", "lion": "2.5"}


def test_packages_are_told_against_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packages, "installed", HAVE.get)
    constraints = tmp_path / "constraints.txt"
    lines = list(look_at_packages(WANTED, constraints))
    assert levels(lines) == ["fail", "fail", "ok"]
    assert [line.said for line in lines[:2]] == ["old 2.9: lorabuild needs >=3", "gone is not installed"]
    assert lines[0].remedy == "pip install 'old>=3'" and lines[2].said == "right 2.1, pinned 1.5+cpu"
    constraints.write_text("Pinned==1.6\nright==2.1\n")
    assert "pinned 1.5+cpu: in range, but the tests run with 1.6" in [
        line.said for line in look_at_packages(WANTED, constraints)
    ]
    constraints.write_text("Pinned==1.5\n")
    assert levels(look_at_packages(WANTED, constraints)) == ["fail", "fail", "ok"]


def test_extras_that_are_not_there_are_no_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packages, "installed", HAVE.get)
    lines = list(look_at_extras(WANTED))
    assert levels(lines) == ["warn", "ok"]
    assert lines[0].said == "lion 2.5: lorabuild needs <2"
    assert lines[1].said == "installed: none; not installed: s3fs (lorabuild[s3])"


def test_of_this_installation_all_packages_are_known():
    lines = list(look_at_packages())
    assert lines[-1].level == "ok" and {"torch", "doit", "pydantic"} <= {
        one.split()[0] for one in lines[-1].said.split(", ")
    }
    (extras,) = [line for line in look_at_extras() if line.level == "ok"]
    assert "bitsandbytes" in extras.said and "pytest" not in extras.said


def test_formats_of_images_are_told(monkeypatch: pytest.MonkeyPatch):
    assert one(look_at_pictures()).level == "ok"
    monkeypatch.setattr(packages, "installed", lambda name: None)
    assert "JPEG XL is not read (pip install 'lorabuild[jxl]')" in one(look_at_pictures()).said
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    assert one(look_at_pictures()).level == "warn"
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert one(look_at_pictures()).level == "fail"


# machine and disk


def test_little_memory_and_no_git_warn(monkeypatch: pytest.MonkeyPatch):
    assert one(machine.look_at_git()).level == "ok"
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert one(machine.look_at_git()).level == "warn"
    for free, level in ((None, "ok"), (32 * GIB, "ok"), (2 * GIB, "warn")):
        monkeypatch.setattr(machine, "available_bytes", lambda free=free: free)
        assert one(machine.look_at_processor()).level == level


@pytest.mark.parametrize(("free", "level"), [(10**8, "fail"), (5 * 10**9, "warn"), (10**12, "ok")])
def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    (tmp_path / ".lorabuild/store").mkdir(parents=True)
    line = one(look_at_room(tmp_path))  # one file system, told once
    assert line.level == level and str(tmp_path) in line.said


def test_a_folder_that_cannot_be_written_to_fails_and_nothing_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert levels(look_at_folder(tmp_path / ".lorabuild")) == ["ok", "ok"]
    assert list(tmp_path.iterdir()) == []

    def full(*args: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    line = one(look_at_folder(tmp_path))
    assert line.level == "fail" and "No space left on device" in line.said
    assert list(tmp_path.iterdir()) == []


def test_stamps_that_are_not_the_clocks_warn():
    for stamp, level, said in ((1000, "ok", "those of"), (1005.5, "warn", "5 s ahead"), (910, "warn", "90 s behind")):
        line = one(clock(stamp, 1000, 1000.5))
        assert line.level == level and said in line.said
    assert one(clock(1000 - SKEW_SECONDS / 2, 1000, 1000)).level == "ok"  # a file system of whole seconds


# a repository


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("lorabuild.data.tokenizers.PACKAGES", ())
    files = Files(tmp_path / "repository")
    files.write("lorabuild.toml", '[bases.pony]\nfile = "pony.safetensors"\n')
    return files


def test_mistakes_in_toml_files_are_lines(files: Files):
    files.write("projects/a/lora.toml", GOOD)
    found, lines = look_at_files(files.root)
    assert found is not None and levels(lines) == ["ok"] and lines[0].said.endswith("1 project")
    files.write("projects/b/lora.toml", GOOD + "[recipe]\nnetwork_dmi = 4\n")
    found, lines = look_at_files(files.root)
    assert found is not None and levels(lines) == ["fail"] and lines[0].said.startswith("projects/b/lora.toml:6: ")
    files.write("lorabuild.toml", "bases = 1\n")
    found, lines = look_at_files(files.root)
    assert found is None and "fail" in levels(lines)


def test_a_base_that_is_not_there_fails_where_a_project_has_it(files: Files):
    def lines(look: Callable[..., Iterable[Line]]) -> dict[str, str]:
        found = list(look(look_at_files(files.root)[0]))
        levels(found)
        return {line.level: line.said for line in found}

    files.write("projects/a/lora.toml", GOOD)
    said = lines(look_at_bases)
    assert said["ok"] == "tiny: generated here" and "no such file" in said["warn"] and len(said) == 2
    files.write("projects/a/lora.toml", GOOD.replace('"tiny"', '"pony"\nsource = "a.safetensors"'))
    assert "no such file" in lines(look_at_bases)["fail"]
    assert "CLIP's was not found" in lines(look_at_tokenizers)["ok"]  # the base's absence is told already
    files.write("pony.safetensors", b"\2\0\0\0\0\0\0\0{}")
    assert "not an SDXL checkpoint" in lines(look_at_bases)["fail"]
    assert "a single file holds no tokenizer" in lines(look_at_tokenizers)["fail"]


def test_a_remote_that_answers_is_ok_with_or_without_anything_in_it(s3: S3, tmp_path: Path):
    assert one(look_at_remote(None)).level == "ok"
    for url in (s3.url("nothing/yet"), f"file://{tmp_path}/remote"):
        line = one(look_at_remote(url))
        assert (line.level, line.said) == ("ok", f"{url} answers; nothing is there yet")
        transport.Folder(url).upload("v1/record/a", b"x")
        assert one(look_at_remote(url)).said == f"{url} answers"


def test_a_remote_that_does_not_answer_fails_in_a_bounded_time(s3: S3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transport, "PAUSE_SECONDS", 0.01)
    line = one(look_at_remote("s3://no-such-bucket/prefix"))
    assert line.level == "fail" and "no such bucket" in line.said
    s3.fails("500")
    assert one(look_at_remote(s3.url("any"))).level == "fail"
    monkeypatch.setattr(transport.Folder, "exists", lambda folder: time.sleep(60))
    line = one(look_at_remote(s3.url("any"), 0.05))
    assert line.level == "fail" and "no answer within" in line.said


def test_a_package_for_the_remote_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert "pip install 'lorabuild[gs]'" in one(look_at_remote("gs://bucket/prefix")).said


# all of it


def test_what_goes_wrong_while_looking_is_a_line():
    def broken(error: Exception) -> Callable[[], Iterable[Line]]:
        def look() -> Iterable[Line]:
            yield ok("disk", "so far")
            raise error

        return look

    for error, said in (
        (JobError("one", "two"), "one"),
        (OSError(13, "Permission denied", "/srv/x"), "/srv/x: Permission denied"),
        (ImportError("libfoo"), "libfoo"),
        (ZeroDivisionError("of\nmine"), "ZeroDivisionError: of mine"),
    ):
        lines = list(looked("disk", broken(error)))
        assert levels(lines)[:2] == ["ok", "fail"] and said in lines[1].said


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "look_at_devices", lambda: judged([CPU, LIBRARY], "", []))


@pytest.mark.usefixtures("no_torch")
def test_it_works_anywhere_and_changes_nothing(files: Files, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    files.write("projects/a/lora.toml", GOOD)
    before = sorted(files.root.rglob("*"))
    for folder, topics in ((files.root / "projects", {"base", "remote", "executor"}), (files.root.parent, set())):
        monkeypatch.chdir(folder)
        assert main(["--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["counts"]["fail"] == 0 and sum(told["counts"].values()) == len(told["lines"])
        assert all(set(line) == {"topic", "level", "said", "remedy"} for line in told["lines"])
        found = {line["topic"] for line in told["lines"]}
        always = (
            "python packages extras images processor git disk folder clock repository tokenizer torch gpu libraries"
        )
        assert found == topics | set(always.split())
    assert sorted(files.root.rglob("*")) == before


@pytest.mark.usefixtures("no_torch")
def test_what_fails_is_exit_1_with_its_remedy_below(files: Files, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    monkeypatch.chdir(files.root)
    assert main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("fail  disk "))
    assert lines[at + 1].strip().startswith("-> `lorabuild gc`")
    assert lines[-1].endswith(" warn, 1 fail")


@pytest.mark.parametrize("broken", ["torch", "xxhash", "filelock", "pydantic"])
def test_a_package_that_does_not_import_is_told_without_a_traceback(files: Files, broken: str):
    files.write(f"../stub/{broken}.py", f"raise ImportError('{broken} is broken')")
    if broken != "torch":  # which would take its time
        files.write("../stub/torch.py", "raise ImportError('not of interest')")
    path = os.pathsep.join([str(files.root.parent / "stub"), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "lorabuild", "doctor"],
        cwd=files.root,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr == ""
    assert any(line.startswith("fail") and f"{broken} is broken" in line for line in done.stdout.splitlines())


def test_a_wrong_argument_is_one_line(capsys: Any):
    done = subprocess.run([sys.executable, "-m", "lorabuild", "doctor", "now"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_the_executor_is_told_with_its_package_and_what_it_builds(files: Files, monkeypatch: pytest.MonkeyPatch):
    def line(text: str) -> Line:
        files.write("lorabuild.toml", text)
        found, _ = look_at_files(files.root)
        (one,) = look_at_executor(found)
        return one

    slurm = '[store]\nremote = "file:///mnt/loras"\n[executor]\nkind = "slurm"\nstages = ["train", "latents"]\n'
    assert line("").said == "all is built on this machine ([executor] kind)"
    monkeypatch.setattr("lorabuild.doctor.repository.installed", lambda name: f"9.{name}")
    assert line(slurm).said == "slurm (submitit 9.submitit) builds latents, train; all goes through file:///mnt/loras"
    monkeypatch.setattr("lorabuild.doctor.repository.installed", lambda name: None)
    told = line(slurm)
    assert (told.level, told.remedy) == ("fail", "pip install 'lorabuild[slurm]'")
