"""Tokens in windows and among others: found again row by row, and sites that stay in order."""

import pytest
import torch
import transformers
from torch import nn

from outlierscope.errors import ProofError
from outlierscope.model.anatomy import Tap
from outlierscope.model.discovery.discover import discover
from outlierscope.model.discovery.layers import GROUPED_OTHERWISE, block_anatomy
from outlierscope.model.discovery.proof import Addition, Proposal, prove_block
from outlierscope.model.discovery.regrouping import find_rows, in_order
from outlierscope.model.discovery.trial import RandomParameters, run_trial
from outlierscope.model.sites import Site
from outlierscope.model.taps import Taps


@pytest.mark.parametrize("others", [0, 1, 7])
def test_rows_are_found_where_they_were_put(others):
    torch.manual_seed(others)
    among = torch.randn(40 + others, 8)
    rows = torch.randperm(len(among))[:40]
    wanted = among[rows] + 1e-7 * torch.randn(40, 8)
    assert torch.equal(find_rows(wanted, among), rows)
    assert torch.equal(in_order(among.view(1, -1, 8), rows), among[rows])
    assert in_order(among, None) is among


def test_rows_that_are_not_there_or_stand_for_two_are_not_found():
    torch.manual_seed(0)
    among = torch.randn(20, 8)
    changed = among.clone()
    changed[7, 3] += 1e-3
    assert find_rows(changed, among) is None
    assert find_rows(among[[0, 1, 1]], among) is None
    assert find_rows(among, among[:19]) is None
    assert find_rows(among[:0], among) is None
    assert find_rows(among[:1], among[:1]).tolist() == [0]


def windowed():
    """Images of 6 x 6 patches; the first layer attends in windows of 4 x 4, padded, the second to all."""
    torch.manual_seed(0)
    config = transformers.Sam3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=24,
        pretrain_image_size=24,
        patch_size=4,
        window_size=4,
        global_attn_indexes=[1],
    )
    return transformers.Sam3ViTModel(config).eval()


def test_a_block_that_attends_in_windows_is_proved_and_tells_which_sites_are_not_observed():
    model = windowed()
    anatomy = discover(model)
    assert anatomy.proved, anatomy.reason
    first, second = anatomy.stacks["vision"].layers
    assert first.missing == dict.fromkeys(("attn_in", "attn_out", "z"), GROUPED_OTHERWISE)
    assert "resid_mid = resid_pre + attn_out" in first.identities
    assert {"attn_in", "attn_out", "z"} <= second.taps.keys()
    assert not second.missing
    sites = [Site("vision", 0, name) for name in ("resid_mid", "mlp_in", "mlp_out", "resid_post")]
    seen, given, written = {}, [], []
    hooks = [
        model.layers[0].layer_norm2.register_forward_hook(lambda _m, args, out: given.extend([args[0], out])),
        model.layers[0].mlp.register_forward_hook(lambda _m, _args, out: written.append(out)),
    ]
    with torch.no_grad(), Taps(model, anatomy, sites, lambda site, t: seen.__setitem__(site.name, t.clone())):
        model(torch.randn(3, 3, 24, 24))
    for hook in hooks:
        hook.remove()
    plain = {"resid_mid": given[0], "mlp_in": given[1], "mlp_out": written[0]}
    for name, tensor in plain.items():
        assert torch.equal(seen[name], tensor.reshape(3, 36, 32)), name
    assert (seen["resid_mid"] + seen["mlp_out"] - seen["resid_post"]).abs().max() < 1e-5


class WithGuests(nn.Module):
    """Two tokens are put beside the block's own for its mixing branch and taken away again."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, hidden):  # [B, T, d]
        guests = hidden[:, :2] * 2.0
        whole = torch.cat([guests, hidden], 1)
        mixed = self.mix(whole + whole.mean(1, keepdim=True))
        hidden = hidden + mixed[:, 2:]
        return hidden + self.down(torch.relu(self.up(hidden)))


class Root(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = WithGuests()


def test_an_order_in_which_a_row_stands_for_two_tokens_is_refused():
    root = Root()
    entrance, leaving = Tap("block", "input"), Tap("block", "output")
    hidden = torch.randn(2, 5, 8)
    trial = run_trial(root, "block", entrance, leaving, ((hidden,), {}), RandomParameters())
    rows = torch.cat([torch.arange(2, 7), torch.arange(9, 14)])

    def proposal(rows):
        middle = Tap("block.up", "input")
        return Proposal(
            (
                Addition(
                    entrance,
                    {"mixer_out": Tap("block.mix", "output")},
                    middle,
                    middle,
                    rows={"mixer_out": rows},
                ),
                Addition(middle, {"mlp_out": Tap("block.down", "output")}, leaving, leaving),
            )
        )

    errors = prove_block(trial, proposal(rows))
    assert max(errors.values()) < 1e-5
    with pytest.raises(
        ProofError, match="mixer_out: two tokens of the residual stream are said to be the same row"
    ):
        prove_block(trial, proposal(rows.clamp(min=3)))
    with pytest.raises(ProofError, match=r"resid_mid = resid_pre \+ mixer_out does not hold"):
        prove_block(trial, proposal(rows.flip(0)))


def test_tokens_among_others_that_are_taken_away_again():
    entrance, leaving = Tap("block", "input"), Tap("block", "output")
    trial = run_trial(Root(), "block", entrance, leaving, ((torch.randn(2, 5, 8),), {}), RandomParameters())
    layer = block_anatomy(trial, 0, "vision")
    assert layer.missing["mixer_out"] == GROUPED_OTHERWISE
    assert layer.taps["resid_mid"] == Tap("block.up", "input")
    assert layer.taps["mlp_out"] == Tap("block.down", "output")
    assert {
        "resid_mid = resid_pre + mixer_out",
        "resid_post = resid_mid + mlp_out",
    } <= layer.identities.keys()
