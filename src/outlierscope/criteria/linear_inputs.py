"""What quantizing each linear input is predicted to cost, by scheme, from the statistics of a scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from outlierscope.criteria.noise import (
    FP8_E4M3,
    INT8_LEVELS,
    Magnitudes,
    decibel,
    float_noise,
    per_channel_noise,
    per_token_noise,
    uniform_noise,
)
from outlierscope.model.sites import LINEAR_INPUTS

if TYPE_CHECKING:
    from outlierscope.criteria.criterion import Evidence
    from outlierscope.model.sites import Site

Scheme = Literal["int8_per_tensor", "int8_per_token", "int8_per_channel", "fp8_e4m3"]

ORDINARY_SHARE = 0.999
"""Magnitudes up to this quantile count as the ordinary signal.

The few values that set the range of an input also carry much of its energy; measured against all of it, the
noise in everything else would look small.
"""


@dataclass(frozen=True)
class LinearInput:
    """One linear input under one scheme.

    Attributes:
        site: the input.
        scheme: number format and granularity.
        absmax: largest magnitude seen; the range of a static per-tensor scale.
        step: distance of neighbouring numbers at the top of the range, for schemes with one range; else
        ``None``. signal: mean square of all values.
        ordinary: mean square of the values up to the quantile ``ORDINARY_SHARE``, over all values.
        noise: predicted mean squared error.
    """

    site: Site
    scheme: Scheme
    absmax: float
    step: float | None
    signal: float
    ordinary: float
    noise: float

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio in dB, over all values."""
        return decibel(self.signal, self.noise)

    @property
    def damage(self) -> float:
        """Predicted noise over the energy of the ordinary values: the figure by which inputs are ranked.

        Relative noise at the input of a linear layer is about the relative noise of its output, and so of
        what the branch adds to the residual stream. Terms for weights and for the branch's share of the
        stream were tried and did not rank better on MiniLM nor on Gemma 3 270M.
        """
        return self.noise / self.ordinary if self.ordinary > 0 else 0.0


def predict_input(evidence: Evidence, site: Site, scheme: Scheme) -> LinearInput | None:
    """The prediction for one input; ``None`` without ``histogram``, ``moments`` or ``token_absmax`` there."""
    histogram = evidence.stat(site, "histogram")
    moments = evidence.stat(site, "moments")
    tokens = evidence.stat(site, "token_absmax")
    if histogram is None or moments is None or tokens is None:
        return None
    magnitudes = Magnitudes.of(histogram.counts, histogram.edges())
    if not magnitudes.elements or not int(moments.count):
        return None
    absmax = float(moments.absmax().max())
    step: float | None = None
    if scheme == "int8_per_tensor":
        step = absmax / INT8_LEVELS
        noise = uniform_noise(magnitudes, step)
    elif scheme == "int8_per_token":
        noise = per_token_noise(magnitudes, Magnitudes.of(tokens.counts, tokens.edges()))
    elif scheme == "int8_per_channel":
        noise = per_channel_noise(moments.absmax(), moments.rms() ** 2)
    else:
        # One scale for the tensor, so that its largest magnitude falls on the largest number of the format.
        noise = float_noise(magnitudes, FP8_E4M3, scale=absmax / FP8_E4M3.largest) if absmax else 0.0
    signal = magnitudes.mean_square()
    ordinary = magnitudes.up_to(ORDINARY_SHARE)
    return LinearInput(
        site=site,
        scheme=scheme,
        absmax=absmax,
        step=step,
        signal=signal,
        # Where nearly all values are 0 (sparse activations), the few others are the signal.
        ordinary=ordinary.mean_square() * ordinary.elements / magnitudes.elements or signal,
        noise=noise,
    )


def rank_inputs(evidence: Evidence, scheme: Scheme) -> list[LinearInput]:
    """All linear inputs that were measured, most damage first."""
    found = [predict_input(evidence, site, scheme) for site in evidence.anatomy.sites(*LINEAR_INPUTS)]
    return sorted((item for item in found if item is not None), key=lambda item: (-item.damage, item.site))
