"""One training step of kohya's trainer, reproduced through our own text, name and objective code."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lorabuild.lora.keymap import to_sgm
from lorabuild.nn.batches import MicroBatch
from lorabuild.nn.objective import Objective, alphas_cumprod
from lorabuild.nn.text import PAD2, TOKENS, encode, size_ids, tokenise

GOLDEN = Path(__file__).parent / "goldens/training_step.npz"
END = 49407


def formula(name: str, parameter: Tensor) -> Tensor:
    """The weights of the recorded run: a rule, so that they need not be stored."""
    if name.endswith("bias"):
        return torch.zeros_like(parameter)
    if parameter.dim() == 1:
        return torch.ones_like(parameter)
    scale = 0.3 if "embedding" in name else 0.7 / parameter[0].numel() ** 0.5
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) * scale


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def clip(cls, prefix: str, width: int, layers: int, activation: str):
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width, "num_attention_heads": 4}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}  # as in SDXL's own, wrong, configuration
    model = cls(CLIPTextConfig(**shape, **ids, num_hidden_layers=layers, hidden_act=activation)).eval()
    for name, parameter in model.named_parameters():
        file_name = name if name.startswith("text_") else f"text_model.{name}"
        parameter.data = formula(f"{prefix}.{file_name}", parameter)
    return model


def unet() -> UNet2DConditionModel:
    model = UNet2DConditionModel(
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        attention_head_dim=[2, 4, 8],
        block_out_channels=[32, 64, 128],
        cross_attention_dim=112,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=2,
        projection_class_embeddings_input_dim=1600,
        time_embedding_dim=64,
        transformer_layers_per_block=[1, 1, 1],
        use_linear_projection=True,
    )
    for name, parameter in model.eval().named_parameters():
        parameter.data = formula(f"unet.{to_sgm(name)}", parameter)
    return model


@torch.no_grad()
def test_text_conditioning_is_the_peers(golden: dict[str, Tensor]):
    te1 = clip(CLIPTextModel, "te1", 48, 12, "quick_gelu")
    te2 = clip(CLIPTextModelWithProjection, "te2", 64, 4, "gelu")
    hidden, pooled = encode(te1, te2, golden["ids1"].long(), golden["ids2"].long(), END)
    torch.testing.assert_close(hidden, torch.cat([golden["hs1"], golden["hs2"]], 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled, golden["pool2"], rtol=0, atol=1e-6)


@torch.no_grad()
def test_noise_prediction_and_loss_are_the_peers(golden: dict[str, Tensor]):
    """By the peer's text conditioning; the sizes are given as data sets have them, width first."""
    sizes = size_ids(*(golden[name].flip(1).tolist() for name in ("original_hw", "crop_top_left", "target_hw")))
    batch = MicroBatch(golden["latents_scaled"], golden["noise"], golden["timesteps"].long(), [], sizes)
    objective = Objective.of({})
    noisy, target = objective.noisy(batch)
    hidden = torch.cat([golden["hs1"], golden["hs2"]], 2)
    conditions = {"text_embeds": golden["pool2"], "time_ids": sizes}
    prediction = unet()(noisy, golden["timesteps"], hidden, added_cond_kwargs=conditions).sample
    # Equal to the bit where it was recorded (a kind of processor, two threads). Float32 itself errs as much as is allowed
    # here: the record is 1.7e-6 at most, 4.5e-7 on average, from what float64 gives.
    error = prediction - golden["noise_pred"]
    assert error.square().mean().sqrt() < 1e-6
    assert error.abs().max() < 3e-6
    losses = objective.losses(prediction, target, batch)
    assert losses.shape == (2,)
    assert losses.mean().item() == pytest.approx(golden["loss"].item(), abs=1e-6)


def test_the_noise_schedule_is_ddpms():
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    torch.testing.assert_close(alphas_cumprod(), scheduler.alphas_cumprod, rtol=0, atol=0)


class Words:
    """A tokenizer that has a token for every letter."""

    eos_token_id = 99

    def __call__(self, captions: list[str], truncation: bool, max_length: int):
        assert truncation
        return SimpleNamespace(input_ids=[[98, *map(ord, text[: max_length - 2]), 99] for text in captions])


def test_the_first_tokenizer_pads_with_its_end_and_the_second_with_id_0():
    ids1, ids2 = tokenise(Words(), Words(), ["!", "a" * 200])
    assert ids1.shape == ids2.shape == (2, TOKENS)
    assert ids1[0].tolist() == [98, 33, 99] + [99] * 74
    assert ids2[0].tolist() == [98, 33, 99] + [PAD2] * 74
    assert ids1[1].tolist() == ids2[1].tolist() == [98] + [97] * 75 + [99]


def test_sizes_are_heights_first_and_crops_top_first():
    assert size_ids([(160, 120)], [(3, 16)], [(128, 96)]).tolist() == [[120, 160, 16, 3, 96, 128]]
