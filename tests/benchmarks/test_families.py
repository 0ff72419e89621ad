"""The table of families: what it says of a few, how its page is written, read and checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "families.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )


def test_a_few_families(tmp_path):
    """A decoder, an encoder, both, two towers, one that hears, one without attention."""
    names = ["bert", "clip", "llama", "resnet", "t5", "wav2vec2"]
    ran = run(*names, "--json", str(tmp_path / "rows.json"))
    assert ran.returncode == 0, ran.stderr
    assert (
        ran.stdout.splitlines()[-1] == "5 proved, 0 not proved, 1 no attention, 0 not built, 0 crashed of 6"
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["family"] for row in rows] == names
    stacks = {row["family"]: {stack["name"]: stack["layouts"] for stack in row["stacks"]} for row in rows}
    assert stacks == {
        "bert": {"encoder": ["post-norm"]},
        "clip": {"decoder": ["pre-norm"], "vision": ["pre-norm"]},
        "llama": {"decoder": ["pre-norm"]},
        "resnet": {},
        "t5": {"encoder": ["pre-norm"], "decoder": ["pre-norm"]},
        "wav2vec2": {"audio": ["post-norm"]},
    }
    assert rows[3]["reason"] == "ResNetModel has no stack of blocks that attend"


def test_a_name_that_is_no_family():
    ran = run("bert", "no-such-family")
    assert ran.returncode == 2
    assert "AutoModel has no class for no-such-family" in ran.stderr


def test_only_all_families_make_a_page():
    ran = run("bert", "--write")
    assert ran.returncode == 2
    assert "--write needs every family; leave the names out" in ran.stderr


def rows():
    from families_page import Row, StackRow

    stack = StackRow(
        "decoder",
        "text",
        ["pre-norm"],
        ["registry"],
        ["resid_mid = resid_pre + attn_out"],
        {"no norm": ["final_norm"]},
    )
    return [
        Row("alpha", "proved", "AlphaModel", stacks=[stack]),
        Row("beta", "not proved", "BetaModel", "decoder: layer 0: it is a | b"),
        Row("gamma", "no attention", "GammaModel", "GammaModel has no stack of blocks that attend"),
        Row("delta", "not built", reason="a package is missing (timm)"),
    ]


def test_the_page_is_read_back():
    from families_page import read_page, render_page

    page = render_page(rows())
    assert read_page(page) == {
        "alpha": "proved",
        "beta": "not proved",
        "gamma": "no attention",
        "delta": "not built",
    }
    assert "**1 of these 2 (50.0%) are proved in all their stacks**; 1 are not, 0 crashed." in page
    assert (
        "| alpha | proved | decoder: pre-norm (registry), fed at `text` | resid_mid = resid_pre + attn_out "
        "| decoder: final_norm: no norm |"
    ) in page
    assert "it is a \\| b" in page
    assert page == render_page(rows())


def test_a_family_that_was_proved_and_no_longer_is():
    from families import lost
    from families_page import Row, render_page

    page = render_page(rows())
    assert lost(rows(), page) == []
    now = [Row("alpha", "not proved", reason="decoder: layer 0: no"), *rows()[1:]]
    assert lost(now, page) == ["alpha: decoder: layer 0: no"]


def test_tiny_values_keep_proportions():
    from tiny_configs import tiny_values

    described = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 16384,
        "num_hidden_layers": 4,
        "layer_types": ["a", "a", "b", "a"],
        "vocab_size": 50000,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]},
        "text_config": {
            "model_type": "inner",
            "hidden_size": 2048,
            "num_experts": 64,
            "num_experts_per_tok": 8,
        },
        "pad_token_id": None,
    }
    small = tiny_values(described)
    assert small["hidden_size"] == 64
    assert (small["num_attention_heads"], small["num_key_value_heads"], small["head_dim"]) == (4, 2, 16)
    assert small["intermediate_size"] == 256
    assert (small["num_hidden_layers"], small["layer_types"]) == (3, ["a", "a", "b"])  # one of each kind
    assert small["vocab_size"] == 128
    assert sum(small["rope_parameters"]["mrope_section"]) == 8
    assert small["text_config"] == {
        "model_type": "inner",
        "hidden_size": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    assert small["pad_token_id"] is None
    assert tiny_values(described, fill=True)["pad_token_id"] == 0
    assert tiny_values(described, keep_head_size=True)["hidden_size"] == 512
    assert tiny_values(described, cut=False)["num_hidden_layers"] == 4
    assert tiny_values(described, narrow=False)["hidden_size"] == 4096


def test_heads_of_state_space_mixers_multiply_to_the_expanded_width():
    from tiny_configs import tiny_values

    small = tiny_values({"hidden_size": 4096, "expand": 2, "num_heads": 128, "head_dim": 64, "n_groups": 8})
    assert small["num_heads"] * small["head_dim"] == small["expand"] * small["hidden_size"]
    assert small["n_groups"] == 1


@pytest.mark.slow
def test_no_family_that_was_proved_is_lost():
    ran = run("--check")
    assert ran.returncode == 0, ran.stderr[-4000:]


def test_tiny_values_of_parts_that_depend_on_each_other():
    from tiny_configs import tiny_values

    tower = {"model_type": "tower", "hidden_size": 768, "num_attention_heads": 12, "image_size": 1024}
    described = {
        "hidden_size": 4096,
        "vision_config": tower | {"patch_size": 16},
        "num_queries": 300,
        "frames_per_clip": 64,
        "languages": ["en", "fr"],
        "default_language": None,
        "sliding_window": None,
    }
    small = tiny_values(described)
    assert (small["vision_config"]["hidden_size"], small["vision_config"]["image_size"]) == (64, 256)
    assert (small["num_queries"], small["frames_per_clip"]) == (16, 4)
    assert small["default_language"] is None
    filled = tiny_values(described, fill=True)
    assert (filled["default_language"], filled["sliding_window"]) == ("en", 8)
    gentle = tiny_values(described, kept_width=1024)
    assert gentle["hidden_size"] == 64
    assert (gentle["vision_config"]["hidden_size"], gentle["vision_config"]["num_attention_heads"]) == (
        768,
        12,
    )
    assert gentle["vision_config"]["image_size"] == 256
    assert tiny_values(described, keep_images=True)["vision_config"]["image_size"] == 1024


def test_which_stages_are_read_is_left_to_the_configuration_class():
    from tiny_configs import tiny_values

    described = {"num_hidden_layers": 12, "out_features": ["stage12"], "out_indices": [12]}
    assert tiny_values(described) == {"num_hidden_layers": 2}


def test_heads_with_a_width_of_their_own_keep_its_proportion():
    from tiny_configs import tiny_values

    described = {
        "hidden_size": 1024,
        "attention_hidden_size": 2048,
        "num_attention_heads": 16,
        "head_dim": 128,
    }
    small = tiny_values(described)
    assert (small["attention_hidden_size"], small["num_attention_heads"], small["head_dim"]) == (128, 4, 32)


def test_parts_that_look_at_one_image_get_one_size():
    from tiny_configs import image_sides, tiny_values

    described = {
        "image_size": 1024,
        "vision_config": {
            "model_type": "pyramid",
            "backbone_feature_sizes": [[256, 256], [128, 128]],
            "backbone_config": {"model_type": "stages", "image_size": [1024, 1024]},
        },
        "prompt_config": {"model_type": "prompt", "image_size": 1024, "patch_size": 16},
        "id2label": {0: "other"},
    }
    assert image_sides(described) == {1024: 256}
    small = tiny_values(described)
    assert small["image_size"] == small["prompt_config"]["image_size"] == 256
    assert small["vision_config"]["backbone_config"]["image_size"] == [256, 256]
    assert small["vision_config"]["backbone_feature_sizes"] == [[64, 64], [32, 32]]
    assert tiny_values(described, keep_images=True)["image_size"] == 1024
    assert image_sides({"image_size": 224, "patch_size": 4}) == {224: 128}


def test_stages_that_are_read_stay_where_none_is_cut():
    from tiny_configs import tiny_values

    assert tiny_values({"depths": [3, 4, 6, 3], "out_indices": [2, 3, 4]})["out_indices"] == [2, 3, 4]


def test_what_a_configuration_class_works_out_is_left_to_it():
    from tiny_configs import without_derived
    from transformers import SamConfig

    default = SamConfig()
    values = without_derived(default.to_dict(), default)
    assert "image_embedding_size" in default.to_dict()["prompt_encoder_config"]
    assert "image_embedding_size" not in values["prompt_encoder_config"]
    assert values["prompt_encoder_config"]["image_size"] == 1024
    assert values["prompt_encoder_config"]["model_type"] == "sam_prompt_encoder"
