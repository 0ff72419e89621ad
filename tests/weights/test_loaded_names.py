"""Names, experts and parts are those of the model that transformers loads, and so are the figures of each."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter

import outlierscope as osc
from outlierscope.model.files.shards import TensorEntry, read_shards
from outlierscope.model.files.source import find_source
from outlierscope.weights.checkpoint import open_checkpoint
from outlierscope.weights.loaded_names import LoadedNames, LoadedParameter, loaded_names
from outlierscope.weights.parts import find_parts
from outlierscope.weights.tracing import Piece
from tests.model.tiny import edit_config, edit_weights, save, tiny_bert, tiny_gpt2, tiny_llama

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
IMAGE = {"image_size": 32, "patch_size": 8}

MODELS = {
    "Mixtral": ({**GROUPED, "num_local_experts": 3}, "MixtralForCausalLM"),
    "Qwen2Moe": (
        {**GROUPED, "num_experts": 3, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 56},
        "Qwen2MoeForCausalLM",
    ),
    "GraniteMoe": ({**GROUPED, "num_local_experts": 3}, "GraniteMoeForCausalLM"),
    "GptOss": ({**GROUPED, "num_local_experts": 3, "head_dim": 8}, "GptOssForCausalLM"),
    "Phi3": ({**GROUPED, "pad_token_id": 0, "eos_token_id": 1}, "Phi3ForCausalLM"),
    "DeepseekV3": (
        {
            **SIZES,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 40,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        "DeepseekV3ForCausalLM",
    ),
    "Llama4Text": (
        {**GROUPED, "intermediate_size_mlp": 56, "num_local_experts": 3, "head_dim": 8},
        "Llama4ForCausalLM",
    ),
    "Gemma3": (
        {
            "text_config": {**GROUPED, "head_dim": 8},
            "vision_config": {**SIZES, **IMAGE},
            "mm_tokens_per_image": 4,
        },
        "Gemma3ForConditionalGeneration",
    ),
    "T5": (
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64},
        "T5ForConditionalGeneration",
    ),
    "Bert": (SIZES, "BertForMaskedLM"),
    "ViT": ({**SIZES, **IMAGE}, "ViTModel"),
    "CLIPText": (SIZES, "CLIPTextModel"),
}


def make(family):
    settings, name = MODELS[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    return getattr(transformers, name)(config).eval()


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """Folder of a tiny model, and the model as transformers loads it from there."""
    folder = save(make(request.param), tmp_path_factory.mktemp(request.param))
    return folder, getattr(transformers, MODELS[request.param][1]).from_pretrained(folder)


def loaded_matrix(parameters, summary, part, checkpoint):
    """W [out, in] of what a summary is of, cut from the loaded model's parameter."""
    weight = parameters[summary.parameter].detach()
    weight = weight if summary.expert is None or weight.ndim == 2 else weight[summary.expert]
    turned = stored_transposed(checkpoint, part)
    weight = weight.T if turned else weight
    rows, columns = (slice(*span) if span else slice(None) for span in (summary.rows, summary.columns))
    return weight[rows, columns]


def stored_transposed(checkpoint, part):
    """Whether the loaded parameter is [in, out]: as stored, unless loading swaps the axes."""
    (parameter,) = [item for item in checkpoint.names.parameters if item.name == part.place.parameter]
    swapped = any(
        piece.axes[-2] == len(piece.size) - 1 for piece in parameter.pieces if piece.source == part.entry.name
    )
    return part.transposed != swapped


def test_every_summary_is_of_what_the_loaded_model_has(saved):
    folder, model = saved
    checkpoint = open_checkpoint(folder)
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    covered: dict[str, int] = {}
    for part, summary in checkpoint.summaries(0.0):
        assert summary.parameter in parameters
        assert summary.module in modules
        assert summary.stored == part.entry.name
        if summary.role == "norm":
            assert torch.equal(summary.values, parameters[summary.parameter].detach())
            continue
        matrix = loaded_matrix(parameters, summary, part, checkpoint).double()
        covered[summary.parameter] = covered.get(summary.parameter, 0) + matrix.numel()
        ratios = matrix.abs().amax(0) / matrix.abs().mean(0)  # [in]
        kept = summary.column_index if summary.expert is not None else torch.arange(len(ratios))
        assert_close(summary.column_ratio.double(), ratios[kept], rtol=1e-6, atol=0.0)
        assert_close(summary.column_figures.std, float(ratios.std()), rtol=1e-5, atol=1e-9)
        extreme = matrix[summary.column_argmax, kept]
        assert torch.equal(extreme.float(), summary.column_extreme)
        ratios = matrix.abs().amax(1) / matrix.abs().mean(1)  # [out]
        kept = summary.row_index if summary.expert is not None else torch.arange(len(ratios))
        assert_close(summary.row_ratio.double(), ratios[kept], rtol=1e-6, atol=0.0)
    # All of each parameter was looked at, once.
    assert covered == {name: parameters[name].numel() for name in covered}
    assert len(covered) >= 2 * 4
    notes = checkpoint.describe()["notes"]
    assert (notes["names"], notes["named_as_stored"]) == ("of the loaded model", {})


