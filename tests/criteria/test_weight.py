"""Weight criteria: planted outliers, direct computation on real models, and too little data."""

from __future__ import annotations

import statistics
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from outlierscope.criteria.criterion import Corpus, NotApplied
from outlierscope.criteria.norm_weight import NormWeight, norm_in_block
from outlierscope.criteria.super_weight import SuperWeightCandidate
from outlierscope.criteria.weight import WeightColumn, WeightRow
from outlierscope.model.anatomy import Anatomy, AttentionPlace, LayerAnatomy, StackAnatomy
from outlierscope.weights.checkpoint import open_checkpoint
from outlierscope.weights.summary import WeightPlace, summarize_matrix, summarize_norm
from tests.model.tiny import edit_weights, save, tiny_llama

CORPUS = Corpus(1000, 10, 100, 1000, 10, ("initial", "other"))


class Given:
    """Evidence with given weights and statistics."""

    def __init__(self, weights=(), stats=None, anatomy=None):
        self.weights = list(weights)
        self.stats = stats or {}
        self.anatomy = anatomy or Anatomy({}, None)
        self.corpus = CORPUS

    def stat(self, site, name):
        return self.stats.get((str(site), name))

    def module(self, site):
        return f"module of {site}"

    def token_text(self, token_id):
        return f"token {token_id}"


def read_weights(folder):
    return [summary for _, summary in open_checkpoint(folder).summaries(0.0)]


def judged(criterion, evidence):
    results = list(criterion.findings(evidence))
    found = [item for item in results if not isinstance(item, NotApplied)]
    return found, [item for item in results if isinstance(item, NotApplied)]


def norms(layers, planted=(), dims=64, name="model.layers.{}.input_layernorm", end="weight"):
    """Gammas of ``layers`` norms, with 5.0 at dim 7 of the planted ones."""
    for layer in range(layers):
        values = 1 + 0.1 * torch.randn(dims, generator=torch.Generator().manual_seed(layer))
        values[7] = 5.0 if layer in planted else 1.0
        module = name.format(layer)
        yield summarize_norm(values, WeightPlace("decoder", layer, "norm", module, f"{module}.{end}"))


def test_norm_weight_needs_more_than_three_layers():
    found, _ = judged(NormWeight(), Given(norms(6, planted=(0, 2, 5))))
    assert [finding for finding in found if finding.dim == 7] == []
    found, refused = judged(NormWeight(), Given(norms(6, planted=(0, 2, 3, 5))))
    (row,) = found
    assert refused == []
    assert (row.dim, row.count, row.value, row.threshold) == (7, 4, 5.0, 3.0)
    assert row.extra["layers"] == [0, 2, 3, 5]
    assert row.extra["values"] == [5.0] * 4
    assert row.extra["norm"] == "input_layernorm gamma"
    assert row.parameter == f"model.layers.{row.layer}.input_layernorm.weight"
    assert row.score == max(row.extra["scores"])
    values = next(
        item for index, item in enumerate(norms(6, (0, 2, 3, 5))) if index == row.layer
    ).values.tolist()
    assert row.score == pytest.approx(abs(5.0 - statistics.mean(values)) / statistics.stdev(values))


def test_norm_weight_counts_each_norm_apart():
    first, second = norms(4, planted=(0, 1)), norms(4, planted=(2, 3), name="model.layers.{}.post_norm")
    assert judged(NormWeight(), Given([*first, *second]))[0] == []
    gamma, beta = norms(4, planted=(0, 1)), norms(4, planted=(2, 3), end="bias")
    assert judged(NormWeight(), Given([*gamma, *beta]))[0] == []


def test_norm_weight_thresholds_are_options():
    evidence = Given(norms(6, planted=(0, 2)))
    assert [row.dim for row in judged(NormWeight(layers=1), evidence)[0]] == [7]
    assert judged(NormWeight(layers=1, sigma=20.0), evidence)[0] == []


def test_norm_weight_with_too_few_layers():
    found, refused = judged(NormWeight(), Given(norms(3, planted=(0, 1, 2))))
    assert found == []
    assert refused[0].reason == (
        "not enough data: 3 layers of decoder have norms of their own, the rule needs more than 3"
    )
    assert judged(NormWeight(), Given())[1][0].reason == "no norm of a block has weights"


