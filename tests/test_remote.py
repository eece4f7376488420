"""The remote store by itself, on a disk and over S3: whole and checked, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from s3 import S3

from lorabuild.hashing import digest_json
from lorabuild.remotes import transport
from lorabuild.remotes.remote import Damaged, Remote
from lorabuild.remotes.sharing import Sharing
from lorabuild.remotes.transport import Folder, Unreachable
from lorabuild.store import Record, Store


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PAUSE_SECONDS", 0.01)


@pytest.fixture(params=["file", "s3", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3").url(tmp_path.name)
    return f"file://{tmp_path}/remote" if request.param == "file" else f"memory://{tmp_path.name}"


class Machine:
    """A store of its own that shares a remote with others."""

    def __init__(self, root: Path, url: str):
        self.store = Store(root / "store")
        self.remote = Remote(Folder(url), self.store)

    def build(self, content: bytes, seed: int = 1, role: str = "weights") -> str:
        """Put a record with one blob into the store, as a build would; the key, which does not depend on the content."""
        params, inputs = {"recipe": {"seed": seed, "lr": 1e-3}}, {"dataset": "d" * 32}
        key = digest_json(["train", 1, params, inputs])
        part = self.store.root.parent / f"part-{role.replace('/', '-')}"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        output = self.store.put(part)
        full = key if role == "weights" else f"{key}/{role}"
        made = Record(
            "train", 1, params, inputs, {role: output}, ("piece",), 1.5, {"torch": "2"}, {"dataset": "e" * 32}
        )
        self.store.put_record(full, made)
        return full

    def content(self, key: str, role: str = "weights") -> bytes:
        return self.store.blob(self.store.record(key).outputs[role].digest).read_bytes()

    @property
    def files(self) -> list[Path]:
        return [path for path in self.store.root.rglob("*") if path.is_file()]


@pytest.fixture
def here(tmp_path: Path, url: str) -> Machine:
    return Machine(tmp_path / "here", url)


@pytest.fixture
def there(tmp_path: Path, url: str) -> Machine:
    return Machine(tmp_path / "there", url)


def test_what_one_machine_uploads_another_fetches_whole(here: Machine, there: Machine):
    key, step = here.build(b"weights" * 1000), here.build(b"snapshot", role="step/10")
    for one in (key, step):
        assert here.remote.put(one) > 0
    assert there.remote.fetch(key, ["weights"]) and there.remote.fetch(step, ["step/10"])
    assert there.content(key) == b"weights" * 1000 and there.content(step, "step/10") == b"snapshot"
    fetched, built = there.store.record(key), here.store.record(key)
    assert fetched.made_from == {"dataset": "e" * 32} and fetched.seconds == 1.5 and fetched.inputs == built.inputs
    assert fetched.pieces == () and built.pieces == ("piece",)  # pieces stay where they were made
    assert not there.store.blob(fetched.outputs["weights"].digest).stat().st_mode & 0o222


def rots(machine: Machine, key: str) -> None:
    """A bit of a blob turns, as on an old disk: its size stays."""
    blob = machine.store.blob(machine.store.record(key).outputs["weights"].digest)
    blob.chmod(0o644)
    blob.write_bytes(b"W" + blob.read_bytes()[1:])


@pytest.mark.parametrize("blob_is_there", [False, True])
def test_a_blob_that_is_damaged_here_is_not_spread(here: Machine, there: Machine, blob_is_there: bool):
    if blob_is_there:  # another key's: what is wrong then is the sha256 in the record
        here.remote.put(here.build(b"weights", seed=2))
    key = here.build(b"weights")
    rots(here, key)
    with pytest.raises(Damaged, match="damaged or gone in the store here"):
        here.remote.put(key)
    assert not here.remote.has(key) and there.remote.fetch(key, ["weights"]) is None


def test_what_is_wrong_with_one_blob_keeps_no_other_from_being_uploaded(here: Machine, there: Machine):
    rotten, gone, good = (here.build(bytes([seed]) * 99, seed) for seed in (1, 2, 3))
    rots(here, rotten)
    here.store.blob(here.store.record(gone).outputs["weights"].digest).unlink()
    said: list[str] = []
    with Sharing(here.remote, None, here.store, False, said.append, lambda waiting: None) as sharing:
        sharing.offer([rotten, gone, good], {})
    assert len(said) == 1 and "the rest is" in said[0]
    assert there.remote.fetch(good, ["weights"]) and not there.remote.has(rotten) and not there.remote.has(gone)


def test_what_the_remote_lacks_is_none(here: Machine):
    assert not here.remote.has("0" * 32) and here.remote.fetch("0" * 32, ["weights"]) is None


def test_the_first_writer_wins(here: Machine, there: Machine):
    key = here.build(b"first")
    there.build(b"second")
    assert not there.remote.has(key)  # it has listed the remote before the other one wrote
    assert here.remote.put(key) is not None
    there.remote.put(key)
    assert there.remote.put(key) is None
    third = Machine(here.store.root.parent.parent / "third", here.remote.folder.url)
    assert third.remote.fetch(key, ["weights"]) and third.content(key) == b"first"


def test_one_listing_answers_for_all_keys(s3: S3, tmp_path: Path):
    here, there = (Machine(tmp_path / name, s3.url(tmp_path.name)) for name in ("here", "there"))
    keys = [here.build(b"%d" % seed, seed) for seed in range(20)]
    for key in keys:
        here.remote.put(key)
    s3.requests.clear()
    assert all(there.remote.has(key) for key in keys) and not there.remote.has("0" * 32)
    assert len(s3.requests) == 1


def test_a_record_that_came_while_we_built_is_found_later(here: Machine, there: Machine, monkeypatch):
    key = here.build(b"weights")
    assert not there.remote.has(key)
    here.remote.put(key)
    assert not there.remote.has(key)  # a listing is believed for a while
    monkeypatch.setattr("lorabuild.remotes.remote.FRESH_SECONDS", 0.0)
    assert there.remote.has(key)


# what is wrong never enters the store


def stored(url: str, tmp_path: Path, kind: str) -> tuple[Folder, str]:
    folder = Folder(url)
    (name,) = folder.sizes(f"v1/{kind}")
    return folder, name


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer", "gone", "record says another sha256"])
def test_a_damaged_blob_is_refused_and_mended_by_who_builds_it(here: Machine, there: Machine, url, tmp_path, damage):
    key = here.build(b"weights" * 100)
    here.remote.put(key)
    folder, name = stored(url, tmp_path, "blob")
    good = folder.read(name)
    if damage == "gone":
        fs, root = folder._open()
        fs.rm_file(f"{root}/{name}")
    elif damage.startswith("record"):
        folder, record = stored(url, tmp_path, "record")
        text = json.loads(folder.read(record))
        text["outputs"]["weights"]["sha256"] = "0" * 64
        folder.upload(record, json.dumps(text).encode(), replace=True)
    else:
        bad = {"flipped": b"W" + good[1:], "truncated": good[:-1], "longer": good + b"x"}[damage]
        folder.upload(name, bad, replace=True)
    with pytest.raises(Damaged):
        there.remote.fetch(key, ["weights"])
    assert there.files == []

    there.build(b"weights" * 100)
    assert there.remote.put(key) > 0
    third = Machine(tmp_path / "third", url)
    assert third.remote.fetch(key, ["weights"]) and third.content(key) == b"weights" * 100


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"not json",
        lambda text: b"[]",
        lambda text: json.dumps({**text, "params": {}}).encode(),  # a record of another key
        lambda text: json.dumps({**text, "outputs": {"weights": {"digest": "../../x", "size": 1, "sha256": "0" * 64}}}),
        lambda text: json.dumps({**text, "outputs": {"../../x": text["outputs"]["weights"]}}),
        lambda text: json.dumps({**text, "metadata": [1]}),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, change):
    url = f"file://{tmp_path}/remote"
    here, there = Machine(tmp_path / "here", url), Machine(tmp_path / "there", url)
    key = here.build(b"weights")
    here.remote.put(key)
    folder, name = stored(url, tmp_path, "record")
    data = change(json.loads(folder.read(name)))
    folder.upload(name, data if isinstance(data, bytes) else data.encode(), replace=True)
    with pytest.raises(Damaged):
        there.remote.fetch(key, ["weights"])
    assert there.files == []


def test_a_killed_upload_leaves_nothing_under_the_name_of_a_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = Machine(tmp_path / "here", f"file://{tmp_path}/remote")
    key = here.build(b"weights")

    def killed(fs, path: str, content, **how) -> None:
        Path(path).write_bytes(b"wei")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transport, "_write", killed)
    monkeypatch.setattr(transport, "PAUSE_SECONDS", 0)
    with pytest.raises(Unreachable, match="No space left"):
        here.remote.put(key)
    assert [path for path in (tmp_path / "remote").rglob("*") if path.is_file()] == []


def test_of_two_that_write_at_one_moment_the_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Folder(f"file://{tmp_path}/remote")
    folder.upload("v1/record/ab/x.json", b"first")
    fs, _ = folder._open()
    exists = fs.exists
    monkeypatch.setattr(fs, "exists", lambda path: path.endswith(".part") and exists(path))  # when both looked: none
    folder.upload("v1/record/ab/x.json", b"second")
    assert folder.read("v1/record/ab/x.json") == b"first" and len(folder.sizes("v1")) == 1
    folder.upload("v1/record/ab/x.json", b"third", replace=True)
    assert folder.read("v1/record/ab/x.json") == b"third"


# a server that is not well


@pytest.mark.parametrize("fault", ["500", "cut"])
@pytest.mark.parametrize(
    ("method", "part"), [("GET", "list-type"), ("GET", "/record/"), ("GET", "/blob/"), ("PUT", "")]
)
def test_a_fault_that_passes_is_got_over(s3: S3, tmp_path: Path, fault: str, method: str, part: str):
    here, there = (Machine(tmp_path / name, s3.url(tmp_path.name)) for name in ("here", "there"))
    key = here.build(b"weights" * 20_000)
    s3.fails(fault, method, part, times=2)
    here.remote.put(key)
    assert there.remote.fetch(key, ["weights"])
    assert there.content(key) == b"weights" * 20_000
    assert [path.name for path in there.files if "part" in path.parts] == []


@pytest.mark.parametrize("fault", ["500", "cut", "slow"])
def test_a_fault_that_stays_is_told_after_three_tries(s3: S3, tmp_path: Path, fault: str, monkeypatch):
    here, there = (Machine(tmp_path / name, s3.url(tmp_path.name)) for name in ("here", "there"))
    key = here.build(b"weights" * 20_000)
    here.remote.put(key)
    s3.fails(fault, "GET", "/blob/")
    monkeypatch.setattr(transport, "PATIENCE_SECONDS", 2.0 if fault == "slow" else 60.0)
    with pytest.raises(Unreachable) as told:
        there.remote.fetch(key, ["weights"])
    assert len(str(told.value).splitlines()) == 1
    assert len([path for method, path in s3.requests if method == "GET" and "/blob/" in path]) == 3
    assert there.store.record(key) is None and not (there.store.root / "blob").exists()


@pytest.mark.parametrize(("fault", "told"), [("corrupt", Unreachable), ("corrupt unnoticed", Damaged)])
def test_an_answer_that_is_corrupted_on_its_way_never_enters_the_store(s3: S3, tmp_path: Path, fault: str, told):
    here, there = (Machine(tmp_path / name, s3.url(tmp_path.name)) for name in ("here", "there"))
    key = here.build(b"weights" * 20_000)
    here.remote.put(key)
    s3.fails(fault, "GET", "/blob/")
    with pytest.raises(told):
        there.remote.fetch(key, ["weights"])
    assert there.files == []


def test_a_record_comes_after_its_blobs(s3: S3, tmp_path: Path):
    here, there = (Machine(tmp_path / name, s3.url(tmp_path.name)) for name in ("here", "there"))
    key = here.build(b"weights")
    s3.fails("500", "PUT", "/blob/")
    with pytest.raises(Unreachable):
        here.remote.put(key)
    assert there.remote.fetch(key, ["weights"]) is None


def test_nobody_at_the_address_is_one_line(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(Unreachable):
        Folder(s3.url("x")).sizes("v1")


def test_a_bucket_that_is_not_there_is_told(s3: S3, tmp_path: Path):
    here = Machine(tmp_path / "here", "s3://no-such-bucket/prefix")
    with pytest.raises(Unreachable, match="bucket"):
        here.remote.put(here.build(b"weights"))


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(Unreachable, match=r"^a package for gs:// is missing: pip install 'lorabuild\[gs\]'$"):
        Folder("gs://bucket/prefix").sizes("v1")


def test_nothing_of_fsspec_is_imported_before_the_remote_is_used():
    import subprocess
    import sys

    code = """
import sys, lorabuild.graph
from lorabuild.remotes.sharing import remote_of
remote_of({"remote": "s3://bucket/prefix"}, None)
assert not {"fsspec", "s3fs"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
