"""The stages from nothing to an asset: what each needs, makes, and keeps in the folder of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorabuild.hashing import digest_file, digest_json
from lorabuild.nn.base_folder import TEXT_ENCODERS, file_name
from lorabuild.nn.packed import pack as write_pack
from lorabuild.streams import python_random
from toy import card, text, unet, vae
from toy.captions import caption
from toy.configs import CONFIGS, made
from toy.draw.render import render
from toy.gate import LORA_PICTURES, SUBJECTS, Effort, gate
from toy.learn import Log, Plan
from toy.levels import start
from toy.pictures import picture, strange_style, stranger
from toy.pool import as_input, drawn, pixels_of, validation
from toy.sampled import sheet
from toy.traits import HELD_STYLES

WHITENED_ON = 1024  # pictures
ASSET, GATE_FOLDER = "tiny-drawing.safetensors", "base"
SHEET_COLUMNS, PALETTE = 10, 128
SIZE_LIMIT = 9_000_000  # bytes of the asset
VAE_RATES = {"rate": 4e-3, "matrices": 2e-2}  # of AdamW and Muon
DEEP_RATES = {"rate": 1e-3, "matrices": 4e-3}  # at those of the VAE its 60 blocks are only stirred
UNET_RATES = VAE_RATES | {"slow": ("down_blocks.2.", "mid_block.", "up_blocks.0.", "embedding.", "head.")}
TEXT_RATE = 3e-3  # of AdamW
LOOSE = 0.05  # of a validation caption's tags are left out


@dataclass(frozen=True)
class Settings:
    """Of a run. Steps are updates; a run that is given more goes on."""

    folder: Path
    seed: int = 0
    pictures: int = 16000
    held: int = 256
    captions: int = 2  # of each picture
    vae_steps: int = 3000
    vae_batch: int = 8
    decoder_steps: int = 1000
    text_steps: int = 1200
    text_batch: int = 32
    unet_steps: int = 6000
    unet_batch: int = 32
    cure: unet.Cure = field(default_factory=unet.Cure)
    effort: Effort = field(default_factory=Effort)
    device: str = "cpu"
    processes: int = 2

    def plan(self, steps: int, rates: Mapping[str, Any], **changes: Any) -> Plan:
        return Plan(steps, **rates, warmup=min(50, steps), save_every=min(steps, 100), **changes)


def run_vae(settings: Settings, log: Log) -> None:
    """Encoder and decoder, then white latents -> vae.weights."""
    pixels, held = _pixels(settings), _held_pixels(settings)
    network = made("vae", settings.seed).to(settings.device)
    folder, seed, batch = settings.folder, settings.seed, settings.vae_batch
    vae.train_whole(
        network, folder, pixels, held, seed, batch, settings.plan(settings.vae_steps, VAE_RATES, averaging=0.99), log
    )
    before = vae.psnr(network, held)
    vae.whiten(network, pixels[:WHITENED_ON])
    log(f"vae: PSNR {before:.2f} dB, with white latents {vae.psnr(network, held):.2f} dB")
    _save(settings, "vae", network)


def run_decoder(settings: Settings, log: Log) -> None:
    """The decoder alone, while the U-Net may learn from what the encoder gives -> decoder.weights, the whole VAE."""
    pixels, held = _pixels(settings), _held_pixels(settings)
    network = _loaded(settings, "vae")
    plan = settings.plan(settings.decoder_steps, VAE_RATES, averaging=0.99)
    vae.train_decoder(network, settings.folder, pixels, held, settings.seed, settings.vae_batch, plan, log)
    _save(settings, "decoder", network)


def run_text(settings: Settings, log: Log) -> None:
    """Both text encoders -> text_encoder.weights, text_encoder_2.weights."""
    te1, te2 = (made(name, settings.seed + n).to(settings.device) for n, name in enumerate(TEXT_ENCODERS))
    text.prepare(te1, te2)
    plan = Plan(settings.text_steps, TEXT_RATE, min(50, settings.text_steps), averaging=0.99, save_every=100)
    text.train(te1, te2, settings.folder, settings.seed, settings.text_batch, plan, log)
    for name, encoder in zip(TEXT_ENCODERS, (te1, te2), strict=True):
        _save(settings, name, encoder)


def run_unet(settings: Settings, log: Log) -> None:
    """The U-Net on latents of the VAE, its deepest level first -> unet.weights."""
    encoder, cure = _loaded(settings, "vae"), settings.cure
    latents = _kept(settings, "latents", ["vae"], lambda: vae.encoded(encoder, _pixels(settings)).half())
    held = _held_samples(settings, vae.encoded(encoder, _held_pixels(settings)))
    texts = _kept(settings, "captions", list(TEXT_ENCODERS), lambda: _conditions(settings, _captions(settings)))
    empty = _conditions(settings, [""])
    samples = unet.Samples(latents, *texts, (empty[0][0], empty[1][0]))
    network = made("unet", settings.seed)
    start(network, {"branch": cure.branch, "exit": cure.exit})
    deep = unet.Deep(network.to(settings.device))
    of = digest_json(_made_of(settings, ["vae", *TEXT_ENCODERS]))
    given = (deep, settings.folder, samples, held, settings.seed, settings.unet_batch)
    if cure.deep:
        unet.train_deep(*given, settings.plan(cure.deep, DEEP_RATES, averaging=0.99), log, of)
    unet.train(*given, settings.plan(settings.unet_steps, UNET_RATES), cure, log, of)
    _save(settings, "unet", network)


def run_pack(settings: Settings, log: Log) -> None:
    """All weights -> one file. Raises SystemExit where it is too large."""
    made_by = {component: "decoder" if component == "vae" else component for component in CONFIGS}
    weights = {component: _arrays(component, _loaded(settings, component, of)) for component, of in made_by.items()}
    path = settings.folder / ASSET
    write_pack(path, CONFIGS, weights, card.card(settings))
    size = path.stat().st_size
    log(f"{path}: {size / 1e6:.2f} MB")
    if size > SIZE_LIMIT:
        raise SystemExit(f"{path}: larger than {SIZE_LIMIT / 1e6:.0f} MB")


def run_gate(settings: Settings, log: Log) -> None:
    """The asset as users would have it, with sheets to look at. Raises SystemExit unless it passes."""

    def show(name: str, rows: Sequence[np.ndarray]) -> None:
        columns = min(SHEET_COLUMNS, len(rows[0]))
        sheet(np.concatenate(rows), columns).save(settings.folder / f"{name}.png")

    if not gate(settings.folder / ASSET, settings.folder / GATE_FOLDER, log, show, settings.effort):
        raise SystemExit("the asset does not pass")


def run_look(settings: Settings, log: Log) -> None:
    """What pictures are like -> pictures.png: four rows to train on, then the character and the styles held back."""
    count = SHEET_COLUMNS // 2
    shown = [picture(settings.seed, "train", number) for number in range(4 * SHEET_COLUMNS)]
    shown += [stranger(settings.seed, number) for number in range(SHEET_COLUMNS - count)]
    shown += [strange_style(HELD_STYLES[number % 2], settings.seed, number) for number in range(count)]
    pixels = np.stack([pixels_of(one) for one in shown]).transpose(0, 2, 3, 1)
    sheet(pixels, SHEET_COLUMNS).quantize(PALETTE).save(settings.folder / "pictures.png", optimize=True)
    log(f"{settings.folder / 'pictures.png'}: {caption(shown[0], python_random(settings.seed, 'look'))}")


def run_examples(settings: Settings, log: Log) -> None:
    """Data sets of what is held back, as a project has them -> examples/<name>/01.png, 01.txt, ...: the gate's own."""
    for name, (one, text_of) in SUBJECTS.items():
        folder = settings.folder / "examples" / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(LORA_PICTURES):
            render(one(number)).save(folder / f"{number + 1:02}.png", optimize=True)
            line = text_of(one(number), number) + "\n"
            (folder / f"{number + 1:02}.txt").write_text(line, encoding="utf-8", newline="\n")
        log(f"{folder}: {LORA_PICTURES} pictures")


