"""Figures without a threshold: the rows say what the statistics and the weights say, read directly."""

import json

import pytest
import torch

import outlierscope as osc
from outlierscope.reporting.curves import head_rows, layer_rows, model_figures, weight_rows
from outlierscope.scanning.weights import scan_weights

LAYERS, HEADS, KEY_VALUE_HEADS = 5, 8, 4
TEXTS = ["Once upon a time, there was a cat. " * 40, "The dog said: hello! " * 60]


@pytest.fixture(scope="module")
def model(shared_model):
    return osc.load(shared_model("stories260k"))


@pytest.fixture(scope="module")
def scan(model):
    return osc.scan(model, TEXTS * 4, tokens=1500, length=96, thresholds={"sink": {"epsilon": 0.35}})


@pytest.fixture(scope="module")
def weights_only(shared_model):
    return scan_weights(shared_model("stories260k"))


def test_layer_rows_are_the_statistics(scan):
    rows = layer_rows(scan)
    assert [(row["site"], row["layer"]) for row in rows] == [
        (site, layer) for site in ("resid_post", "mlp_out", "mlp_post") for layer in range(LAYERS)
    ]
    for row in rows:
        top = scan.stat(row["site"], "top_magnitudes", row["layer"])
        sequences = scan.stat(row["site"], "sequences", row["layer"])
        moments = scan.stat(row["site"], "moments", row["layer"])
        figures = ["top_1", "top_2", "top_3", "quantile_9999", "median", "mean"]
        assert [row[figure] for figure in figures] == top.mean.tolist()
        assert (row["inf_norm"], row["kurtosis"]) == (sequences.inf_norm_mean, sequences.kurtosis_mean)
        square = moments.m2 / moments.count + moments.mean**2  # [d] mean square of each dim
        expected = float((square**2).mean() / square.mean() ** 2)
        assert row["channel_kurtosis"] == pytest.approx(expected)
        assert row["sequences"] == scan.evidence.corpus.sequences
        assert row["sampled_sequences"] == scan.evidence.corpus.sampled_sequences


def test_curves_fall_as_they_must(scan):
    for row in layer_rows(scan):
        assert row["top_1"] >= row["top_2"] >= row["top_3"] > row["median"] > 0
        # Of 96 x 64 values the quantile is the very largest.
        assert row["top_1"] >= row["quantile_9999"] > row["median"]
        # Everything was sampled, so the largest magnitude is the same from both statistics.
        assert row["top_1"] == pytest.approx(row["inf_norm"])


def test_model_figures_condense_the_layers(scan):
    rows = {row["site"]: row for row in model_figures(scan)}
    for site in ("mlp_out", "resid_post", "attn_in", "z"):
        sequences = [scan.stat(site, "sequences", layer) for layer in range(LAYERS)]
        row = rows[site]
        assert (row["stack"], row["layers"]) == ("decoder", LAYERS)
        assert row["max_inf_norm"] == max(stat.inf_norm_mean for stat in sequences)
        assert row["mean_kurtosis"] == pytest.approx(sum(stat.kurtosis_mean for stat in sequences) / LAYERS)
    of_layers = [row["channel_kurtosis"] for row in layer_rows(scan) if row["site"] == "mlp_out"]
    assert rows["mlp_out"]["max_channel_kurtosis"] == max(of_layers)
    assert not {"q", "pattern", "resid_pre", "mlp_gate"} & rows.keys(), "only what the scan was asked for"


