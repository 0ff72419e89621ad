"""Random sequences, batched and padded at random, and every way of gathering a statistic over them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

from outlierscope.corpus.batch import TEXT_CLASSES, Batch
from outlierscope.model.sites import Site
from outlierscope.stats.observation import Observation

SITE = Site("decoder", 0, "resid_post")
WIDTHS = st.integers(1, 6)
KINDS = ("normal", "ties", "constant", "offset", "heavy", "huge", "tiny", "mixed")


@dataclass
class Sequence:
    """One sequence as a corpus knows it; ``values`` [T, d] may hold NaN and infinities."""

    number: int
    values: np.ndarray
    token_ids: np.ndarray
    classes: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """[T] bool."""
        return np.isfinite(self.values).all(1)


def draw_values(random: np.random.Generator, kind: str, length: int, dims: int) -> np.ndarray:
    normal = random.standard_normal((length, dims))
    values = {
        "normal": normal,
        "ties": random.integers(-3, 4, (length, dims)),
        "constant": np.full((length, dims), 0.1),
        "offset": normal * 0.01 + 50,
        "heavy": normal * np.where(random.random((length, dims)) < 0.1, 1000, 1),
        "huge": normal * 1e30,
        "tiny": normal * 1e-12,
        "mixed": normal * 10.0 ** random.integers(-6, 6, dims),
    }[kind]
    return values.astype(np.float32)


@st.composite
def corpora(draw, kinds=KINDS, nonfinite=True, dims=WIDTHS):
    """A list of sequences of one width."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = draw(dims)
    sequences = []
    for number in range(draw(st.integers(1, 6))):
        length = draw(st.integers(1, 20))
        values = draw_values(random, draw(st.sampled_from(kinds)), length, width)
        if nonfinite and draw(st.booleans()):
            for _ in range(random.integers(1, 4)):
                place = (random.integers(length), random.integers(width))
                values[place] = random.choice([np.nan, np.inf, -np.inf])
        classes = random.integers(0, len(TEXT_CLASSES), length)
        sequences.append(Sequence(number, values, random.integers(0, 8, length), classes.astype(np.uint8)))
    return sequences


def make_batch(sequences: list[Sequence], random: np.random.Generator, number: int = 0):
    """One padded batch, left, right or both; the padding is full of values that must not count."""
    length = max(len(sequence.values) for sequence in sequences) + int(random.integers(0, 3))
    width = sequences[0].values.shape[1]
    tensor = np.full((len(sequences), length, width), random.choice([np.nan, 1e9, np.inf, 0.0]), np.float32)
    real = np.zeros((len(sequences), length), bool)
    token_ids = np.full((len(sequences), length), -1)
    classes = random.integers(0, len(TEXT_CLASSES), (len(sequences), length)).astype(np.uint8)
    for row, sequence in enumerate(sequences):
        start = int(random.integers(0, length - len(sequence.values) + 1))
        where = slice(start, start + len(sequence.values))
        tensor[row, where], real[row, where] = sequence.values, True
        token_ids[row, where], classes[row, where] = sequence.token_ids, sequence.classes
    batch = Batch(
        number=number,
        stack="decoder",
        inputs={},
        token_ids=torch.from_numpy(token_ids),
        real=torch.from_numpy(real),
        classes=torch.from_numpy(classes),
        class_names=TEXT_CLASSES,
        sequence_ids=torch.tensor([sequence.number for sequence in sequences]),
        documents=[""] * len(sequences),
    )
    return torch.from_numpy(tensor), batch


def observe(sequences: list[Sequence], random: np.random.Generator, site: Site = SITE) -> Observation:
    tensor, batch = make_batch(sequences, random)
    return Observation(site, tensor, batch)


def split(sequences: list[Sequence], random: np.random.Generator) -> list[list[Sequence]]:
    """Into consecutive batches of random sizes."""
    cuts = np.flatnonzero(random.random(len(sequences) - 1) < 0.5) + 1
    return [list(part) for part in np.split(np.array(sequences, dtype=object), cuts)]


def gathered(stat, sequences: list[Sequence], seed: int):
    """The statistic over all sequences, gathered in three unlike ways."""
    random = np.random.default_rng(seed)

    alone = stat.fresh()  # every batch updates the same one
    for part in split(sequences, random):
        with torch.inference_mode():
            alone.update(observe(part, random))

    streamed = stat.fresh()  # as a scan does it: nothing is known of a batch before its pass is over
    for part in split(sequences, random):
        halves = (
            [part]
            if len(part) < 2 or random.random() < 0.5
            else [part[: len(part) // 2], part[len(part) // 2 :]]
        )
        before = streamed.copy()
        untouched = save_state(before)
        for half in halves:
            streamed = streamed.copy()
            with torch.inference_mode():
                streamed.update(observe(half, random))
        assert save_state(before) == untouched
        if random.random() < 0.5:  # what was dropped leaves nothing behind
            dropped = streamed.copy()
            dropped.update(observe(part, random))

    shards = []  # as many processes do it, merged in any grouping and order
    for part in split(sequences, random):
        shards.append(stat.fresh())
        with torch.inference_mode():
            shards[-1].update(observe(part, random))
    random.shuffle(shards)
    shards.append(stat.fresh())
    while len(shards) > 1:
        first = shards.pop(random.integers(len(shards)))
        second = shards.pop(random.integers(len(shards)))
        first.merge(second)
        shards.append(first)
    return [alone, streamed, shards[0]]


def save_state(stat) -> bytes:
    """The state of a statistic as the bytes of a file; asking for it changes nothing."""
    return save({key: value.contiguous() for key, value in stat.copy().state().items()})


def check_round_trip(stat, sequences: list[Sequence], seed: int) -> None:
    """State through safetensors is the same, and so is what follows from it."""
    random = np.random.default_rng(seed)
    original = stat.fresh()
    parts = split(sequences, random)
    done = int(random.integers(0, len(parts) + 1))
    for part in parts[:done]:
        original.update(observe(part, random))
    restored = stat.fresh()
    restored.load_state(load(save_state(original)))
    assert save_state(original) == save_state(restored)
    rest = [make_batch(part, random) for part in parts[done:]]
    for continued in (original, restored):
        for tensor, batch in rest:
            continued.update(Observation(SITE, tensor, batch))
    assert save_state(original) == save_state(restored)


def used_rows(sequences: list[Sequence]):
    """(sequence, position, token id, class, values [d]) of every token that counts."""
    return itertools.chain.from_iterable(
        zip(
            itertools.repeat(sequence.number),
            np.flatnonzero(sequence.used),
            sequence.token_ids[sequence.used],
            sequence.classes[sequence.used],
            sequence.values[sequence.used],
        )
        for sequence in sequences
    )
