"""Examples: a bounded number of sequences with the queries, keys and values of a few heads, kept whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import torch

from outlierscope.model.attention.observer import AttentionObserver
from outlierscope.model.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.corpus.batch import Batch
    from outlierscope.corpus.corpus import Corpus
    from outlierscope.criteria.finding import Finding
    from outlierscope.model.attention.observation import HeadTensors
    from outlierscope.model.observed import ObservedModel

SEQUENCES = 4
HEADS = 4


def collect_examples(
    observed: ObservedModel, corpus: Corpus, findings: list[Finding], *, single: bool = False
) -> dict[str, Tensor]:
    """The first few sequences, run once more for the tensors of the heads that findings name first.

    Args:
        observed: the model.
        corpus: what was scanned.
        findings: of the scan.
        single: one sequence only, where memory was scarce.

    Returns:
        The tensors of ``examples-00000.safetensors``, as ``docs/schema.md`` describes them.
    """
    batch = _first_sequences(corpus, 1 if single else SEQUENCES)
    picked = pick_heads(findings)
    tensors = {"sequences": batch.sequence_ids}
    for view in batch.views:
        rows = [view.rows(row) for row in range(len(view.sequence_ids))]
        prefix = "" if view is batch else f"{view.stack}."
        tensors[f"{prefix}ids"] = torch.cat([view.token_ids[index, row] for index, row in enumerate(rows)])
        tensors[f"{prefix}offsets"] = torch.tensor([0, *(row.stop - row.start for row in rows)]).cumsum(0)
    if "pixel_values" in batch.inputs:
        tensors["images"] = batch.inputs["pixel_values"].half()

    def keep(heads: HeadTensors) -> None:
        groups = heads.query.shape[1] // heads.key.shape[1]
        prefix = heads.site.name.removesuffix("pattern")  # of the names of cross attention
        for head in picked.get(heads.site, ()):
            for name, tensor, index, tokens in (
                ("q", heads.query, head, heads.queries),
                ("k", heads.key, head // groups, heads.keys),
                ("v", heads.value, head // groups, heads.keys),
            ):
                sequences = range(len(tensor))
                real = [
                    tensor[sequence, index, tokens.rows(sequence)] for sequence in sequences
                ]  # each [T, d_head]
                key = f"{heads.site.stack}.{heads.site.layer}.{head}.{prefix}{name}"
                tensors[key] = torch.cat(real).float().cpu()

    if picked:
        with AttentionObserver(observed.module, observed.anatomy, lambda _: None, on_heads=keep) as observer:
            observer.begin(batch)
            with torch.inference_mode():
                observed.runner(batch.stack)(**observed.placed(batch.inputs))
    return tensors


def pick_heads(findings: list[Finding]) -> dict[Site, list[int]]:
    """The first few heads that findings name, by the ``pattern`` of their layer."""
    named = dict.fromkeys(
        (Site(str(finding.stack), finding.layer, str(finding.site)), finding.head)
        for finding in findings
        if finding.kind == "attention" and finding.head is not None
    )
    picked: dict[Site, list[int]] = {}
    for site, head in islice(named, HEADS):
        picked.setdefault(site, []).append(head)
    return picked


def _first_sequences(corpus: Corpus, most: int) -> Batch:
    batch = next(corpus.batches())
    while len(batch.sequence_ids) > most:
        batch = batch.split()[0]
    return replace(batch, dear=True)
