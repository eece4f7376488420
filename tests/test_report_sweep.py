"""The report of a sweep: its variants side by side, with the numbers that their files have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from world import World

from lorabuild.report import index, overview, shrink, sweep
from lorabuild.report.collect import collected
from lorabuild.report.files import ProjectFiles, StageState
from lorabuild.report.page import FAULT, render_index, render_project
from lorabuild.verbs.report import refresh

MATRIX = "\n[matrix]\nthr = [-2.6, -2.5, -2.7]\n"


@pytest.fixture(scope="module")
def swept_once(built_once: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A built project with a sweep of three thresholds, of which one is its own."""
    world = built_once.copy(tmp_path_factory.mktemp("swept") / "repository")
    manifest = world.root / "projects/ember/lora.toml"
    manifest.write_text(manifest.read_text() + MATRIX)
    assert world.doit().code == 0
    refresh(world.root)
    return world


@pytest.fixture(scope="module")
def files(swept_once: World) -> ProjectFiles:
    with collected(swept_once.root) as (projects, _):
        return projects[0]


def test_rows_stand_in_the_order_of_their_values_with_what_their_files_weigh(files: ProjectFiles, swept_once: World):
    found = sweep.data(files)
    assert [row["values"] for row in found["rows"]] == [{"resize.thr": text} for text in ("-2.7", "-2.6", "-2.5")]
    for row in found["rows"]:
        folder = swept_once.root / "build/ember"
        assert row["measures"]["resized"] == (folder / f"ember-{row['name']}-resized.safetensors").stat().st_size
        assert row["measures"]["chopped"] == (folder / row["file"]).stat().st_size
        assert row["state"] == "fresh" and row["measures"]["rest"] > 0
    assert found["own"]["values"] == {"resize.thr": "-2.6"}
    assert found["own"]["measures"]["error"] == found["rows"][1]["measures"]["error"]
    assert [column["key"] for column in found["columns"]] == ["resized", "error", "chopped", "kept", "rest"]


def test_the_error_is_that_of_the_shrink_curve_and_a_chop_that_keeps_all_keeps_the_rest(files: ProjectFiles):
    (curve,) = shrink.data(files)["curves"]
    for row in sweep.data(files)["rows"]:
        value = row["numbers"]["resize.thr"]
        place = min(range(len(curve["values"])), key=lambda at: abs(curve["values"][at] - value))
        near = sorted(curve["lost"][max(0, place - 1) : place + 2])
        assert near[0] - 1e-6 <= row["measures"]["error"] <= near[-1] + 1e-6
    assert curve["lost"][curve["values"].index(-2.6)] == pytest.approx(
        sweep.data(files)["own"]["measures"]["error"], abs=2e-6
    )
    whole = {**files.settings, "chop": {"keep": ["*"], "allow_empty": False}}
    error, kept = sweep._energy(replace(files, settings=whole), sweep._spectrum)
    assert kept == pytest.approx(1 - error**2)
    half = {**files.settings, "chop": {"weights": dict.fromkeys(_blocks(files), 0.5), "allow_empty": False}}
    assert sweep._energy(replace(files, settings=half), sweep._spectrum)[1] == pytest.approx(kept / 4)


def _blocks(files: ProjectFiles) -> list[str]:
    from lorabuild.header import read_header
    from lorabuild.lora.chopping import Blocks

    return list(Blocks.read(read_header(files.path("resized")).tensors).present)


def test_a_sweep_is_one_row_of_the_index_and_no_crowd_elsewhere(files: ProjectFiles):
    own, swept = index.data([files])["rows"]
    assert (own["sweep"], swept["sweep"]) == ("", "sweep of 3 variants")
    assert swept["states"] == dict.fromkeys(("train", "spectrum", "resize", "chop"), "fresh")
    assert swept["least"]["resized"] < swept["sizes"]["resized"]
    assert '<a href="ember.html#sweep">sweep of 3 variants</a>' in render_index([files])
    assert not any("thr-2" in str(one) for one in overview.data(files)["files"])
    assert len(shrink.data(files)["curves"]) == 1


def test_the_page_is_whole_by_itself(files: ProjectFiles):
    page = render_project(files)
    assert FAULT not in page and 'id="sweep"' in page and "-2.7" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")


def test_without_a_sweep_there_is_no_section(files: ProjectFiles):
    assert sweep.data(replace(files, variants={})) is None


