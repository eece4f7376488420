"""A job away from its driver: it gets all it reads from the store, builds, and puts the record last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3 import S3
from test_bases import checkpoint

from lorabuild.ahead import cores
from lorabuild.components import component_digests, tensors_digest
from lorabuild.errors import InputChanged, JobError
from lorabuild.executors.protocol import AGAIN, DONE, FAILED
from lorabuild.executors.sending import Sender
from lorabuild.executors.spec import FORMAT, check, key_of_spec
from lorabuild.hashing import digest_bytes
from lorabuild.inputs import Resolved, images_digest
from lorabuild.remotes.patient import PatientFolder
from lorabuild.remotes.remote import Remote
from lorabuild.remotes.transport import Folder, Unreachable
from lorabuild.stage import INIT, Artifact, Component, File, Images, Job, Subset
from lorabuild.stages import STAGES
from lorabuild.state import State
from lorabuild.store import Store
from lorabuild.workers.fetch import Fetcher, Lacking
from lorabuild.workers.travel import Travelling
from lorabuild.workspace import ImageFile
from lorabuild.writing import write_body

HERE = Path(__file__).parent


class Node:
    """A store, a driver's side, and a node: stand-in jobs of the stage train that are sent from one to the other."""

    def __init__(self, root: Path, url: str = ""):
        self.root, self.url = root, url or f"file://{root}/remote"
        for name in ("driver", "home", "standin"):
            (root / name).mkdir()
        self.remote = Remote(Folder(self.url), Store(root / "driver/store"))
        self.state = State(root / "driver/state.sqlite", root / "driver")
        self.sender = Sender(self.remote, self.state, False, ())

    def spec(self, act: str = "", **changes: Any) -> dict[str, Any]:
        """A job that does what `act` says (standin.py); all that it reads is in the store."""
        (self.root / "standin/plan.json").write_text(json.dumps({"train:ember": act}))
        self.text = self.root / "driver/dataset.json"
        self.text.write_text('{"images": []}')
        job = Job("train:ember", {}, {"dataset": Artifact("dataset:ember", "dataset.json")}, ())
        pack = self.sender.pack(job, {"dataset": Resolved(self.state.digest(self.text), self.text)}, {})
        self.sender.upload(pack, lambda *told: None)
        spec = {
            "format": FORMAT, "name": "train:ember", "stage": "train", "version": STAGES["train"].version,
            "run": "standin:quick", "params": {"recipe": {"seed": 1}}, "options": {}, "outputs": ["weights", "log"],
            "snapshots": ["step/2"], "inputs": pack.inputs, "places": pack.places, "made_from": {}, "metadata": {},
            "store": self.url, "cache": str(self.root / "cache"), "models": [], "gpus": 0, "threads": 1, "anew": False,
            "state_seconds": 0.1,
        } | changes  # fmt: skip
        spec |= {"key": key_of_spec(spec)}
        return {"record": spec["key"]} | spec

    def start(self, spec: dict[str, Any]) -> subprocess.Popen[str]:
        path = self.root / "spec.json"
        path.write_text(json.dumps(spec))
        paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-m", "lorabuild.worker", str(path)],
            cwd=self.root / "home",
            env=os.environ
            | {"PYTHONPATH": paths, "STANDIN": str(self.root / "standin"), "HOME": str(self.root / "home")},
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )

    def run(self, spec: dict[str, Any]) -> tuple[int, list[dict[str, Any]], str]:
        """Exit code, events, log."""
        return self.end(self.start(spec))

    @staticmethod
    def end(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]], str]:
        out, err = process.communicate(timeout=120)
        return process.returncode, [json.loads(line) for line in out.splitlines()], err

    def begun(self, what: str = "begin") -> int:
        lines = self.root / "standin/lines.jsonl"
        return lines.read_text().count(f'"what": "{what}"') if lines.exists() else 0

    def wait_for(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.02)

    def there(self) -> set[str]:
        """What the store has, but for blobs."""
        return {name for name in self.remote.folder.sizes("v1") if "/blob/" not in name}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# the whole of it


