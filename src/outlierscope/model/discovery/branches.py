"""Branches: what each branch of a block reads, multiplies and writes, followed along the data.

Roles of matrices come from what was computed from what: the linear layers that queries were computed from,
the one that the attention's output enters, and so on. No name of a module is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from outlierscope.errors import ProofError
from outlierscope.model.anatomy import Matrix, Tap
from outlierscope.model.discovery.dataflow import depends, first_linears, last_linears
from outlierscope.model.discovery.experts import experts_of
from outlierscope.model.discovery.proof import Projection, prove_pattern, prove_sum

if TYPE_CHECKING:
    from outlierscope.model.discovery.attention_seen import AttentionSeen
    from outlierscope.model.discovery.recording import Passage
    from outlierscope.model.discovery.trial import Linear, Trial


@dataclass
class Branch:
    """What was found of one branch (attention or MLP) of a block.

    Attributes:
        taps: site name -> where to read it.
        matrices: its weight matrices by role.
        projection: its last matrix, for the proof.
        reads: what its first matrices read.
        missing: site name -> why it is not observed.
        identities: identity -> relative error.
    """

    taps: dict[str, Tap] = field(default_factory=dict)
    matrices: list[Matrix] = field(default_factory=list)
    projection: Projection | None = None
    reads: Passage | None = None
    missing: dict[str, str] = field(default_factory=dict)
    identities: dict[str, float] = field(default_factory=dict)

    def has_norm(self, trial: Trial) -> bool:
        """Whether a norm stands between the last matrix and the residual stream."""
        return self.projection is not None and any(step in trial.norms for step in self.projection.through)


def attention_branch(trial: Trial, seen: AttentionSeen, out: Passage, base: int, prefix: str = "") -> Branch:
    """Sites and matrices of an attention branch.

    Args:
        trial: of the block.
        seen: the attention.
        out: the branch's output, before multiplier and bare layer scale.
        base: order of the residual stream that the branch is added to; what was computed before is not of it.
        prefix: of the site names: "" or ``cross_``.
    """
    branch = Branch()
    branch.identities["pattern @ v = z"] = prove_pattern(seen.pattern, seen.value, seen.z)
    last = last_linears(out.origin, trial.linears.values())
    z_site = f"{prefix}z"
    if len(last) == 1 and _same_values(last[0].reads.value, seen.z):
        branch.taps[z_site] = last[0].reads.tap
        branch.matrices.append(_matrix(f"{prefix}o", last[0]))
        branch.projection = Projection(
            "o", last[0].module, f"{prefix or 'attn_'}out", _through(trial, last[0], out)
        )
    else:
        branch.missing[z_site] = "no single linear layer reads the attention's output as it is"
    roles: dict[str, str] = {}
    for role, sources in seen.sources.items():
        for linear in sources:
            roles[linear.module] = roles.get(linear.module, "") + role
    own = [_matrix(prefix + role, trial.linears[name]) for name, role in roles.items()]
    branch.matrices = own + branch.matrices
    if prefix:
        return branch
    # Low-rank projections are made by two linear layers: what attention reads is what the first of them read.
    # What they make of tables of relative positions has no part in it.
    hidden = trial.recording.find(trial.entrance).origin
    within = [
        linear
        for linear in trial.linears.values()
        if linear.reads.order >= base and depends(linear.reads.origin, hidden)
    ]
    inputs = [linear.reads for linear in first_linears(seen.z_origin, within)]
    if inputs and all(_same_values(passage.value, inputs[0].value) for passage in inputs):
        branch.reads = inputs[0]
        branch.taps["attn_in"] = inputs[0].tap
    else:
        branch.missing["attn_in"] = (
            "the first linear layers of queries, keys and values do not read one tensor"
        )
    return branch


def mlp_branch(trial: Trial, out: Passage, base: int) -> Branch:
    """Sites and matrices of an MLP branch.

    Args:
        trial: of the block.
        out: as in ``attention_branch``.
        base: likewise.
    """
    branch = Branch()
    own = [linear for linear in trial.linears.values() if linear.reads.order >= base]
    last = [linear for linear in last_linears(out.origin, trial.linears.values()) if linear in own]
    inner = ("mlp_in", "mlp_gate", "mlp_act", "mlp_up", "mlp_post")
    experts = experts_of(trial, out, base)
    if experts is not None:
        branch.reads, matrices = experts
        branch.missing |= dict.fromkeys(inner, "each expert of the mixture sees tokens of its own")
        if branch.reads is not None:
            branch.taps["mlp_in"] = branch.reads.tap
            del branch.missing["mlp_in"]
        shared = [_mlp_matrices(trial, linear) for linear in last]
        branch.matrices = [matrix for group in shared for matrix in group] + matrices
        return branch
    if len(last) != 1:
        why = (
            f"{len(last)} linear layers write the MLP's output together"
            if last
            else "no linear layer writes it"
        )
        branch.missing |= dict.fromkeys(inner, why)
        return branch
    down = last[0]
    branch.taps["mlp_post"] = down.reads.tap
    branch.projection = Projection("down", down.module, "mlp_out", _through(trial, down, out))
    first = last_linears(down.reads.origin, trial.linears.values())
    if not first or not all(_same_values(linear.reads.value, first[0].reads.value) for linear in first):
        branch.missing |= dict.fromkeys(inner[:-1], "the MLP's first linear layers do not read one tensor")
        branch.matrices.append(_matrix("down", down))
        return branch
    branch.reads = first[0].reads
    branch.taps["mlp_in"] = first[0].reads.tap
    roles = _gate_and_up(trial, first, down, branch)
    branch.matrices += [_matrix(role, linear) for role, linear in zip(roles, first, strict=True)]
    branch.matrices.append(_matrix("down", down))
    return branch


def _mlp_matrices(trial: Trial, down: Linear) -> list[Matrix]:
    """The matrices of an expert that all tokens pass; none for the gate by which it is weighed."""
    first = last_linears(down.reads.origin, trial.linears.values())
    if down.writes.value.shape[-1] == 1 or not first:
        return []
    roles = _gate_and_up(trial, first, down, Branch())
    return [
        *(_matrix(role, linear) for role, linear in zip(roles, first, strict=True)),
        _matrix("down", down),
    ]


def neurons(trial: Trial, out: Passage) -> int:
    """How wide what the last linear layers of a branch read is; 0 where none writes its output."""
    last = last_linears(out.origin, trial.linears.values())
    return max((linear.reads.value.shape[-1] for linear in last), default=0)


def _gate_and_up(trial: Trial, first: list[Linear], down: Linear, branch: Branch) -> list[str]:
    """The roles of the MLP's first matrices, in their order; fills the taps of gate, activation and up."""
    post = down.reads.value
    gated = len(first) > 1 or first[0].writes.value.shape[-1] != post.shape[-1]
    if not gated:
        branch.taps["mlp_up"] = first[0].writes.tap
        branch.taps["mlp_act"] = down.reads.tap
        return ["up"]
    role = {linear.module: "gate_up" for linear in first}
    if len(first) > 1:
        up = [linear for linear in first if _is_factor(linear, down)]
        if len(first) > 2 or len(up) != 1:
            why = "which of the MLP's first linear layers is the gate could not be proved"
            branch.missing |= dict.fromkeys(("mlp_gate", "mlp_act", "mlp_up"), why)
            return [role[linear.module] for linear in first]
        role = {linear.module: "up" if linear is up[0] else "gate" for linear in first}
        branch.taps["mlp_up"] = up[0].writes.tap
        branch.taps["mlp_gate"] = next(linear for linear in first if linear is not up[0]).writes.tap
        parts = [up[0].writes.value]
    else:
        branch.missing["mlp_up"] = "it is a part of the output of a matrix that gives gate and up together"
        parts = _halves(first[0].writes.value)
    for part in parts:
        activation = _activation_times(trial, part, down)
        if activation is not None:
            branch.identities["mlp_act * mlp_up = mlp_post"] = prove_sum(
                "mlp_act * mlp_up = mlp_post",
                post,
                {"product": activation[1].value.reshape(part.shape) * part},
            )
            branch.taps.setdefault("mlp_gate", activation[0].tap)
            branch.taps["mlp_act"] = activation[1].tap
            break
    else:
        branch.missing |= {
            name: "no module gives it by itself"
            for name in ("mlp_gate", "mlp_act")
            if name not in branch.taps
        }
    return [role[linear.module] for linear in first]


