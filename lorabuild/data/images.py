"""Find the images of a folder, decode them, and cut them to their bucket."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from lorabuild.data.buckets import PIXELS_PER_LATENT
from lorabuild.data.resampling import resize_window
from lorabuild.errors import JobError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from lorabuild.data.buckets import Geometry

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl")
# No others, whatever a file is called: some of PIL's readers run programs. PIL itself reads no JPEG XL.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "AVIF", "JXL")
NOT_UTF8 = "its name is not UTF-8: rename it"
MASKED = "mask"  # what a row's digest of its alpha channel is called
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")  # a bare codestream, or one in a box


def list_images(folder: Path) -> list[Path]:
    """The images that lie directly in `folder`, by name. Hidden files do not count: `._1.png` is none.

    A link that leads nowhere is one: who has it there expects a picture, and is told. Raises OSError, among them
    FileNotFoundError and NotADirectoryError.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if _is_image(entry.name) and not is_folder(entry))
    return [folder / name for name in names]


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def caption_path(image: Path, extension: str) -> Path:
    """Where the caption of an image would lie. The extension's dot may be missing, as in sd-scripts."""
    return image.with_name(caption_name(image.name, extension))


def caption_name(image: str, extension: str) -> str:
    """The name of the caption of an image of this name."""
    return f"{os.path.splitext(image)[0]}.{extension.removeprefix('.')}"


def named_folders(folder: Path) -> list[tuple[Path, int, str]]:
    """The folders `10_ember` directly in `folder` as sd-scripts reads their names: (path, repeats, class tokens).

    By name. Others are left out, and those with less than one repeat. Raises OSError as list_images does.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    parts = [(name, *name.partition("_")) for name in names]
    found = [(folder / name, int(number), tokens) for name, number, _, tokens in parts if number.isdecimal()]
    return [one for one in found if one[1] > 0]


def decode(data: bytes, shown: str, alpha_policy: str = "white") -> Image:
    """The picture in a file's bytes as a PIL image in RGB: upright by its EXIF orientation, on white where transparent.

    With `alpha_policy` "drop" the colours that are stored under transparent pixels are seen, as in sd-scripts. Of an
    animation it is the first picture. Raises JobError, one line that begins with `shown`, if it is truncated, damaged,
    of another format or too large.
    """
    return seen(opened(data, shown), alpha_policy)


def seen(image: Image, alpha_policy: str = "white") -> Image:
    """An opened picture as `decode` has it."""
    return _rgb(_upright(image), alpha_policy)


def opened(data: bytes, shown: str) -> Image:
    """The picture in a file's bytes, decoded whole, as it is stored. Raises JobError as decode does."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise JobError(f"{shown}: an empty file")
    if data.startswith(_JXL_STARTS):
        _read_jxl(shown)
    Image.init()
    try:
        image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
        image.load()
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 1_000_000
        raise JobError(f"{shown}: more than {limit} megapixels: too large, or made to exhaust memory") from None
    except UnidentifiedImageError:
        raise JobError(f"{shown}: truncated, or not a PNG, JPEG, WebP, BMP, AVIF or JPEG XL image") from None
    except Exception as error:  # what a decoder meets in damaged data has many names
        raise JobError(f"{shown}: truncated or damaged image: {_one_line(error)}") from None
    return image


def decode_alpha(data: bytes, shown: str) -> Image | None:
    """The alpha channel of a picture, upright, as a grey one (255 is opaque). None if nothing of it is transparent."""
    image = _upright(opened(data, shown))
    if not image.has_transparency_data or image.mode.startswith("I"):  # of 16-bit grey PIL knows one colour at most
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def pixels_digest(image: Image) -> str:
    """xxh3-128 of size and pixels: how they were stored, and what else stood in the file, does not count."""
    state = xxhash.xxh3_128(f"{image.width}x{image.height} {image.mode}\n".encode())
    state.update(image.tobytes())
    return state.hexdigest()


def resize_and_crop(image: Image, geometry: Geometry, interpolation: str | None = None) -> np.ndarray:
    """The part of the resized image that its bucket keeps: uint8 [h, w, 3]; [h, w] of a grey one."""
    (columns, rows), (left, top) = geometry.bucket, geometry.crop
    window = slice(top, top + rows), slice(left, left + columns)
    return resize_window(image, geometry.resized, window, interpolation)


def to_chw(pixels: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] -> float32 [3, h, w] in -1..1, as a VAE takes it."""
    import numpy as np

    unit = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((unit - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1))


def to_mask(alpha: np.ndarray) -> np.ndarray:
    """uint8 [h, w] -> float32 [h/8, w/8] in 0..1: how much of each latent pixel's area the loss counts."""
    import numpy as np

    side = PIXELS_PER_LATENT
    height, width = alpha.shape
    blocks = alpha.reshape(height // side, side, width // side, side).astype(np.float32)
    return blocks.mean((1, 3)) / np.float32(255)


def latent_name(image: Mapping[str, Any], flip: bool) -> str:
    """The name, in the packed latents, of an image of dataset.json or geometry.json, or of its mirror image."""
    return f"{image['digest']}.{_cut(image)}{'.flip' if flip else ''}"


def mask_name(image: Mapping[str, Any]) -> str:
    """The name of its mask there. By the alpha channel's digest: pictures that look the same may differ in it."""
    return f"{image[MASKED]}.{_cut(image)}.mask"


def _cut(image: Mapping[str, Any]) -> str:
    width, height = image["bucket"]
    return f"{width}x{height}" + (f".{image['interpolation']}" if "interpolation" in image else "")


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _read_jxl(shown: str) -> None:
    """Teach PIL to read JPEG XL. Raises JobError without the package that can."""
    try:
        import pillow_jxl  # noqa: F401  # by its import alone
    except ImportError:
        raise JobError(f"{shown}: a JPEG XL image: `pip install lorabuild[jxl]` brings what reads it") from None


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


def _rgb(image: Image, alpha_policy: str) -> Image:
    """8-bit RGB. Transparent pixels become white: the colour stored under them was never meant to be seen."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey: PIL's conversion clips at 255, nearly all is white then
        image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data and alpha_policy == "white":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
