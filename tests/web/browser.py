"""A real browser, where there is one: Chromium from PATH, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil

import pytest

CHROMIUM = os.environ.get("JOULESERVE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@contextlib.contextmanager
def browsing():
    """A browser that has no way out but loopback."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page with what it complained about and what it asked for elsewhere."""

    def __init__(self, browser, url, viewport=DESK, scheme="light"):
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page = self.context.new_page()
        self.complaints, self.strangers, self.asked = [], [], []
        self.page.on(
            "console", lambda m: self.complaints.append(m.text) if m.type == "error" else None
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "request",
            lambda r: (
                None if r.url.startswith((url, "data:", "blob:")) else self.strangers.append(r.url)
            ),
        )
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{url}/energy", wait_until="load")

    def shown(self, label):
        """The value of the tile with this label."""
        tile = self.page.locator(".tile", has=self.page.get_by_text(label, exact=True))
        return tile.locator("b").inner_text()

    def wait_for_charts(self):
        self.page.wait_for_selector("#draw .main-svg", timeout=15_000)

    def is_wider_than_the_screen(self):
        return self.page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
