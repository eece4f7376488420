"""Name, draw and keep pictures of prompts: each is a piece, found by all that shapes it; with PNG texts that UIs read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabuild.bases.layout import CLIP_SKIP
from lorabuild.data.prompts import Prompt
from lorabuild.errors import JobError
from lorabuild.hashing import canonical_json
from lorabuild.streams import stream_seed

if TYPE_CHECKING:
    import numpy as np

    from lorabuild.nn.base import Base
    from lorabuild.workspace import Workspace

DRAWING = 1  # raised by hand when equal settings should give another picture
COMPONENTS = ("unet", "te1", "te2", "tokenizer1", "tokenizer2", "vae")

# sampler -> what A1111's web UI calls it; with k_ its schedule is Karras'.
UI_NAMES = {
    "ddim": "DDIM", "pndm": "PLMS", "lms": "LMS", "euler": "Euler", "euler_a": "Euler a", "heun": "Heun", "dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a", "dpmsolver": "DPM 2M", "dpmsolver++": "DPM++ 2M", "dpmsingle": "DPM++ 2S",
}  # fmt: skip

Settings = Mapping[str, Any]


def settings_of(
    prompt: Prompt,
    index: int,
    samples: Settings,
    recipe: Settings,
    prediction_type: str,
    clip_skip: int = CLIP_SKIP,
) -> dict[str, Any]:
    """All that shapes the picture of a prompt, but for the networks and the LoRA.

    `samples`: sample_sampler, parity, and size [w, h], the default. A seed that the prompt does not name follows from the
    recipe's and the prompt's place in the file, so that another text keeps its noise.
    """
    width, height = samples["size"]
    named = prompt.sample_sampler or samples["sample_sampler"]
    plain = named.removeprefix("k_")
    karras = named != plain and not samples["parity"]
    return {
        "prompt": prompt.prompt,
        "negative_prompt": prompt.negative_prompt,
        "width": prompt.width or width,
        "height": prompt.height or height,
        "seed": stream_seed(recipe["seed"], "sample", index) % 2**32 if prompt.seed is None else prompt.seed,
        "scale": prompt.scale,
        "sample_steps": prompt.sample_steps,
        "sampler": f"k_{plain}" if karras else plain,
        "parity": samples["parity"] and plain == "ddim",
        "prediction_type": prediction_type,
        "zero_terminal_snr": bool(recipe.get("zero_terminal_snr")),
        "mixed_precision": recipe["mixed_precision"],
        **({"clip_skip": clip_skip} if clip_skip != CLIP_SKIP else {}),  # which is how the base is loaded, too
    }


@dataclass
class Painter:
    """Draws for one job, on a base that is loaded when the first picture is really drawn.

    `components`: digest of each of COMPONENTS. `stepped(done, total)` is called before each run of the U-Net.
    """

    workspace: Workspace
    components: Mapping[str, str]
    base: Callable[[], Base]
    vae: Callable[[], Any]
    device: Callable[[], str]
    stepped: Callable[[int, int], None] = lambda done, total: None
    drawn: int = 0

    @contextmanager
    def on(
        self, digest: str | None, weights: Path | None, without: Sequence[str] = ()
    ) -> Iterator[Callable[[Settings, str], bytes]]:
        """What draws a prompt with the LoRA at `weights`, of that digest, on the base; None for the base alone. `without`
        are blocks of it that are left out.

        It takes the settings and the prompt's place, which a JobError begins with, and gives the PNG. The LoRA is put on
        the base for the first picture that is not there yet.
        """
        with ExitStack() as stack:
            on: list[Base] = []

            def base() -> Base:
                if not on:
                    on.append(self._with(weights, without, stack))
                return on[0]

            def draw(settings: Settings, where: str) -> bytes:
                components = {name: self.components[name] for name in COMPONENTS}
                part = {"without": sorted(without)} if without else {}
                shapes = {"version": DRAWING, "weights": digest, **part, "base": components, **settings}

                def make() -> bytes:
                    pixels = self.draw(base(), settings, where)
                    self.drawn += 1
                    return png(pixels, shapes)

                return self.workspace.piece({"piece": "picture", **shapes}, make)[0]

            yield draw

    def _with(self, weights: Path | None, without: Sequence[str], stack: ExitStack) -> Base:
        from lorabuild.nn.applied import applied

        base = self.base()
        if unknown := stack.enter_context(applied(base, weights, self.device(), without)):
            print(f"without {len(unknown)} modules that are unknown here: {', '.join(unknown[:3])}")  # to the job's log
        return base

    def draw(self, base: Base, settings: Settings, where: str) -> np.ndarray:
        """The picture of the base as it is, with whatever adapter stands on it, uint8 [h, w, 3]."""
        from lorabuild.nn.sampler import draw

        try:
            return draw(base, self.vae, settings, self.device(), self.stepped)
        except JobError as error:
            raise JobError(f"{where}: {error}") from None


def png(pixels: np.ndarray, settings: Settings) -> bytes:
    """A PNG file with its settings in two texts: "parameters", which UIs read, and "lorabuild", all of them as JSON."""
    from PIL import Image, PngImagePlugin

    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", parameters(settings))
    told.add_text("lorabuild", canonical_json(dict(settings)).decode())
    return _encoded(Image.fromarray(pixels), told)


def parameters(settings: Settings) -> str:
    """The settings as A1111's web UI writes them into its pictures, and others read them."""
    plain = settings["sampler"].removeprefix("k_")
    said = {
        "Steps": settings["sample_steps"],
        "Sampler": UI_NAMES[plain],
        **({"Schedule type": "Karras"} if plain != settings["sampler"] else {}),
        "CFG scale": f"{settings['scale']:g}",
        "Seed": settings["seed"],
        "Size": f"{settings['width']}x{settings['height']}",
        **({"Clip skip": settings["clip_skip"]} if "clip_skip" in settings else {}),
    }
    negative = [f"Negative prompt: {settings['negative_prompt']}"] if settings["negative_prompt"] else []
    return "\n".join([settings["prompt"], *negative, ", ".join(f"{key}: {value}" for key, value in said.items())])


