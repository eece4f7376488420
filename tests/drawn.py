"""A project's pictures without a drawing: a samples.json and PNGs that no network has made, and a page of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lorabuild.hashing import digest_bytes
from lorabuild.report import page
from lorabuild.report.files import ProjectFiles, StageState
from lorabuild.sampling.differences import differences, pairs
from lorabuild.sampling.pictures import png

PROMPTS = ("ember, sitting", '<script>alert("x")</script> & ember')
SIDES, STEPS, BLOCKS = ("base", "trained", "resized", "chopped"), (10, 20), ("INP04", "MID01", "OUT01", "TE2")
SETTINGS = {
    "negative_prompt": "", "width": 256, "height": 192, "seed": 7, "scale": 7.0, "sample_steps": 2, "sampler": "euler",
    "prediction_type": "epsilon",
}  # fmt: skip


def pixels(strength: float, number: int, place: int = 0) -> np.ndarray:
    """A ball on a slope: the stronger, the more of another colour."""
    y, x = np.mgrid[0 : SETTINGS["height"], 0 : SETTINGS["width"]]
    ball = np.hypot(x - 90 - 60 * number, y - 96) < 30 + 30 * strength
    picture = np.stack([x / 2 + 40, y / 2 + 60, 120 + 0 * x], axis=-1)
    picture[ball] = [60 + 180 * strength, 90 + 4 * place, 200 - 150 * strength]
    return picture.astype(np.uint8)


def draw(folder: Path) -> Path:
    """Write samples.json and samples/ as the stage does."""
    strengths = dict(
        zip(("base", "step/10", "step/20", "trained", "resized", "chopped"), (0, 0.4, 0.8, 1, 0.9, 0.7), strict=True)
    )
    parts = {f"{kind}/{block}": 0.9 - 0.2 * (kind == "only") for block in BLOCKS for kind in ("without", "only")}
    told = []
    (folder / "samples").mkdir(parents=True)
    compared = pairs(SIDES, [f"step/{step}" for step in STEPS], dict.fromkeys(parts, "resized"))
    for number, prompt in enumerate(PROMPTS):
        settings = {**SETTINGS, "prompt": prompt}
        pictures = {
            role: png(pixels(strength, number, 2 * place), settings)
            for place, (role, strength) in enumerate((strengths | parts).items())
        }
        found = differences(pictures, compared)
        for role, picture in pictures.items():
            family, _, member = role.partition("/")
            name = f"step{int(member):08}" if family == "step" else role.replace("/", "-")
            part = {"block": member, "shown": family, "without": [member]} if role in parts else {}
            told.append(
                {"file": f"samples/{number:02}-{name}.png", "picture": digest_bytes(picture)}
                | {"weights": "resized" if part else role, "digest": None if role == "base" else f"d-{role}", **part}
                | {"line": number + 1, "tokens": [3, 3], **settings, "difference": found.get(role, {})}
            )
            (folder / told[-1]["file"]).write_bytes(picture)
    (folder / "samples.json").write_text(json.dumps({"pictures": told}))
    return folder / "samples.json"


def files_of(folder: Path, **changes: Any) -> ProjectFiles:
    """The project `ember` whose pictures stand in `folder`."""
    samples = folder / "samples.json"
    states = {
        stage: StageState(stage, f"{stage}:ember", "fresh", record={"outputs": {"weights": {"digest": f"d-{role}"}}})
        for stage, role in (("train", "trained"), ("resize", "resized"), ("chop", "chopped"), ("samples", ""))
    }
    values: dict[str, Any] = {
        "name": "ember",
        "root": folder,
        "settings": {"project": {"title": None, "source": None}, "samples": {"prompts": "prompts.txt"}},
        "whence": {},
        "paths": {"samples": samples if samples.exists() else None, "pictures": folder},
        "states": states,
    }
    return ProjectFiles(**(values | changes))


def page_of(files: ProjectFiles, folder: Path) -> Path:
    """A page with the sections of pictures alone, with what stands beside it."""
    whole = page._modules
    page._modules = lambda: {name: whole()[name] for name in ("sheets", "strip", "ablation")}
    try:
        html, around = page.render_project(files), page.beside(files)
    finally:
        page._modules = whole
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in around.items():
        target = folder / files.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(content, target)
    place = folder / "ember.html"
    place.write_text(html, encoding="utf-8")
    return place
