"""Number formats: which of them a model's activations fit, predicted from the statistics of a scan.

Always predicted, never measured: the words rest on the rules in docs/rules.md, section "Number formats".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from outlierscope.criteria.criterion import NotApplied, Requirement
from outlierscope.criteria.format_rows import input_rows, range_rows
from outlierscope.criteria.linear_inputs import rank_inputs
from outlierscope.criteria.noise import BFLOAT16, FLOAT16, FP8_E4M3, FP8_E5M2
from outlierscope.model.sites import LINEAR_INPUTS
from outlierscope.stats.extremes import Extremes
from outlierscope.stats.histogram import LogHistogram, TokenAbsmax
from outlierscope.stats.moments import Moments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Finding, Kind
    from outlierscope.criteria.linear_inputs import LinearInput, Scheme
    from outlierscope.criteria.noise import FloatFormat
    from outlierscope.model.sites import Site

Word = Literal["fails", "at risk", "fine"]

RANGE_SITES = (
    "embed",
    "attn_in",
    "z",
    "attn_out",
    "resid_mid",
    "cross_z",
    "cross_out",
    "resid_cross",
    "mixer_out",
    "mlp_in",
    "mlp_post",
    "mlp_out",
    "side_out",
    "side_out_2",
    "side_out_3",
    "resid_post",
    "final_norm",
)
"""Sites that a cast of the whole model puts into the format."""


@dataclass(frozen=True)
class Verdict:
    """A word on one number format.

    Attributes:
        format: name of the format, which is also that of its criterion.
        word: ``fails``, ``at risk`` or ``fine``.
        figure: what the word rests on: for ranges the largest magnitude over the format's end, for rounding
        the predicted damage of all linear inputs of a layer together, averaged over the layers.
        causes: rows of findings, most severe first; empty when the word is ``fine``.
        share: share of the predicted damage that the causes stand for; ``None`` for ranges.
        predicted: always true here.
    """

    format: str
    word: Word
    figure: float
    causes: tuple[Finding, ...]
    share: float | None = None
    predicted: bool = True


@dataclass(frozen=True)
class RangeCriterion:
    """Whether a format's largest number is enough for every observed tensor of the model.

    Row key: stack, layer, site. ``value`` is the largest magnitude with its sign, ``score`` its ratio to the
    format's largest number, ``threshold`` 1 / headroom. Fails above the largest number (or where values were
    not finite already), at risk within ``headroom`` of it: other texts reach further, and sums inside kernels
    are not seen.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind] = "format"
    source: ClassVar[str] = "largest finite number of the format; the words are ruled in docs/rules.md"
    form: ClassVar[FloatFormat]
    sites: ClassVar[tuple[str, ...]] = RANGE_SITES

    headroom: float = 4.0
    least_tokens: int = 256

    def requires(self) -> Iterable[Requirement]:
        """Ranges, and where their ends stand."""
        return (Requirement(self.sites, Moments), Requirement(self.sites, Extremes))

    def verdict(self, evidence: Evidence) -> Verdict | NotApplied:
        """The word with its causes."""
        rows, largest = range_rows(evidence, self.name, self.sites, self.form, self.headroom)
        if any((row.score or 0.0) > 1 for row in rows):
            return Verdict(self.name, "fails", largest, tuple(rows))
        if evidence.corpus.tokens < self.least_tokens:
            return _too_few(self.name, evidence.corpus.tokens, self.least_tokens)
        if not _all_measured(evidence, self.sites):
            return NotApplied(self.name, "only a part of the model was observed (--sites, --layers)")
        if largest < 0:
            return NotApplied(self.name, f"none of its sites was observed ({', '.join(self.sites)})")
        return Verdict(self.name, "at risk" if rows else "fine", largest, tuple(rows))

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """The causes of a verdict other than ``fine``."""
        verdict = self.verdict(evidence)
        return [verdict] if isinstance(verdict, NotApplied) else verdict.causes


class Float16(RangeCriterion):
    """float16 ends at 65,504.

    A norm that squares in float16 overflows from 256 on (``extra["square_overflows_float16"]``); most norms
    compute in float32, so that is a note and not part of the word.
    """

    name: ClassVar[str] = "float16"
    form: ClassVar[FloatFormat] = FLOAT16


class Bfloat16(RangeCriterion):
    """bfloat16 ends at 3.4e38, as float32 does."""

    name: ClassVar[str] = "bfloat16"
    form: ClassVar[FloatFormat] = BFLOAT16


