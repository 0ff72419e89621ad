"""Recording and example inputs."""

import pytest
import torch
import transformers
from torch import nn

from outlierscope.errors import UserError
from outlierscope.model.anatomy import Tap
from outlierscope.model.discovery.example_inputs import example_inputs, input_candidates
from outlierscope.model.discovery.recording import attention_set_to, is_pattern, record, tensors_in
from tests.model.families import BY_NAME, IMAGE


def test_example_inputs_of_text_avoid_special_tokens():
    inputs = example_inputs(BY_NAME["llama"].build())
    assert inputs["input_ids"].shape == (2, 12)
    assert inputs["attention_mask"].eq(1).all()
    assert inputs["use_cache"] is False
    assert not set(inputs["input_ids"].flatten().tolist()) & {0, 1, 2}


def test_example_inputs_of_images_have_the_size_and_dtype_of_the_model():
    model = BY_NAME["vit"].build(image_size=[16, 32], patch_size=16).to(torch.bfloat16)
    inputs = example_inputs(model)
    assert set(inputs) == {"pixel_values"}
    assert inputs["pixel_values"].shape == (2, 3, 16, 32)
    assert inputs["pixel_values"].dtype == torch.bfloat16


def test_an_unknown_kind_of_input():
    model = transformers.ViTModel(transformers.ViTConfig(**IMAGE))
    model.main_input_name = "point_cloud"
    with pytest.raises(UserError, match="no example can be made of the input 'point_cloud' of ViTModel"):
        example_inputs(model)


def test_a_recording_restores_the_model_after_an_exception():
    model = BY_NAME["llama"].build()

    def fail():
        assert model.config._attn_implementation == "outlierscope_recording"
        raise ArithmeticError("in the pass")

    with pytest.raises(ArithmeticError, match="in the pass"):
        record(model, fail, modules=["layers.0"])
    assert model.config._attn_implementation == "sdpa"
    assert not model.layers[0]._forward_hooks


def test_the_recorded_pass_is_the_models_own():
    """The recording attention is causal and masked as the model's own is."""
    model = BY_NAME["llama"].build()
    inputs = example_inputs(model)
    inputs["attention_mask"][1, :4] = 0
    outputs = []
    with torch.no_grad():
        recording = record(model, lambda: outputs.append(model(**inputs)[0]), modules=["layers.0"])
        with attention_set_to(model, "eager"):
            expected = model(**inputs)[0]
    assert torch.equal(outputs[0], expected)
    assert [call.module for call in recording.attention] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert recording.attention[0].pattern[1, :, 4:, :4].abs().max() == 0
    assert torch.equal(
        recording.read(Tap("layers.0", "output")), recording.find(Tap("layers.0", "output")).value
    )
    with pytest.raises(KeyError, match=r"nothing passed at input 0 of layers\.7"):
        recording.find(Tap("layers.7", "input"))


def test_tensors_of_arguments_and_outputs():
    tensor = torch.zeros(1)
    assert list(tensors_in((tensor, None, tensor))) == [(0, None, tensor), (2, None, tensor)]
    assert [(index, name) for index, name, _ in tensors_in({"a": tensor, "b": 1}, names=("kwargs",))] == [
        (0, "a")
    ]
    output = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=tensor)
    assert [(index, name) for index, name, _ in tensors_in(output)] == [(0, None)]


def test_patterns_are_told_by_their_rows():
    assert is_pattern(torch.randn(2, 3, 4, 4).softmax(-1))
    assert not is_pattern(torch.randn(2, 3, 4, 4))
    assert not is_pattern(torch.ones(2, 3, 4, 4))
    assert not is_pattern(torch.randn(2, 4, 4).softmax(-1))


def test_patches_of_an_image_are_packed_where_their_grid_is_asked_for():
    class Tower(nn.Module):
        main_input_name = "pixel_values"
        config = transformers.PreTrainedConfig(patch_size=2, in_channels=3, temporal_patch_size=2)

        def forward(self, hidden_states, grid_thw):
            pass

    inputs = example_inputs(Tower())
    assert inputs["hidden_states"].shape == (4 * 4, 3 * 2 * 2 * 2)
    assert inputs["grid_thw"].tolist() == [[1, 4, 4]]