def test_norm_weight_ignores_what_is_not_finite_or_constant():
    summaries = list(norms(4, planted=range(4)))
    for summary in summaries:
        summary.values[3] = float("nan")
        summary.values[4] = float("inf")
    assert [row.dim for row in judged(NormWeight(), Given(summaries))[0]] == [7]
    for summary in summaries:
        summary.values.fill_(1.0)
    assert judged(NormWeight(), Given(summaries))[0] == []


@pytest.mark.parametrize(
    ("module", "layer", "expected"),
    [
        ("model.layers.11.input_layernorm", 11, "input_layernorm gamma"),
        ("encoder.layer.1.attention.output.LayerNorm", 1, "attention.output.LayerNorm gamma"),
        ("encoder.block.0.layer.1.layer_norm", 0, "layer.1.layer_norm gamma"),
        ("h.0.ln_1", 0, "ln_1 gamma"),
        ("0.norm", 0, "norm gamma"),
    ],
)
def test_norm_in_block(module, layer, expected):
    place = WeightPlace("decoder", layer, "norm", module, f"{module}.weight")
    assert norm_in_block(summarize_norm(torch.ones(2), place)) == expected


def direct_columns(matrix, sigma):
    """The rule with Python's own statistics: {column: (r, std above the mean)}."""
    ratios = []
    for column in matrix.double().T:
        magnitudes = [abs(number) for number in column.tolist()]
        ratios.append(max(magnitudes) / statistics.fmean(magnitudes))
    mean, std = statistics.fmean(ratios), statistics.stdev(ratios)
    return {j: (r, (r - mean) / std) for j, r in enumerate(ratios) if r > mean + sigma * std}


