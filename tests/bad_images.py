"""Make a folder of images and captions that are odd or wrong, each in one way: `python tests/bad_images.py FOLDER`.

`KINDS` says of each what `check` should say of it (codes; none where it is fine all the same), and of which the build
says that it cannot be used.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

Put = Callable[[Path], None]
TRAINED = "ember, red, sit"


@dataclass(frozen=True)
class Kind:
    """A file `name` that `put` makes, the codes that are told of it, and whether nothing can be built with it."""

    name: str
    put: Put
    codes: tuple[str, ...] = ()
    stops: bool = False
    caption: bytes | None = TRAINED.encode()


def drawn(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A picture that is unlike that of another seed."""
    image = Image.new("RGB", size, (40 * seed % 256, 90, 120))
    draw = ImageDraw.Draw(image)
    for number in range(6):
        x, y = (seed * 37 + number * 29) % size[0], (seed * 53 + number * 17) % size[1]
        draw.ellipse((x, y, x + 25, y + 20), fill=((seed * 99 + number * 60) % 256, number * 40, 255 - 30 * number))
    return image


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_size(png: bytes, width: int, height: int) -> bytes:
    """The same PNG, whose header says that it is larger."""
    return png[:8] + chunk(b"IHDR", struct.pack(">II", width, height) + png[24:29]) + png[33:]


