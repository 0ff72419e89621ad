"""Residual: searching a trial for the additions that make up the residual stream of a block.

The search goes backwards from the block's output and only uses values; what it finds is a proposal, which
``prove_block`` then checks on its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outlierscope.errors import ProofError
from outlierscope.model.anatomy import Tap
from outlierscope.model.discovery.dataflow import depends
from outlierscope.model.discovery.regrouping import find_rows

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
        rows: [B * T] where the tokens of the residual stream stand in it, where not in their own order.
    """

    passages: tuple[Passage, ...]
    order: int
    sample: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True)
class FoundAddition:
    """``total = base + sum of terms``, and ``result`` after the norms that follow.

    Attributes:
        base: the residual stream before.
        base_tap: where to read it as it is added, with its offset, factor or scale.
        terms: what is added, and where to read it as it is added; none where a block begins with norms of its input.
        total: the sum.
        result: what the norms give; ``total`` where none follows.
        norms: modules between total and result, in order.
    """

    base: Stream
    base_tap: Tap
    terms: tuple[tuple[Stream, Tap], ...]
    total: Stream
    result: Stream
    norms: tuple[str, ...]


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
        total = current
        norms: list[str] = []
        while total is not first and (norm := _norm_that_gave(trial, total)) is not None:
            norms.insert(0, norm)
            total = _carrying(streams, trial.norms[norm][0])
        if total is first:
            found.append(FoundAddition(first, _tap(first), (), first, current, tuple(norms)))
            break
        earlier = [stream for stream in streams if stream.order < total.order and stream is not total]
        explained = _explain(total, earlier, trial)
        if explained is None:
            where = current.passages[0].tap if current.passages else trial.exit
            raise ProofError(f"the {where.side} of {where.module} is no sum of what passed before it")
        base, base_tap, terms = explained
        found.append(FoundAddition(base, base_tap, terms, total, current, tuple(norms)))
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


Explanation = tuple[Stream, Tap, tuple[tuple[Stream, Tap], ...]]
"""The base, where to read it as it is added, and the same of each term."""


def _explain(total: Stream, earlier: list[Stream], trial: Trial) -> Explanation | None:
    candidates = [stream for stream in earlier if stream.passages]
    if not candidates:
        return None
    values = torch.stack([stream.sample.reshape(-1) for stream in candidates])  # [k, n]
    target = total.sample.reshape(-1)
    products = Products(candidates, values @ values.T, values @ target, float(target @ target))
    return (
        products.explain(terms=1)
        or products.explain(terms=2)
        or products.explain(terms=1, weigh_base=True)
        or _scaled(total, candidates, trial)
        or _scaled(total, candidates, trial, with_offset=True)
        or products.explain(terms=3)
        or _regrouped(total, candidates, trial)
    )


def _regrouped(total: Stream, candidates: list[Stream], trial: Trial) -> Explanation | None:
    """A branch whose tokens stand in another order (in windows), or among others (that are taken away again)."""
    if not total.passages:
        return None
    width = total.sample.shape[-1]
    whole = total.passages[0].value.reshape(-1, width)  # [B * T, d]
    others = [
        passage
        for passage in trial.recording.passages[: total.order]
        if passage.value.shape[-1] == width
        and passage.value.numel() >= whole.numel()
        and trial.recording.calls[passage.module] == 1
    ]
    for base in candidates:
        rest = whole - base.passages[0].value.reshape(-1, width)
        for passage in others:
            flat = passage.value.reshape(-1, width)
            rows = find_rows(rest, flat)
            if rows is None:
                continue
            term = Stream((passage,), passage.order, flat[rows].double(), rows)
            if _carries(base, [term]):
                return base, _tap(base), ((term, _tap(term)),)
    return None


