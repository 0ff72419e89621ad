from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2FeatureExtractor

from outlierscope.corpus.audio import AudioCorpus
from outlierscope.corpus.audio_layout import AudioLayout
from outlierscope.corpus.batching import Sampling
from outlierscope.corpus.media import folder_files
from outlierscope.corpus.recordings import AUDIO_SUFFIXES
from outlierscope.errors import UserError

RATE = 16_000
SECONDS = {"a.wav": 1.0, "b.flac": 2.5, "d.wav": 0.05, "e.ogg": 1.0, "sub/f.wav": 0.5}


@pytest.fixture
def folder(tmp_path):
    """Five good recordings, one of them too short, and a bad one in between."""
    (tmp_path / "sub").mkdir()
    rng = np.random.default_rng(0)
    for name, seconds in SECONDS.items():
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(round(seconds * RATE)), RATE)
    (tmp_path / "c.mp3").write_bytes(b"no recording at all")
    (tmp_path / "notes.txt").write_text("none")
    return tmp_path


def frames_of(samples):
    return (samples - 400) // 320 + 1


def make(folder, *, masked=True, **choices):
    layout = AudioLayout(rate=RATE, hop=320.0, window=RATE, masked=masked)
    return AudioCorpus(
        folder_files(folder, AUDIO_SUFFIXES, "recordings", "audio"),
        Wav2Vec2FeatureExtractor(return_attention_mask=masked),
        **{
            "input_name": "input_values",
            "stack": "audio",
            "layout": layout,
            "frames_of": frames_of,
            "batch_size": 2,
        }
        | choices,
    )


WINDOWS = [
    ("a.wav from 0 s", 49),
    ("b.flac from 0 s", 49),
    ("b.flac from 1 s", 49),
    ("b.flac from 2 s", 24),
    ("e.ogg from 0 s", 49),
    ("sub/f.wav from 0 s", 24),
]


def test_windows_and_padding(folder):
    corpus = make(folder)
    batches = list(corpus.batches())
    found = [
        (name, int(real.sum()))
        for batch in batches
        for name, real in zip(batch.documents, batch.real, strict=True)
    ]
    assert found == WINDOWS
    assert torch.cat([batch.sequence_ids for batch in batches]).tolist() == list(range(6))
    padded = batches[1]
    assert padded.real.shape == (2, 49)
    assert padded.inputs["attention_mask"].sum(1).tolist() == [16000, 8000]
    assert (padded.inputs["input_values"][1, 8000:] == 0).all()
    described = corpus.describe()
    assert described["recordings"] == 6
    assert described["recordings_decoded"] == 5
    assert described["skipped"] == [{"recording": "c.mp3", "reason": described["skipped"][0]["reason"]}]
    assert described["short_windows_dropped"] == 1
    assert json.loads(json.dumps(described)) == described


def test_without_a_mask_windows_of_one_length_share_a_batch(folder):
    batches = list(make(folder, masked=False).batches())
    assert [batch.real.sum(1).tolist() for batch in batches] == [[49, 49], [49], [24], [49], [24]]
    assert all(set(batch.inputs) == {"input_values"} for batch in batches)


def test_a_batch_equals_what_the_extractor_makes_of_it(folder):
    batch = list(make(folder).batches())[1]
    samples, _ = soundfile.read(folder / "b.flac", dtype="float32")
    expected = Wav2Vec2FeatureExtractor(return_attention_mask=True)(
        [samples[16000:32000], samples[32000:]], sampling_rate=RATE, padding=True, return_tensors="pt"
    )
    assert torch.equal(batch.inputs["input_values"], expected["input_values"])
    assert torch.equal(batch.inputs["attention_mask"], expected["attention_mask"].long())


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("start", range(6))
def test_a_restart_changes_nothing(folder, masked, start):
    def make_it():
        return make(folder, masked=masked, sampling=Sampling(2, 3), tokens=230)

    corpus = make_it()
    whole = list(corpus.batches())
    resumed = make_it()
    readings = [list(make_it().batches(start))]
    if 0 < start <= len(whole):
        cursor = json.loads(json.dumps(whole[start - 1].cursor))
        readings.append(list(resumed.batches(start, cursor)))
        assert resumed.describe() == corpus.describe()
    for rest in readings:
        for one, other in zip(rest, whole[start:], strict=True):
            assert (one.number, one.documents, one.dear, one.cursor) == (
                other.number,
                other.documents,
                other.dear,
                other.cursor,
            )
            assert torch.equal(one.inputs["input_values"], other.inputs["input_values"])
            assert torch.equal(one.sequence_ids, other.sequence_ids)
            assert torch.equal(one.classes, other.classes)


@pytest.mark.parametrize(("tokens", "windows"), [(1, 1), (49, 1), (50, 2), (148, 4), (None, 6)])
def test_the_budget_counts_frames(folder, tokens, windows):
    assert sum(len(batch.documents) for batch in make(folder, tokens=tokens).batches()) == windows


def test_nothing_to_hear(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"nothing")
    with pytest.raises(UserError) as caught:
        next(make(tmp_path).batches())
    assert str(caught.value).startswith("none of the 1 recordings can be decoded (a.wav: ")
    soundfile.write(tmp_path / "a.wav", np.ones(800), RATE)
    with pytest.raises(UserError) as caught:
        next(make(tmp_path).batches())
    assert str(caught.value) == (
        "no recording is as long as 0.1 s, which this model needs (1 are shorter); give longer ones"
    )


def test_fingerprints_follow_content_and_settings(folder):
    base = make(folder).fingerprint()
    assert make(folder).fingerprint() == base
    prints = {
        make(folder, **variant).fingerprint()
        for variant in ({"batch_size": 3}, {"tokens": 20}, {"sampling": Sampling(1)}, {"masked": False})
    }
    soundfile.write(folder / "sub" / "f.wav", np.ones(8000), RATE)
    assert len(prints | {base, make(folder).fingerprint()}) == 6


def test_words_for_places(folder):
    corpus = make(folder)
    batch = next(corpus.batches())
    assert corpus.context(batch, 1, 30) == "frame 30, 0.6 s into b.flac from 0 s"
    assert corpus.token_text(3) is None
