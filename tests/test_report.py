"""The report: pages say what stands there, show what users wrote as text, and are made anew when they should be."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standin import Stage

from lorabuild.report import curves, dataset, overview, recipe, words
from lorabuild.report.collect import ALL_ROLES
from lorabuild.report.files import ProjectFiles, StageState, page_name
from lorabuild.report.page import FAULT, _safe_json, render_index, render_project
from lorabuild.report.site import write_report
from lorabuild.state import State

EVIL = "<script>alert(1)</script>"
QUOTES = '"><img src=x onerror=alert(1)>'
LOG = [
    {"event": "held_out", "when": "before", "loss": 1.5},
    *(
        {"event": "step", "step": n, "loss": 1 / n, "lr": {"unet": 1e-3, "textencoder": 0}, "grad_norm": 0.5}
        for n in (1, 2, 3)
    ),
    {"event": "held_out", "when": "during", "step": 2, "loss": 1.25},
    {"event": "held_out", "when": "after", "loss": 1.0},
]


def row(caption: str, **changes: Any) -> dict[str, Any]:
    return {
        "bucket": [64, 64], "caption": caption, "crop": [0, 0], "digest": caption, "repeats": 1, "resized": [96, 64],
        "size": [96, 64],
    } | changes  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> ProjectFiles:
    """A project with a data set, a log and hostile words, without LoRA files."""
    data, log = tmp_path / "dataset.json", tmp_path / "train.jsonl"
    rows = [row(f"ember, {EVIL}, </script>"), row("ember, red")]
    data.write_text(json.dumps({"settings": {"caption_separator": ","}, "images": rows}))
    log.write_text("".join(json.dumps(one) + "\n" for one in LOG) + '{"event": "st')
    settings = {
        "project": {"base": "tiny", "trigger": QUOTES, "title": EVIL}, "dataset": {"max_token_length": 75},
        "recipe": {"unet_lr": 1e-3}, "resize": None, "chop": {"keep": ["TE"]}, "samples": None,
    }  # fmt: skip
    failed = StageState("train", "train:ember", "never", ("never built",), f"step 3: {EVIL}")
    whence = {"recipe.unet_lr": f"projects/{QUOTES}/lora.toml:7"}
    paths = dict.fromkeys(ALL_ROLES) | {"dataset": data, "log": log}
    checked = {"when": "2026-11-21 20:00 UTC", "tokens": [3, 80], "findings": [finding(EVIL)]}
    return ProjectFiles("ember", tmp_path, settings, whence, paths, {"train": failed}, checked=checked)


def finding(message: str) -> dict[str, Any]:
    return {"code": "LB031", "level": "error", "file": "a.png", "line": 0, "message": message}


@pytest.fixture
def state(tmp_path: Path) -> State:
    found = State(tmp_path / ".lorabuild/state.sqlite", tmp_path)
    yield found
    found.close()


def never(root: Path, name: str) -> ProjectFiles:
    settings = {"project": {"base": "tiny"}, "dataset": None, "recipe": {}, "resize": None, "chop": None}
    return ProjectFiles(name, root, settings, {}, dict.fromkeys(ALL_ROLES), {})


# what users wrote


def test_what_users_wrote_is_text_wherever_it_stands(files: ProjectFiles):
    for page in (render_project(files), render_index([files])):
        assert EVIL not in page
        assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in render_project(files)


def test_data_for_scripts_cannot_end_its_element():
    text = str(_safe_json({"caption": "</script><!--&\u2028", "loss": float("nan")}))
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"caption": "</script><!--&\u2028", "loss": None}


def test_a_page_forbids_the_network_and_names_no_address(files: ProjectFiles):
    page = render_project(files)
    assert "default-src &#39;none&#39;" in page
    elements = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # a library names its home in a comment
    assert not re.search(r"(src|href)=\"?(https?:)?//", elements)


def test_a_project_that_failed_or_was_never_built_has_its_page(files: ProjectFiles, tmp_path: Path):
    assert "failed: step 3:" in render_project(files)
    assert "Nothing of this project has been built here yet" in render_project(never(tmp_path, "other"))


def test_a_file_that_cannot_be_read_is_one_line_of_its_section(files: ProjectFiles, tmp_path: Path):
    broken = tmp_path / "ember.safetensors"
    broken.write_bytes(b"no header")
    page = render_project(replace(files, paths={**files.paths, "trained": broken}))
    assert "ember.safetensors" in page and "Traceback" not in page


def test_a_page_names_no_folder_of_the_machine(files: ProjectFiles, tmp_path: Path):
    broken = tmp_path / "build/ember/ember.safetensors"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"x" * 100)
    page = render_project(replace(files, paths={**files.paths, "trained": broken}))
    assert "ember.safetensors" in page and str(tmp_path) not in page


def test_a_file_of_build_that_was_edited_costs_its_section_alone(files: ProjectFiles):
    assert FAULT not in render_project(files)
    files.paths["dataset"].write_text("{")
    page = render_project(files)
    assert FAULT in page and 'id="plot-loss"' in page


def test_every_section_has_one_heading_and_a_link_to_it(files: ProjectFiles):
    page = render_project(files)
    sections = re.findall(r'<section id="(\w+)" aria-labelledby="\1-title">', page)
    assert sections[:4] == ["overview", "curves", "dataset", "recipe"] or {"overview", "curves", "dataset"} <= {
        *sections
    }
    assert all(f'href="#{name}"' in page and f'<h2 id="{name}-title">' in page for name in sections)


# staleness


def written(root: Path, projects: list[ProjectFiles], state: State) -> tuple[str, ...]:
    return write_report(root, projects, state).made


def test_pages_are_made_anew_only_where_something_has_changed(files: ProjectFiles, state: State, tmp_path: Path):
    both = [files, never(tmp_path, "other")]
    assert written(tmp_path, both, state) == ("ember", "other", "index")
    assert written(tmp_path, both, state) == ()
    changed = replace(files, settings={**files.settings, "recipe": {"unet_lr": 2e-3}})
    assert written(tmp_path, [changed, both[1]], state) == ("ember", "index")
    log = files.paths["log"]
    log.write_text(log.read_text() + '{"event": "step", "step": 4, "loss": 0.1, "lr": {}}\n')
    assert written(tmp_path, [changed, both[1]], state) == ("ember", "index")


def test_a_picture_that_is_gone_makes_its_page_anew(files: ProjectFiles, state: State, tmp_path: Path):
    picture = tmp_path / "samples/00-base.png"
    picture.parent.mkdir()
    picture.write_bytes(b"png")
    drawn = replace(files, paths={**files.paths, "pictures": tmp_path})
    written(tmp_path, [drawn], state)
    assert written(tmp_path, [drawn], state) == ()
    picture.unlink()
    assert written(tmp_path, [drawn], state) == ("ember", "index")


def test_a_page_that_was_edited_is_made_anew(files: ProjectFiles, state: State, tmp_path: Path):
    written(tmp_path, [files], state)
    page = tmp_path / "build/report/ember.html"
    whole = page.read_bytes()
    page.write_bytes(whole.replace(b"Overview", b"Overlook"))
    assert written(tmp_path, [files], state) == ("ember",)
    assert page.read_bytes() == whole


def test_the_page_of_a_project_that_is_gone_goes_and_a_users_file_stays(
    files: ProjectFiles, state: State, tmp_path: Path
):
    written(tmp_path, [files, never(tmp_path, "other")], state)
    folder = tmp_path / "build/report"
    (folder / "mine.html").write_text("my own")
    assert write_report(tmp_path, [files], state).removed == ("other.html",)
    assert {path.name for path in folder.iterdir()} == {"ember.html", "index.html", "mine.html"}


def test_a_new_commit_changes_one_line_and_makes_nothing_anew(files: ProjectFiles, state: State, tmp_path: Path):
    def git(*args: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *args], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / ".gitignore").write_text("*\n")
    git("commit", "--allow-empty", "-m", "one")
    written(tmp_path, [files], state)
    before = (tmp_path / "build/report/ember.html").read_text().splitlines()
    git("commit", "--allow-empty", "-m", "two")
    assert written(tmp_path, [files], state) == ()
    after = (tmp_path / "build/report/ember.html").read_text().splitlines()
    differing = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(differing) == 2 and "commit " in differing[0] and "seal" in differing[1]


def test_a_project_called_index_has_a_page_of_its_own(state: State, tmp_path: Path):
    written(tmp_path, [never(tmp_path, "index")], state)
    assert {path.name for path in (tmp_path / "build/report").iterdir()} == {"index.html", page_name("index")}


# what the sections show


def test_curves_join_the_log_and_pass_over_a_line_that_is_cut_off(files: ProjectFiles):
    found = curves.data(files)
    assert found["steps"] == [1, 2, 3]
    assert found["held_out"] == [(0, 1.5), (2, 1.25), (3, 1.0)]
    assert found["rates"] == {"lr unet": [1e-3] * 3}  # a group that never learns is not drawn
    assert found["norms"] == {"gradient norm": [0.5] * 3}
    assert found["table"]["rows"][1][:4] == [2, 0.5, 0.75, 1.25]


def test_a_line_of_a_log_that_somebody_edited_costs_no_curve(files: ProjectFiles):
    with files.paths["log"].open("a") as log:
        log.write('\n{"event": "step"}\n{"event": "step", "step": 4, "loss": NaN}\n')
    found = curves.data(files)
    assert found["steps"] == [1, 2, 3, 4] and found["series"]["smoothed"][-1] == pytest.approx(11 / 18)


def test_a_trailing_mean_is_of_what_is_known():
    assert curves.trailing_mean([2.0, 4.0, None, 9.0], 2) == [2, 3, 4, 9]
    assert curves.trailing_mean([None], 5) == [None]
    assert curves.trailing_mean([1e12, float("nan"), 0.25, 0.5], 2) == [1e12, 1e12, 0.25, 0.375]  # a peak passes whole


def test_a_long_log_is_thinned_and_keeps_its_end(files: ProjectFiles):
    steps = [{"event": "step", "step": n, "loss": 1.0, "lr": {"unet": 1}} for n in range(1, 9002)]
    files.paths["log"].write_text("\n".join(map(json.dumps, steps)))
    found = curves.data(files)
    assert len(found["steps"]) <= curves.MOST_POINTS and found["steps"][-1] == 9001 and found["thinned"] == 3


def test_buckets_say_the_worst_crop_and_scale():
    rows = [
        row("a"),
        row("b", resized=[64, 64], size=[32, 32]),
        row("c", bucket=[32, 64], resized=[32, 64], size=[32, 64]),
    ]
    small, square = dataset.buckets(rows)
    assert (small["size"], small["crop_loss"], small["scale"]) == ("32 × 64", 0, 1)
    assert (square["images"], round(square["crop_loss"], 3), square["scale"]) == (2, 0.333, 2)


def test_tags_count_once_an_image():
    found = dataset.tag_counts([row("a, b, a"), row("b,")], ",")
    assert [(one["tag"], one["count"], one["share"]) for one in found] == [("b", 2, 1.0), ("a", 1, 0.5)]


def test_lengths_mark_the_limit_and_what_is_over_it():
    found = dataset.lengths([3, 4, 75, 76, 80], 75)
    assert found["over"] == 2 and found["longest"] == 80 and sum(one["count"] for one in found["bins"]) == 5
    assert dataset.lengths([], 75) is None
    assert len(dataset.lengths([3, 20_000], 75)["bins"]) <= dataset.MOST_BINS + 1  # or it is wider than its page


def test_equal_pixels_are_told():
    assert [one["count"] for one in dataset.duplicates([row("a"), row("b", digest="a"), row("c")])] == [2]


def test_a_page_of_thousands_of_images_stays_small(files: ProjectFiles):
    rows = [row(f"ember, {number}", digest=str(number // 40)) for number in range(4000)]
    files.paths["dataset"].write_text(json.dumps({"settings": {"caption_separator": ","}, "images": rows}))
    checked = files.checked | {"findings": [finding(f"message {number}") for number in range(4000)]}
    page = render_project(replace(files, checked=checked))
    assert len(page) < len(render_project(files)) + 60_000  # (with all of them it would be 160 kB more)
    assert "3,950 more" in page and "and 35 more" in page and "And 80 images more" in page


def test_snapshots_are_named_in_a_short_line(files: ProjectFiles):
    files.paths["log"].touch()
    snapshots = dict.fromkeys(range(10, 2010, 10), files.paths["log"])
    *_, found = overview.data(replace(files, snapshots=snapshots))["files"]
    assert found["file"] == "200 snapshots" and found["role"] == "step 10, 20, 30, 40, 50, 60, …, 2000"


def test_findings_come_under_their_code_with_what_explain_says():
    (found,) = dataset.by_code([finding("x")])
    assert found["title"] and found["text"] and found["level"] == "error"


def test_the_recipe_says_where_each_value_was_written(files: ProjectFiles):
    rows = dict((name, rows) for name, rows, _ in recipe.data(files)["tables"])["recipe"]
    assert [(one["key"], one["whence"]) for one in rows] == [("unet_lr", files.whence["recipe.unet_lr"])]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ('a"b', '"a\\"b"'),
        ([1, "x"], '[1, "x"]'),
        ({"a": {"b": 0.5}}, "{ a = { b = 0.5 } }"),
        (None, ""),
    ],
)
def test_values_are_spelled_as_toml_has_them(value: Any, text: str):
    assert recipe.told(value) == text


def test_numbers_are_said_for_people():
    assert [words.size(n) for n in (812, 21_500, 112_400_000, None)] == ["812 B", "21.5 kB", "112.4 MB", "–"]
    assert [words.percent(n) for n in (0, 0.0002, 0.034, 0.61)] == ["0 %", "0.02 %", "3.4 %", "61 %"]
    assert [words.seconds(n) for n in (0.044, 12, 200, 7500)] == ["0.044 s", "12 s", "3 min 20 s", "2 h 05 min"]


# builds, with stages that stand in for the real ones


def test_doit_report_builds_and_tells_of_what_failed(tmp_path: Path):
    stage = Stage(tmp_path, projects=2, train_p1="fail")
    done = stage.doit("--continue", "report")
    assert done.code == 1 and "build/report/index.html: 3 pages, 3 made anew" in done.out
    folder = stage.world.root / "build/report"
    assert "the loss is not finite" in (folder / "p1.html").read_text()
    assert "the loss is not finite" in (folder / "index.html").read_text()
    assert "Nothing of this project" in (folder / "p1.html").read_text()
    assert "Nothing of this project" not in (folder / "p0.html").read_text()
    stage.plan()
    done = stage.doit("report")
    assert done.code == 0 and "3 pages, 2 made anew" in done.out
    done = stage.doit("report", PYTHONPROFILEIMPORTTIME="1")
    assert done.out.endswith("3 pages, fresh\n")
    loaded = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "lorabuild.report.site" in loaded and not loaded & {"torch", "numpy", "transformers", "diffusers"}


def test_a_build_writes_the_pages_if_its_default_says_so(tmp_path: Path):
    stage = Stage(tmp_path)
    plain = stage.doit()
    assert plain.code == 0 and not (stage.world.root / "build/report").exists()
    stage.world.write("lorabuild.toml", '[build]\ndefault = ["dataset", "latents", "train", "report"]\n')
    done = stage.doit()
    assert "2 pages, 2 made anew" in done.out
    assert "build/report" not in stage.doit().out  # nothing was to do
    (stage.world.root / "build/report/p0.html").unlink()
    assert "2 pages, 1 made anew" in stage.doit().out
    assert stage.doit("clean", "report").code == 0 and not (stage.world.root / "build/report").exists()
    assert (stage.world.root / "build/p0/p0.safetensors").exists()
