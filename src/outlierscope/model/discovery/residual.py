"""Residual: searching a trial for the additions that make up the residual stream of a block.

The search goes backwards from the block's output and only uses values; what it finds is a proposal, which
``prove_block`` then checks on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outlierscope.errors import ProofError
from outlierscope.model.anatomy import Tap

if TYPE_CHECKING:
    from outlierscope.model.discovery.recording import Passage
    from outlierscope.model.discovery.trial import Trial

SAMPLED_VALUES = 16384
"""The search looks at about so many values of each tensor; the proof looks at all of them."""

FITS = 1e-9
"""Share of the energy of a sum that its terms may leave unexplained during the search."""


@dataclass(frozen=True, eq=False)
class Stream:
    """One tensor of the residual's shape, whichever modules it passed.

    Attributes:
        passages: every passage of a module called once that carries this very tensor, in order.
        order: of its first passage, whichever module that was.
        sample: [n, d] float64, some of its tokens.
    """

    passages: tuple[Passage, ...]
    order: int
    sample: Tensor


@dataclass(frozen=True)
class FoundAddition:
    """``total = base + sum of terms``, and ``result`` where a norm follows."""

    base: Stream
    terms: tuple[tuple[Stream, Tap], ...]
    total: Stream
    result: Stream
    norm: str | None


def find_additions(trial: Trial) -> list[FoundAddition]:
    """The additions of a block, in order.

    Raises:
        ProofError: where the block's output cannot be followed back to its input.
    """
    streams = _streams(trial)
    first = _carrying(streams, trial.recording.find(trial.entrance))
    current = _carrying(streams, trial.recording.find(trial.exit))
    found: list[FoundAddition] = []
    while current is not first:
        total, norm = current, _norm_that_gave(trial, current)
        if norm is not None:
            total = _carrying(streams, trial.norms[norm][0])
        earlier = [stream for stream in streams if stream.order < total.order and stream is not total]
        explained = _explain(total, earlier, trial)
        if explained is None:
            where = current.passages[0].tap if current.passages else trial.exit
            raise ProofError(f"the {where.side} of {where.module} is no sum of what passed before it")
        base, terms = explained
        found.append(FoundAddition(base, terms, total, current, norm))
        current = base
    return found[::-1]


def _streams(trial: Trial) -> list[Stream]:
    hidden = trial.recording.find(trial.entrance).value
    width, size = hidden.shape[-1], hidden.numel()
    step = max(1, size // SAMPLED_VALUES)
    groups: list[tuple[Tensor, list[Passage]]] = []
    by_start: dict[tuple[float, ...], list[int]] = {}
    for passage in trial.recording.passages:
        if passage.value.numel() != size or passage.value.shape[-1] != width:
            continue
        flat = passage.value.reshape(-1, width)  # [B * T, d]
        start = tuple(flat[0, :4].tolist())
        for place in by_start.setdefault(start, []):
            if torch.equal(groups[place][0], flat):
                groups[place][1].append(passage)
                break
        else:
            by_start[start].append(len(groups))
            groups.append((flat, [passage]))
    streams = []
    for flat, passages in groups:
        usable = tuple(p for p in passages if trial.recording.calls[p.module] == 1)
        streams.append(Stream(usable, passages[0].order, flat[::step].double()))
    return streams


def _carrying(streams: list[Stream], passage: Passage) -> Stream:
    for stream in streams:
        if passage in stream.passages:
            return stream
    raise ProofError(f"the {passage.side} of {passage.module} is called more than once or has another shape")


def _norm_that_gave(trial: Trial, stream: Stream) -> str | None:
    for passage in stream.passages:
        if passage.side == "output" and passage.module in trial.norms:
            return passage.module
    return None


Explanation = tuple[Stream, tuple[tuple[Stream, Tap], ...]]


def _explain(total: Stream, earlier: list[Stream], trial: Trial) -> Explanation | None:
    candidates = [stream for stream in earlier if stream.passages]
    if len(candidates) < 2:
        return None
    values = torch.stack([stream.sample.reshape(-1) for stream in candidates])  # [k, n]
    target = total.sample.reshape(-1)
    gram, onto = values @ values.T, values @ target  # [k, k], [k]
    return (
        _two(candidates, gram, onto, target)
        or _three(candidates, gram, onto, target)
        or _scaled(total, candidates, trial)
    )


def _two(candidates: list[Stream], gram: Tensor, onto: Tensor, target: Tensor) -> Explanation | None:
    energy = float(target @ target)
    diagonal = gram.diagonal()
    rest = energy - 2 * onto + diagonal  # |total - base|^2  [k]
    along = onto[None, :] - gram  # (total - base) . term  [base, term]
    left = rest[:, None] - along**2 / diagonal.clamp_min(1e-30)[None, :]
    good = (left.abs() <= FITS * rest.clamp_min(1e-30)[:, None]) & (rest[:, None] > FITS * energy)
    for base, term in good.nonzero().tolist():
        if candidates[base].order < candidates[term].order:
            factor = _tidy(float(along[base, term] / diagonal[term]))
            return candidates[base], ((candidates[term], _tap(candidates[term], factor)),)
    return None


def _three(candidates: list[Stream], gram: Tensor, onto: Tensor, target: Tensor) -> Explanation | None:
    if len(candidates) < 3:
        return None
    triples = torch.tensor(list(combinations(range(len(candidates)), 3)))
    base, first, second = triples.T
    energy = target @ target - 2 * onto[base] + gram[base, base]
    b1, b2 = onto[first] - gram[base, first], onto[second] - gram[base, second]
    g11, g22, g12 = gram[first, first], gram[second, second], gram[first, second]
    determinant = g11 * g22 - g12**2
    sound = determinant > 1e-6 * g11 * g22
    determinant = torch.where(sound, determinant, torch.ones_like(determinant))
    c1, c2 = (b1 * g22 - b2 * g12) / determinant, (b2 * g11 - b1 * g12) / determinant
    left = (energy - c1 * b1 - c2 * b2).abs()
    needed = ((c1**2 * g11).minimum(c2**2 * g22)) > 1e-4 * energy
    for place in ((left <= FITS * energy) & sound & needed).nonzero().flatten().tolist():
        streams = [candidates[index] for index in triples[place].tolist()]
        factors = (_tidy(float(c1[place])), _tidy(float(c2[place])))
        return streams[0], tuple(
            (stream, _tap(stream, factor)) for stream, factor in zip(streams[1:], factors, strict=True)
        )
    return None


def _scaled(total: Stream, candidates: list[Stream], trial: Trial) -> Explanation | None:
    """A branch scaled dim by dim with a bare parameter of the block."""
    width = total.sample.shape[-1]
    scales = {
        name: value.reshape(-1).double()
        for name, value in trial.recording.parameters.items()
        if value.numel() == width
    }
    for base in candidates:
        rest = total.sample - base.sample  # [n, d]
        for term in candidates:
            if term.order <= base.order:
                continue
            ratio = (rest * term.sample).sum(0) / (term.sample**2).sum(0).clamp_min(1e-30)  # [d]
            if ((rest - ratio * term.sample) ** 2).sum() > FITS * (rest**2).sum():
                continue
            for name, scale in scales.items():
                if (ratio - scale).abs().max() <= 1e-4:
                    return base, ((term, _tap(term, 1.0, name)),)
    return None


def _tidy(factor: float) -> float:
    return float(f"{factor:.6g}")


def _tap(stream: Stream, factor: float, scale_parameter: str | None = None) -> Tap:
    seen = stream.passages[0].tap
    return Tap(seen.module, seen.side, seen.index, seen.argument, factor, scale_parameter)
