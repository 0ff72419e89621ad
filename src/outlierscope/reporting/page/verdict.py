"""Verdict: what the page says first, each statement with a way to its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlierscope.reporting.curves import model_figures
from outlierscope.reporting.wording import number
from outlierscope.scanning.findings import table_rows
from outlierscope.stats.events import Events
from outlierscope.stats.rules import Massive

if TYPE_CHECKING:
    from outlierscope.reporting.summary import Summary
    from outlierscope.scanning.scan import Scan


@dataclass(frozen=True)
class BaseRate:
    """A published or own figure beside which this model's is read.

    Attributes:
        figure: what it is.
        here: this model's.
        usual: what others have.
        source: where that is from.
    """

    figure: str
    here: str
    usual: str
    source: str


def massive_judged(scan: Scan) -> bool:
    """Whether the rule ``massive`` was asked for, had its statistics and had enough data everywhere."""
    evidence = scan.evidence
    return (
        "activation" in scan.manifest["settings"]["only"]
        and all(row["what"] != "massive" for row in scan.manifest["not_observed"])
        and any(
            isinstance(stat, Events) and isinstance(stat.rule, Massive)
            for site in evidence.anatomy.sites("resid_post")
            for stat in evidence.measurements.at(evidence.anatomy.canonical(site))
        )
    )


def headline(scan: Scan, summary: Summary) -> tuple[str, str]:
    """The first word, by the rule of docs/rules.md, and its kind: ``fine``, ``at-risk``, ``fails`` or ``unknown``."""
    words = {line.word for line in summary.formats}
    massive = any(line.rule == "massive" for line in summary.outliers)
    if "fails" in words:
        return "Will break in some number format", "fails"
    if "at risk" in words:
        return "At risk in some number format", "at-risk"
    if not words or "unknown" in words:
        return "Not judged as a whole", "unknown"
    if massive:
        return "Fine in every number format, with massive activations", "fine"
    if not massive_judged(scan):
        return "Fine in every number format, massive activations not judged", "fine"
    return "Healthy", "fine"


def misleading(scan: Scan, summary: Summary) -> list[tuple[str, str]]:
    """What looks worse or better than it is: pairs of a heading and a sentence."""
    words = {line.name: line.word for line in summary.formats}
    int8 = words.get("int8 per tensor")
    massive = [row for row in table_rows(scan.findings) if row["criterion"] == "massive"]
    told = []
    if massive and int8 == "fine":
        # Formats of the stream itself, which int8 linear layers do not round.
        others = {
            name: {"fails": "fails", "at risk": "is at risk"}.get(words[name], "is not judged")
            for name in ("float16", "bfloat16")
            if name in words and words[name] != "fine"
        }
        peak = max(massive, key=lambda row: abs(row["value"]))
        told.append(
            (
                "Looks alarming, isn't" if not others else "Harmless for int8 only",
                f"The residual stream reaches {number(peak['value'])} (layer {peak['layer']}, dim "
                f"{peak['dim']}); what int8 linear layers read is predicted fine"
                f"{''.join(f', {name} {word}' for name, word in others.items())}.",
            )
        )
    usual = [line for line in summary.heads if "usual for" in line and "not usual" not in line]
    if usual:
        told.append(
            (
                "Looks alarming, isn't",
                "Many heads give their attention to one token (attention sinks). That is usual for "
                "such a model; keep that token "
                "in calibration data and in serving.",
            )
        )
    if not massive and massive_judged(scan) and int8 in ("at risk", "fails"):
        told.append(
            (
                "Looks harmless, isn't",
                "No value of the residual stream is massive, and yet int8 per tensor "
                f"{'fails' if int8 == 'fails' else 'is at risk'}: a few large values "
                "set the range that all others of a linear input must share.",
            )
        )
    return told


def base_rates(scan: Scan, summary: Summary) -> list[BaseRate]:
    """This model's figures beside published ones and beside those of our own scans."""
    rates = []
    for row in model_figures(scan):
        if row["site"] == "mlp_out" and row["mean_kurtosis"] is not None:
            rates.append(
                BaseRate(
                    f"kurtosis of mlp_out ({row['stack']}), mean over layers",
                    number(row["mean_kurtosis"]),
                    "BERT-base: 3,076 as usually trained, 80 with clipped softmax, 201 with gated attention",
                    "Bondarenko et al. 2023, table of means",
                )
            )
        if row["site"] == "resid_post" and row["max_inf_norm"] is not None:
            rates.append(
                BaseRate(
                    f"inf norm of resid_post ({row['stack']}), largest over layers",
                    number(row["max_inf_norm"]),
                    "LLaMA-2-7B: about 2,622 against a median of 0.2; Gemma 3 270M: about 103,800 against a median of 121",
                    "Sun et al. 2024, table 1; own scan",
                )
            )
    rates.extend(
        BaseRate(
            f"sink rate of the first token ({stack['stack']})",
            f"{100 * stack['first_token_sink_rate']:.1f} %",
            "LLaMA-style decoders: 18.18 % at 60 M parameters, 45.11 % at 1 B",
            "Gu et al. 2024",
        )
        for stack in summary.attention
        if (stack["stack"], stack["site"]) == ("decoder", "pattern")
        and stack["first_token_sink_rate"] is not None
    )
    return rates
