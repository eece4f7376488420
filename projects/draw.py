"""Draw the pictures and captions of the example projects: `python projects/draw.py` writes the same bytes again."""

from __future__ import annotations

from pathlib import Path

from drawing import blueprint_pictures, ember_pictures
from drawing.canvas import finished

PROJECTS = {"ember": ember_pictures.PICTURES, "blueprint": blueprint_pictures.PICTURES}


def main() -> None:
    """Write `<project>/images/01.png`, `01.txt` and so on; a pixel is RGB, a caption is a line of tags."""
    for name, pictures in PROJECTS.items():
        folder = Path(__file__).parent / name / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for number, (draw, tags) in enumerate(pictures, start=1):
            finished(draw()).save(folder / f"{number:02}.png", optimize=True)
            (folder / f"{number:02}.txt").write_text(tags + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
