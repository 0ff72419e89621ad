"""The scan itself: every batch through the tapped model, then every criterion."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outlierscope.criteria.catalogue import choose_criteria
from outlierscope.criteria.criterion import Corpus as CorpusFacts
from outlierscope.criteria.weight import kept_sigma
from outlierscope.errors import UserError
from outlierscope.listener import silent
from outlierscope.scanning.context import add_contexts, add_places
from outlierscope.scanning.evidence import ScanEvidence
from outlierscope.scanning.examples import collect_examples
from outlierscope.scanning.feeding import corpus_for
from outlierscope.scanning.findings import to_table
from outlierscope.scanning.forward import TappedModel
from outlierscope.scanning.judging import describe_criteria, judge
from outlierscope.scanning.memory import check_activations
from outlierscope.scanning.plan import plan
from outlierscope.scanning.resume import Progress, discard_progress, load_progress, save_progress
from outlierscope.scanning.scan import Scan, check_folder, clear_folder
from outlierscope.scanning.selfcheck import check_taps
from outlierscope.scanning.settings import ScanSettings
from outlierscope.scanning.unobserved import not_observed
from outlierscope.version import versions
from outlierscope.weights.loaded import summarize_weights

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outlierscope.corpus.corpus import Corpus
    from outlierscope.criteria.criterion import Criterion
    from outlierscope.listener import Listener
    from outlierscope.model.anatomy import Anatomy
    from outlierscope.model.observed import ObservedModel
    from outlierscope.stats.measurements import Measurements
    from outlierscope.weights.summary import MatrixSummary

SECONDS_BETWEEN_SAVES = 30.0


@dataclass
class _Run:
    """One scan on its way; ``anatomy`` is that of the stacks that the corpus feeds."""

    observed: ObservedModel
    anatomy: Anatomy
    corpus: Corpus
    settings: ScanSettings
    criteria: list[Criterion]
    measurements: Measurements
    progress: Progress
    folder: Path | None
    identity: dict[str, Any]
    listener: Listener
    seconds_between_saves: float

    @property
    def expected_tokens(self) -> int:
        """How many tokens there will be, for the progress bar."""
        estimated = self.corpus.estimated_tokens
        return self.settings.tokens if estimated is None else min(self.settings.tokens, estimated)


def scan(
    model: ObservedModel,
    data: str | Path | Iterable[Any] | None = None,
    *,
    text: str | None = None,
    column: str | None = None,
    chat: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seconds_between_saves: float = SECONDS_BETWEEN_SAVES,
    listener: Listener = silent,
    settings: ScanSettings | None = None,
    **choices: Any,
) -> Scan:
    """Find the outliers of a model on a corpus.

    Args:
        model: what ``load`` or ``wrap`` returned.
        data: a file or folder, an iterable of texts or of lists of token ids; ``None`` for the embedded corpus.
        text: one given sequence instead of a corpus.
        column: column of a .jsonl or .parquet file that holds the text; two, with a comma, are read as pairs.
        chat: read conversations through the tokenizer's chat template.
        out: folder of the scan; ``None`` keeps it in memory until ``Scan.save``.
        resume: go on with an unfinished scan in ``out``.
        overwrite: replace whatever scan ``out`` holds.
        seconds_between_saves: how often the state is saved into ``out``.
        listener: called as the scan goes on.
        settings: all choices at once; or give them one by one:
        **choices: the fields of ``ScanSettings``, such as ``tokens=100_000``.

    Raises:
        UserError: for bad input or settings.
        ProofError: when observing would change what the model computes.
    """
    if settings is None:
        settings = ScanSettings(**choices)
    elif choices:
        raise TypeError("give either settings or single choices, not both")
    folder = Path(out) if out is not None else None
    if folder is None and resume:
        raise UserError("resume needs the folder of the unfinished scan (out)")
    criteria = choose_criteria(settings.only, settings.thresholds)
    if folder is not None:
        check_folder(folder, resume=resume, overwrite=overwrite)
    torch.manual_seed(settings.seed)
    listener("proving the anatomy", 0, None)
    corpus = corpus_for(model, settings, data, text=text, column=column, chat=chat)
    anatomy = model.anatomy.of_stacks([view.stack for view in next(corpus.batches()).views])
    measurements = plan(anatomy, criteria, settings)
    identity = {
        **{name.replace("_", " "): value for name, value in settings.describe().items()},
        "model": model.fingerprint(),
        "corpus": corpus.fingerprint(),
        "dtype": str(model.dtype),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    progress = Progress()
    if folder is not None and resume:
        progress = load_progress(folder, measurements, identity)
    run = _Run(
        model,
        anatomy,
        corpus,
        settings,
        criteria,
        measurements,
        progress,
        folder,
        identity,
        listener,
        seconds_between_saves,
    )
    with model.evaluating():
        return _conclude(run, _read(run, resume=resume))


def _read(run: _Run, *, resume: bool) -> dict[str, float]:
    """Every batch that is left, one after the other; the state is saved at both ends and every so often.

    Returns:
        What the self-check measured.
    """

    def save() -> None:
        if run.folder is not None:
            save_progress(run.folder, run.progress, run.measurements, run.identity)

    first = next(run.corpus.batches())
    check_activations(run.observed, first)
    checks = check_taps(run.observed, run.measurements, first)
    if run.folder is not None and not resume:
        clear_folder(run.folder)
        save()
    saved = time.monotonic()
    with TappedModel(run.observed, run.measurements.sites()) as tapped:
        for batch in run.corpus.batches(run.progress.batches, run.progress.cursor):
            start = time.monotonic()
            try:
                taken = tapped.observe(batch, run.measurements)
            except KeyboardInterrupt:
                # Nothing of this batch was committed: what is saved is the state after the one before.
                save()
                raise
            run.measurements = taken
            run.progress.count(batch)
            run.progress.unobserved |= {str(site): why for site, why in tapped.unobserved.items()}
            run.progress.seconds += time.monotonic() - start
            run.progress.halved += [number for number in tapped.halved if number not in run.progress.halved]
            run.listener("scan", run.progress.tokens, run.expected_tokens)
            if time.monotonic() - saved >= run.seconds_between_saves:
                save()
                saved = time.monotonic()
    save()
    return checks


def _conclude(run: _Run, checks: dict[str, float]) -> Scan:
    """Weights, criteria, contexts, examples; then the files, if there is a folder."""
    observed, progress = run.observed, run.progress
    run.listener("looking at the weights", 0, None)
    weights: list[MatrixSummary] = []
    if {"weight", "format"} & set(run.settings.only):
        weights = summarize_weights(observed, kept_sigma(run.criteria))
    facts = CorpusFacts(
        tokens=progress.tokens,
        sequences=progress.sequences,
        longest=progress.longest,
        sampled_tokens=progress.sampled_tokens,
        sampled_sequences=progress.sampled_sequences,
        class_names=run.corpus.class_names,
    )
    evidence = ScanEvidence(
        run.anatomy,
        facts,
        weights,
        run.measurements,
        module_prefix=observed.prefix,
        decode=run.corpus.token_text if run.settings.text else None,
    )
    run.listener("applying the criteria", 0, None)
    findings, not_applied = judge(run.criteria, evidence)
    add_places(findings, run.corpus)
    if run.settings.text:
        add_contexts(findings, run.corpus)
    manifest = {
        "model": observed.describe(),
        "corpus": _described(run.corpus, text=run.settings.text),
        "settings": run.settings.describe(),
        "criteria": describe_criteria(run.criteria),
        "module_prefix": observed.prefix,
        "anatomy": run.anatomy.describe(),
        "self_check": checks,
        "read": vars(progress) | {"class_names": list(run.corpus.class_names)},
        "nonfinite": _nonfinite(run.measurements),
        "not_observed": not_observed(observed, run.anatomy, run.settings, not_applied, progress.unobserved),
        "identity": run.identity,
    }
    examples = collect_examples(observed, run.corpus, findings, single=bool(progress.halved))
    result = Scan(evidence=evidence, findings=to_table(findings), manifest=manifest, examples=examples)
    if run.folder is not None:
        result.save(run.folder, overwrite=True)
        discard_progress(run.folder)
    return result


def _described(corpus: Corpus, *, text: bool) -> dict[str, Any]:
    """The corpus for ``scan.json``; special tokens are texts as well."""
    described = corpus.describe() | {"fingerprint": corpus.fingerprint()}
    return {key: value for key, value in described.items() if text or not key.startswith("special_tokens")}


def _nonfinite(measurements: Measurements) -> dict[str, int]:
    """Tokens dropped because a value was not finite, by site, where there were any."""
    counts = {str(site): int(stat.nonfinite) for site, stat in measurements if stat.name == "moments"}  # type: ignore[attr-defined]
    return {site: count for site, count in counts.items() if count}