def variants(root: Path, points: list[dict[str, Any]], losses: list[float | None]) -> ProjectFiles:
    """A project of which only the facts of its trainings stand."""
    settings = {"project": {"base": "tiny"}, "recipe": {"unet_lr": 1e-3}, "resize": None, "chop": None}
    found = {}
    for number, (point, loss) in enumerate(zip(points, losses, strict=True)):
        facts = root / f"{number}.json"
        facts.write_text(json.dumps({"loss_before": 1.2, "loss_after": loss}))
        states = {"train": StageState("train", f"train:ember@{number}", "fresh", record={"seconds": 60.0 + number})}
        found[str(number)] = ProjectFiles(
            f"ember@{number}", root, settings, {}, {"facts": facts if loss else None}, states, swept=point
        )
    return ProjectFiles("ember", root, settings, {}, {}, {}, variants=found)


def test_the_held_out_loss_is_plotted_over_each_value_of_the_recipe(tmp_path: Path):
    points = [{"recipe.unet_lr": rate, "recipe.seed": seed} for rate in (1e-4, 1e-5) for seed in (1, 2)]
    found = sweep.data(variants(tmp_path, points, [0.9, 0.8, 0.7, None]))
    assert [row["measures"]["after"] for row in found["rows"]] == [0.7, None, 0.9, 0.8]
    over_rate, over_seed = found["plots"]
    assert over_rate["title"] == "Held-out loss over unet_lr"
    assert over_rate["values"] == ["1e-5", "1e-4"] and over_rate["numbers"] == [1e-5, 1e-4]
    assert over_rate["lines"] == [
        {"name": "seed 1", "values": [0.7, 0.9]},
        {"name": "seed 2", "values": [None, 0.8]},
    ]
    assert [line["name"] for line in over_seed["lines"]] == ["unet_lr 1e-5", "unet_lr 1e-4"]


def test_columns_that_there_are_not_are_not_explained(files: ProjectFiles, tmp_path: Path):
    bare = variants(tmp_path, [{"recipe.unet_lr": rate} for rate in (1e-4, 1e-5)], [0.9, 0.8])
    said = "Error: what the resize loses"
    assert said in render_project(files) and said not in render_project(bare)


def test_losses_of_other_objectives_are_not_compared_without_a_word(tmp_path: Path):
    found = sweep.data(variants(tmp_path, [{"recipe.loss_type": one} for one in ("l2", "huber")], [0.9, 0.5]))
    assert found["objective"] == ["loss_type"]
    assert found["plots"][0]["numbers"] is None and found["plots"][0]["values"] == ["l2", "huber"]


# in a browser


@pytest.fixture
def page(swept_once: World) -> Path:
    return swept_once.root / "build/report/ember.html"


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_plots_are_read_by_keys_and_fit(browser: Browser, page: Path, width: int, dark: bool):
    browser.open(page, width=width, dark=dark)
    assert (browser.errors(), browser.requests()) == ([], [])
    assert browser.js("return document.documentElement.scrollWidth") <= width
    browser.find("#sweep-thr-error").send_keys("\ue011")  # Home
    browser.js("window.seen = document.querySelector('#sweep-thr-error .uplot')")
    said = browser.js("return document.getElementById('said').textContent")
    assert said.startswith("thr -2.7, error ") and said.endswith(" %")
    browser.js("dispatchEvent(new Event('resize'))")
    browser.wait("return !document.querySelector('#sweep-thr-error .uplot').isSameNode(window.seen)")
    browser.find("#sweep-thr-error").send_keys("\ue014")  # right
    assert browser.js("return document.getElementById('said').textContent").startswith("thr -2.6, ")


@pytest.mark.browser
def test_the_table_sorts_by_a_column_and_back(browser: Browser, page: Path):
    browser.open(page)
    rows = "return [...document.querySelectorAll('table.sweep tbody tr')].map((row) => row.cells[1].textContent)"
    button = "document.querySelectorAll('table.sweep thead th')[2].querySelector('button')"
    assert browser.js(rows) == ["-2.6", "-2.7", "-2.6", "-2.5"]
    browser.js(f"{button}.click()")
    assert browser.js(rows) == ["-2.6", "-2.5", "-2.6", "-2.7"], "by size, the project's own first"
    browser.js(f"{button}.click()")
    assert browser.js(rows) == ["-2.6", "-2.7", "-2.6", "-2.5"]
    assert browser.js(f"return {button}.closest('th').getAttribute('aria-sort')") == "descending"
    assert "sorted by Resized" in browser.js("return document.getElementById('said').textContent")
