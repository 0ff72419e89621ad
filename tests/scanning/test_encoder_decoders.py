"""Scans of encoder-decoders: every figure of both stacks against plain passes over single, unpadded sequences."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import outlierscope
from outlierscope.criteria.finding import Finding
from outlierscope.criteria.linear_inputs import rank_inputs
from outlierscope.criteria.weight import WeightColumn, WeightRow
from outlierscope.scanning.scan import Scan
from outlierscope.stats.positions import BUCKETS
from tests.criteria.direct import massive_events
from tests.scanning.plain_stacks import BART, START, T5, VOCABULARY, bart, plain_passes, t5

THRESHOLDS = {
    "massive": {"absolute": 1.0, "ratio": 3.0, "keep": 0.9},
    "systematic_attention": {"ratio": 0.05, "shortest": 16},
    "int8_feature": {"magnitude": 2.0, "least_layers": 2},
    "sink": {"epsilon": 0.15, "sequence_share": 0.2},
    "value_drain": {"epsilon": 0.15, "sequence_share": 0.2, "ratio": 10.0},
    "no_op_head": {"mass": 0.02, "quiet": 10.0, "idle_share": 0.1, "value_ratio": 10.0, "least_queries": 100},
}


@dataclass
class Run:
    scan: Any
    plain: dict
    sequences: list


def sequences():
    """Of unequal lengths, so that batches are padded."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()
        for length in (40, 33, 25, 40, 18, 40, 29, 36, 40, 21)
    ]


@pytest.fixture(scope="module", params=["t5", "bart"])
def run(request):
    build, places = {"t5": (t5, T5), "bart": (bart, BART)}[request.param]
    given, model = sequences(), build()
    scan = outlierscope.scan(
        outlierscope.wrap(model), given, length=40, batch_size=4, exact=True, thresholds=THRESHOLDS
    )
    return Run(scan, plain_passes(model, places, given), given)


def stacks_and_sites(run):
    return [
        (stack, name, layer)
        for stack, plain in run.plain.items()
        for name, layers in plain.sites.items()
        if name not in ("v", "cross_v")
        for layer in layers
    ]


def patterns(run):
    """Stack, site, layer, the patterns of all sequences, and the value vectors [H, K, d_head] of each."""
    for stack, plain in run.plain.items():
        for name, layers in plain.patterns.items():
            values = plain.sites[name.replace("pattern", "v")]
            for layer, found in layers.items():
                split = [value.double().unflatten(1, (4, 8)).transpose(0, 1) for value in values[layer]]
                yield stack, name, layer, [pattern.double() for pattern in found], split


def keys_of(run, stack, name):
    return run.plain["encoder" if name == "cross_pattern" else stack].token_ids


def test_both_stacks_are_fed_and_proved(run):
    assert run.scan.manifest["anatomy"]["proved"] is True
    assert run.scan.manifest["read"]["tokens"] == sum(map(len, run.sequences))
    assert run.scan.manifest["corpus"]["shifted_right"] == "decoder"


def test_moments_and_extremes_of_both_stacks(run):
    checked = stacks_and_sites(run)
    assert len(checked) == 2 * (5 + 8)
    for stack, name, layer in checked:
        values = torch.cat(run.plain[stack].sites[name][layer]).double()  # [tokens, d]
        moments = run.scan.stat(name, "moments", layer, stack)
        assert moments.count == len(values)
        torch.testing.assert_close(moments.mean, values.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments.m2, ((values - values.mean(0)) ** 2).sum(0), rtol=1e-4, atol=1e-4)
        extremes = run.scan.stat(name, "extremes", layer, stack)
        strongest = extremes.value.abs().max(0)
        torch.testing.assert_close(strongest.values.double(), values.abs().amax(0), rtol=1e-4, atol=1e-5)
        for dim, kind in enumerate(strongest.indices.tolist()):
            sequence, position = int(extremes.sequence[kind, dim]), int(extremes.position[kind, dim])
            there = float(run.plain[stack].sites[name][layer][sequence][position, dim])
            assert there == pytest.approx(float(extremes.value[kind, dim]), rel=1e-4, abs=1e-5)
            token = int(run.plain[stack].token_ids[sequence][position])
            assert int(extremes.token[kind, dim]) == token
            assert (kind == 0) == (position == 0)


