"""What is found of many families, held against transformers' own outputs and plain arithmetic."""

import pytest
import torch
import transformers
from torch import nn

from outlierscope.errors import UserError
from outlierscope.model.discovery.discover import discover
from outlierscope.model.discovery.example_inputs import example_inputs
from outlierscope.model.discovery.layers import is_causal
from outlierscope.model.sites import Site
from outlierscope.model.taps import Taps
from tests.model.families import BY_NAME, FAMILIES, GROUPED, IMAGE, TEXT


def read_sites(model, anatomy, sites, inputs):
    """Every site's tensor in one pass, by the site that was asked for."""
    seen = {}
    with torch.no_grad(), Taps(model, anatomy, sites, lambda site, t: seen.__setitem__(site, t.clone())):
        model(**inputs)
    return {site: seen[anatomy.canonical(site)] for site in sites}


def assert_near(actual, expected, tolerance=2e-6):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
class TestFamilies:
    def test_layout_attention_and_matrices(self, family):
        anatomy = discover(family.build())
        assert anatomy.proved is True, anatomy.reason
        assert list(anatomy.stacks) == [family.stack]
        stack = anatomy.stacks[family.stack]
        assert stack.hidden_size == 32
        assert len(stack.layers) == 2
        assert ("final_norm" in stack.taps) == family.final_norm
        assert ("final_norm" in stack.missing) != family.final_norm
        for layer in stack.layers:
            assert layer.layout == family.layout
            assert layer.attention.route == family.route
            assert layer.attention.heads == 4
            assert layer.attention.key_value_heads == family.key_value_heads
            assert layer.attention.causal == (family.stack == "decoder")
            assert [m.role for m in layer.matrices if m.role != "norm"] == family.matrices.split()
            assert all(error <= 1e-5 for error in layer.identities.values())
            assert set(layer.missing) <= {"mlp_up"}

    def test_sites_against_the_outputs_of_transformers(self, family):
        """Hidden states that transformers gives, and what the branches must add up to on the real weights."""
        model = family.build()
        anatomy = discover(model)
        inputs = example_inputs(model, seed=1)
        stack = anatomy.stacks[family.stack]
        sites = [site for site in anatomy.sites() if anatomy.has(site)]
        seen = read_sites(model, anatomy, sites, inputs)
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        assert_near(seen[Site(stack.name, None, "embed")], outputs.hidden_states[0])
        assert_near(seen[Site(stack.name, 0, "resid_post")], outputs.hidden_states[1])
        if "final_norm" in stack.taps and "last_hidden_state" in outputs:
            assert_near(seen[Site(stack.name, None, "final_norm")], outputs.last_hidden_state)
        batch, tokens = outputs.hidden_states[0].shape[:2]
        assert all(tensor.shape[:2] == (batch, tokens) for tensor in seen.values())
        for index in range(2):
            at = {
                name: seen.get(Site(stack.name, index, name))
                for name in ("resid_pre", "resid_mid", "resid_post")
            }
            attention, mlp = (seen[Site(stack.name, index, name)] for name in ("attn_out", "mlp_out"))
            if family.layout == "parallel":
                assert_near(at["resid_post"], at["resid_pre"] + attention + mlp)
            elif family.layout == "post-norm":
                layer = stack.layers[index]
                norms = [model.get_submodule(m.module) for m in layer.matrices if m.role == "norm"]
                norms = list(dict.fromkeys(norms))
                with torch.no_grad():
                    assert_near(at["resid_mid"], norms[0](at["resid_pre"] + attention))
                    assert_near(at["resid_post"], norms[1](at["resid_mid"] + mlp))
            else:
                assert_near(at["resid_mid"], at["resid_pre"] + attention)
                assert_near(at["resid_post"], at["resid_mid"] + mlp)

    def test_matrices_against_the_sites_they_read(self, family):
        """``W_down mlp_post`` and ``W_o z`` on real weights, up to norms, scales and biases after them."""
        model = family.build()
        anatomy = discover(model)
        inputs = example_inputs(model, seed=2)
        for layer in anatomy.stacks[family.stack].layers:
            for role, reads, writes in (
                ("o", "z", "attn_out"),
                ("down", "mlp_post", "mlp_out"),
                ("up", "mlp_in", "mlp_up"),
            ):
                matrix = next((m for m in layer.matrices if m.role == role), None)
                if matrix is None:
                    continue
                module = model.get_submodule(matrix.module)
                tap = anatomy.tap(Site(family.stack, layer.index, writes))
                sites = [Site(family.stack, layer.index, name) for name in (reads, writes)]
                tensors = list(read_sites(model, anatomy, sites, inputs).values())
                weight = model.get_parameter(matrix.parameter)
                with torch.no_grad():
                    product = tensors[0] @ (weight if matrix.transposed else weight.T)
                    if getattr(module, "bias", None) is not None:
                        product = product + module.bias
                    if tap.module != matrix.module:  # a norm or layer scale stands between
                        product = model.get_submodule(tap.module)(product)
                    if tap.scale_parameter:
                        product = product * model.get_parameter(tap.scale_parameter)
                assert_near(tensors[1], product * tap.factor)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bert", lambda m, layer, seen: m.get_submodule(f"{layer}.attention.self.value")(seen)),
        ("gpt2", lambda m, layer, seen: m.get_submodule(f"{layer}.attn.c_attn")(seen)[..., 64:]),
        ("vit", lambda m, layer, seen: m.get_submodule(f"{layer}.attention.v_proj")(seen)),
        ("mpnet", lambda m, layer, seen: m.get_submodule(f"{layer}.attention.attn.v")(seen)),
        ("gpt-j", lambda m, layer, seen: m.get_submodule(f"{layer}.attn.v_proj")(seen)),
    ],
)
def test_z_is_the_weights_of_transformers_times_the_values(name, values):
    model = BY_NAME[name].build(attn_implementation="eager")
    anatomy = discover(model)
    stack = next(iter(anatomy.stacks.values()))
    inputs = example_inputs(model, seed=3)
    with torch.no_grad():
        patterns = model(**inputs, output_attentions=True).attentions
    for layer, pattern in zip(stack.layers, patterns, strict=True):
        sites = [Site(stack.name, layer.index, site) for site in ("attn_in", "z")]
        seen = list(read_sites(model, anatomy, sites, inputs).values())
        with torch.no_grad():
            value = values(model, layer.module, seen[0]).unflatten(-1, (4, 8)).transpose(1, 2)  # [B, H, T, E]
        assert_near(seen[1], (pattern @ value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("name", "query", "key", "value"),
    [
        ("bert", "attention.self.query", "attention.self.key", "attention.self.value"),
        ("llama", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mpnet", "attention.attn.q", "attention.attn.k", "attention.attn.v"),
        ("gpt-j", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
        ("gpt-neo", "attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        ("deberta-v2", *(f"attention.self.{part}_proj" for part in ("query", "key", "value"))),
    ],
)
def test_queries_keys_and_values_are_told_apart(name, query, key, value):
    for layer in next(iter(discover(BY_NAME[name].build()).stacks.values())).layers:
        modules = {matrix.role: matrix.module for matrix in layer.matrices}
        assert [modules[role].removeprefix(f"{layer.module}.") for role in "qkv"] == [query, key, value]


def test_a_pattern_is_causal_when_no_later_key_is_seen():
    pattern = torch.rand(1, 2, 5, 5).tril()
    assert is_causal(pattern)
    pattern[0, 1, 3, 4] = 1e-9
    assert not is_causal(pattern)
    assert not is_causal(torch.rand(1, 2, 5, 6).tril())


def test_gate_activation_and_up():
    model = BY_NAME["llama"].build()
    anatomy = discover(model)
    names = ("mlp_in", "mlp_gate", "mlp_act", "mlp_up", "mlp_post")
    sites = [Site("decoder", 1, name) for name in names]
    mlp_in, gate, act, up, post = read_sites(model, anatomy, sites, example_inputs(model)).values()
    mlp = model.layers[1].mlp
    with torch.no_grad():
        assert_near(gate, mlp.gate_proj(mlp_in))
        assert_near(act, nn.functional.silu(gate))
        assert_near(up, mlp.up_proj(mlp_in))
    assert_near(post, act * up)


def test_gate_is_told_from_up_without_an_activation_module():
    class FunctionalMlp(nn.Module):
        def __init__(self, swap):
            super().__init__()
            self.first, self.second = (nn.Linear(32, 64, bias=False) for _ in range(2))
            self.last = nn.Linear(64, 32, bias=False)
            self.swap = swap

        def forward(self, hidden):
            pair = (self.second(hidden), self.first(hidden))
            gate, up = pair if self.swap else pair[::-1]
            return self.last(nn.functional.silu(gate) * up)

    model = BY_NAME["llama"].build()
    model.layers[0].mlp, model.layers[1].mlp = FunctionalMlp(swap=False), FunctionalMlp(swap=True)
    anatomy = discover(model)
    assert anatomy.proved is True
    roles = [{m.role: m.module for m in layer.matrices} for layer in anatomy.stacks["decoder"].layers]
    assert roles[0]["gate"] == "layers.0.mlp.first"
    assert roles[1]["gate"] == "layers.1.mlp.second"
    assert "mlp_gate" in anatomy.stacks["decoder"].layers[0].taps
    assert anatomy.stacks["decoder"].layers[0].missing == {"mlp_act": "no module gives it by itself"}


def test_aliases():
    post = discover(BY_NAME["bert"].build())
    pre = discover(BY_NAME["llama"].build())
    parallel = discover(BY_NAME["phi"].build())
    assert pre.canonical(Site("decoder", 1, "resid_pre")) == Site("decoder", 0, "resid_post")
    assert pre.canonical(Site("decoder", 0, "resid_pre")) == Site("decoder", None, "embed")
    assert pre.canonical(Site("decoder", 0, "attn_in")) == Site("decoder", 0, "attn_in")
    assert post.canonical(Site("encoder", 1, "attn_in")) == Site("encoder", 0, "resid_post")
    assert post.canonical(Site("encoder", 1, "mlp_in")) == Site("encoder", 1, "resid_mid")
    assert parallel.canonical(Site("decoder", 1, "mlp_in")) == Site("decoder", 1, "attn_in")


def test_multiplier_layer_scale_and_bare_layer_scale():
    granite = discover(BY_NAME["granite"].build())
    dinov2 = discover(BY_NAME["dinov2"].build())
    beit = discover(BY_NAME["beit"].build())
    assert granite.tap(Site("decoder", 0, "attn_out")).factor == pytest.approx(0.22)
    assert granite.tap(Site("decoder", 0, "mlp_out")).factor == pytest.approx(0.22)
    assert dinov2.tap(Site("vision", 0, "mlp_out")).module == "encoder.layer.0.layer_scale2"
    assert beit.tap(Site("vision", 1, "attn_out")).scale_parameter == "layers.1.lambda_1"
    assert beit.tap(Site("vision", 1, "mlp_out")).scale_parameter == "layers.1.lambda_2"


def test_windows_of_layers():
    windows = ["sliding_attention", "full_attention"]
    model = BY_NAME["gemma3"].build(sliding_window=7, layer_types=windows)
    layers = discover(model).stacks["decoder"].layers
    assert [layer.attention.window for layer in layers] == [7, None]
    assert [layer.attention.head_dim for layer in layers] == [16, 16]


def test_norms_of_a_stack_and_of_queries_and_keys():
    stack = discover(BY_NAME["qwen3"].build()).stacks["decoder"]
    assert [matrix.parameter for matrix in stack.matrices] == ["norm.weight"]
    norms = [matrix.module.rpartition(".")[2] for matrix in stack.layers[0].matrices if matrix.role == "norm"]
    assert norms == ["input_layernorm", "post_attention_layernorm", "q_norm", "k_norm"]


def test_nothing_of_the_model_is_changed():
    model = BY_NAME["llama-head"].build()
    model.train()
    model.model.layers[0].eval()
    modes = [part.training for part in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    random_state = torch.get_rng_state()
    threads = torch.get_num_threads()
    discover(model)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [part.training for part in model.modules()] == modes
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["bert", "llama", "gemma3", "gpt2", "beit", "mpnet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_proved_in_float32(name, dtype):
    anatomy = discover(BY_NAME[name].build().to(dtype))
    assert anatomy.proved is True, anatomy.reason


def test_a_branch_that_is_not_understood_inside_is_told():
    """The residual stream is proved; what stands behind the squared MLP output is not guessed."""
    model = BY_NAME["llama"].build()
    model.layers[1].mlp.register_forward_hook(lambda _m, _a, output: output * output)
    anatomy = discover(model)
    assert anatomy.proved is True
    first, second = anatomy.stacks["decoder"].layers
    assert first.missing == {}
    why = "what stands between layers.1.mlp.down_proj and the residual stream is not known"
    assert second.missing == {"mlp_in": why, "mlp_post": why}
    assert second.taps["mlp_out"].module == "layers.1.mlp"
    assert anatomy.missing == {Site("decoder", 1, "mlp_in"): why, Site("decoder", 1, "mlp_post"): why}


def test_a_block_whose_output_is_scaled_is_refused():
    model = BY_NAME["llama"].build()
    model.layers[1].register_forward_hook(lambda _m, _a, output: torch.tanh(output))
    anatomy = discover(model)
    assert anatomy.proved is False
    assert anatomy.reason == "decoder: layer 1: the output of layers.1 is no sum of what passed before it"
    second = anatomy.stacks["decoder"].layers[1]
    assert second.layout == "unknown"
    assert "mlp_out" not in second.taps
    assert second.missing["mlp_out"] == "the output of layers.1 is no sum of what passed before it"


def test_hidden_states_changed_between_blocks_are_told():
    model = BY_NAME["llama"].build()
    model.layers[1].register_forward_pre_hook(lambda _m, args: (args[0] * 2, *args[1:]))
    anatomy = discover(model)
    assert anatomy.proved is False
    assert "hidden states change between decoder.0.resid_post and block 1" in anatomy.reason


class _Between(nn.Module):
    """A module outside of the blocks that changes what one hands to the next."""

    def __init__(self, blocks, added):
        super().__init__()
        self.mixer = nn.Linear(32, 32)
        self.added = added
        blocks[1].register_forward_pre_hook(self.change, prepend=True)

    def change(self, _module, args):
        return (self.mixer(args[0]) + self.added * args[0], *args[1:])


@pytest.mark.parametrize(
    ("added", "identity"),
    [
        (0, "resid_pre = output of between.mixer"),
        (1, "resid_pre = decoder.0.resid_post + output of between.mixer"),
    ],
)
def test_a_module_between_blocks_that_changes_hidden_states_is_named(added, identity):
    model = BY_NAME["llama"].build()
    model.between = _Between(model.layers, added)
    anatomy = discover(model)
    assert anatomy.proved is True, anatomy.reason
    second = anatomy.stacks["decoder"].layers[1]
    assert second.identities[identity] == 0.0
    assert "resid_pre" in second.taps
    assert "resid_pre" not in second.aliases


@pytest.mark.parametrize("shape", ["kept", "pooled"])
def test_what_a_module_between_blocks_gives_must_come_from_the_block_before(shape):
    model = BY_NAME["llama"].build()
    model.between = nn.Linear(32, 32) if shape == "kept" else nn.MaxPool1d(1)

    def restart(_module, args):
        fresh = torch.ones_like(args[0]) if shape == "kept" else args[0][:, :1]
        return (model.between(fresh), *args[1:])

    model.layers[1].register_forward_pre_hook(restart, prepend=True)
    anatomy = discover(model)
    assert anatomy.proved is False


class _OtherTokens(nn.Module):
    """An MLP beside an own one for tokens of a kind that no example holds."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp
        self.other = nn.Linear(32, 32)

    def forward(self, hidden):
        self.other(hidden[:, :0])
        return self.mlp(hidden)


def test_a_module_that_was_given_no_tokens_is_passed_over():
    model = BY_NAME["llama"].build()
    for layer in model.layers:
        layer.mlp = _OtherTokens(layer.mlp)
    anatomy = discover(model)
    assert anatomy.proved is True, anatomy.reason
    assert not any("other" in matrix.module for matrix in anatomy.stacks["decoder"].layers[0].matrices)


class _Reshaping(nn.Module):
    """Not a block: it halves the number of tokens."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden, **arguments):
        return self.block(hidden, **arguments)[:, ::2]


def test_a_module_that_reshapes_hidden_states_has_a_number_and_no_sites():
    torch.manual_seed(0)
    encoder = transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            conv_dim=[8],
            conv_kernel=[10],
            conv_stride=[100],
            num_feat_extract_layers=1,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    ).eval()
    encoder.encoder.layers[1] = _Reshaping(encoder.encoder.layers[1])
    anatomy = discover(encoder)
    assert anatomy.proved is True, anatomy.reason
    before, after = anatomy.stacks["audio"], anatomy.stacks["audio_2"]
    assert [layer.module for layer in before.layers] == ["encoder.layers.0"]
    assert [layer.module for layer in after.layers] == [f"encoder.layers.{number}" for number in (1, 2, 3)]
    reason = "hidden states do not enter and leave encoder.layers.1 in one shape"
    assert set(after.layers[0].missing.values()) == {reason}
    assert not after.layers[0].taps
    assert not after.layers[0].aliases
    assert after.layers[2].aliases["resid_pre"] == Site("audio_2", 1, "resid_post")
    assert anatomy.missing[Site("audio_2", 0, "resid_post")] == reason


def test_a_list_of_nothing_but_reshaping_modules_is_not_proved():
    torch.manual_seed(0)
    model = BY_NAME["llama"].build()
    model.layers = nn.ModuleList([_Reshaping(model.layers[0])])
    model.config.num_hidden_layers = 1
    anatomy = discover(model)
    assert anatomy.proved is False
    assert anatomy.reason == "decoder: hidden states do not enter and leave layers.0 in one shape"


@pytest.mark.parametrize(
    ("model", "config", "reason"),
    [
        ("ResNetModel", {"hidden_sizes": [8, 8], "depths": [1, 1], "embedding_size": 8}, "has no stack"),
    ],
)
def test_models_without_attention(model, config, reason):
    kind = getattr(transformers, model)
    anatomy = discover(kind(kind.config_class(**config)))
    assert anatomy.proved is None
    assert reason in anatomy.reason
    assert anatomy.stacks == {}


def test_a_module_without_a_config():
    with pytest.raises(UserError, match="Linear has no config; give a Hugging Face transformers model"):
        discover(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("model", "config", "proved"),
    [
        ("MixtralModel", GROUPED | {"num_local_experts": 4}, True),
        (
            "T5Model",
            {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
            True,
        ),
        ("AlbertModel", TEXT | {"embedding_size": 16}, True),
        (
            "SwinModel",
            {
                "image_size": 32,
                "patch_size": 2,
                "embed_dim": 16,
                "depths": [2, 2],
                "num_heads": [2, 4],
                "window_size": 4,
            },
            None,
        ),
        ("CLIPModel", {"text_config": TEXT, "vision_config": IMAGE}, True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_understood_yet_is_told(model, config, proved):
    kind = getattr(transformers, model)
    torch.manual_seed(0)
    anatomy = discover(kind(kind.config_class(**config)))
    assert proved is None or anatomy.proved is proved
    assert anatomy.proved or anatomy.reason
    for site in anatomy.missing:
        assert not anatomy.has(site)


def check_hidden_states(model, layers, inputs):
    anatomy = discover(model)
    assert anatomy.proved is True, anatomy.reason
    stack = next(iter(anatomy.stacks.values()))
    assert len(stack.layers) == layers
    sites = [
        Site(stack.name, index, name)
        for index in range(layers)
        for name in ("resid_mid", "mlp_out", "resid_post")
    ]
    seen = read_sites(model, anatomy, sites, inputs)
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    for index in range(layers - 1):  # the last one comes after the final norm
        assert_near(seen[Site(stack.name, index, "resid_post")], hidden[index + 1])
    return anatomy


def test_blocks_that_share_a_module_are_layers_one_call_each():
    torch.manual_seed(0)
    model = transformers.AlbertModel(transformers.AlbertConfig(**TEXT | {"embedding_size": 16})).eval()
    anatomy = check_hidden_states(model, 2, example_inputs(model, seed=4))
    layers = anatomy.stacks["encoder"].layers
    assert [layer.module for layer in layers] == ["encoder.albert_layer_groups.0.albert_layers.0"] * 2
    assert [layer.attention.call for layer in layers] == [0, 1]
    assert {tap.call for tap in layers[1].taps.values()} == {1}


def test_towers_that_one_pass_does_not_reach_are_fed_alone():
    """A model of text and images whose text may come without images: its vision tower is run by itself."""
    torch.manual_seed(0)
    vision = {"model_type": "clip_vision_model"} | IMAGE
    text = {"model_type": "llama"} | GROUPED
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=7)
    model = transformers.LlavaModel(config).eval()
    anatomy = discover(model)
    assert anatomy.proved is True, anatomy.reason
    assert {name: stack.entry for name, stack in anatomy.stacks.items()} == {
        "decoder": "",
        "vision": "vision_tower",
    }
    assert anatomy.stacks["vision"].layers[0].module == "vision_tower.encoder.layers.0"
    tower = model.vision_tower
    inputs = example_inputs(tower, seed=4)
    sites = [Site("vision", index, "resid_post") for index in range(2)]
    seen = {}
    with torch.no_grad(), Taps(model, anatomy, sites, lambda site, t: seen.__setitem__(site, t.clone())):
        hidden = tower(**inputs, output_hidden_states=True).hidden_states
    for index, site in enumerate(sites):
        assert_near(seen[site], hidden[index + 1])


def test_minilm(minilm_folder):
    model = transformers.AutoModel.from_pretrained(minilm_folder).eval()
    anatomy = check_hidden_states(model, 6, example_inputs(model, seed=4))
    assert {layer.layout for layer in anatomy.stacks["encoder"].layers} == {"post-norm"}


def test_vit_tiny(shared_model):
    model = transformers.AutoModelForImageClassification.from_pretrained(shared_model("vit-tiny-patch16-224"))
    anatomy = check_hidden_states(model.eval(), 12, example_inputs(model, seed=4))
    assert anatomy.stacks["vision"].layers[7].attention.heads == 3


def test_stories260k(shared_model):
    model = transformers.AutoModelForCausalLM.from_pretrained(shared_model("stories260k")).eval()
    anatomy = check_hidden_states(model, 5, example_inputs(model, seed=4))
    assert anatomy.stacks["decoder"].layers[0].attention.key_value_heads == 4


@pytest.mark.slow
def test_gemma(gemma_folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(gemma_folder).eval()
    anatomy = check_hidden_states(model, 18, example_inputs(model, seed=4))
    layers = anatomy.stacks["decoder"].layers
    assert {layer.layout for layer in layers} == {"sandwich"}
    assert [layer.index for layer in layers if layer.attention.window is None] == [5, 11, 17]
    assert layers[0].attention.window == 512
