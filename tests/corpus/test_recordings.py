from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from outlierscope.corpus.media import MediaError
from outlierscope.corpus.recordings import given_recordings, mono_samples, resampled
from outlierscope.errors import UserError


def tone(hertz, seconds, rate):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.parametrize(("own", "wanted"), [(44100, 16000), (8000, 16000), (48000, 16000), (22050, 24000)])
def test_a_tone_keeps_its_pitch_loudness_and_length(own, wanted):
    found = resampled(tone(440, 1.0, own), own, wanted)
    assert len(found) == wanted
    assert found.dtype == np.float32
    middle = slice(wanted // 10, -wanted // 10)  # the filter sees silence beyond both ends
    assert np.abs(found - tone(440, 1.0, wanted))[middle].max() < 2e-3


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_kinds_of_files_as_paths_and_as_bytes(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([tone(440, 0.5, 16000), np.zeros(8000, np.float32)], axis=1), 16000)
    found = mono_samples(path, 16000)
    assert np.array_equal(found, mono_samples(path.read_bytes(), 16000))
    lossless = suffix in ("wav", "flac")
    length = 8000
    assert len(found) == length if lossless else abs(len(found) - length) < 2500  # MP3 pads to whole frames
    # The mean of both channels; lossy kinds lose some of it.
    assert np.abs(found[1000:7000]).max() == pytest.approx(0.5, abs=1e-3 if lossless else 0.06)


def test_what_cannot_be_decoded(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no recording at all")
    whole = io.BytesIO()
    soundfile.write(whole, np.zeros(0, np.float32), 16000, format="WAV")
    cases = [
        (tmp_path / "a.wav", "Format not recognised"),
        (whole.getvalue(), "no samples in it"),
        ((np.array([0.0, np.nan], np.float32), 16000), "samples that are no finite numbers"),
        ((np.zeros((2, 2, 2), np.float32), 16000), "no samples in it"),
    ]
    for recording, reason in cases:
        with pytest.raises(MediaError) as caught:
            mono_samples(recording, 16000)
        assert str(caught.value) == reason


def test_recordings_from_python(tmp_path):
    samples = tone(440, 0.1, 16000)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    source = given_recordings(
        [str(tmp_path / "a.wav"), (samples, 16000), {"array": samples, "sampling_rate": 8000}]
    )
    assert [item.name for item in source.items()] == ["a.wav", "recordings[1]", "recordings[2]"]
    assert [len(mono_samples(item.content, 16000)) for item in source.items()] == [1600, 1600, 3200]
    assert [item.name for item in source.items(2)] == ["recordings[2]"]
    changed = given_recordings([str(tmp_path / "a.wav"), (samples * 0.5, 16000), (samples, 8000)])
    assert changed.fingerprint(1) == source.fingerprint(1)
    assert changed.fingerprint(None) != source.fingerprint(None)
    with pytest.raises(
        UserError, match=r"^recordings\[0\] is a int; expected a path, or a pair of samples and rate$"
    ):
        given_recordings([3])
    with pytest.raises(UserError, match=r"^recordings\[0\]: no such file: nowhere.wav$"):
        given_recordings(["nowhere.wav"])
    with pytest.raises(UserError, match=r"^no recordings were given$"):
        given_recordings([])


def test_a_missing_library_is_named():
    code = (
        "import sys; sys.modules['soundfile'] = None\n"
        "from outlierscope.errors import UserError\n"
        "from outlierscope.corpus.recordings import require_audio_libraries\n"
        "try: require_audio_libraries()\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "reading recordings needs soundfile and scipy; pip install 'outlierscope[audio]'"
    )
