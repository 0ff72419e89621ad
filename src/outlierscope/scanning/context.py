"""Contexts: some text around the tokens that findings point at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlierscope.corpus.corpus import Corpus
    from outlierscope.criteria.finding import Finding

MOST = 1000
"""Findings that get a context; they come most severe first."""


def add_contexts(findings: list[Finding], corpus: Corpus) -> None:
    """Fill ``context`` by reading the sequences concerned once more; token ids are not kept during a scan."""
    pointing = [item for item in findings if item.sequence is not None and item.position is not None][:MOST]
    wanted: dict[int, list[Finding]] = {}
    for finding in pointing:
        wanted.setdefault(int(finding.sequence or 0), []).append(finding)
    for batch in corpus.batches():
        if not wanted:
            return
        for row, sequence in enumerate(batch.sequence_ids.tolist()):
            for finding in wanted.pop(sequence, []):
                finding.context = corpus.context(
                    batch.of(str(finding.stack)) or batch, row, int(finding.position or 0)
                )


def add_places(findings: list[Finding], corpus: Corpus) -> None:
    """Tell in ``extra`` where in its picture or recording a finding's position is."""
    for finding in findings:
        if finding.position is not None:
            finding.extra |= corpus.place(finding.position) or {}
