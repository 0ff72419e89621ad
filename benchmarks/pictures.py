"""Pictures of a report for the README: python benchmarks/pictures.py runs/demo/report.html"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = {"verdict": ("#verdict", "light"), "where": ("#where", "light"), "heads": ("#heads", "dark")}
"""Name of a picture -> the section that it begins with, and light or dark."""

WIDTH, HEIGHT = 1000, 800
"""Of a picture, in pixels."""


def take_pictures(report: Path, folder: Path) -> None:
    """Write one PNG file for each of ``PICTURES``.

    Args:
        report: a ``report.html``.
        folder: where the pictures go.
    """
    browser_path = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for name, (section, scheme) in PICTURES.items():
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
            page.goto(report.resolve().as_uri())
            page.locator("html[data-figures=ready]").wait_for(state="attached")
            page.evaluate("section => document.querySelector(section).scrollIntoView()", section)
            page.wait_for_timeout(1500)
            page.screenshot(path=folder / f"report-{name}.png")
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "pictures")
    arguments = parser.parse_args()
    take_pictures(arguments.report, arguments.out)
