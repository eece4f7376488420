"""The benchmark of a real SDXL runs from end to end at tiny widths, and counts and writes what SDXL has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench_sdxl import main
from sdxl.checkpoint import sgm_tensors
from sdxl.counting import step_flops
from sdxl.inputs import repository, write_tokenizers
from sdxl.models import FULL, TINY, random_base, random_vae, unet_config
from sdxl.ours import Measured
from sdxl.peer import Timed, arguments
from sdxl.report import MEMORY_RATIO, RATIO, report, table
from sdxl_shapes import UNET, sdxl
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lorabuild.nn.base import Base, load_tokenizers
from lorabuild.nn.text import tokenise


def prepared(execution=()):
    """What the peer's command line is made of."""
    from sdxl.inputs import Prepared

    recipe = {
        "network_dim": 8,
        "network_args": {"algo": "locon", "conv_dim": 256},
        "optimizer_type": "ClybW",
        "optimizer_args": {"betas": [0.95, 0.95]},
        "lr_scheduler_args": {"num_cycles": 0.375},
        "train_batch_size": 8,
        "gradient_accumulation_steps": 6,
        "max_train_steps": 80,
        "mixed_precision": "bf16",
        "noise_offset": None,
    }
    settings = {"flip_aug": True, "shuffle_caption": False, "keep_tokens": 1, "bucket_reso_steps": 32}
    dataset = {"settings": settings, "images": [{"bucket": [1024, 768]}]}
    return Prepared(recipe, dict(execution), dataset, {}, Path("pictures"), 192, 24.0)


@pytest.fixture(scope="module")
def full() -> Base:
    """SDXL, without memory."""
    return random_base(FULL, torch.float32, "meta")


def test_the_checkpoint_has_every_tensor_of_sdxl(full: Base):
    shapes, _ = sdxl()
    found = sgm_tensors(full, random_vae(FULL, "meta"))
    assert {name: tuple(tensor.shape) for name, tensor in found} == shapes


def test_full_widths_are_sdxls():
    assert unet_config(FULL) == UNET


