"""What a scan must find in real models, and must not find in the healthy one."""

import json

import pytest
import torch

import outlierscope as osc
from outlierscope.reporting.heads import attention_figures, attention_summaries
from outlierscope.reporting.summary import summarize
from outlierscope.scanning.feeding import corpus_for


def rows(scan, criterion):
    return [row for row in scan.findings.to_pylist() if row["criterion"] == criterion]


def test_minilm_full_stop_and_cls(minilm_folder):
    scan = osc.scan(osc.load(minilm_folder), tokens=4096)
    found = rows(scan, "six_sigma")
    on_cls = {row["dim"] for row in found if row["token"] == "[CLS]"}
    assert 99 in on_cls
    stops = [row for row in found if '"token": "."' in row["extra"] and row["dim"] == 63]
    assert stops, "dim 63 at full stops"
    assert {row["layer"] for row in found if row["dim"] == 99} >= {0, 1, 2}
    assert all(row["module"].startswith("encoder.layer.") for row in found)
    assert not rows(scan, "massive")
    assert not rows(scan, "float16")


@pytest.mark.slow
def test_stories_is_healthy(shared_model):
    scan = osc.scan(osc.load(shared_model("stories260k")), tokens=200 * 64, length=64, exact=True)
    assert scan.manifest["read"]["sampled_sequences"] >= 200
    for criterion in ("massive", "sink", "systematic_activation", "systematic_attention"):
        assert not rows(scan, criterion), criterion
    largest = max(float(scan.stat("resid_post", "moments", layer=layer).absmax().max()) for layer in range(5))
    assert 10 < largest < 30
    alphas = [
        float((stat.largest_alpha / stat.sequences).max())
        for layer in range(5)
        for stat in [scan.stat("pattern", scan_sink_name(scan), layer=layer)]
    ]
    assert max(alphas) < 0.3


def scan_sink_name(scan):
    from outlierscope.criteria.attention import Sink

    return Sink().stat().name


@pytest.mark.slow
def test_vit_dim_41_from_layer_7_on(shared_model, shared_data):
    scan = osc.scan(osc.load(shared_model("vit-tiny-patch16-224")), shared_data("images"), tokens=16 * 197)
    found = rows(scan, "massive")
    assert {row["dim"] for row in found} == {41}
    assert {row["layer"] for row in found} >= set(range(7, 11))
    assert min(row["layer"] for row in found) >= 6
    assert max(abs(row["value"]) for row in found) == pytest.approx(580, rel=0.15)
    assert all(row["stack"] == "vision" and row["token_id"] is None for row in found)
    # BON's picture of flat background patches does not hold here: they are border patches, textured or not.
    classes = [json.loads(row["extra"])["classes_of_dim"] for row in found]
    assert {name for row in classes for name in row} <= {"border_flat", "border_textured"}
    assert sum(row.get("border_textured", 0) for row in classes) > sum(
        row.get("border_flat", 0) for row in classes
    )
    for row in found:
        extra = json.loads(row["extra"])
        assert divmod(row["position"] - 1, 14) == (extra["patch_row"], extra["patch_column"])
        # Most exactly: the four corners.
        assert {extra["patch_row"], extra["patch_column"]} <= {0, 13}
        assert set(extra["site_positions"]) <= {"1", "14", "128-255"}
        where = f"patch in row {extra['patch_row']}, column {extra['patch_column']} of "
        assert row["context"].startswith(where)
    assert "dim 41 at textured patches of the border" in summarize(scan).outliers[0].text


def direct_sinks(model, sequences):
    """(layer, head) -> (share of the sequences with a sink, mean alpha of the sinks), from returned attentions.

    A plain pass over the first 64 tokens; only keys that at least half of its queries can see are looked at.
    """
    model.set_attn_implementation("eager")
    corner = torch.stack([ids[:64] for ids in sequences])
    with torch.no_grad():
        attentions = model(corner, output_attentions=True, logits_to_keep=1).attentions
    found = {}
    for layer, pattern in enumerate(attentions):
        alpha = (pattern.double().sum(2) / torch.arange(64, 0, -1))[..., :33]  # [B, H, K]
        above = alpha > 0.3
        share = above.any(2).double().mean(0)  # [H]
        for head in (share >= 0.5).nonzero().flatten().tolist():
            found[layer, head] = (float(share[head]), float(alpha[:, head][above[:, head]].mean()))
    return found


@pytest.mark.slow
def test_gemma_dims_400_and_163_at_bos(gemma_folder, shared_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    live = AutoModelForCausalLM.from_pretrained(gemma_folder)
    model = osc.wrap(live, AutoTokenizer.from_pretrained(gemma_folder))
    text = shared_data("text", "wikitext2.valid.tokens").read_text(encoding="utf-8")[:40_000]
    settings = osc.ScanSettings(tokens=4096)
    documents = [text]
    token_ids = [ids for batch in corpus_for(model, settings, documents).batches() for ids in batch.token_ids]
    scan = osc.scan(model, documents, settings=settings)
    found = [row for row in rows(scan, "massive") if row["token"] == "<bos>"]
    peaks = {}
    for row in found:
        peaks[row["dim"], row["layer"]] = row["value"]
    assert abs(peaks[400, 0]) == pytest.approx(2984, rel=0.02)
    assert abs(peaks[163, 3]) == pytest.approx(10_428, rel=0.02)
    assert abs(peaks[163, 14]) == pytest.approx(103_800, rel=0.02)
    assert abs(peaks[163, 16]) == pytest.approx(82_700, rel=0.02)
    assert all(row["module"].startswith("model.layers.") for row in found)
    sinks = rows(scan, "sink")
    expected = direct_sinks(live, token_ids)
    assert len(expected) >= 10
    assert {(row["layer"], row["head"]) for row in sinks} == expected.keys()
    for row in sinks:
        assert (row["score"], row["value"]) == pytest.approx(expected[row["layer"], row["head"]], rel=1e-3)
    # The heads that the summary names: those that give it most.
    most = sorted(expected, key=lambda head: -expected[head][1])[:3]
    (summary,) = attention_figures(attention_summaries(scan))
    assert [(row["layer"], row["head"]) for row in summary["strongest"]] == most
    assert all(row["token"] == "<bos>" for row in summary["strongest"])
    assert summary["strongest"][0]["value"] > 0.7
    assert (summary["heads"], summary["sink_heads"]) == (72, len(expected))
    overflow = rows(scan, "float16")
    assert overflow[0]["dim"] == 163
    assert overflow[0]["token"] == "<bos>"
    assert overflow[0]["score"] > 1
    assert not rows(scan, "bfloat16")
