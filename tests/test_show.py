"""`lorabuild show` tells all of a file, of any file, and nothing in it reaches the terminal as an order."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from world import World

from lorabuild.errors import UserError
from lorabuild.header import read_header
from lorabuild.lora.amend import hashes
from lorabuild.verbs.show import main, printable
from lorabuild.writing import BODY_SHA256, Tensor, write_file

CROSS = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn2_to_k"
DEEP = "lora_unet_output_blocks_1_1_transformer_blocks_2_attn1_to_q"
CONV = "lora_unet_input_blocks_1_0_in_layers_2"
TE2 = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
SDXL = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
LOADERS = ["ComfyUI", "Forge", "diffusers", "InvokeAI"]
KEYS = [
    "file", "size", "header_size", "tensors", "dtypes", "layers", "in_no_layer", "misfits", "ranks", "names", "alpha",
    "blocks", "hashes", "metadata_hashes", "metadata", "loaders",
]  # fmt: skip


def tensor(name: str, *shape: int) -> Tensor:
    return name, "F16", shape, bytes(2 * math.prod(shape))


def alpha(module: str, value: float) -> Tensor:
    return f"{module}.alpha", "F16", (), struct.pack("<e", value)


def lora(module: str, rank: int = 4, value: float | None = 2.0, width: int = 8) -> list[Tensor]:
    pair = [tensor(f"{module}.lora_down.weight", rank, width), tensor(f"{module}.lora_up.weight", 6, rank)]
    return pair if value is None else [*pair, alpha(module, value)]


def write(folder: Path, *tensors: Tensor, metadata: Mapping[str, str] = SDXL, name: str = "in.safetensors") -> Path:
    write_file(folder / name, tensors, metadata)
    return folder / name


def show(capsys, path: str | Path, *args: str) -> str:
    assert main([str(path), *args]) == 0
    return capsys.readouterr().out


def told(capsys, path: Path) -> dict[str, Any]:
    return json.loads(show(capsys, path, "--json"))


def row(page: str, label: str) -> str:
    """What stands beside a label, with the lines below that belong to it."""
    lines = page.splitlines()
    place = next(number for number, line in enumerate(lines) if line == label or line.startswith(f"{label}  "))
    found = [lines[place][len(label) :].strip()]
    for line in lines[place + 1 :]:
        if not line.startswith("  "):
            break
        found.append(line.strip())
    return " ".join(found)


def test_the_page_of_a_lora(tmp_path: Path, capsys):
    tags = {"1_ember": {"ember": 4, "red hair": 4, "sit": 1}, "2_more": {"sit": 8, "\x1b[31m": 1}}
    metadata = SDXL | hashes(BODY_SHA256)
    metadata |= {
        "ss_network_alpha": "2.0",
        "ss_network_dim": "4",
        "modelspec.title": "Ember",
        "ss_output_name": "ember",
        "modelspec.trigger_phrase": "ember",
        "ss_tag_frequency": json.dumps(tags),
        "ss_steps": "80",
        "lorabuild.resize": '{"fro_ckpt": 1.0, "thr": -3.55}',
        "lorabuild.chop": '{"keep": {"INP01": 0.0, "OUT01": 1.0, "TE2": 0.5}}',
        "lorabuild.recipe": json.dumps({"note": "x" * 200}),
        "ss_unknown": "1",
    }
    norm = tensor("lora_unet_input_blocks_4_1_norm.w_norm", 8)
    path = write(tmp_path, *lora(CROSS, width=2048), *lora(CONV, 2), *lora(TE2, 6), norm, metadata=metadata)
    data, start = path.read_bytes(), read_header(path).data_start
    whole, body = hashlib.sha256(data).hexdigest(), hashlib.sha256(data[start:]).hexdigest()
    assert show(capsys, path).splitlines() == [
        str(path),
        "",
        f"size         {len(data) / 1e3:.1f} kB ({len(data):,} bytes), of which the header {start / 1e3:.1f} kB",
        "tensors      10: 10 F16",
        "layers       3 lora",
        "in no layer  1 w_norm",
        "names        3 kohya, SGM blocks; 1 kohya, text",
        "ranks        2 to 6",
        "alpha        2, one for the file",
        "blocks       INP01 INP04 OUT01 TE2",
        "",
        f"sha256                 {whole}",
        f"AutoV2                 {whole[:10]}",
        f"sha256 of the body     {body}",
        f"AutoV3                 {body[:12]}",
        "sshs_model_hash        right",
        "modelspec.hash_sha256  right",
        "",
        "ComfyUI    loads",
        "Forge      loads",
        "diffusers  does not load: ValueError, only lora_down, lora_up and alpha are converted:",
        "           lora_unet_input_blocks_4_1_norm.w_norm",
        "           1 unmatched: lora_unet_input_blocks_4_1_norm.w_norm",
        "InvokeAI   loads",
        "",
        "modelspec.title           Ember",
        "ss_output_name            ember",
        "modelspec.architecture    stable-diffusion-xl-v1-base/lora",
        "modelspec.trigger_phrase  ember",
        r"ss_tag_frequency          sit 9, ember 4, red hair 4, \x1b[31m 1",
        "ss_network_dim            4",
        "ss_network_alpha          2.0",
        "ss_steps                  80",
        "lorabuild.chop            keeps OUT01, TE2=0.5",
        f'lorabuild.recipe          {{"note": "{"x" * 46}… (212 characters)',
        'lorabuild.resize          {"fro_ckpt": 1.0, "thr": -3.55}',
        "3 more in the metadata: --all shows them",
    ]


def test_json_holds_all_of_it(tmp_path: Path, capsys):
    unknown = [tensor(f"lora_unet_input_blocks_1_0_strange_{n}.diff_b", 8) for n in range(5)]
    path = write(tmp_path, *lora(CROSS, width=2048), *unknown, metadata={"ss_long": "x" * 500})
    found, data = told(capsys, path), path.read_bytes()
    assert list(found) == KEYS
    assert (found["file"], found["size"], found["tensors"]) == (str(path), len(data), 8)
    assert found["header_size"] == read_header(path).data_start
    assert (found["dtypes"], found["layers"], found["in_no_layer"]) == ({"F16": 8}, {"lora": 1}, {"diff_b": 5})
    assert (found["misfits"], found["ranks"]) == ([], {"min": 4, "max": 4})
    assert found["names"] == {"other names of SDXL": 5, "kohya, SGM blocks": 1}
    assert found["alpha"] == {"values": [2.0], "absent": 0, "broken": 0}
    assert found["blocks"] == ["INP01", "OUT01"]
    whole, body = found["hashes"]["sha256"], found["hashes"]["body_sha256"]
    assert found["hashes"] == {"sha256": whole, "autov2": whole[:10], "body_sha256": body, "autov3": body[:12]}
    assert found["metadata_hashes"] == {"sshs_model_hash": "absent", "modelspec.hash_sha256": "absent"}
    assert found["metadata"] == {"ss_long": "x" * 500}
    assert [list(one) for one in found["loaders"]] == [["loader", "loads", "reason", "unmatched", "note"]] * 4
    assert {one["loader"]: len(one["unmatched"]) for one in found["loaders"]} == dict.fromkeys(LOADERS, 5)


def test_a_verdict_names_three_keys_and_counts_the_rest(tmp_path: Path, capsys):
    unknown = [tensor(f"lora_unet_x{n}.diff", 8, 8) for n in range(13)]
    page = show(capsys, write(tmp_path, *lora(CROSS, width=2048), *unknown, metadata={"ss_tag_frequency": "{}"}))
    first = "lora_unet_x0.diff, lora_unet_x1.diff, lora_unet_x10.diff and 10 more"
    said = "13 of 16 keys are ignored: lora_unet_x0.diff and 12 more"
    assert row(page, "ComfyUI") == f"loads in part: {said} 13 unmatched: {first}"
    assert row(page, "Forge").startswith("does not load: 13 keys match nothing; above 12, it skips the whole LoRA: ")
    assert f"13 unmatched: {first} note: neither modelspec.architecture" in row(page, "Forge")
    assert "ss_tag_frequency" in page and all(len(line) <= 100 for line in page.splitlines()[1:])


@pytest.mark.parametrize("key", ["sshs_model_hash", "modelspec.hash_sha256"])
@pytest.mark.parametrize(
    ("says", "state"),
    [("{}", "right"), ("0x{}", "right"), ("0X{}", "right"), ("f" * 64, "stale"), ("", "stale"), ("\x1b[2J", "stale")],
)
def test_a_hash_in_the_metadata_is_checked(tmp_path: Path, key: str, says: str, state: str, capsys):
    path = write(tmp_path, *lora(CROSS), metadata={key: says.format(BODY_SHA256)})
    other = ({"sshs_model_hash", "modelspec.hash_sha256"} - {key}).pop()
    assert told(capsys, path)["metadata_hashes"] == {key: state, other: "absent"}
    page = show(capsys, path)
    said = printable(says.format(told(capsys, path)["hashes"]["body_sha256"]))
    assert row(page, key) == (state if state == "right" else f"stale: it says {said}".strip())
    assert row(page, other) == "absent"


def test_a_hash_is_stale_once_a_tool_has_changed_the_body(tmp_path: Path, capsys):
    path = write(tmp_path, *lora(CROSS), metadata=hashes(BODY_SHA256))
    assert set(told(capsys, path)["metadata_hashes"].values()) == {"right"}
    path.write_bytes(path.read_bytes()[:-1] + b"\x3c")
    assert set(told(capsys, path)["metadata_hashes"].values()) == {"stale"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((2.0, 2.0), "2, one for the file"),
        ((0.5, 8.0), "varies: 2 values, 0.5 to 8"),
        ((None, None), "none: loaders take a layer as it is"),
        ((2.0, None), "2; none in 1 layer"),
        ((math.nan, 2.0), "2; no finite number in 1 layer"),
        ((math.inf, None), "no finite number in 1 layer; none in 1 layer"),
    ],
)
def test_alpha(tmp_path: Path, values: tuple[float | None, ...], said: str, capsys):
    path = write(tmp_path, *lora(CROSS, value=values[0]), *lora(CONV, value=values[1]))
    assert row(show(capsys, path), "alpha") == said
    assert told(capsys, path)["alpha"]["values"] == sorted({one for one in values if one and math.isfinite(one)})


def test_layers_by_flavour_with_their_ranks(tmp_path: Path, capsys):
    loha = [tensor(f"{CONV}.hada_w{n}", *shape) for n, shape in (("1_a", (6, 3)), ("1_b", (3, 8)))]
    loha += [tensor(f"{CONV}.hada_w{n}", *shape) for n, shape in (("2_a", (6, 3)), ("2_b", (3, 8)))]
    lokr = [tensor(f"{TE2}.lokr_w1", 2, 2), tensor(f"{TE2}.lokr_w2", 3, 4)]
    full = [tensor(f"{DEEP}.diff", 6, 8), ("extra", "F32", (1,), bytes(4))]
    page = show(capsys, write(tmp_path, *lora(CROSS, 9), *loha, *lokr, *full))
    assert row(page, "layers") == "1 lokr, 1 loha, 1 lora, 1 full"
    assert (row(page, "ranks"), row(page, "in no layer")) == ("3 to 9", "1 unknown")
    assert row(page, "tensors") == "11: 10 F16, 1 F32"
    assert row(page, "names") == "3 kohya, SGM blocks; 1 kohya, text"
    assert "ranks" not in show(capsys, write(tmp_path, *lokr))


@pytest.mark.parametrize(
    ("module", "naming"),
    [
        (CROSS, "kohya, SGM blocks"),
        ("lora_unet_mid_block_resnets_0_conv1", "kohya, diffusers blocks"),
        ("unet.up_blocks.0.attentions.1.proj_in", "diffusers paths"),
        ("unet.up_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_q", "diffusers processor paths"),
        ("lycoris_mid_block_attentions_0_proj_in", "lycoris_"),
        ("base_model.model.mid_block.resnets.0.conv1", "other names of SDXL"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "unknown"),
    ],
)
def test_the_family_of_names(tmp_path: Path, module: str, naming: str, capsys):
    assert told(capsys, write(tmp_path, *lora(module)))["names"] == {naming: 1}


def test_tensors_that_do_not_fit_are_told_and_are_no_error(tmp_path: Path, capsys):
    down = tensor(f"{CROSS}.lora_down.weight"), tensor(f"{CONV}.lora_down.weight", 3, 4)
    up = tensor(f"{CROSS}.lora_up.weight", 6, 2), tensor(f"{CONV}.lora_up.weight", 6, 2)
    path = write(tmp_path, *down, *up, *lora(TE2))
    said = [one.partition(":")[0] for one in told(capsys, path)["misfits"]]
    assert said == [CONV, CROSS]
    page = show(capsys, path)
    assert row(page, "broken") == f"{CONV}: its tensors do not fit together: up [6, 2], down [3, 4] and 1 more"
    assert row(page, "ranks") == "4"


# What is no LoRA.


def test_a_checkpoint_shows_what_there_is(tmp_path: Path, capsys):
    weights = [tensor(f"model.diffusion_model.input_blocks.{n}.weight", 2) for n in range(2500)]
    path = write(tmp_path, *weights, metadata={})
    page, found = show(capsys, path), told(capsys, path)
    assert row(page, "layers") == "no LoRA layers"
    assert (row(page, "tensors"), row(page, "in no layer")) == ("2,500: 2,500 F16", "2,500 unknown")
    assert row(page, "loaders") == "not asked: this is no LoRA"
    assert page.endswith("\n\nno metadata\n")
    assert not any(f"\n{label}  " in page for label in ("names", "ranks", "alpha", "blocks", "ComfyUI"))
    assert (found["loaders"], found["names"], found["ranks"], found["blocks"]) == ([], {}, None, [])
    assert len(found["hashes"]["autov2"]) == 10


def test_an_empty_file_and_an_adapter_of_an_unknown_kind(tmp_path: Path, capsys):
    page = show(capsys, write(tmp_path))
    assert (row(page, "tensors"), row(page, "layers")) == ("0", "no LoRA layers")
    glora = [tensor(f"{CROSS}.{part}.weight", 2, 2) for part in ("a1", "a2", "b1", "b2")]
    page = show(capsys, write(tmp_path, *glora))
    assert row(page, "layers") == "no LoRA layers" and row(page, "names") == "1 kohya, SGM blocks"
    assert row(page, "ComfyUI") == "loads"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.safetensors", b"", "not a safetensors file: 0 bytes long"),
        ("a.safetensors", b"no LoRA, but some words", "not a safetensors file"),
        ("a.safetensors", (500).to_bytes(8, "little") + b"{}", "truncated"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"{\x1b", "the header is not JSON"),
        ("a.ckpt", b"PK\x03\x04" + bytes(100), "a pickle, which can run code when opened"),
        ("folder", None, "a folder; a .safetensors file was expected"),
        ("missing", None, "no such file"),
    ],
)
@pytest.mark.parametrize("json", [True, False])
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: bytes | None, said: str, json: bool, capsys
):
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        main([str(tmp_path / name), *(["--json"] if json else [])])
    assert caught.value.exit_code == 1 and capsys.readouterr().out == ""
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: ") and said in message and message.isprintable()


def test_a_truncated_body_is_one_line(tmp_path: Path):
    path = write(tmp_path, *lora(CROSS))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated: its tensors end at byte"):
        main([str(path)])


# Metadata.


def test_all_shows_every_key_whole(tmp_path: Path, capsys):
    metadata = {
        "ss_tag_frequency": '{"a": {"b": 1}}',
        "zz": "x" * 500,
        "modelspec.title": "T",
        "lorabuild.x": "y" * 200,
    }
    path = write(tmp_path, *lora(CROSS), metadata=metadata | {"empty": "", "lorabuild.chop": '{"keep": {}}'})
    lines = show(capsys, path, "--all").splitlines()
    assert lines[lines.index("modelspec.title   T") :] == [
        "modelspec.title   T",
        'ss_tag_frequency  {"a": {"b": 1}}',
        'lorabuild.chop    {"keep": {}}',
        "lorabuild.x       " + "y" * 200,
        "empty             ",
        "zz                " + "x" * 500,
    ]
    lines = show(capsys, path).splitlines()
    assert lines[-5:] == [
        "modelspec.title   T",
        "ss_tag_frequency  b 1",
        "lorabuild.chop    keeps no block",
        f"lorabuild.x       {'y' * 64}… (200 characters)",
        "2 more in the metadata: --all shows them",
    ]


def test_ten_tags_are_shown(tmp_path: Path, capsys):
    tags = {"3_x": {f"tag {n:02}": 50 - n for n in range(25)}}
    page = show(capsys, write(tmp_path, *lora(CROSS), metadata={"ss_tag_frequency": json.dumps(tags)}))
    said = ", ".join(f"tag {n:02} {50 - n}" for n in range(10))
    assert f"ss_tag_frequency  {said[:70]}" in page and " ".join(page.split()).endswith(f"{said} and 15 more")


@pytest.mark.parametrize(
    "text", ["", "none", "{", "[1]", '{"a": 1}', '{"a": {"b": "c"}}', '{"a": {"b": 1e999}}', "[" * 3000, "1" * 5000]
)
def test_what_is_not_as_its_name_says_is_shown_as_it_is(tmp_path: Path, text: str, capsys):
    path = write(tmp_path, *lora(CROSS), metadata={"ss_tag_frequency": text, "lorabuild.chop": text})
    page = show(capsys, path)
    assert row(page, "ss_tag_frequency").startswith(text[:50]) and row(page, "lorabuild.chop").startswith(text[:50])


EVIL = "a\x1b]0;title\x07\r\n\x9b31m\u202e\u2028\x7f\ttail"


@pytest.mark.parametrize("args", [(), ("--all",), ("--json",)])
def test_no_control_character_reaches_the_terminal(tmp_path: Path, args: tuple[str, ...], capsys):
    metadata = {key: EVIL for key in ("modelspec.title", "sshs_model_hash", "ss_tag_frequency", "lorabuild.x", EVIL)}
    metadata |= {"ss_output_name": "炎\u3000é", "modelspec.description": json.dumps({EVIL: EVIL})}
    path = write(tmp_path, *lora(CROSS), *lora(f"lora_{EVIL}"), tensor(EVIL, 1), metadata=metadata, name="\x1b[5m.lora")
    out = show(capsys, path, *args)
    assert all(line.replace("\u3000", "").isprintable() for line in out.splitlines())
    if args == ("--json",):
        assert json.loads(out)["metadata"] == metadata and json.loads(out)["file"] == str(path)
    else:
        assert r"a\x1b]0;title\x07\r\n\x9b31m\u202e\u2028\x7f\ttail" in out
        assert "ss_output_name" in out and "炎\u3000é" in out


def test_long_keys_and_values_keep_the_page_narrow(tmp_path: Path, capsys):
    metadata = {"lorabuild." + "k" * 300: "\n" * 500, "lorabuild." + "k" * 301: "v", "modelspec.title": "a b " * 100}
    page = show(capsys, write(tmp_path, *lora(CROSS), metadata=metadata))
    lines = page.splitlines()[-3:]
    assert all(len(line) <= 100 for line in lines)
    assert lines[0].startswith("modelspec.title  ") and lines[0].endswith("… (400 characters)")
    assert lines[1].startswith("lorabuild.kkkkkkkkkkkkkkkkkkkkk…  \\n\\n") and lines[2].endswith("…  v")


# The command.


def test_the_command_ends_with_its_codes_and_stdout_holds_json_alone(tmp_path: Path):
    def run(*args: str, encoding: str = "utf-8") -> subprocess.CompletedProcess:
        command = [sys.executable, "-X", "utf8=0", "-m", "lorabuild", "show", *args]
        environment = {"PATH": "", "PYTHONIOENCODING": encoding, "NO_COLOR": "1"}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    write(tmp_path, *lora(CROSS), metadata={"modelspec.title": "炎"})
    done = run("in.safetensors", "--json")
    assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)["metadata"] == {
        "modelspec.title": "炎"
    }
    done = run("in.safetensors", encoding="ascii")
    assert (done.returncode, done.stderr) == (0, "") and "modelspec.title  \\u708e\n" in done.stdout
    done = run("missing", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "missing: no such file\n")
    done = run()
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert run("--help").returncode == 0


def test_it_needs_no_heavy_library_and_little_memory(tmp_path: Path, capsys):
    code = "import sys, lorabuild.verbs.show; print({'torch', 'numpy', 'safetensors', 'diffusers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
    path = write(tmp_path, *lora(CROSS), tensor("big.alpha", 16 << 20), tensor(f"{CONV}.diff", 8, 1 << 20))
    show(capsys, path)  # imports
    tracemalloc.start()
    try:
        show(capsys, path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_every_artifact_has_all_verdicts(built_once: World, capsys):
    for name, layers in (("ember", 1052), ("ember-resized", None), ("ember-chopped", None)):
        path = built_once.root / f"build/ember/{name}.safetensors"
        page, found = show(capsys, path), told(capsys, path)
        assert [one["loader"] for one in found["loaders"]] == LOADERS
        # The toy's text has 96 channels, not 2048: InvokeAI may not see that it is SDXL, and nothing else.
        said = {one["loader"]: one["loads"] for one in found["loaders"] if "recognise SDXL" not in one["reason"]}
        assert {"ComfyUI", "Forge", "diffusers"} <= said.keys() and set(said.values()) == {"yes"}
        assert all(row(page, loader).startswith(("loads", "does not load: it does not")) for loader in LOADERS)
        assert set(found["metadata_hashes"].values()) == {"right"}
        assert layers is None or found["layers"] == {"lora": layers}
        assert set(found["names"]) == {"kohya, SGM blocks", "kohya, text"} and not found["misfits"]
        assert len(found["alpha"]["values"]) == 1 and row(page, "alpha").endswith(", one for the file")
        assert (row(page, "ss_output_name"), row(page, "modelspec.trigger_phrase")) == (name, "ember")
        assert row(page, "ss_tag_frequency").startswith("ember 4, red 4, sit 4, 1 1, ")
    assert found["blocks"] == ["OUT01", "TE1", "TE2"] and row(page, "lorabuild.chop") == "keeps OUT01, TE1, TE2"
