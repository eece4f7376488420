"""The built-in base: SDXL in small, the same bytes everywhere, and loaded by the libraries as any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_base import tiny_base, tiny_digests, tiny_folder

from lorabuild.components import FOLDERS, folder_digests, tensors_digest, tokenizer_digest
from lorabuild.data.vocabulary import END, START
from lorabuild.errors import JobError
from lorabuild.header import read_header
from lorabuild.lora.keymap import EXPECTED, adaptable_modules
from lorabuild.nn.base import load_text_encoders, load_unet
from lorabuild.nn.objective import LATENT_SCALE
from lorabuild.nn.text import encode, tokenise
from lorabuild.nn.tiny import LEVELS, TE1, TE2
from lorabuild.nn.tokenizer import WORDS, vocabulary
from lorabuild.nn.vae import encode as encode_pixels
from lorabuild.nn.vae import load_vae
from lorabuild.stages.base import FILES
from lorabuild.writing import write_body

# The promise of equal bytes on every machine. If the base is changed on purpose, raise the version of stage base too.
DIGESTS = {
    "vae": "a45aab1cb5240eec5beccefdd9e1fe76",
    "unet": "b17cc840e6c0eb3522cc06899eef85ef",
    "te1": "aba8fcdedd6c2f52ce8570b963d2bfdb",
    "te2": "ecc7c7c1581e588fd2d99d32d1b32a43",
    "tokenizer1": "7583b99b616f8b571a4b4e38e6d3d3a8",
    "tokenizer2": "7583b99b616f8b571a4b4e38e6d3d3a8",
}


def test_the_base_is_the_same_on_every_machine():
    assert tiny_digests() == DIGESTS


def test_the_files_are_those_that_the_job_declares():
    folder = tiny_folder()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(FILES)
    for name in FILES:
        if name.endswith(".json"):
            assert "version" not in (folder / name).read_text(), "a library's version would change with the library"


def test_the_topology_is_sdxls():
    config = json.loads((tiny_folder() / "unet/config.json").read_text())
    assert config["down_block_types"] == ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    assert config["transformer_layers_per_block"] == [1, 2, 10]
    for component, count in EXPECTED.items():
        folder = tiny_folder() / FOLDERS[component]
        weights = [name for name in read_header(next(folder.glob("*.safetensors"))).tensors if name.endswith(".weight")]
        assert len(adaptable_modules(component, [name.removesuffix(".weight") for name in weights])) == count


def test_widths_tell_levels_and_encoders_apart():
    assert len({*LEVELS, TE1, TE2}) == 5
    assert list(LEVELS) == sorted(LEVELS)


def test_diffusers_loads_it_as_a_pipeline_and_draws():
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder(), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vae.config.scaling_factor == LATENT_SCALE
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    picture = pipeline("ember, smile", num_inference_steps=1, height=64, width=64, output_type="pt").images[0]
    assert picture.shape == (3, 64, 64) and torch.isfinite(picture).all()


def test_everyday_tags_are_one_token_and_others_fall_to_pieces():
    tokenizer, second = tiny_base().tokenizer1, tiny_base().tokenizer2
    ids, _ = vocabulary()
    assert tokenizer.get_vocab() == second.get_vocab() == ids
    for word in set(WORDS.split()):
        assert len(tokenizer(word).input_ids) == 3, word
    pieces = tokenizer("wazzö, Smile").input_ids
    assert (pieces[0], pieces[-1]) == (ids[START], ids[END])
    assert tokenizer.convert_ids_to_tokens(pieces[1:-1])[-1] == "smile</w>"
    assert ids[END] == len(ids) - 1 and ids["!"] == 0
    assert (tokenizer.pad_token, second.pad_token) == (END, "!")


def test_activations_are_of_order_one():
    base = tiny_base()
    captions = ["ember, red, smile, sit", "flat style, a blue fox in the snow"]
    with torch.no_grad():
        hidden, pooled = encode(base.te1, base.te2, *tokenise(base.tokenizer1, base.tokenizer2, captions), END_ID)
        noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        sizes = torch.tensor([[128.0, 128, 0, 0, 128, 128]]).expand(2, 6)
        conditions = {"text_embeds": pooled, "time_ids": sizes}

        def predict(hidden: torch.Tensor) -> torch.Tensor:
            return base.unet(noise, torch.tensor([100, 800]), hidden, added_cond_kwargs=conditions).sample

        prediction, other = predict(hidden), predict(hidden.flip(0))
    assert 0.5 < hidden.std() < 2 and 0.5 < pooled.std() < 2
    assert 0.3 < prediction.std() < 0.8
    assert (prediction - other).std() > 0.02, "the text must matter"


def test_latents_are_about_as_large_as_sdxls():
    tiles = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    pixels = torch.nn.functional.interpolate(tiles, size=(128, 128), mode="bilinear") * 2 - 1
    latents = encode_pixels(load_vae(tiny_folder()), pixels) * LATENT_SCALE
    assert latents.shape == (2, 4, 16, 16)
    assert 0.3 < latents.std() < 3
    assert (latents[0] - latents[1]).std() > 0.05, "the picture must matter"


END_ID = len(vocabulary()[0]) - 1


# digests of components


def weights(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> str:
    write_body(path, [(name, *rest) for name, rest in tensors.items()])
    return tensors_digest(path)


def test_a_digest_counts_names_dtypes_shapes_and_bytes(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    one = {"a": ("F32", [2], bytes(8)), "b": ("F32", [1, 2], bytes(8))}
    same = weights(path, one)
    assert weights(path, dict(reversed(one.items()))) == same
    assert weights(path, {**one, "position_ids": ("I64", [1], bytes(8)), "model_ema.a": ("F32", [2], bytes(8))}) == same
    for other in (
        {**one, "a": ("F32", [2], bytes(7) + b"\1")},
        {**one, "a": ("F16", [4], bytes(8))},
        {**one, "a": ("F32", [1, 2], bytes(8))},
        {"a": one["a"], "c": one["b"]},
        {"a": one["a"]},
    ):
        assert weights(path, other) != same


def test_a_digest_of_a_prefix_is_that_of_the_part_alone(tmp_path: Path):
    part = {"a": ("F32", [2], bytes(8))}
    whole = {"vae.a": part["a"], "unet.a": ("F32", [2], b"\1" * 8)}
    alone = weights(tmp_path / "part.safetensors", part)
    weights(tmp_path / "whole.safetensors", whole)
    assert tensors_digest(tmp_path / "whole.safetensors", "vae.") == alone
    assert tensors_digest(tmp_path / "whole.safetensors", "unet.") != alone


def test_stray_files_do_not_count_and_missing_ones_are_named(tmp_path: Path):
    base = shutil.copytree(tiny_folder(), tmp_path / "base")
    (base / "unet/notes.txt").write_text("mine")
    assert folder_digests(base) == tiny_digests()
    (base / "tokenizer/merges.txt").unlink()
    with pytest.raises(JobError, match=r"tokenizer/merges\.txt: not found"):
        tokenizer_digest(base / "tokenizer")
    (base / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(JobError, match="vae: holds none of"):
        folder_digests(base)


def test_weights_of_another_network_are_refused(tmp_path: Path):
    base = shutil.copytree(tiny_folder(), tmp_path / "base")
    config = json.loads((base / "unet/config.json").read_text())
    config["transformer_layers_per_block"] = [1, 2, 3]
    (base / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(
        JobError, match=r"unet: not the weights of its config\.json: \d+ unexpected, such as down_blocks\.2"
    ):
        load_unet(base, torch.float32)


def rewrite(path: Path, change: Callable[[dict[str, tuple]], None]) -> None:
    """Change the tensors of a file: name -> (dtype, shape, bytes)."""
    data = path.read_bytes()
    tensors = {n: (i.dtype, i.shape, data[i.start : i.stop]) for n, i in read_header(path).tensors.items()}
    change(tensors)
    write_body(path, [(name, *rest) for name, rest in tensors.items()])


def test_a_text_encoder_with_position_ids_loads_and_one_without_a_weight_does_not(tmp_path: Path):
    base = shutil.copytree(tiny_folder(), tmp_path / "base")
    first = base / "text_encoder/model.safetensors"
    position_ids = ("I64", (1, 77), torch.arange(77).numpy().tobytes())
    rewrite(first, lambda tensors: tensors.update({"text_model.embeddings.position_ids": position_ids}))
    assert folder_digests(base) == tiny_digests()
    te1, _ = load_text_encoders(base, torch.float32)
    assert torch.equal(te1.embeddings.token_embedding.weight, tiny_base().te1.embeddings.token_embedding.weight)
    rewrite(first, lambda tensors: tensors.pop("text_model.encoder.layers.3.mlp.fc1.weight"))
    with pytest.raises(
        JobError, match=r"not the weights of its config\.json: 1 missing, such as .*layers\.3\.mlp\.fc1\.weight"
    ):
        load_text_encoders(base, torch.float32)