def _is_factor(linear: Linear, down: Linear) -> bool:
    """Whether the down projection's input is proportional to what a linear layer gave, as it is to ``up``.

    With ``mlp_post = f(gate) * up`` its gradient with respect to ``up``, times ``up``, is ``mlp_post``.
    """
    if linear.writes.origin is None or down.reads.origin is None:
        return False
    post = down.reads.value
    (gradient,) = torch.autograd.grad(
        GradientEdge(down.reads.origin, 0),
        GradientEdge(linear.writes.origin, 0),
        grad_outputs=torch.ones_like(post),
        retain_graph=True,
    )
    product = gradient.reshape(-1) * linear.writes.value.reshape(-1)
    return product.numel() == post.numel() and bool(
        (product - post.reshape(-1)).abs().max() <= 1e-5 * post.abs().max()
    )


def _activation_times(trial: Trial, part: Tensor, down: Linear) -> tuple[Passage, Passage] | None:
    """The activation module whose output times ``part`` is the down projection's input."""
    post = down.reads.value
    if part.numel() != post.numel():
        return None
    for passage in trial.recording.passages[: down.reads.order]:
        through = trial.recording.through(passage.module)
        if through is None or passage is not through[1] or passage.module in trial.linears:
            continue
        if passage.value.numel() != post.numel():
            continue
        difference = passage.value.reshape(post.shape) * part.reshape(post.shape) - post
        if difference.abs().max() <= 1e-5 * post.abs().max():
            return through
    return None


def _halves(value: Tensor) -> list[Tensor]:
    half = value.shape[-1] // 2
    return [value[..., :half], value[..., half:], value[..., ::2], value[..., 1::2]]


def _through(trial: Trial, linear: Linear, out: Passage) -> tuple[str, ...]:
    """The modules between a linear layer's output and the branch's output."""
    current, steps = linear.writes, []
    while not _same_values(current.value, out.value):
        following = None
        for passage in trial.recording.passages[current.order + 1 :]:
            if passage.side == "input" and _same_values(passage.value, current.value):
                through = trial.recording.through(passage.module)
                if through and not _same_values(through[1].value, current.value):
                    following = through[1]
        if following is None or following.order > out.order:
            raise ProofError(f"what stands between {linear.module} and the residual stream is not known")
        steps.append(following.module)
        current = following
    return tuple(steps)


def _matrix(role: str, linear: Linear) -> Matrix:
    return Matrix(role, linear.module, linear.weight, linear.transposed)


def _same_values(first: Tensor, second: Tensor) -> bool:
    return first.numel() == second.numel() and torch.equal(first.reshape(-1), second.reshape(-1))
