"""Random attention as observations, to hold statistics against plain arithmetic on whole patterns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from outlierscope.corpus.batch import TEXT_CLASSES, Batch
from outlierscope.model.attention.observation import AttentionObservation, AttentionReduction
from outlierscope.model.attention.visibility import AttentionTokens, Visibility
from outlierscope.model.sites import Site

SITE = Site("decoder", 0, "pattern")


@dataclass
class Sequence:
    """One sequence without padding: a pattern [H, T, T], values [G, T, D], and who the tokens are."""

    number: int
    pattern: np.ndarray
    values: np.ndarray
    token_ids: np.ndarray
    classes: np.ndarray
    causal: bool

    @property
    def outputs(self) -> np.ndarray:
        """[T, H, D] rows of A @ V."""
        heads, groups = len(self.pattern), len(self.values)
        return (self.pattern @ self.values.repeat(heads // groups, 0)).transpose(1, 0, 2)

    @property
    def seen_by(self) -> np.ndarray:
        length = self.pattern.shape[-1]
        return np.arange(length, 0, -1) if self.causal else np.full(length, length)

    @property
    def alpha(self) -> np.ndarray:
        return self.pattern.sum(1) / self.seen_by


def random_sequence(
    seed: int, number: int, length: int, *, causal: bool = True, spike: float = 3.0
) -> Sequence:
    """Softmax of random logits with some keys that get more than others."""
    generator = np.random.default_rng(seed)
    heads, groups, width = 4, 2, 3
    logits = generator.normal(size=(heads, length, length)) + spike * generator.normal(
        size=(heads, 1, length)
    )
    if causal:
        logits[:, np.triu(np.ones((length, length), dtype=bool), 1)] = -np.inf
    pattern = np.exp(logits - logits.max(-1, keepdims=True))
    pattern /= pattern.sum(-1, keepdims=True)
    return Sequence(
        number,
        pattern,
        generator.normal(size=(groups, length, width)),
        generator.integers(0, 6, length),
        generator.integers(0, len(TEXT_CLASSES), length).astype(np.uint8),
        causal,
    )


def observation(
    sequences: list[Sequence], *, padding: str = "left", with_values: bool = True
) -> AttentionObservation:
    """The sequences as one batch, padded at the ``left`` or ``right``; what padding attends to is NaN."""
    count, length = len(sequences), max(sequence.pattern.shape[-1] for sequence in sequences)
    heads, (groups, _, width) = len(sequences[0].pattern), sequences[0].values.shape
    real = torch.zeros(count, length, dtype=torch.bool)
    token_ids = torch.full((count, length), -1)
    classes = torch.full((count, length), 4, dtype=torch.uint8)
    pattern = torch.full((count, heads, length, length), torch.nan, dtype=torch.float64)
    values = torch.full((count, groups, length, width), 9.0, dtype=torch.float64)
    outputs = torch.full((count, length, heads, width), 9.0, dtype=torch.float64)
    for row, sequence in enumerate(sequences):
        own = sequence.pattern.shape[-1]
        rows = slice(length - own, length) if padding == "left" else slice(0, own)
        real[row, rows] = True
        token_ids[row, rows] = torch.from_numpy(sequence.token_ids)
        classes[row, rows] = torch.from_numpy(sequence.classes)
        pattern[row, :, rows] = 0
        pattern[row, :, rows, rows] = torch.from_numpy(sequence.pattern)
        values[row, :, rows] = torch.from_numpy(sequence.values)
        outputs[row, rows] = torch.from_numpy(sequence.outputs)
    batch = Batch(
        number=0,
        stack="decoder",
        inputs={},
        token_ids=token_ids,
        real=real,
        classes=classes,
        class_names=TEXT_CLASSES,
        sequence_ids=torch.tensor([sequence.number for sequence in sequences]),
        documents=[str(sequence.number) for sequence in sequences],
    )
    tokens = AttentionTokens(batch, torch.device("cpu"))
    visibility = Visibility.from_rule(tokens, tokens, causal=sequences[0].causal, window=None)
    reduction = AttentionReduction(SITE, tokens, tokens, visibility, heads)
    half = length // 2
    for row in range(count):
        for queries in (slice(0, half), slice(half, length)):
            if queries.stop > queries.start:
                reduction.add(slice(row, row + 1), queries, pattern[row : row + 1, :, queries].float())
    if not with_values:
        return reduction.finish(None, None, sums_to_one=True)
    return reduction.finish(values, outputs, sums_to_one=True)
