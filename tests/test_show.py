"""`lorabuild show` says what a file is, whether its hashes are true, and who loads it; nothing in it reaches the terminal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from lora_lab import layer, write_lora
from safetensors.torch import save_file
from world import World

from lorabuild import cli
from lorabuild.lora.amend import hashes

LAYER = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn2_to_k"


def show(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli._main(["show", str(path), *options]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def lora(path: Path, metadata: dict[str, str] | None = None) -> Path:
    tensors = {name: one.half() for name, one in layer(LAYER, 8, 4, 2048, alpha=2.0).items()}
    save_file({**tensors, "lora_te1_x.w_norm": torch.ones(3)}, path, metadata)
    return path


def facts(path: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(show(path, capsys, "--json"))


def test_it_says_what_the_file_is(tmp_path: Path, capsys):
    path = lora(tmp_path / "a.safetensors")
    found = facts(path, capsys)
    raw = path.read_bytes()
    body = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    whole = hashlib.sha256(raw).hexdigest()
    assert (found["sha256"], found["autov2"]) == (whole, whole[:10])
    assert (found["body_sha256"], found["autov3"]) == (body, body[:12])
    assert (found["size"], found["tensors"], found["others"]) == (len(raw), 4, 1)
    assert (found["layers"], found["dtypes"]) == ({"lora": 1}, {"F16": 3, "F32": 1})
    assert (found["ranks"], found["alphas"], found["blocks"]) == ([4, 4], [2.0, 2.0], ["OUT01", "TE1"])
    assert {one["loader"] for one in found["loaders"]} == {"ComfyUI", "Forge", "diffusers", "InvokeAI"}
    page = show(path, capsys)
    assert whole in page and body[:12] in page and "OUT01 TE1" in page and "1 lora; 1 other tensors" in page


def test_stale_hashes_are_called_stale(tmp_path: Path, capsys):
    path = lora(tmp_path / "a.safetensors", {"sshs_model_hash": "0" * 64})
    found = facts(path, capsys)
    assert found["hashes"] == {"sshs_model_hash": "stale", "modelspec.hash_sha256": "absent"}
    true = lora(tmp_path / "b.safetensors", hashes(found["body_sha256"]))
    assert facts(true, capsys)["hashes"] == {"sshs_model_hash": "right", "modelspec.hash_sha256": "right"}


def test_what_a_file_says_cannot_command_a_terminal(tmp_path: Path, capsys):
    text = "\x1b[31mred\x07\nnew line" + "x" * 300
    path = lora(tmp_path / "a.safetensors", {"ss_output_name": text, "b\x1b": "1"})
    for page in (show(path, capsys), show(path, capsys, "--all")):
        assert "\x1b" not in page and "\x07" not in page
        assert "\\x1b[31mred\\x07\\nnew line" in page
    assert text not in show(path, capsys) and "x" * 300 in show(path, capsys, "--all")
    assert facts(path, capsys)["metadata"]["ss_output_name"] == text


def test_tags_are_counted(tmp_path: Path, capsys):
    tags = {"1_a": {"red": 3, "sit": 1}, "2_b": {"red": 2}}
    path = lora(tmp_path / "a.safetensors", {"ss_tag_frequency": json.dumps(tags)})
    assert "red (5), sit (1)" in show(path, capsys)
    broken = lora(tmp_path / "b.safetensors", {"ss_tag_frequency": '["red"]'})
    assert '["red"]' in show(broken, capsys)


def test_a_file_of_something_else_is_shown_too(tmp_path: Path, capsys):
    path = write_lora(tmp_path / "a.safetensors", {"model.diffusion_model.out.2.weight": torch.ones(4, 4)})
    assert "no LoRA layers" in show(path, capsys)
    empty = write_lora(tmp_path / "b.safetensors", {})
    assert "tensors" in show(empty, capsys)


def test_mistakes_are_one_line(tmp_path: Path, capsys):
    data = lora(tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(data[:-1])
    (tmp_path / "a.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))
    for name, said in (("short.safetensors", "truncated"), ("a.ckpt", "pickle"), ("no", "no such file"), (".", "a folder")):
        assert cli._main(["show", str(tmp_path / name)]) == 1
        told = capsys.readouterr()
        assert told.out == "" and said in told.err and len(told.err.splitlines()) == 1


def test_our_artifacts_are_true_and_load_everywhere(built: World, capsys):
    for path in sorted((built.root / "build/ember").glob("*.safetensors")):
        found = facts(path, capsys)
        assert set(found["hashes"].values()) == {"right"}
        loads = {one["loader"]: one["loads"] for one in found["loaders"]}
        assert {loads[name] for name in ("ComfyUI", "Forge", "diffusers")} == {"yes"}
