"""The page in a browser: it draws, filters, sorts, explains and saves, and neither errs nor asks for anything."""

import csv
import shutil
from pathlib import Path

import pytest

from outlierscope.reporting.page.render import render_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("needs Debian's chromium (apt-get install chromium), which is absent")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(infected, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(infected), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, file):
    """Opens the page at a width and collects what it complains of and asks for."""
    contexts = []

    def open_page(width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.complaints.append(request.url))
        page.goto(file.as_uri())
        page.locator("html[data-figures=ready]").wait_for(state="attached", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_it_draws_without_complaint_or_request(opened, file, width, scheme):
    page = opened(width, scheme)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(1500)
    assert page.locator(".plot .main-svg").count() >= page.locator(".plot").count() > 10
    assert page.complaints == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.hacked") is None


def test_findings_filter_sort_and_stay_few_in_the_document(opened):
    page = opened()
    host = page.locator(".long")
    assert "3,000 of 3,000 rows" in host.inner_text()
    assert host.locator("tbody tr").count() < 100
    host.locator("th button", has_text="value").click()
    assert "3199" in host.locator("tbody tr").first.inner_text()
    host.locator("input").fill("onerror")
    page.locator(".long", has_text="40 of 3,000 rows").wait_for()
    assert page.evaluate("window.hacked") is None


def test_csv_is_saved_whole(opened):
    page = opened()
    with page.expect_download() as download:
        page.locator(".long").get_by_text("Download CSV").click()
    with Path(download.value.path()).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3000
    assert rows[7]["value"] == "207"
    assert "<script>" in rows[0]["token"]


def test_terms_explain_themselves_and_dark_mode_turns(opened):
    page = opened()
    page.locator("button.term[data-term=massive]").first.hover()
    assert "above 100" in page.locator("#tooltip").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#tooltip").is_hidden()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_obstacle_for_readers_with_aids(opened, scheme):
    axe = pytest.importorskip("axe_core_python.base").AXE_SCRIPT
    page = opened(scheme=scheme)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(1500)
    # The policy forbids scripts from outside; axe's is put in past it, by the debugger.
    page.evaluate(axe)
    found = page.evaluate("axe.run()")["violations"]
    assert [
        (item["id"], item["nodes"][0]["html"]) for item in found if item["impact"] in ("serious", "critical")
    ] == []
