"""What a training takes of a device is said before it starts, and what would make it fit; held to what is reckoned."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_memory
import pytest
import torch
from sdxl_shapes import UNET

from lorabuild import memory
from lorabuild.bases.layout import stored_bytes
from lorabuild.checks.outputs import memory_findings
from lorabuild.errors import JobError
from lorabuild.nn import room, warm
from lorabuild.nn.optimizers import make
from lorabuild.training.memory import CONTEXT, MOMENTS, STATES, Model, needs, remedy, said
from lorabuild.training.optimizers import OPTIMIZERS

ROWS = [json.loads(line) for line in (Path(__file__).parent / "goldens/memory.jsonl").read_text().splitlines()]
SDXL = Model({"unet": 2_567_463_684, "te1": 123_060_480, "te2": 694_659_840}, 320, 46_341_120, 0)
SQUARE = 1024 * 1024


def recipe(**changes: Any) -> dict[str, Any]:
    return {**bench_memory.PLAIN, **changes}


@pytest.mark.parametrize("row", ROWS, ids=[row["row"] for row in ROWS])
def test_the_estimate_is_within_a_tenth_of_what_is_reckoned(row: dict[str, Any]):
    """By more than too much it would turn away what fits, by too little it would be no warning."""
    guess = bench_memory.estimated(row["settings"], Model(**row["model"])) / 1e9
    assert 0.95 * row["GB"] <= guess <= 1.10 * row["GB"]


def test_the_recipe_for_8_gb_leaves_room_for_cuda_on_a_card_of_8_gb():
    (row,) = [row for row in ROWS if row["row"] == "recipes/8gb.toml"]
    assert row["settings"] == bench_memory.recipe("8gb"), "reckon it anew: bench_memory.py"
    assert row["GB"] + CONTEXT / 1e9 < 7.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recipes/8gb.toml", "schnell, checkpointing, batch 1"])
def test_the_figures_are_those_of_the_code_as_it_is(name: str):
    (row,) = [row for row in ROWS if row["row"] == name]
    found = bench_memory.reckon(row["settings"])
    assert found.peak / 1e9 == pytest.approx(row["GB"], rel=0.02)
    assert sum(found.parts.values()) == found.peak


def test_a_ledger_counts_what_is_held_in_blocks_and_tells_of_the_peak():
    ledger = bench_memory.Ledger()
    with ledger:
        ledger.made = "weights"
        kept = torch.zeros(256)  # 1,024 bytes
        ledger.made = "activations"
        gone = torch.ones(100)  # 400 bytes are a block of 512
        view = gone.view(10, 10)
        del gone
        del view
        torch.ones(1)
    found = ledger.reckoned()
    assert (found.peak, found.parts) == (1024 + 512, {"weights": 1024, "activations": 512})
    del kept


def test_a_smaller_unet_is_reckoned_by_the_same_code():
    narrow = {**UNET, "block_out_channels": [32, 64, 96], "attention_head_dim": [1, 2, 3]}
    small = {"resolution": [64, 64], "network_dim": 1, "network_args": {"algo": "ia3"}}
    found = bench_memory.reckon({**small, "gradient_checkpointing": False}, narrow)
    assert found.parts["U-Net"] == pytest.approx(2 * found.model.networks["unet"], rel=0.02)
    assert found.parts["adapter"] >= 4 * found.model.parameters


def test_the_line_names_the_parts_the_largest_first():
    line = said({"U-Net": 5_100_000_000, "adapter": 20_000_000, "activations": 5_300_000_000}, 22_000_000_000)
    assert line == "needs about 10.4 GB of device memory (activations 5.3, U-Net 5.1); 22.0 GB are free"


def test_checkpointing_comes_first_then_the_batch_then_the_optimizer():
    large = recipe(train_batch_size=8, gradient_checkpointing=False, text_encoder_lr=1e-4)
    assert remedy(large, SDXL, SQUARE, 24 * 10**9) == "it would fit with gradient_checkpointing = true"
    told = remedy(large, SDXL, SQUARE, 10 * 10**9)
    assert told == (
        "it would fit with gradient_checkpointing = true, train_batch_size = 1, gradient_accumulation_steps = 8"
    )
    tight = remedy(large, SDXL, SQUARE, 75 * 10**8)
    assert "text_encoder_lr = 0" in tight and "gradient_checkpointing = true" in tight
    assert "no key" in remedy(large, SDXL, SQUARE, 4 * 10**9)
    everything = recipe(mixed_precision="no", gradient_checkpointing=False)
    assert 'mixed_precision = "bf16"' in remedy(everything, SDXL, SQUARE, 8 * 10**9)


def test_frozen_encoders_take_nothing_and_one_of_two_that_learns_takes_both():
    assert "text encoders" not in needs(recipe(text_encoder_lr=[0, 0]), SDXL, SQUARE)
    assert "text encoders" in needs(recipe(text_encoder_lr=[0, 1e-4]), SDXL, SQUARE)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if OPTIMIZERS[name].extra != "bitsandbytes"])
def test_what_an_optimizer_keeps_is_what_is_reckoned(name: str):
    parameter = torch.nn.Parameter(torch.ones(256, 256))
    parameter.grad = torch.full_like(parameter, 1e-3)
    arguments = {"Adafactor": {"relative_step": False, "scale_parameter": False}, "SGDNesterov": {"momentum": 0.9}}
    groups = [{"params": [parameter], "name": "unet", "lr": 1e-3}]
    try:
        optimizer = make({"optimizer_type": name, "optimizer_args": arguments.get(name, {})}, groups)
    except JobError as error:
        pytest.skip(str(error))
    optimizer.step()
    kept = [one for state in optimizer.state.values() for one in state.values() if isinstance(one, torch.Tensor)]
    bytes_each = sum(one.numel() * one.element_size() for one in kept) / parameter.numel()
    assert bytes_each <= STATES.get(name, MOMENTS) + 0.01
    assert bytes_each >= STATES.get(name, MOMENTS) - 1


def a_room(free: int, **changes: Any) -> room.Room:
    return room.Room(recipe(**changes), SQUARE, free, SDXL)


def test_a_training_that_fits_says_what_it_needs_and_nothing_else():
    found = a_room(22 * 10**9)
    assert found.line.startswith("needs about 7") and found.line.endswith("22.0 GB are free") and not found.short


def test_a_training_that_does_not_fit_names_the_keys():
    found = a_room(10 * 10**9, gradient_checkpointing=False)
    assert "it would fit with gradient_checkpointing = true" in found.short


def test_memory_that_runs_out_after_all_is_one_line():
    with pytest.raises(JobError) as caught, a_room(22 * 10**9, train_batch_size=4).watched():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
    assert str(caught.value) == (
        "the device is out of memory: CUDA out of memory. Tried to allocate 2 GiB.; "
        "it would fit with train_batch_size = 2, gradient_accumulation_steps = 2"
    )


def test_of_a_small_base_nothing_is_said(tmp_path: Path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"0" * 100)
    found = room.room_of(recipe(), tmp_path, SQUARE, "cpu")
    assert found.line == found.short == ""


def test_what_a_base_takes_is_never_a_failure_by_itself(tmp_path: Path):
    """Whatever is wrong with it is told by who loads it."""
    (tmp_path / "broken.safetensors").write_bytes(b"0" * 100)
    places = (tmp_path, tmp_path / "broken.safetensors", tmp_path / "gone.safetensors")
    assert [stored_bytes(place, "unet") for place in places] == [0, 0, 0]


def test_on_a_cpu_what_is_kept_warm_counts_as_free(monkeypatch: pytest.MonkeyPatch):
    """The next training on the same base needs no second one."""
    monkeypatch.setattr(room, "available_bytes", lambda: 5000)
    monkeypatch.setattr(warm, "_warm", {"unet": (("digest", torch.float32), torch.nn.Linear(2, 2))})
    assert room.free_bytes("cpu") == 5000 + 4 * (4 + 2)
    monkeypatch.setattr(room, "available_bytes", lambda: None)
    assert room.free_bytes("cpu") is None


def test_check_tells_of_a_card_that_is_too_small():
    need = needs(recipe(), SDXL, SQUARE)
    (one,) = memory_findings(need, 7 * 10**9, "help", "a.toml", 3)
    assert one.code == "LB077" and "the card has 7.0 GB: help" in one.message and one.line == 3
    assert not list(memory_findings(need, 12 * 10**9, "", "a.toml", 3))
    assert not list(memory_findings(need, None, "", "a.toml", 3)), "without a card there is nothing to say"


def test_the_drivers_tool_says_what_the_smallest_card_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory.shutil, "which", lambda name: name)
    monkeypatch.setattr(memory.subprocess, "run", lambda *args, **said: SimpleNamespace(stdout="24576\n8192\n"))
    assert memory.card_bytes() == 8 * 2**30
    monkeypatch.setattr(memory.subprocess, "run", lambda *args, **said: SimpleNamespace(stdout="[N/A]\n"))
    assert memory.card_bytes() is None


class Elsewhere:
    """A network that says where it is."""

    def __init__(self, device: str):
        self.device = torch.device(device)

    def to(self, device: str) -> None:
        self.device = torch.device(device)


def test_what_a_job_does_not_work_with_leaves_the_device_and_stays_warm(monkeypatch: pytest.MonkeyPatch):
    kept = {name: (("digest", torch.float32), Elsewhere("meta")) for name in ("unet", "te1", "vae")}
    monkeypatch.setattr(warm, "_warm", kept)
    warm.aside(("unet", "te1"))
    assert {name: network.device.type for name, (_, network) in kept.items()} == {
        "unet": "meta", "te1": "meta", "vae": "cpu",
    }  # fmt: skip
