"""The page in a real browser, over a ledger that was filled as replicas fill it."""

import json
import socket
import threading
import time

import pytest
import uvicorn
from browser import PHONE, Visit, browsing, needs_browser
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from told import told_ledger

from serve_app.web.routes import add_routes

pytestmark = needs_browser


class Site:
    """The routes behind a real server; `locked`: a key is needed for data."""

    def __init__(self):
        self.ledger, self.now_s = told_ledger()
        self.locked = self.broken = False
        app = FastAPI()

        @app.middleware("http")
        async def guard(request, go_on):
            asks = request.url.path == "/energy/data"
            if asks and self.broken:
                return JSONResponse({}, 503)
            if asks and self.locked and request.headers.get("authorization") != "Bearer good":
                return JSONResponse({}, 401)
            return await go_on(request)

        add_routes(app, self.view)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [listener]}, daemon=True
        )

    async def view(self, what, *arguments):
        answer = getattr(self.ledger, what)
        return answer(*arguments) if what == "records" else answer(*arguments, self.now_s)


@pytest.fixture(scope="module")
def site():
    made = Site()
    made.thread.start()
    while not made.server.started:
        time.sleep(0.02)
    yield made
    made.server.should_exit = True
    made.thread.join(10)


@pytest.fixture(scope="module")
def browser():
    with browsing() as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_what_the_ledger_says_and_needs_nobody_else(site, browser, scheme, tmp_path):
    visit = Visit(browser, site.url, scheme=scheme)
    visit.wait_for_charts()
    assert visit.shown("drawn now") == "290 W"
    assert visit.shown("per request") == "12 J"
    assert visit.shown("within the targets") == "80 %"
    assert visit.shown("limit per GPU") == "300 W"
    page = visit.page
    assert page.locator("#requests tr").count() == 20
    assert page.locator("#decisions li").count() == 4
    assert "80 % within the targets" in page.locator("#decisions").inner_text()
    page.locator("#decisions summary").first.click()
    assert page.locator("#decisions details[open] tr").count() > 1
    page.wait_for_timeout(2500)  # the next answer leaves it open
    assert page.locator("#decisions details[open]").count() == 1
    # It asks for what is new, and shows all that it was ever told.
    asked = [url for url in visit.asked if "/energy/data" in url]
    assert asked[0].endswith("since_utc_s=0")
    assert float(asked[-1].partition("since_utc_s=")[2]) > 1e9
    assert page.evaluate("document.getElementById('draw').data[0].x.length") == 40
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(251, 251, 250)", "dark": "rgb(20, 23, 26)"}[scheme]
    page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
    assert (visit.complaints, visit.strangers) == ([], [])
    visit.context.close()


def test_it_fits_a_phone(site, browser):
    visit = Visit(browser, site.url, PHONE)
    visit.wait_for_charts()
    assert not visit.is_wider_than_the_screen()
    assert visit.complaints == []
    visit.context.close()


def test_a_key_is_asked_for_where_one_is_needed_and_an_outage_is_said(site, browser):
    site.locked = True
    visit = Visit(browser, site.url)
    page = visit.page
    page.wait_for_selector("#locked", state="visible")
    assert "a key is needed" in page.locator("#fault").inner_text()
    page.fill("#key", "good")
    page.click("#locked button")
    page.wait_for_selector(".tile", timeout=8000)
    assert page.locator("#locked").is_hidden()
    site.broken = True
    page.wait_for_selector("#fault:has-text('503')", timeout=8000)
    assert visit.shown("per request") == "12 J"  # what was known stays, and its age is said
    site.broken = site.locked = False
    page.wait_for_selector("#fault", state="hidden", timeout=8000)
    visit.context.close()


def test_words_from_elsewhere_are_text_and_never_markup(site, browser):
    """A tenant chooses request ids; the page must not run them."""
    evil = "<img src=x onerror=document.title='hit'>"
    kept = list(site.ledger._requests)
    site.ledger._requests.append({**kept[-1], "request": evil})
    visit = Visit(browser, site.url)
    visit.wait_for_charts()
    assert visit.page.title() == "JouleServe"
    assert visit.page.locator("#requests img").count() == 0
    assert json.dumps(evil)[-8:-2] in visit.page.locator("#requests").inner_text()
    visit.context.close()
