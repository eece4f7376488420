"""Whatever a file's header says, a verb ends with a result or with one line: never a traceback, never a part of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabuild import cli
from lorabuild.writing import write_body

LAYER = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn1_to_q"
CONVOLUTION = "lora_unet_input_blocks_4_0_in_layers_2"
HADAMARD = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
DTYPES = ["F16", "BF16", "F32", "F64", "I64", "BOOL", "F8_E4M3", "F4", "NOPE", "", 7, None]
SUFFIXES = [
    ".lora_up.weight", ".lora_down.weight", ".lora_mid.weight", ".alpha", ".dora_scale", ".diff", ".w_norm",
    ".hada_w1_a", ".hada_w1_b", ".hada_t1", ".lokr_w1", ".lokr_w1_a", ".lokr_w2", ".lora_A.weight", ".lora_B.weight", "",
]  # fmt: skip


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("<f4")


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    write_body(path, [(name, "F32", one.shape, one) for name, one in tensors.items()])
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A LoRA with three flavours, and a base that has its layers."""
    folder = tmp_path_factory.mktemp("files")
    lora = {
        f"{LAYER}.lora_up.weight": numbers(12, 4),
        f"{LAYER}.lora_down.weight": numbers(4, 8),
        f"{LAYER}.alpha": np.array(2, "<f4"),
        f"{CONVOLUTION}.lora_up.weight": numbers(6, 3, 1, 1),
        f"{CONVOLUTION}.lora_down.weight": numbers(3, 5, 3, 3),
        **{
            f"{HADAMARD}.hada_w{n}_{part}": numbers(*shape)
            for n in "12"
            for part, shape in (("a", (8, 2)), ("b", (2, 6)))
        },
    }
    base = {
        "model.diffusion_model.output_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": numbers(12, 8),
        "model.diffusion_model.input_blocks.4.0.in_layers.2.weight": numbers(6, 5, 3, 3),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": numbers(8, 6),
    }
    return write(folder / "lora.safetensors", lora), write(folder / "base.safetensors", base)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, Any, Any]]:
    """What is done to a header: (what, which tensor, how)."""
    one = st.one_of(
        st.tuples(st.just("dtype"), st.integers(0, 9), st.sampled_from(DTYPES)),
        st.tuples(
            st.just("shape"), st.integers(0, 9), st.lists(st.integers(-2, 2**40) | st.integers(0, 12), max_size=5)
        ),
        st.tuples(st.just("offsets"), st.integers(0, 9), st.lists(st.integers(-8, 2000) | st.just(2**62), max_size=3)),
        st.tuples(st.just("rename"), st.integers(0, 9), st.sampled_from(SUFFIXES)),
        st.tuples(st.just("swap"), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("drop"), st.integers(0, 9), st.none()),
        st.tuples(st.just("reshape"), st.integers(0, 9), st.permutations([0, 1, 2, 3])),
        st.tuples(
            st.just("metadata"), st.integers(0, 9), st.sampled_from([None, 1, [], {"a": 1}, {"a": "b\x00\x1b[31m"}])
        ),
    )
    return draw(st.lists(one, min_size=1, max_size=3))


def changed(header: dict[str, Any], todo: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    for what, number, how in todo:
        names = [name for name in header if name != "__metadata__"]
        if not names:
            break
        name = names[number % len(names)]
        entry = header[name]
        if what == "dtype":
            entry["dtype"] = how
        elif what == "shape":
            entry["shape"] = how
        elif what == "offsets":
            entry["data_offsets"] = how
        elif what == "rename":
            header[name.split(".")[0] + how] = header.pop(name)
        elif what == "swap":
            other = names[how % len(names)]
            header[name], header[other] = header[other], header[name]
        elif what == "drop":
            del header[name]
        elif what == "reshape":
            entry["shape"] = [entry["shape"][i] for i in how if i < len(entry["shape"])]
        else:
            header["__metadata__"] = how
    return header


def verbs(lora: Path, base: Path, out: Path) -> list[list[str]]:
    return [
        ["chop", str(lora), "--keep", "TE,OUT01", "-o", str(out)],
        ["chop", str(lora), "--weights", "TE=0.5,INP04=0.5,OUT01=-2", "-o", str(out)],
        ["resize", str(lora), "--base", str(base), "-r", "spn_lora=1,thr=-0.3", "-o", str(out)],
        ["resize", str(lora), "--base", str(base), "-r", "fro_lora=1,size=0.002", "-o", str(out)],
        ["merge", f"{lora}:0.5", f"{lora}:0.25", "-o", str(out)],
        ["blocks", str(lora)],
        ["show", str(lora)],
    ]


def check(lora: Path, base: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> set[int]:
    codes = set()
    for args in verbs(lora, base, folder / "out.safetensors"):
        code = cli._main(args)
        said = capsys.readouterr()
        assert code in (0, 1, 2), (args, said)
        if code:
            assert said.err.strip() and len(said.err.strip().splitlines()) == 1, (args, said.err)
            left = [path.name for path in folder.iterdir() if path != lora]
            assert left == [], (args, left)
        (folder / "out.safetensors").unlink(missing_ok=True)
        codes.add(code)
    return codes


def test_the_file_as_it_is_serves_all_verbs(files, tmp_path: Path, capsys):
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(files[0].read_bytes())
    assert check(lora, files[1], tmp_path, capsys) == {0}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(todo=changes())
def test_a_changed_header_is_a_result_or_one_line(files, tmp_path_factory, capsys, todo):
    folder = tmp_path_factory.mktemp("one")
    header, body = parts(files[0])
    text = json.dumps(changed(header, todo)).encode()
    (folder / "lora.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    check(folder / "lora.safetensors", files[1], folder, capsys)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1700), value=st.integers(0, 255), length=st.integers(0, 4000))
def test_changed_bytes_and_shorter_files_are_a_result_or_one_line(
    files, tmp_path_factory, capsys, place, value, length
):
    folder = tmp_path_factory.mktemp("one")
    data = bytearray(files[0].read_bytes())
    data[place % len(data)] = value
    (folder / "lora.safetensors").write_bytes(data[: max(length, len(data) - 2000)])
    check(folder / "lora.safetensors", files[1], folder, capsys)
