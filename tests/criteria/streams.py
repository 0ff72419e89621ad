"""Evidence built from given tensors, without a model."""

from __future__ import annotations

import torch

from outlierscope.corpus.batch import TEXT_CLASSES, Batch
from outlierscope.criteria.criterion import Corpus, NotApplied
from outlierscope.model.anatomy import Anatomy, AttentionPlace, LayerAnatomy, Matrix, StackAnatomy, Tap
from outlierscope.model.sites import STACK_SITES, Site
from outlierscope.scanning.evidence import ScanEvidence
from outlierscope.stats.measurements import Measurements
from outlierscope.stats.observation import Observation

READER = {"attn_in": "q", "z": "o", "mlp_in": "up", "mlp_post": "down"}


def make_batch(token_ids, classes=None, real=None, number=0, first_sequence=0, dear=True):
    """A batch of given token ids [B, T]; all tokens real and of class ``other`` unless said."""
    sequences, length = token_ids.shape
    return Batch(
        number=number,
        stack="decoder",
        inputs={},
        token_ids=token_ids,
        real=torch.ones(sequences, length, dtype=torch.bool) if real is None else real,
        classes=torch.full((sequences, length), 4, dtype=torch.uint8) if classes is None else classes,
        class_names=TEXT_CLASSES,
        sequence_ids=torch.arange(first_sequence, first_sequence + sequences),
        documents=["test"] * sequences,
        dear=dear,
    )


def make_anatomy(sites, head_dim=4, heads=2):
    """An anatomy that observes exactly these sites of the stack ``decoder``."""
    count = 1 + max((site.layer for site in sites if site.layer is not None), default=-1)
    layers = [
        LayerAnatomy(
            index,
            f"layers.{index}",
            "pre-norm",
            taps={
                site.name: Tap(f"layers.{index}.{site.name}", "output")
                for site in sites
                if site.layer == index
            },
            attention=AttentionPlace(f"layers.{index}.attention", "registry", heads, heads, head_dim, True),
            matrices=[
                Matrix(role, f"layers.{index}.{role}_proj", f"layers.{index}.{role}_proj.weight")
                for role in READER.values()
            ],
        )
        for index in range(count)
    ]
    taps = {site.name: Tap(site.name, "output") for site in sites if site.name in STACK_SITES}
    return Anatomy({"decoder": StackAnatomy("decoder", 8, layers, taps)}, proved=True)


def evidence_of(criteria, batches, tensors, head_dim=4, heads=2):
    """Evidence of a stream.

    Args:
        criteria: whose requirements are measured.
        batches: list of batches.
        tensors: site -> list of [B, T, d], one per batch.
    """
    anatomy = make_anatomy(list(tensors), head_dim, heads)
    measurements = Measurements()
    for criterion in criteria:
        for requirement in criterion.requires():
            for site in anatomy.sites(*requirement.sites):
                measurements.add(site, requirement.make())
    for site in tensors:
        from outlierscope.stats.moments import Moments

        measurements.add(site, Moments())
    for index, batch in enumerate(batches):
        scratch = {}
        for site, values in tensors.items():
            observation = Observation(site, values[index], batch, scratch)
            measurements.take(site, observation, dear=batch.dear)
    dear = [batch for batch in batches if batch.dear]
    corpus = Corpus(
        tokens=sum(batch.tokens for batch in batches),
        sequences=sum(len(batch.sequence_ids) for batch in batches),
        longest=max(int(batch.real.sum(1).max()) for batch in batches),
        sampled_tokens=sum(batch.tokens for batch in dear),
        sampled_sequences=sum(len(batch.sequence_ids) for batch in dear),
        class_names=TEXT_CLASSES,
    )
    return ScanEvidence(anatomy, corpus, [], measurements, decode=lambda token: f"<{token}>")


def split(results):
    """Findings and refusals apart."""
    findings = [item for item in results if not isinstance(item, NotApplied)]
    return findings, [item for item in results if isinstance(item, NotApplied)]


def at(layer, name):
    """A site of the stack ``decoder``."""
    return Site("decoder", layer, name)
