"""Layers: the anatomy of one block, put together from its trial and proved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from outlierscope.errors import ProofError
from outlierscope.model.anatomy import AttentionPlace, LayerAnatomy, Matrix, Tap
from outlierscope.model.discovery.attention_seen import AttentionSeen, attention_seen
from outlierscope.model.discovery.branches import Branch, attention_branch, mlp_branch, neurons
from outlierscope.model.discovery.dataflow import depends, mixes_tokens
from outlierscope.model.discovery.proof import Addition, Proposal, prove_block, residual_after
from outlierscope.model.discovery.residual import FoundAddition, Stream, find_additions
from outlierscope.model.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.model.attention.masks import MaskFormat
    from outlierscope.model.discovery.recording import Passage
    from outlierscope.model.discovery.trial import Trial

INNER_SITES = ("attn_in", "z", "attn_out", "resid_mid", "mlp_in", "mlp_post", "mlp_out")
"""Sites inside of a block that are listed as missing where nothing could be proved of it."""

SIDE_SITES = ("side_out", "side_out_2", "side_out_3")
"""Names for what branches beyond attention, mixer and one MLP add."""

GROUPED_OTHERWISE = "its tokens are grouped otherwise than in the residual stream"
"""Why a site is missing whose tokens stand in windows, in frames or among others."""

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
    attention, unseen = _told_apart(attention_seen(trial))
    terms = _assign(trial, attention, additions)
    layer = LayerAnatomy(index, trial.block, "")
    layer.taps |= {"resid_pre": trial.entrance, "resid_post": trial.exit}
    branches: dict[str, Branch] = {}
    for name, (seen, passage) in terms.items():
        base = next(a.base for a in additions if any(passage in s.passages for s, _ in a.terms))
        try:
            if name.startswith(("mixer", "side")) or (name == "cross_out" and seen is None):
                branches[name] = Branch()
            elif seen is None:
                branches[name] = mlp_branch(trial, passage, base.order)
            else:
                prefix = "cross_" if name == "cross_out" else ""
                branches[name] = attention_branch(trial, seen, passage, base.order, prefix)
        except ProofError as error:
            branches[name] = Branch(missing=dict.fromkeys(_inner(name), str(error)))
    proposal = _proposal(additions, terms, branches)
    layer.identities |= prove_block(trial, proposal)
    for addition in proposal.additions:
        layer.taps |= {name: tap for name, tap in addition.terms.items() if name not in addition.rows}
        layer.missing |= dict.fromkeys(addition.rows, GROUPED_OTHERWISE)
    for addition in proposal.additions[:-1]:
        name = residual_after(addition.terms)
        if name:
            layer.taps.setdefault(name, addition.result)
    for branch in branches.values():
        layer.taps |= branch.taps
        layer.missing |= branch.missing
        layer.identities |= branch.identities
        layer.matrices += branch.matrices
    layer.matrices += norm_matrices(trial)
    layer.layout = _layout(trial, additions, branches)
    places = {
        name: attention_place(seen, trial.recording.mask)
        for name, (seen, _) in terms.items()
        if seen is not None
    }
    layer.attention, layer.cross_attention = places.get("attn_out"), places.get("cross_out")
    if "cross_out" in terms and layer.cross_attention is None:
        layer.missing["cross_pattern"] = "no attention weights were seen that bring what another stack holds"
    if "mixer_out" in terms and "attn_out" not in terms:
        layer.missing["pattern"] = f"{unseen}; what mixes tokens is mixer_out"
    layer.aliases = _aliases(trial, layer, stack)
    for name in layer.aliases:
        layer.taps.pop(name, None)
    return layer


def attention_place(seen: AttentionSeen, mask: MaskFormat = "added") -> AttentionPlace:
    """Where a block attends, and with masks of which format."""
    return AttentionPlace(
        module=seen.module,
        route=seen.route,
        heads=seen.pattern.shape[1],
        key_value_heads=seen.value.shape[1],
        head_dim=seen.value.shape[-1],
        causal=is_causal(seen.pattern),
        window=seen.window,
        mask=mask,
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
    return {
        "attn_out": ("attn_in", "z"),
        "cross_out": ("cross_z",),
        "mlp_out": ("mlp_in", "mlp_post"),
    }.get(term, ())


def _told_apart(attention: list[AttentionSeen]) -> tuple[list[AttentionSeen], str]:
    """The attentions that have a place each, and why there is none where there is none."""
    for elsewhere in (False, True):
        times = sum(seen.reads_elsewhere is elsewhere for seen in attention)
        if times > 1:
            return [], f"it attends {times} times, and only one attention has a place in a block"
    return attention, "no attention weights were seen in it"


def _assign(trial: Trial, attention: list[AttentionSeen], additions: list[FoundAddition]) -> Terms:
    """Which term each branch wrote.

    That of an attention is the first that was computed from it. Of the others, one that carries something from token to
    token is a mixer's, one that brings tokens of another stack is a cross attention's whose weights were not seen, and
    the rest are MLPs': the one with most neurons is the block's MLP, others stand beside it.
    """
    free = [(addition.base, stream) for addition in additions for stream, _ in addition.terms]
    assigned: Terms = {}
    for seen in attention:
        name = "cross_out" if seen.reads_elsewhere else "attn_out"
        written = next((pair for pair in free if depends(pair[1].passages[0].origin, seen.z_origin)), None)
        if written is None:
            raise ProofError("what its attention gives is not added to the residual stream")
        assigned[name] = (seen, written[1].passages[0])
        free.remove(written)
    mixing = [
        pair for pair in free if mixes_tokens(trial, pair[0].passages[0], pair[1].passages[0], pair[1].rows)
    ]
    bases = {stream.passages[0]: base for base, stream in free}
    rest = [stream.passages[0] for pair in free if pair not in mixing for stream in pair[1:]]
    if mixing:
        assigned["mixer_out"] = (None, mixing[0][1].passages[0])
    crossing = next((passage for passage in rest if _reads_elsewhere(trial, bases[passage], passage)), None)
    if crossing is not None and "cross_out" not in assigned:
        assigned["cross_out"] = (None, crossing)
        rest.remove(crossing)
    if rest:
        assigned["mlp_out"] = (None, max(rest, key=lambda passage: (neurons(trial, passage), passage.order)))
    side = [stream.passages[0] for _, stream in mixing[1:]]
    side += [passage for passage in rest if passage is not assigned["mlp_out"][1]]
    if len(side) > len(SIDE_SITES):
        raise ProofError(f"{len(free)} branches besides attention are added to the residual stream")
    return assigned | {name: (None, passage) for name, passage in zip(SIDE_SITES, side, strict=False)}


def _reads_elsewhere(trial: Trial, base: Stream, term: Passage) -> bool:
    """Whether a term brings tokens of hidden states that the block was handed beside its own."""
    others = [p for p in trial.recording.of(trial.block) if p.side == "input" and p.tap != trial.entrance]
    return any(
        depends(term.origin, other.origin, past=base.passages[0].origin) and mixes_tokens(trial, other, term)
        for other in others
    )


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
                base=addition.base_tap,
                terms={site_of[stream.passages[0]]: tap for stream, tap in addition.terms},
                total=tap_of(addition.total.passages),
                result=(
                    Tap(addition.norms[-1], "output") if addition.norms else tap_of(addition.result.passages)
                ),
                norms=addition.norms,
                rows={
                    site_of[stream.passages[0]]: stream.rows
                    for stream, _ in addition.terms
                    if stream.rows is not None
                },
            )
            for addition in additions
        ),
        tuple(branch.projection for branch in branches.values() if branch.projection is not None),
    )


def _layout(trial: Trial, additions: list[FoundAddition], branches: dict[str, Branch]) -> str:
    normed = [bool(addition.norms) for addition in additions if addition.terms]
    if all(normed):
        return "post-norm"
    before = any(
        _norm_before(trial, addition, stream) for addition in additions for stream, _ in addition.terms
    )
    after = any(branch.has_norm(trial) for branch in branches.values())
    if any(normed):  # conformers norm what leaves the whole block
        return "pre-norm and last norm" if before else "post-norm"
    if any(len(addition.terms) > 1 for addition in additions):
        return "parallel"
    return {
        (True, True): "sandwich",
        (True, False): "pre-norm",
        (False, True): "reordered-norm",
        (False, False): "no-norm",
    }[before, after]


def _norm_before(trial: Trial, addition: FoundAddition, term: Stream) -> bool:
    """Whether a term was computed from a norm of the residual stream that it is added to."""
    return any(
        reads in addition.base.passages and depends(term.passages[0].origin, writes.origin)
        for reads, writes in trial.norms.values()
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
