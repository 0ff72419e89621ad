"""Lists of wholes whose elements hold the blocks."""

import torch
import transformers

from outlierscope.model.discovery.blocks import find_block_lists
from outlierscope.model.discovery.discover import discover
from outlierscope.model.discovery.example_inputs import example_inputs
from outlierscope.model.discovery.whole_pass import record_whole
from outlierscope.model.sites import Site
from outlierscope.model.taps import Taps


def detector():
    """Its encoder is a list of one whole, which takes an image [B, d, H, W] and hands tokens to a list of one block."""
    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 32, 32],
        encoder_ffn_dim=64,
        encoder_attention_heads=4,
        encoder_layers=1,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=64,
        decoder_attention_heads=4,
        decoder_layers=2,
        num_queries=10,
        num_denoising=0,
        num_labels=4,
    )
    return transformers.RTDetrModel(config).eval()


def test_blocks_within_a_whole_that_is_no_block():
    model = detector()
    anatomy = discover(model)
    assert anatomy.proved, anatomy.reason
    assert [layer.module for layer in anatomy.stacks["vision"].layers] == ["encoder.aifi.0.layers.0"]
    assert len(anatomy.stacks["vision_2"].layers) == 2
    seen, plain = {}, []
    block = model.encoder.aifi[0].layers[0]
    hook = block.register_forward_hook(lambda _module, args, out: plain.extend([args[0], out]))
    sites = [
        Site("vision", 0, name) for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    ]
    with torch.no_grad(), Taps(model, anatomy, sites, lambda site, t: seen.__setitem__(site.name, t.clone())):
        model(pixel_values=torch.randn(2, 3, 64, 64))
    hook.remove()
    entering, leaving = plain
    assert torch.equal(seen["embed"], entering)  # what resid_pre of the first block is
    assert torch.equal(seen["resid_post"], leaving)
    with torch.no_grad():
        middle = block.self_attn_layer_norm(entering + seen["attn_out"])
        assert torch.equal(seen["resid_mid"], middle)
        assert torch.equal(seen["mlp_out"], block.mlp(middle))


def test_lists_of_the_parts_of_one_block_are_no_inner_lists():
    model = transformers.T5Model(
        transformers.T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8)
    ).eval()
    lists = find_block_lists(model, record_whole(model, example_inputs(model)))
    assert {found.container for found in lists} == {"encoder.block", "decoder.block"}
    assert all(found.inner == () for found in lists)
