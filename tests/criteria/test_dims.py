"""extreme_neuron, int8_feature, dim_to_head and summaries on planted values."""

from __future__ import annotations

import pytest
import torch

from outlierscope.criteria.extreme_neuron import ExtremeNeuron, neuron_shares
from outlierscope.criteria.heads import dim_to_head
from outlierscope.criteria.int8_feature import Int8Feature
from outlierscope.criteria.summaries import model_summary, root_mean_square_kurtosis, site_summary
from outlierscope.stats.sequences import SequenceSummaries

from .streams import at, evidence_of, make_batch, split

BATCH = make_batch(torch.arange(100).reshape(2, 50) % 7)


def noise(layer, dims=8):
    generator = torch.Generator().manual_seed(layer)
    return torch.randn(2, 50, dims, generator=generator).clamp(-3, 3)


def test_dim_to_head_of_the_source():
    assert dim_to_head(180, 64) == 2
    assert dim_to_head(720, 64) == 11
    with pytest.raises(ValueError, match="no head holds dim -1 with heads of 64 dims"):
        dim_to_head(-1, 64)


def test_extreme_neuron_share_over_all_layers_without_the_embedding():
    layers = [noise(0), noise(1)]
    layers[0][:, :, 5] = 9.0  # always the largest
    layers[1][0, :30, 5] = 9.0  # 30 of 100 token vectors at least
    criterion = ExtremeNeuron()
    tensors = {
        at(0, "resid_post"): [layers[0]],
        at(1, "resid_post"): [layers[1]],
        at(None, "embed"): [-layers[0]],
    }
    evidence = evidence_of([criterion], [BATCH], tensors)
    (finding,), refused = split(criterion.findings(evidence))
    assert not refused
    direct = [float((layer.argmax(-1) == 5).double().mean()) for layer in layers]
    assert finding.score == pytest.approx(sum(direct) / 2)
    assert finding.extra["share_by_layer"] == pytest.approx({"0": direct[0], "1": direct[1]})
    assert (finding.dim, finding.layer, finding.extra["end"]) == (5, 0, "argmax")
    assert finding.count == round(200 * finding.score)
    assert finding.value == 9.0
    assert finding.extra["head_of_same_index"] == 1
    least = min(neuron_shares(evidence, "decoder"), key=lambda neuron: neuron.share)
    assert 0 < least.share < 0.5


def test_extreme_neuron_needs_tokens():
    criterion = ExtremeNeuron()
    batch = make_batch(torch.zeros(1, 50, dtype=torch.int64))
    evidence = evidence_of([criterion], [batch], {at(0, "resid_post"): [noise(0)[:1]]})
    _, (refused,) = split(criterion.findings(evidence))
    assert refused.reason == "not enough data: 50 tokens, 100 needed"


def test_int8_feature_wants_layers_and_positions():
    tensors = {at(layer, name): [noise(layer)] for layer in range(8) for name in ("attn_in", "mlp_in", "z")}
    for layer in (2, 5):
        tensors[at(layer, "attn_in")][0][:, :, 1] = -7.0  # 2 of 8 layers, 200 of 1600 positions: 12.5 %
    tensors[at(3, "attn_in")][0][:, :, 2] = 8.0  # 1 of 8 layers
    for layer in range(8):
        tensors[at(layer, "mlp_in")][0][0, 0, 3] = 9.0  # all layers, 8 of 1600 positions
        tensors[at(layer, "z")][0][0, :6, 6] = 6.0  # all layers, 6 of 100 positions each, exactly 6.0
    criterion = Int8Feature()
    evidence = evidence_of([criterion], [BATCH], tensors)
    findings, refused = split(criterion.findings(evidence))
    assert not refused
    assert [(row.dim, row.site, row.head) for row in findings] == [(1, "attn_in", None), (6, "z", 1)]
    first, second = findings
    assert first.score == pytest.approx(200 / 1600)
    assert first.extra["layers"] == [2, 5]
    assert first.extra["layer_share"] == 0.25
    assert first.extra["share_by_site"] == {"2.attn_in": 1.0, "5.attn_in": 1.0}
    assert first.module == "layers.2.q_proj"
    assert first.value == -7.0
    assert second.score == pytest.approx(0.06)
    assert second.count == 48


def test_int8_feature_needs_layers():
    criterion = Int8Feature()
    evidence = evidence_of([criterion], [BATCH], {at(layer, "attn_in"): [noise(layer)] for layer in range(4)})
    findings, (refused,) = split(criterion.findings(evidence))
    assert findings == []
    assert refused.reason == "not enough data: 4 layers in decoder, 5 needed"


def test_summaries_are_those_of_the_source():
    layers = [noise(0), noise(1) * torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 50])]

    class Wanted:
        def requires(self):
            from outlierscope.criteria.criterion import Requirement

            return (Requirement(("mlp_out",), SequenceSummaries),)

    tensors = {at(index, "mlp_out"): [layer] for index, layer in enumerate(layers)}
    evidence = evidence_of([Wanted()], [BATCH], tensors)
    summary = model_summary(evidence, "decoder", "mlp_out")
    flat = [layer.double().flatten(1) for layer in layers]
    norms = [float(x.abs().amax(1).mean()) for x in flat]
    kurtoses = [float((((x - x.mean(1, keepdim=True)) ** 4).mean(1) / x.std(1) ** 4).mean()) for x in flat]
    assert summary.max_inf_norm == pytest.approx(max(norms))
    assert summary.mean_kurtosis == pytest.approx(sum(kurtoses) / 2)
    root_mean_square = layers[1].double().flatten(0, 1).square().mean(0).sqrt()
    assert summary.layers[1].channel_kurtosis == pytest.approx(root_mean_square_kurtosis(root_mean_square))
    assert summary.layers[1].channel_kurtosis > 7
    assert site_summary(evidence, at(0, "resid_post")) is None
    assert model_summary(evidence, "decoder", "resid_post") is None
