"""Proof: a proposal about a block is held against what passed in a trial, number by number.

Residual identities (with c a multiplier, s a layer scale):

    pre-norm     mid = pre + c a,  post = mid + c m          parallel   post = pre + a + m
    post-norm    mid = Norm(pre + a),  post = Norm(mid + m)

and within the branches ``pattern @ v = z``, ``W_o z = attn_out``, ``W_down mlp_post = mlp_out``, each up to
the norms and scales that stand between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outlierscope.errors import ProofError
from outlierscope.model.discovery.regrouping import in_order

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outlierscope.model.anatomy import Tap
    from outlierscope.model.discovery.trial import Trial

TOLERANCE = 1e-5
"""Largest error of an identity, relative to its largest term (float32)."""

NEEDED = 100 * TOLERANCE
"""Every term must matter at least so much, or the identity says nothing about it."""


@dataclass(frozen=True)
class Addition:
    """One addition on the residual stream: ``total = base + the sum of the terms``.

    Attributes:
        base: the residual stream before.
        terms: site name -> what is added.
        total: the sum.
        result: the residual stream afterwards: ``total``, or in post-norm models the norm's output.
        norms: the norms that make the result of the total, in order.
        rows: site name -> [B * T] int64, where the tokens of the residual stream stand in what is added, for terms
            that have them in another order.
    """

    base: Tap
    terms: dict[str, Tap]
    total: Tap
    result: Tap
    norms: tuple[str, ...] = ()
    rows: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Projection:
    """A branch's last matrix: ``term = what stands between (W x + b)``.

    Attributes:
        role: ``o`` or ``down``.
        module: full name of the linear module.
        term: site name of what it gives.
        through: modules between the matrix and the term, in order (norms, layer scales).
    """

    role: str
    module: str
    term: str
    through: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """What is claimed about one block.

    Attributes:
        additions: in order; the first base is the block's input, the last result its output.
        projections: the last matrices of the branches.
    """

    additions: tuple[Addition, ...]
    projections: tuple[Projection, ...] = ()


def prove_block(trial: Trial, proposal: Proposal) -> dict[str, float]:
    """Hold a proposal against a trial.

    Returns:
        Identity, written out, -> its largest error relative to its largest term.

    Raises:
        ProofError: where an identity fails, or would hold as well without one of its terms.
    """
    recording = trial.recording
    errors: dict[str, float] = {}
    before, where = trial.entrance, "resid_pre"
    for addition in proposal.additions:
        what = f"base of {' and '.join(addition.terms) or 'the first norm'}"
        _same(recording.read(before), recording.find(addition.base).value, what)
        parts = {where: addition.base, **addition.terms}
        last = addition is proposal.additions[-1]
        after = "resid_post" if last else residual_after(addition.terms) or _unnamed(addition.terms)
        total = f"norm_input({after})" if addition.norms and addition.terms else after
        name = f"{total} = {' + '.join(parts)}"
        errors[name] = prove_sum(
            name,
            recording.read(addition.total),
            {
                part: _rows_of(recording.read(tap), addition.rows.get(part), part)
                for part, tap in parts.items()
            },
        )
        _prove_norms(trial, addition, after)
        before, where = addition.result, after
    _same(recording.read(before), recording.read(trial.exit), "output of the block")
    for projection in proposal.projections:
        name = f"{projection.role} projection = {projection.term}"
        errors[name] = _prove_projection(trial, proposal, projection, name)
    return errors


def _rows_of(tensor: Tensor, rows: Tensor | None, part: str) -> Tensor:
    if rows is not None and len(torch.unique(rows)) != len(rows):
        raise ProofError(f"{part}: two tokens of the residual stream are said to be the same row of it")
    return in_order(tensor, rows)


def _unnamed(terms: Iterable[str]) -> str:
    return f"resid + {' + '.join(terms)}" if terms else "first_norm(resid_pre)"


def _prove_norms(trial: Trial, addition: Addition, after: str) -> None:
    current = trial.recording.read(addition.total)
    for norm in addition.norms:
        if norm not in trial.norms:
            raise ProofError(f"{after}: {norm} is no norm")
        reads, writes = trial.norms[norm]
        _same(current, reads.value, f"input of {norm}")
        current = writes.value
    _same(current, trial.recording.read(addition.result), f"what {after} is read from")


def residual_after(terms: Iterable[str]) -> str:
    """Site name of the residual stream once these terms were added; empty where it has none."""
    if "cross_out" in terms:
        return "resid_cross"
    return "resid_mid" if {"attn_out", "mixer_out"} & set(terms) else ""


def prove_sum(name: str, total: Tensor, parts: dict[str, Tensor]) -> float:
    """Check that ``total`` is the sum of the parts and that no part can be left out; the relative error.

    Raises:
        ProofError: otherwise.

    >>> x, a = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    >>> prove_sum("mid = pre + a", x + a, {"pre": x, "a": a}) < TOLERANCE
    True
    """
    scale = max(float(tensor.abs().max()) for tensor in (total, *parts.values()))
    rest = total.reshape(-1).double()
    for part in parts.values():
        rest = rest - part.reshape(-1).double()
    error = float(rest.abs().max()) / scale if scale > 0 else float("nan")
    if not error <= TOLERANCE:
        raise ProofError(f"{name} does not hold: relative error {error:.1e}")
    for label, part in parts.items():
        without = float((rest + part.reshape(-1).double()).abs().max()) / scale
        if not without >= NEEDED:
            raise ProofError(f"{name} says nothing about {label}: without it the error is {without:.1e}")
    return error


def prove_pattern(pattern: Tensor, value: Tensor, z: Tensor) -> float:
    """Check ``pattern @ v = z`` head by head; the relative error.

    Args:
        pattern: [B, H, T, S].
        value: [B, G, S, E], G dividing H.
        z: [B, T, H * E].

    Raises:
        ProofError: where it does not hold.
    """
    repeated = value.repeat_interleave(pattern.shape[1] // value.shape[1], dim=1)  # [B, H, S, E]
    expected = (pattern @ repeated).transpose(1, 2).flatten(2)  # [B, T, H * E]
    if expected.shape != z.shape:
        raise ProofError(f"pattern @ v = z: shapes {list(expected.shape)} and {list(z.shape)}")
    return prove_sum("pattern @ v = z", z, {"pattern @ v": expected})


def _prove_projection(trial: Trial, proposal: Proposal, projection: Projection, name: str) -> float:
    linear = trial.linears.get(projection.module)
    if linear is None:
        raise ProofError(f"{name}: {projection.module} is not linear")
    term = next(a.terms[projection.term] for a in proposal.additions if projection.term in a.terms)
    current = linear.writes.value
    for step in projection.through:
        passages = trial.recording.through(step)
        if passages is None:
            raise ProofError(f"{name}: {step} is called more than once or with several tensors")
        reads, writes = passages
        _same(current, reads.value, f"input of {step}")
        current = writes.value
    seen = trial.recording.find(term).value  # before factor and scale parameter
    return max(linear.error, prove_sum(name, seen, {projection.role: current}))


def _same(first: Tensor, second: Tensor, what: str) -> None:
    if first.numel() != second.numel() or not torch.equal(first.reshape(-1), second.reshape(-1)):
        raise ProofError(f"{what}: two tensors that should be the same differ")
