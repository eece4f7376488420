"""What is built loads elsewhere: in diffusers itself, and by the rules of the programs that no test can start."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_lab import deltas, read, write_lora
from pipeline import (
    COMPONENTS,
    CONV,
    CROSS,
    SELF,
    TE1,
    TE2,
    Maker,
    Tensors,
    differing,
    fused,
    of_parameters,
    toy_layers,
    toy_pipe,
    weights,
)
from safetensors.torch import save_file
from world import World

from lorabuild.header import read_header
from lorabuild.lora.loaders import Verdict, verdicts
from lorabuild.lora.modules import read_alphas
from lorabuild.lora.sdxl_names import unet_layers

ARTIFACTS = ("ember", "ember-resized", "ember-chopped")


@pytest.fixture
def pipe() -> Any:
    return toy_pipe()


@pytest.fixture
def layers() -> dict[str, tuple[str, str]]:
    return toy_layers()


def judged(path: Path) -> dict[str, Verdict]:
    header = read_header(path)
    return {one.loader: one for one in verdicts(header.tensors, header.metadata, read_alphas(path, header.tensors))}


def test_the_list_of_layers_is_diffusers(pipe: Any):
    modules = {name for name, module in pipe.unet.named_modules() if getattr(module, "weight", None) is not None}
    assert {one.diffusers for one in unet_layers()} == modules


@pytest.mark.parametrize("name", ARTIFACTS)
def test_diffusers_changes_every_layer_as_the_file_says(
    built_once: World, pipe: Any, layers: dict[str, tuple[str, str]], name: str
):
    path = built_once.root / f"build/ember/{name}.safetensors"
    of_file = deltas(path)
    parts = {part: sum(f"lora_{part}_" in one for one in of_file) for part in COMPONENTS}
    if name == "ember":
        assert parts == {"unet": 788, "te1": 72, "te2": 192}
        # SDXL reads the last hidden layer but one of its first text encoder: nothing trains the last.
        still = {one for one, delta in of_file.items() if not delta.any()}
        assert still == {one for one in of_file if one.startswith("lora_te1_text_model_encoder_layers_11_")}
    expected = of_parameters(of_file, layers)
    assert len(expected) == len(of_file) == sum(parts.values())
    before = weights(pipe)
    assert differing(before, fused(pipe, path, before), expected) == set()


def test_all_loaders_take_every_artifact(built_once: World):
    paths = sorted((built_once.root / "build").rglob("*.safetensors"))
    assert len(paths) == 5
    for path in paths:
        for name, verdict in judged(path).items():
            # The toy's text has 96 channels, not 2048: InvokeAI may not see that it is SDXL, and nothing else.
            narrow = name == "InvokeAI" and "does not recognise SDXL" in verdict.reason
            assert (verdict.loads == "yes" and verdict.note == "") or narrow, (path.name, verdict)


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")  # of peft, and all that a user hears
def test_alphas_that_vary_are_lost_in_diffusers_and_a_verdict_says_so(
    built_once: World, pipe: Any, layers: dict[str, tuple[str, str]], tmp_path: Path
):
    """Why a file of ours has one alpha. This one says the same as a part of the trained file, by everyone's formula."""
    trained = built_once.root / "build/ember/ember.safetensors"
    tensors = {
        key: one for key, one in read(trained).items() if key.startswith(("lora_te", "lora_unet_output_blocks_1_"))
    }
    names = sorted(name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha"))
    for number, name in enumerate(names):
        factor = (0.5, 1.0, 2.0, 1.0)[number % 4]  # powers of 2: exact, but for the smallest numbers of fp16
        tensors[f"{name}.alpha"] *= factor
        tensors[f"{name}.lora_up.weight"] /= factor
    varied = write_lora(tmp_path / "varied.safetensors", tensors)
    of_file, original = deltas(varied), deltas(trained)
    assert all((of_file[name] - original[name]).norm() <= 1e-3 * original[name].norm() for name in names)

    odd = names[::2]
    lost = {
        "unet": [name for name in odd if re.match("lora_unet_.*_attn[12]_", name)],
        "text_encoder": [name for name in odd if name.startswith("lora_te1_")],
        "text_encoder_2": [name for name in odd if re.match("lora_te2_.*_self_attn_", name)],
    }
    before = weights(pipe)
    wrong = differing(before, fused(pipe, varied, before), of_parameters(of_file, layers))
    expected = {layers[name] for those in lost.values() for name in those if of_file[name].any()}
    assert wrong == {(component, f"{path}.weight") for component, path in expected}
    assert len(wrong) > 100

    verdict = judged(varied)["diffusers"]
    assert verdict.loads == "partly" and verdict.unmatched == ()
    for component, total in (("unet", 106), ("text_encoder", 72), ("text_encoder_2", 192)):
        count = f"{len(lost[component])} of {total} modules of {component}"
        assert f"alpha varies, and {count} get the most common one" in verdict.reason
    assert {judged(varied)[name].loads for name in ("ComfyUI", "Forge")} == {"yes"}
    assert judged(trained)["diffusers"].loads == "yes"


# What loaders.py says of diffusers, and what diffusers does: little files, each with one change.

PROJECTION = "lora_te2_text_projection"
BASE = (CROSS, CONV)
TEXT = (TE1 + "self_attn_out_proj", TE2 + "self_attn_out_proj", TE2 + "mlp_fc1")
OUTSIDE = ("time_embed_0", "time_embed_2", "label_emb_0_0", "label_emb_0_2", "input_blocks_0_0", "out_2")
NUMBER = torch.tensor(1.0)


def without(tensors: Tensors, *keys: str) -> Tensors:
    assert set(keys) <= set(tensors)
    return {key: one for key, one in tensors.items() if key not in keys}


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {key.replace(old, new): one for key, one in tensors.items()}


TRIALS: dict[str, Callable[[Maker], Tensors]] = {
    "as it is": lambda make: make.lora(*BASE, *TEXT),
    "diffusers names": lambda make: renamed(make.lora(CONV), CONV, "lora_unet_up_blocks_2_resnets_2_conv1"),
    "mixed names": lambda make: make.lora(CROSS) | renamed(make.lora(CONV), CONV, "lora_unet_up_blocks_2_resnets_2_conv1"),
    "layers outside of blocks": lambda make: make.lora(CROSS, *(f"lora_unet_{name}" for name in OUTSIDE)),
    "an unknown layer": lambda make: make.lora(*BASE) | renamed(make.lora(CONV), CONV, "lora_unet_output_blocks_8_0_x"),
    "only an unknown layer": lambda make: renamed(make.lora(CONV), CONV, "lora_unet_output_blocks_8_0_x"),
    "an unknown layer of text": lambda make: make.lora(*TEXT) | renamed(make.lora(TE2 + "mlp_fc1"), "3_mlp", "99_mlp"),
    "an unnumbered text encoder": lambda make: make.lora(*BASE) | renamed(make.lora(TE1 + "mlp_fc1"), "te1", "te"),
    "Tucker": lambda make: make.lora(*BASE) | {f"{CONV}.lora_mid.weight": torch.ones(4, 4, 3, 3)},
    "norm": lambda make: make.lora(*BASE) | {"lora_unet_input_blocks_4_1_norm.w_norm": torch.ones(48)},
    "difference": lambda make: make.lora(*BASE) | {f"{SELF}.diff": torch.ones(64, 64)},
    "LoHa": lambda make: make.lora(*BASE) | {f"{SELF}.hada_{w}": torch.ones(4, 4) for w in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "LoKr": lambda make: make.lora(*BASE) | {f"{SELF}.lokr_{w}": torch.ones(8, 8) for w in ("w1", "w2")},
    "DoRA": lambda make: make.lora(*BASE) | {f"{CROSS}.dora_scale": torch.ones(1, 96)},
    "an alpha alone": lambda make: make.lora(*BASE) | {f"{SELF}.alpha": NUMBER},
    "an up alone": lambda make: without(make.lora(*BASE), f"{CONV}.lora_down.weight"),
    "a down alone": lambda make: without(make.lora(*BASE), f"{CONV}.lora_up.weight"),
    "no alpha": lambda make: without(make.lora(*BASE), *(f"{name}.alpha" for name in BASE)),
    "one without alpha": lambda make: without(make.lora(*BASE, SELF), f"{CONV}.alpha"),
    "an alpha of its own, convolution": lambda make: make.lora(CROSS, SELF) | make.lora(CONV, alpha=1.0),
    "an alpha of its own, attention": lambda make: make.lora(CROSS, CONV) | make.lora(SELF, alpha=1.0),
    "an alpha by component": lambda make: make.lora(CROSS, CONV) | make.lora(TE2 + "mlp_fc1", alpha=1.0),
    "ranks of their own": lambda make: make.lora(*BASE, *TEXT) | make.lora(SELF, TE2 + "mlp_fc2", rank=2),
    "text of query alone": lambda make: make.lora(TE1 + "self_attn_q_proj"),
    "text of query and mlp": lambda make: make.lora(TE1 + "self_attn_q_proj", TE1 + "mlp_fc1"),
    "text of query and out_proj": lambda make: make.lora(TE1 + "self_attn_q_proj", TE1 + "self_attn_out_proj"),
    "text projection": lambda make: make.lora(*TEXT, PROJECTION),
    "text projection alone": lambda make: make.lora(PROJECTION),
    "text projection of a rank of its own": lambda make: make.lora(*TEXT) | make.lora(PROJECTION, rank=2),
    "embeddings": lambda make: make.lora(*BASE) | {"bundle_emb.ember.string_to_param": torch.ones(2)},
    "another prefix": lambda make: make.lora(*BASE) | {"lora_prior_unet_x.alpha": NUMBER},
    "PEFT": lambda make: make.peft(*BASE, *TEXT, TE1 + "self_attn_q_proj"),
    "PEFT without unet.": lambda make: make.peft(CROSS, CONV, unet=""),
    "PEFT, its own prefix": lambda make: make.peft(CROSS, CONV, unet="base_model.model."),
    "PEFT, text of mlp": lambda make: make.peft(TE2 + "mlp_fc1"),
    "PEFT with an alpha": lambda make: make.peft(CONV) | {"unet.up_blocks.2.resnets.2.conv1.alpha": NUMBER},
    "PEFT and kohya": lambda make: make.peft(CROSS) | make.lora(CONV),
    "PEFT, an unknown layer": lambda make: make.peft(CROSS) | renamed(make.peft(CONV), "conv1", "conv9"),
    "diffusers of yesterday": lambda make: renamed(renamed(make.peft(CONV), "lora_A", "lora.down"), "lora_B", "lora.up"),
    "SGM paths": lambda make: renamed(make.peft(CONV), "unet.up_blocks.2.resnets.2.conv1", "diffusion_model.output_blocks.8.0.in_layers.2"),
}  # fmt: skip


PAIRS = (("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora.down", "lora.up"))


def sizes(tensors: Tensors) -> list[float]:
    """Norm of what each pair of the file adds, by the formula; infinite for what the formula does not know."""
    found = []
    for key, down in tensors.items():
        one, other = next((pair for pair in PAIRS if f"{pair[0]}." in key or f"{pair[1]}." in key), ("", ""))
        if not one:
            found += [] if key.endswith(".alpha") else [math.inf]
        elif one in key:
            alpha = tensors.get(key.partition(".")[0] + ".alpha", torch.tensor(down.shape[0])).item()
            up = tensors[key.replace(one, other)]
            found.append((alpha / down.shape[0] * up.double().flatten(1) @ down.double().flatten(1)).norm().item())
    return sorted(found)


def outcome(pipe: Any, path: Path) -> str:
    """What diffusers does: "no" if it raises or loads nothing; "yes" if it adds all that the file says."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        pipe.load_lora_weights(path)
        models = [getattr(pipe, attribute) for attribute in COMPONENTS.values()]
        tuned = [one for model in models for one in model.modules() if isinstance(one, BaseTunerLayer)]
        found = sorted(one.get_delta_weight(one.active_adapters[0]).double().norm().item() for one in tuned)
    except Exception:
        return "no"
    finally:
        if pipe.get_list_adapters():
            pipe.unload_lora_weights()
    if not found:
        return "no"
    return "yes" if found == pytest.approx(sizes(read(path)), rel=2e-3) else "partly"


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")
@pytest.mark.parametrize("name", TRIALS)
def test_a_verdict_of_diffusers_is_what_diffusers_does(
    pipe: Any, layers: dict[str, tuple[str, str]], tmp_path: Path, name: str
):
    path = tmp_path / "trial.safetensors"
    save_file(TRIALS[name](Maker(pipe, layers)), path)
    verdict = judged(path)["diffusers"]
    assert verdict.loads == outcome(pipe, path), verdict


@pytest.mark.parametrize(("alpha", "loads"), [(2.0, "no"), (None, "yes")])
def test_adapter_metadata_does_not_go_with_alphas(
    pipe: Any, layers: dict[str, tuple[str, str]], tmp_path: Path, alpha: float | None, loads: str
):
    path = tmp_path / "trial.safetensors"
    config = {"r": 4, "lora_alpha": 4, "target_modules": [layers[CONV][1]]}
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    save_file(Maker(pipe, layers).lora(CONV, alpha=alpha), path, metadata)
    assert judged(path)["diffusers"].loads == outcome(pipe, path) == loads
