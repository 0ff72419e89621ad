from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from outlierscope.corpus.batching import BATCH_SEQUENCES, BATCH_TOKENS, Sampling, gathered
from outlierscope.corpus.windows import Window


def windows(lengths):
    return [Window(str(index), [1] * length, 0) for index, length in enumerate(lengths)]


@given(lengths=st.lists(st.integers(1, 5000), max_size=120), batch_size=st.none() | st.integers(1, 9))
def test_groups_hold_all_windows_in_order(lengths, batch_size):
    given_windows = windows(lengths)
    groups = list(gathered(given_windows, batch_size))
    assert [window for group in groups for window in group] == given_windows
    assert all(groups)
    for group in groups[:-1]:
        assert batch_size is None or len(group) == batch_size
    if batch_size is None:
        for group, following in pairwise(groups):
            longest = max(len(window.token_ids) for window in group)
            assert len(group) == 1 or len(group) * longest <= BATCH_TOKENS
            assert len(group) <= BATCH_SEQUENCES
            # No group is smaller than it must be.
            wider = max(longest, len(following[0].token_ids))
            assert len(group) == BATCH_SEQUENCES or (len(group) + 1) * wider > BATCH_TOKENS


def test_sampling():
    assert [n for n in range(200) if Sampling().dear(n, 8 * n)] == [*range(8), 32, 64, 96, 128, 160, 192]
    assert all(Sampling(every=1).dear(n, 8 * n) for n in range(50))
    # A batch is sampled as a whole when it begins among the first sequences.
    assert Sampling(every=100).dear(1, 63)
    assert not Sampling(every=100).dear(1, 64)