def test_all_inputs_together_are_offered_after_the_main_one():
    config = transformers.CLIPConfig()
    config.vision_config.image_size = 32
    with torch.device("meta"):
        model = transformers.CLIPModel(config)
    offered = [set(inputs) for inputs in input_candidates(model)]
    assert offered[0] == {"input_ids", "attention_mask"}
    assert {"input_ids", "attention_mask", "pixel_values"} in offered


class _Takes(nn.Module):
    """A model that takes what its signature says."""

    def __init__(self, forward, main, **config):
        super().__init__()
        self.config = transformers.PreTrainedConfig(**config)
        self.main_input_name = main
        self.forward = forward


def _states_and_mask(hidden_states: "torch.Tensor", mask: "torch.Tensor | None"):
    pass


def _states_and_session(hidden_states: "torch.Tensor", session: "torch.Tensor"):
    pass


def test_an_argument_without_default_is_none_where_its_annotation_allows_that():
    inputs = example_inputs(_Takes(_states_and_mask, "hidden_states", hidden_size=8))
    assert inputs["hidden_states"].shape == (2, 12, 8)
    assert inputs["mask"] is None
    with pytest.raises(UserError, match="no example can be made of the input 'session' of _Takes"):
        example_inputs(_Takes(_states_and_session, "hidden_states", hidden_size=8))


def _tokens(input_ids: "torch.Tensor"):
    pass


def test_token_ids_of_several_codebooks_are_offered_after_plain_ones():
    offered = input_candidates(_Takes(_tokens, "input_ids", vocab_size=50, num_codebooks=3))
    assert [tuple(inputs["input_ids"].shape) for inputs in offered] == [(2, 12), (2, 12, 3)]
    plain = input_candidates(_Takes(_tokens, "input_ids", vocab_size=50))
    assert [tuple(inputs["input_ids"].shape) for inputs in plain] == [(2, 12)]


def _sounds(input_features: "torch.Tensor", feature_lens: "torch.Tensor | None" = None):
    pass


@pytest.mark.parametrize(
    ("config", "frames"),
    [({"n_window": 5}, 10), ({"audio_length_per_tok": 8}, 96), ({"max_source_positions": 30}, 60)],
)
def test_frames_of_sound_are_as_many_as_the_config_asks_for(config, frames):
    offered = list(input_candidates(_Takes(_sounds, "input_features", num_mel_bins=4, **config)))
    assert offered[0]["input_features"].shape == (2, 4, frames)
    assert offered[0]["feature_lens"].tolist() == [frames] * 2
    joined = [inputs for inputs in offered if inputs["input_features"].ndim == 2][-1]
    assert joined["input_features"].shape == (4, int(joined["feature_lens"].sum()))


def _pixels(pixel_values: "torch.Tensor", grid_thw: "torch.Tensor | None" = None):
    pass


def test_rows_of_patches_come_with_their_grid():
    config = {"image_size": 8, "patch_size": 2, "num_channels": 3}
    rows = {(1, 16, 3, 2, 2), (16, 12), (16, 3, 2, 2), (16, 2, 2, 3), (2, 16, 12)}
    with_grid = set()
    for inputs in input_candidates(_Takes(_pixels, "pixel_values", **config)):
        shape = tuple(inputs["pixel_values"].shape)
        if "grid_thw" in inputs:
            assert inputs["grid_thw"].tolist() == [[1, 4, 4]]
            with_grid.add(shape)
    assert with_grid == rows


def _series(past_values: "torch.Tensor", past_values_padding: "torch.Tensor", freq: "torch.Tensor"):
    pass


def test_a_series_of_values_has_no_padding():
    inputs = example_inputs(_Takes(_series, "past_values", context_length=16))
    assert inputs["past_values"].shape == inputs["past_values_padding"].shape == (2, 16)
    assert inputs["past_values_padding"].eq(0).all()
    assert inputs["freq"].tolist() == [[0], [0]]