def test_planted_column_and_row(tmp_path):
    folder = save(tiny_llama(), tmp_path)

    def plant(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"][5, 70] = -9.0

    edit_weights(folder, plant)
    weights = read_weights(folder)
    tensor = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    found, _ = judged(WeightColumn(), Given(weights))
    (row,) = found
    assert (row.parameter, row.module) == (
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.mlp.down_proj",
    )
    assert (row.stack, row.layer, row.site, row.dim, row.row, row.value) == (
        "decoder",
        1,
        "mlp_post",
        70,
        5,
        -9.0,
    )
    ((column, (ratio, score)),) = direct_columns(tensor, 6.0).items()
    assert (column, row.extra["ratio"], row.score) == (
        70,
        pytest.approx(ratio),
        pytest.approx(score, rel=1e-5),
    )
    assert row.extra["rank"] == 1
    assert row.extra["top"][0] == [70, row.extra["ratio"]]
    assert len(row.extra["top"]) == 5

    # 32 rows: none of them can be 6 std from their mean, so a lower threshold is needed to see the row.
    _, refused = judged(WeightRow(), Given(weights))
    assert refused[0].reason.startswith("not enough data: ")
    found, _ = judged(WeightRow(sigma=5.0), Given(weights))
    (row,) = [item for item in found if item.parameter == "model.layers.1.mlp.down_proj.weight"]
    assert (row.row, row.site, row.dim) == (5, "mlp_out", None)


@pytest.mark.parametrize("sigma", [6.0, 3.0])
def test_columns_of_a_real_model_against_direct_computation(minilm_folder, sigma):
    tensors = load_file(minilm_folder / "model.safetensors")
    evidence = Given(read_weights(minilm_folder))
    found, refused = judged(WeightColumn(sigma=sigma), evidence)
    assert refused == []
    by_parameter: dict[str, set[int]] = {}
    for row in found:
        by_parameter.setdefault(row.parameter, set()).add(row.dim)
        assert row.value == float(tensors[row.parameter][row.row, row.dim])
    for summary in evidence.weights:
        if summary.role != "norm":
            expected = direct_columns(tensors[summary.parameter], sigma)
            assert by_parameter.get(summary.parameter, set()) == set(expected), summary.parameter
    scores = [row.score for row in found]
    assert scores == sorted(scores, reverse=True)
    assert scores


def test_norms_of_a_real_model_against_direct_computation(minilm_folder):
    tensors = load_file(minilm_folder / "model.safetensors")
    expected = {}
    for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
        for end, kind in (("weight", "gamma"), ("bias", "beta")):
            counts = [0] * 384
            for layer in range(6):
                values = tensors[f"encoder.layer.{layer}.{norm}.{end}"].tolist()
                mean, std = statistics.fmean(values), statistics.stdev(values)
                counts = [count + (abs(v - mean) > 3 * std) for count, v in zip(counts, values, strict=True)]
            expected |= {(f"{norm} {kind}", dim): count for dim, count in enumerate(counts) if count > 3}
    found, _ = judged(NormWeight(), Given(read_weights(minilm_folder)))
    assert {(row.extra["norm"], row.dim): row.count for row in found} == expected
    assert expected


def test_columns_of_o_tell_their_head():
    torch.manual_seed(0)
    matrix = torch.randn(64, 64) * 0.1
    matrix[2, 35] = 8.0
    place = WeightPlace("decoder", 0, "o", "o_proj", "o_proj.weight")
    layer = LayerAnatomy(
        0, "layers.0", "pre-norm", attention=AttentionPlace("attn", "registry", 4, 4, 16, True)
    )
    anatomy = Anatomy({"decoder": StackAnatomy("decoder", 64, [layer])}, True)
    (row,), _ = judged(WeightColumn(), Given([summarize_matrix(matrix, place)], anatomy=anatomy))
    assert (row.dim, row.head, row.site) == (35, 2, "z")


def extremes(value, dim, position, classes=2, dims=10):
    """As the statistic of that name: one value at a dim and position, small ones elsewhere."""
    table = torch.full((classes, dims), 0.5)
    table[1, dim] = value
    positions = torch.zeros(classes, dims, dtype=torch.int64)
    positions[1, dim] = position
    zeros = torch.zeros(classes, dims, dtype=torch.int64)
    return SimpleNamespace(value=table, sequence=zeros, position=positions, token=zeros + 11)


def super_weight_evidence(read, written):
    layers = [LayerAnatomy(index, f"layers.{index}", "pre-norm") for index in range(2)]
    anatomy = Anatomy({"decoder": StackAnatomy("decoder", 10, layers)}, True)
    matrix = torch.full((10, 10), 0.01)
    matrix[4, 6] = 2.5
    place = WeightPlace("decoder", 1, "down", "layers.1.mlp.down_proj", "layers.1.mlp.down_proj.weight")
    stats = {
        ("decoder.0.mlp_post", "extremes"): extremes(60.0, 1, 0),
        ("decoder.0.mlp_out", "extremes"): extremes(49.0, 2, 0),
        ("decoder.1.mlp_post", "extremes"): read,
        ("decoder.1.mlp_out", "extremes"): written,
    }
    return Given([summarize_matrix(matrix, place)], stats, anatomy)


def test_super_weight_candidate():
    evidence = super_weight_evidence(extremes(-700.0, 6, 3), extremes(90.0, 4, 3))
    (row,), refused = judged(SuperWeightCandidate(), evidence)
    assert refused == []
    assert (row.layer, row.dim, row.row, row.value, row.score) == (1, 6, 4, -700.0, 90.0)
    assert row.parameter == "layers.1.mlp.down_proj.weight"
    assert row.module == "module of decoder.1.mlp_post"
    assert row.extra == {"output": 90.0, "same_token": True, "layout": "pre-norm", "weight": 2.5}
    assert (row.position, row.token_class, row.token) == (3, "other", "token 11")


def test_super_weight_candidate_needs_both_above_the_threshold():
    assert (
        judged(SuperWeightCandidate(), super_weight_evidence(extremes(700.0, 6, 3), extremes(50.0, 4, 3)))[0]
        == []
    )
    evidence = super_weight_evidence(extremes(60.0, 5, 3), extremes(51.0, 4, 2))
    (row,), _ = judged(SuperWeightCandidate(), evidence)
    assert row.extra["same_token"] is False
    assert "weight" not in row.extra
    assert judged(SuperWeightCandidate(magnitude=52.0), evidence)[0] == []


def test_super_weight_candidate_without_measurements():
    evidence = super_weight_evidence(None, None)
    evidence.stats.clear()
    _, refused = judged(SuperWeightCandidate(), evidence)
    assert refused[0].reason == "no layer had both mlp_post and mlp_out measured"


def test_no_matrices():
    for criterion in (WeightColumn(), WeightRow()):
        assert judged(criterion, Given(norms(4)))[1][0].reason == "no weight matrix was summarised"
        assert list(criterion.requires()) == []
