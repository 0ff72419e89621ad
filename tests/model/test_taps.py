"""Taps read what passes, in order, and are gone afterwards whatever happens."""

import pytest
import torch

from outlierscope.model.discovery.discover import discover
from outlierscope.model.discovery.example_inputs import example_inputs
from outlierscope.model.sites import Site
from outlierscope.model.taps import Taps
from tests.model.families import BY_NAME


def hooks(model):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.fixture(scope="module")
def llama():
    model = BY_NAME["llama"].build()
    return model, discover(model)


def test_sites_come_in_the_order_in_which_data_passes(llama):
    model, anatomy = llama
    names = (
        "embed",
        "attn_in",
        "z",
        "attn_out",
        "resid_mid",
        "mlp_in",
        "mlp_post",
        "mlp_out",
        "resid_post",
        "final_norm",
    )
    order = []
    with Taps(model, anatomy, reversed(anatomy.sites(*names)), lambda site, _: order.append(site)):
        model(**example_inputs(model))
    layer = [Site("decoder", 0, name) for name in names[1:-1]]
    next_layer = [Site("decoder", 1, name) for name in names[1:-1]]
    assert order == [Site("decoder", None, "embed"), *layer, *next_layer, Site("decoder", None, "final_norm")]


def test_an_alias_is_read_once_at_its_canonical_site(llama):
    model, anatomy = llama
    asked = [Site("decoder", 1, "resid_pre"), Site("decoder", 0, "resid_post")]
    seen = []
    with Taps(model, anatomy, asked, lambda site, _: seen.append(site)):
        model(**example_inputs(model))
    assert seen == [Site("decoder", 0, "resid_post")]


def test_outputs_are_bit_identical_under_taps(llama):
    model, anatomy = llama
    inputs = example_inputs(model)
    sites = [site for site in anatomy.sites() if anatomy.has(site)]
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
        with Taps(model, anatomy, sites, lambda _site, _tensor: None):
            tapped = model(**inputs).last_hidden_state
    assert torch.equal(plain, tapped)


def test_hooks_are_removed_and_the_exception_arrives(llama):
    model, anatomy = llama

    def fail(site, _tensor):
        raise ArithmeticError(f"at {site}")

    def run():
        with Taps(model, anatomy, [Site("decoder", 1, "z")], fail):
            assert hooks(model) > 0
            model(**example_inputs(model))

    assert hooks(model) == 0
    with pytest.raises(ArithmeticError, match=r"at decoder\.1\.z"):
        run()
    assert hooks(model) == 0


def test_hooks_are_removed_when_entering_fails(llama):
    model, anatomy = llama
    taps = Taps(model, anatomy, [Site("decoder", 0, "z"), Site("decoder", 1, "z")], lambda _s, _t: None)
    taken, model.layers[1].self_attn.o_proj = model.layers[1].self_attn.o_proj, torch.nn.Identity()
    del model.layers[1].self_attn.o_proj
    try:
        with pytest.raises(AttributeError), taps:
            pass
        assert hooks(model) == 0
    finally:
        model.layers[1].self_attn.o_proj = taken


def test_an_unknown_site_is_refused(llama):
    model, anatomy = llama
    with pytest.raises(KeyError, match=r"site decoder\.0\.cross_out is not observed in this model"):
        Taps(model, anatomy, [Site("decoder", 0, "cross_out")], lambda _s, _t: None)


def test_a_flattened_batch_is_unfolded():
    """In OPT everything around the MLP is [B * T, d]."""
    model = BY_NAME["opt"].build()
    anatomy = discover(model)
    inputs = example_inputs(model) | {"input_ids": torch.arange(3, 24).reshape(3, 7)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    seen, plain = {}, []
    sites = [Site("decoder", 0, name) for name in ("resid_mid", "mlp_in", "mlp_post", "mlp_out")]
    handle = model.decoder.layers[0].fc2.register_forward_hook(lambda _m, _a, output: plain.append(output))
    with Taps(model, anatomy, sites, lambda site, tensor: seen.__setitem__(site.name, tensor)):
        model(**inputs)
    handle.remove()
    assert plain[0].shape == (21, 32)
    assert [tuple(seen[site.name].shape) for site in sites] == [
        (3, 7, 32),
        (3, 7, 32),
        (3, 7, 64),
        (3, 7, 32),
    ]
    assert torch.equal(seen["mlp_out"].reshape(21, 32), plain[0])


def test_factor_and_scale_parameter_are_applied():
    granite, beit = BY_NAME["granite"].build(), BY_NAME["beit"].build()
    for model, site, module, scale in (
        (granite, Site("decoder", 1, "mlp_out"), "layers.1.mlp.down_proj", torch.tensor(0.22)),
        (beit, Site("vision", 1, "mlp_out"), "layers.1.mlp.fc2", beit.layers[1].lambda_2.detach()),
    ):
        seen, plain = [], []
        anatomy = discover(model)
        handle = model.get_submodule(module).register_forward_hook(lambda _m, _a, o, to=plain: to.append(o))
        with torch.no_grad(), Taps(model, anatomy, [site], lambda _s, tensor, to=seen: to.append(tensor)):
            model(**example_inputs(model))
        handle.remove()
        assert torch.allclose(seen[0], plain[0] * scale, rtol=1e-6)


def test_tensors_are_free_of_gradients(llama):
    model, anatomy = llama
    seen = []
    with Taps(model, anatomy, [Site("decoder", 0, "z")], lambda _s, tensor: seen.append(tensor)):
        model(**example_inputs(model))
    assert not seen[0].requires_grad
