"""Data flow: which linear layers a tensor was computed from, read off autograd's graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import GradientEdge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from torch.autograd.graph import Node

    from outlierscope.model.discovery.recording import Passage
    from outlierscope.model.discovery.trial import Linear, Trial


PROBED_TOKEN = 6
"""Not the first token, which sees nothing else in a decoder, and none that a family pads its windows with."""


def depends(origin: Node | None, on: Node | None, *, past: Node | None = None) -> bool:
    """Whether the tensor with graph node ``origin`` was computed from the one with graph node ``on``.

    With ``past`` given only what does not go through that node counts.
    """
    stops = set() if past is None else {past}
    return on is not None and any(node is on for node in _walk(origin, stops))


def last_linears(origin: Node | None, linears: Iterable[Linear]) -> list[Linear]:
    """The linear layers whose outputs reach a tensor without passing another linear layer."""
    by_node = {linear.writes.origin: linear for linear in linears if linear.writes.origin is not None}
    stops = set(by_node)
    found = [by_node[node] for node in _walk(origin, stops) if node in stops]
    return sorted(found, key=lambda linear: linear.writes.order)


def first_linears(origin: Node | None, linears: Iterable[Linear]) -> list[Linear]:
    """The linear layers that a tensor was computed with and that read nothing which another of them gave."""
    found: list[Linear] = []
    waiting = last_linears(origin, linears)
    seen: set[str] = set()
    while waiting:
        linear = waiting.pop()
        if linear.module in seen:
            continue
        seen.add(linear.module)
        before = last_linears(linear.reads.origin, linears)
        waiting += before
        if not before:
            found.append(linear)
    return sorted(found, key=lambda linear: linear.writes.order)


def mixes_tokens(trial: Trial, source: Passage, term: Passage, rows: Tensor | None = None) -> bool:
    """Whether a term at one token depends on ``source`` (hidden states of this or another stack) at another token.

    ``rows`` tells where the tokens of the residual stream stand in a term that has them in another order.
    """
    if term.origin is None or source.origin is None or not depends(term.origin, source.origin):
        return False
    hidden = trial.recording.find(trial.entrance).value
    batch, tokens = hidden.shape[0], hidden.shape[:-1].numel() // hidden.shape[0]
    place = min(tokens // 2, PROBED_TOKEN)
    one = torch.zeros_like(term.value, memory_format=torch.contiguous_format)
    row = (batch - 1) * tokens + place
    row = row if rows is None else int(rows[row])
    one.view(-1, hidden.shape[-1])[row] = torch.linspace(1.0, 2.0, hidden.shape[-1], device=one.device)
    (gradient,) = torch.autograd.grad(
        GradientEdge(term.origin, 0), GradientEdge(source.origin, 0), grad_outputs=one, retain_graph=True
    )
    reached = gradient.reshape(batch, -1, source.value.shape[-1]).abs().amax(-1)  # [B, T or S]
    reached[-1, min(place, reached.shape[1] - 1)] = 0
    return bool(reached.max() > 0)


def sees_later_tokens(trial: Trial) -> bool:
    """Whether what a block gives for the first half of the tokens depends on the hidden states of the others."""
    entering, leaving = trial.recording.find(trial.entrance), trial.recording.find(trial.exit)
    if entering.origin is None or leaving.origin is None:
        return True
    half = leaving.value.shape[1] // 2
    first = torch.zeros_like(leaving.value)
    first[:, :half] = torch.linspace(1.0, 2.0, first.shape[-1], device=first.device)
    (gradient,) = torch.autograd.grad(
        GradientEdge(leaving.origin, 0),
        GradientEdge(entering.origin, 0),
        grad_outputs=first,
        retain_graph=True,
    )
    return bool(gradient[:, half:].abs().max() > 0)


def _walk(origin: Node | None, stops: set[Node]) -> Iterable[Node]:
    waiting = [origin] if origin is not None else []
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if node not in stops:
            waiting.extend(parent for parent, _ in node.next_functions if parent is not None)
