"""What rows of several criteria share: where a value sat, in words, and on how much data it rests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlierscope.criteria.criterion import Evidence
    from outlierscope.criteria.finding import Finding
    from outlierscope.model.sites import Site


@dataclass(frozen=True)
class Located:
    """A value of largest magnitude and whose it is.

    Attributes:
        value: signed.
        dim: its dim.
        token_id: token, -1 where there is none (image patches).
        token_class: class of the token.
        sequence: sequence id.
        position: position without padding.
    """

    value: float
    dim: int
    token_id: int
    token_class: str
    sequence: int
    position: int

    def place(self, finding: Finding, evidence: Evidence) -> Finding:
        """Fill in where and what: value, dim, token, class, position and sequence of a finding."""
        finding.value = self.value
        finding.dim = self.dim
        finding.token_id = self.token_id if self.token_id >= 0 else None
        finding.token = evidence.token_text(self.token_id)
        finding.token_class = self.token_class
        finding.sequence = self.sequence
        finding.position = self.position
        return finding

    def describe(self, evidence: Evidence) -> dict[str, Any]:
        """As plain values."""
        return {
            "dim": self.dim,
            "value": self.value,
            "token_id": self.token_id,
            "token": evidence.token_text(self.token_id),
            "token_class": self.token_class,
            "position": self.position,
        }


def strongest(evidence: Evidence, site: Site, dim: int | None = None) -> Located | None:
    """The value of largest magnitude of a site, or of one of its dims; ``None`` if unseen."""
    extremes = evidence.stat(site, "extremes")
    if extremes is None:
        return None
    dims = slice(None) if dim is None else slice(dim, dim + 1)
    seen = extremes.sequence[:, dims] >= 0  # [C, d]
    if not bool(seen.any()):
        return None
    magnitude = extremes.value[:, dims].abs().masked_fill(~seen, -1.0)  # [C, d]
    largest = (magnitude == magnitude.max()).nonzero().tolist()
    offset = dims.start or 0
    # Ties: the earlier sequence, then the earlier position.
    token_class, column = min(
        ((c, j + offset) for c, j in largest),
        key=lambda at: (int(extremes.sequence[at]), int(extremes.position[at]), at[1]),
    )
    at = (token_class, column)
    return Located(
        value=float(extremes.value[at]),
        dim=column,
        token_id=int(extremes.token[at]),
        token_class=class_name(evidence, token_class),
        sequence=int(extremes.sequence[at]),
        position=int(extremes.position[at]),
    )


def class_name(evidence: Evidence, index: int) -> str:
    """Name of a token class."""
    names = evidence.corpus.class_names
    return names[index] if index < len(names) else str(index)


def sampling(evidence: Evidence, *, dear: bool) -> dict[str, Any]:
    """On how much data a figure rests, for the rule of a finding."""
    corpus = evidence.corpus
    tokens = corpus.sampled_tokens if dear else corpus.tokens
    sequences = corpus.sampled_sequences if dear else corpus.sequences
    return {
        "sampled": dear and sequences < corpus.sequences,
        "tokens": tokens,
        "sequences": sequences,
        "of_sequences": corpus.sequences,
    }


def width(evidence: Evidence, site: Site) -> int | None:
    """Number of dims of a site, from ``moments``."""
    moments = evidence.stat(site, "moments")
    return None if moments is None or not int(moments.count) else len(moments.mean)
