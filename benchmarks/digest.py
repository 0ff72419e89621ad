"""What digests and statistics of site tensors cost, per site and batch.

    python benchmarks/digest.py [--runs 30] [--threads 2] [--cpu]

Prints, for several shapes, the milliseconds of the digest alone, then of each statistic's update with the
digest at hand. Medians and minima over runs, after a few batches, so that records are seldom beaten (the
steady state of a long scan). ``--cpu`` measures, with one thread, its own time rather than that of the
clock: it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.corpus.batch import TEXT_CLASSES, Batch
from outlierscope.model.sites import Site
from outlierscope.stats.events import Events
from outlierscope.stats.exceedances import Exceedances
from outlierscope.stats.extreme_dims import ExtremeDims
from outlierscope.stats.extremes import Extremes
from outlierscope.stats.flags import Flags
from outlierscope.stats.histogram import LogHistogram, TokenAbsmax
from outlierscope.stats.magnitudes import TopMagnitudes
from outlierscope.stats.moments import Moments
from outlierscope.stats.observation import Observation
from outlierscope.stats.rules import Massive, SixSigma, Systematic
from outlierscope.stats.sequences import SequenceSummaries

if TYPE_CHECKING:
    from collections.abc import Callable

    from outlierscope.stats.stat import Stat

SHAPES = ((8, 512, 768), (4, 512, 384), (4, 1024, 768), (8, 512, 3072))


def synthetic(shape: tuple[int, int, int], number: int) -> tuple[torch.Tensor, Batch]:
    """A tensor like a residual stream, with a few outlier dims at some tokens; and its batch."""
    sequences, length, dims = shape
    generator = torch.Generator().manual_seed(number)
    tensor = torch.randn(shape, generator=generator) * torch.rand(dims, generator=generator).mul(
        1.2
    ).exp().div(2)
    token_ids = torch.randint(5, 30000, (sequences, length), generator=generator)
    chance = torch.rand(sequences, length, generator=generator)
    classes = torch.where(chance < 0.12, 2, torch.where(chance < 0.4, 3, 4)).to(torch.uint8)
    classes[:, 0], classes[:, -1] = 0, 1
    token_ids[classes == 2] = 7
    tensor[:, 0, 5] += 60.0
    tensor[..., 9][classes == 2] -= 50.0
    tensor[:, 0, 11 % dims] += 3000.0 if number % 2 else 0.0
    batch = Batch(
        number=number,
        stack="encoder",
        inputs={},
        token_ids=token_ids,
        real=torch.ones(sequences, length, dtype=torch.bool),
        classes=classes,
        class_names=TEXT_CLASSES,
        sequence_ids=torch.arange(number * sequences, (number + 1) * sequences),
        documents=[""] * sequences,
    )
    return tensor, batch


def statistics_of_a_scan() -> list[Stat[Any]]:
    """Every statistic of site tensors; the last ones are only computed on sampled batches."""
    return [
        Moments(),
        Extremes(),
        TokenAbsmax(),
        SequenceSummaries(),
        Events(SixSigma()),
        ExtremeDims(),
        Events(Systematic()),
        Exceedances(),
        Events(Massive()),
        LogHistogram(),
        TopMagnitudes(),
        Flags(SixSigma()),
    ]


def measure(shape: tuple[int, int, int], runs: int, clock: Callable[[], float]) -> None:
    """Print one table."""
    site = Site("encoder", 0, "resid_post")
    batches = [synthetic(shape, number) for number in range(6)]
    stats = statistics_of_a_scan()
    times: dict[str, list[float]] = {}

    def timed(name: str, action: Callable[..., Any], *arguments: Any) -> None:
        begin = clock()
        action(*arguments)
        times.setdefault(name, []).append(1e3 * (clock() - begin))

    for run in range(-len(batches), runs):
        tensor, batch = batches[run % len(batches)]
        if run >= 0:  # the numbers grow, so that nothing is beaten twice by the same sequence
            batch.sequence_ids = batch.sequence_ids + len(batches) * shape[0]
        seen = Observation(site, tensor, batch)
        with torch.inference_mode():
            if run == 0:
                times.clear()
            timed("digest", getattr, seen, "digest")
            for stat in stats:
                timed(stat.name, stat.update, seen)
    print(f"\n{list(shape)}: milliseconds, median (minimum)")
    for name, values in times.items():
        print(f"  {name:32} {statistics.median(values):8.3f} ({min(values):.3f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.cpu else options.threads)
    for shape in SHAPES:
        measure(shape, options.runs, time.thread_time if options.cpu else time.perf_counter)