def test_a_job_is_done_with_the_store_alone_and_once(node: Node):
    spec = node.spec("chatter 2")
    code, events, log = node.run(spec)
    assert (code, events[-1]["event"]) == (DONE, "done"), log
    assert "printed by a job" in log and [e["role"] for e in events if e["event"] == "saved"] == [
        "log",
        "step/2",
        "weights",
    ]
    assert node.there() == {f"v1/record/{spec['key'][:2]}/{spec['key']}{part}.json" for part in ("", ".step.2")}
    record = node.remote.record(spec["key"]).record
    assert record.inputs == {"dataset": digest_bytes(node.text.read_bytes())} and set(record.outputs) == {
        "weights",
        "log",
    }
    assert sorted(path.name for path in (node.root / "cache/scratch").iterdir()) == [f"{spec['key']}.errand"]
    code, events, _ = node.run(spec)
    assert code == DONE and [event["event"] for event in events] == ["saved", "done"]
    assert node.begun() == 1, "it was built twice"


def test_a_snapshot_is_in_the_store_before_it_is_told_of_and_the_record_comes_last(node: Node):
    """What is told of can be fetched; a job of which the record is there is done."""
    code, events, _ = node.run(node.spec("fail"))
    assert code == FAILED and events[-1] == {
        "event": "failed", "lines": ["step 3: the loss is not finite (nan): lower unet_lr"]
    }  # fmt: skip
    assert node.there() == set()


def test_what_went_wrong_is_told_by_its_exit_code(node: Node):
    assert node.run(node.spec("fault"))[:2] == (FAILED, [{"event": "crashed", "message": "ValueError: a fault"}])
    assert node.run(node.spec() | {"key": "0" * 32})[1][-1]["lines"][0].startswith("train:ember: the spec is damaged")
    damaged = node.spec() | {"record": ".."}
    assert "is no record of its key" in node.run(damaged)[1][-1]["lines"][0]


def test_a_gpu_that_is_promised_and_not_there_is_one_line(node: Node, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, events, _ = node.run(node.spec(gpus=1))
    assert code == FAILED and "[executor] gpus promises 1" in events[-1]["lines"][0]


def test_a_node_of_fewer_cores_than_threads_uses_those_it_has(node: Node):
    """Threads that wait for each other in turns made a step of 0.3 s last 35 s and more."""
    code, events, log = node.run(node.spec("chatter 2", threads=999))
    assert code == DONE and f"threads {cores()}," in log
    assert any(event["event"] == "warn" and f"has {cores()} cores" in event["text"] for event in events)


def test_a_folder_that_is_not_mounted_on_the_node_is_one_line(node: Node):
    code, events, _ = node.run(node.spec(store=f"file://{node.root}/other"))
    assert code == FAILED and "is it the same folder?" in events[-1]["lines"][0]
    assert not (node.root / "other").exists()


# stopping, and going on elsewhere


def test_told_to_stop_it_keeps_its_state_which_travels(node: Node):
    spec = node.spec("train 400")
    process = node.start(spec)
    node.wait_for(lambda: node.begun("trains"))
    process.send_signal(signal.SIGTERM)
    code, events, log = node.end(process)
    assert code == AGAIN and events[-1]["event"] == "stopped" and "of 400" in events[-1]["kept"], log
    assert f"v1/state/{spec['key']}/state.json" in node.there()
    spec = node.spec(f"train {int(events[-1]['kept'].split()[1]) + 2}", cache=str(node.root / "elsewhere"))
    code, events, log = node.run(spec)
    assert code == DONE and events[-1]["notes"]["resumed_at"] > 0, log
    assert not any("state" in name for name in node.there()), "a state that nobody needs any more is left"


def test_told_to_stop_a_job_that_never_asks_ends_at_once(node: Node):
    process = node.start(node.spec("sleep 300"))
    node.wait_for(node.begun)
    process.send_signal(signal.SIGTERM)
    code, events, _ = node.end(process)
    assert code == AGAIN and events[-1]["event"] == "stopped"


class Scratch:
    """A job's state, and nodes that it is on: `at("a")` is the same job in another cache."""

    def __init__(self, root: Path):
        self.root, self.folder = root, Folder(f"file://{root}/remote")

    def at(self, node: str) -> Travelling:
        (self.root / node / "scratch").mkdir(parents=True, exist_ok=True)
        return Travelling(self.folder, "k" * 32, self.root / node, 60.0)

    def write(self, node: str, text: str) -> None:
        part = self.root / node / "part"
        part.write_text(text)
        part.replace(self.root / node / "scratch/state")

    def read(self, node: str) -> str | None:
        path = self.root / node / "scratch/state"
        return path.read_text() if path.exists() else None


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path)


