"""Attention criteria on real models, against direct computations from the attentions they return."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import outlierscope
from outlierscope.criteria.attention import Sink, SystematicAttention
from outlierscope.criteria.attention_summary import summarize_attention
from outlierscope.criteria.idle_heads import NoOpHead, ValueDrain
from outlierscope.scanning.feeding import corpus_for
from outlierscope.scanning.settings import ScanSettings
from tests.criteria.attention_evidence import evidence_of_model, findings, model_batch
from tests.criteria.direct import no_op_figures
from tests.model.attention.models import hand_made_anatomy

CRITERIA = (SystematicAttention(), Sink(), NoOpHead(), ValueDrain())


@pytest.fixture(scope="module")
def minilm(minilm_folder, shared_data):
    """MiniLM on 8 windows of 256: (model, anatomy, batch, attentions, values by layer [B, H, T, d_head])."""
    model = AutoModel.from_pretrained(minilm_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    text = shared_data("text", "bronte.txt").read_text(encoding="utf-8")[:20000]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    rows = [
        [tokenizer.cls_token_id, *ids[start : start + 254], tokenizer.sep_token_id]
        for start in range(0, 8 * 254, 254)
    ]
    delimiters = tokenizer.convert_tokens_to_ids([".", ",", ";", ":", "!", "?"])
    batch = model_batch(rows, "encoder", tokenizer.all_special_ids, delimiters)
    anatomy = hand_made_anatomy(
        model, r"encoder\.layer\.\d+\.attention\.self", "encoder", heads=12, causal=False
    )
    reference = AutoModel.from_pretrained(minilm_folder, attn_implementation="eager").eval()
    values = {}
    for layer, block in enumerate(reference.encoder.layer):
        block.attention.self.value.register_forward_hook(
            lambda _m, _i, out, layer=layer: values.__setitem__(
                layer, out.unflatten(-1, (12, 32)).transpose(1, 2)
            )
        )
    with torch.inference_mode():
        attentions = reference(**batch.inputs, output_attentions=True).attentions
    return model, anatomy, batch, attentions, values


def test_sinks_of_minilm(minilm):
    model, anatomy, batch, attentions, _ = minilm
    evidence = evidence_of_model(model, anatomy, [Sink()], batch)
    rows, _ = findings(Sink(), evidence)
    expected = {}
    for layer, pattern in enumerate(attentions):
        alpha = pattern.double().mean(2)  # [B, H, T]: every query sees every key
        share = (alpha > 0.3).any(2).double().mean(0)
        for head in range(12):
            if share[head] >= 0.5:
                above = alpha[:, head] > 0.3
                tokens = batch.token_ids[above]
                most = tokens.mode().values.item()
                expected[layer, head] = (
                    float(share[head]),
                    float(alpha[:, head][above].mean()),
                    most,
                    len(tokens),
                )
    assert len(expected) >= 5
    assert {(row.layer, row.head) for row in rows} == set(expected)
    for row in rows:
        share, alpha, token, count = expected[row.layer, row.head]
        assert row.score == row.share_sequences == pytest.approx(share)
        assert row.value == pytest.approx(alpha, rel=1e-4)
        assert (row.count, row.token_id) == (count, token)
        assert row.module == f"encoder.layer.{row.layer}.attention.self"
        assert row.rule["scope"].startswith("whole sequences")
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)


def test_systematic_attention_of_minilm(minilm):
    model, anatomy, batch, attentions, _ = minilm
    evidence = evidence_of_model(model, anatomy, [SystematicAttention()], batch)
    rows, _ = findings(SystematicAttention(), evidence)
    expected = {}
    for layer, pattern in enumerate(attentions):
        received = pattern.double().mean(1).sum(1)  # [B, T]
        for sequence, key in (received >= 0.1 * 256).nonzero().tolist():
            name = (layer, int(batch.token_ids[sequence, key]))
            expected.setdefault(name, []).append(float(received[sequence, key]) / 256)
    assert expected
    assert {(row.layer, row.token_id): row.count for row in rows} == {
        key: len(x) for key, x in expected.items()
    }
    for row in rows:
        assert row.score == pytest.approx(np.mean(expected[row.layer, row.token_id]), rel=1e-4)
        # Every query sees every key, so that both forms agree.
        assert row.value == pytest.approx(row.score, rel=1e-9)
        assert row.extra["normalised"]["share_of_keys"] == 1.0


def test_no_op_heads_of_minilm(minilm):
    model, anatomy, batch, attentions, values = minilm
    criterion = NoOpHead(idle_share=0.2)
    evidence = evidence_of_model(model, anatomy, [criterion], batch)
    rows, _ = findings(criterion, evidence)
    low = batch.classes < 3  # [B, T]
    expected = {}
    for layer, pattern in enumerate(attentions):
        value = values[layer].double()
        mass = (pattern.double() * low[:, None, None]).sum(-1)  # [B, H, Q]
        written = (pattern.double() @ value).norm(dim=-1)  # [B, H, Q]
        mean = value.mean(2).norm(dim=-1)  # [B, H]
        idle = ((mass > 0.5) & (written < 0.5 * mean[..., None])).double().mean((0, 2))
        norms = value.norm(dim=-1)  # [B, H, T]
        for head in range(12):
            ratio = norms[:, head][low].mean() / norms[:, head][~low].mean()
            if idle[head] >= 0.2 and ratio <= 1:
                output_ratio = (written[:, head].mean(1) / mean[:, head]).mean()
                expected[layer, head] = [
                    float(idle[head]),
                    float(mass[:, head].mean()),
                    float(ratio),
                    float(output_ratio),
                ]
    assert expected
    found = no_op_figures(rows)
    assert found.keys() == expected.keys()
    for name, figures in found.items():
        assert figures == pytest.approx(expected[name], rel=1e-3)
    assert all(row.extra["pattern"] == "selective update" for row in rows)


def test_value_drain_of_minilm(minilm):
    model, anatomy, batch, attentions, values = minilm
    criterion = ValueDrain(ratio=0.8)
    evidence = evidence_of_model(model, anatomy, [criterion], batch)
    rows, _ = findings(criterion, evidence)
    expected = {}
    for layer, pattern in enumerate(attentions):
        alpha, norms = pattern.double().mean(2), values[layer].double().norm(dim=-1)  # [B, H, T]
        ratios = norms / np.quantile(norms.numpy(), 0.5, axis=2, keepdims=True)
        above = alpha > 0.3
        for head in range(12):
            if above[:, head].any(1).double().mean() >= 0.5:
                mean = float(ratios[:, head][above[:, head]].mean())
                if mean <= 0.8:
                    expected[layer, head] = mean
    assert expected
    assert {(row.layer, row.head): row.score for row in rows} == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def scanned(minilm_folder, shared_data):
    """A whole scan of MiniLM: (scan, per sequence its token ids, its patterns [H, T, T] by layer)."""
    text = shared_data("text", "bronte.txt").read_text(encoding="utf-8")
    documents = [text[:9_000], text[9_000:9_700], text[10_000:12_500]]
    settings = ScanSettings(tokens=4096, length=256, batch_size=4, exact=True, only=("attention",))
    model = outlierscope.load(minilm_folder)
    batches = list(corpus_for(model, settings, documents).batches())
    plain = AutoModel.from_pretrained(minilm_folder, attn_implementation="eager").eval()
    sequences = []
    with torch.no_grad():
        for batch in batches:
            attentions = plain(**batch.inputs, output_attentions=True).attentions
            for row, real in enumerate(batch.real):
                patterns = [pattern[row][:, real][:, :, real].double() for pattern in attentions]
                sequences.append((batch.token_ids[row, real], patterns))
    return outlierscope.scan(model, documents, settings=settings), sequences


def rows_of(scan, criterion):
    return [row for row in scan.findings.to_pylist() if row["criterion"] == criterion]


def test_sinks_of_a_whole_scan(scanned):
    scan, sequences = scanned
    assert scan.evidence.anatomy.proved is True
    # Padded sequences and short ones are among them; none is too short to be judged.
    assert len({len(ids) for ids, _ in sequences}) >= 3
    assert min(len(ids) for ids, _ in sequences) >= 16
    with_sink, alphas, tokens = Counter(), {}, {}
    for ids, patterns in sequences:
        for layer, pattern in enumerate(patterns):
            alpha = pattern.mean(1)  # [H, T]: every query sees every key
            for head, key in (alpha > 0.3).nonzero().tolist():
                alphas.setdefault((layer, head), []).append(float(alpha[head, key]))
                tokens.setdefault((layer, head), Counter())[int(ids[key])] += 1
            for head in range(12):
                with_sink[layer, head] += bool((alpha[head] > 0.3).any())
    expected = {
        key: count / len(sequences) for key, count in with_sink.items() if 2 * count >= len(sequences)
    }
    found = {(row["layer"], row["head"]): row for row in rows_of(scan, "sink")}
    assert len(expected) >= 5
    assert {key: row["score"] for key, row in found.items()} == pytest.approx(expected)
    for key, row in found.items():
        assert row["count"] == len(alphas[key])
        assert row["value"] == pytest.approx(np.mean(alphas[key]), rel=1e-4)
        assert tokens[key][row["token_id"]] == max(tokens[key].values())
        assert row["module"] == f"encoder.layer.{row['layer']}.attention.self"


def test_systematic_attention_of_a_whole_scan(scanned):
    scan, sequences = scanned
    judged = [(ids, patterns) for ids, patterns in sequences if len(ids) >= 256]
    assert 0 < len(judged) < len(sequences)
    shares, by_head, with_any = {}, {}, Counter()
    for ids, patterns in judged:
        for layer, pattern in enumerate(patterns):
            received = pattern.sum(1) / len(ids)  # [H, T]
            above = (received.mean(0) >= 0.1).nonzero().flatten().tolist()
            with_any[layer] += bool(above)
            for key in above:
                shares.setdefault((layer, int(ids[key])), []).append(float(received[:, key].mean()))
                by_head.setdefault(layer, []).append(received[:, key])
    rows = rows_of(scan, "systematic_attention")
    assert shares
    assert {(row["layer"], row["token_id"]): row["count"] for row in rows} == {
        key: len(found) for key, found in shares.items()
    }
    for row in rows:
        assert row["score"] == pytest.approx(np.mean(shares[row["layer"], row["token_id"]]), rel=1e-4)
        mean = torch.stack(by_head[row["layer"]]).mean(0)  # [H]
        assert json.loads(row["extra"])["by_head"] == pytest.approx(mean.tolist(), rel=1e-4)
        assert row["head"] == int(mean.argmax())
        assert row["share_sequences"] == with_any[row["layer"]] / len(judged)
        assert json.loads(row["rule"])["judged_sequences"] == len(judged)
        assert json.loads(row["rule"])["too_short"] == len(sequences) - len(judged)


@pytest.fixture(scope="module")
def stories(shared_model, shared_data):
    """stories260k on 208 windows of 256: (model in its eager form, token ids, evidence)."""
    folder = shared_model("stories260k")
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = shared_data("text", "bronte.txt").read_text(encoding="utf-8")[:140000]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    rows = [[tokenizer.bos_token_id, *ids[start : start + 255]] for start in range(0, 208 * 255, 255)]
    batch = model_batch(rows, "decoder", tokenizer.all_special_ids, set())
    anatomy = hand_made_anatomy(model, r"layers\.\d+\.self_attn", "decoder", heads=8, key_value_heads=4)
    evidence = evidence_of_model(model, anatomy, CRITERIA, batch)
    model.set_attn_implementation("eager")
    return model, batch.token_ids, evidence


@pytest.mark.slow
def test_the_healthy_control_has_no_sinks(stories):
    model, token_ids, evidence = stories
    for criterion in (Sink(), NoOpHead(), ValueDrain()):
        assert findings(criterion, evidence) == ([], [])
    # As a plain pass over 64 tokens gives it, for keys that at least half of the queries can see.
    with torch.inference_mode():
        attentions = model(token_ids[:, :64], output_attentions=True).attentions
    largest = 0.0
    for site in evidence.anatomy.sites("pattern"):
        stat = evidence.stat(site, Sink().stat().name)
        assert stat.sequences == 208
        alpha = attentions[site.layer].double().sum(2) / torch.arange(64, 0, -1)  # [B, H, 64]
        torch.testing.assert_close(stat.mean_alpha()[:, :33], alpha.mean(0)[:, :33], rtol=1e-4, atol=1e-6)
        largest = max(largest, float(alpha.mean(0)[:, :33].max()))
        share = (alpha[..., :33] > 0.3).any(2).double().mean(0)
        torch.testing.assert_close(stat.share(0.3), share)
    assert largest == pytest.approx(0.23, abs=0.03)
    summary = summarize_attention(evidence, [])[0]
    assert (summary.heads, summary.sinks, summary.no_ops) == (40, 0, 0)


@pytest.mark.slow
def test_systematic_attention_of_the_healthy_control(stories):
    model, token_ids, evidence = stories
    rows, _ = findings(SystematicAttention(), evidence)
    counts, normalised = {}, 0
    with torch.inference_mode():
        for start in range(0, 208, 52):
            part = model(token_ids[start : start + 52], output_attentions=True).attentions
            for layer, pattern in enumerate(part):
                received = pattern.mean(1).sum(1)  # [B, T]
                for sequence, key in (received >= 25.6).nonzero().tolist():
                    name = (layer, int(token_ids[start + sequence, key]))
                    counts[name] = counts.get(name, 0) + 1
                alpha = received / torch.arange(256, 0, -1)
                normalised += int((alpha[:, :129] >= 0.1).sum())
    assert {(row.layer, row.token_id): row.count for row in rows} == counts
    stats = [evidence.stat(site, "systematic_attention_0.1") for site in evidence.anatomy.sites("pattern")]
    assert sum(stat.count_normalised for stat in stats) == normalised
