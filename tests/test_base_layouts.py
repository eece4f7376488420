"""Every layout that people have of a base: the same networks, latents and training from each, and all of SDXL's tensors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import sgm_base
import torch
from safetensors.torch import load_file, save_file
from sdxl_base import SDXL, sdxl, sparse
from sgm_base import FILES, LEFTOVERS, METADATA, PREFIXES, sgm_names, write_sgm, write_vae
from tiny_base import outputs, tiny_folder, training
from torch import Tensor

from lorabuild.bases.family import prediction_warning
from lorabuild.bases.layout import FOLDERS
from lorabuild.components import component_digests
from lorabuild.errors import JobError
from lorabuild.lora.basefile import base_weights
from lorabuild.nn.base import Base, load_text_encoders, load_tokenizers
from lorabuild.nn.networks import architecture, load_network, meta_network
from lorabuild.nn.text import text_conditions
from lorabuild.nn.vae import encode, load_vae
from lorabuild.stages.train import STAGE as TRAIN

NETWORKS = ("unet", "te1", "te2", "vae")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def write_folder(
    folder: Path, dtype: torch.dtype | None = None, variant: str = "", shards: int = 1, old_vae: bool = False
) -> Path:
    """The tiny base in diffusers' layout: of a variant, in shards with an index, with a VAE as diffusers once named it."""
    shutil.copytree(tiny_folder(), folder)
    for component, file in FILES.items():
        path = folder / file
        tensors = {name: one.to(dtype) if dtype else one for name, one in load_file(path).items()}
        if old_vae and component == "vae":
            tensors = {_old(name): one for name, one in tensors.items()}
        path.unlink()
        stem, dot = path.name.removesuffix(".safetensors"), f".{variant}" if variant else ""
        if shards == 1:
            save_file(tensors, path.with_name(f"{stem}{dot}.safetensors"))
            continue
        names = [f"{stem}{dot}-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
        where = {name: names[number % shards] for number, name in enumerate(sorted(tensors))}
        for name in names:
            save_file({key: tensors[key] for key in where if where[key] == name}, path.with_name(name))
        index = json.dumps({"metadata": {"total_size": 0}, "weight_map": where})
        path.with_name(f"{stem}.safetensors.index{dot}.json").write_text(index)
    return folder


def _old(name: str) -> str:
    for new, old in {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}.items():
        name = name.replace(new, old)
    return name


LAYOUTS: dict[str, Callable[[Path, torch.dtype], Path]] = {
    "single file": lambda path, dtype: write_sgm(path / "base.safetensors", dtype),
    "single file with leftovers": lambda path, dtype: write_sgm(path / "base.safetensors", dtype, LEFTOVERS),
    "single file without its VAE": lambda path, dtype: write_sgm(path / "base.safetensors", dtype, vae=False),
    "folder": lambda path, dtype: write_folder(path / "base", dtype),
    "folder of a variant": lambda path, dtype: write_folder(path / "base", dtype, "fp16"),
    "folder in shards": lambda path, dtype: write_folder(path / "base", dtype, shards=2, old_vae=True),
    "folder of a variant in shards": lambda path, dtype: write_folder(path / "base", dtype, "fp16", 3),
}


@cache
def networks(stored: str, wanted: str) -> dict[str, dict[str, Tensor]]:
    """Component -> its weights, stored in one precision and wanted in another, without our loader."""
    tensors = {name: load_file(tiny_folder() / file) for name, file in FILES.items()}
    found = {}
    for component, part in tensors.items():
        own = {name.removeprefix("text_model."): one for name, one in part.items()}
        found[component] = {name: one.to(DTYPES[stored]).to(DTYPES[wanted]) for name, one in own.items()}
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("stored", "wanted"), [("fp16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32")])
def test_every_network_has_the_same_weights_from_every_layout(tmp_path: Path, layout: str, stored: str, wanted: str):
    base = LAYOUTS[layout](tmp_path, DTYPES[stored])
    for component, expected in networks(stored, wanted).items():
        if (layout, component) == ("single file without its VAE", "vae"):
            continue
        state = load_network(base, component, DTYPES[wanted]).state_dict()
        own = {name.removeprefix("text_model."): one for name, one in state.items()}
        assert own.keys() == expected.keys()
        for name, one in expected.items():
            assert own[name].dtype in (one.dtype, torch.float32) and torch.equal(own[name], one.to(own[name].dtype)), (
                name
            )


