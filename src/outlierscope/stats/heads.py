"""Heads: what each attention head attends to and how much it writes, from which no-op heads are judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from outlierscope.model.attention.observation import low_information
from outlierscope.stats.stat import Stat
from outlierscope.stats.tensor_state import added, load_fields, save_fields

if TYPE_CHECKING:
    from outlierscope.model.attention.observation import AttentionObservation

COUNTERS = (
    "sequences",
    "nonfinite",
    "queries",
    "normalised_queries",
    "valued_sequences",
    "written_sequences",
)
SUMS = (
    "initial_alpha",
    "class_mass",
    "entropy",
    "normalised_entropy",
    "attending",
    "idle",
    "keys",
    "value_norm",
    "output_norm",
    "output_ratio",
)


def _empty() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass
class Heads(Stat["AttentionObservation"]):
    """Per head of one layer: sums over real queries, keys and sequences; dear.

    H query heads, G key and value heads, C token classes. Tensors are empty before the first batch, and those
    that need values or outputs stay empty where these are not at hand.

    Attributes:
        mass: from which share of its attention mass a query counts as attending to low-information tokens
            (initial, special, strong delimiters; [CLS] and registers of images).
        quiet: below which ratio of its row of A @ V to the mean value vector such a query counts as idle.
        sequences: sequences seen, without those that have non-finite values.
        nonfinite: sequences left out because a value was NaN or infinite.
        queries: queries seen.
        normalised_queries: those that saw at least two keys.
        valued_sequences: sequences with value vectors.
        written_sequences: sequences with value vectors and rows of A @ V.
        initial_alpha: [H] sum over sequences of alpha of the first real position (Gu et al. 2024).
        class_mass: [H, C] sum over queries of the mass on keys of each class.
        entropy: [H] sum over queries in nats.
        normalised_entropy: [H] sum over queries that see at least two keys of entropy / log(keys seen).
        attending: [H] queries with more than ``mass`` of theirs on low-information tokens.
        idle: [H] those of them whose row of A @ V is shorter than ``quiet`` mean value vectors.
        keys: [C] keys of each class in ``valued_sequences``.
        value_norm: [G, C] sum over keys of the norm of their value vector.
        output_norm: [H] sum over queries of the norm of their row of A @ V.
        output_ratio: [H] sum over ``written_sequences`` of the mean norm of the rows of A @ V over the norm
            of the sequence's mean value vector (Bondarenko et al. 2023, section 3).
    """

    mass: float = 0.5
    quiet: float = 0.5
    sequences: int = 0
    nonfinite: int = 0
    queries: int = 0
    normalised_queries: int = 0
    valued_sequences: int = 0
    written_sequences: int = 0
    initial_alpha: Tensor = field(default_factory=_empty)
    class_mass: Tensor = field(default_factory=_empty)
    entropy: Tensor = field(default_factory=_empty)
    normalised_entropy: Tensor = field(default_factory=_empty)
    attending: Tensor = field(default_factory=_empty)
    idle: Tensor = field(default_factory=_empty)
    keys: Tensor = field(default_factory=_empty)
    value_norm: Tensor = field(default_factory=_empty)
    output_norm: Tensor = field(default_factory=_empty)
    output_ratio: Tensor = field(default_factory=_empty)

    dear: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """``heads``, followed by the thresholds where they are not the usual ones."""
        return "heads" if (self.mass, self.quiet) == (0.5, 0.5) else f"heads_{self.mass:g}_{self.quiet:g}"

    def fresh(self) -> Heads:
        """An empty one with the same parameters."""
        return Heads(self.mass, self.quiet)

    def update(self, seen: AttentionObservation) -> None:
        """Take in one layer's attention of one batch."""
        occupied = seen.real.any(1) & seen.query_real.any(1)
        self.nonfinite += int((occupied & ~seen.finite).sum())
        kept = occupied & seen.finite  # [B]
        if not bool(kept.any()):
            return
        real, queries = seen.real[kept], seen.query_real[kept]  # [B, K], [B, Q]
        each = queries[:, None].double()  # [B, 1, Q]
        rows = queries.sum(1)  # [B]
        self.sequences += len(real)
        self.queries += int(rows.sum())
        first = real.long().argmax(1)  # [B]
        alpha = seen.received[kept].double() / seen.seen_by[kept].clamp_min(1)[:, None]  # [B, H, K]
        index = first[:, None, None].expand(-1, alpha.shape[1], 1)
        self._add("initial_alpha", alpha.gather(2, index)[..., 0].sum(0))

        mass = seen.class_mass[kept].double() * each[..., None]  # [B, H, Q, C]
        self._add("class_mass", mass.sum((0, 2)))
        entropy = seen.entropy[kept].double() * each  # [B, H, Q]
        visible = seen.visible[kept][:, None].double()  # [B, 1, Q]
        several = each * (visible > 1)
        self.normalised_queries += int(several.sum())
        self._add("entropy", entropy.sum((0, 2)))
        self._add("normalised_entropy", (several * entropy / visible.clamp_min(2).log()).sum((0, 2)))
        low = mass[..., low_information(seen.batch.class_names)].sum(-1)  # [B, H, Q]
        attending = low > self.mass
        self._add("attending", attending.sum((0, 2)).double())

        if seen.value_norms is not None:
            self.valued_sequences += len(real)
            classes = torch.nn.functional.one_hot(
                seen.batch.classes.cpu()[kept].long(), len(seen.batch.class_names)
            )
            of_class = classes.double() * real[..., None]  # [B, K, C]
            self._add("keys", of_class.sum((0, 1)))
            self._add("value_norm", (seen.value_norms[kept].double() @ of_class).sum(0))
        if seen.output_norms is not None:
            outputs = seen.output_norms[kept].double() * each  # [B, H, Q]
            self._add("output_norm", outputs.sum((0, 2)))
            if seen.mean_value_norms is not None:
                self.written_sequences += len(real)
                heads, groups = outputs.shape[1], seen.mean_value_norms.shape[1]
                mean_value = seen.mean_value_norms[kept].double()  # [B, G]
                mean_value = mean_value.repeat_interleave(heads // groups, 1).clamp_min(1e-30)  # [B, H]
                self._add("output_ratio", (outputs.sum(2) / rows[:, None] / mean_value).sum(0))
                quiet = outputs < self.quiet * mean_value[..., None]
                self._add("idle", (attending & quiet & queries[:, None]).sum((0, 2)).double())

    def merge(self, other: Heads) -> None:
        """Take in what another one of the same parameters has seen."""
        for counter in COUNTERS:
            setattr(self, counter, getattr(self, counter) + getattr(other, counter))
        for sums in SUMS:
            self._add(sums, getattr(other, sums))

    def state(self) -> dict[str, Tensor]:
        """The fields as named tensors."""
        return save_fields(self, COUNTERS + SUMS)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        load_fields(self, COUNTERS + SUMS, state)

    def class_share(self) -> Tensor:
        """[H, C] share of each head's attention mass on each token class."""
        return self.class_mass / self.class_mass.sum(1, keepdim=True)

    def mean_entropy(self) -> Tensor:
        """[H] nats per query."""
        return self.entropy / self.queries

    def mean_normalised_entropy(self) -> Tensor:
        """[H] entropy over that of uniform attention, 0 to 1; NaN when no query saw two keys."""
        return self.normalised_entropy / (self.normalised_queries or float("nan"))

    def mean_initial_alpha(self) -> Tensor:
        """[H] alpha of the first position, averaged over sequences."""
        return self.initial_alpha / self.sequences

    def value_norm_ratio(self, low: list[int]) -> Tensor | None:
        """[G] mean norm of v on keys of the classes ``low`` over that elsewhere; ``None`` without either."""
        if not self.valued_sequences:
            return None
        other = [index for index in range(len(self.keys)) if index not in low]
        inside, outside = self.keys[low].sum(), self.keys[other].sum()
        if not inside or not outside:
            return None
        return (self.value_norm[:, low].sum(1) / inside) / (self.value_norm[:, other].sum(1) / outside)

    def mean_output_ratio(self) -> Tensor | None:
        """[H] norm of the rows of A @ V over that of the mean value vector; ``None`` where not at hand."""
        return self.output_ratio / self.written_sequences if self.written_sequences else None

    def _add(self, name: str, value: Tensor) -> None:
        setattr(self, name, added(getattr(self, name), value))