def test_head_rows_are_the_statistics(scan):
    rows = head_rows(scan)
    assert [(row["layer"], row["head"]) for row in rows] == [
        (layer, head) for layer in range(LAYERS) for head in range(HEADS)
    ]
    names = scan.evidence.corpus.class_names
    low = [names.index(name) for name in ("initial", "special", "strong_delimiter")]
    other = [index for index in range(len(names)) if index not in low]
    for row in rows:
        heads = scan.stat("pattern", "heads", row["layer"])
        mass = heads.class_mass[row["head"]]  # [C]
        assert row["low_information_mass"] == pytest.approx(float(mass[low].sum() / mass.sum()))
        norms = heads.value_norm[row["head"] * KEY_VALUE_HEADS // HEADS]  # [C]
        inside, outside = (
            norms[low].sum() / heads.keys[low].sum(),
            norms[other].sum() / heads.keys[other].sum(),
        )
        assert row["value_norm_ratio"] == pytest.approx(float(inside / outside))
        output = float(heads.output_ratio[row["head"]]) / heads.written_sequences
        assert row["output_ratio"] == pytest.approx(output)
        assert row["entropy"] == pytest.approx(float(heads.entropy[row["head"]]) / heads.queries)
        # The sink rule has a threshold of its own here, and with it another name for its statistic.
        sinks = scan.stat("pattern", "sinks_64_0.1_0.2_0.3_0.35_0.4_0.5", row["layer"])
        largest = float(sinks.largest_alpha[row["head"]]) / sinks.sequences
        assert row["mean_largest_alpha"] == pytest.approx(largest)
        assert 0 < row["initial_alpha"] <= 1
    assert not [row for row in scan.findings.to_pylist() if row["criterion"] == "no_op_head"], (
        "these figures are there although no rule flagged a head"
    )


def test_weight_rows_are_those_of_the_matrices(scan, model):
    parameters = dict(model.full.named_parameters())
    rows = weight_rows(scan)
    assert {row["role"] for row in rows} == {"q", "k", "v", "o", "gate", "up", "down"}
    assert len(rows) == LAYERS * 7
    for row in rows:
        magnitudes = parameters[row["parameter"]].detach().double().abs()  # [out, in]
        for noun, dim in (("column", 0), ("row", 1)):
            ratios = (magnitudes.amax(dim) / magnitudes.mean(dim)).numpy()
            expected = [float(torch.tensor(ratios).quantile(q)) for q in (0.5, 0.99, 1.0)]
            names = [f"{noun}_{name}" for name in ("median", "quantile_99", "largest")]
            assert [row[name] for name in names] == pytest.approx(expected, rel=1e-5)
        assert row["matrices"] == 1


def test_experts_of_a_role_are_one_row(weights_only):
    summaries = list(weights_only.evidence.weights)
    down = [item for item in summaries if item.role == "down"]
    for expert, item in enumerate(down):
        item.layer, item.expert = 0, expert
    try:
        rows = [row for row in weight_rows(weights_only) if row["role"] == "down"]
    finally:
        for layer, item in enumerate(down):
            item.layer, item.expert = layer, None
    (row,) = rows
    assert (row["layer"], row["parameter"], row["matrices"]) == (0, None, LAYERS)
    assert row["column_largest"] == max(float(item.column_ratio.max()) for item in down)


def test_a_scan_of_weights_alone_has_only_their_rows(weights_only, scan):
    assert layer_rows(weights_only) == model_figures(weights_only) == head_rows(weights_only) == []
    found, loaded = weight_rows(weights_only), weight_rows(scan)
    assert [row["layer"] for row in found] == sorted(row["layer"] for row in loaded)
    by_parameter = {row["parameter"]: row for row in loaded}
    for row in found:
        match = by_parameter[row["parameter"]]
        assert row["role"] == match["role"]
        assert row["column_largest"] == pytest.approx(match["column_largest"], rel=1e-6)


def test_attention_alone_has_only_rows_of_heads(model):
    scan = osc.scan(model, TEXTS, tokens=300, length=48, only=("attention",))
    assert layer_rows(scan) == model_figures(scan) == weight_rows(scan) == []
    rows = head_rows(scan)
    assert len(rows) == LAYERS * HEADS
    assert {row["mean_largest_alpha"] for row in rows} == {None}, "no sequence has 64 tokens"
    assert all(row["low_information_mass"] > 0 for row in rows)


def test_layers_that_were_not_observed_have_no_rows(model):
    scan = osc.scan(model, TEXTS, tokens=300, length=96, layers=(1, 3), only=("activation", "attention"))
    assert {row["layer"] for row in layer_rows(scan)} == {1, 3}
    assert {row["layer"] for row in head_rows(scan)} == {1, 3}
    assert {row["layers"] for row in model_figures(scan)} == {2}


def test_what_is_not_finite_is_null(scan):
    sequences = scan.stat("mlp_out", "sequences", layer=2)
    heads = scan.stat("pattern", "heads", layer=2)
    before, entropy = sequences.inf_norm_mean, heads.entropy.clone()
    try:
        sequences.inf_norm_mean = float("inf")
        heads.entropy[3] = float("nan")
        layers, model, figures = layer_rows(scan), model_figures(scan), head_rows(scan)
    finally:
        sequences.inf_norm_mean = before
        heads.entropy[:] = entropy
    json.dumps([layers, model, figures, weight_rows(scan)], allow_nan=False)
    assert [row["inf_norm"] for row in layers if row["site"] == "mlp_out"][2] is None
    assert {row["site"]: row["max_inf_norm"] for row in model}["mlp_out"] is None
    assert figures[2 * HEADS + 3]["entropy"] is None


def test_rows_survive_saving(scan, tmp_path):
    scan.save(tmp_path / "folder")
    try:
        opened = osc.Scan.open(tmp_path / "folder")
    finally:
        scan.folder = None
    for rows in (layer_rows, model_figures, head_rows, weight_rows):
        assert rows(opened) == rows(scan)