def test_the_followed_pieces_rebuild_the_loaded_parameters(saved):
    folder, model = saved
    stored = load_file(folder / "model.safetensors")
    expected = model.state_dict()
    for parameter in loaded_names(find_source(folder), read_shards(folder)).parameters:
        rebuilt = torch.full(parameter.shape, torch.nan)
        for piece in parameter.pieces:
            box = stored[piece.source][
                tuple(slice(a, a + n) for a, n in zip(piece.start, piece.size, strict=True))
            ]
            kept = [axis for axis in piece.axes if axis is not None]
            box = box.permute(kept).reshape([piece.extent(axis) for axis in range(len(piece.axes))])
            rebuilt[
                tuple(slice(begin, begin + piece.extent(axis)) for axis, begin in enumerate(piece.place))
            ] = box
        assert torch.equal(rebuilt, expected[parameter.name]), parameter.name


def test_gate_and_up_of_an_expert_are_matrices_of_their_own(tmp_path):
    folder = save(make("Mixtral"), tmp_path)
    edit_weights(
        folder,
        lambda tensors: tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"][7].__setitem__(5, 3.0),
    )
    scan = osc.scan_weights(
        folder, osc.ScanSettings(only=("weight",), thresholds={"weight_row": {"sigma": 5.0}})
    )
    rows = [row for row in scan.findings.to_pylist() if row["criterion"] == "weight_row"]
    (row,) = [row for row in rows if row["layer"] == 1 and row["score"] > 6 and row["expert"] == 2]
    assert row["parameter"] == "model.layers.1.mlp.experts.gate_up_proj"
    assert row["module"] == "model.layers.1.mlp.experts"
    assert (row["row"], row["site"]) == (48 + 7, "mlp_up")
    extra = json.loads(row["extra"])
    assert extra["stored"] == "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    assert (extra["part_rows"], extra["role"]) == ([48, 96], "up")
    assert extra["top"][0][0] == 48 + 7
    model = transformers.MixtralForCausalLM.from_pretrained(folder)
    assert model.get_parameter(row["parameter"])[2, 55, 5].item() == 3.0


def test_old_names_of_norms_and_a_missing_prefix(tmp_path):
    folder = save(tiny_bert(), tmp_path)

    def age(tensors):
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
            tensors[old] = tensors.pop(name)

    edit_weights(folder, age)
    edit_config(folder, architectures=["BertForSequenceClassification"])
    found = {summary.parameter: summary for _, summary in open_checkpoint(folder).summaries(0.0)}
    name = "bert.encoder.layer.1.output.LayerNorm.weight"
    assert found[name].stored == "encoder.layer.1.output.LayerNorm.gamma"
    assert found["bert.encoder.layer.0.attention.self.query.weight"].role == "q"


def test_fused_projections_that_loading_cuts(tmp_path, monkeypatch):
    folder = save(tiny_llama(), tmp_path)

    def fuse(tensors):
        for layer in range(2):
            parts = [f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("gate", "up")]
            tensors[f"model.layers.{layer}.mlp.w13.weight"] = torch.cat([tensors.pop(name) for name in parts])

    edit_weights(folder, fuse)
    targets = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    rule = WeightConverter("mlp.w13.weight", targets, operations=[Chunk(dim=0)])
    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # fills the table
    known = conversion_mapping._checkpoint_conversion_mapping_cache
    monkeypatch.setitem(known, "LlamaForCausalLM", [rule])
    cut = list(open_checkpoint(folder).summaries(0.0))
    expected = dict(tiny_llama().named_parameters())
    gates = [(part, summary) for part, summary in cut if part.entry.name.endswith("w13.weight")]
    assert [(summary.parameter, summary.role) for _, summary in gates[:2]] == [
        ("model.layers.0.mlp.gate_proj.weight", "gate"),
        ("model.layers.0.mlp.up_proj.weight", "up"),
    ]
    for _, summary in gates:
        magnitude = expected[summary.parameter].detach().double().abs()
        assert_close(
            summary.column_ratio.double(), magnitude.amax(0) / magnitude.mean(0), rtol=1e-6, atol=0.0
        )
        assert summary.rows is None


