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