STAGES: dict[str, Callable[[Settings, Log], None]] = {
    "look": run_look, "examples": run_examples, "vae": run_vae, "decoder": run_decoder, "text": run_text, "unet": run_unet, "pack": run_pack, "gate": run_gate,
}  # fmt: skip
BY_DEFAULT = tuple(name for name in STAGES if name not in ("look", "examples"))


# what stages hand on


def _pixels(settings: Settings) -> np.ndarray:
    return drawn(settings.folder, settings.seed, settings.pictures, settings.processes)


def _held_pixels(settings: Settings) -> Tensor:
    return torch.stack([as_input(pixels_of(one)) for one in validation(settings.seed, settings.held)])


def _caption(settings: Settings, purpose: str, number: int, version: int, left_out: float = 0.12) -> str:
    draw = python_random(settings.seed, "caption", purpose, number, version)
    return caption(picture(settings.seed, purpose, number), draw, left_out)


def _captions(settings: Settings) -> list[str]:
    """Of all pictures, each picture's one after the other."""
    pictures, versions = range(settings.pictures), range(settings.captions)
    return [_caption(settings, "train", number, version) for number in pictures for version in versions]


def _held_samples(settings: Settings, held: Tensor) -> unet.Samples:
    captions = [_caption(settings, "validate", n, 0, LOOSE) for n in range(settings.held)]
    hidden, pooled = _conditions(settings, captions)
    return unet.Samples(held, hidden, pooled, (hidden[0], pooled[0]))


def _conditions(settings: Settings, captions: list[str]) -> tuple[Tensor, Tensor]:
    te1, te2 = (_loaded(settings, name) for name in TEXT_ENCODERS)
    hidden, pooled = text.conditions(te1, te2, captions, text.TOKENS)
    return hidden.half(), pooled.half()


def _save(settings: Settings, component: str, network: nn.Module) -> None:
    torch.save({k: v.cpu() for k, v in network.state_dict().items()}, settings.folder / f"{component}.weights")


def _loaded(settings: Settings, component: str, of: str = "") -> nn.Module:
    """With the weights of its own stage, or of another one. Raises SystemExit where that has not run."""
    path = settings.folder / f"{of or component}.weights"
    if not path.exists():
        raise SystemExit(f"{path}: not there yet: run the stage before")
    network = made(component, settings.seed)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.to(settings.device).eval().requires_grad_(False)


def _kept(settings: Settings, name: str, of: list[str], make: Callable[[], Any]) -> Any:
    """What `make` gives, kept in a file for as long as the weights that it is made with are the same."""
    path = settings.folder / f"{name}.kept"
    key = [settings.pictures, settings.captions, *_made_of(settings, of)]
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if kept["key"] == key:
            return kept["value"]
    value = make()
    torch.save({"key": key, "value": value}, path)
    return value


def _made_of(settings: Settings, components: list[str]) -> list[Any]:
    """The seed, and digests of these components' weights as far as they are there."""
    paths = [settings.folder / f"{one}.weights" for one in components]
    return [settings.seed, *(digest_file(path) if path.exists() else "" for path in paths)]


def _arrays(component: str, network: nn.Module) -> dict[str, np.ndarray]:
    return {file_name(component, name): p.detach().cpu().numpy() for name, p in network.named_parameters()}
