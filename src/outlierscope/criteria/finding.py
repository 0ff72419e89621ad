"""Finding: one row of ``findings.parquet``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Kind = Literal["activation", "weight", "attention", "format"]


@dataclass
class Finding:
    """One thing that a criterion found; fields that do not apply stay ``None``.

    Attributes:
        criterion: name of the criterion.
        kind: ``activation``, ``weight``, ``attention`` or ``format``.
        stack: stack of the model.
        layer: block index from 0.
        site: site name.
        module: full name of the module concerned, as quantizers' skip lists want it.
        parameter: full name of the weight or norm parameter.
        dim: hidden dim, neuron or weight column.
        row: weight row.
        head: attention head.
        expert: expert of a mixture.
        position: position in the sequence, without padding.
        token_id: token concerned.
        token: its text.
        token_class: its class.
        sequence: sequence id.
        context: some text around the token.
        value: the signed value itself.
        score: the criterion's own figure (how many std, which ratio).
        threshold: what ``score`` (or ``value``) was compared with.
        count: events that this row stands for.
        share_tokens: events over tokens seen.
        share_sequences: share of the sequences with at least one event.
        rule: all thresholds, scope, sampling.
        extra: anything more that the criterion documents.
    """

    criterion: str
    kind: Kind
    stack: str | None = None
    layer: int | None = None
    site: str | None = None
    module: str | None = None
    parameter: str | None = None
    dim: int | None = None
    row: int | None = None
    head: int | None = None
    expert: int | None = None
    position: int | None = None
    token_id: int | None = None
    token: str | None = None
    token_class: str | None = None
    sequence: int | None = None
    context: str | None = None
    value: float | None = None
    score: float | None = None
    threshold: float | None = None
    count: int | None = None
    share_tokens: float | None = None
    share_sequences: float | None = None
    rule: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def row_values(self) -> dict[str, Any]:
        """The columns of ``findings.parquet`` in their order; ``rule`` and ``extra`` as JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["rule"] = json.dumps(self.rule, sort_keys=True, ensure_ascii=False)
        values["extra"] = json.dumps(self.extra, sort_keys=True, ensure_ascii=False)
        return values
