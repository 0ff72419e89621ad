"""Self-check: with and without taps, a model must compute the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.errors import ProofError
from outlierscope.scanning.forward import TappedModel

if TYPE_CHECKING:
    from outlierscope.corpus.batch import Batch
    from outlierscope.model.observed import ObservedModel
    from outlierscope.stats.measurements import Measurements

TOLERANCE = 2e-6
"""Largest difference, relative to the largest output, that float32 kernels of the same kind may show."""

EXACT_TOLERANCE = 1e-4
"""The same for eager attention against SDPA, which sum in another order through all layers."""

CHECKED_TOKENS = 16


def check_taps(observed: ObservedModel, measurements: Measurements, batch: Batch) -> dict[str, float]:
    """Run a few tokens with and without taps and compare what the model returns.

    Returns:
        The largest difference of the fast and of the exact route, relative to the largest output.

    Raises:
        ProofError: when a route changes the output.
    """
    # Text can be cut; a picture is shown whole.
    small = shorten(batch, CHECKED_TOKENS if "input_ids" in batch.inputs else batch.real.shape[1])
    plain = _output(observed, small)
    scale = max(float(plain.float().abs().max()), 1e-30)
    single = observed.dtype == torch.float32
    differences: dict[str, float] = {}
    for route, dear, tolerance in (("fast", False, TOLERANCE), ("exact", True, EXACT_TOLERANCE)):
        captured: list[torch.Tensor] = []
        hook = observed.module.register_forward_hook(
            lambda _module, _inputs, output, captured=captured: captured.append(_first(output))
        )
        try:
            with TappedModel(observed, measurements) as tapped:
                tapped.observe(replace(small, dear=dear))
        finally:
            hook.remove()
        difference = float((captured[0].float() - plain.float()).abs().nan_to_num().max()) / scale
        differences[route] = difference
        # Half-precision kernels round differently by design; there the check can only catch gross errors.
        if difference > (tolerance if single else 0.1):
            raise ProofError(
                f"observing changes what {observed.name} computes (the {route} route by {difference:.1e} of its "
                "largest output); please report this model"
            )
    return differences


def shorten(batch: Batch, tokens: int) -> Batch:
    """The first sequence of a text batch, cut to a few real tokens."""
    rows = batch.rows(0)
    rows = slice(rows.start, min(rows.stop, rows.start + tokens))
    length = batch.real.shape[1]

    def cut(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[1] == length:
            return value[:1, rows]
        return value[:1] if isinstance(value, torch.Tensor) else value

    return replace(
        batch,
        inputs={key: cut(value) for key, value in batch.inputs.items()},
        token_ids=batch.token_ids[:1, rows],
        real=batch.real[:1, rows],
        classes=batch.classes[:1, rows],
        sequence_ids=batch.sequence_ids[:1],
        documents=batch.documents[:1],
    )


def _output(observed: ObservedModel, batch: Batch) -> torch.Tensor:
    inputs = {
        key: value.to(observed.device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.inputs.items()
    }
    with torch.inference_mode():
        return _first(observed.module(**inputs))


def _first(output: Any) -> torch.Tensor:
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output
