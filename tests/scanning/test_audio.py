"""Scans of encoders that hear, against what the plain model computes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

import outlierscope as osc
from outlierscope.errors import UserError
from tests.model.tiny_audio import (
    RATE,
    tiny_spectrogram_transformer,
    tiny_speech_to_text,
    tiny_streaming,
    tiny_wav2vec2,
    tiny_whisper,
)

SECONDS = (1.0, 1.5, 1.5, 4.2)


def recordings():
    """Noise whose second half is 60 dB softer."""
    rng = np.random.default_rng(0)
    made = []
    for seconds in SECONDS:
        length = round(seconds * RATE)
        loudness = np.where(np.arange(length) < length // 2, 0.3, 0.0003)
        made.append((loudness * rng.standard_normal(length)).astype(np.float32))
    return made


MODELS = {
    # name: model, hop, positions of every sequence
    "masked": (lambda: tiny_wav2vec2(masked=True), 320.0, [49, 74, 74, 209]),
    "not_masked": (lambda: tiny_wav2vec2(masked=False), 320.0, [49, 74, 74, 209]),
    "hubert": (lambda: tiny_wav2vec2(masked=True, family="Hubert"), 320.0, [49, 74, 74, 209]),
    "whisper": (tiny_whisper, 320.0, [50, 75, 75, 100, 100, 10]),
    "spectrogram": (tiny_spectrogram_transformer, 1280.0, [47] * 5),
    "speech_to_text": (tiny_speech_to_text, 640.0, [25, 37, 37, 105]),
    "streaming": (tiny_streaming, 1280.0, [14, 20, 20, 54]),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_counts_is_what_was_heard(name):
    """Sums over positions of resid_post, padding left out, against plain forward passes one by one."""
    make, hop, positions = MODELS[name]
    model, extractor = make()
    observed = osc.wrap(model, extractor)
    data = [(samples, RATE) for samples in recordings()]
    # Convolutions over a spectrogram see the padding at the end of their neighbour in the batch.
    scan = osc.scan(observed, data, tokens=10_000, batch_size=1 if name == "speech_to_text" else 2)
    assert observed.anatomy.proved
    layout = scan.manifest["corpus"]["layout"]
    assert layout["hop"] == hop
    assert scan.manifest["read"]["tokens"] == sum(positions)
    assert scan.manifest["read"]["sequences"] == len(positions)

    encoder = model.get_encoder() if name in ("whisper", "speech_to_text") else model
    layer = encoder.get_submodule(observed.anatomy.stacks["audio"].layers[1].module)
    seen = []
    hook = layer.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    expected = []
    for samples in recordings():
        for start in range(0, len(samples), layout["window"]):
            piece = samples[start : start + layout["window"]]
            if name == "spectrogram" and len(piece) < layout["window"]:
                continue
            inputs = extractor(piece, sampling_rate=RATE, return_tensors="pt")
            with torch.inference_mode():
                encoder(**inputs)
            heard = seen.pop()[0]  # [T, d]
            expected.append(heard[: positions[len(expected)]])
    hook.remove()
    assert [len(one) for one in expected] == positions
    moments = scan.stat("resid_post", "moments", layer=1)
    everything = torch.cat(expected).double()
    assert int(moments.count) == len(everything)
    assert torch.allclose(moments.mean.double(), everything.mean(0), atol=2e-6)
    if name in ("whisper", "speech_to_text"):
        left_out = [row for row in scan.manifest["not_observed"] if row["what"] == "decoder"]
        assert left_out[0]["why"].startswith("only the encoder is fed with recordings and looked at; ")


def test_the_quiet_half_is_a_class_of_its_own():
    model, extractor = tiny_wav2vec2(masked=True)
    with torch.no_grad():
        model.encoder.layers[0].feed_forward.output_dense.bias[3] = 500.0
    data = [(samples, RATE) for samples in recordings()]
    scan = osc.scan(osc.wrap(model, extractor), data, tokens=10_000, thresholds={"six_sigma": {"sigma": 4.0}})
    rows = [row for row in scan.findings.to_pylist() if row["criterion"] == "six_sigma" and row["dim"] == 3]
    assert rows
    for row in rows:
        assert row["token_id"] is None
        extra = json.loads(row["extra"])
        assert extra["frame"] == row["position"]
        assert extra["seconds"] == pytest.approx(0.02 * row["position"])
        assert set(extra["classes_of_dim"]) == {"quiet", "sound"}
        halves = extra["classes_of_dim"]
        assert halves["quiet"] == pytest.approx(halves["sound"], rel=0.1)
        assert row["context"].startswith(f"frame {row['position']}, ")
    classes = scan.manifest["read"]["class_names"]
    assert classes == ["cls", "register", "quiet", "sound"]


def test_a_folder_in_half_precision_and_resumed(tmp_path, monkeypatch):
    from outlierscope.scanning import forward

    model, extractor = tiny_whisper()
    model.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model")
    (tmp_path / "sounds").mkdir()
    for index, samples in enumerate(recordings()):
        soundfile.write(tmp_path / "sounds" / f"{index}.wav", samples, RATE)
    (tmp_path / "sounds" / "1b.wav").write_bytes(b"broken")
    observed = osc.load(tmp_path / "model", dtype="bfloat16")
    choices = {"tokens": 10_000, "batch_size": 1}
    whole = osc.scan(observed, tmp_path / "sounds", out=tmp_path / "whole", **choices)
    assert whole.manifest["corpus"]["recordings_skipped"] == 1

    observe = forward.TappedModel.observe

    def interrupt(self, batch, measurements):
        if batch.number == 4:
            raise KeyboardInterrupt
        return observe(self, batch, measurements)

    with monkeypatch.context() as patch:
        patch.setattr(forward.TappedModel, "observe", interrupt)
        with pytest.raises(KeyboardInterrupt):
            osc.scan(observed, tmp_path / "sounds", out=tmp_path / "cut", **choices)
    resumed = osc.scan(observed, tmp_path / "sounds", out=tmp_path / "cut", resume=True, **choices)
    assert resumed.findings.equals(whole.findings)
    assert (
        resumed.manifest["files"]["stats-00000.safetensors"]
        == whole.manifest["files"]["stats-00000.safetensors"]
    )
    assert resumed.manifest["corpus"] == whole.manifest["corpus"]


def test_models_whose_frames_cannot_be_told(monkeypatch):
    model, extractor = tiny_wav2vec2(masked=True)
    monkeypatch.setattr(type(model), "_get_feat_extract_output_lengths", lambda self, steps: steps)
    with pytest.raises(UserError) as caught:
        osc.scan(osc.wrap(model, extractor), [(np.ones(RATE, np.float32), RATE)])
    assert str(caught.value) == (
        "live model: cannot tell which of its frames are padding; it has no method "
        "_get_feat_extract_output_lengths or _get_subsampling_output_length that counts them"
    )


def test_a_live_model_in_training_is_left_so():
    model, extractor = tiny_wav2vec2(masked=True)
    model.config.layerdrop = 1.0
    model.train()
    scan = osc.scan(osc.wrap(model, extractor), [(recordings()[0], RATE)])
    assert scan.manifest["read"]["tokens"] == 49
    assert model.training


def test_a_model_without_its_extractor():
    model, _ = tiny_whisper()
    with pytest.raises(UserError) as caught:
        osc.scan(osc.wrap(model), "sounds")
    assert str(caught.value) == (
        "this model comes without the feature extractor that recordings need (none was given with the live model)"
    )
