"""Loading: what comes out of a sound checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
)

from outlierscope.errors import UserError
from outlierscope.model.load import load, wrap
from outlierscope.model.loading_report import HEADS
from tests.model.tiny import edit_config, edit_weights, save, tiny_bert, tiny_gpt2, tiny_llama


def test_names_are_those_of_the_checkpoint_and_the_head_is_not_run(tmp_path):
    folder = save(tiny_llama(), tmp_path)
    observed = load(folder)
    assert type(observed.full).__name__ == "LlamaForCausalLM"
    assert type(observed.module).__name__ == "LlamaModel"
    assert observed.prefix == "model."
    full = dict(observed.full.named_modules())
    for name, module in observed.module.named_modules():
        if name:
            assert full[observed.prefix + name] is module
    assert not any(module.training for module in observed.full.modules())
    assert (observed.kind, observed.max_length, observed.dtype) == ("text", 128, torch.float32)
    assert observed.device == torch.device("cpu")
    assert observed.notes == {"newly_initialized": [], "unused": []}


@pytest.mark.parametrize(
    ("make", "prefix", "kind", "length"),
    [
        (tiny_bert, "", "text", 40),
        (tiny_gpt2, "transformer.", "text", 64),
        (tiny_llama, "model.", "text", 128),
    ],
)
def test_wrap_tells_the_same_as_load(tmp_path, make, prefix, kind, length):
    live = wrap(make(), name="mine")
    loaded = load(save(make(), tmp_path))
    for observed in (live, loaded):
        assert (observed.prefix, observed.kind, observed.max_length) == (prefix, kind, length)
    assert live.fingerprint() == loaded.fingerprint()
    assert (live.source, loaded.source) == ("live", str(tmp_path))


def test_fingerprint_sees_a_change_of_any_sort(tmp_path):
    reference = wrap(tiny_llama()).fingerprint()
    assert wrap(tiny_llama()).fingerprint() == reference
    changed = tiny_llama()
    changed.model.layers[1].mlp.down_proj.weight.data += 1e-3
    assert wrap(changed).fingerprint() != reference
    assert wrap(tiny_llama(layers=3)).fingerprint() != reference
    assert wrap(tiny_llama().to(torch.bfloat16)).fingerprint() != reference
    other_setting = tiny_llama()
    other_setting.config.rms_norm_eps = 0.5
    assert wrap(other_setting).fingerprint() != reference


def test_dtype_is_the_checkpoints_unless_asked_for(tmp_path):
    folder = save(tiny_llama().to(torch.bfloat16), tmp_path)
    assert load(folder).dtype == torch.bfloat16
    assert load(folder, dtype="float32").dtype == torch.float32
    assert load(folder, dtype="float16").dtype == torch.float16


def test_class_is_automatic_where_the_config_names_none(tmp_path):
    folder = save(tiny_bert(), tmp_path)
    edit_config(folder, architectures=None)
    assert type(load(folder).full).__name__ == "BertModel"
    edit_config(folder, architectures=["NoSuchModel"])
    assert type(load(folder).full).__name__ == "BertModel"


def test_shards(tmp_path):
    folder = save(tiny_llama(), tmp_path, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert load(folder).fingerprint() == wrap(tiny_llama()).fingerprint()


def test_position_tables_that_begin_after_the_padding_index():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    roberta = RobertaModel(RobertaConfig(vocab_size=64, max_position_embeddings=130, **sizes))
    assert wrap(roberta).max_length == 128


def test_image_model_with_its_processor(tmp_path, shared_model):
    observed = load(shared_model("vit-tiny-patch16-224"))
    assert (observed.kind, observed.prefix, observed.max_length) == ("image", "vit.", None)
    pixels = observed.processor(torch.zeros(3, 30, 40, dtype=torch.uint8).numpy(), return_tensors="pt")[
        "pixel_values"
    ]
    assert pixels.shape == (1, 3, 224, 224)


def test_text_model_with_its_tokenizer(minilm_folder):
    observed = load(minilm_folder)
    assert observed.processor.convert_ids_to_tokens(observed.processor("a test").input_ids)[0] == "[CLS]"
    assert (observed.kind, observed.max_length, observed.processor_problem) == ("text", 512, "")
    described = observed.describe()
    assert described["parameters"] == sum(parameter.numel() for parameter in observed.full.parameters())
    assert (described["class"], described["dtype"], described["kind"]) == ("BertModel", "float32", "text")
    assert described["attention_implementation"] == "sdpa"


def test_a_missing_tokenizer_is_no_error_but_told(tmp_path):
    observed = load(save(tiny_llama(), tmp_path))
    assert observed.processor is None
    assert observed.processor_problem
    assert "\n" not in observed.processor_problem


def test_missing_pooler_and_head_are_noted(tmp_path):
    folder = save(tiny_bert(), tmp_path)
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    assert load(folder).notes["newly_initialized"] == ["pooler.dense.bias", "pooler.dense.weight"]
    edit_config(folder, architectures=["BertForMaskedLM"])
    observed = load(folder)
    assert isinstance(observed.full, BertForMaskedLM)
    assert observed.prefix == "bert."
    assert observed.notes["newly_initialized"]
    assert all(name.startswith("cls.") for name in observed.notes["newly_initialized"])


def test_missing_image_head_is_noted(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    folder = save(ViTForImageClassification(ViTConfig(image_size=32, **sizes)), tmp_path)
    edit_weights(
        folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "classifier" in name]
    )
    assert load(folder).notes["newly_initialized"] == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize("architectures", [["LlamaForCausalLM"], None])
def test_weights_in_a_pickle_of_tensors_are_read_with_the_restricted_unpickler(tmp_path, architectures):
    model = tiny_llama()
    model.config.save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=architectures)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load(tmp_path)
    for name, parameter in model.model.named_parameters():
        assert torch.equal(loaded.module.get_parameter(name), parameter), name
    assert load(tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def test_shards_of_pickles(tmp_path):
    model = tiny_bert()
    model.config.save_pretrained(tmp_path)
    places = {}
    for number, name in enumerate(model.state_dict()):
        places[name] = f"pytorch_model-{number % 2}.bin"
    for file in sorted(set(places.values())):
        torch.save({n: t for n, t in model.state_dict().items() if places[n] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert load(tmp_path).fingerprint() == wrap(model).fingerprint()


HEADED = [
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
]


@pytest.mark.parametrize("class_name", HEADED)
def test_a_real_model_fine_tuned_with_a_head(tmp_path, minilm_folder, class_name):
    plain = BertModel.from_pretrained(minilm_folder)
    getattr(transformers, class_name).from_pretrained(minilm_folder).save_pretrained(tmp_path)
    observed = load(tmp_path)
    assert (type(observed.full).__name__, type(observed.module).__name__) == (class_name, "BertModel")
    assert observed.notes == {"newly_initialized": [], "unused": []}
    for name, parameter in observed.module.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)), name


def test_a_real_model_whose_head_is_missing_or_left_over(tmp_path, minilm_folder):
    BertForSequenceClassification.from_pretrained(minilm_folder, num_labels=3).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["BertModel"])
    observed = load(tmp_path)
    assert type(observed.full).__name__ == "BertModel"
    assert observed.notes["unused"] == ["classifier.bias", "classifier.weight"]
    edit_config(tmp_path, architectures=["SomebodysOwnRewardModel"])
    edit_weights(
        tmp_path, lambda tensors: tensors.update({"v_head.summary.weight": tensors.pop("classifier.weight")})
    )
    observed = load(tmp_path)
    assert observed.notes["unused"] == ["classifier.bias", "v_head.summary.weight"]
    edit_config(tmp_path, architectures=["BertForTokenClassification"])
    edit_weights(tmp_path, lambda tensors: tensors.pop("classifier.bias"))
    observed = load(tmp_path)
    assert observed.notes == {
        "newly_initialized": ["classifier.bias", "classifier.weight"],
        "unused": ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "v_head.summary.weight"],
    }


def test_a_head_of_another_size_stops_nothing(tmp_path, minilm_folder):
    BertForSequenceClassification.from_pretrained(minilm_folder, num_labels=3).save_pretrained(tmp_path)
    edit_config(tmp_path, id2label={str(number): f"label {number}" for number in range(7)}, label2id=None)
    notes = load(tmp_path).notes
    assert notes["newly_initialized"] == ["classifier.bias", "classifier.weight"]
    edit_config(tmp_path, vocab_size=99)
    with pytest.raises(UserError, match=r"weights do not match config.json: bert.embeddings.word_embeddings"):
        load(tmp_path)


OWN_CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel

class OwnConfig(PreTrainedConfig):
    model_type = "own"

class Own(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.line = torch.nn.Linear(3, 2)
        self.post_init()
"""


