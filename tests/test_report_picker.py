"""The picker and the curves in Chromium: what is toggled, dragged, typed and pasted is shown, copied, and kept as a promise."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser
from picking import Picker, manifest, page, picking
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from test_report_shrink import project, spectrum
from world import World

from lorabuild.lora.loaders import NOT_SDXL
from lorabuild.report.page import render_project
from lorabuild.verbs.report import refresh

__all__ = ["spectrum"]  # a fixture

pytestmark = pytest.mark.browser


@pytest.fixture
def world(tmp_path: Path) -> World:
    return picking(tmp_path / "repository")


@pytest.fixture
def picker(browser: Browser, world: World):
    found = Picker(browser, page(world))
    yield found
    assert (browser.errors(), browser.requests()) == ([], [])


def test_toggling_a_block_changes_size_and_what_is_copied(picker: Picker):
    before, lines = picker.bytes, picker.lines
    assert lines["keep"] == 'keep = ["TE", "OUT01"]'
    picker.toggle("OUT01").click()
    assert picker.toggle("OUT01").get_attribute("aria-pressed") == "false"
    assert picker.bytes < before
    assert picker.lines["keep"] == 'keep = ["TE"]'
    assert picker.lines["Inspire 21"] == "1" + ",0" * 20
    assert picker.lines.keys() == lines.keys() and all(picker.lines[name] != text for name, text in lines.items())
    picker.toggle("OUT01").click()
    assert (picker.bytes, picker.lines) == (before, lines)


def test_what_is_copied_builds_a_file_of_the_size_that_was_promised(picker: Picker, world: World):
    for block in ("INP04", "MID01", "TE1"):
        picker.toggle(block).click()
    picker.browser.js(
        "const s = document.querySelector('[data-block=OUT01] input'); s.value = 0.75; s.dispatchEvent(new Event('input'))"
    )
    promised, lines = picker.bytes, picker.lines
    assert lines["weights"] == "weights = { OUT01 = 0.75 }"
    manifest(world, f"{lines['keep']}\n{lines['weights']}")
    built = world.doit()
    assert built.code == 0, built.out + built.err
    size = (world.root / "build/ember/ember-chopped.safetensors").stat().st_size
    assert promised == size
    refresh(world.root)  # and from a header that stands
    again = Picker(picker.browser, world.root / "build/report/ember.html")
    assert again.bytes == size
    again.preset("OUT only")
    manifest(world, again.lines["keep"])
    assert world.doit().code == 0
    assert (world.root / "build/ember/ember-chopped.safetensors").stat().st_size == again.bytes


def test_what_is_copied_can_be_pasted(picker: Picker):
    for name in ("OUT only", "IN only", "TE + OUT01", "With attention"):
        picker.preset(name)
        wanted = picker.weights()
        for line, text in picker.lines.items():
            if line == "LBW 12" and name != "With attention":
                continue  # it cannot say these, as stands beside it
            picker.preset("All")
            picker.paste(text)
            if line in ("LBW 12", "LBW 20", "prompt") and name == "With attention":
                assert all(picker.weights()[block] == 1 for block, weight in wanted.items() if weight)
            else:
                assert picker.weights() == wanted, (name, line)


def test_what_cannot_be_read_changes_nothing_and_is_told_in_a_line(picker: Picker):
    before = picker.weights()
    picker.paste("1,0,1")
    assert "12, 20, 21 or 22 numbers are expected, got 3" in picker.said
    assert picker.weights() == before
    picker.paste('keep = ["OUT1"]')
    assert 'did you mean "OUT01"?' in picker.said
    picker.paste("<b>bold</b>")
    assert picker.weights() == before and "<b>bold</b>" in picker.said
    picker.paste("TE")
    assert "TE1, TE2" in picker.said


def test_a_fraction_is_told_with_its_weight(picker: Picker):
    picker.paste('keep = ["TE", "OUT01", "MID00"]\nweights = { OUT01 = 0.5, TE = 0.25 }')
    assert picker.weights() == {
        **dict.fromkeys(picker.weights(), 0),
        "TE1": 0.25,
        "TE2": 0.25,
        "OUT01": 0.5,
        "MID00": 1,
    }
    lines = picker.lines
    assert lines["weights"] == "weights = { TE = 0.25, OUT01 = 0.5 }"
    assert lines["Inspire 21"].startswith("0.25,") and lines["Inspire 21"].split(",")[13] == "0.5"
    notes = {line: picker.browser.find(f'[data-line="{line}"]').text for line in lines}
    assert 'vector_style = "inspire"' in notes["Inspire 21"]
    assert "not exact" in notes["LBW 20"] and "MID01, MID02" in notes["LBW 20"]


def test_a_loader_that_would_not_know_the_file_is_told_of(picker: Picker):
    picker.preset("All")
    known = NOT_SDXL not in picker.notes
    picker.preset("MID only")
    assert NOT_SDXL in picker.notes
    picker.paste("!TE,!IN*,!MID*,!OUT*")
    assert "Nothing is kept" in picker.notes
    assert not known  # layers of this file are 8 wide: the first sentence stood there, too


def test_the_keyboard_alone_is_enough(picker: Picker):
    browser = picker.browser
    press = lambda *keys: ActionChains(browser.driver).send_keys(*keys).perform()  # noqa: E731
    at = lambda: browser.js("return document.activeElement.closest('[data-block]')?.dataset.block")  # noqa: E731
    browser.js("document.querySelector('[data-preset=\"As in the manifest\"]').focus()")
    press(Keys.TAB)
    first = at()
    assert first is not None
    press(Keys.TAB, Keys.TAB)
    assert at() is None, "two stops, a toggle and its slider, for all blocks together"
    press(Keys.SHIFT, Keys.TAB)
    ActionChains(browser.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    browser.js(f"document.querySelector('[data-block={first}] button').focus()")
    reached = {first}
    for way in [
        Keys.ARROW_LEFT,
        *[Keys.ARROW_DOWN] * 12,
        *[Keys.ARROW_RIGHT] * 4,
        *[Keys.ARROW_UP] * 12,
        *[Keys.ARROW_LEFT] * 2,
    ]:
        press(way)
        reached.add(at())
    assert {block for block in picker.weights() if block.startswith("OUT")} <= reached
    assert {"INP01", "INP08"} <= reached and reached & {"MID00", "MID01", "MID02"}
    browser.js("document.querySelector('[data-block=OUT00] button').focus()")
    press(Keys.ARROW_UP)
    assert at() == "OUT01"
    press(Keys.SPACE)
    assert picker.weights()["OUT01"] == 0
    press("+", "+")
    assert picker.weights()["OUT01"] == 0.1
    press(Keys.TAB, Keys.ARROW_RIGHT)
    assert (at(), picker.weights()["OUT01"]) == ("OUT01", 0.15)
    browser.find("#picker-paste").send_keys("TE,OUT01", Keys.ENTER)
    assert picker.lines["keep"] == 'keep = ["TE", "OUT01"]'


def test_pickers_of_variants_are_one_click_away(browser: Browser, tmp_path: Path):
    world = picking(tmp_path / "repository", more='[variants.mini.chop]\nkeep = ["MID*"]')
    picker = Picker(browser, page(world))
    browser.find(".picker-bar fieldset button:nth-of-type(2)").click()
    assert picker.lines["keep"] == 'keep = ["MID*"]'
    browser.find(".picker-bar fieldset button").click()
    assert picker.lines["keep"] == 'keep = ["TE", "OUT01"]'
    assert (browser.errors(), browser.requests()) == ([], [])


@pytest.mark.parametrize("width", [390, 700, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_on_any_screen(browser: Browser, world: World, width: int, dark: bool):
    Picker(browser, page(world), width=width, dark=dark)
    assert browser.js("return document.documentElement.scrollWidth") <= width
    assert (browser.errors(), browser.requests()) == ([], [])


def test_a_curve_is_read_by_pointer_and_keys(browser: Browser, spectrum: Path, tmp_path: Path):
    files = project(tmp_path, spectrum, "thr=-0.5")
    path = tmp_path / "ember.html"
    files.settings["project"]["title"] = "<script>alert(1)</script>"
    path.write_text(render_project(files))
    browser.open(path)
    slider, line = browser.find(".shrink-slide input"), lambda: browser.find(".shrink-copy code").text
    assert line() == "thr = -0.5"
    size = int(browser.find("#shrinks").get_attribute("data-bytes"))
    slider.send_keys(Keys.ARROW_RIGHT)
    assert -0.5 < float(line().removeprefix("thr = ")) < -0.4
    slider.send_keys(Keys.END)
    assert int(browser.find("#shrinks").get_attribute("data-bytes")) < size
    assert browser.find('[data-read="error"]').text == "100 %"
    assert browser.find(".shrink-copy button").get_attribute("data-copy") == line()
    plot = browser.find(".shrink-plot svg")
    ActionChains(browser.driver).move_to_element(plot).click_and_hold().move_by_offset(-60, 0).release().perform()
    dragged = float(line().removeprefix("thr = "))
    ActionChains(browser.driver).move_to_element(plot).click().perform()
    assert float(line().removeprefix("thr = ")) > dragged
    assert (browser.errors(), browser.requests()) == ([], [])
