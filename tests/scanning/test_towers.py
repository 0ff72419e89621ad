"""Models of several modalities: the data decide which tower is run."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, SpeechT5Config, SpeechT5Model

import outlierscope
from outlierscope.errors import UserError
from outlierscope.scanning.scan import Scan

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    text = {"vocab_size": 64, "max_position_embeddings": 40, "eos_token_id": 2, "pad_token_id": 0}
    image = {"image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=SIZES | text, vision_config=SIZES | image)).eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for index in range(5):
        pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return folder


def processor():
    size = {"height": 32, "width": 32}
    return CLIPImageProcessor(size=size, crop_size=size)


def not_observed(scan):
    return {row["what"]: row["why"] for row in scan.manifest["not_observed"]}


def moments_are_those_of(scan, stack, layer, values):
    moments = scan.stat("resid_post", "moments", layer, stack)
    assert moments.count == len(values)
    torch.testing.assert_close(moments.mean, values.double().mean(0), rtol=1e-4, atol=1e-5)


def test_pictures_run_the_vision_tower(clip, pictures, tmp_path):
    scan = outlierscope.scan(
        outlierscope.wrap(clip, processor()), pictures, exact=True, out=tmp_path / "scan"
    )
    assert set(scan.manifest["anatomy"]["stacks"]) == {"vision"}
    assert not_observed(scan)["decoder stack"] == "not fed; give text with --data"
    read = [Image.open(path).convert("RGB") for path in sorted(pictures.iterdir())]
    pixels = processor()(images=read, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        hidden = clip.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
    for layer in range(2):
        moments_are_those_of(scan, "vision", layer, hidden[layer + 1].flatten(0, 1))
    assert Scan.open(tmp_path / "scan").stat("resid_post", "moments", 1).count == 5 * 17


def test_token_ids_run_the_text_tower(clip):
    ids = torch.randint(3, 64, (6, 30), generator=torch.Generator().manual_seed(0))
    scan = outlierscope.scan(outlierscope.wrap(clip), ids.tolist(), exact=True)
    assert set(scan.manifest["anatomy"]["stacks"]) == {"decoder"}
    assert not_observed(scan)["vision stack"] == "not fed; give a folder of images with --data"
    with torch.no_grad():
        hidden = clip.text_model(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in range(2):
        moments_are_those_of(scan, "decoder", layer, hidden[layer + 1].flatten(0, 1))


def test_pictures_need_an_image_processor(clip, pictures):
    with pytest.raises(UserError, match="comes without the image processor that pictures need"):
        outlierscope.scan(outlierscope.wrap(clip), pictures)


def test_stacks_that_only_hidden_states_reach_are_refused_with_what_can_be_done():
    config = SpeechT5Config(
        hidden_size=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
    )
    observed = outlierscope.wrap(SpeechT5Model(config).eval())
    assert observed.anatomy.proved
    assert observed.anatomy.stacks["audio"].entry
    words = r"proved with hidden states given to \S+, and no kind of data reaches them; only its weights"
    with pytest.raises(UserError, match=words):
        outlierscope.scan(observed, [[1, 2, 3]])
