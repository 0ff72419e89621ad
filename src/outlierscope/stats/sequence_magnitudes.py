"""SequenceMagnitudes: exact figures of abs(x) over one sequence's tensor; dear, so computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 32768
"""One bin for each pattern of the upper 16 bits of a float32 without its sign (which are a bfloat16)."""


@dataclass(frozen=True)
class SequenceMagnitudes:
    """Figures of abs(x) over all values of one sequence.

    Attributes:
        counts: [BINS] int64 histogram (see ``magnitude_bins``).
        median: exact; the mean of the middle two of an even number.
        quantile_9999: exact; the ceil(.9999 n)-th smallest.
    """

    counts: Tensor
    median: float
    quantile_9999: float

    @classmethod
    def of(cls, values: Tensor) -> SequenceMagnitudes:
        """Of float32 ``values`` (at least one, finite) on any device.

        >>> SequenceMagnitudes.of(torch.tensor([4.0, -1.0, 3.0, 2.0])).median
        2.5

        One counting pass finds the bins in which the wanted ranks lie; only these are sorted. A sort of
        everything, or ``torch.median``, costs many times as much.
        """
        bins = magnitude_bins(values).flatten()
        counts = torch.bincount(bins, minlength=BINS)
        cumulative = counts.cumsum(0)
        n = bins.numel()
        ranks = torch.tensor([(n + 1) // 2, n // 2 + 1, -(-9999 * n // 10000)], device=bins.device)
        places = torch.searchsorted(cumulative, ranks)
        within = (ranks - (cumulative[places] - counts[places])).tolist()  # from 1
        ordered = {
            place: values.flatten()[bins == place].abs().sort().values
            for place in dict.fromkeys(places.tolist())
        }
        lower, upper, quantile = (
            float(ordered[place][rank - 1]) for place, rank in zip(places.tolist(), within, strict=True)
        )
        return cls(counts.cpu(), (lower + upper) / 2, quantile)


def magnitude_bins(values: Tensor) -> Tensor:
    """Bin of abs(value) for each float32 value: the upper 16 bits without the sign; int32, same shape.

    >>> magnitude_bins(torch.tensor([0.0, 1.0, -1.0])).tolist()
    [0, 16256, 16256]
    """
    return (values.view(torch.int32) >> 16).bitwise_and_(0x7FFF)
