"""`lorabuild blocks` tells what each block of a file holds and adds, and its strings keep that file as it is."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_lab import GOLDENS, deltas, layer, read, write_lora
from torch import Tensor

from lorabuild.errors import UserError
from lorabuild.lora.sdxl_names import text_layers
from lorabuild.names import BLOCKS, TEXT_ENCODERS, UNET_BLOCKS, block_of
from lorabuild.vectors import ATTENTION_BLOCKS, vector_strings
from lorabuild.verbs import chop
from lorabuild.verbs.blocks import main

LOCON = GOLDENS / "locon.safetensors"
KEYMAP = Path(__file__).parent / "goldens/unet_keymap.tsv"
# Tensors of each block of an SDXL LoCon of preset "full": the U-Net's as the guide for chop_blocks lists them.
GUIDE = dict(
    zip(UNET_BLOCKS[1:], (9, 9, 3, 78, 75, 3, 318, 315, 9, 306, 9, 318, 318, 321, 78, 78, 81, 12, 12, 12), strict=True)
)
FULL = {**GUIDE, "TE1": 216, "TE2": 576}

NAMES = {
    "INP": "lora_unet_input_blocks_{}_0_x",
    "MID": "lora_unet_middle_block_{}_x",
    "OUT": "lora_unet_output_blocks_{}_0_x",
}
MODULE = {block: NAMES[block[:3]].format(int(block[3:])) for block in UNET_BLOCKS} | {
    te: f"lora_{te.lower()}_x" for te in TEXT_ENCODERS
}


def blocks(*args: str | Path) -> None:
    assert main([str(arg) for arg in args]) == 0


def told(capsys, *args: str | Path) -> dict:
    """What --json prints; the rows by block."""
    blocks(*args, "--json")
    found = json.loads(capsys.readouterr().out)
    return {**found, "blocks": {row["block"]: row for row in found["blocks"]}}


def refused(*args: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        main([str(arg) for arg in args])
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    return str(caught.value)


def of_blocks(*names: str) -> dict[str, Tensor]:
    return {
        key: one for seed, block in enumerate(names) for key, one in layer(MODULE[block], 4, 2, 4, seed=seed).items()
    }


def seeded(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {role: torch.randn(shape, generator=random, dtype=torch.float64) for role, shape in shapes.items()}


def test_a_full_sdxl_locon_has_the_tensors_of_the_guides_table(tmp_path: Path, capsys):
    unet = [line.split("\t")[0] for line in KEYMAP.read_text().splitlines() if line.endswith("\tadapted")]
    text = [f"lora_te{n}_" + path.replace(".", "_") for n in (1, 2) for path in text_layers(n)]
    assert len(unet + text) == 1052
    ends = {"lora_up.weight": torch.ones(2, 1), "lora_down.weight": torch.ones(1, 3), "alpha": torch.tensor(1.0)}
    path = write_lora(
        tmp_path / "in.safetensors", {f"{name}.{end}": one for name in unet + text for end, one in ends.items()}
    )
    found = told(capsys, path)
    assert {block: row["tensors"] for block, row in found["blocks"].items()} == FULL
    assert list(found["blocks"]) == list(FULL), "in the network's order"
    assert all(
        row["modules"] * 3 == row["tensors"] and row["bytes"] == row["modules"] * 12 for row in found["blocks"].values()
    )
    assert all(row["share"] == pytest.approx(row["modules"] / 1052) for row in found["blocks"].values())
    assert found["keep"] == ",".join(["TE", *GUIDE])
    assert (found["inspire"], found["lbw20"]) == (",".join("1" * 21), "1,0" + ",1" * 18)


def test_ranks_bytes_and_shares_are_those_of_the_dense_weights(capsys):
    found = told(capsys, LOCON)["blocks"]
    squares = {name: delta.square().sum().item() for name, delta in deltas(LOCON).items()}
    tensors = read(LOCON)
    assert list(found) == [block for block in BLOCKS if block in {block_of(name) for name in squares}]
    for block, row in found.items():
        own = {key: one for key, one in tensors.items() if block_of(key) == block}
        ranks = sorted(len(one) for key, one in own.items() if "lora_down" in key)
        assert row["tensors"] == len(own) and row["modules"] == len({key.partition(".")[0] for key in own})
        assert row["bytes"] == sum(one.nbytes for one in own.values())
        assert (row["rank_median"], row["rank_max"]) == (np.median(ranks), max(ranks))
        share = sum(square for name, square in squares.items() if block_of(name) == block) / sum(squares.values())
        assert row["share"] == pytest.approx(share, rel=1e-5)


def flavours() -> dict[str, tuple[dict[str, Tensor], Tensor | None, int | None]]:
    """Block -> tensors of its only layer, what it adds by the naive formula, its rank."""
    lora = seeded(1, up=(8, 3, 1, 1), down=(3, 6, 3, 3))
    tucker = seeded(2, up=(8, 3, 1, 1), mid=(3, 2, 3, 3), down=(2, 6, 1, 1))
    loha = seeded(3, hada_w1_a=(8, 2), hada_w1_b=(2, 6), hada_w2_a=(8, 2), hada_w2_b=(2, 6))
    both = seeded(
        4,
        hada_w1_a=(5, 8),
        hada_w1_b=(5, 6),
        hada_w2_a=(5, 8),
        hada_w2_b=(5, 6),
        hada_t1=(5, 5, 3, 3),
        hada_t2=(5, 5, 3, 3),
    )
    lokr = seeded(5, lokr_w1=(2, 3), lokr_w2_a=(4, 2), lokr_w2_b=(2, 2))
    core = seeded(6, lokr_w1_a=(2, 1), lokr_w1_b=(1, 3), lokr_t2=(2, 2, 3, 3), lokr_w2_a=(2, 4), lokr_w2_b=(2, 2))
    whole = seeded(7, lokr_w1=(2, 3), lokr_w2=(4, 2))
    full = seeded(8, diff=(8, 6, 3, 3), diff_b=(8,))
    norm = seeded(9, w_norm=(8,), b_norm=(8,))
    hada = [
        torch.einsum("ijkl,ip,jr->prkl", both[f"hada_t{n}"], both[f"hada_w{n}_a"], both[f"hada_w{n}_b"]) for n in (1, 2)
    ]
    w2 = torch.einsum("ijkl,ip,jr->prkl", core["lokr_t2"], core["lokr_w2_a"], core["lokr_w2_b"])
    w1 = core["lokr_w1_a"] @ core["lokr_w1_b"]
    return {
        "INP01": (lora, torch.einsum("orxy,rikl->oikl", lora["up"], lora["down"]), 3),
        "INP02": (tucker, torch.einsum("orxy,rskl,siab->oikl", tucker["up"], tucker["mid"], tucker["down"]), 2),
        "INP03": (loha, (loha["hada_w1_a"] @ loha["hada_w1_b"]) * (loha["hada_w2_a"] @ loha["hada_w2_b"]), 2),
        "INP04": (both, hada[0] * hada[1], 5),
        "INP05": (lokr, torch.kron(lokr["lokr_w1"], lokr["lokr_w2_a"] @ lokr["lokr_w2_b"]), 2),
        "INP06": (core, torch.einsum("ab,cdkl->acbdkl", w1, w2), 2),
        "INP07": (whole, torch.kron(whole["lokr_w1"], whole["lokr_w2"]), None),
        "INP08": (full, full["diff"], None),
        "MID00": (norm, None, None),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [None, 5.0])
def test_every_flavour_is_measured(tmp_path: Path, dtype: torch.dtype, alpha: float | None, capsys):
    tensors, squares, ranks = {}, {}, {}
    lora = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}
    for block, (roles, dense, rank) in flavours().items():
        tensors |= {f"{MODULE[block]}.{lora.get(role, role)}": one for role, one in roles.items()}
        if alpha and rank:
            tensors[f"{MODULE[block]}.alpha"] = torch.tensor(alpha)
        scale = alpha / rank if alpha and rank else 1.0
        squares[block], ranks[block] = None if dense is None else (scale * dense).square().sum().item(), rank
    found = told(capsys, write_lora(tmp_path / "in.safetensors", tensors, dtype))["blocks"]
    total = sum(filter(None, squares.values()))
    for block, row in found.items():
        assert (row["rank_median"], row["rank_max"]) == (ranks[block], ranks[block])
        share = squares[block] and pytest.approx(squares[block] / total, rel=0.1 if dtype == torch.bfloat16 else 1e-5)
        assert row["share"] == share, block


def test_the_table_reads_well(tmp_path: Path, capsys):
    tensors = of_blocks("OUT01", "TE2") | layer("lora_unet_time_embed_0", 400, 4, 4, seed=7)
    tensors |= layer("lora_unet_output_blocks_1_1_y", 4, 3, 4) | {f"{MODULE['INP04']}.diff_b": torch.ones(3)}
    path = write_lora(tmp_path / "a b.safetensors", tensors)
    shares = told(capsys, path)["blocks"]
    blocks(path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [str(path), ""]
    percent = [f"{shares[block]['share']:>6.1%}" for block in ("OUT01", "TE2", None)]
    assert lines[2:8] == [
        "block     modules  tensors  bytes  rank median  rank max   share",
        "INP04           1        1      6            -         -       -",
        f"OUT01           2        6     84          2.5         3  {percent[0]}",
        f"TE2             1        3     34            2         2  {percent[1]}",
        f"no block        1        3  3,234            4         4  {percent[2]}",
        "total           5       13  3,358          2.5         4  100.0%",
    ]
    assert lines[8] == lines[13] == ""
    assert [line[:12].rstrip() for line in lines[9:13]] == ["keep list", "Inspire 21", "LBW 20", "LBW 12"]
    assert lines[14:] == [
        "Vectors name blocks by their place in the full network; Inspire-Pack's node counts only blocks that a file has: "
        "paste them for the unchopped file."
    ]


FILES: Mapping[str, tuple[str, ...]] = {
    "all": BLOCKS,
    "LyCORIS": BLOCKS[1:],
    "attention": (*ATTENTION_BLOCKS, *TEXT_ENCODERS),
    "chopped": ("OUT01", "TE1", "TE2"),
    "one text encoder": ("TE2",),
    "INP00": ("INP00", "MID02"),
    "INP01": ("INP01",),
}


@pytest.mark.parametrize("present", FILES)
def test_chop_takes_each_string_and_leaves_all_tensors(tmp_path: Path, present: str, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tensors = of_blocks(*FILES[present]) | layer("lora_unet_time_embed_0", 4, 2, 4)
    path = write_lora(Path("it's.safetensors"), tensors)
    found = told(capsys, path)
    assert {key: found[key] for key in ("keep", "inspire", "lbw20", "lbw12")} == vector_strings(FILES[present])
    blocks(path)
    commands = [shlex.split(line)[2:] for line in capsys.readouterr().out.splitlines() if " lorabuild chop " in line]
    titles = ["keep list", f"Inspire {22 if 'INP00' in FILES[present] else 21}", "LBW 20", "LBW 12"]
    assert len(commands) == len(titles)
    before = read(path)
    for title, words in zip(titles, commands, strict=True):
        assert words[:2] == ["lorabuild", "chop"], title
        assert chop.main(words[2:]) == 0
        after = read(Path("OUT.safetensors"))
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before), title
    assert capsys.readouterr().err == ""


def test_a_file_without_blocks_has_no_strings(tmp_path: Path, capsys):
    path = write_lora(tmp_path / "in.safetensors", layer("lora_unet_time_embed_0", 4, 2, 4))
    found = told(capsys, path)
    assert [found[key] for key in ("keep", "inspire", "lbw20", "lbw12")] == [None] * 4
    assert found["blocks"].keys() == {None} and found["blocks"][None]["share"] == 1
    blocks(path)
    out = capsys.readouterr().out
    assert out.endswith("\n\nIt has no block that a vector could name.\n") and "chop" not in out


def test_json_has_these_keys(capsys):
    blocks(LOCON, "--json")
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["file", "blocks", "keep", "inspire", "lbw20", "lbw12"] and found["file"] == str(LOCON)
    row = ["block", "modules", "tensors", "bytes", "rank_median", "rank_max", "share"]
    assert all(list(one) == row for one in found["blocks"])


def test_what_adds_nothing_has_no_shares(tmp_path: Path, capsys):
    tensors = of_blocks("OUT01", "TE1")
    zeros = {key: torch.zeros_like(one) if "lora_up" in key else one for key, one in tensors.items()}
    path = write_lora(tmp_path / "new.safetensors", zeros)
    assert [row["share"] for row in told(capsys, path)["blocks"].values()] == [None, None]
    empty = told(capsys, write_lora(tmp_path / "empty.safetensors", {}))
    assert empty["blocks"] == {} and empty["keep"] is None


def test_squares_beyond_float32_are_measured_in_float64(tmp_path: Path, capsys):
    tensors = {key: one * (1 if "alpha" in key else 1e12) for key, one in of_blocks("OUT01", "TE1").items()}
    path = write_lora(tmp_path / "in.safetensors", tensors, torch.float32)
    squares = {block_of(name): delta.square().sum().item() for name, delta in deltas(path).items()}
    for block, row in told(capsys, path)["blocks"].items():
        assert row["share"] == pytest.approx(squares[block] / sum(squares.values()))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lora_down.weight": torch.ones(3, 4)}, "its tensors do not fit together"),
        ({"lora_up.weight": torch.full((4, 2), torch.nan)}, "holds NaN or infinity"),
        ({"alpha": torch.ones(2)}, "one number was expected"),
    ],
)
def test_a_broken_layer_is_named(tmp_path: Path, changed: dict[str, Tensor], said: str, capsys):
    tensors = of_blocks("OUT01") | {f"{MODULE['OUT01']}.{end}": one for end, one in changed.items()}
    path = write_lora(tmp_path / "in.safetensors", tensors)
    line = refused(path, "--json")
    assert line.startswith(f"{path}: {MODULE['OUT01']}") and said in line
    assert capsys.readouterr().out == ""


def test_a_layer_at_a_time_is_in_memory(tmp_path: Path, capsys):
    """16 layers of 2 MiB, 64 MiB in all as float32."""
    tensors = {f"lora_te2_{n}.diff": torch.ones(1024, 1024, dtype=torch.float16) for n in range(16)}
    path = write_lora(tmp_path / "in.safetensors", tensors)
    del tensors
    told(capsys, LOCON)  # imports
    tracemalloc.start()
    try:
        told(capsys, path)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


# A project's name for a file.


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    """Two projects, one of them resized, with a variant; one that has no weights yet."""
    (tmp_path / "lorabuild.toml").write_text("")
    for file in (
        "ash/ash",
        "ember/ember",
        "ember/ember-resized",
        "ember/ember-mini-resized",
        "ember/ember-mini-chopped",
    ):
        path = tmp_path / f"build/{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lora(path, layer(MODULE["OUT01"], 4, 2, 4))
    (tmp_path / "build/new").mkdir()
    (tmp_path / "projects/ember").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ember", "build/ember/ember-resized.safetensors"),
        ("ember@mini", "build/ember/ember-mini-resized.safetensors"),
        ("ash", "build/ash/ash.safetensors"),
        ("build/ember/ember.safetensors", "build/ember/ember.safetensors"),
    ],
)
def test_a_projects_name_stands_for_what_its_chop_reads(repository: Path, name: str, file: str, monkeypatch, capsys):
    assert told(capsys, name)["file"] == file
    if "/" not in name:
        monkeypatch.chdir(repository / "projects/ember")
        assert told(capsys, name)["file"] == f"../../{file}"


def test_a_project_that_starts_from_a_file_and_resizes_nothing_stands_for_it(repository: Path, monkeypatch, capsys):
    manifest = repository / "projects/guide/lora.toml"
    manifest.parent.mkdir()
    manifest.write_text('[project]\nbase = "tiny"\nsource = "a.safetensors"\n[variants.mini.resize]\nthr = -3\n')
    assert refused("guide") == "projects/guide/a.safetensors: no such file"
    write_lora(manifest.with_name("a.safetensors"), layer(MODULE["OUT02"], 4, 2, 4))
    assert told(capsys, "guide")["file"] == "projects/guide/a.safetensors"
    (repository / "build/guide").mkdir()  # where its chop stands
    assert told(capsys, "guide")["file"] == "projects/guide/a.safetensors"
    assert refused("guid") == 'guid: no such file or project (did you mean "guide"?)'
    assert refused("guide@mini").startswith("guide@mini: no such file or project")
    manifest.write_text("[")
    assert refused("guide") == "guide: build/guide/ holds no LoRA yet: lorabuild build guide"


def test_a_file_goes_before_a_project_of_its_name_but_a_folder_does_not(repository: Path, monkeypatch, capsys):
    write_lora(repository / "ember", layer(MODULE["TE1"], 4, 2, 4))
    assert told(capsys, "ember")["file"] == "ember"
    monkeypatch.chdir(repository / "build")
    assert told(capsys, "ember")["file"] == "ember/ember-resized.safetensors"
    (repository / "build/other").mkdir()
    monkeypatch.chdir(repository)
    assert refused("build/other") == "build/other: a folder; a .safetensors file was expected"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("embr", 'embr: no such file or project (did you mean "ember"?)'),
        ("ember@min", 'ember@min: no such file or project (did you mean "ember@mini"?)'),
        ("../build/ember", "../build/ember: no such file or project"),
        ("nothing-like-it", "nothing-like-it: no such file or project"),
        ("new", "new: build/new/ holds no LoRA yet: lorabuild build new"),
    ],
)
def test_what_is_neither_file_nor_project_is_one_line(repository: Path, name: str, said: str):
    assert refused(name) == said


def test_outside_of_a_repository_there_are_only_files(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("ember") == "ember: no such file or project"
    (tmp_path / "text.safetensors").write_text("no LoRA, but some words")
    assert "text.safetensors: not a safetensors file" in refused("text.safetensors")


def test_the_command_ends_with_its_codes_and_stdout_holds_json_alone(tmp_path: Path):
    def run(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "lorabuild", "blocks", *args], capture_output=True, text=True, cwd=tmp_path
        )

    done = run(str(LOCON), "--json")
    assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)["keep"].startswith("TE,INP01,")
    done = run("missing", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "missing: no such file or project\n")
    done = run()
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert run("--help").returncode == 0
