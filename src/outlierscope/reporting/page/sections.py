"""The sections of the page, in order: a new one is a file here and a line below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlierscope.reporting.page.findings import findings_section
from outlierscope.reporting.page.heads import heads_section
from outlierscope.reporting.page.layers import layers_section
from outlierscope.reporting.page.weights import weights_section
from outlierscope.reporting.page.where import where_section

if TYPE_CHECKING:
    from outlierscope.reporting.page.parts import Section
    from outlierscope.scanning.scan import Scan

SECTIONS = (
    layers_section,
    where_section,
    heads_section,
    weights_section,
    findings_section,
)
"""Each takes a scan and returns its section, or ``None`` where there is nothing to show."""


def make_sections(scan: Scan) -> list[Section]:
    """All sections that this scan has."""
    return [section for make in SECTIONS if (section := make(scan)) is not None]
