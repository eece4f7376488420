"""The report in Chromium: it works from file://, says nothing to the console and asks no network."""

from __future__ import annotations

import pytest
from browser import Browser
from world import World

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("page", ["index.html", "ember.html"])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_opens_without_complaint_and_without_network(
    browser: Browser, report_site: World, page: str, dark: bool
):
    browser.open(report_site.root / "build/report" / page, dark=dark)
    assert browser.js("return document.readyState") == "complete"
    assert (browser.errors(), browser.requests()) == ([], [])


def test_no_page_is_wider_than_a_phone(browser: Browser, report_site: World):
    for page in ("index.html", "ember.html"):
        browser.open(report_site.root / "build/report" / page, width=390, height=844)
        assert browser.js("return document.documentElement.scrollWidth") <= 390, page
