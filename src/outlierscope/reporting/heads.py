"""Heads in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlierscope.scanning.evidence import ScanEvidence


def head_lines(evidence: ScanEvidence) -> list[str]:
    """How many heads do nothing, on which tokens, and whether that is usual."""
    return []