def test_what_it_computes_is_what_the_libraries_own_loaders_compute():
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    ids = torch.randint(0, 500, (2, 77), generator=torch.Generator().manual_seed(0))
    for component, kind in (("te1", "CLIPTextModel"), ("te2", "CLIPTextModelWithProjection")):
        folder = tiny_folder() / FOLDERS[component]
        theirs = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        ours = load_network(tiny_folder(), component, torch.float32)
        for one, other in zip(
            *(net(ids, output_hidden_states=True).hidden_states for net in (theirs, ours)), strict=True
        ):
            assert torch.equal(one, other)
    pictures = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vae = AutoencoderKL.from_pretrained(tiny_folder(), subfolder="vae")
    ours = load_network(tiny_folder(), "vae", torch.float32)
    assert torch.equal(vae.encode(pictures).latent_dist.mean, ours.encode(pictures).latent_dist.mean)
    assert dict(vae.config) == {**ours.config, "_name_or_path": vae.config["_name_or_path"]}
    unet = UNet2DConditionModel.from_pretrained(tiny_folder(), subfolder="unet")
    assert not {*dict(unet.named_buffers())} and unet.config["norm_num_groups"] == 8


def test_a_single_file_describes_the_same_networks_as_the_folder(tmp_path: Path):
    base = write_sgm(tmp_path / "base.safetensors")
    for component in NETWORKS:
        ours, theirs = (meta_network(one, component)[0].config for one in (base, tiny_folder()))
        ours, theirs = (dict(one if component in ("unet", "vae") else one.to_dict()) for one in (ours, theirs))
        free = {"_name_or_path", "sample_size", "dtype", "architectures", "transformers_version"}
        assert {key: one for key, one in ours.items() if key not in free} == {
            key: one for key, one in theirs.items() if key not in free
        }


def step(folder: Path, base: Path, precision: str) -> bytes:
    """The weights after one update on the base."""
    folder.mkdir()
    job, workspace = training(folder, {"max_train_steps": 1, "mixed_precision": precision})
    places = {name: base for name in ("unet", "te1", "te2")}
    workspace = replace(workspace, paths={**workspace.paths, **places, "tokenizer1": tiny_folder()})
    digests = dict.fromkeys(NETWORKS, str(base))  # another one each time: nothing is found warm
    workspace = replace(workspace, digests={**workspace.digests, **digests})
    TRAIN.run(job, workspace, lambda done, total, text: None)
    return outputs(folder)["weights"]


@pytest.mark.parametrize(
    ("stored", "precision"), [("fp16", "no"), pytest.param("bf16", "bf16", marks=pytest.mark.slow)]
)
def test_a_training_step_is_the_same_from_every_layout(tmp_path: Path, stored: str, precision: str):
    """Of every layout by way of its weights, which the test above compares; here of those that differ the most."""
    names = ["single file without its VAE", "folder of a variant in shards"]
    weights = {
        step(tmp_path / f"job {name}", LAYOUTS[name](tmp_path / name, DTYPES[stored]), precision) for name in names
    }
    assert len(weights) == 1


def test_latents_are_the_same_from_a_vae_inside_apart_and_in_a_folder(tmp_path: Path):
    pixels = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(3)) * 2 - 1
    folder = write_folder(tmp_path / "base", torch.float16)
    shutil.copytree(folder / "vae", tmp_path / "vae alone")
    shutil.copy(folder / FILES["vae"], tmp_path / "diffusers.safetensors")
    with_groups = load_file(tmp_path / "diffusers.safetensors")
    save_file(with_groups, tmp_path / "diffusers.safetensors", METADATA)
    places = [
        folder,
        tmp_path / "vae alone",
        tmp_path / "diffusers.safetensors",
        write_sgm(tmp_path / "whole.safetensors", torch.float16),
        write_vae(tmp_path / "prefixed.safetensors", PREFIXES["vae"], torch.float16),
        write_vae(tmp_path / "bare.safetensors", "", torch.float16),
    ]
    latents = [encode(load_vae(place), pixels) for place in places]
    assert all(torch.equal(one, latents[0]) for one in latents) and latents[0].shape == (1, 4, 4, 6)
    digests = [component_digests(place, ["vae"])["vae"] for place in places]
    assert len(set(digests[:3])) == len(set(digests[3:])) == 1  # one in diffusers' names, one in LDM's


# all of SDXL


COUNTS = {
    "unet": 1680,
    "vae": 248,
    "te1": 196,
    "te2": 389,
}  # tensors of sd_xl_base_1.0, but for position_ids, logit_scale


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Libraries differ in whether a text encoder's names begin with text_model."""
    return {name.removeprefix("text_model."): tuple(one.shape) for name, one in tensors.items()}


