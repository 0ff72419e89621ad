"""Scan: the result, in memory or in its folder."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlierscope.criteria.catalogue import choose_criteria
from outlierscope.criteria.criterion import Corpus
from outlierscope.errors import UserError
from outlierscope.model.sites import Site
from outlierscope.scanning.evidence import ScanEvidence
from outlierscope.scanning.findings import read_findings, to_parquet
from outlierscope.scanning.plan import plan
from outlierscope.scanning.restore import restore_anatomy, restore_settings
from outlierscope.scanning.resume import FOLDER, discard_progress, is_of_progress
from outlierscope.scanning.store import (
    checksum,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)
from outlierscope.stats.measurements import Measurements
from outlierscope.weights.summaries import WeightSummaries

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


FORMAT = 1
"""Version of the layout of a scan folder."""

MANIFEST, FINDINGS, REPORT = "scan.json", "findings.parquet", "report.html"
STATS, WEIGHTS, EXAMPLES = (
    "stats-00000.safetensors",
    "stats-weights.safetensors",
    "examples-00000.safetensors",
)


class Scan:
    """What one scan found, with the statistics that it was judged by.

    Attributes:
        evidence: statistics, weights, anatomy and corpus facts.
        findings: one row per finding, a ``pyarrow.Table`` (``.to_pandas()``, ``.to_pylist()``).
        manifest: what ``scan.json`` holds.
        examples: example sequences, by tensor name.
        folder: where it was saved or opened, or ``None``.
    """

    def __init__(
        self,
        evidence: ScanEvidence,
        findings: pa.Table,
        manifest: dict[str, Any],
        examples: dict[str, Tensor],
        folder: Path | None = None,
    ) -> None:
        self.evidence = evidence
        self.findings = findings
        self.manifest = manifest
        self.examples = examples
        self.folder = folder

    def __repr__(self) -> str:
        tokens = self.manifest["read"]["tokens"]
        return f"<Scan of {self.manifest['model']['name']}: {self.findings.num_rows} findings in {tokens} tokens>"

    def stat(self, site: str, name: str, layer: int | None = None, stack: str | None = None) -> Any:
        """One statistic, such as ``scan.stat("resid_post", "moments", layer=3)``.

        Raises:
            KeyError: when it was not measured; the message says what was.
        """
        stacks = list(self.evidence.anatomy.stacks)
        place = Site(stack or stacks[0], layer, site)
        found = self.evidence.stat(place, name)
        if found is None:
            there = [
                stat.name for stat in self.evidence.measurements.at(self.evidence.anatomy.canonical(place))
            ]
            raise KeyError(f"no {name!r} at {place}; measured there: {', '.join(there) or 'nothing'}")
        return found

    def plot(self, name: str) -> Any:
        """A figure of the report, such as ``scan.plot("layers-decoder-resid_post")``, as a Plotly figure.

        Raises:
            KeyError: when this scan has no such figure; the message says which it has.
        """
        from outlierscope.reporting.page.notebook import plot_figure

        return plot_figure(self, name)

    def _repr_html_(self) -> str:
        from outlierscope.reporting.page.notebook import scan_card

        return scan_card(self)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML report, by default into the scan's folder.

        Raises:
            UserError: when there is no folder and no path.
        """
        if path is not None:
            self._write_page(Path(path))
            return Path(path)
        if self.folder is None:
            raise UserError("say where to write the report: scan.report('report.html')")
        self.manifest["files"][REPORT] = self._write_page(self.folder / REPORT)
        write_json(self.folder / MANIFEST, self.manifest)
        return self.folder / REPORT

    def _write_page(self, path: Path) -> str:
        # As ``plot`` does, this reaches up into a higher room: a scan offers its report as a method.
        from outlierscope.reporting.page.render import render_page

        return write_bytes(path, render_page(self).encode())

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the scan folder; ``scan.json`` comes last, so a folder with it is whole.

        Raises:
            UserError: when the folder holds another scan and ``overwrite`` is not given, or cannot be written.
        """
        folder = Path(folder)
        check_folder(folder, overwrite=overwrite)
        (folder / MANIFEST).unlink(missing_ok=True)
        clear_half_written(folder)
        tensors, described = WeightSummaries(self.evidence.weights).to_tensors()
        files = {
            STATS: write_tensors(folder / STATS, self.evidence.measurements.state()),
            WEIGHTS: write_tensors(folder / WEIGHTS, tensors, {"summaries": json.dumps(described)}),
            EXAMPLES: write_tensors(folder / EXAMPLES, self.examples),
            FINDINGS: write_bytes(folder / FINDINGS, to_parquet(self.findings)),
        }
        self.folder = folder
        self.manifest = {
            "format": FORMAT,
            "state": "complete",
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        } | self.manifest
        files[REPORT] = self._write_page(folder / REPORT)
        self.manifest["files"] = files
        write_json(folder / MANIFEST, self.manifest)
        return folder

    @classmethod
    def open(cls, folder: str | Path) -> Scan:
        """Read a scan folder.

        Raises:
            UserError: when it is no complete scan, or a file does not match its checksum.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            unfinished = (folder / FOLDER / "cursor.json").exists()
            hint = (
                "the scan in it is unfinished, go on with --resume" if unfinished else f"it has no {MANIFEST}"
            )
            raise UserError(f"{folder} is not a scan folder: {hint}")
        manifest = read_json(folder / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"{folder} was written by another version of outlierscope (format {manifest.get('format')})"
            )
        for name, expected in manifest["files"].items():
            if name != REPORT and (not (folder / name).exists() or checksum(folder / name) != expected):
                raise UserError(f"{folder / name} is missing or does not match its checksum; scan again")
        settings = restore_settings(manifest["settings"])
        anatomy = restore_anatomy(manifest["anatomy"])
        measurements = Measurements()
        keys, get = read_tensors(folder / STATS)
        if keys:
            measurements = plan(anatomy, choose_criteria(settings.only, settings.thresholds), settings)
            measurements.load_state(get, keys)
        read = manifest["read"]
        facts = Corpus(
            **{
                name: read[name]
                for name in ("tokens", "sequences", "longest", "sampled_tokens", "sampled_sequences")
            },
            class_names=tuple(read["class_names"]),
        )
        findings = read_findings((folder / FINDINGS).read_bytes())
        names, get_weight = read_tensors(folder / WEIGHTS)
        evidence = ScanEvidence(
            anatomy,
            facts,
            WeightSummaries.from_tensors(
                {name: get_weight(name) for name in names}, _weights_metadata(folder / WEIGHTS)
            ),
            measurements,
            module_prefix=manifest["module_prefix"],
            decode=_texts_of(findings).get,
        )
        examples, get_example = read_tensors(folder / EXAMPLES)
        return cls(
            evidence,
            findings,
            manifest,
            {name: get_example(name) for name in examples},
            folder,
        )


