"""PEFT adapters: merged as computed here from the adapter's own file, and what is wrong in one line."""

from __future__ import annotations

import json
import shutil
import sys

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import outlierscope as osc
from outlierscope.errors import UserError
from outlierscope.reporting.summary import summarize
from tests.model.gguf_files import write_gguf
from tests.model.tiny import save, tiny_bert, tiny_gpt2, tiny_llama

SCALE = 16 / 4


@pytest.fixture
def base(tmp_path):
    return save(tiny_llama(), tmp_path / "base")


def trained(model, folder, config, base):
    """Save an adapter with random weights, as training would leave it."""
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape) * (0.1 if "lora" in name else 1.0)
    adapted.save_pretrained(folder)
    edit(folder, base_model_name_or_path=str(base))
    return folder


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lora(**options):
    return peft.LoraConfig(r=4, lora_alpha=16, **options)


@pytest.fixture
def adapter(tmp_path, base):
    config = lora(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    return trained(tiny_llama(), tmp_path / "adapter", config, base)


def message(name, **options):
    with pytest.raises(UserError) as caught:
        osc.load(name, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def check_merged(loaded, plain, adapter, stem="base_model.model."):
    stored = load_file(adapter / "adapter_model.safetensors")
    changed = 0
    for name, parameter in plain.named_parameters():
        key = stem + name.removesuffix("weight") + "lora_{}.weight"
        expected = parameter.detach()
        if key.format("A") in stored:
            change = SCALE * stored[key.format("B")] @ stored[key.format("A")]
            assert change.abs().max() > 0.1
            expected, changed = expected + change, changed + 1
        torch.testing.assert_close(loaded.full.get_parameter(name).detach(), expected, msg=name)
    return changed


def test_lora_is_merged_into_the_weights(adapter, base):
    loaded = osc.load(adapter)
    assert type(loaded.full).__name__ == "LlamaForCausalLM"
    assert check_merged(loaded, tiny_llama(), adapter) == 4
    assert {name for name, _ in loaded.full.named_modules()} == {
        name for name, _ in tiny_llama().named_modules()
    }
    assert (loaded.name, loaded.source) == (str(adapter), str(adapter))
    assert loaded.origin["adapter"] == {
        "type": "LORA",
        "task": "CAUSAL_LM",
        "auto_mapping": None,
        "base": str(base),
        "base_source": str(base),
        "base_revision": None,
    }
    assert osc.load(adapter, dtype="bfloat16").dtype == torch.bfloat16


def test_the_class_of_the_training_decides_where_the_base_has_another(tmp_path):
    save(tiny_gpt2(), tmp_path / "base")
    body = tiny_gpt2().transformer
    adapter = trained(
        body, tmp_path / "adapter", lora(target_modules=["c_proj"], fan_in_fan_out=True), "base"
    )
    assert (
        json.loads((adapter / "adapter_config.json").read_text())["auto_mapping"]["base_model_class"]
        == "GPT2Model"
    )
    edit(adapter, base_model_name_or_path=str(tmp_path / "base"))
    assert type(osc.load(adapter).full).__name__ == "GPT2Model"


def test_an_adapter_with_a_head_of_its_own(tmp_path):
    save(tiny_bert(), tmp_path / "base")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5)
    config = lora(target_modules=["query"], task_type="SEQ_CLS")
    adapter = trained(classifier, tmp_path / "adapter", config, tmp_path / "base")
    loaded = osc.load(adapter)
    assert type(loaded.full).__name__ == "BertForSequenceClassification"
    assert check_merged(wrap_bert(loaded), tiny_bert(), adapter, "base_model.model.bert.") == 2


def wrap_bert(loaded):
    return osc.wrap(loaded.full.bert)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.LoHaConfig(r=4, target_modules=["q_proj"]),
        lora(target_modules=["down_proj"], use_dora=True),
        lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
        peft.LNTuningConfig(target_modules=["input_layernorm"]),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_other_types_compute_the_same_merged_as_adapted(tmp_path, base, config):
    adapter = trained(tiny_llama(), tmp_path / "adapter", config, base)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        expected = peft.PeftModel.from_pretrained(tiny_llama(), adapter)(ids).logits
        plain = tiny_llama()(ids).logits
        found = osc.load(adapter).full(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.01


def test_a_base_beside_the_adapter_and_its_tokenizer(tmp_path, adapter, minilm_folder):
    shutil.move(tmp_path / "base", adapter / "base")
    edit(adapter, base_model_name_or_path="base")
    assert osc.load(adapter).origin["adapter"]["base"] == str(adapter / "base")
    assert osc.load(adapter).processor is None
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(minilm_folder / file, adapter)
    assert osc.load(adapter).processor("a").input_ids[0] == 101


def test_the_scan_names_adapter_and_base(adapter, base):
    scan = osc.scan(osc.load(adapter), [[1, *range(5, 40)]] * 4, tokens=100, length=32, only=("weight",))
    assert f"float32, LORA adapter merged into {base}, decoder" in summarize(scan).description


def test_weights_alone_need_the_merged_model(adapter, base):
    with pytest.raises(UserError) as caught:
        osc.scan_weights(adapter)
    assert str(caught.value) == (
        f"{adapter} is an adapter, and merging it needs the model: scan the whole model instead, "
        f"or the weights of its base {base} alone"
    )


def test_without_peft(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert message(adapter) == (
        f"{adapter}: merging an adapter needs the package peft; pip install 'outlierscope[adapters]'"
    )


def test_no_base_model(adapter, tmp_path):
    edit(adapter, base_model_name_or_path=str(tmp_path / "gone"))
    assert message(adapter) == (
        f"{adapter} is an adapter, and its base model cannot be had: no such folder: {tmp_path / 'gone'}; "
        f"base_model_name_or_path in {adapter / 'adapter_config.json'} says where it is"
    )
    edit(adapter, base_model_name_or_path=None)
    assert message(adapter) == (
        f"{adapter / 'adapter_config.json'} names no base model (base_model_name_or_path)"
    )


def test_an_adapter_of_an_adapter(adapter, tmp_path):
    second = shutil.copytree(adapter, tmp_path / "second")
    edit(second, base_model_name_or_path=str(adapter))
    assert message(second) == (
        f"{second} is an adapter of {adapter}, which is an adapter too; merge that one first"
    )


def test_a_whole_model_beside_an_adapter(adapter):
    save(tiny_llama(), adapter)
    assert message(adapter) == (
        f"{adapter} holds a whole model and an adapter beside it, so it may or may not be merged already; "
        "give a copy without adapter_config.json to scan the model, or one without the model to scan the adapter"
    )


def test_a_base_in_a_gguf_file(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTLIERSCOPE_CACHE", str(tmp_path / "cache"))
    edit(adapter, base_model_name_or_path=str(write_gguf(tmp_path / "base.gguf")))
    loaded = osc.load(adapter)
    assert check_merged(loaded, osc.load(tmp_path / "base.gguf").full, adapter) == 4
    assert loaded.origin["gguf"]["quantization"] == "Q8_0"
    assert loaded.origin["adapter"]["base_source"] == str(tmp_path / "base.gguf")


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_types_that_change_no_weights(tmp_path, base, config):
    adapter = trained(tiny_llama(), tmp_path / "adapter", config, base)
    assert message(adapter) == (
        f"{adapter}: adapters of type {config.peft_type.value} do not change weights, so there is nothing to merge; "
        f"scan its base model {base} instead, or the live model with outlierscope.wrap"
    )


def test_a_type_that_peft_does_not_know(adapter):
    edit(adapter, peft_type="MAGIC")
    assert message(adapter).startswith(
        f"{adapter}: peft {peft.__version__} cannot read this adapter of type MAGIC ("
    )


def test_an_adapter_of_another_model(adapter, base):
    save(tiny_llama(layers=1), base)
    text = message(adapter)
    assert text.startswith(
        f"{adapter}: the adapter does not fit its base model {base}: there is no place for 4 of its weights: "
        "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight, "
    )


def test_an_adapter_of_other_sizes(adapter, base):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {name: torch.ones(4, 48)}, path, metadata={"format": "pt"})
    assert f"there is no place for 1 of its weights: {name}" in message(adapter)


def test_an_adapter_without_weights(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    assert message(adapter).startswith(f"{adapter}: the adapter does not fit its base model ")