EDGE, TITLE = 4, 16  # pixels: between pictures, and for the line above a column


def sheet(rows: Sequence[Sequence[bytes]], titles: Sequence[str], side: int) -> bytes:
    """Pictures in a grid, a row a prompt, under the titles of the columns; none longer than `side` pixels. PNG."""
    from PIL import Image, ImageDraw

    cells = [[_small(picture, side) for picture in row] for row in rows]
    widths = [max(row[column].width for row in cells) for column in range(len(titles))]
    heights = [max(cell.height for cell in row) for row in cells]
    size = sum(widths) + EDGE * (len(widths) + 1), TITLE + sum(heights) + EDGE * (len(heights) + 1)
    page = Image.new("RGB", size, "white")
    pen, top = ImageDraw.Draw(page), TITLE + EDGE
    for row, height in zip(cells, heights, strict=True):
        left = EDGE
        for cell, width in zip(row, widths, strict=True):
            page.paste(cell, (left, top))
            left += width + EDGE
        top += height + EDGE
    left = EDGE
    for title, width in zip(titles, widths, strict=True):
        pen.text((left, EDGE // 2), _fitting(pen, title, width), fill="black")
        left += width + EDGE
    return _encoded(page, None)


def _small(picture: bytes, side: int) -> Any:
    from PIL import Image

    image = Image.open(BytesIO(picture)).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _fitting(pen: Any, title: str, width: int) -> str:
    """As much of a title as its column is wide."""
    while title and pen.textlength(title) > width:
        title = title[:-1]
    return title


def _encoded(image: Any, told: Any) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", pnginfo=told)
    return file.getvalue()