def check_folder(folder: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Check that a scan may be written to a folder; changes nothing, so it comes before any work.

    Raises:
        UserError: when it is a file, or holds another scan, finished or not, and nothing says what to do with it.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--out {folder}: {existing} is a file; name a folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"--out {folder}: {existing} cannot be written to; choose another folder")
    complete, unfinished = (folder / MANIFEST).exists(), (folder / FOLDER / "cursor.json").exists()
    foreign = (
        sorted(path.name for path in folder.iterdir() if not _is_of_a_scan(path)) if folder.exists() else []
    )
    if foreign and not (complete or unfinished):
        raise UserError(
            f"--out {folder}: it holds {foreign[0]}, which is of no scan; name a folder that is new or empty"
        )
    if resume or overwrite:
        return
    if complete:
        raise UserError(
            f"{folder} already holds a scan; choose another --out, or replace it with --overwrite"
        )
    if unfinished:
        raise UserError(
            f"{folder} holds an unfinished scan; go on with --resume, or start again with --overwrite"
        )


def clear_folder(folder: Path) -> None:
    """Remove an old scan, and nothing else, so that none of it is taken for a part of the new one."""
    if (folder / MANIFEST).exists():
        shutil.rmtree(folder / "parts", ignore_errors=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in (FINDINGS, REPORT, STATS, WEIGHTS, EXAMPLES):
        (folder / name).unlink(missing_ok=True)
    clear_half_written(folder)
    discard_progress(folder)


def clear_half_written(folder: Path) -> None:
    """Remove what a kill in the middle of a write left behind."""
    for path in folder.glob(".*"):
        if path.is_file() and _is_of_a_scan(path):
            path.unlink()


def _is_of_a_scan(path: Path) -> bool:
    """Whether a scan writes files of this name: its own, and those that a kill leaves half-written."""
    names = (MANIFEST, FINDINGS, REPORT, STATS, WEIGHTS, EXAMPLES)
    if path.is_dir():
        return path.name == FOLDER and all(is_of_progress(inside) for inside in path.iterdir())
    return path.name in names or any(path.name.startswith(f".{name}.") for name in names)


def _texts_of(findings: pa.Table) -> dict[int, str]:
    """Texts of the tokens that findings name: a scan folder holds no vocabulary."""
    ids, texts = findings.column("token_id").to_pylist(), findings.column("token").to_pylist()
    return {
        token_id: text
        for token_id, text in zip(ids, texts, strict=True)
        if token_id is not None and text is not None
    }


def _weights_metadata(path: Path) -> dict[str, list[Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata: dict[str, list[Any]] = json.loads(file.metadata()["summaries"])
    return metadata
