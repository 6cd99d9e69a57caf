"""The page at `/` in a headless browser, by keyboard and by what a screen reader is told."""
import pathlib
import re

import pytest
from playwright.sync_api import expect, sync_playwright

from conftest import LONG

SCREENSHOTS = pathlib.Path(__file__).resolve().parents[3] / "target" / "screenshots"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    # That a request is refused is no problem of the page, if the page says so.
    refused = "Failed to load resource: the server responded with a status of 4"
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" and not m.text.startswith(refused) else None)
    page.on("request", lambda request: problems.append(f"asks {request.url}") if not request.url.startswith(server.url) else None)
    page.goto(server.url)
    yield page
    page.close()
    assert problems == []


def ask(page, text, tokens=24):
    page.get_by_label("Longest reply").fill(str(tokens))
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def shot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_a_conversation_by_keyboard(page, model):
    expect(page.get_by_role("combobox", name="Model")).to_have_value(model)
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_be_focused()
    ask(page, "Hello", 1000)
    turns = page.get_by_role("list").filter(has=page.get_by_role("heading", name="Model")).get_by_role("listitem")
    expect(turns).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=30000)
    said = turns.nth(1).inner_text()
    assert len(said.strip()) > len("Model") + 3
    told = re.search(r"([\d.]+) tokens/s", page.locator("#figures").inner_text())
    assert 1 < float(told[1]) < 100000, "of so small a model on any machine"
    # The same again: greedy replies do not change.
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=30000)
    assert turns.nth(1).inner_text() == said
    shot(page, "chat")
    page.get_by_role("button", name="New conversation").click()
    expect(turns).to_have_count(0)


def test_escape_stops_and_frees_the_slot(page, server):
    broken_off = []
    page.on("requestfailed", lambda request: broken_off.append(request.url))
    ask(page, "Go on for long", LONG)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator("#turns li.assistant > .text").last).not_to_be_empty(timeout=30000)
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    # A page that is busy with drawing hears nothing until the reply is over.
    assert broken_off == [f"{server.url}/v1/chat/completions"]
    server.idle()


def test_a_new_conversation_before_the_first_word(page):
    page.route("**/v1/chat/completions", lambda route: None)
    ask(page, "Hello")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator("#turns li")).to_have_count(0)
    page.unroute("**/v1/chat/completions")
    ask(page, "Hello again")
    expect(page.locator("#turns li.assistant > .text").last).not_to_be_empty(timeout=30000)


def test_the_engine_is_seen_alive(page):
    ask(page, "Hello", 200)
    expect(page.locator("#gauges dt")).not_to_have_count(0, timeout=10000)
    expect(page.locator("#chart-highest")).not_to_have_text(re.compile(r"^0(\.0)?$"), timeout=20000)
    expect(page.get_by_role("img", name="Rows in each step")).to_be_visible()
    shot(page, "engine")


def test_settings_are_kept_and_reset(page):
    page.get_by_role("spinbutton", name="Seed").fill("42")
    page.reload()
    expect(page.get_by_role("spinbutton", name="Seed")).to_have_value("42")
    page.get_by_role("button", name="Defaults").click()
    page.reload()
    expect(page.get_by_role("spinbutton", name="Seed")).to_have_value("")


def test_errors_are_told(page):
    ask(page, "word " * 40000)
    expect(page.get_by_role("alert")).not_to_be_empty(timeout=20000)


def test_text_is_never_markup(page):
    ask(page, "<img src=x onerror=alert(1)>")
    expect(page.locator("#turns li.user > .text")).to_have_text("<img src=x onerror=alert(1)>")
    assert page.locator("#turns img").count() == 0


def test_everything_has_a_name_and_a_small_screen_fits(page):
    for control in page.locator("button, input, select, textarea").all():
        named = "e => (e.labels && e.labels.length > 0 ? e.labels[0].innerText : '') || e.innerText || e.getAttribute('aria-label')"
        assert control.evaluate(named), control.evaluate("e => e.outerHTML")
    page.set_viewport_size({"width": 380, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    shot(page, "small")