def test_the_newer_state_counts_here_or_there(scratch: Scratch):
    a = scratch.at("a")
    scratch.write("a", "step 1")
    a.save()
    scratch.write("a", "step 2")  # killed before it was uploaded, and begun again on the same node
    scratch.at("a").take_up()
    assert scratch.read("a") == "step 2"
    b = scratch.at("b")
    b.take_up()
    assert scratch.read("b") == "step 1"
    scratch.write("b", "step 5")
    b.save()
    scratch.at("a").take_up()
    assert scratch.read("a") == "step 5"


@pytest.mark.parametrize("at", ["its file", "its manifest"])
def test_a_state_that_is_half_uploaded_is_never_taken_up(scratch: Scratch, monkeypatch: pytest.MonkeyPatch, at: str):
    scratch.at("a")
    scratch.write("a", "step 1")
    scratch.at("a").save()
    scratch.write("a", "step 2")
    upload = Folder.upload

    def dies(self: Folder, name: str, content: Any, replace: bool = False) -> bool:
        if name.endswith("state.json") == (at == "its manifest"):
            raise Unreachable("killed")
        return upload(self, name, content, replace)

    monkeypatch.setattr(Folder, "upload", dies)
    with pytest.raises(Unreachable):
        scratch.at("a").save()
    b = scratch.at("b")
    b.take_up()
    assert scratch.read("b") == "step 1"


def test_a_damaged_state_is_left_and_the_files_before_are_removed(scratch: Scratch):
    a = scratch.at("a")
    for number in range(3):
        scratch.write("a", f"step {number}")
        a.save()
    names = set(scratch.folder.sizes("v1/state"))
    assert len(names) == 2, names
    (blob,) = [name for name in names if not name.endswith("state.json")]
    scratch.folder.upload(blob, b"step 9", replace=True)
    b = scratch.at("b")
    b.take_up()
    assert scratch.read("b") is None
    a.forget()
    assert scratch.folder.sizes("v1/state") == {}


@pytest.mark.parametrize("files", [["state"], {"state": {}}, {"..": None}, {"../serial": None}, {"": None}])
def test_a_manifest_of_a_state_that_is_none_is_left(scratch: Scratch, files: Any):
    """None of its names leads out of scratch, and the job begins from the start."""
    a = scratch.at("a")
    scratch.write("a", "step 1")
    a.save()
    there = json.loads(scratch.folder.read(a._name("state.json")))
    if isinstance(files, dict):
        files = {name: one if one is not None else there["files"]["state"] for name, one in files.items()}
    scratch.folder.upload(a._name("state.json"), json.dumps({"serial": 9, "files": files}).encode(), replace=True)
    b = scratch.at("b")
    b.take_up()
    assert scratch.read("b") is None


def test_a_state_that_has_not_changed_is_not_uploaded_again(scratch: Scratch):
    a = scratch.at("a")
    a.save()
    assert scratch.folder.sizes("v1/state") == {}, "there is nothing yet"
    scratch.write("a", "step 1")
    (scratch.root / "a/scratch/state.part").write_text("half of it")
    a.save()
    before = scratch.folder.read("v1/state/" + "k" * 32 + "/state.json")
    a.save()
    assert scratch.folder.read("v1/state/" + "k" * 32 + "/state.json") == before
    assert set(json.loads(before)["files"]) == {"state"}
    b = scratch.at("b")
    b.take_up()
    b.save()
    assert scratch.folder.read("v1/state/" + "k" * 32 + "/state.json") == before, "nor where it was taken up"
    scratch.write("b", "step 2")
    b.save()
    assert scratch.folder.read("v1/state/" + "k" * 32 + "/state.json") != before


# the store