def interlaced(image: Image.Image) -> bytes:
    """A PNG in Adam7's seven passes (ISO/IEC 15948, 8.2): PIL reads these and writes none."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b"".join(
        b"\0" + b"".join(bytes(image.getpixel((x, y))) for x in range(left, image.width, right))
        for left, top, right, down in passes
        for y in range(top, image.height, down)
    )
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


def holding(data: bytes) -> Put:
    def put(path: Path) -> None:
        path.write_bytes(data)

    return put


def unreadable(path: Path) -> None:
    path.write_bytes(saved(drawn(1)))
    path.chmod(0)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(drawn(50 + orientation), "JPEG", exif=exif)


def kinds() -> list[Kind]:
    """All of them. Each picture is unlike the others."""
    seeds = iter(range(100, 1000, 7))

    def png(size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
        return saved(drawn(next(seeds), size), **options)

    def jpg(**options: Any) -> bytes:
        return saved(drawn(next(seeds)), "JPEG", **options)

    def moving(form: str) -> bytes:
        first = drawn(next(seeds))
        return saved(first, form, save_all=True, append_images=[drawn(next(seeds))], duration=100)

    clear = Image.new("RGBA", (64, 64), (200, 10, 0, 0))
    grey = Image.frombytes("I;16", (64, 64), b"".join(bytes([0, 4 * y]) * 64 for y in range(64)))
    crc = damaged(png(), -13)  # the last byte of IDAT's CRC: 12 of IEND follow
    data = png()
    zlib_start = data.index(b"IDAT") + 4
    pictures = [
        Kind("truncated half.png", holding(data[: len(data) // 2]), ("LB031",), True),
        Kind("truncated in its header.png", holding(data[:20]), ("LB031",), True),
        Kind("truncated.jpg", holding(jpg()[:-300]), ("LB031",), True),
        Kind("truncated progressive.jpg", holding(jpg(progressive=True)[:-300]), ("LB031",), True),
        Kind("truncated by 40.webp", holding(saved(drawn(next(seeds)), "WEBP")[:-40]), ("LB031",), True),
        Kind("corrupt.png", holding(damaged(data, zlib_start)), ("LB031",), True),
        Kind("checksum.png", holding(crc), ("LB041",)),
        Kind("zero bytes.png", holding(b""), ("LB031",), True),
        Kind("text.png", holding(b"hello\n"), ("LB031",), True),
        Kind("gif.png", holding(saved(drawn(next(seeds)), "GIF")), ("LB031",), True),
        Kind("bomb.png", holding(with_size(png(), 40_000, 40_000)), ("LB031",), True),
        Kind("huge header.png", holding(with_size(png(), 2**31 - 1, 2**31 - 1)), ("LB031",), True),
        Kind("png.jpg", holding(png()), ("LB037",)),
        Kind("cmyk.jpg", holding(saved(drawn(next(seeds)).convert("CMYK"), "JPEG")), ("LB039",)),
        Kind("grey 16.png", holding(saved(grey)), ("LB039",)),
        Kind("palette.png", holding(saved(drawn(next(seeds)).convert("P"), transparency=0))),
        Kind("bits.png", holding(saved(drawn(next(seeds)).convert("1")))),
        Kind("moving GIF.gif", holding(moving("GIF")), ("LB040",)),
        Kind("moving WebP.webp", holding(moving("WEBP")), ("LB038",)),
        Kind("moving PNG.png", holding(moving("PNG")), ("LB038",)),
        *(Kind(f"turned {number}.jpg", holding(turned(number))) for number in range(1, 9)),
        Kind("profile.png", holding(png(icc_profile=b"no profile at all"))),
        Kind("interlaced.png", holding(interlaced(drawn(next(seeds))))),
        Kind("transparent.png", holding(saved(clear)), ("LB042",)),
        Kind("one pixel.png", holding(png((1, 1))), ("LB034", "LB042")),
        Kind("1x20000.png", holding(png((1, 20_000))), ("LB033", "LB034")),
        Kind("round.png", lambda path: path.symlink_to(path.name), ("LB031",), True),
        Kind("nowhere.png", lambda path: path.symlink_to("no such file"), ("LB031",), True),
        Kind("pipe.png", lambda path: os.mkfifo(path), ("LB031",), True),
        Kind("folder.png", lambda path: path.mkdir(), ("LB040",), caption=None),
        Kind("spaces  in it.png", holding(png())),
        Kind("“quotes” 'and' \"more\".png", holding(png())),
        Kind("line\nbreak.png", holding(png()[:90]), ("LB031",), True),
        Kind("日本語.png", holding(png()[:90]), ("LB031",), True),
        Kind("🔥.png", holding(png())),
        Kind("<script>.png", holding(png())),
        Kind("trailing.png.", holding(png()), ("LB040",), caption=None),
        Kind("n" * 251 + ".png", holding(png())),
        Kind(".hidden.png", holding(b"x"), caption=None),
        Kind(os.fsdecode(b"\xff.png"), holding(png()), ("LB031",), True),
    ]
    if os.geteuid():  # root may read everything
        pictures.append(Kind("secret.png", unreadable, ("LB031",), True))
    captions = [
        Kind("caption BOM.png", holding(png()), caption=b"\xef\xbb\xbfember, red"),
        Kind("caption UTF-16.png", holding(png()), ("LB050",), True, "ember, red".encode("utf-16")),
        Kind("caption NUL.png", holding(png()), ("LB050",), True, b"ember, \0red"),
        Kind("caption latin-1.png", holding(png()), ("LB050",), True, "ember, café".encode("latin-1")),
        Kind("caption 1 MB.png", holding(png()), ("LB055",), caption=b"ember" + b" red" * 250_000),
        Kind("caption empty.png", holding(png()), ("LB052",), caption=b""),
        Kind("caption twice.png", holding(png()), ("LB053",), caption=b"ember, red, Red"),
        Kind("caption other.png", holding(png()), ("LB054",), caption=b"embers, red"),
        Kind("caption none.png", holding(png()), ("LB051",), caption=None),
        Kind("one.jpg", holding(jpg())),
        Kind("one.png", holding(png()), ("LB058",)),
        Kind("alone.txt", holding(b"ember"), ("LB056",), caption=None),
    ]
    return pictures + captions


def make(folder: Path, kind: Kind) -> None:
    """The file of a kind, and its caption."""
    kind.put(folder / kind.name)
    if kind.caption is not None:
        (folder / f"{Path(kind.name).stem}.txt").write_bytes(kind.caption)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True)
    for one in kinds():
        make(where, one)
