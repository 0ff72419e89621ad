"""Self-check: with and without taps, a model must compute the same."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.errors import ProofError
from outlierscope.model.attention.implementation import eager_attention
from outlierscope.model.sites import PATTERNS
from outlierscope.scanning.forward import TappedModel

if TYPE_CHECKING:
    from outlierscope.corpus.batch import Batch
    from outlierscope.model.observed import ObservedModel
    from outlierscope.stats.measurements import Measurements

TOLERANCE = 2e-6
"""Largest difference, relative to the largest output, that float32 kernels of the same kind may show."""

HALF_PRECISION_STEPS = 4
"""The same for half precision, in steps of its rounding."""

CHECKED_TOKENS = 16


def check_taps(observed: ObservedModel, measurements: Measurements, batch: Batch) -> dict[str, float]:
    """Run a few tokens with and without taps and compare what the model returns, like with like.

    The fast route is compared with the model as it came, the exact one with the model's own eager attention.

    Returns:
        The largest difference of the fast and of the exact route, relative to the largest output.

    Raises:
        ProofError: when a route changes the output.
    """
    # Text can be cut; a picture is shown whole, and so is a recording.
    small = shorten(batch, CHECKED_TOKENS) if "input_ids" in batch.inputs else batch.take(slice(0, 1))
    half = observed.dtype in (torch.float16, torch.bfloat16)
    tolerance = HALF_PRECISION_STEPS * torch.finfo(observed.dtype).eps if half else TOLERANCE
    differences: dict[str, float] = {}
    attention_is_observed = any(site.name in PATTERNS for site, _ in measurements)
    for route, dear in (("fast", False), *([("exact", True)] if attention_is_observed else [])):
        with eager_attention(observed.module, observed.anatomy) if dear else nullcontext():
            plain = _output(observed, small)
        captured: list[torch.Tensor] = []
        hook = observed.runner(batch.stack).register_forward_hook(
            lambda _module, _inputs, output, captured=captured: captured.append(_first(output))
        )
        try:
            with TappedModel(observed, measurements.sites()) as tapped:
                tapped.observe(replace(small, dear=dear), measurements)
        finally:
            hook.remove()
        differences[route] = relative_difference(captured[0], plain)
        if differences[route] > tolerance:
            raise ProofError(
                f"observing changes what {observed.name} computes (the {route} route by {differences[route]:.1e} "
                "of its largest output); please report this model"
            )
    return differences


def relative_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference of two tensors over the largest finite magnitude of the second.

    NaN equals NaN and an infinity its like; beside anything else they make the difference infinite.

    >>> nan, infinity = float("nan"), float("inf")
    >>> relative_difference(torch.tensor([nan, infinity, 3.0]), torch.tensor([nan, infinity, 4.0]))
    0.25
    >>> relative_difference(torch.tensor([nan, 4.0]), torch.tensor([1.0, 4.0]))
    inf
    """
    if first.shape != second.shape:
        return float("inf")
    first, second = first.float(), second.float()
    same = (first == second) | (first.isnan() & second.isnan())
    if bool(same.all()):
        return 0.0
    scale = float(second[second.isfinite()].abs().max()) if bool(second.isfinite().any()) else 0.0
    difference = (
        (first - second).abs().masked_fill(same, 0.0).nan_to_num(nan=float("inf"), posinf=float("inf"))
    )
    return float(difference.max()) / max(scale, 1e-30)


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
        further=tuple(shorten(view, tokens) for view in batch.further),
    )


def _output(observed: ObservedModel, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return _first(observed.runner(batch.stack)(**observed.placed(batch.inputs)))


def _first(output: Any) -> torch.Tensor:
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output
