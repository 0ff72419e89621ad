"""Weights of a loaded model: every matrix and norm that its anatomy names, summarised."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from outlierscope.stats.weights import MatrixSummary, WeightPlace, summarize_matrix, summarize_norm

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.model.observed import ObservedModel


def summarize_weights(observed: ObservedModel) -> list[MatrixSummary]:
    """Summaries of all weight matrices and norms of all blocks, then of the final norm (layer ``None``).

    Roles come from the anatomy, so from data flow and not from names. A fused matrix (``qkv``, ``gate_up``)
    is one matrix here: how its rows are laid out differs between models and cannot be told from its shape,
    and the ratio of a column needs no layout. A parameter that several blocks share is summarised once, for
    the first of them. Names are full names in the user's model. Matrices stored as integers (packed by a
    quantizer) are left out and listed in ``observed.notes["weights_packed"]``.
    """
    parameters = dict(observed.module.named_parameters(remove_duplicate=False))
    seen: set[int] = set()
    summaries: list[MatrixSummary] = []
    for stack in observed.anatomy.stacks.values():
        places = [(layer.index, matrix) for layer in stack.layers for matrix in layer.matrices]
        for index, matrix in [*places, *((None, matrix) for matrix in stack.matrices)]:
            parameter = parameters[matrix.parameter]
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = observed.prefix + matrix.parameter
            if not parameter.is_floating_point():
                observed.notes.setdefault("weights_packed", []).append(name)
                continue
            place = WeightPlace(stack.name, index, matrix.role, observed.prefix + matrix.module, name)
            summaries += _summarize(parameter, place, transposed=matrix.transposed)
    return summaries


def _summarize(parameter: Tensor, place: WeightPlace, *, transposed: bool) -> list[MatrixSummary]:
    if place.role == "norm":
        return [summarize_norm(parameter, place)]
    if parameter.ndim == 3:  # [experts, out, in]: the experts of a mixture in one parameter
        return [
            summarize_matrix(weight, replace(place, expert=expert), transposed=transposed)
            for expert, weight in enumerate(parameter)
        ]
    return [summarize_matrix(parameter, place, transposed=transposed)]
