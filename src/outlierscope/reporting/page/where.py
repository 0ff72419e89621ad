"""Where: in which dims, on which tokens and at which positions outliers stand."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from outlierscope.reporting.page.dims import dim_figures
from outlierscope.reporting.page.events import delimiter_share, event_histograms, six_sigma_events
from outlierscope.reporting.page.parts import Figure, Section, Table
from outlierscope.reporting.wording import positions_of, quoted
from outlierscope.scanning.findings import table_rows

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan

MOST_CONTEXTS = 3
"""Example contexts of each rule."""


def where_section(scan: Scan) -> Section | None:
    """Maps of dims and histograms of events; ``None`` where no activations were observed."""
    parts: list[Figure | Table] = []
    sentences = []
    for stack in scan.evidence.anatomy.stacks:
        streams = [
            (site, scan.evidence.stat(site, "moments"))
            for site in scan.evidence.anatomy.sites("resid_post")
            if site.stack == stack
        ]
        found = [(site, moments) for site, moments in streams if moments is not None and moments.count]
        if found:
            parts += dim_figures(scan, stack, found)
        events = six_sigma_events(scan, stack)
        if events:
            parts += event_histograms(scan, stack, events)
            sentences += delimiter_share(scan, stack, events)
    contexts = _contexts(scan)
    if contexts is not None:
        parts.append(contexts)
    return Section("where", "Where: dims, tokens, positions", sentences, parts) if parts else None


def _contexts(scan: Scan) -> Table | None:
    """The first few findings of each rule that have a context."""
    taken: Counter[str] = Counter()
    rows: list[tuple[Any, ...]] = []
    if scan.findings.column("context").null_count < scan.findings.num_rows:
        for row in table_rows(scan.findings):
            if row["context"] and taken[row["criterion"]] < MOST_CONTEXTS:
                taken[row["criterion"]] += 1
                known = row["token_id"] is not None
                token = quoted(row["token"], row["token_id"]) if known else positions_of(row["token_class"])
                rows.append((row["criterion"], row["layer"], row["dim"], token, row["value"], row["context"]))
    columns = ("criterion", "layer", "dim", "token", "value", "context")
    return Table("contexts", "Where the strongest stand, in their text", columns, rows) if rows else None