@dataclass(frozen=True)
class RoundingCriterion:
    """Whether quantizing the inputs of all linear layers leaves enough of their signal.

    The damage of an input is the predicted noise over the energy of its ordinary values
    (``LinearInput.damage``). Fails when the damage per layer (inputs of one layer added, averaged over the
    layers) reaches ``fails`` or that of one input ``input_fails``; at risk likewise.

    Row key: stack, layer, site. Rows are the inputs that make up ``explained`` of the damage, most first, as
    the list of modules to leave out; none when the word is fine. ``value`` and the token are those that set
    the range, ``score`` is the damage, ``threshold`` what one input may have.
    """

    name: ClassVar[Scheme]
    kind: ClassVar[Kind] = "format"
    source: ClassVar[str] = "uniform rounding noise D^2 / 12; the words are ruled in docs/rules.md"

    fails: float = 0.05
    at_risk: float = 0.01
    input_fails: float = 0.5
    input_at_risk: float = 0.1
    explained: float = 0.8
    least_tokens: int = 256

    def requires(self) -> Iterable[Requirement]:
        """Histograms and ranges of the linear inputs."""
        makes = (Moments, Extremes, TokenAbsmax, LogHistogram)
        return tuple(Requirement(LINEAR_INPUTS, make) for make in makes)

    def word(self, ranking: list[LinearInput]) -> Word:
        """The word for a ranking of all linear inputs."""
        figure, worst = damage_per_layer(ranking), ranking[0].damage if ranking else 0.0
        if figure >= self.fails or worst >= self.input_fails:
            return "fails"
        return "at risk" if figure >= self.at_risk or worst >= self.input_at_risk else "fine"

    def verdict(self, evidence: Evidence) -> Verdict | NotApplied:
        """The word with its causes."""
        if evidence.corpus.sampled_tokens < self.least_tokens:
            return _too_few(self.name, evidence.corpus.sampled_tokens, self.least_tokens)
        if not _all_measured(evidence, LINEAR_INPUTS):
            return NotApplied(self.name, "only a part of the model was observed (--sites, --layers)")
        if any(_not_finite(evidence, site) for site in evidence.anatomy.sites(*LINEAR_INPUTS)):
            return NotApplied(self.name, "the model itself gives values that are not finite")
        ranking = rank_inputs(evidence, self.name)
        if not ranking:
            return NotApplied(self.name, "no input of a linear layer was observed")
        word = self.word(ranking)
        unseen = _unseen_inputs(evidence)
        if word == "fine" and unseen:
            # The other words hold for what was seen; this one speaks of all inputs.
            return NotApplied(self.name, f"what was observed is fine, but {unseen}")
        if word == "fine":
            return Verdict(self.name, word, damage_per_layer(ranking), (), 0.0)
        total = sum(item.damage for item in ranking)
        causes: list[LinearInput] = []
        for item in ranking:
            if sum(cause.damage for cause in causes) >= self.explained * total:
                break
            causes.append(item)
        rule = {
            name: getattr(self, name)
            for name in ("fails", "at_risk", "input_fails", "input_at_risk", "explained")
        }
        rows = input_rows(evidence, causes, word, total, rule, self.input_at_risk)
        share = sum(cause.damage for cause in causes) / total
        return Verdict(self.name, word, damage_per_layer(ranking), tuple(rows), share)

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """The causes of a verdict other than ``fine``."""
        verdict = self.verdict(evidence)
        return [verdict] if isinstance(verdict, NotApplied) else verdict.causes


class Int8PerTensor(RoundingCriterion):
    """int8 with one static, symmetric range per tensor: D = 2 absmax / 254."""

    name: ClassVar[Scheme] = "int8_per_tensor"


class Int8PerToken(RoundingCriterion):
    """int8 with a dynamic, symmetric range per token."""

    name: ClassVar[Scheme] = "int8_per_token"


class Int8PerChannel(RoundingCriterion):
    """int8 with a static, symmetric range per dim of the input."""

    name: ClassVar[Scheme] = "int8_per_channel"


class Fp8E4m3(RoundingCriterion):
    """fp8 e4m3 with one scale per tensor that puts the largest magnitude at 448."""

    name: ClassVar[Scheme] = "fp8_e4m3"


class Fp8E4m3Unscaled(RangeCriterion):
    """fp8 e4m3 without a scale: a plain cast of the linear inputs ends at 448.

    Some kernels clip there, others give NaN.
    """

    name: ClassVar[str] = "fp8_e4m3_unscaled"
    form: ClassVar[FloatFormat] = FP8_E4M3
    sites: ClassVar[tuple[str, ...]] = LINEAR_INPUTS


class Fp8E5m2Unscaled(RangeCriterion):
    """fp8 e5m2 without a scale: a plain cast of the linear inputs ends at 57,344."""

    name: ClassVar[str] = "fp8_e5m2_unscaled"
    form: ClassVar[FloatFormat] = FP8_E5M2
    sites: ClassVar[tuple[str, ...]] = LINEAR_INPUTS


FORMATS: tuple[type[RangeCriterion] | type[RoundingCriterion], ...] = (
    Float16,
    Bfloat16,
    Int8PerTensor,
    Int8PerToken,
    Int8PerChannel,
    Fp8E4m3,
    Fp8E4m3Unscaled,
    Fp8E5m2Unscaled,
)


def format_verdicts(
    evidence: Evidence, criteria: Iterable[RangeCriterion | RoundingCriterion] | None = None
) -> list[Verdict | NotApplied]:
    """A word on every format; thresholds are those of the given criteria, else the defaults."""
    chosen = [make() for make in FORMATS] if criteria is None else list(criteria)
    return [criterion.verdict(evidence) for criterion in chosen]


def damage_per_layer(ranking: list[LinearInput]) -> float:
    """Damage of all inputs of a layer together, averaged over the layers."""
    layers = {(item.site.stack, item.site.layer) for item in ranking}
    return sum(item.damage for item in ranking) / max(len(layers), 1)


def _all_measured(evidence: Evidence, names: tuple[str, ...]) -> bool:
    return all(evidence.stat(site, "moments") is not None for site in evidence.anatomy.sites(*names))


def _unseen_inputs(evidence: Evidence) -> str:
    """Which inputs of linear layers the anatomy has no place for, and why; empty when it has all."""
    for site, why in evidence.anatomy.missing.items():
        if site.name in LINEAR_INPUTS:
            return f"{site.name} of layer {site.layer} is not ({why})"
    mixers = evidence.anatomy.sites("mixer_out")
    return f"what the mixer of layer {mixers[0].layer} reads inside is not" if mixers else ""


def _not_finite(evidence: Evidence, site: Site) -> bool:
    moments = evidence.stat(site, "moments")
    return moments is not None and bool(moments.nonfinite)


def _too_few(name: str, tokens: int, least: int) -> NotApplied:
    return NotApplied(name, f"not enough data: {tokens} tokens, {least} needed")
