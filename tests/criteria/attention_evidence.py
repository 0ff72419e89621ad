"""Evidence of attention criteria: from a real model's pass, or from given patterns."""

from __future__ import annotations

import torch

from outlierscope.corpus.batch import TEXT_CLASSES, Batch
from outlierscope.criteria.criterion import Corpus, NotApplied
from outlierscope.model.anatomy import Anatomy, AttentionPlace, LayerAnatomy, StackAnatomy
from outlierscope.model.attention.observer import AttentionObserver
from outlierscope.scanning.evidence import ScanEvidence
from outlierscope.stats.measurements import Measurements
from tests.stats.attention_streams import observation


def model_batch(rows, stack, special, delimiters):
    """One batch of equally long rows of token ids; classes by the sets of ids given."""
    token_ids = torch.tensor(rows)
    classes = torch.full(token_ids.shape, TEXT_CLASSES.index("other"), dtype=torch.uint8)
    classes[torch.isin(token_ids, torch.tensor(sorted(delimiters)))] = TEXT_CLASSES.index("strong_delimiter")
    classes[torch.isin(token_ids, torch.tensor(sorted(special)))] = TEXT_CLASSES.index("special")
    classes[:, 0] = TEXT_CLASSES.index("initial")
    return Batch(
        number=0,
        stack=stack,
        inputs={"input_ids": token_ids},
        token_ids=token_ids,
        real=torch.ones_like(token_ids, dtype=torch.bool),
        classes=classes,
        class_names=TEXT_CLASSES,
        sequence_ids=torch.arange(len(rows)),
        documents=["test"] * len(rows),
    )


def evidence_of(anatomy, criteria, observations, lengths, decode=None):
    """What the criteria would see after these observations of patterns."""
    measurements = Measurements()
    for criterion in criteria:
        for requirement in criterion.requires():
            for site in anatomy.sites(*requirement.sites):
                measurements.add(site, requirement.make())
    for seen in observations:
        for stat in measurements.at(seen.site):
            stat.update(seen)
    corpus = Corpus(sum(lengths), len(lengths), max(lengths), sum(lengths), len(lengths), TEXT_CLASSES)
    return ScanEvidence(anatomy, corpus, [], measurements, decode=decode)


def evidence_of_model(model, anatomy, criteria, batch, decode=None):
    """The same for one pass of a model."""
    seen = []
    with AttentionObserver(model, anatomy, seen.append) as observer, torch.inference_mode():
        observer.begin(batch)
        model(**batch.inputs)
    lengths = [batch.real.shape[1]] * len(batch.real)
    return evidence_of(anatomy, criteria, seen, lengths, decode)


def evidence_of_patterns(criteria, sequences, **options):
    """The same for given sequences (``tests.stats.attention_streams``) of one layer of four heads."""
    place = AttentionPlace("layers.0.attention", "registry", 4, 2, 3, sequences[0].causal)
    layer = LayerAnatomy(0, "layers.0", "pre-norm", attention=place)
    anatomy = Anatomy({"decoder": StackAnatomy("decoder", 12, [layer])}, proved=True)
    observations = [observation([sequence], **options) for sequence in sequences]
    lengths = [len(sequence.token_ids) for sequence in sequences]
    return evidence_of(anatomy, criteria, observations, lengths, decode=lambda token: f"token{token}")


def findings(criterion, evidence):
    """The rows, and the reasons why the criterion was not applied."""
    found = list(criterion.findings(evidence))
    rows = [row for row in found if not isinstance(row, NotApplied)]
    return rows, [row.reason for row in found if isinstance(row, NotApplied)]
