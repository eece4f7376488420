"""The report's pictures: which stand in a sheet, what is told of those that do not, and how large a page may grow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import BLOCKS, PROMPTS, SIDES, draw, files_of, page_of

from lorabuild.errors import JobError
from lorabuild.hashing import digest_file
from lorabuild.report import ablation, page, sheets, site, strip
from lorabuild.report import pictures as report_pictures
from lorabuild.report.files import StageState
from lorabuild.report.pictures import Thumbnails, read_pictures, title
from lorabuild.sampling.differences import differences, mean_difference, pairs
from lorabuild.state import State


def cells(found: dict[str, Any], row: int = 0) -> dict[str, Any]:
    return {cell["role"]: cell for cell in found["rows"][row]["cells"]}


def test_a_mean_difference_is_of_all_values_and_of_255():
    one, other = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    other[0, 0] = [255, 0, 3]
    assert mean_difference(one, other) == mean_difference(other, one) == 258 / 12
    assert mean_difference(one, one) == 0


def test_files_are_compared_with_each_other_steps_with_the_step_before_parts_with_their_whole():
    found = pairs(["base", "trained"], ["step/1", "step/2"], {"only/OUT01": "trained"})
    assert found == [
        ("trained", "base"),
        ("step/1", "base"), ("step/1", "trained"),
        ("step/2", "base"), ("step/2", "trained"), ("step/2", "step/1"),
        ("only/OUT01", "trained"),
    ]  # fmt: skip


def test_differences_are_of_the_pictures_as_drawn(tmp_path: Path):
    draw(tmp_path)
    pictures = {role: (tmp_path / f"samples/00-{role}.png").read_bytes() for role in ("base", "trained")}
    found = differences(pictures, [("trained", "base")])
    told = next(one for one in read_pictures(files_of(tmp_path)) or [] if one.role == "trained").told
    assert told["difference"]["base"] == found["trained"]["base"] > 10


def test_a_sheet_has_a_row_a_prompt_and_a_column_a_file(tmp_path: Path):
    draw(tmp_path)
    found = sheets.data(files_of(tmp_path))
    assert [row["prompt"] for row in found["rows"]] == list(PROMPTS)
    assert [column["title"] for column in found["columns"]] == list(SIDES)
    assert [column["note"] for column in found["columns"]] == [""] * 4
    assert cells(found)["trained"]["full"] == "ember/samples/00-trained.png"
    assert cells(found)["trained"]["shown"].startswith("data:image/webp;base64,")
    assert set(sheets.beside(files_of(tmp_path))) == {
        f"samples/{path.name}" for path in (tmp_path / "samples").iterdir()
    }


def test_a_picture_that_cannot_be_shown_says_why(tmp_path: Path):
    draw(tmp_path)
    (tmp_path / "samples/00-base.png").unlink()
    (tmp_path / "samples/00-trained.png").write_bytes((tmp_path / "samples/00-resized.png").read_bytes())
    found = cells(sheets.data(files_of(tmp_path)))
    assert found["base"]["fault"] == "the file is gone: doit samples:ember restores it"
    assert found["trained"]["fault"] == "the file is not the one that samples.json tells of"
    assert found["resized"]["fault"] == ""
    assert not {"samples/00-base.png", "samples/00-trained.png"} & set(sheets.beside(files_of(tmp_path)))


def test_a_column_says_that_its_file_was_built_anew_or_was_never_drawn(tmp_path: Path):
    draw(tmp_path)
    files = files_of(tmp_path)
    rebuilt = StageState("chop", "chop:ember", "fresh", record={"outputs": {"weights": {"digest": "another"}}})
    mini = replace(files, name="ember@mini", states={**files.states, "chop": replace(rebuilt, job="chop:ember@mini")})
    found = sheets.data(replace(files, states={**files.states, "chop": rebuilt}, variants={"mini": mini}))
    notes = {column["role"]: column["note"] for column in found["columns"]}
    assert notes["chopped"] == "drawn with an earlier build of this file"
    assert notes["mini/chopped"] == "never drawn: doit samples:ember"
    assert "mini/resized" not in notes, "it shares the project's"
    assert cells(found)["mini/chopped"]["fault"] == "never drawn"


def test_without_pictures_the_sheet_says_what_draws_them_and_without_the_table_there_is_none(tmp_path: Path):
    files = files_of(tmp_path)
    assert sheets.data(files)["note"] == "never"
    assert "doit samples:ember" in page_of(files, tmp_path / "report").read_text()
    assert sheets.data(replace(files, settings={"project": {}, "samples": None})) is None
    assert strip.data(files) is ablation.data(files) is None


def test_a_broken_samples_json_is_one_line(tmp_path: Path):
    draw(tmp_path)
    for text in ("{", '{"pictures": [{}]}', "[]"):
        (tmp_path / "samples.json").write_text(text)
        with pytest.raises(JobError, match=r"samples\.json: not what doit samples:ember writes"):
            sheets.data(files_of(tmp_path))
        assert sheets.beside(files_of(tmp_path)) == {}


def test_nothing_outside_the_folder_of_pictures_is_shown(tmp_path: Path):
    told = json.loads(draw(tmp_path / "build").read_text())
    (tmp_path / "00-secret.png").write_bytes((tmp_path / "build/samples/00-base.png").read_bytes())
    told["pictures"][0]["file"] = "samples/../../00-secret.png"
    (tmp_path / "build/samples.json").write_text(json.dumps(told))
    assert cells(sheets.data(files_of(tmp_path / "build")))["base"]["fault"].startswith("the file is gone")


def test_the_strip_goes_from_the_base_over_the_snapshots_to_the_end(tmp_path: Path):
    draw(tmp_path)
    found = strip.data(files_of(tmp_path))
    assert found["titles"] == ["base, step 0", "step 10", "step 20", "trained, the end"]
    assert [cell["role"] for cell in found["rows"][1]["cells"]] == ["base", "step/10", "step/20", "trained"]


def test_blocks_stand_in_the_order_of_the_u_with_their_differences(tmp_path: Path):
    draw(tmp_path)
    found = ablation.data(files_of(tmp_path))
    assert found["whole"] == "resized"
    (first, _) = found["rows"]
    assert [one["block"] for one in first["blocks"]] == list(BLOCKS)
    for kind in (0, 1):  # left out, alone: the longest bar of each is the largest difference
        shown = [one["pictures"][kind] for one in first["blocks"]]
        changes, shares = ([cell[key] for cell in shown] for key in ("change", "share"))
        assert max(shares) == 100 and shares.index(100) == changes.index(max(changes))
    assert {cell["role"] for one in first["blocks"] for cell in one["pictures"]} >= {"without/OUT01", "only/OUT01"}


def test_a_page_stays_small_however_many_pictures_there_are(tmp_path: Path):
    draw(tmp_path)
    pictures = read_pictures(files_of(tmp_path)) or []
    thumbnails = Thumbnails("ember", budget=3000)
    shown = [thumbnails.cell(picture)["shown"] for picture in pictures]
    embedded = [one for one in shown if one.startswith("data:")]
    assert 0 < len(embedded) < len(shown) and thumbnails.linked == len(shown) - len(embedded)
    assert sum(map(len, embedded[:-1])) <= 3000
    assert shown[-1] == f"ember/samples/{pictures[-1].name}"


def test_a_page_reads_each_picture_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    draw(tmp_path)
    read: list[Path] = []
    monkeypatch.setattr(report_pictures, "digest_file", lambda path: read.append(path) or digest_file(path))
    page_of(files_of(tmp_path), tmp_path / "page")
    assert sorted(read) == sorted((tmp_path / "samples").glob("*.png"))


def test_titles_are_those_that_people_use():
    roles = ("base", "step/10", "mini/chopped", "without/OUT01", "only/TE1")
    assert [title(role) for role in roles] == ["base", "step 10", "@mini chopped", "without OUT01", "only TE1"]


def test_a_page_is_made_anew_when_a_picture_of_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = page._modules()
    monkeypatch.setattr(page, "_modules", lambda: {"sheets": whole["sheets"]})
    monkeypatch.setattr(site, "render_index", lambda projects, commit: "index")
    draw(tmp_path / "build/ember")
    files = replace(files_of(tmp_path / "build/ember"), root=tmp_path)
    state, beside = State(tmp_path / "state.db"), tmp_path / "build/report/ember/samples"
    assert "ember" in site.write_report(tmp_path, [files], state).made
    assert site.write_report(tmp_path, [files], state).made == ()
    assert (beside / "00-base.png").exists()
    (tmp_path / "build/ember/samples/00-base.png").unlink()
    assert "ember" in site.write_report(tmp_path, [files], state).made
    assert not (beside / "00-base.png").exists()
    assert "the file is gone" in (tmp_path / "build/report/ember.html").read_text()
    state.close()


def test_prompts_are_text_in_the_page(tmp_path: Path):
    draw(tmp_path)
    html = page_of(files_of(tmp_path), tmp_path / "report").read_text()
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") > 4