def test_a_forward_pass_takes_what_is_known_of_sdxl(full: Base):
    """2.99 million million multiplications at 1024 × 1024, attention's own products aside."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        conditions = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        full.unet(torch.zeros(1, 4, 128, 128), torch.zeros(1), torch.zeros(1, 77, 2048), added_cond_kwargs=conditions)
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    assert (sum(counts.values()) - counts["aten.bmm"]) / 2e12 == pytest.approx(2.99, abs=0.01)


def test_the_recipe_is_read_by_the_manifests_own_code(tmp_path: Path):
    found = repository(tmp_path, ["schnell", "tiny"], {"train_batch_size": 3}, {"resolution": [64, 64]}, least=4)
    settings = found.projects["bench"].settings
    assert settings["recipe"]["optimizer_type"] == "ClybW"
    assert settings["recipe"]["train_batch_size"] == 3
    assert settings["dataset"]["resolution"] == [64, 64]
    assert len(list((tmp_path / "projects/bench/images/1_bench").glob("*.png"))) == 6  # whole batches


def test_the_tokenizers_have_clips_size(tmp_path: Path):
    first, second = load_tokenizers(write_tokenizers(tmp_path))
    assert len(first) == len(second) == 49_408
    assert first.eos_token_id == 49_407
    ids, _ = tokenise(first, second, ["ember, red fox"])
    assert first.decode(ids[0]).startswith("<|startoftext|>ember , red fox")


def test_the_peer_gets_the_recipe():
    words = arguments(prepared({"gradient_checkpointing": True}.items()), Path("base.safetensors"), Path("work"), 7)
    for word in (
        "--network_dim=8", "algo=locon", "conv_dim=256", "betas=[0.95, 0.95]", "num_cycles=0.375", "--flip_aug",
        "--train_batch_size=8", "--gradient_accumulation_steps=6", "--max_train_steps=7", "--resolution=1024,768",
        "--optimizer_type=lorabuild.nn.clybw.ClybW", "--gradient_checkpointing", "--mixed_precision=bf16",
    ):  # fmt: skip
        assert word in words
    assert not [word for word in words if word.startswith(("--noise_offset", "--shuffle_caption"))]
    assert "--gradient_checkpointing" not in arguments(prepared(), Path("b"), Path("w"), 7)


def test_the_figures_follow_from_what_was_measured():
    memory = {"allocated": 40.0, "reserved": 50.0}
    ours = Measured(images=48, update_s=2.0, outside_s=0.1, first_s=30.0, updates=[2.0], memory=memory)
    peer = Timed(48, 4.0, 40.0, [4.0], {"allocated": 80.0, "reserved": 100.0}, {"torch": "2.13.0"})
    found = report(ours, prepared(), (int(100e12), int(20e12)), 720e12, int(6e9), {}, peer, "SDXL")
    assert found["utilisation"] == pytest.approx(6 * 120e12 / 2.0 / 720e12)
    assert found["utilisation, base alone"] == pytest.approx(6 * 100e12 / 2.0 / 720e12)
    assert found["the whole recipe, s"] == pytest.approx(30 + 79 * 2)
    assert found["latents a second"] == 8
    assert found[RATIO] == 2
    assert found[MEMORY_RATIO] == {"allocated": 0.5, "reserved": 0.5}
    rows = table(found).splitlines()
    assert "| images a second | 24 | 12 |  |  |" in rows
    assert "| peak memory, reserved | 50.00 GB | 100.00 GB | 0.50 |  |" in rows
    assert "| the whole recipe | 3 min 08 s | 5 min 56 s |  | < 4 min |" in rows
    assert "| utilisation | 50.0% |  |  | ≥ 45 % |" in rows
    alone = report(ours, prepared(), (int(100e12), int(20e12)), 720e12, int(6e9), {}, None, "SDXL")
    assert "| images a second | 24 |  |" in table(alone).splitlines()
    tiny = report(ours, prepared(), (int(100e12), int(20e12)), 720e12, int(6e9), {}, None, "tiny widths, …")
    assert "| images a second | 24 |" in table(tiny).splitlines()  # of which nothing is wanted


@pytest.mark.slow
def test_it_runs_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = tmp_path / "figures.json"
    short = ["--updates", "1", "--warm-up", "1", "--threads", "1", "--images", "4"]
    main(["--tiny", *short, "--work", str(tmp_path), "--json", str(figures)])
    found = json.loads(figures.read_text())
    assert found["images an update"] == 4
    assert 0 < found["outside forward and backward, s"] < found["update, s"]
    assert found["updates of the recipe"] == 12
    assert min(found[key] for key in ("utilisation", "latents a second", "measured peak, TFLOP/s")) > 0
    assert "| images a second |" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [figures]
    # Its products were counted with numbers, those of full widths are counted without.
    settings = {"network_dim": 8, "network_alpha": 4, "network_args": {"algo": "locon", "conv_dim": 8}, "seed": 42}
    base, adapter = step_flops(TINY, settings, ("te1", "te2", "unet"), 2, 128, "meta")
    assert found["TFLOP an update, base"] == pytest.approx(2 * base / 1e12)
    assert found["TFLOP an update, adapter"] == pytest.approx(2 * adapter / 1e12)


def test_what_cannot_be_is_one_line(tmp_path: Path):
    def said(*options: str) -> str:
        with pytest.raises(SystemExit) as end:
            main([*options, "--threads", "1", "--work", str(tmp_path)])
        return str(end.value)

    if not torch.cuda.is_available():
        assert "there is no GPU" in said()
        assert "there is no GPU" in said("--tiny", "--limit-gb", "8")
    assert 'did you mean "ClybW"' in said("--tiny", "--optimizer", "ClibW")
    assert "no-such" in said("--tiny", "--recipe", "no-such")
