"""The pictures of the report in Chromium: they open, turn, wipe, show their difference, and step; by mouse and by keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser
from drawn import draw, files_of, page_of
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw(folder / "build")
    return page_of(files_of(folder / "build"), folder / "report")


def opened(browser: Browser, page: Path, row: int = 0, role: str = "trained") -> None:
    browser.open(page)
    browser.find(f"#sheets [data-row='{row}'][data-role='{role}']").click()


def shown(browser: Browser) -> tuple[str, str, str, str]:
    """The files of A and B, which of them is seen, and what is said."""
    names = [browser.js(f"return document.querySelector('img.{one}').src.split('/').pop()") for one in "ab"]
    return (*names, browser.js("return document.querySelector('dialog').dataset.showing"), browser.find(".told").text)


def press(browser: Browser, *keys: str) -> None:
    ActionChains(browser.driver).send_keys(*keys).perform()


def test_a_picture_opens_in_full_size_beside_the_base(browser: Browser, page: Path):
    opened(browser, page)
    a, b, showing, told = shown(browser)
    assert (a, b, showing) == ("00-trained.png", "00-base.png", "a")
    assert told.startswith("A trained · B base · mean difference 20.")
    WebDriverWait(browser.driver, 10).until(lambda _: browser.js("return document.querySelector('img.a').complete"))
    assert browser.js("return document.querySelector('img.a').naturalWidth") == 256
    press(browser, Keys.ESCAPE)
    assert not browser.js("return document.querySelector('dialog').open")
    assert browser.js("return document.activeElement.dataset.role") == "trained", "the focus goes back"
    assert (browser.errors(), browser.requests()) == ([], [])


def test_arrow_keys_walk_over_columns_and_prompts(browser: Browser, page: Path):
    opened(browser, page)
    press(browser, Keys.ARROW_RIGHT)
    assert shown(browser)[:2] == ("00-resized.png", "00-base.png")
    press(browser, Keys.ARROW_DOWN)
    assert shown(browser)[:2] == ("01-resized.png", "01-base.png")
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert shown(browser)[0] == "01-base.png" and shown(browser)[1] != "01-base.png"


def test_space_and_a_held_button_turn_to_the_other_picture(browser: Browser, page: Path):
    opened(browser, page)
    visible = "return getComputedStyle(document.querySelector('img.b')).visibility"
    press(browser, " ")
    assert (shown(browser)[2], browser.js(visible)) == ("b", "visible")
    press(browser, " ")
    assert (shown(browser)[2], browser.js(visible)) == ("a", "hidden")
    frame = browser.find(".viewer-frame")
    ActionChains(browser.driver).click_and_hold(frame).perform()
    assert shown(browser)[2] == "b"
    ActionChains(browser.driver).release().perform()
    assert shown(browser)[2] == "a"


def test_the_difference_is_black_where_pictures_are_equal(browser: Browser, page: Path, tmp_path: Path):
    from PIL import Image

    opened(browser, page)
    press(browser, "d")
    WebDriverWait(browser.driver, 10).until(
        lambda _: browser.js("return [...document.querySelectorAll('.viewer-frame img')].every((one) => one.complete)")
    )
    browser.shot(tmp_path / "difference.png", whole=False)
    box = browser.js(
        "const b = document.querySelector('.viewer-frame').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
    )
    picture = Image.open(tmp_path / "difference.png").convert("RGB")
    at = [
        picture.getpixel((int(box[0] + box[2] * x / 256), int(box[1] + box[3] * y / 192)))
        for x, y in ((240, 20), (90, 96))
    ]
    assert max(at[0]) < 12, "outside the ball they are equal"
    assert min(at[1][:2]) > 150, "within it they are not"
    assert (browser.errors(), browser.requests()) == ([], [])


def test_the_wipe_follows_its_slider(browser: Browser, page: Path):
    opened(browser, page)
    press(browser, "w")
    browser.js(
        "const one = document.querySelector('.wipe input'); one.value = 25; one.dispatchEvent(new Event('input'))"
    )
    assert browser.js("return getComputedStyle(document.querySelector('img.b')).clipPath") == "inset(0px 0px 0px 25%)"


def test_any_two_of_a_row_can_be_chosen(browser: Browser, page: Path):
    opened(browser, page)
    browser.js("const one = document.querySelector('.pick-b'); one.value = 3; one.dispatchEvent(new Event('change'))")
    assert shown(browser)[1] == "00-chopped.png"
    assert "B chopped · mean difference" in shown(browser)[3]


def test_the_slider_of_steps_moves_all_prompts(browser: Browser, page: Path):
    browser.open(page)
    seen = "return [...document.querySelectorAll('[data-film] > li')].filter((one) => one.offsetParent).map((one) => one.dataset.title)"
    assert browser.js(seen) == ["trained, the end"] * 2
    browser.find("#strip input").send_keys(Keys.ARROW_LEFT)
    assert browser.js(seen) == ["step 20"] * 2
    assert browser.find("#strip output").text == "step 20"
    assert browser.find("[data-play]").get_attribute("aria-pressed") == "false", "nothing plays by itself"
    assert (browser.errors(), browser.requests()) == ([], [])


def test_who_wants_less_motion_gets_none(browser: Browser, page: Path):
    browser.open(page)  # which asks for less
    assert not browser.find("[data-play]").is_displayed()
    any_motion = [{"name": "prefers-reduced-motion", "value": "no-preference"}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": any_motion})
    browser.driver.refresh()
    assert browser.find("[data-play]").is_displayed()
    browser.js("document.querySelector('[data-play]').click()")  # the page may still be scrolling
    output = browser.find("#strip output")
    WebDriverWait(browser.driver, 10).until(lambda _: output.text == "base, step 0")
    browser.js("document.querySelector('[data-play]').click()")
    assert browser.find("[data-play]").get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("dark", [False, True])
def test_no_picture_is_wider_than_a_phone(browser: Browser, page: Path, dark: bool):
    browser.open(page, width=390, height=844, dark=dark)
    assert browser.js("return document.documentElement.scrollWidth") <= 390
    browser.js("document.querySelector('a[data-shot]').click()")
    assert browser.js("return document.querySelector('dialog').scrollWidth") <= 390
