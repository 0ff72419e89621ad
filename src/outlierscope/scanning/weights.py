"""A scan of weights alone, straight from a checkpoint's files, without building the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from outlierscope.criteria.catalogue import choose_criteria
from outlierscope.criteria.criterion import Corpus
from outlierscope.criteria.weight import kept_sigma
from outlierscope.errors import UserError
from outlierscope.listener import silent
from outlierscope.model.anatomy import Anatomy
from outlierscope.scanning.evidence import ScanEvidence
from outlierscope.scanning.findings import to_table
from outlierscope.scanning.judging import describe_criteria, judge
from outlierscope.scanning.resume import Progress
from outlierscope.scanning.scan import Scan, check_folder, clear_folder
from outlierscope.scanning.settings import ScanSettings
from outlierscope.scanning.unobserved import beside_the_model
from outlierscope.stats.measurements import Measurements
from outlierscope.weights.checkpoint import open_checkpoint
from outlierscope.weights.summaries import WeightSummaries

if TYPE_CHECKING:
    from outlierscope.listener import Listener


def scan_weights(
    name: str | Path,
    settings: ScanSettings | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    listener: Listener = silent,
) -> Scan:
    """Find the weight outliers of a checkpoint, one tensor at a time.

    Args:
        name: hub id, folder, .safetensors file or .gguf file.
        settings: only ``thresholds`` matter here.
        out: folder of the scan; ``None`` keeps it in memory.
        overwrite: replace whatever scan ``out`` holds.
        revision: branch, tag or commit of a hub model.
        listener: told of the bytes read and to read, and how far a conversion has come.

    Raises:
        UserError: when there is no such checkpoint or it is broken.
    """
    settings = settings or ScanSettings(only=("weight",))
    if settings.only != ("weight",):
        raise UserError(f"a checkpoint's files show weights only, not {', '.join(settings.only)}")
    criteria = choose_criteria(settings.only, settings.thresholds)
    folder = Path(out) if out is not None else None
    if folder is not None:
        check_folder(folder, overwrite=overwrite)
    listener("reading the headers", 0, None)
    checkpoint = open_checkpoint(name, revision=revision, listener=listener)
    total, done = sum(part.bytes for part in checkpoint.parts.found), 0
    weights, nonfinite = WeightSummaries(), Counter[str]()
    for part, summary in checkpoint.summaries(kept_sigma(criteria)):
        weights.append(summary)
        if summary.nonfinite:
            nonfinite[summary.parameter] += summary.nonfinite
        done += part.bytes
        listener("reading the weights", done, total)
    listener("applying the criteria", 0, None)
    anatomy = Anatomy(
        stacks={}, proved=None, reason="weights alone were read: roles come from the tensors' names"
    )
    evidence = ScanEvidence(anatomy, Corpus(0, 0, 0, 0, 0, ()), weights, Measurements())
    findings, not_applied = judge(criteria, evidence)
    findings.reverse()  # taken from the end, so that each is let go as soon as it stands in the table
    table = to_table(findings.pop() for _ in range(len(findings)))
    manifest = {
        "model": checkpoint.describe(),
        "corpus": {"source": None},
        "settings": settings.describe(),
        "criteria": describe_criteria(criteria),
        "module_prefix": "",
        "anatomy": anatomy.describe(),
        "self_check": {},
        "read": vars(Progress()) | {"class_names": [], "tensors": len(weights)},
        "nonfinite": dict(nonfinite),
        "not_observed": [
            {"what": "activations and attention", "why": "only the weights were asked for"},
            *checkpoint.not_told(),
            *beside_the_model(checkpoint.source.origin),
            *({"what": item.criterion, "why": item.reason} for item in not_applied),
        ],
    }
    result = Scan(evidence=evidence, findings=table, manifest=manifest, examples={})
    if folder is not None:
        clear_folder(folder)
        result.save(folder, overwrite=True)
    return result
