"""The summary of a scan: what is said of it, in order, before anybody looks at tables.

Consequences come first, each with its cause, because people decide on the first lines: a residual stream that
reaches 100,000 looks alarming and is harmless for int8 linear layers, which never see it, and fatal in float16.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outlierscope.criteria.catalogue import choose_criteria
from outlierscope.criteria.formats import RangeCriterion, Verdict
from outlierscope.reporting.curves import head_rows, layer_rows, model_figures
from outlierscope.reporting.heads import attention_figures, attention_summaries, head_lines
from outlierscope.reporting.outliers import OutlierLine, figures, outlier_lines
from outlierscope.reporting.wording import counted, layers, number, position_of, quoted, share, some
from outlierscope.scanning.findings import table_rows
from outlierscope.scanning.settings import KINDS

if TYPE_CHECKING:
    from outlierscope.criteria.finding import Finding
    from outlierscope.scanning.scan import Scan

FORMAT_NAMES = {
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int8_per_tensor": "int8 per tensor",
    "int8_per_token": "int8 per token",
    "fp8_e4m3": "fp8 e4m3 (scaled)",
}
"""The formats that the summary speaks of; ``findings.parquet`` has all."""

MOST_UNOBSERVED = 4


@dataclass
class FormatLine:
    """A word on one number format.

    Attributes:
        name: the format.
        word: ``fails``, ``at risk``, ``fine`` or ``unknown``.
        cause: what the word rests on.
        brief: the same in a few words, for the verdict.
        modules: full names of the modules concerned, most severe first.
        figure: what the word rests on (see ``Verdict``); ``None`` when unknown.
        share: share of the predicted damage that the causes stand for.
        causes: the rows that are to blame, most severe first, in numbers and names.
    """

    name: str
    word: str
    cause: str
    brief: str = ""
    modules: list[str] = field(default_factory=list)
    figure: float | None = None
    share: float | None = None
    causes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Cause and modules in one line."""
        return (
            f"{self.cause}; keep in higher precision: {some(self.modules, 2)}" if self.modules else self.cause
        )


@dataclass
class Summary:
    """The parts of the summary, in the order in which they are shown.

    ``heads`` and ``read`` are sentences; ``attention`` and ``figures_read`` the figures that they rest on;
    ``tables`` holds figures without a threshold, for programs.
    """

    model: str
    description: str
    verdict: list[str]
    formats: list[FormatLine]
    outliers: list[OutlierLine]
    heads: list[str]
    attention: list[dict[str, Any]]
    read: list[str]
    figures_read: dict[str, Any]
    not_observed: list[str]
    files: list[str]
    next: list[str]
    tables: dict[str, list[dict[str, Any]]]


def summarize(scan: Scan) -> Summary:
    """Put a scan into words."""
    formats = _formats(scan)
    outliers = outlier_lines(table_rows(scan.findings))
    attention = attention_summaries(scan)
    model = scan.manifest["model"]
    stacks = scan.evidence.anatomy.stacks.values()
    shapes = [
        f"{stack.name}: {counted(len(stack.layers), 'layer')} of {stack.hidden_size} dims" for stack in stacks
    ]
    parts = [
        str(model["class"] or "weights without a config"),
        _parameters(model["parameters"]),
        _dtype(model),
        *_adapter(model),
        *shapes,
    ]
    return Summary(
        model=model["name"],
        description=", ".join(parts),
        verdict=_verdict(formats, outliers, scan),
        formats=formats,
        outliers=outliers,
        heads=head_lines(scan, attention),
        attention=attention_figures(attention),
        read=_read(scan),
        figures_read={
            name: scan.manifest["read"][name]
            for name in ("tokens", "sequences", "longest", "sampled_tokens", "sampled_sequences")
        },
        not_observed=_not_observed(scan),
        files=[f"{scan.folder}/report.html to look at, {scan.folder}/findings.parquet to work with"]
        if scan.folder
        else [],
        next=_next(scan),
        tables={"sites": model_figures(scan), "layers": layer_rows(scan), "heads": head_rows(scan)},
    )


def _dtype(model: dict[str, Any]) -> str:
    """The dtype that was scanned, and what it was dequantized from."""
    origin = model.get("origin", {})
    if "quantization" in origin:
        return f"{model['dtype']} dequantized from {origin['quantization']['quantization']}"
    if "gguf" not in origin:
        return str(model["dtype"])
    file = origin["gguf"]
    return f"{model['dtype']} {'dequantized ' if file['quantized'] else ''}from {file['quantization']}"