def test_linear_layers_without_a_telling_name_are_those_of_blocks_alone(tmp_path):
    folder = save(make("DeepseekV3"), tmp_path)
    found = {part.place.parameter: part.place.role for part in open_checkpoint(folder).parts.found}
    others = [name.removeprefix("model.layers.") for name, role in found.items() if role == "other"]
    latent = ("kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj")
    assert sorted(others) == [f"{layer}.self_attn.{name}.weight" for layer in (0, 1) for name in latent]

    # A head of numbered layers is no block.
    shape = (2, 32)
    names = [f"pooler.{index}.weight" for index in (0, 1)]
    entries = [TensorEntry(name, tmp_path, "F32", shape, 0, 256) for name in names]
    parameters = [
        LoadedParameter(name, shape, (Piece.whole(name, shape),), transposed=False) for name in names
    ]
    assert find_parts(LoadedNames(parameters, {}), entries, {}).found == []


def names_note(folder):
    return open_checkpoint(folder).describe()["notes"]


def test_names_stay_as_stored_where_transformers_cannot_be_asked(tmp_path):
    folder = save(tiny_gpt2(), tmp_path)
    parameter = "transformer.h.0.mlp.c_fc.weight"
    assert (
        names_note(folder / "model.safetensors")["names"]
        == "as stored: a single file does not tell the model"
    )
    edit_config(folder, model_type="unheard_of")
    note = names_note(folder)["names"]
    assert note.startswith(f"as stored: {folder} has the unknown model_type 'unheard_of'; ")
    edit_config(folder, model_type="gpt2", n_layer=10**9)
    told = "as stored: config.json tells of 1,000,000,000 layers, and the files have 28 tensors"
    assert names_note(folder)["names"] == told
    edit_config(folder, n_layer=2, n_embd="wide")
    assert names_note(folder)["names"].startswith("as stored: transformers cannot build the model: ")
    assert parameter in {part.place.parameter for part in open_checkpoint(folder).parts.found}


def test_tensors_that_the_loaded_model_does_not_have_are_told(tmp_path):
    folder = save(tiny_llama(layers=3), tmp_path)
    edit_config(folder, num_hidden_layers=2)
    told = names_note(folder)["named_as_stored"]
    assert told["the loaded model has no such parameter"]["count"] == 7 + 2
    assert {part.place.layer for part in open_checkpoint(folder).parts.found} == {0, 1, 2, None}
    edit_config(folder, num_hidden_layers=3, intermediate_size=50)
    (reason,) = {why for why in names_note(folder)["named_as_stored"] if "layers.0.mlp.up_proj" in why}
    assert reason.endswith("model.layers.0.mlp.up_proj.weight would be [96, 32] and is [50, 32] in the model")


def test_a_tensor_that_is_there_twice_is_named_once(tmp_path):
    folder = save(tiny_bert(), tmp_path)
    name = "encoder.layer.1.output.LayerNorm.weight"
    edit_weights(folder, lambda tensors: tensors.__setitem__(f"bert.{name}", tensors[name] + 1))
    found = [part.place.parameter for part in open_checkpoint(folder).parts.found]
    assert sorted(found) == sorted(set(found))
    left_out = open_checkpoint(folder).parts.left_out
    told = [name for name, why in left_out.items() if why == "another tensor is loaded in its place"]
    assert len(told) == 1
    assert name in found


def test_no_weight_is_read_for_the_names(tmp_path):
    """The header alone decides: the same names from a file whose tensors are all zeros and sparse."""
    folder = save(make("Qwen2Moe"), tmp_path)
    before = loaded_names(find_source(folder), read_shards(folder)).parameters
    tensors = load_file(folder / "model.safetensors")
    save_file({name: torch.zeros_like(item) for name, item in tensors.items()}, folder / "model.safetensors")
    assert loaded_names(find_source(folder), read_shards(folder)).parameters == before
