"""Layers: the anatomy of one block, put together from its trial and proved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from outlierscope.errors import ProofError
from outlierscope.model.anatomy import AttentionPlace, LayerAnatomy, Matrix, Tap
from outlierscope.model.discovery.attention_seen import AttentionSeen, attention_seen
from outlierscope.model.discovery.branches import Branch, attention_branch, mlp_branch
from outlierscope.model.discovery.dataflow import depends
from outlierscope.model.discovery.proof import Addition, Proposal, prove_block
from outlierscope.model.discovery.residual import FoundAddition, find_additions
from outlierscope.model.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.model.discovery.recording import Passage
    from outlierscope.model.discovery.trial import Trial

INNER_SITES = ("attn_in", "z", "attn_out", "resid_mid", "mlp_in", "mlp_post", "mlp_out")
"""Sites inside of a block that are listed as missing where nothing could be proved of it."""

ALIAS_ORDER = ("resid_pre", "attn_in", "resid_mid", "mlp_in", "mlp_post", "mlp_gate", "mlp_act", "mlp_up")
"""Of two sites with the same tensor, the later one in this order is the alias."""


Terms = dict[str, tuple[AttentionSeen | None, "Passage"]]
"""Site name of a branch's output -> the attention that wrote it (``None``: an MLP), and where it was seen."""


def block_anatomy(trial: Trial, index: int, stack: str) -> LayerAnatomy:
    """Everything about one block that its trial shows.

    Raises:
        ProofError: where the residual identities do not hold.
    """
    additions = find_additions(trial)
    attention = attention_seen(trial)
    terms = _assign(attention, additions)
    layer = LayerAnatomy(index, trial.block, "")
    layer.taps |= {"resid_pre": trial.entrance, "resid_post": trial.exit}
    branches: dict[str, Branch] = {}
    for name, (seen, passage) in terms.items():
        try:
            if seen is None:
                base = next(a.base for a in additions if any(passage in s.passages for s, _ in a.terms))
                branches[name] = mlp_branch(trial, passage, base.order)
            else:
                prefix = "cross_" if name == "cross_out" else ""
                branches[name] = attention_branch(trial, seen, passage, prefix)
        except ProofError as error:
            branches[name] = Branch(missing=dict.fromkeys(_inner(name), str(error)))
    proposal = _proposal(additions, terms, branches)
    layer.identities |= prove_block(trial, proposal)
    for addition in proposal.additions:
        layer.taps |= addition.terms
    for addition in proposal.additions[:-1]:
        layer.taps["resid_cross" if "cross_out" in addition.terms else "resid_mid"] = addition.result
    for branch in branches.values():
        layer.taps |= branch.taps
        layer.missing |= branch.missing
        layer.identities |= branch.identities
        layer.matrices += branch.matrices
    layer.matrices += norm_matrices(trial)
    layer.layout = _layout(trial, additions, branches)
    layer.attention = attention_place(attention[0])
    layer.aliases = _aliases(trial, layer, stack)
    for name in layer.aliases:
        layer.taps.pop(name, None)
    return layer


def attention_place(seen: AttentionSeen) -> AttentionPlace:
    """Where a block attends to itself."""
    return AttentionPlace(
        module=seen.module,
        route=seen.route,
        heads=seen.pattern.shape[1],
        key_value_heads=seen.value.shape[1],
        head_dim=seen.value.shape[-1],
        causal=is_causal(seen.pattern),
        window=seen.window,
    )


def is_causal(pattern: Tensor) -> bool:
    """Whether in a pattern [B, H, T, S] no query attends to a later key."""
    rows, columns = pattern.shape[-2:]
    future = torch.ones(rows, columns, dtype=torch.bool, device=pattern.device).triu(1)
    return rows == columns and rows > 1 and not bool(pattern[..., future].any())


def norm_matrices(trial: Trial) -> list[Matrix]:
    """Gamma and beta of every norm of the block."""
    return [
        Matrix("norm", norm, name)
        for norm in (*trial.norms, *trial.small_norms)
        for name in trial.recording.parameters
        if name.rpartition(".")[0] == norm
    ]


def _inner(term: str) -> tuple[str, ...]:
    return {"attn_out": ("attn_in", "z"), "cross_out": ("cross_z",)}.get(term, ("mlp_in", "mlp_post"))


def _assign(attention: list[AttentionSeen], additions: list[FoundAddition]) -> Terms:
    """Which term each branch wrote: that of an attention call is the first that was computed from it."""
    free = [stream.passages[0] for addition in additions for stream, _ in addition.terms]
    if not attention:
        raise ProofError("no attention was seen in it")
    if len(attention) > 2:
        raise ProofError(f"it attends {len(attention)} times")
    assigned: Terms = {}
    for name, seen in zip(("attn_out", "cross_out"), attention, strict=False):
        written = next((p for p in free if depends(p.origin, seen.z_origin)), None)
        if written is None:
            raise ProofError("what its attention gives is not added to the residual stream")
        assigned[name] = (seen, written)
        free.remove(written)
    if len(free) > 1:
        raise ProofError(f"{len(free)} branches besides attention are added to the residual stream")
    if free:
        assigned["mlp_out"] = (None, free[0])
    return assigned


def _proposal(
    additions: list[FoundAddition],
    terms: Terms,
    branches: dict[str, Branch],
) -> Proposal:
    site_of = {passage: name for name, (_, passage) in terms.items()}

    def tap_of(passages: tuple[Passage, ...]) -> Tap:
        return passages[0].tap

    return Proposal(
        tuple(
            Addition(
                base=tap_of(addition.base.passages),
                terms={site_of[stream.passages[0]]: tap for stream, tap in addition.terms},
                total=tap_of(addition.total.passages),
                result=(
                    Tap(addition.norm, "output")
                    if addition.norm is not None
                    else tap_of(addition.result.passages)
                ),
            )
            for addition in additions
        ),
        tuple(branch.projection for branch in branches.values() if branch.projection is not None),
    )


def _layout(trial: Trial, additions: list[FoundAddition], branches: dict[str, Branch]) -> str:
    if any(addition.norm is not None for addition in additions):
        return "post-norm"
    if any(len(addition.terms) > 1 for addition in additions):
        return "parallel"
    norm_outputs = {passages[1].module for passages in trial.norms.values()}
    after = any(branch.has_norm(trial) for branch in branches.values())
    before = any(
        branch.reads is not None and _gives(trial, branch.reads, norm_outputs) for branch in branches.values()
    )
    return {
        (True, True): "sandwich",
        (True, False): "pre-norm",
        (False, True): "reordered-norm",
        (False, False): "no-norm",
    }[before, after]


def _gives(trial: Trial, passage: Passage, modules: set[str]) -> bool:
    return any(
        torch.equal(trial.norms[name][1].value.reshape(-1), passage.value.reshape(-1)) for name in modules
    )


def _aliases(trial: Trial, layer: LayerAnatomy, stack: str) -> dict[str, Site]:
    aliases: dict[str, Site] = {}
    seen: list[str] = []
    for name in ALIAS_ORDER:
        if name not in layer.taps:
            continue
        tensor = trial.recording.read(layer.taps[name]).reshape(-1)
        for earlier in seen:
            if torch.equal(trial.recording.read(layer.taps[earlier]).reshape(-1), tensor):
                aliases[name] = Site(stack, layer.index, earlier)
                break
        else:
            seen.append(name)
    return aliases
