"""Summaries without thresholds on real models, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from outlierscope.criteria.summaries import model_summary


@pytest.mark.parametrize("site", ["mlp_out", "resid_post", "attn_in", "z"])
def test_inf_norm_and_kurtosis(run, site):
    inf_norms, kurtoses, channel_kurtoses = [], [], []
    for _, sequences in sorted(run.direct.sites[site].items()):
        tensors = [values.double().numpy() for values in sequences]
        inf_norms.append(np.mean([np.abs(x).max() for x in tensors]))
        kurtoses.append(np.mean([((x - x.mean()) ** 4).mean() / x.std(ddof=1) ** 4 for x in tensors]))
        squares = (np.concatenate(tensors) ** 2).mean(0)  # [d]
        channel_kurtoses.append((squares**2).mean() / squares.mean() ** 2)
    (stack,) = run.scan.evidence.anatomy.stacks
    summary = model_summary(run.scan.evidence, stack, site)
    assert [layer.inf_norm for layer in summary.layers] == pytest.approx(inf_norms, rel=1e-6)
    assert [layer.kurtosis for layer in summary.layers] == pytest.approx(kurtoses, rel=1e-6)
    assert [layer.channel_kurtosis for layer in summary.layers] == pytest.approx(channel_kurtoses, rel=1e-6)
    assert {layer.sequences for layer in summary.layers} == {len(sequences)}
    assert summary.max_inf_norm == pytest.approx(max(inf_norms), rel=1e-6)
    assert summary.mean_kurtosis == pytest.approx(np.mean(kurtoses), rel=1e-6)
