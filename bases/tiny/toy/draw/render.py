"""Render a picture: scene, creature, then what its style does to all of it."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageDraw, ImageOps, ImageStat

from toy.draw.canvas import FINER, Canvas
from toy.draw.creature import draw_creature
from toy.draw.scenes import draw_scene
from toy.traits import BACKGROUNDS, Picture

SIZE = 128  # pixels a side
OUTLINE = 0.02  # of the side
OUTLINED = ("outline", "sketch", "blueprint", "ink")
PAPER = (250, 245, 230)


def render(picture: Picture, size: int = SIZE) -> Image.Image:
    """An RGB image of `size` by `size` pixels: the same at every call."""
    canvas = Canvas(size, BACKGROUNDS[picture.background], OUTLINE if picture.style in OUTLINED else 0.0)
    draw_scene(canvas, picture)
    draw_creature(canvas, picture)
    return STYLES.get(picture.style, _as_it_is)(canvas.image).reduce(FINER)


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def _pastel(image: Image.Image) -> Image.Image:
    return Image.blend(image, Image.new("RGB", image.size, (255, 250, 240)), 0.5)


def _monochrome(image: Image.Image) -> Image.Image:
    return ImageOps.grayscale(image).convert("RGB")


def _sketch(image: Image.Image) -> Image.Image:
    return Image.blend(_pastel(image), Image.new("RGB", image.size, PAPER), 0.45)


def _vintage(image: Image.Image) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(image), (60, 40, 30), (250, 225, 180))


def _blueprint(image: Image.Image) -> Image.Image:
    inverted = ImageOps.invert(ImageOps.grayscale(image))
    blue = ImageOps.colorize(inverted, (15, 50, 130), (235, 245, 255))
    draw, side = ImageDraw.Draw(blue), blue.size[0]
    for step in range(0, side, side // 8):
        draw.line([(step, 0), (step, side)], fill=(90, 130, 200), width=side // 128)
        draw.line([(0, step), (side, step)], fill=(90, 130, 200), width=side // 128)
    return blue


def _ink(image: Image.Image) -> Image.Image:
    gray = ImageOps.grayscale(image)
    middle = ImageStat.Stat(gray).mean[0]  # so that there are two colours on dark and on light grounds
    hard = gray.point(lambda value: 255 if value > middle else 0)
    return ImageOps.colorize(hard, (120, 10, 30), (255, 240, 200))


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "flat": _as_it_is, "outline": _as_it_is, "pastel": _pastel, "monochrome": _monochrome,
    "sketch": _sketch, "vintage": _vintage, "blueprint": _blueprint, "ink": _ink,
}  # fmt: skip