def _adapter(model: dict[str, Any]) -> list[str]:
    adapter = model.get("origin", {}).get("adapter")
    return [] if adapter is None else [f"{adapter['type']} adapter merged into {adapter['base']}"]


def _formats(scan: Scan) -> list[FormatLine]:
    settings = scan.manifest["settings"]
    if "format" not in settings["only"]:
        return []
    lines = []
    # Criteria of kind ``format`` can say a word besides their findings.
    formats: list[Any] = choose_criteria(("format",), settings["thresholds"])
    for criterion in (criterion for criterion in formats if criterion.name in FORMAT_NAMES):
        name = FORMAT_NAMES[criterion.name]
        verdict = criterion.verdict(scan.evidence)
        if not isinstance(verdict, Verdict):
            lines.append(FormatLine(name, "unknown", verdict.reason))
            continue
        modules = [module for row in verdict.causes for module in row.extra["modules"]]
        if isinstance(criterion, RangeCriterion):
            cause = _range_cause(scan, criterion, verdict)
        else:
            cause = _rounding_cause(scan, verdict)
        lines.append(
            FormatLine(
                name,
                verdict.word,
                cause,
                brief=_brief(scan, verdict),
                modules=list(dict.fromkeys(modules)),
                figure=verdict.figure,
                share=verdict.share,
                causes=[figures(vars(row)) for row in verdict.causes],
            )
        )
    return lines


def _brief(scan: Scan, verdict: Verdict) -> str:
    if not verdict.causes:
        return ""
    worst = max(verdict.causes, key=lambda cause: cause.score or 0.0)
    if verdict.share is None and worst.extra["nonfinite_tokens"]:
        return f"the model itself gives NaN or infinity at {_site(worst)}"
    if verdict.share is None:
        return f"{_site(worst)} reaches {number(worst.value)} at {_token(scan, worst)}"
    more = len(verdict.causes) - 1
    others = f" and {counted(more, 'more linear input')}" if more else ""
    return f"most of the noise comes from {_site(verdict.causes[0])}{others}"


def _range_cause(scan: Scan, criterion: RangeCriterion, verdict: Verdict) -> str:
    end = criterion.form.largest
    if not verdict.causes:
        return f"largest value {number(verdict.figure * end)} of {number(end)}"
    peak = max(verdict.causes, key=lambda cause: cause.score or 0.0)
    reached = layers(cause.layer for cause in verdict.causes if cause.layer is not None)
    nonfinite = int(peak.extra["nonfinite_tokens"])
    if nonfinite:
        return f"{counted(nonfinite, 'token')} not finite already at {_site(peak)}"
    return f"{_site(peak)} reaches {number(peak.value)} of {number(end)} (dim {peak.dim} at {_token(scan, peak)}), {reached}"


def _rounding_cause(scan: Scan, verdict: Verdict) -> str:
    if not verdict.causes:
        return f"predicted noise {share(verdict.figure)} of the signal per layer"
    worst = verdict.causes[0]
    text = (
        f"predicted noise {share(verdict.figure)} of the signal per layer, {share(verdict.share)} of it from "
        f"{counted(len(verdict.causes), 'linear input')}; worst {_site(worst)}"
    )
    if verdict.format != "int8_per_tensor":
        return text
    return f"{text}, whose range {_token(scan, worst)} sets with {number(worst.value)} (dim {worst.dim})"


def _parameters(count: int) -> str:
    return f"{count / 1e6:,.1f} M parameters" if count >= 1e5 else f"{count / 1e3:,.1f} K parameters"


