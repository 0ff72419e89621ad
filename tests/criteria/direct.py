"""Direct computations: tensors of a plain forward pass from hooks at places written out by hand, and plain rules.

Nothing here reads the code under test; of its batches only inputs and the identities of tokens are used.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

LINEAR_INPUTS = ("attn_in", "z", "mlp_in", "mlp_post")

BERT = {
    "embed": ("embeddings", "output"),
    "attn_in": ("encoder.layer.{}.attention.self.query", "input"),
    "z": ("encoder.layer.{}.attention.output.dense", "input"),
    "attn_out": ("encoder.layer.{}.attention.output.dense", "output"),
    "resid_mid": ("encoder.layer.{}.attention", "output"),
    "mlp_in": ("encoder.layer.{}.intermediate.dense", "input"),
    "mlp_post": ("encoder.layer.{}.output.dense", "input"),
    "mlp_out": ("encoder.layer.{}.output.dense", "output"),
    "resid_post": ("encoder.layer.{}", "output"),
}
LLAMA = {
    "embed": ("embed_tokens", "output"),
    "attn_in": ("layers.{}.self_attn.q_proj", "input"),
    "v": ("layers.{}.self_attn.v_proj", "output"),
    "z": ("layers.{}.self_attn.o_proj", "input"),
    "attn_out": ("layers.{}.self_attn", "output"),
    "resid_mid": ("layers.{}.post_attention_layernorm", "input"),
    "mlp_in": ("layers.{}.mlp", "input"),
    "mlp_post": ("layers.{}.mlp.down_proj", "input"),
    "mlp_out": ("layers.{}.mlp", "output"),
    "resid_post": ("layers.{}", "output"),
    "final_norm": ("norm", "output"),
}
# Norms stand before and after each branch: what is added is the output of the second one.
GEMMA = LLAMA | {
    "attn_out": ("layers.{}.post_attention_layernorm", "output"),
    "resid_mid": ("layers.{}.pre_feedforward_layernorm", "input"),
    "mlp_out": ("layers.{}.post_feedforward_layernorm", "output"),
}
VIT = {
    "mlp_post": ("layers.{}.mlp.fc2", "input"),
    "mlp_out": ("layers.{}.mlp.fc2", "output"),
    "resid_post": ("layers.{}", "output"),
}


class Direct:
    """What a plain forward pass shows, by sequence; nothing is padded.

    Attributes:
        sites: site name -> layer (``None`` outside of the blocks) -> [T, d] of each sequence.
        attentions: layer -> [H, T, T] of each sequence, where asked for.
        token_ids: [T] of each sequence.
        classes: [T] of each sequence.
    """

    def __init__(self, model, places, batches, *, attentions=False):
        self.sites = {name: {} for name in places}
        self.attentions = {}
        self.token_ids, self.classes = [], []
        modules = dict(model.named_modules())
        handles = [
            modules[path.format(layer)].register_forward_hook(self._hook(name, layer, side))
            for name, (path, side) in places.items()
            for layer in (range(model.config.num_hidden_layers) if "{}" in path else [None])
        ]
        with torch.no_grad():
            for batch in batches:
                assert batch.real.all()
                output = model(**batch.inputs, **({"output_attentions": True} if attentions else {}))
                for layer, pattern in enumerate(output.attentions if attentions else ()):
                    self.attentions.setdefault(layer, []).extend(pattern.unbind(0))
                self.token_ids += batch.token_ids.unbind(0)
                self.classes += batch.classes.unbind(0)
        for handle in handles:
            handle.remove()

    def _hook(self, name, layer, side):
        def hook(module, inputs, output):
            tensor = inputs[0] if side == "input" else output
            tensor = tensor[0] if isinstance(tensor, tuple) else tensor
            self.sites[name].setdefault(layer, []).extend(tensor.detach().unbind(0))

        return hook


@dataclass
class Run:
    """A scan, and a plain pass over the same batches."""

    scan: Any
    direct: Direct
    plain: Any
    batches: list
    thresholds: dict

    def rows(self, criterion):
        return [row for row in self.scan.findings.to_pylist() if row["criterion"] == criterion]


def massive_events(direct, absolute, ratio, keep=0.5):
    """Events by (layer, dim, token id): all of them, and those that an earlier layer's flag carries on."""
    events, carried = Counter(), Counter()
    flagged = {}  # (sequence, position, dim) -> magnitude at the last layer that flagged it by the rule itself
    for layer in sorted(direct.sites["resid_post"]):
        now = {}
        for number, values in enumerate(direct.sites["resid_post"][layer]):
            magnitude = values.double().abs()
            ordered = magnitude.flatten().sort().values
            n = len(ordered)
            median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
            strict = (magnitude > absolute) & (magnitude > ratio * median)
            for place, dim in strict.nonzero().tolist():
                now[number, place, dim] = float(magnitude[place, dim])
                events[layer, dim, int(direct.token_ids[number][place])] += 1
            for (sequence, place, dim), before in flagged.items():
                if sequence != number or strict[place, dim]:
                    continue
                if magnitude[place, dim] > absolute and magnitude[place, dim] > keep * before:
                    now[number, place, dim] = before
                    events[layer, dim, int(direct.token_ids[number][place])] += 1
                    carried[layer, dim, int(direct.token_ids[number][place])] += 1
        flagged = now
    return events, carried


class Peak(NamedTuple):
    """A value of largest magnitude, and where it stands."""

    value: float
    sequence: int
    position: int
    dim: int


def peaks(direct, names):
    """The peak of every tensor, by (site, layer)."""
    found = {}
    for name in names:
        for layer, sequences in direct.sites[name].items():
            largest = [values.abs().max() for values in sequences]
            sequence = int(torch.stack(largest).argmax())
            values = sequences[sequence]
            position, dim = divmod(int(values.abs().argmax()), values.shape[1])
            found[name, layer] = Peak(float(values[position, dim]), sequence, position, dim)
    return found


def check_range(run, criterion):
    """Compare the rows of a range criterion with the peaks of a plain pass; returns how many rows there are."""
    kinds = {
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "fp8_e4m3_unscaled": torch.float8_e4m3fn,
        "fp8_e5m2_unscaled": torch.float8_e5m2,
    }
    end = torch.finfo(kinds[criterion]).max
    least = end / run.thresholds.get(criterion, {}).get("headroom", 4.0)
    names = (
        LINEAR_INPUTS if criterion.startswith("fp8") else [name for name in run.direct.sites if name != "v"]
    )
    there = peaks(run.direct, names)
    rows = run.rows(criterion)
    for row in rows:
        peak = there[row["site"], row["layer"]]
        assert (row["value"], row["sequence"], row["position"], row["dim"]) == peak
        assert row["score"] == abs(peak.value) / end
        assert json.loads(row["extra"])["word"] == ("fails" if abs(peak.value) > end else "at risk")
    # Sites that share a tensor have one peak, and one row.
    expected = {peak for peak in there.values() if abs(peak.value) >= least}
    found = [Peak(row["value"], row["sequence"], row["position"], row["dim"]) for row in rows]
    assert sorted(found) == sorted(expected)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    return len(rows)


def no_op_figures(rows):
    """(layer, head) -> share of idle queries and the three figures, of rows of ``no_op_head``."""
    return {
        (row.layer, row.head): [
            row.score,
            row.value,
            row.extra["value_norm_ratio"],
            row.extra["output_ratio"],
        ]
        for row in rows
    }
