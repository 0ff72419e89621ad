"""Attention seen: the pattern, values and z of a block, and the linear layers that they were computed with.

Most families call the attention function, which was recorded. Others compute attention by themselves and hand
their weights out when asked; everything else then follows from the weights, by numbers and by data flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from outlierscope.model.discovery.dataflow import depends, last_linears
from outlierscope.model.discovery.recording import returned_patterns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.autograd.graph import Node

    from outlierscope.model.discovery.recording import Passage
    from outlierscope.model.discovery.trial import Linear, Trial


@dataclass(frozen=True, eq=False)
class AttentionSeen:
    """One attention of a block.

    Attributes:
        module: full name of the module that attends.
        route: as in ``AttentionPlace``.
        pattern: [B, H, T, S] probabilities.
        value: [B, G, S, E] for G value heads.
        z: [B, T, H * E], heads concatenated.
        z_origin: autograd's node of ``z``.
        sources: ``q``, ``k``, ``v`` -> the linear layers that it was computed with.
        window: the sliding window that the module asked for.
        reads_elsewhere: whether its keys come from another stack (cross attention).
    """

    module: str
    route: Literal["registry", "returned"]
    pattern: Tensor
    value: Tensor
    z: Tensor
    z_origin: Node | None
    sources: dict[str, list[Linear]]
    window: int | None
    reads_elsewhere: bool = False


def attention_seen(trial: Trial) -> list[AttentionSeen]:
    """Every attention of a block, in order; empty where it does not attend."""
    linears = trial.linears.values()
    called = [
        AttentionSeen(
            module=call.module,
            route="registry",
            pattern=call.pattern,
            value=call.value,
            z=call.z,
            z_origin=call.origins["z"],
            sources={role: last_linears(call.origins[role], linears) for role in ("q", "k", "v")},
            window=call.window,
            reads_elsewhere=not depends(call.origins["k"], trial.recording.find(trial.entrance).origin),
        )
        for call in trial.recording.attention
    ]
    return called or _returned_attention(trial)


def _returned_attention(trial: Trial) -> list[AttentionSeen]:
    """The attention of a block that returns its weights: every one whose values are found.

    ``z`` is the first input of a linear layer that is, head by head, the weights times some ``v``; ``v`` is
    looked for among the columns of what linear layers gave.
    """
    found: list[AttentionSeen] = []
    for pattern in returned_patterns(trial.recording):  # the innermost module returns it first
        if not any(torch.equal(pattern.value, seen.pattern) for seen in found):
            seen = _with_values(trial, pattern)
            found += [seen] if seen is not None else []
    return found


def _with_values(trial: Trial, pattern: Passage) -> AttentionSeen | None:
    hidden = trial.recording.find(trial.entrance)
    for reader in sorted(trial.linears.values(), key=lambda linear: linear.reads.order):
        z = reader.reads
        if not depends(z.origin, pattern.origin):
            continue
        found = _values(pattern.value, z.value, z.origin, trial.linears.values())
        if found is None:
            return None
        value, source = found
        query, key = _query_and_key(pattern, source, trial)
        return AttentionSeen(
            module=pattern.module,
            route="returned",
            pattern=pattern.value,
            value=value,
            z=z.value.reshape(pattern.value.shape[0], pattern.value.shape[2], -1),
            sources={"q": query, "k": key, "v": [source]},
            z_origin=z.origin,
            window=None,
            reads_elsewhere=not depends(source.reads.origin, hidden.origin),
        )
    return None


def _values(
    pattern: Tensor, z: Tensor, z_origin: Node | None, linears: Iterable[Linear]
) -> tuple[Tensor, Linear] | None:
    """Values [B, G, S, E] such that ``pattern @ v = z``, and the linear layer that gave them."""
    batch, heads, queries, keys = pattern.shape
    if z.numel() % (batch * heads * queries):
        return None
    wanted = z.reshape(batch, queries, heads, -1).transpose(1, 2)  # [B, H, T, E]
    width = wanted.shape[-1]
    for linear in linears:
        written = linear.writes.value
        if not depends(z_origin, linear.writes.origin) or written.shape[-1] % width:
            continue
        if written.numel() != batch * keys * written.shape[-1]:
            continue
        slices = written.reshape(batch, keys, -1, width).permute(2, 0, 1, 3)  # [N, B, S, E]
        chosen, offsets = [], []
        for head in range(heads):
            rest = wanted[None, :, head] - pattern[None, :, head] @ slices  # [N, B, T, E]
            # As rows of a pattern sum to one, a bias that is added to v is added to z.
            offset = rest.mean((1, 2), keepdim=True)  # [N, 1, 1, E]
            errors = (rest - offset).abs().flatten(1).amax(1)  # [N]
            if errors.min() > 1e-5 * wanted.abs().max():
                break
            chosen.append(int(errors.argmin()))
            offsets.append(offset[chosen[-1]])
        else:
            groups = sorted(set(chosen))
            repeated = [group for group in groups for _ in range(heads // len(groups))]
            if repeated == chosen:
                share = heads // len(groups)
                bias = torch.stack(offsets[::share])  # [G, 1, 1, E]
                return (slices[groups] + bias).transpose(0, 1), linear
    return None


def _query_and_key(pattern: Passage, value: Linear, trial: Trial) -> tuple[list[Linear], list[Linear]]:
    """The linear layers of queries and of keys, among those that read what the values are made from.

    The first token's key changes how later tokens attend; its query does not.
    """
    query: list[Linear] = []
    key: list[Linear] = []
    tensor = value.reads.value
    for linear in last_linears(pattern.origin, trial.linears.values()):
        if linear is value:
            return [linear], [linear]
        if linear.reads.value.shape != tensor.shape or not torch.equal(linear.reads.value, tensor):
            continue
        if pattern.origin is None or linear.writes.origin is None:
            continue
        later = torch.zeros_like(pattern.value)
        later[..., 1:, :] = torch.linspace(1.0, 2.0, later.shape[-1], device=later.device)
        (gradient,) = torch.autograd.grad(
            GradientEdge(pattern.origin, 0),
            GradientEdge(linear.writes.origin, 0),
            grad_outputs=later,
            retain_graph=True,
        )
        first = gradient.reshape(later.shape[0], later.shape[-1], -1)[:, 0]  # [B, out]
        (key if bool(first.abs().max() > 0) else query).append(linear)
    return query, key