def test_all_tensors_of_sdxl_are_consumed_from_both_layouts_and_none_is_left(tmp_path: Path):
    whole: dict[str, Tensor] = {}
    for component in NETWORKS:
        tensors = sgm_names(component, sdxl(component))
        whole |= tensors
        folder = tmp_path / "folder" / FOLDERS[component]
        sparse(tmp_path / "folder" / FILES[component], sdxl(component))
        (folder / "config.json").write_text(json.dumps(SDXL[component]))
    extra = {PREFIXES["te1"] + "text_model.embeddings.position_ids": torch.empty(1, 77, device="meta")}
    extra |= {PREFIXES["te2"] + "logit_scale": torch.empty((), device="meta")}
    assert len(whole) + len(extra) == 2515
    sparse(tmp_path / "sdxl.safetensors", whole | extra)
    for base in (tmp_path / "sdxl.safetensors", tmp_path / "folder"):
        for component in NETWORKS:
            network, weights = meta_network(base, component)
            assert shapes(network.state_dict()) == shapes(sdxl(component))
            assert set(weights) == set(network.state_dict())
            # q, k and v of the second text encoder are one tensor in the file
            assert len({weight.key for weight in weights.values()}) == (
                COUNTS[component] if base.is_file() else len(weights)
            )
    heads = meta_network(tmp_path / "sdxl.safetensors", "unet")[0].config["attention_head_dim"]
    assert heads == [5, 10, 20]
    assert len(base_weights(tmp_path / "sdxl.safetensors")) == len(base_weights(tmp_path / "folder"))


def test_the_names_of_a_single_file_are_those_that_diffusers_converts(tmp_path: Path):
    """So that our own writer of files, which the other tests use, and our reader are not wrong in the same way."""
    from diffusers.loaders import single_file_utils as theirs

    file = load_file(write_sgm(tmp_path / "base.safetensors"))
    tiny = {name: load_file(tiny_folder() / path) for name, path in FILES.items()}
    configs = {name: json.loads((tiny_folder() / FOLDERS[name] / "config.json").read_text()) for name in NETWORKS}
    unet = theirs.convert_ldm_unet_checkpoint(dict(file), config=dict(configs["unet"], class_embed_type=None))
    vae = theirs.convert_ldm_vae_checkpoint(dict(file), config=configs["vae"])
    model = sgm_base.PREFIXES["te2"]
    te2 = theirs.convert_open_clip_checkpoint(architecture("te2", configs["te2"], "tiny"), dict(file), prefix=model)
    te2 = {f"text_model.{name}" if not name.startswith("text_") else name: one for name, one in te2.items()}
    for ours, converted in ((tiny["unet"], unet), (tiny["vae"], vae), (tiny["te2"], te2)):
        converted = {name: one for name, one in converted.items() if not name.endswith("position_ids")}
        assert converted.keys() == ours.keys()
        for name, one in ours.items():
            assert torch.equal(converted[name].reshape(one.shape), one), name


# what is wrong with a file


