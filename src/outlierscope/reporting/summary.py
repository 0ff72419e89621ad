"""The summary of a scan: what is said of it, in order, before anybody looks at tables."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlierscope.scanning.scan import Scan


@dataclass
class Summary:
    model: str
    description: str = ""
    verdict: list[str] = field(default_factory=list)
    formats: list = field(default_factory=list)
    outliers: list = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    not_observed: list[str] = field(default_factory=list)


def summarize(scan: Scan) -> Summary:
    return Summary(model=scan.manifest["model"]["name"])
