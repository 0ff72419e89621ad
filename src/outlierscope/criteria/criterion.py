"""Criterion: a rule from the literature, what it needs and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from outlierscope.criteria.finding import Finding, Kind
    from outlierscope.model.anatomy import Anatomy
    from outlierscope.model.sites import Site
    from outlierscope.stats.stat import Stat
    from outlierscope.weights.summary import MatrixSummary


@dataclass(frozen=True)
class Requirement:
    """A Stat that a criterion needs at every site with one of these names.

    Attributes:
        sites: site names, such as ``("mlp_out", "resid_post")``; ``("pattern",)`` for attention.
        make: builds the empty Stat.
    """

    sites: tuple[str, ...]
    make: Callable[[], Stat[Any]]


@dataclass(frozen=True)
class Corpus:
    """What was read, as far as rules about the least amount of data need it.

    Attributes:
        tokens: real tokens seen.
        sequences: sequences seen.
        longest: tokens of the longest sequence.
        sampled_tokens: tokens of the batches on which dear statistics were computed.
        sampled_sequences: sequences of those batches.
        class_names: names of the token classes.
    """

    tokens: int
    sequences: int
    longest: int
    sampled_tokens: int
    sampled_sequences: int
    class_names: tuple[str, ...]


class Evidence(Protocol):
    """What a criterion sees of a scan."""

    @property
    def anatomy(self) -> Anatomy:
        """The proved map of the model."""

    @property
    def corpus(self) -> Corpus:
        """What was read."""

    @property
    def weights(self) -> Sequence[MatrixSummary]:
        """Summaries of the weight matrices and norms, by parameter."""

    def stat(self, site: Site, name: str) -> Any:
        """A Stat of a site (aliases are resolved), or ``None`` when it was not measured."""

    def modules(self, site: Site) -> list[str]:
        """Full names of all modules concerned: the readers of a linear input, else what the tensor leaves."""

    def module(self, site: Site) -> str | None:
        """Full name of the module that a skip list would name for this site."""

    def token_text(self, token_id: int) -> str | None:
        """Text of a token; ``None`` without a tokenizer or under ``--no-text``."""


@dataclass(frozen=True)
class NotApplied:
    """A criterion that could not be judged here, and why ("not enough data: ...")."""

    criterion: str
    reason: str


class Criterion(Protocol):
    """A rule from the literature; thresholds are dataclass fields with the published defaults."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    source: ClassVar[str]

    def requires(self) -> Iterable[Requirement]:
        """The Stats that must be kept during the pass."""

    def findings(self, evidence: Evidence) -> Iterable[Finding | NotApplied]:
        """Rows, most severe first; a ``NotApplied`` where there was not enough data."""