def test_a_store_that_is_away_for_a_while_is_asked_again(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lorabuild.remotes.patient.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("lorabuild.remotes.transport.PAUSE_SECONDS", 0.01)
    told: list[str] = []
    folder = PatientFolder(s3.url(tmp_path.name), told.append)
    folder.upload("a", b"bytes")
    s3.fails("503", times=20)
    assert folder.read("a") == b"bytes" and len(told) == 1
    s3.fails("500")
    monkeypatch.setattr("lorabuild.remotes.patient.PATIENCE_SECONDS", 0.1)
    with pytest.raises(Unreachable):
        folder.read("a")


def test_who_is_to_stop_waits_for_no_store(tmp_path: Path, s3: S3):
    s3.fails("500")
    with pytest.raises(Unreachable):
        PatientFolder(s3.url(tmp_path.name), left=lambda: True).read("a")
    assert len(s3.requests) == 3


def fetcher(node: Node, spec: dict[str, Any]) -> Fetcher:
    cache = node.root / "cache"
    return Fetcher(spec, Remote(Folder(node.url), Store(cache / "store")), cache, cache / "job", lambda *told: None)


def test_an_input_that_is_damaged_in_the_store_is_told_by_its_digest_and_mended(node: Node):
    spec = node.spec()
    digest = digest_bytes(node.text.read_bytes())
    name = f"v1/blob/{digest[:2]}/{digest}"
    node.remote.folder.upload(name, b'{"images": [}}', replace=True)
    with pytest.raises(Lacking) as lacking:
        fetcher(node, spec).inputs()
    assert lacking.value.digests == [digest]
    code, events, _ = node.run(spec)
    assert code == AGAIN and {"event": "lacking", "digests": [digest]} in events
    job = Job("train:ember", {}, {"dataset": Artifact("dataset:ember", "dataset.json")}, ())
    pack = node.sender.pack(job, {"dataset": Resolved(digest, node.text)}, {})
    node.sender.upload(pack, lambda *told: None)
    assert node.remote.folder.read(name) == b'{"images": [}}', "what has the right size is not looked at"
    node.sender.upload(pack, lambda *told: None, {digest})
    assert node.run(spec)[0] == DONE


# inputs


def test_images_and_captions_are_where_a_stage_expects_them(node: Node):
    project = node.root / "driver/images"
    project.mkdir()
    for name, text in (("1.png", "one"), ("1.txt", "ember"), ("2.png", "two")):
        (project / name).write_text(text)
    digest = node.state.digest
    found = [
        ImageFile(project / "1.png", digest(project / "1.png"), "images/1.png", 0, 2, project / "1.txt",
                  digest(project / "1.txt"), {"is_reg": True}),
        ImageFile(project / "2.png", digest(project / "2.png"), "images/2.png", 0),
    ]  # fmt: skip
    item = Images((Subset(project, "images"),), captions=True)
    job = Job("dataset:ember", {}, {"images": item}, ())
    resolved = Resolved(images_digest(found, True), images=found)
    pack = node.sender.pack(job, {"images": resolved}, {})
    node.sender.upload(pack, lambda *told: None)
    spec = node.spec(inputs=pack.inputs, places={})
    got = fetcher(node, json.loads(json.dumps(spec))).inputs()["images"]
    one, two = got["images"]
    assert Path(one["path"]).read_text() == "one" and Path(one["caption"]).name == "1.txt" and two["caption"] is None
    assert Path(one["caption"]).read_text() == "ember" and one["settings"] == {"is_reg": True} and one["repeats"] == 2
    assert str(node.root / "driver") not in json.dumps(spec), "a path of the driver's is told"
    spec["inputs"]["images"]["images"][0]["repeats"] = 3
    with pytest.raises(JobError, match="not what the key says"):
        fetcher(node, spec).inputs()


def test_a_file_that_changes_before_it_is_sent_is_noticed(node: Node):
    spec_file = node.root / "driver/dataset.json"
    spec_file.write_text("one")
    digest = node.state.digest(spec_file)
    job = Job("train:ember", {}, {"dataset": Artifact("dataset:ember", "dataset.json")}, ())
    pack = node.sender.pack(job, {"dataset": Resolved(digest, spec_file)}, {})
    spec_file.write_text("two")
    with pytest.raises(InputChanged):
        node.sender.upload(pack, lambda *told: None)
    assert node.remote.blobs() == {}
    with pytest.raises(InputChanged):
        node.sender.pack(job, {"dataset": Resolved(digest, spec_file)}, {})


def test_a_lora_that_is_continued_counts_by_its_tensors(node: Node):
    path = node.root / "driver/old.safetensors"
    write_body(path, [("a", "F32", (1,), b"1234")])
    job = Job("train:ember", {}, {"init": File(path, "old.safetensors", INIT)}, ())
    pack = node.sender.pack(job, {"init": Resolved(tensors_digest(path), path)}, {})
    node.sender.upload(pack, lambda *told: None)
    got = fetcher(node, node.spec(inputs=pack.inputs, places={})).inputs()["init"]
    assert Path(got["path"]).read_bytes() == path.read_bytes() and got["digest"] != digest_bytes(path.read_bytes())


def test_a_spec_of_another_lorabuild_is_refused(node: Node):
    spec = node.spec()
    check(spec, STAGES)
    for changed, said in (
        ({"version": 99}, "version 99 where"),
        ({"format": 2}, "format 2"),
        ({"stage": "x"}, "unknown"),
    ):
        with pytest.raises(JobError, match=said):
            check(spec | changed, STAGES)


# bases


@pytest.fixture
def base(node: Node) -> tuple[Path, dict[str, Any]]:
    """A user's checkpoint, and a function that packs a job which reads its U-Net."""
    path = checkpoint(node.root / "driver/models/sdxl/own.safetensors")
    digest = component_digests(path, ["unet"])["unet"]
    job = Job("norms:own", {}, {"unet": Component("own", "unet")}, ())

    def spec(**changes: Any) -> dict[str, Any]:
        pack = node.sender.pack(job, {"unet": Resolved(digest, path)}, {})
        node.sender.upload(pack, lambda *told: None)
        return node.spec(inputs=pack.inputs, places=pack.places, **changes)

    return path, spec


def test_a_checkpoint_is_uploaded_once_and_has_its_name_on_the_node(node: Node, base: Any):
    path, spec = base
    got = Path(fetcher(node, spec()).inputs()["unet"]["path"])
    assert got.name == "own.safetensors" and got.read_bytes() == path.read_bytes()


def test_a_checkpoint_that_the_nodes_have_is_not_uploaded(node: Node, base: Any):
    path, spec = base
    node.sender.models = True
    theirs = node.root / "theirs/sdxl/own.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(path.read_bytes())
    told = spec(models=[str(node.root / "nowhere"), str(node.root / "theirs")])
    assert path.stat().st_size not in node.remote.blobs().values()
    assert fetcher(node, told).inputs()["unet"]["path"] == str(theirs)
    checkpoint(theirs, unet=2)
    with pytest.raises(JobError, match="not what the key says"):
        fetcher(node, told).inputs()
    theirs.unlink()
    with pytest.raises(JobError, match=r"own.safetensors: not in .*theirs on .* \(\[executor\] models\)"):
        fetcher(node, told).inputs()


def test_a_folder_of_a_base_that_a_job_made_is_laid_out_once(node: Node):
    store = node.remote.store
    made = {}
    for role in ("unet/config.json", "vae/config.json"):
        part = node.root / "driver/part"
        part.write_text(role)
        made[role] = store.put(part)
    inputs = {name: Resolved("0" * 32, node.root / "driver/base") for name in ("unet", "vae")}
    job = Job("norms:tiny", {}, {name: Component("tiny", name) for name in inputs}, ())
    pack = node.sender.pack(job, inputs, {"tiny": made})
    assert len(pack.places) == 1 and pack.places["0"]["names"] == []
    node.sender.upload(pack, lambda *told: None)
    one = fetcher(node, node.spec(inputs=pack.inputs, places=pack.places))
    folder = one._laid_out(pack.places["0"]) if not one._bring(one._needed({"0": None})) else None
    assert (folder / "vae/config.json").read_text() == "vae/config.json"
    (folder / "vae/config.json").unlink()
    (folder / "vae/config.json").write_text("rotten")
    assert (one._laid_out(pack.places["0"]) / "vae/config.json").read_text() == "vae/config.json"
    pack.places["0"]["files"]["../../escape"] = pack.places["0"]["files"]["vae/config.json"]
    with pytest.raises(JobError, match="no file of a base"):
        one._laid_out(pack.places["0"])