@dataclass(frozen=True)
class Products:
    """Streams that may be parts of a sum, and the inner products by which least squares judges them.

    Attributes:
        candidates: the k streams.
        gram: [k, k] float64, of one another.
        onto: [k] float64, with the sum.
        energy: of the sum with itself.
    """

    candidates: list[Stream]
    gram: Tensor
    onto: Tensor
    energy: float

    def explain(self, terms: int, *, weigh_base: bool = False) -> Explanation | None:
        """The earliest base and terms, each with the factor that fits, that leave nothing of the sum unexplained.

        Args:
            terms: how many.
            weigh_base: whether the base has a factor as well (else it is added as it is).
        """
        count = len(self.candidates)
        if count < terms + 1:
            return None
        chosen = torch.tensor(list(combinations(range(count), terms + 1)))  # [N, 1 + terms], base first
        base, free = chosen[:, 0], chosen if weigh_base else chosen[:, 1:]
        gram = self.gram[free[:, :, None], free[:, None, :]]  # [N, m, m]
        onto, energy = self.onto[free], torch.full_like(self.onto[base], self.energy)  # [N, m], [N]
        if not weigh_base:
            onto = onto - self.gram[free, base[:, None]]
            energy = energy - 2 * self.onto[base] + self.gram[base, base]
        own = gram.diagonal(dim1=1, dim2=2)  # [N, m]
        scale = own.clamp_min(1e-30).sqrt()
        angles = gram / scale[:, :, None] / scale[:, None, :]
        # Streams that are multiples of one another cannot be told apart.
        sound = torch.linalg.det(angles) > 1e-6
        identity = torch.eye(free.shape[1], dtype=gram.dtype)
        factors = (
            torch.linalg.solve(torch.where(sound[:, None, None], angles, identity), onto / scale) / scale
        )
        left = (energy - (factors * onto).sum(1)).abs()
        needed = (factors**2 * own).amin(1) > 1e-4 * energy
        fits = sound & needed & (left <= FITS * energy) & (energy > FITS * self.energy)
        for place in fits.nonzero().flatten().tolist():
            streams = [self.candidates[index] for index in chosen[place].tolist()]
            found = [_tidy(factor) for factor in factors[place].tolist()]
            if not weigh_base:
                found = [1.0, *found]
            parts = [(stream, _tap(stream, factor)) for stream, factor in zip(streams, found, strict=True)]
            for base, tap in parts:
                rest = tuple(part for part in parts if part[0] is not base)
                if (weigh_base or tap.factor == 1.0) and _carries(base, [stream for stream, _ in rest]):
                    return base, tap, rest
        return None


def _carries(base: Stream, terms: list[Stream]) -> bool:
    """Whether some term was computed from the base: of several summands only the residual stream is read like that."""
    origin = base.passages[0].origin
    return origin is None or any(depends(term.passages[0].origin, origin) for term in terms)


def _scaled(
    total: Stream, candidates: list[Stream], trial: Trial, *, with_offset: bool = False
) -> Explanation | None:
    """A branch, the base or both scaled dim by dim with bare parameters of the block, after such were added to them.

    Args:
        total: the sum.
        candidates: what may be parts of it.
        trial: of the block.
        with_offset: whether parameters were added.
    """
    width = total.sample.shape[-1]
    known: dict[str | None, Tensor] = {
        name: value.reshape(-1).double()
        for name, value in trial.recording.parameters.items()
        if value.numel() == width
    }
    unit = torch.ones(width, dtype=torch.float64)
    target = total.sample.T[:, :, None]  # [d, n, 1]
    constant = torch.ones_like(total.sample)
    for base, term in combinations(candidates, 2):
        columns = [base.sample, term.sample] + ([constant] if with_offset else [])
        design = torch.stack(columns, dim=-1).transpose(0, 1)  # [d, n, 2 or 3]
        gram = design.transpose(1, 2) @ design  # [d, m, m]
        if (torch.linalg.det(gram) <= 1e-6 * gram.diagonal(dim1=1, dim2=2).prod(1)).any():
            continue
        fitted = torch.linalg.solve(gram, design.transpose(1, 2) @ target)  # [d, m, 1]
        if ((target - design @ fitted) ** 2).sum() > FITS * (target**2).sum():
            continue
        scales = [_same_parameter(fitted[:, place, 0], {None: unit, **known}) for place in (0, 1)]
        if None in scales:
            continue
        (base_scale, by_base), (term_scale, by_term) = (scale for scale in scales if scale is not None)
        if not with_offset:
            return base, _tap(base, 1.0, base_scale), ((term, _tap(term, 1.0, term_scale)),)
        offsets: dict[str | None, Tensor] = {None: torch.zeros_like(unit), **known}
        for base_offset, before in offsets.items():
            found = _same_parameter((fitted[:, 2, 0] - before * by_base) / by_term, offsets)
            if found is not None:
                tap = _tap(term, 1.0, term_scale, found[0])
                return base, _tap(base, 1.0, base_scale, base_offset), ((term, tap),)
    return None


def _same_parameter(vector: Tensor, known: dict[str | None, Tensor]) -> tuple[str | None, Tensor] | None:
    """Name and values of the parameter that a fitted vector is."""
    return next(
        (item for item in known.items() if bool((vector - item[1]).abs().max() <= 1e-4)),
        None,
    )


def _tidy(factor: float) -> float:
    return float(f"{factor:.6g}")


def _tap(
    stream: Stream,
    factor: float = 1.0,
    scale_parameter: str | None = None,
    offset_parameter: str | None = None,
) -> Tap:
    return replace(
        stream.passages[0].tap,
        factor=factor,
        scale_parameter=scale_parameter,
        offset_parameter=offset_parameter,
    )
