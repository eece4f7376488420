"""The report in headless Chromium: open a page, and see what it complained of and what it asked the network for."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from world import World

from lorabuild.report.page import FAULT
from lorabuild.verbs.report import refresh

STILL = {"name": "prefers-reduced-motion", "value": "reduce"}  # a click must not miss what still scrolls
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
PAUSED = "none of Chromium and its driver is here (LORABUILD_BROWSER_TESTS=1 makes that an error)"


class Browser:
    """One Chromium for all tests; each opens its own page."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, page: Path | str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a page and forget what was said of those before."""
        self._emulate("Emulation.setEmulatedMedia", features=[_scheme(dark), STILL])
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._emulate("Emulation.setDeviceMetricsOverride", **metrics)
        self.driver.get("about:blank")
        self.errors(), self.requests()
        self.driver.get(page.as_uri() if isinstance(page, Path) else page)

    def errors(self) -> list[str]:
        """What stands in the console since the last look, but for plain messages."""
        return [one["message"] for one in self.driver.get_log("browser") if one["level"] != "INFO"]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the last look, beyond files and data."""
        events = (json.loads(one["message"])["message"] for one in self.driver.get_log("performance"))
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("file:", "data:", "about:", "blob:"))]

    def js(self, code: str, *args: Any) -> Any:
        return self.driver.execute_script(code, *args)

    def wait(self, code: str, seconds: float = 10) -> None:
        """Wait until the code returns something true; then go on, or fail."""
        deadline = time.monotonic() + seconds
        while not self.js(code):
            assert time.monotonic() < deadline, f"never true: {code}"
            time.sleep(0.02)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def shot(self, path: Path, whole: bool = True) -> None:
        """A picture of the page, all of it if `whole`."""
        import base64

        found = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": whole} | self._whole(whole)
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def _whole(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        width, height = self.js("return [innerWidth, document.documentElement.scrollHeight]")
        return {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}

    def _emulate(self, command: str, **values: Any) -> None:
        self.driver.execute_cdp_cmd(command, values)


def _scheme(dark: bool) -> dict[str, str]:
    return {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, without a window. Tests that use it are marked `browser`."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        if os.environ.get("LORABUILD_BROWSER_TESTS") == "1":
            pytest.fail(PAUSED)
        pytest.skip(PAUSED)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    yield Browser(found)
    found.quit()


@pytest.fixture
def report_site(built: World) -> World:
    """A built repository with its report: the page of its project is `build/report/ember.html`."""
    refresh(built.root)
    assert FAULT not in (built.root / "build/report/ember.html").read_text()
    return built
