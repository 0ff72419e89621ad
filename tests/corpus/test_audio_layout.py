from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from outlierscope.corpus.audio_layout import AudioLayout, quiet_frames


@given(
    st.integers(1, 12),
    st.floats(1.0, 7.5),
    st.lists(st.sampled_from([0.0, 0.001, 0.05, 0.056, 0.057, 0.5, -1.0]), min_size=1, max_size=60),
)
def test_quiet_frames_one_by_one(frames, hop, values):
    samples = np.array(values, dtype=np.float32)
    power = []
    for frame in range(frames):
        piece = samples[int(frame * hop) : int((frame + 1) * hop)].astype(np.float64)
        power.append(float((piece**2).mean()) if len(piece) else 0.0)
    limit = max(power) * 10 ** (-25 / 10)
    found = quiet_frames(samples, hop, frames).tolist()
    # Cumulated sums and means may differ in the last bit.
    assert all(
        quiet == (value <= limit) or abs(value - limit) < 1e-9 * max(power)
        for quiet, value in zip(found, power, strict=True)
    )


def test_bands_and_special_positions():
    layout = AudioLayout(16000, 2.0, 6, frames=3, special=2, bands=2)
    samples = np.array([1, 1, 0, 0, 1, 1], dtype=np.float32)
    assert layout.positions(3) == 8
    assert layout.classes(samples, 3).tolist() == [0, 1, 3, 2, 3, 3, 2, 3]
    assert [layout.place(position) for position in (0, 1)] == [None, None]
    assert layout.place(2) == {"frame": 0, "seconds": 0.0, "band": 0}
    assert layout.place(7) == {"frame": 2, "seconds": 0.0, "band": 1}
