"""Find the images of a folder, decode them, and cut them to their bucket."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from lorabuild.errors import JobError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from lorabuild.buckets import Geometry

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # no others, whatever a file is called: some of PIL's readers run programs


def list_images(folder: Path) -> list[Path]:
    """The images that lie directly in `folder`, by name. Hidden files do not count: `._1.png` is none.

    Raises OSError, among them FileNotFoundError and NotADirectoryError.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if _is_image(entry.name) and entry.is_file())
    return [folder / name for name in names]


def caption_path(image: Path, extension: str) -> Path:
    """Where the caption of an image would lie. The extension's dot may be missing, as in sd-scripts."""
    return image.with_name(f"{image.stem}.{extension.removeprefix('.')}")


def decode(data: bytes, shown: str) -> Image:
    """The picture in a file's bytes as a PIL image in RGB: upright by its EXIF orientation, on white where transparent.

    Raises JobError, one line that begins with `shown`, if it is truncated, damaged, of another format or too large.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise JobError(f"{shown}: an empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 1_000_000
        raise JobError(f"{shown}: more than {limit} megapixels: too large, or made to exhaust memory") from None
    except UnidentifiedImageError:
        raise JobError(f"{shown}: truncated, or not a PNG, JPEG, WebP or BMP image") from None
    except Exception as error:  # what a decoder meets in damaged data has many names
        raise JobError(f"{shown}: truncated or damaged image: {_one_line(error)}") from None
    return _rgb(_upright(image))


def pixels_digest(image: Image) -> str:
    """xxh3-128 of size and pixels: how they were stored, and what else stood in the file, does not count."""
    state = xxhash.xxh3_128(f"{image.width}x{image.height} {image.mode}\n".encode())
    state.update(image.tobytes())
    return state.hexdigest()


def resize_and_crop(image: Image, geometry: Geometry) -> np.ndarray:
    """The part of the resized image that its bucket keeps: uint8 [h, w, 3].

    As sd-scripts: where neither side grows, each pixel is the mean of the area that it covers (cv2's INTER_AREA), else
    Lanczos.
    """
    import numpy as np
    from PIL.Image import Resampling

    (width, height), (columns, rows), (left, top) = geometry.resized, geometry.bucket, geometry.crop
    window = slice(top, top + rows), slice(left, left + columns)
    if image.size == geometry.resized:
        return np.asarray(image)[window]
    if image.width < width or image.height < height:
        return np.asarray(image.resize(geometry.resized, Resampling.LANCZOS))[window]
    means = _area_means(np.asarray(image), height, window[0])
    means = _area_means(means.swapaxes(0, 1), width, window[1]).swapaxes(0, 1)
    return np.rint(means).astype(np.uint8)


def to_chw(pixels: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] -> float32 [3, h, w] in -1..1, as a VAE takes it."""
    import numpy as np

    unit = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((unit - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1))


def latent_name(image: Mapping[str, Any], flip: bool) -> str:
    """The name, in the packed latents, of an image of dataset.json or geometry.json, or of its mirror image."""
    width, height = image["bucket"]
    return f"{image['digest']}.{width}x{height}{'.flip' if flip else ''}"


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _upright(image: Image) -> Image:
    """Turned and mirrored as its EXIF or XMP orientation says.

    Not by PIL's exif_transpose: that writes the rest of the EXIF anew, and fails on what it cannot write.
    """
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # EXIF that cannot be read says nothing of the orientation; the picture is whole
        return image
    return image.transpose(turns[orientation]) if orientation in turns else image


def _rgb(image: Image) -> Image:
    """8-bit RGB. Transparent pixels become white: the colour stored under them was never meant to be seen."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey: PIL's conversion clips at 255, nearly all is white then
        image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _area_means(pixels: np.ndarray, length: int, part: slice) -> np.ndarray:
    """Axis 0 of `pixels` [L, ...] shrunk to `length`, of which `part`: float32 means, by share of covered pixels."""
    import numpy as np

    scale = len(pixels) / length
    starts = np.arange(part.start, part.stop) * scale
    total = np.zeros((len(starts), *pixels.shape[1:]), np.float32)
    for offset in range(int(np.ceil(scale)) + 1):
        rows = np.floor(starts).astype(np.intp) + offset
        covered = np.minimum(starts + scale, rows + 1) - np.maximum(starts, rows)
        weights = (covered.clip(0) / scale).astype(np.float32)
        total += weights[:, None, None] * pixels[rows.clip(max=len(pixels) - 1)]
    return total


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
