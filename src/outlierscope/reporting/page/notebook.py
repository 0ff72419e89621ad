"""For notebooks: single figures of the report, and how a scan shows itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import escape

from outlierscope.reporting.page.parts import Figure
from outlierscope.reporting.page.sections import make_sections
from outlierscope.reporting.page.verdict import headline
from outlierscope.reporting.summary import summarize

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan


def plot_figure(scan: Scan, name: str) -> Any:
    """One figure of the report as a ``plotly.graph_objects.Figure``.

    Raises:
        KeyError: when this scan has no such figure; the message says which it has.
    """
    import plotly.graph_objects as go

    figures = {
        part.name: part
        for section in make_sections(scan)
        for part in section.parts
        if isinstance(part, Figure)
    }
    if name not in figures:
        raise KeyError(f"no figure {name!r}; this scan has: {', '.join(figures) or 'none'}")
    figure = figures[name]
    return go.Figure(data=figure.traces, layout=figure.layout | {"title": {"text": figure.title}})


def scan_card(scan: Scan) -> str:
    """What a scan shows of itself in a notebook: its verdict as HTML, with texts escaped."""
    summary = summarize(scan)
    word, _ = headline(scan, summary)
    lines = "".join(f"<p>{escape(line)}</p>" for line in summary.verdict)
    return f"<p><strong>{escape(word)}</strong>: {escape(summary.model)}</p>{lines}"
