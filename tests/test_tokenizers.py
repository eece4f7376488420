"""Tokenizers of a single-file base: its own beside the file, else CLIP's wherever this machine has it, else one line."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from manifest_world import GOOD, Files
from tiny_base import tiny_folder

from lorabuild.checks.base import check_base
from lorabuild.checks.tokens import token_counts
from lorabuild.cli import run_verb
from lorabuild.components import component_digests, component_files
from lorabuild.data import tokenizers, vocabulary
from lorabuild.data.fetching import fetch_clip
from lorabuild.data.tokenizers import clip_places, embedding_rows, find_vocabulary, kept_clip
from lorabuild.data.vocabulary import (
    CLIP,
    Merge,
    byte_letters,
    fault,
    is_clip,
    laid_out,
    parse_merges,
    read_vocabulary,
    spelled,
)
from lorabuild.errors import JobError
from lorabuild.manifest import load
from lorabuild.manifest.whence import Whence
from lorabuild.nn.base import load_tokenizers
from lorabuild.nn.tokenizer import vocabulary as tiny_vocabulary
from lorabuild.scan import Scan
from lorabuild.session import opened, state_of
from lorabuild.stage import Component, Job
from lorabuild.watch import _sources
from lorabuild.writing import write_body

MERGES: list[Merge] = [("e", "m"), ("em", "b"), ("emb", "er</w>"), ("e", "r</w>")]  # a vocabulary in place of CLIP's
HUB = "models--openai--clip-vit-large-patch14/snapshots/32bd64288804d66eefd0ccbe215aa642df71cc41"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which CLIP's vocabulary is MERGES', and nothing is to be found yet."""
    home = tmp_path / "home"
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(tokenizers, "sys", SimpleNamespace(path=[str(home / "site-packages")]))
    monkeypatch.setattr(vocabulary, "CLIP_SHA256", hashlib.sha256(spelled(MERGES)).hexdigest())
    for module in (vocabulary, tokenizers):
        monkeypatch.setattr(module, "SIZE", len(laid_out(MERGES)))
    return home


def checkpoint(path: Path, rows: int | None = None) -> Path:
    """A single file whose text encoders know so many tokens; as many as CLIP has, unless it is said."""
    rows = rows or vocabulary.SIZE
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("0.transformer.text_model.embeddings", "1.model")
    write_body(
        path,
        [(f"conditioner.embedders.{one}.token_embedding.weight", "F16", (rows, 1), bytes(2 * rows)) for one in names],
    )
    return path


