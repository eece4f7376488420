"""The report in Chromium: it works from file://, says nothing to the console and asks no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import Browser
from world import World

from lorabuild.verbs.report import refresh

pytestmark = pytest.mark.browser
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def page(report_site: World) -> Path:
    """The page of a project with a hostile caption."""
    data = report_site.root / "build/ember/dataset.json"
    found = json.loads(data.read_bytes())
    found["images"][0]["caption"] = f"ember, {EVIL}, </script><b>x"
    data.write_text(json.dumps(found))
    refresh(report_site.root)
    return report_site.root / "build/report/ember.html"


@pytest.mark.parametrize("dark", [False, True])
def test_pages_open_without_complaint_and_without_network(browser: Browser, page: Path, dark: bool):
    for name in ("index.html", "ember.html"):
        browser.open(page.with_name(name), dark=dark)
        assert browser.js("return document.readyState") == "complete"
        assert (browser.errors(), browser.requests()) == ([], []), name
        assert browser.js("return performance.getEntriesByType('resource').length") == 0, name


def test_a_caption_with_a_script_shows_as_text(browser: Browser, page: Path):
    browser.open(page)
    tags = [one.text for one in browser.driver.find_elements("css selector", "th.tag")]
    assert EVIL in tags and "</script><b>x" in tags
    assert browser.errors() == []  # nor was it run: the alert would have stopped the driver


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_page_is_wider_than_its_window(browser: Browser, page: Path, width: int):
    for name in ("index.html", "ember.html"):
        browser.open(page.with_name(name), width=width, height=844)
        assert browser.js("return document.documentElement.scrollWidth") <= width, name
        ends = "return [...document.querySelectorAll('caption')].map((one) => one.getBoundingClientRect().right)"
        assert max(browser.js(ends), default=0) <= width, f"{name}: a table scrolls, what is said above it does not"
        kept = "return [...document.querySelectorAll('.scroll')].map((one) => one.offsetWidth).filter((one) => one)"
        assert min(browser.js(kept), default=width) > 200, name


def test_plots_are_read_by_keys_and_their_values_are_said(browser: Browser, page: Path):
    browser.open(page)
    browser.find("#plot-loss").send_keys("\ue011")  # Home
    browser.find("#plot-loss").send_keys("\ue014")  # right
    said = browser.js("return document.getElementById('said').textContent")
    assert said.startswith("step 1, loss ") and "smoothed" in said


def test_a_hash_is_copied_whole(browser: Browser, page: Path):
    browser.open(page)
    button = browser.find("button.copy[aria-label^='sha256' i], button.copy[aria-label^='Copy sha256']")
    browser.driver.execute_script("arguments[0].click()", button)
    browser.wait("return document.getElementById('said').textContent.startsWith('copied: ')")
    said = browser.js("return document.getElementById('said').textContent").removeprefix("copied: ")
    assert len(said) == 64


def test_every_table_has_a_caption_and_every_control_a_name(browser: Browser, page: Path):
    for name in ("index.html", "ember.html"):
        browser.open(page.with_name(name))
        assert (
            browser.js(
                "return [...document.querySelectorAll('table')].filter((one) => !one.caption && !one.closest('.u-legend, .plot')).length"
            )
            == 0
        )
        nameless = "return [...document.querySelectorAll('button, a, summary, [role=application], [role=region]')]"
        nameless += (
            ".filter((one) => !(one.textContent.trim() || one.getAttribute('aria-label'))).map((one) => one.outerHTML)"
        )
        assert browser.js(nameless) == []
        assert browser.js("return document.querySelectorAll('h1').length") == 1
