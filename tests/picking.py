"""A project whose LoRA has some layers in every block, and the page of its picker."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from browser import Browser
from chops import safetensors
from world import World

from lorabuild.lora.sdxl_names import text_layers, unet_layers
from lorabuild.names import block_of

STATIC = Path(__file__).resolve().parents[1] / "lorabuild/report/static"
EACH = 3  # layers of a block
KEEP = '["TE", "OUT01"]'


def every_block() -> list[str]:
    """Modules: the first few of each block of SDXL."""
    names = [f"lora_unet_{one.sgm}" for one in unet_layers() if one.kind != "norm"]
    names += [f"lora_te{encoder}_{path}" for encoder in (1, 2) for path in text_layers(encoder)]
    found: dict[str, list[str]] = {}
    for name in (name.replace(".", "_") for name in names):
        if (block := block_of(name)) and block != "INP00":
            found.setdefault(block, []).append(name)
    return [name for block in found.values() for name in block[:EACH]]


def picking(root: Path, keep: str = KEEP, more: str = "") -> World:
    """A repository with one project, ember, that chops a file of every block; not built."""
    world, chance = World(root), random.Random(0)
    tensors: dict[str, Any] = {}
    for name in every_block():
        rank, out = chance.randint(1, 4), chance.randint(4, 12)
        for end, shape in ((".lora_down.weight", (rank, 8)), (".lora_up.weight", (out, rank)), (".alpha", ())):
            count = shape[0] * shape[1] if shape else 1
            tensors[name + end] = (shape, [chance.uniform(-1, 1) if shape else 1.0 for _ in range(count)])
    world.write("lorabuild.toml", '[build]\ndefault = ["chop"]\n')
    world.write("projects/ember/a.safetensors", safetensors(tensors))
    manifest(world, f"keep = {keep}", more)
    return world


def manifest(world: World, chop: str, more: str = "") -> None:
    text = f'[project]\nbase = "tiny"\nsource = "a.safetensors"\n[chop]\n{chop}\n{more}\n'
    world.write("projects/ember/lora.toml", text)


def page(world: World) -> Path:
    """The page of the project, brought up to date."""
    from lorabuild.verbs.report import refresh

    refresh(world.root)
    return world.root / "build/report/ember.html"


class Picker:
    """The picker of a page that is open."""

    def __init__(self, browser: Browser, page: Path, **how: Any):
        self.browser = browser
        browser.open(page, **how)

    @property
    def bytes(self) -> int:
        return int(self.browser.find("#picker").get_attribute("data-bytes"))

    @property
    def lines(self) -> dict[str, str]:
        """Name -> what its button copies."""
        code = "return [...document.querySelectorAll('.picker-line')].map(e => [e.dataset.line, e.querySelector('button').dataset.copy])"
        return dict(self.browser.js(code))

    @property
    def notes(self) -> str:
        return self.browser.find(".picker-notes").text

    @property
    def said(self) -> str:
        return self.browser.find("#picker-said").text

    def toggle(self, block: str) -> Any:
        return self.browser.find(f'[data-block="{block}"] button')

    def preset(self, name: str) -> None:
        self.browser.find(f'[data-preset="{name}"]').click()

    def paste(self, text: str) -> None:
        code = (
            "const area = document.getElementById('picker-paste'); area.value = arguments[0]; area.nextSibling.click();"
        )
        self.browser.js(code, text)

    def weights(self) -> dict[str, float]:
        code = """return [...document.querySelectorAll('[data-block]')].map(e =>
          [e.dataset.block, e.querySelector('button').ariaPressed === 'true'
            ? Number(e.querySelector('input').getAttribute('aria-valuetext')) : 0])"""
        return {block: float(weight) for block, weight in self.browser.js(code)}