def put(folder: Path, merges: list[Merge] = MERGES, tokens: list[str] | None = None) -> Path:
    """A vocabulary in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: number for number, token in enumerate(tokens or laid_out(merges))}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_bytes(spelled(merges))
    return folder


# what is known of CLIP


def test_the_layout_is_clips():
    assert len(laid_out(())) + 48_894 == vocabulary.SIZE == 49_408
    assert next(iter(byte_letters().values())) == "!"  # id 0, with which SDXL's second tokenizer pads
    assert parse_merges(spelled(MERGES)) == parse_merges(spelled(MERGES).replace(b"\n", b"\r\n")) == MERGES
    assert not is_clip(MERGES)


@pytest.mark.parametrize("data", [b"", b"e m\n", b"#version: 0.2\ne m b\n", b"#version: 0.2\ne\n", b"\xff\xfe"])
def test_what_is_no_list_of_merges_is_refused(data: bytes):
    with pytest.raises(ValueError):
        parse_merges(data)


def test_one_vocabulary_tokenises_as_both_of_a_folder_do(tmp_path: Path):
    file = checkpoint(tmp_path / "tiny.safetensors", len(tiny_vocabulary()[0]))
    (tmp_path / "tokenizer").symlink_to(tiny_folder() / "tokenizer")
    texts = ["ember, Red cat's  dog", "(weird:1.2), 日本語 123 <|endoftext|> é", "x" * 400, ""]
    for given in (file, tmp_path / "tokenizer"):
        for mine, theirs in zip(load_tokenizers(given), load_tokenizers(tiny_folder()), strict=True):
            assert mine(texts).input_ids == theirs(texts).input_ids
            assert (mine.bos_token_id, mine.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
            options = {"truncation": True, "max_length": 7}
            assert mine(texts, **options).input_ids == theirs(texts, **options).input_ids


# where it is looked for


@pytest.mark.parametrize("place", ["pony/tokenizer", "tokenizer", "tokenizer_2", "."])
def test_beside_the_file(home: Path, tmp_path: Path, place: str):
    file = checkpoint(tmp_path / "models/pony.safetensors")
    put(home / ".cache/huggingface/hub" / HUB)
    folder = put(tmp_path / "models" / place)
    assert find_vocabulary(file).resolve() == folder.resolve()
    files = [folder / "vocab.json", folder / "merges.txt"]
    assert [one.resolve() for one in component_files(file, "tokenizer1")[1:]] == [one.resolve() for one in files]


@pytest.mark.parametrize(
    ("place", "environment"),
    [
        ("home/.cache/huggingface/hub", {}),
        ("cache/huggingface/hub", {"XDG_CACHE_HOME": "cache"}),
        ("hf/hub", {"HF_HOME": "hf", "XDG_CACHE_HOME": "cache"}),
        ("old", {"HUGGINGFACE_HUB_CACHE": "old", "HF_HOME": "hf"}),
        ("new", {"HF_HUB_CACHE": "new", "HUGGINGFACE_HUB_CACHE": "old"}),
    ],
)
@pytest.mark.parametrize("inside", [HUB, "models--me--mine/snapshots/1/tokenizer_2"])
def test_in_the_hugging_face_cache(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, environment: dict[str, str], inside: str
):
    file = checkpoint(tmp_path / "models/pony.safetensors")
    for name, folder in environment.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    put(tmp_path / place / "models--gpt2/snapshots/1", MERGES[:2])  # not CLIP's
    merges = put(tmp_path / place / inside) / "merges.txt"
    assert find_vocabulary(file) == merges
    assert read_vocabulary(merges).digest == component_digests(file, ["tokenizer1"])["tokenizer1"] == CLIP


@pytest.mark.parametrize(
    "place",
    [
        "more/tokenizer",  # a folder of [models] dirs
        "ui/comfy/sd1_tokenizer",
        "ui/backend/huggingface/stabilityai/stable-diffusion-xl-base-1.0/tokenizer",
        "home/.cache/lorabuild/clip",  # what was fetched
    ],
)
def test_among_models_in_programs_and_in_what_was_fetched(home: Path, tmp_path: Path, place: str):
    file = checkpoint(tmp_path / "ui/models/checkpoints/sdxl/pony.safetensors")
    folder = put(tmp_path / place)
    assert find_vocabulary(file, [tmp_path / "more"]) == folder / "merges.txt"
    put(folder, MERGES[:3])
    with pytest.raises(JobError):  # who is not beside the file must be CLIP's
        find_vocabulary(file, [tmp_path / "more"])


@pytest.mark.parametrize("package", ["open_clip", "clip"])
def test_in_an_installed_package(home: Path, tmp_path: Path, package: str):
    file = checkpoint(tmp_path / "pony.safetensors")
    packed = home / "site-packages" / package / "bpe_simple_vocab_16e6.txt.gz"
    packed.parent.mkdir(parents=True)
    more = [*MERGES, ("x", "y"), ("z", "z</w>")]  # it goes on after CLIP's
    packed.write_bytes(gzip.compress(b'"bpe_simple_vocab_16e6.txt' + spelled(more)))
    assert find_vocabulary(file) == packed
    assert read_vocabulary(packed) == read_vocabulary(put(tmp_path / "plain"))
    packed.write_bytes(b"torn")
    with pytest.raises(JobError, match="nor in Hugging Face's cache"):
        find_vocabulary(file)


def test_nowhere_is_one_line_that_says_what_to_put_where(home: Path, tmp_path: Path):
    file = checkpoint(tmp_path / "models/pony.safetensors")
    with pytest.raises(JobError) as caught:
        load_tokenizers(file)
    said = str(caught.value)
    assert "\n" not in said and "`lorabuild doctor --fetch-tokenizer`" in said
    assert (
        "vocab.json and merges.txt of openai/clip-vit-large-patch14" in said and str(file.parent / "tokenizer") in said
    )
    assert component_digests(file, ["tokenizer1"]) == {"tokenizer1": CLIP}  # what is built needs none


# whose it is


def test_another_vocabulary_beside_the_file_has_a_digest_of_its_own(home: Path, tmp_path: Path):
    file = checkpoint(tmp_path / "pony.safetensors", 1000)
    digests = []
    for merges in (MERGES, [*MERGES, ("a", "b")], [*MERGES, ("a", "c")]):
        put(tmp_path / "tokenizer", merges)
        digests.append(component_digests(file, ["tokenizer1", "tokenizer2"]))
        assert len(set(digests[-1].values())) == 1
    assert [one["tokenizer1"] for one in digests].count(CLIP) == 1 == len({one["tokenizer2"] for one in digests}) - 2
    before = digests[-1]
    path = tmp_path / "tokenizer/vocab.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True))  # spelled otherwise
    assert component_digests(file, before) == before


def test_the_tiny_vocabulary_is_taken_beside_a_tiny_file(tmp_path: Path):
    tokens, merges = tiny_vocabulary()
    file = checkpoint(tmp_path / "tiny.safetensors", len(tokens))
    with pytest.raises(JobError, match=r"its embedding \(1,458 rows\) is not for CLIP's .*: put its own vocab"):
        find_vocabulary(file)
    put(tmp_path / "tiny/tokenizer", merges)
    assert embedding_rows(file) == len(tokens) == 1458
    assert read_vocabulary(find_vocabulary(file)).ids == tokens
    assert component_digests(file, ["tokenizer1"])["tokenizer1"] != CLIP


def test_the_vocabulary_of_another_base_is_one_line(home: Path, tmp_path: Path):
    file, folder = checkpoint(tmp_path / "pony.safetensors"), tmp_path / "tokenizer"
    wide = checkpoint(tmp_path / "wide.safetensors", 49_408)
    mixed = [*laid_out(MERGES)[:-4], "xx", "yy", *laid_out(MERGES)[-2:]]
    for merges, tokens, said in (
        (MERGES[:2], None, "tokens, and the base's embedding 518 rows: another base's"),
        ([*MERGES, ("a", "b")], None, "519 tokens, and the base's embedding 518 rows: another base's"),
        (MERGES, laid_out(MERGES)[:-1], "it has no <|endoftext|>"),
        (MERGES, mixed, "they are not of one vocabulary"),
    ):
        put(folder, merges, tokens)
        for ask in (find_vocabulary, lambda file: component_digests(file, ["tokenizer2"])):
            with pytest.raises(JobError) as caught:
                ask(file)
            assert said in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)
    put(folder, [*MERGES, ("a", "b")])
    assert find_vocabulary(wide) == folder  # it fits; with CLIP's own number of rows another one would not:
    assert fault(read_vocabulary(folder), 49_408) is None


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 0, "b": 2}', '{"a": 0, "b": "c"}', '{"a": 0, "b": 0}'])
def test_a_damaged_vocabulary_is_one_line(home: Path, tmp_path: Path, text: str):
    file = checkpoint(tmp_path / "pony.safetensors")
    (put(tmp_path / "tokenizer") / "vocab.json").write_text(text)
    with pytest.raises(JobError, match=r"vocab\.json: not a vocabulary") as caught:
        find_vocabulary(file)
    assert "\n" not in str(caught.value)


# builds and checks


@pytest.fixture
def files(home: Path, tmp_path: Path) -> Files:
    """A repository with a single-file base in a folder of models."""
    files = Files(tmp_path / "repository")
    files.write(
        "lorabuild.toml", '[bases.pony]\nfile = "pony.safetensors"\n[models]\ndirs = ["../models", "../more"]\n'
    )
    checkpoint(tmp_path / "models/pony.safetensors")
    return files


def test_a_vocabulary_that_appears_beside_the_file_or_changes_is_noticed_by_stat(files: Files, tmp_path: Path):
    files.write("projects/ember/lora.toml", GOOD)
    repository = load(files.root)
    job = Job("train:ember", {}, {"tokenizer1": Component("pony", "tokenizer1")}, [])

    def looked() -> str:
        scan = Scan()
        return _sources(repository, repository.projects["ember"], [job], scan).look(scan)

    seen = [looked()]
    for folder in ("pony/tokenizer", "tokenizer", "tokenizer_2", "."):
        put(tmp_path / "models" / folder)
        seen.append(looked())
        put(tmp_path / "models" / folder, MERGES[:3])
        seen.append(looked())
    (tmp_path / "models/tokenizer_2/merges.txt").unlink()
    seen.append(looked())
    assert len(set(seen)) == 10 and seen[-1] == looked()


def test_a_job_is_told_where_the_vocabulary_lies_and_is_not_begun_without_one(files: Files, tmp_path: Path):
    with opened(files.root, writing=False, building=False) as engine:
        job = Job("train:ember", {}, {name: Component("pony", name) for name in ("unet", "tokenizer1")}, [])
        item = job.inputs["tokenizer1"]
        found = engine._resolver.resolve(replace(job, inputs={"tokenizer1": item}))["tokenizer1"]
        assert found.digest == CLIP
        with pytest.raises(JobError, match="lorabuild doctor"):
            engine._place(item, found)
        assert engine._place(job.inputs["unet"], found) == found.path
        merges = put(tmp_path / "more") / "merges.txt"
        assert engine._place(item, found).resolve() == merges
        folder = put(tmp_path / "models/tokenizer")
        assert engine._place(item, found).resolve() == folder


def test_check_tells_what_lacks_to_who_needs_it_and_counts_with_what_is_found(files: Files, tmp_path: Path):
    def findings(*components: str) -> list[str]:
        repository = load(files.root)
        return [
            f"{one.code} {one.message}"
            for one in check_base(repository, "pony", components, Whence(repository)).findings
        ]

    def counts(*texts: str) -> list[int]:
        with state_of(files.root) as state:
            return token_counts({}, tmp_path / "models/pony.safetensors", texts, state, [tmp_path / "more"])

    (said,) = findings("tokenizer1", "tokenizer2")
    assert said.startswith("LB021 bases.pony: ") and "`lorabuild doctor --fetch-tokenizer`" in said
    assert findings() == []
    with pytest.raises(JobError, match="lorabuild doctor"):
        counts("ember")
    put(tmp_path / "more")
    assert findings("tokenizer1") == []
    assert counts("ember", "ember ember", "") == [1, 2, 0]
    put(tmp_path / "models", MERGES[:3])
    (said,) = findings("tokenizer1")
    assert "another base's" in said


# fetched once


class Hub(ThreadingHTTPServer):
    """Stands for the Hugging Face hub: answers every request with `body`, and remembers what was asked for."""

    body: bytes = b""
    status: int = 200


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), _Handler)
    server.asked, server.body = [], spelled(MERGES)
    threading.Thread(target=functools.partial(server.serve_forever, 0.01), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def test_it_is_fetched_into_the_users_cache_and_found_there(hub: Hub, home: Path, tmp_path: Path):
    file = checkpoint(tmp_path / "pony.safetensors")
    folder = fetch_clip()
    assert folder == home / ".cache/lorabuild/clip" and sorted(path.name for path in folder.iterdir()) == [
        "merges.txt",
        "vocab.json",
    ]
    assert hub.asked == ["/openai/clip-vit-large-patch14/resolve/main/merges.txt"]
    assert find_vocabulary(file) == kept_clip() and kept_clip() in clip_places()
    assert read_vocabulary(folder).digest == CLIP
    assert len(hub.asked) == 1


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, spelled(MERGES[:3]), "is not CLIP's merges, and was not kept"),
        (200, b"<html>a login page</html>", "no merges"),
        (404, b"", "404"),
    ],
)
def test_what_is_not_clips_is_not_kept(hub: Hub, home: Path, status: int, body: bytes, said: str):
    hub.status, hub.body = status, body
    with pytest.raises(JobError, match=said) as caught:
        fetch_clip()
    assert "\n" not in str(caught.value) and not (home / ".cache/lorabuild").exists()


def test_without_a_network_or_offline_by_will_it_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(JobError, match="HF_HUB_OFFLINE is set"):
        fetch_clip()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(JobError, match="cannot be fetched"):
        fetch_clip()
    monkeypatch.setenv("HF_ENDPOINT", "mirror")
    with pytest.raises(JobError, match="cannot be fetched"):
        fetch_clip()
    assert hub.asked == []


def test_it_is_fetched_by_a_users_word(hub: Hub, home: Path, capsys: pytest.CaptureFixture[str]):
    assert run_verb("doctor", ["--fetch-tokenizer"]) == 0
    assert capsys.readouterr().out == f"CLIP's vocabulary is in {home}/.cache/lorabuild/clip\n"
    assert run_verb("doctor", ["--fetch-tokenizer", "--json"]) == 0 and len(hub.asked) == 1  # once
    assert json.loads(capsys.readouterr().out) == {"fetched": f"{home}/.cache/lorabuild/clip"}
    kept_clip().write_text("damaged")
    hub.status = 500
    assert run_verb("doctor", ["--fetch-tokenizer"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "HTTP Error 500" in said.err and len(said.err.splitlines()) == 1