def test_code_of_the_models_own_runs_where_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "modeling_own.py").write_text(OWN_CODE)
    entries = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": entries}))
    weights = {"line.weight": torch.ones(2, 3), "line.bias": torch.zeros(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="--trust-remote-code"):
        load(folder)
    assert torch.equal(load(folder, trust_remote_code=True).full.line.weight, torch.ones(2, 3))


def test_a_live_model_is_put_back_into_training():
    model = tiny_bert().train()
    model.encoder.layer[0].eval()
    before = [module.training for module in model.modules()]
    observed = wrap(model)
    with observed.evaluating():
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before


def test_any_module_can_be_wrapped():
    observed = wrap(torch.nn.Linear(3, 2), name="a line")
    assert (observed.prefix, observed.kind, observed.max_length) == ("", "unknown", None)
    assert observed.module is observed.full
    assert observed.describe()["parameters"] == 8
    with pytest.raises(
        UserError, match=r"^wrap wants a torch.nn.Module, not str; for a name or folder use load$"
    ):
        wrap("bert-base-uncased")


@pytest.mark.parametrize(
    ("name", "is_head"),
    [
        ("pooler.dense.weight", True),
        ("lm_head.weight", True),
        ("vision_model.head.attention.in_proj_weight", True),
        ("classifier.0.weight", True),
        ("layers.3.multi_head.weight", False),
        ("layers.3.pooler.weight", False),
        ("embeddings.header.weight", False),
    ],
)
def test_what_may_be_missing_stands_after_the_last_block(name, is_head):
    assert bool(HEADS.match(name)) is is_head


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    """transformers makes an empty one of it, with special tokens alone."""
    loaded = load(save(tiny_gpt2(), tmp_path / "model"))
    assert loaded.processor is None
    assert loaded.processor_problem == "its files hold no vocabulary"
