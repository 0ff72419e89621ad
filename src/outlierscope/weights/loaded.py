"""Weights of a loaded model: every matrix and norm that its anatomy names, summarised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from outlierscope.model.workers import side_by_side
from outlierscope.weights.summary import MatrixSummary, WeightPlace, summarize_matrix, summarize_norm

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.model.observed import ObservedModel


def summarize_weights(observed: ObservedModel, kept_sigma: float = 0.0) -> list[MatrixSummary]:
    """Summaries of all weight matrices and norms of all blocks, then of the final norm (layer ``None``).

    Roles come from the anatomy, so from data flow and not from names. A fused matrix (``qkv``, ``gate_up``)
    is one matrix here: how its rows are laid out differs between models and cannot be told from its shape,
    and the ratio of a column needs no layout. A parameter that several blocks share is summarised once, for
    the first of them. Names are full names in the user's model. Matrices stored as integers (packed by a
    quantizer) are left out and listed in ``observed.notes["weights_packed"]``.

    Args:
        observed: the model.
        kept_sigma: as for ``MatrixScan.summary``.
    """
    parameters = dict(observed.module.named_parameters(remove_duplicate=False))
    seen: set[int] = set()
    jobs: list[_Job] = []
    for stack in observed.anatomy.stacks.values():
        places = [(layer.index, matrix) for layer in stack.layers for matrix in layer.matrices]
        for index, matrix in [*places, *((None, matrix) for matrix in stack.matrices)]:
            parameter = parameters[matrix.parameter].detach()
            if id(parameters[matrix.parameter]) in seen:
                continue
            seen.add(id(parameters[matrix.parameter]))
            name = observed.prefix + matrix.parameter
            if not parameter.is_floating_point():
                observed.notes.setdefault("weights_packed", []).append(name)
                continue
            place = WeightPlace(stack.name, index, matrix.role, observed.prefix + matrix.module, name)
            if parameter.ndim == 3:  # [experts, out, in]: the experts of a mixture in one parameter
                jobs += [
                    _Job(weight, replace(place, expert=expert), matrix.transposed)
                    for expert, weight in enumerate(parameter)
                ]
            else:
                jobs.append(_Job(parameter, place, matrix.transposed))
    return list(side_by_side(lambda job: _summarize(job, kept_sigma), jobs))


@dataclass(frozen=True)
class _Job:
    """One matrix or norm to summarise."""

    weight: Tensor
    place: WeightPlace
    transposed: bool


def _summarize(job: _Job, kept_sigma: float) -> MatrixSummary:
    if job.place.role == "norm":
        return summarize_norm(job.weight, job.place)
    return summarize_matrix(job.weight, job.place, kept_sigma, transposed=job.transposed)