def altered(path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    tensors = load_file(write_sgm(path))
    change(tensors)
    save_file(tensors, path, METADATA)
    return path


def test_weights_that_are_missing_left_over_or_of_another_shape_are_one_line_with_their_names(tmp_path: Path):
    unet = PREFIXES["unet"]

    def less(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{unet}out.2.bias"]

    def more(tensors: dict[str, Tensor]) -> None:
        tensors[f"{unet}input_blocks.4.1.proj_in.scale_weight"] = torch.ones(1)

    def bent(tensors: dict[str, Tensor]) -> None:
        tensors[f"{unet}out.2.weight"] = torch.zeros(4, 32, 5, 5)

    def whole_numbers(tensors: dict[str, Tensor]) -> None:
        tensors[f"{unet}out.2.bias"] = torch.zeros(4, dtype=torch.int8)

    for change, said in (
        (less, "not the weights of SDXL's unet: 1 missing, such as conv_out.bias"),
        (more, "not the weights of SDXL's unet: 1 unexpected, such as input_blocks.4.1.proj_in.scale_weight"),
        (bent, "not the weights of SDXL's unet: out.2.weight is of shape [4, 32, 5, 5], not [4, 32, 3, 3]"),
        (whole_numbers, "out.2.bias has dtype I8; one of F64, F32, F16, BF16"),
    ):
        path = altered(tmp_path / "base.safetensors", change)
        with pytest.raises(JobError) as caught:
            load_network(path, "unet", torch.float32)
        assert f"{path}: {said}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_vae_of_another_model_is_told_by_its_shapes(tmp_path: Path):
    path = write_vae(tmp_path / "flux.safetensors")
    tensors = load_file(path)
    save_file(tensors | {"post_quant_conv.weight": torch.zeros(16, 16, 1, 1)}, path, METADATA)
    with pytest.raises(JobError, match="a VAE of another model: its latents have 16 channels, not 4"):
        load_vae(path)
    save_file({name: one for name, one in tensors.items() if "quant_conv" not in name}, path, METADATA)
    with pytest.raises(JobError, match=r"not as SDXL has it: quant_conv\.weight is not there"):
        load_vae(path)


def test_shards_that_are_missing_or_lie_elsewhere_are_named(tmp_path: Path):
    folder = write_folder(tmp_path / "base", shards=2)
    (shard,) = (folder / "unet").glob("*-00002-of-*")
    shard.unlink()
    with pytest.raises(JobError, match=r"00002-of-00002\.safetensors: not found; .*index\.json names it"):
        load_network(folder, "unet", torch.float32)
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(JobError, match=r"which is no \.safetensors file beside it"):
        load_network(folder, "unet", torch.float32)
    index.write_text("[]")
    with pytest.raises(JobError, match='not an index of shards: it has no "weight_map"'):
        load_network(folder, "unet", torch.float32)


def test_a_sharded_base_has_the_digests_of_a_whole_one(tmp_path: Path):
    whole, shards = write_folder(tmp_path / "whole"), write_folder(tmp_path / "shards", shards=3)
    assert component_digests(whole, NETWORKS) == component_digests(shards, NETWORKS)


UNET = PREFIXES["unet"]
ATTENTION = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
TEXT = PREFIXES["te1"] + "text_model.final_layer_norm.bias"
STRANGERS = {
    "sd 1": ({ATTENTION: (320, 768), "cond_stage_model.transformer.text_model.x": (1,)}, "a Stable Diffusion 1 check"),
    "sd 2": ({ATTENTION: (320, 1024), "cond_stage_model.model.ln_final.bias": (1,)}, "a Stable Diffusion 2 checkpoint"),
    "sd 1, bare": ({ATTENTION: (320, 768), "first_stage_model.x": (1,)}, "a Stable Diffusion 1 model"),
    "sd 3": ({f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (3, 3)}, "a Stable Diffusion 3 model"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (3, 3)}, "a FLUX model"),
    "flux, whole": ({f"{UNET}double_blocks.0.img_attn.qkv.weight": (3, 3), "vae.x": (1,)}, "a FLUX model"),
    "refiner": (
        {f"{UNET}label_emb.0.0.weight": (4, 2560), "conditioner.embedders.0.model.ln_final.bias": (2,)},
        "refiner",
    ),
    "inpainting": (
        {f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3), TEXT: (2,)},
        "inpainting model: its U-Net takes 9",
    ),
    "pix2pix": ({f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3), TEXT: (2,)}, "InstructPix2Pix"),
    "playground": ({f"{UNET}label_emb.0.0.weight": (4, 2816), "edm_mean": (4,), TEXT: (2,)}, "EDM"),
    "lora": ({"lora_unet_mid_block_1_proj_in.lora_down.weight": (4, 4)}, "a LoRA; [project] source"),
    "peft": ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": (4, 4)}, "a LoRA; [project] source"),
    "lora of differences": ({"lora_unet_mid_block_1_proj_in.diff": (4, 4)}, "a LoRA; [project] source"),
    "diffusers' first lora": ({"unet.mid_block.attn1.processor.to_q_lora.down.weight": (4, 4)}, "a LoRA; [project]"),
    "controlnet": ({"control_model.input_blocks.0.0.weight": (4, 4, 3, 3)}, "a ControlNet"),
    "vae": ({"first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3)}, 'a VAE: [bases.<name>] takes one as vae = "'),
    "bare vae": ({"decoder.conv_in.weight": (4, 4, 3, 3), "encoder.conv_in.bias": (4,)}, "a VAE"),
    "text encoder": ({"text_model.encoder.layers.0.mlp.fc1.bias": (4,)}, "a text encoder alone"),
    "u-net": ({f"{UNET}label_emb.0.0.weight": (4, 2816)}, "a U-Net alone"),
    "diffusers u-net": ({"down_blocks.0.resnets.0.conv1.bias": (4,)}, "a U-Net alone"),
    "embedding": ({"clip_g": (2, 1280), "clip_l": (2, 768)}, "an embedding"),
    "nothing known": ({"whatever": (1,)}, f"no tensors {UNET}*"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_file_of_another_kind_is_told_from_sdxl(tmp_path: Path, name: str):
    shapes, said = STRANGERS[name]
    path = tmp_path / "base.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path)
    with pytest.raises(JobError) as caught:
        component_digests(path, ["unet"])
    assert str(caught.value).startswith(f"{path}: not a") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_kind_is_told_from_sdxl(tmp_path: Path):
    def unet(folder: Path, **changes: Any) -> None:
        path = folder / "unet/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def flux(folder: Path) -> None:
        (folder / "unet").rename(folder / "transformer")
        (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')

    for number, (change, said) in enumerate(
        [
            (partial(unet, addition_embed_type=None, cross_attention_dim=768), "a Stable Diffusion 1 model"),
            (partial(unet, in_channels=9), "an inpainting model: its U-Net takes 9 channels"),
            (lambda folder: shutil.rmtree(folder / "text_encoder"), "refiner"),
            (flux, "FluxPipeline: it has transformer/"),
        ]
    ):
        folder = shutil.copytree(tiny_folder(), tmp_path / str(number))
        change(folder)
        with pytest.raises(JobError) as caught:
            component_digests(folder, ["unet"])
        assert str(caught.value).startswith(f"{folder}: not an SDXL base but ") and said in str(caught.value)
    with pytest.raises(JobError, match="not a whole base but one part of it"):
        component_digests(tiny_folder() / "unet", ["unet"])


# what it predicts, and which hidden states count


def test_a_base_that_says_it_predicts_v_is_warned_of_where_that_is_not_told(tmp_path: Path):
    path = tmp_path / "noob.safetensors"
    plain, marked = {}, {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    for tensors, metadata, said in (
        (plain, {}, None),
        (marked, {}, "v_prediction"),
        (plain, {"modelspec.prediction_type": "v"}, "v_prediction"),
        (plain, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
    ):
        save_file({"x": torch.ones(1), **tensors}, path, metadata)
        for trained in ("epsilon", "v_prediction"):
            line = prediction_warning(path, trained)
            assert (line is None) == (said in (None, trained))
            assert line is None or f'prediction_type = "{said}" is what it asks for' in line
    folder = shutil.copytree(tiny_folder(), tmp_path / "folder")
    assert "scheduler_config.json" in (prediction_warning(folder, "v_prediction") or "")
    assert prediction_warning(folder, "epsilon") is None


def test_clip_skip_counts_hidden_states_from_the_last():
    base = Base(None, *load_text_encoders(tiny_folder(), torch.float32), *load_tokenizers(tiny_folder()))
    captions = ["ember, red hat", "blue"]
    hidden = {skip: text_conditions(replace(base, clip_skip=skip), captions, {})[0] for skip in (1, 2, 3)}
    assert torch.equal(text_conditions(base, captions, {})[0], hidden[2])
    ids = base.tokenizer1(captions, padding="max_length", max_length=77).input_ids
    states = base.te1(torch.tensor(ids), output_hidden_states=True).hidden_states
    for skip, found in hidden.items():
        assert torch.equal(found[..., : states[0].shape[2]], states[-skip])
    pooled = [text_conditions(replace(base, clip_skip=skip), captions, {})[1] for skip in (1, 2)]
    assert torch.equal(*pooled)


# memory

LOADING = """
import resource, sys, torch
from pathlib import Path
from lorabuild.nn.networks import load_network, meta_network
base = Path(sys.argv[1])
meta_network(base, "unet")
torch.nn.Conv2d(4, 4, 3)(torch.zeros(1, 4, 8, 8))  # what a first computation takes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
network = load_network(base, "unet", torch.float16)
assert all(parameter.device.type == "cpu" for parameter in network.parameters())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_loading_takes_no_more_memory_than_the_weights_and_a_fifth(tmp_path: Path):
    """Of half-precision weights that stay such: the file is neither mapped nor read as a whole."""
    config = SDXL["unet"] | {"block_out_channels": [64, 128, 256], "attention_head_dim": [1, 2, 4]}
    config |= {"cross_attention_dim": 512}
    tensors = sgm_names("unet", architecture("unet", config, "middling").state_dict())
    tensors[PREFIXES["te2"] + "text_projection"] = torch.empty(1280, 1280, device="meta")
    path = tmp_path / "base.safetensors"
    sparse(path, tensors)
    done = subprocess.run([sys.executable, "-c", LOADING, str(path)], capture_output=True, text=True, check=True)
    size = path.stat().st_size
    assert size > 200e6
    assert float(done.stdout) <= 1.2 * size, f"{float(done.stdout) / size:.2f} x the file"