def _verdict(formats: list[FormatLine], outliers: list[OutlierLine], scan: Scan) -> list[str]:
    """One or two sentences about consequences."""
    if not formats:
        found = counted(scan.findings.num_rows, "finding")
        return [
            f"{found}; number formats were not judged (--only {', '.join(scan.manifest['settings']['only'])})."
        ]
    by_word: dict[str, list[FormatLine]] = {}
    for line in formats:
        by_word.setdefault(line.word, []).append(line)
    sentences = []
    for word, says in (("fails", "will fail"), ("at risk", "is at risk")):
        if word in by_word:
            named = [f"{line.name} {says} ({line.brief})" for line in by_word[word]]
            sentences.append(f"Predicted: {', '.join(named)}.")
    fine = [line.name for line in by_word.get("fine", [])]
    if not sentences and fine:
        quiet = "and no rule found outliers that stand out" if not outliers else "though outliers are there"
        sentences.append(f"No number format is expected to fail (predicted), {quiet}.")
    elif fine:
        sentences.append(f"Expected to be fine: {', '.join(fine)}.")
    unknown = [line.name for line in by_word.get("unknown", [])]
    if unknown:
        sentences.append(f"Not judged: {', '.join(unknown)} ({by_word['unknown'][0].cause}).")
    return sentences


def _read(scan: Scan) -> list[str]:
    read, corpus, settings = (scan.manifest[key] for key in ("read", "corpus", "settings"))
    if not read["tokens"]:
        return [f"{counted(len(scan.evidence.weights), 'weight tensor')}, no text"]
    lines = [
        f"{counted(read['tokens'], 'token')} in {counted(read['sequences'], 'sequence')} of up to {read['longest']} "
        f"from {_source(corpus['source'])}"
    ]
    usual = scan.manifest["model"].get("origin", {}).get("sentence_transformers", {}).get("max_seq_length")
    if settings["length"] is None and read["longest"] == usual:
        lines.append("windows end where sentence-transformers cuts texts; --length for longer ones")
    sampled = share(read["sampled_tokens"] / read["tokens"])
    if read["sampled_tokens"] == read["tokens"]:
        lines.append("attention patterns, medians and histograms: of every token")
    else:
        lines.append(
            f"attention patterns, medians and histograms: of {sampled} of the tokens (--exact for all)"
        )
    for noun in ("picture", "recording"):
        if corpus.get(f"{noun}s_skipped"):
            skipped = counted(corpus[f"{noun}s_skipped"], noun)
            lines.append(f"{skipped} skipped: did not decode (listed in scan.json)")
    dropped = scan.manifest["nonfinite"]
    if dropped:
        lines.append(
            f"NaN or infinite values at {counted(len(dropped), 'site')}, left out of the rest: {some(dropped)}"
        )
    if read["halved"]:
        lines.append(f"{counted(len(read['halved']), 'batch', 'batches')} halved for lack of memory")
    if settings["layers"] is not None:
        lines.append(f"only {layers(settings['layers'])}")
    return lines


def _not_observed(scan: Scan) -> list[str]:
    rows = scan.manifest["not_observed"]
    lines = []
    for row in rows[:MOST_UNOBSERVED]:
        where = f" ({layers(row['layers'])})" if row.get("layers") else ""
        lines.append(f"{row['what']}{where}: {row['why']}")
    if len(rows) > MOST_UNOBSERVED:
        lines.append(f"and {len(rows) - MOST_UNOBSERVED} more, in scan.json")
    return lines


def _next(scan: Scan) -> list[str]:
    model = scan.manifest["model"]
    command = f"outlierscope scan {model['name']}"
    left_out = [kind for kind in KINDS if kind not in scan.manifest["settings"]["only"]]
    if left_out:
        if model["name"].endswith(".safetensors"):
            return [
                "outlierscope scan FOLDER    of the whole model, with its config.json: " + ", ".join(left_out)
            ]
        return [f"{command}    {', '.join(left_out)} as well"]
    data = "YOUR-FOLDER" if model["kind"] in ("image", "audio") else "YOUR-OWN.jsonl"
    if scan.manifest["read"]["sampled_tokens"] < scan.manifest["read"]["tokens"]:
        return [f"{command} --data {data} --exact    the same on your own data, nothing sampled"]
    return [f"{command} --data {data} --tokens 200000    more, and on your own data"]


def _source(source: dict[str, str | None]) -> str:
    return str(source.get("path") or source.get("title") or source.get("kind"))


def _site(finding: Finding) -> str:
    return f"{finding.site} of layer {finding.layer}" if finding.layer is not None else str(finding.site)


def _token(scan: Scan, finding: Finding) -> str:
    if finding.token_id is None:
        return position_of(finding.token_class) if finding.token_class else "a token"
    return quoted(finding.token or scan.evidence.token_text(finding.token_id), finding.token_id)
