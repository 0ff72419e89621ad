"""The HTML page: one self-contained file that needs no network."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from outlierscope.reporting.page.findings import FINDINGS
from outlierscope.reporting.page.parts import Figure, Table
from outlierscope.reporting.page.payload import page_data, plotly_script, script_hash
from outlierscope.reporting.page.sections import make_sections
from outlierscope.reporting.page.terms import TERMS, explained
from outlierscope.reporting.page.verdict import base_rates, headline, misleading
from outlierscope.reporting.summary import FORMAT_NAMES, summarize
from outlierscope.version import __version__

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan


def render_page(scan: Scan) -> str:
    """The report as HTML text; texts from data are escaped wherever they are shown."""
    environment = Environment(
        loader=PackageLoader("outlierscope.reporting", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["explained"] = explained
    environment.tests["figure"] = lambda part: isinstance(part, Figure)
    summary, sections = summarize(scan), make_sections(scan)
    word, kind = headline(scan, summary)
    figures = [part for section in sections for part in section.parts if isinstance(part, Figure)]
    tables = [part for section in sections for part in section.parts if isinstance(part, Table)]
    plotly, plotly_hash = plotly_script()
    script = _asset("page.js")
    return environment.get_template("page.html").render(
        summary=summary,
        headline=word,
        headline_kind=kind,
        misleading=misleading(scan, summary),
        base_rates=base_rates(scan, summary),
        format_rules={name: rule for rule, name in FORMAT_NAMES.items()},
        settings=_settings(scan),
        sections=sections,
        long_table=FINDINGS,
        style=_asset("page.css"),
        script=script,
        policy=(
            "default-src 'none'; "
            f"script-src {script_hash(script)} {plotly_hash}; "
            "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
        ),
        plotly=plotly,
        data=page_data(figures, tables, {"terms": TERMS}),
        version=__version__,
    )


def _settings(scan: Scan) -> dict[str, str]:
    """The options of the scan that were set to something."""
    settings = scan.manifest["settings"]
    shown = {
        name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for name, value in settings.items()
        if value not in (None, [], (), {})
    }
    corpus = scan.manifest["corpus"]
    return shown | {
        f"corpus {name}".replace("_", " "): str(value)
        for name, value in corpus.items()
        if name != "source" and value not in (None, [], (), {})
    }


def _asset(name: str) -> str:
    """A file beside this one."""
    return (files("outlierscope.reporting.page") / name).read_text(encoding="utf-8").strip()