def test_massive_rows_of_both_stacks(run):
    rows = [row for row in run.scan.findings.to_pylist() if row["criterion"] == "massive"]
    for stack, plain in run.plain.items():
        events, _ = massive_events(plain, 1.0, 3.0, 0.9)
        found = {
            (row["layer"], row["dim"], row["token_id"]): row["count"] for row in rows if row["stack"] == stack
        }
        assert found == dict(events)
        assert found


def test_the_decoder_begins_with_its_own_token(run):
    rows = run.scan.findings.to_pylist()
    initial = {
        (row["stack"], row["token_id"])
        for row in rows
        if row["token_class"] == "initial" and row["criterion"] == "massive"
    }
    assert {token for stack, token in initial if stack == "decoder"} == {START}
    assert START not in {token for stack, token in initial if stack == "encoder"}


def test_heads_of_every_pattern(run):
    for stack, name, layer, found, values in patterns(run):
        heads = run.scan.stat(name, "heads_0.02_10", layer, stack)
        received = run.scan.stat(name, "received", layer, stack)
        mass, entropy, relative, alpha, outputs = [], [], [], [], []
        for pattern, value in zip(found, values, strict=True):
            _, queries, keys = pattern.shape
            positions = torch.arange(queries)
            if stack == "decoder" and name == "pattern":
                visible, seen_by = positions + 1, queries - torch.arange(keys)
            else:
                visible, seen_by = torch.full((queries,), keys), torch.full((keys,), queries)
            mass.append(torch.stack([pattern[..., 0].sum(1), pattern[..., 1:].sum((1, 2))], 1))
            each = -torch.special.xlogy(pattern, pattern).sum(-1)  # [H, Q]
            entropy.append(each.sum(1))
            several = visible > 1
            relative.append((each / visible.clamp_min(2).log())[:, several].sum(1))
            alpha.append(pattern.sum(1) / seen_by)
            outputs.append((pattern @ value).norm(dim=-1).mean(1) / value.mean(1).norm(dim=-1))
        queries = sum(pattern.shape[1] for pattern in found)
        assert (heads.sequences, heads.queries) == (len(found), queries)
        # Ids given as data have no special tokens and no delimiters: the first one, and all others.
        expected = torch.stack(mass).sum(0)
        torch.testing.assert_close(heads.class_mass[:, [0, 4]], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(heads.class_mass.sum(1), expected.sum(1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(heads.mean_entropy(), sum(entropy) / queries, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads.normalised_entropy, sum(relative), rtol=1e-4, atol=1e-4)
        first = torch.stack([each[:, 0] for each in alpha])
        torch.testing.assert_close(heads.mean_initial_alpha(), first.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            heads.mean_output_ratio(), torch.stack(outputs).mean(0), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(heads.value_norm.sum(1), sum(v.norm(dim=-1).sum(1) for v in values))
        # Received mass by token id: those of the encoder in cross attention.
        ids = torch.cat(keys_of(run, stack, name))
        raw = torch.cat([pattern.sum(1).mean(0) for pattern in found])
        for index, token in enumerate(received.tokens.keys.flatten().tolist()):
            assert int(received.tokens.counts[index]) == int((ids == token).sum())
            expected_mass = float(raw[ids == token].sum())
            assert float(received.tokens.sums[index, 0]) == pytest.approx(expected_mass, rel=1e-4, abs=1e-5)
        assert set(received.tokens.keys.flatten().tolist()) == set(ids.tolist())
        assert received.raw.shape == (4, BUCKETS)


def test_sinks_and_drain_of_whole_windows(run):
    """Causal layers need 64 tokens; the encoder and cross attention are judged on whole windows."""
    rows = run.scan.findings.to_pylist()
    judged = 0
    for stack, name, layer, found, values in patterns(run):
        place = (stack, name, layer)
        sinks = {
            row["head"]: row
            for row in rows
            if row["criterion"] == "sink" and (row["stack"], row["site"], row["layer"]) == place
        }
        drains = {
            row["head"]: row["score"]
            for row in rows
            if row["criterion"] == "value_drain" and (row["stack"], row["site"], row["layer"]) == place
        }
        if (stack, name) == ("decoder", "pattern"):
            assert not sinks
            continue
        for head in range(4):
            alphas, ratios, sharing = [], [], 0
            for pattern, value in zip(found, values, strict=True):
                alpha = pattern[head].mean(0)
                norms = value[head].norm(dim=-1)
                above = alpha > 0.15
                sharing += bool(above.any())
                alphas.append(alpha[above])
                ratios.append(norms[above] / norms.quantile(0.5))
            share = sharing / len(found)
            assert (head in sinks) == (share >= 0.2)
            if head in sinks:
                judged += 1
                assert sinks[head]["score"] == pytest.approx(share)
                assert sinks[head]["value"] == pytest.approx(float(torch.cat(alphas).mean()), rel=1e-3)
                assert drains[head] == pytest.approx(float(torch.cat(ratios).mean()), rel=1e-3)
    assert judged


def test_systematic_attention_of_every_pattern(run):
    rows = run.scan.findings.to_pylist()
    crossed = 0
    for stack, name, layer, found, _ in patterns(run):
        expected = {}
        for pattern, ids in zip(found, keys_of(run, stack, name), strict=True):
            share = pattern.mean(0).sum(0) / pattern.shape[1]
            for key in (share >= 0.05).nonzero().flatten().tolist():
                kind = "initial" if key == 0 else "other"
                expected.setdefault((int(ids[key]), kind), []).append(float(share[key]))
        there = {
            (row["token_id"], row["token_class"]): row
            for row in rows
            if row["criterion"] == "systematic_attention"
            and (row["stack"], row["site"], row["layer"]) == (stack, name, layer)
        }
        assert {key: row["count"] for key, row in there.items()} == {
            key: len(shares) for key, shares in expected.items()
        }
        for key, row in there.items():
            assert row["score"] == pytest.approx(sum(expected[key]) / len(expected[key]), rel=1e-4)
        crossed += name == "cross_pattern" and len(there)
    assert crossed


def test_no_op_heads_of_every_pattern(run):
    rows = run.scan.findings.to_pylist()
    for stack, name, layer, found, values in patterns(run):
        expected = {}
        for head in range(4):
            idle = queries = 0
            inside, outside = [], []
            for pattern, value in zip(found, values, strict=True):
                written = (pattern[head] @ value[head]).norm(dim=-1)
                quiet = written < 10 * value[head].mean(0).norm()
                idle += int(((pattern[head, :, 0] > 0.02) & quiet).sum())
                queries += len(written)
                norms = value[head].norm(dim=-1)
                inside.append(norms[:1])
                outside.append(norms[1:])
            ratio = float(torch.cat(inside).mean() / torch.cat(outside).mean())
            if idle / queries >= 0.1 and ratio <= 10:
                expected[head] = (pytest.approx(idle / queries), pytest.approx(ratio, rel=1e-4))
        there = {
            row["head"]: (row["score"], json.loads(row["extra"])["value_norm_ratio"])
            for row in rows
            if row["criterion"] == "no_op_head"
            and (row["stack"], row["site"], row["layer"]) == (stack, name, layer)
        }
        assert there == expected


def test_findings_of_cross_attention_name_its_module(run):
    rows = [row for row in run.scan.findings.to_pylist() if row["site"] == "cross_pattern"]
    assert rows
    for row in rows:
        assert row["module"].rpartition(".")[2] in ("EncDecAttention", "encoder_attn")
        assert row["stack"] == "decoder"


@pytest.mark.parametrize("scheme", ["int8_per_tensor", "fp8_e4m3"])
def test_what_output_projections_of_cross_attention_read_is_a_linear_input(run, scheme):
    ranked = {str(item.site): item for item in rank_inputs(run.scan.evidence, scheme)}
    for layer, sequences in run.plain["decoder"].sites["cross_z"].items():
        values = torch.cat(sequences).double()
        found = ranked[f"decoder.{layer}.cross_z"]
        assert found.absmax == pytest.approx(float(values.abs().max()), rel=1e-4)
        assert found.signal == pytest.approx(float(values.square().mean()), rel=5e-3)
        if scheme == "int8_per_tensor":
            step = values.abs().max() / 127
            noise = ((values / step).round() * step - values).square().mean()
            assert found.noise == pytest.approx(float(noise), rel=0.1)
        names = {"EncDecAttention.o", "encoder_attn.out_proj"}
        (module,) = run.scan.evidence.modules(found.site)
        assert any(module.endswith(name) for name in names)


def test_features_of_cross_attention_have_dims_of_their_own(run):
    rows = [row for row in run.scan.findings.to_pylist() if row["criterion"] == "int8_feature"]
    spaces = {tuple(json.loads(row["extra"])["sites"]): row for row in rows}
    plain = run.plain["decoder"].sites["cross_z"]
    affected = torch.stack([(torch.cat(layer).abs() >= 2.0).any(0) for layer in plain.values()])  # [L, d]
    share = torch.cat([torch.cat(layer).abs() >= 2.0 for layer in plain.values()]).double().mean(0)  # [d]
    expected = (affected.double().mean(0) >= 0.25) & (share >= 0.06)
    found = {row["dim"]: row["score"] for row in rows if json.loads(row["extra"])["sites"] == ["cross_z"]}
    assert found == pytest.approx({int(dim): float(share[dim]) for dim in expected.nonzero()[:, 0]})
    assert ("cross_z",) in spaces
    assert spaces["cross_z",]["head"] == spaces["cross_z",]["dim"] // 8


def test_weights_of_cross_attention_know_what_they_read_and_write(run):
    """Of random matrices, entries above the mean ratio by one standard deviation."""
    evidence = run.scan.evidence
    columns = [row for row in WeightColumn(sigma=1.0).findings(evidence) if isinstance(row, Finding)]
    lines = [row for row in WeightRow(sigma=1.0).findings(evidence) if isinstance(row, Finding)]
    read = {(row.extra["role"], row.site) for row in columns if row.extra["role"].startswith("cross_")}
    written = {(row.extra["role"], row.site) for row in lines if row.extra["role"].startswith("cross_")}
    # What queries, keys and values of cross attention read has no site.
    assert read == {("cross_q", None), ("cross_k", None), ("cross_v", None), ("cross_o", "cross_z")}
    assert written == {
        ("cross_q", "cross_q"),
        ("cross_k", "cross_k"),
        ("cross_v", "cross_v"),
        ("cross_o", "cross_out"),
    }
    for row in columns:
        if row.extra["role"] == "cross_o":
            assert row.head == row.dim // 8


def test_examples_hold_the_tokens_of_both_stacks(run):
    examples = run.scan.examples
    rows = [torch.tensor(ids) for ids in run.sequences[: len(examples["sequences"])]]
    assert torch.equal(examples["ids"], torch.cat(rows))
    shifted = [torch.cat([torch.tensor([START]), ids[:-1]]) for ids in rows]
    assert torch.equal(examples["decoder.ids"], torch.cat(shifted))
    picked = [key for key in examples if key.endswith("q")]
    assert picked
    for key in picked:
        assert examples[key].shape == (len(examples["ids"]), 8)


def test_a_saved_scan_has_the_same_figures(run, tmp_path):
    run.scan.save(tmp_path / "scan")
    opened = Scan.open(tmp_path / "scan")
    before = run.scan.stat("cross_pattern", "heads_0.02_10", 1, "decoder")
    assert torch.equal(
        opened.stat("cross_pattern", "heads_0.02_10", 1, "decoder").class_mass, before.class_mass
    )
    assert opened.findings.equals(run.scan.findings)
