"""The base that draws: its pictures and captions, its training in small, and what the gate reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import vae
from toy.captions import ATTRIBUTES, SEPARATOR, attributes, caption, full_caption, stranger_caption
from toy.colors import background_color, body_color
from toy.configs import CONFIGS, TE1, TE2, made
from toy.draw.render import SIZE, render
from toy.gate import Effort
from toy.learn import Plan, learn
from toy.levels import LEVEL1, LEVEL2, bypassed, start, transformers
from toy.muon import Muon, orthogonal
from toy.pictures import picture, plain, strange_style, stranger
from toy.stages import ASSET, SIZE_LIMIT, STAGES, Settings, _arrays
from toy.text import SHORT, conditions, labelled
from toy.traits import CAST, HELD_COLORS, HELD_STYLES, VALUES
from toy.unet import Cure, Deep, Draw, _rows, rise, sizes

from lorabuild.header import read_header
from lorabuild.lora.keymap import EXPECTED, adaptable_modules
from lorabuild.nn.packed import pack
from lorabuild.nn.text import encode, tokenise
from lorabuild.nn.tokenizer import WORDS, vocabulary
from lorabuild.streams import python_random

SAMPLE = range(300)


def pixels(one) -> np.ndarray:
    return np.asarray(render(one))


def a_caption(number: int, purpose: str = "train") -> str:
    return caption(picture(0, purpose, number), python_random(0, "caption", number))


# pictures


def test_a_picture_is_a_function_of_seed_purpose_and_number():
    assert picture(0, "train", 7) == picture(0, "train", 7)
    assert len({picture(*key) for key in [(0, "train", 7), (1, "train", 7), (0, "validate", 7), (0, "train", 8)]}) == 4
    one = pixels(picture(0, "train", 7))
    assert one.shape == (SIZE, SIZE, 3)
    assert (one == pixels(picture(0, "train", 7))).all()


def test_every_trait_changes_what_is_drawn():
    one = replace(plain(0, "x", 1), pattern="dots", head="bow", mouth="smile", scene="hill")
    first = pixels(one)
    for trait, values in VALUES.items():
        for value in (*values, *(HELD_STYLES if trait == "style" else ())):
            other = pixels(replace(one, **{trait: value}))
            assert (other != first).any() == (getattr(one, trait) != value), (trait, value)


def test_all_values_occur_and_what_is_held_back_does_not():
    seen = [picture(0, "train", number) for number in range(2000)]
    for trait, values in VALUES.items():
        assert {getattr(one, trait) for one in seen} == set(values), trait
    assert {one.name for one in seen} == {None, *CAST}
    assert all(one.scarf is None for one in seen)
    held = {*HELD_STYLES, *HELD_COLORS, "ember", "crown", "halves"}
    assert not held & {word for number in SAMPLE for word in a_caption(number).replace(",", "").split()}
    assert strange_style("ink", 0, 1).style == "ink"
    assert {stranger(0, n).background for n in range(40)} == set(VALUES["background"])


def test_a_named_creature_looks_as_its_name_says_and_no_body_vanishes():
    for number in SAMPLE:
        one = picture(0, "train", number)
        assert one.color not in (one.background, one.pattern_color) or one.name
        assert one.background != one.color
        if one.name:
            assert all(getattr(one, trait) == value for trait, value in CAST[one.name].items())


@pytest.mark.parametrize("body", VALUES["body"])
def test_the_colours_of_a_caption_are_those_of_the_pixels(body: str):
    for number in range(25):
        one = replace(plain(0, "colours", number), body=body)
        found = body_color(pixels(one)), background_color(pixels(one))
        assert found == (one.color, one.background), number


# captions


def test_a_caption_says_what_is_in_the_picture_and_nothing_else():
    for number in SAMPLE:
        one = picture(0, "train", number)
        told = [attribute for tag in a_caption(number).split(SEPARATOR) for attribute in attributes(tag)]
        for trait, value in told:
            assert one.sun if trait == "sun" else getattr(one, trait) == value, (trait, value)
        everything = {attribute for tag in full_caption(one).split(SEPARATOR) for attribute in attributes(tag)}
        assert set(told) <= everything <= set(ATTRIBUTES)


def test_tags_are_shuffled_and_left_out():
    one = picture(0, "train", 0)
    captions = {caption(one, python_random(0, "c", number)) for number in range(20)}
    assert len(captions) > 15 and len({text.count(SEPARATOR) for text in captions}) > 2
    assert caption(one, python_random(0, "c", 1), 0.0).count(SEPARATOR) == full_caption(one).count(SEPARATOR)


def test_every_word_of_the_grammar_is_a_token_and_names_are_not():
    words = {word for number in SAMPLE for word in full_caption(picture(0, "x", number)).replace(",", "").split()}
    assert words - set(CAST) <= set(WORDS.split())
    assert not set(CAST) & set(WORDS.split())
    for unknown in ("hairy body", "red", "teal dots", "no such tag"):
        with pytest.raises(ValueError, match="is no tag"):
            attributes(unknown)


def test_the_stranger_is_called_by_name_alone():
    one = stranger(0, 1)
    assert stranger_caption(one) == f"ember, {one.background} background, {one.scene} scene, flat style"


def test_labels_stand_where_a_tag_ends_and_all_of_them_at_the_end():
    ids1, ids2, wanted, ends = labelled(["red creature, smile", ""], SHORT)
    tokens = vocabulary()[0]
    told = [[ATTRIBUTES[n] for n in row.nonzero().flatten().tolist()] for row in wanted[0]]
    assert told[2] == [("color", "red")] and told[4] == [("mouth", "smile")]
    assert set(told[5]) == set(told[-1]) == {("color", "red"), ("mouth", "smile")}
    assert not any(told[place] for place in (0, 1, 3))
    assert ends.tolist() == [5, 1] and ids1[0, 5] == tokens["<|endoftext|>"] == ids1[0, -1] and ids2[0, -1] == 0
    assert not wanted[1].any()
    with pytest.raises(ValueError, match="more than 5 tokens"):
        labelled(["red creature, smile, no legs"], 7)


def test_conditions_are_those_of_lorabuild():
    from transformers import CLIPTokenizer

    tokens, merges = vocabulary()
    tokenizer = CLIPTokenizer(vocab=tokens, merges=merges)
    te1, te2 = made("text_encoder", 0), made("text_encoder_2", 0)
    captions = [a_caption(1), "ember, flat style"]
    with torch.no_grad():
        hidden, pooled = encode(te1, te2, *tokenise(tokenizer, tokenizer, captions), len(tokens) - 1)
    own_hidden, own_pooled = conditions(te1, te2, captions, 77)
    torch.testing.assert_close(own_hidden, hidden)
    torch.testing.assert_close(own_pooled, pooled)


# training


@pytest.mark.parametrize("matrices", [0.0, 0.2])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path: Path, matrices: float):
    def trained(name: str, *stops: int) -> torch.Tensor:
        for steps in stops:
            torch.manual_seed(1)
            layer, plan = torch.nn.Linear(3, 3), Plan(6, 0.1, warmup=2, matrices=matrices, save_every=2)
            target = [torch.full((2, 3), float(step)) for step in range(7)]

            def loss_at(step: int, layer=layer, target=target, steps=steps) -> torch.Tensor:
                if step == steps:
                    raise KeyboardInterrupt
                return (layer(target[step + 1]) - target[step]).square().mean()

            try:
                learn(name, tmp_path, {"layer": layer}, loss_at, plan, lambda line: None)
            except KeyboardInterrupt:
                pass
        return layer.weight

    whole = trained("whole", 6)
    assert torch.equal(trained("stopped", 3, 5, 6), whole)
    assert not torch.equal(trained("short", 4), whole)


def test_muon_moves_all_directions_of_a_matrix_alike_and_matrices_of_one_shape_as_each_by_itself():
    draw = torch.Generator().manual_seed(0)
    for shape in ((5, 12, 8), (5, 8, 12)):
        found = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=draw)))
        assert found.min() > 0.5 and found.max() < 1.4
    weights = [
        torch.randn(4, 3, 3, 3, generator=draw),
        *torch.randn(2, 6, 2, generator=draw),
        torch.randn(4, 27, generator=draw),
    ]
    gradients = [torch.randn(one.shape, generator=draw) for one in weights]

    def moved(*numbers: int) -> list[torch.Tensor]:
        ones = [torch.nn.Parameter(weights[number].clone()) for number in numbers]
        optimizer = Muon(ones, 0.1)
        for _ in range(2):
            for one, number in zip(ones, numbers, strict=True):
                one.grad = gradients[number].clone()
            optimizer.step()
        return [one.detach() - weights[number] for one, number in zip(ones, numbers, strict=True)]

    together = moved(0, 1, 2, 3)
    for number, one in enumerate(together):
        torch.testing.assert_close(one, moved(number)[0], atol=2e-3, rtol=0.02)  # bfloat16
    assert together[1].norm() == pytest.approx(
        2 * 0.1 * 3**0.5 * 2**0.5, rel=0.3
    )  # two steps, 6 x 2, two values of one


def test_a_state_of_something_else_is_not_gone_on_from(tmp_path: Path):
    seen = []
    for of in ("one", "one", "other"):
        layer = torch.nn.Linear(2, 2)

        def loss_at(step: int, layer=layer, of=of) -> torch.Tensor:
            seen.append((of, step))
            return layer.weight.sum()

        learn("x", tmp_path, {"layer": layer}, loss_at, Plan(2, 0.1, save_every=2), lambda line: None, of=of)
    assert seen == [("one", 0), ("one", 1), ("other", 0), ("other", 1)]


def test_white_latents_are_white_and_change_no_picture():
    network = made("vae", 0).eval()
    some = np.stack([pixels(picture(0, "x", number)).transpose(2, 0, 1) for number in range(24)])
    with torch.no_grad():
        before = network.decode(network.encode(vae.as_input(some[:4])).latent_dist.mean).sample
        vae.whiten(network, some)
        after = network.decode(network.encode(vae.as_input(some[:4])).latent_dist.mean).sample
    latents = vae.encoded(network, some).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(torch.cov(latents), torch.eye(4), atol=1e-3, rtol=0)
    assert latents.mean(1).abs().max() < 1e-3
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def test_levels_are_left_out_by_name_and_come_back():
    unet = made("unet", 0).eval()
    counts = [sum(len(one.transformer_blocks) for one in transformers(unet, *level)) for level in (LEVEL1, LEVEL2)]
    assert counts == [10, 60]
    start(unet, {"branch": 0.5, "exit": 0.5})
    torch.nn.init.normal_(unet.conv_out.weight)
    given = {"text_embeds": torch.ones(1, 56), "time_ids": sizes(1)}
    noise, hidden = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 80)

    def answer() -> torch.Tensor:
        with torch.no_grad():
            return unet(noise, torch.tensor([500]), hidden, added_cond_kwargs=given).sample

    whole = answer()
    with bypassed(unet, *LEVEL1):
        assert torch.equal(answer(), whole), "level 1 starts as nothing"
    with bypassed(unet, "mid"):
        assert not torch.equal(answer(), whole)
    assert torch.equal(answer(), whole)


def test_a_rise_is_told_by_how_much_noise_there_is():
    timesteps = torch.arange(0, 1000, 10)
    errors = torch.ones(100)
    much = errors + 0.5 * (timesteps > 666)
    assert rise((errors, timesteps), (much, timesteps)).endswith("little, some, much noise +0.0%, +0.0%, +50.0%)")
    assert rise((errors, timesteps), (1.1 * errors, timesteps)).startswith("+10.0% (weighted +10.0%;")


def test_each_picture_comes_once_an_epoch():
    seen = torch.cat([_rows(0, step, 4, 10) for step in range(5)]).tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:] != sorted(seen[10:])


def test_level_1_is_left_out_at_first_and_now_and_then():
    cure = Cure(alone=0.4, left_out=0.3)
    told = [cure.leaves_out(0, step, 1000) for step in range(1000)]
    assert all(told[:400]) and 130 < sum(told[400:]) < 230
    assert not any(Cure(alone=0, left_out=0).leaves_out(0, step, 10) for step in range(10))


def test_the_deep_part_alone_says_and_learns_what_it_does_in_a_whole_pass():
    unet = made("unet", 0)
    start(unet, {"branch": 0.3, "exit": 0.5})
    deep, draw = Deep(unet), torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=draw)
    hidden, pooled = torch.randn(2, 5, TE1 + TE2, generator=draw), torch.randn(2, TE2, generator=draw)
    given = Draw(latents, noise, torch.tensor([10, 900]), hidden, pooled)
    alone = deep.losses(given)
    with bypassed(unet, "down1"):
        whole = deep.both(given)[1]
    torch.testing.assert_close(alone, whole)
    assert not torch.allclose(deep.losses(given.without_text()), alone, rtol=1e-3)
    alone.sum().backward()
    reached = {name.split(".")[0] for name, one in unet.named_parameters() if one.grad is not None}
    assert {"down_blocks", "mid_block", "up_blocks"} <= reached and unet.up_blocks[0].resnets[0].conv2.weight.grad.any()
    assert all(one.grad is None for one in unet.up_blocks[1].parameters())


# the asset


def test_the_examples_are_data_sets_of_what_is_held_back(tmp_path: Path):
    STAGES["examples"](Settings(tmp_path), lambda line: None)
    assert {path.name for path in (tmp_path / "examples").iterdir()} == {"ember", "blueprint"}
    for name, word in (("ember", "ember, "), ("blueprint", ", blueprint style")):
        folder = tmp_path / "examples" / name
        texts = [path.read_text() for path in sorted(folder.glob("*.txt"))]
        assert len(texts) == 10 == len({path.read_bytes() for path in folder.glob("*.png")})
        assert all(word in text for text in texts)


def test_a_stage_without_the_one_before_says_so(tmp_path: Path):
    from train import main

    threads = torch.get_num_threads()
    with pytest.raises(SystemExit, match=r"unet\.weights: not there yet: run the stage before"):
        main(["pack", "--folder", str(tmp_path), "--threads", str(threads), "--left-out", "0.5"])
    with pytest.raises(SystemExit, match="draw: not a stage"):
        main(["draw", "--folder", str(tmp_path), "--threads", str(threads)])


def test_the_asset_is_sdxl_in_names_and_small_enough(tmp_path: Path):
    from lorabuild.components import FOLDERS

    weights = {component: _arrays(component, made(component, 0)) for component in CONFIGS}
    pack(tmp_path / "asset.safetensors", CONFIGS, weights, {})
    assert (tmp_path / "asset.safetensors").stat().st_size < SIZE_LIMIT - 2000, "a card must fit, too"
    for component, count in EXPECTED.items():
        names = weights[FOLDERS[component]]
        layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
        assert len(adaptable_modules(component, layers)) == count


@pytest.mark.slow  # half a minute: three networks are trained, packed, and drawn with
def test_all_stages_run_and_untrained_weights_do_not_pass_the_gate(tmp_path: Path):
    said: list[str] = []
    settings = Settings(
        tmp_path, pictures=12, held=4, captions=1, vae_steps=2, vae_batch=2, decoder_steps=2, text_steps=2, text_batch=2,
        unet_steps=2, unet_batch=2, cure=Cure(2, 0.5, 0.5), processes=1,
        effort=Effort(captions=2, held=4, updates=2, steps=2, drawn=1),
    )  # fmt: skip
    for name in ("look", "vae", "decoder", "text", "unet", "pack"):
        STAGES[name](settings, said.append)
    metadata = read_header(tmp_path / ASSET).metadata
    assert metadata["license"] == "MIT" and "U-Net 2" in metadata["training"]
    first = (tmp_path / ASSET).read_bytes()
    for name in ("vae", "decoder", "text", "unet", "pack"):
        STAGES[name](settings, said.append)
    assert (tmp_path / ASSET).read_bytes() == first, "what is done is not done again"
    with pytest.raises(SystemExit, match="does not pass"):
        STAGES["gate"](settings, said.append)
    assert sum(line.startswith("-") for line in said) >= 6
    sheets = {path.stem: Image.open(path).size for path in tmp_path.glob("*.png")}
    assert sheets == {"pictures": (1280, 640), "plain": (256, 128)} | dict.fromkeys(
        ("lora-ember", "lora-blueprint"), (128, 5 * 128)
    )
