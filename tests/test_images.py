"""Images: found by extension, decoded as they look, cut as sd-scripts cuts them."""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from lorabuild.data.buckets import Geometry, geometry
from lorabuild.data.images import (
    caption_path,
    decode,
    decode_alpha,
    list_images,
    named_folders,
    pixels_digest,
    resize_and_crop,
    to_chw,
    to_mask,
)
from lorabuild.errors import JobError

ROWS = json.loads((Path(__file__).parent / "goldens/resize_crop.json").read_text())["rows"]


def picture(width: int, height: int) -> Image.Image:
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    channels = np.broadcast_arrays(x * 255 // (width - 1), y * 255 // (height - 1), (7 * x + 13 * y) % 256)
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def stored(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def message(data: bytes) -> str:
    with pytest.raises(JobError) as caught:
        decode(data, "images/1.png")
    (problem,) = caught.value.problems
    assert str(problem).startswith("images/1.png: ") and "\n" not in str(problem)
    return str(problem)


# finding


def test_a_folder_is_listed_by_extension_in_any_case_sorted_and_not_recursively(tmp_path: Path):
    for name in ("b.PNG", "a.Jpg", "c.jpeg", "d.webp", "e.bmp", "a.txt", "f.gif", "._a.png", "10.png", "g.avif"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "5_name").mkdir()
    (tmp_path / "5_name" / "x.png").touch()
    assert [path.name for path in list_images(tmp_path)] == [
        "10.png",
        "a.Jpg",
        "b.PNG",
        "c.jpeg",
        "d.webp",
        "e.bmp",
        "g.avif",
    ]


def test_folders_are_read_by_their_repeats_and_class_tokens(tmp_path: Path):
    for name in ("10_ember fox", "2_a_b", "3", "0_no", "x_4", "_5", "-1_x", "4_"):
        (tmp_path / name).mkdir()
    (tmp_path / "7_file").touch()
    found = [(path.name, repeats, tokens) for path, repeats, tokens in named_folders(tmp_path)]
    assert found == [("10_ember fox", 10, "ember fox"), ("2_a_b", 2, "a_b"), ("3", 3, ""), ("4_", 4, "")]


def test_what_is_no_folder_is_told_apart(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        list_images(tmp_path / "none")
    with pytest.raises(NotADirectoryError):
        list_images(tmp_path / "file")


@pytest.mark.parametrize("extension", [".txt", "txt"])
def test_a_caption_lies_beside_its_image(extension: str):
    assert caption_path(Path("x/a.b.png"), extension) == Path("x/a.b.txt")


# decoding


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_upright_by_its_exif(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = stored(picture(20, 10), exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image)
    assert same(decode(data, "x"), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0garbage", b"Exif\0\0garbage of no kind", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unreadable_exif_does_not_spoil_a_picture(exif: bytes):
    assert same(decode(stored(picture(20, 10), exif=exif), "x"), picture(20, 10))


def test_transparency_is_composited_on_white():
    image = Image.new("RGBA", (3, 1))
    image.putpixel((0, 0), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 128))
    image.putpixel((2, 0), (200, 0, 0, 255))
    pixels = np.asarray(decode(stored(image), "x"))[0].astype(int)
    assert np.abs(pixels - [[255, 255, 255], [227, 127, 127], [200, 0, 0]]).max() <= 1


def test_a_transparent_palette_colour_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    pixels = np.asarray(decode(stored(image, transparency=0), "x"))
    assert pixels.tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bit_grey_keeps_its_tones():
    grey = np.array([[0, 0x1234, 0x8000, 0xFFFF]], np.uint16)
    assert np.asarray(decode(stored(Image.fromarray(grey)), "x"))[0, :, 0].tolist() == [0, 0x12, 0x80, 0xFF]


def test_by_another_policy_the_colour_under_transparent_pixels_is_seen():
    image = Image.new("RGBA", (2, 1), (200, 10, 0, 0))
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert np.asarray(decode(stored(image), "x", "drop")).tolist() == [[[200, 10, 0]] * 2]
    assert np.asarray(decode(stored(palette, transparency=0), "x", "drop")).tolist() == [[[10, 20, 30]]]


def test_alpha_is_upright_and_none_where_nothing_is_transparent():
    image = picture(3, 2).convert("RGBA")
    image.putpixel((0, 0), (1, 2, 3, 100))
    exif = Image.Exif()
    exif[0x0112] = 3
    assert np.asarray(decode_alpha(stored(image, exif=exif), "x")).tolist() == [[255, 255, 255], [255, 255, 100]]
    assert decode_alpha(stored(picture(3, 2).convert("RGBA")), "x") is None
    assert decode_alpha(stored(picture(3, 2)), "x") is None
    grey = Image.fromarray(np.array([[[9, 0], [9, 255]]], np.uint8), "LA")
    assert np.asarray(decode_alpha(stored(grey), "x")).tolist() == [[0, 255]]
    assert np.asarray(decode(stored(grey), "x"))[0, :, 0].tolist() == [255, 9]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_kind_of_picture_looks_as_it_should(mode: str):
    source = picture(16, 16)
    image = source.convert(mode)
    data = stored(image, "JPEG", quality=100, subsampling=0) if mode == "CMYK" else stored(image)
    found, expected = (np.asarray(one).astype(int) for one in (decode(data, "x"), image.convert("RGB")))
    assert np.abs(found - expected).max() <= (12 if mode == "CMYK" else 0)


def png16(colour: int, channels: int, rows: list[list[int]]) -> bytes:
    """A PNG of 16-bit numbers: PIL cannot write one of colours."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    body = b"".join(b"\0" + struct.pack(f">{len(row)}H", *row) for row in rows)
    header = struct.pack(">IIBBBBB", len(rows[0]) // channels, len(rows), 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("colour", "pixel", "seen"),
    [
        (0, [0x8000], [128] * 3),
        (2, [0x1200, 0x8000, 0xFFFF], [0x12, 128, 255]),
        (4, [0x4000, 0xFFFF], [64] * 3),
        (4, [0x4000, 0], [255] * 3),
        (6, [0x1200, 0x8000, 0xFFFF, 0xFFFF], [0x12, 128, 255]),
    ],
)
def test_sixteen_bits_keep_their_tones(colour: int, pixel: list[int], seen: list[int]):
    assert np.asarray(decode(png16(colour, len(pixel), [pixel * 2]), "x")).tolist() == [[seen, seen]]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "AVIF"])
def test_of_an_animation_the_first_picture_counts(form: str):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    data = stored(frames[0], form, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert np.abs(np.asarray(decode(data, "x")).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("orientation", [1, 6])
def test_avif_is_read(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(stored(picture(20, 10), "AVIF", quality=100, exif=exif), "x")
    assert found.size == ((20, 10) if orientation == 1 else (10, 20))


def test_jpeg_xl_is_read_where_its_package_is_and_named_where_it_is_not(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pillow_jxl")
    data = stored(picture(20, 10), "JXL", lossless=True)
    assert same(decode(data, "x"), picture(20, 10))
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    assert "lorabuild[jxl]" in message(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "AVIF"])
def test_a_truncated_image_is_one_line(form: str):
    data = stored(picture(64, 64), form)
    for length in (len(data) // 2, 12):
        assert "truncated" in message(data[:length])


def test_other_formats_are_refused_whatever_the_file_is_called():
    assert "not a PNG, JPEG, WebP, BMP, AVIF or JPEG XL image" in message(stored(picture(8, 8), "GIF"))
    assert "not a PNG, JPEG, WebP, BMP, AVIF or JPEG XL image" in message(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )
    assert "empty file" in message(b"")


def test_a_decompression_bomb_is_one_line():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert "more than 178 megapixels" in message(data)


def test_the_digest_is_that_of_the_pixels():
    image = picture(20, 10)
    comment = PngImagePlugin.PngInfo()
    comment.add_text("parameters", "masterpiece")
    digests = {
        pixels_digest(decode(data, "x"))
        for data in (
            stored(image),
            stored(image, pnginfo=comment),
            stored(image, "BMP"),
            stored(image, compress_level=0),
        )
    }
    assert len(digests) == 1
    other = Image.frombytes("RGB", (10, 20), image.tobytes())
    assert pixels_digest(other) != pixels_digest(image)


# cutting


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['src']}-{row['resized']}")
def test_pixels_are_those_of_sd_scripts(row: dict):
    settings = {
        "resolution": [1024, 1024],
        "enable_bucket": True,
        "bucket_no_upscale": row["no_upscale"],
        "bucket_reso_steps": 32,
        "min_bucket_reso": 256,
        "max_bucket_reso": 2048,
    }
    place = geometry(tuple(row["src"]), settings)
    assert (list(place.resized), list(place.bucket)) == (row["resized"], row["bucket"])
    pixels = resize_and_crop(picture(*row["src"]), place)
    assert pixels.dtype == np.uint8 and pixels.shape == (row["bucket"][1], row["bucket"][0], 3)
    for (y, x), expected in row["pixels_yx_rgb"]:
        assert np.abs(pixels[y, x].astype(int) - expected).max() <= 1
    assert pixels.reshape(-1, 3).mean(0) == pytest.approx(row["mean"], abs=1e-3)


def test_shrinking_by_whole_numbers_is_the_mean_of_blocks():
    source = picture(12, 9)
    pixels = resize_and_crop(source, Geometry((4, 3), (4, 3), (0, 0)))
    blocks = np.asarray(source).astype(float).reshape(3, 3, 4, 3, 3).mean((1, 3))
    assert np.array_equal(pixels, np.rint(blocks))


def test_a_mask_is_the_mean_of_what_each_latent_pixel_covers():
    alpha = np.zeros((16, 8), np.uint8)
    alpha[:8, :4] = 255
    alpha[8:, :] = 51
    mask = to_mask(alpha)
    assert mask.dtype == np.float32 and mask.tolist() == [[0.5], [pytest.approx(0.2)]]


def test_only_the_bucket_is_kept_wherever_it_starts():
    source = picture(97, 89)
    whole = resize_and_crop(source, Geometry((60, 55), (60, 55), (0, 0)))
    part = resize_and_crop(source, Geometry((60, 55), (32, 16), (7, 5)))
    assert np.array_equal(part, whole[5:21, 7:39])


def test_pixels_reach_the_vae_in_its_range():
    pixels = np.array([[[0, 51, 255]], [[255, 0, 0]]], np.uint8)
    values = to_chw(pixels)
    assert values.dtype == np.float32 and values.shape == (3, 2, 1) and values.flags.c_contiguous
    assert values[:, 0, 0].tolist() == pytest.approx([-1, -0.6, 1], abs=1e-7)
