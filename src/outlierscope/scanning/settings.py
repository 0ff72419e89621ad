"""What a scan was asked to do."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from outlierscope.errors import UserError
from outlierscope.model.sites import ALL_SITES

DEFAULT_TOKENS = 32_768
DEFAULT_SITES = (
    "embed",
    "attn_in",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_post",
    "mlp_out",
    "side_out",
    "side_out_2",
    "side_out_3",
    "cross_z",
    "cross_out",
    "resid_cross",
    "mixer_out",
    "resid_post",
    "final_norm",
)
"""Sites whose statistics are kept unless ``--sites`` says otherwise."""

KINDS = ("activation", "weight", "attention", "format")


@dataclass(frozen=True)
class ScanSettings:
    """The choices that decide what a scan finds; two scans with equal settings are comparable.

    Attributes:
        tokens: how many real tokens are read at most (images: positions).
        length: tokens of a window; ``None`` for 512 or what the model allows.
        batch_size: sequences per forward pass; ``None`` for one chosen from the length.
        bos: whether windows of a decoder begin with <bos>; ``None`` for what the tokenizer does by itself.
        exact: compute what is dear on every batch instead of on a sample.
        sample_every: what is dear is computed on the first 64 sequences and then on every batch whose
            number is a multiple of this.
        sites: site names that are observed.
        layers: block indices that are observed; ``None`` for all.
        only: kinds of criteria that are applied.
        thresholds: criterion -> field -> value, where they differ from the defaults.
        text: whether texts may appear in the output (``--no-text`` leaves token ids only).
        seed: seed of whatever is drawn at random.
    """

    tokens: int = DEFAULT_TOKENS
    length: int | None = None
    batch_size: int | None = None
    bos: bool | None = None
    exact: bool = False
    sample_every: int = 64
    sites: tuple[str, ...] = DEFAULT_SITES
    layers: tuple[int, ...] | None = None
    only: tuple[str, ...] = KINDS
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    text: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "length", "batch_size", "sample_every"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UserError(
                    f"{name.replace('_', ' ')} must be a whole number of at least 1, not {value!r}"
                )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be a whole number from 0 to 2**63 - 1, not {self.seed!r}")
        if self.bos not in (None, True, False):
            raise UserError(f"bos must be True, False or None, not {self.bos!r}")
        _check_names("site", self.sites, ALL_SITES)
        # Both "weight" and "weights" are said.
        singular = tuple(
            name.removesuffix("s") if name.removesuffix("s") in KINDS else name for name in self.only
        )
        object.__setattr__(self, "only", singular)
        _check_names("kind", self.only, KINDS)

    def observes(self, layer: int | None) -> bool:
        """Whether sites of this block are observed; sites outside of blocks always are."""
        return layer is None or self.layers is None or layer in self.layers

    @property
    def keeps_sites(self) -> bool:
        """Whether statistics of every site are kept: attention and weights alone do not need them."""
        return bool({"activation", "format"} & set(self.only))

    def describe(self) -> dict[str, Any]:
        """As plain values for ``scan.json``."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


def _check_names(what: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not given:
        raise UserError(f"no {what} given; choose from {', '.join(known)}")
    for name in given:
        if name not in known:
            raise UserError(f"unknown {what} {name!r}; choose from {', '.join(known)}")


def parse_names(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Split a comma-separated option.

    >>> parse_names("mlp_out, resid_post", ())
    ('mlp_out', 'resid_post')
    """
    if text is None:
        return default
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Read ``--layers``: numbers and ranges.

    Raises:
        UserError: for anything else.

    >>> parse_layers("0-2,11")
    (0, 1, 2, 11)
    """
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None:
            raise UserError(f"--layers wants numbers and ranges such as 0-3,11, not {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > 100_000:
            raise UserError(f"--layers: {part.strip()!r} is not a range from a smaller to a larger layer")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def parse_thresholds(options: list[str] | None) -> dict[str, dict[str, float]]:
    """Read ``--threshold CRITERION.FIELD=NUMBER``, given any number of times.

    Raises:
        UserError: when one is not of that form.

    >>> parse_thresholds(["six_sigma.sigma=8"])
    {'six_sigma': {'sigma': 8.0}}
    """
    thresholds: dict[str, dict[str, float]] = {}
    for option in options or []:
        match = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=\s*(\S+)\s*", option)
        try:
            if match is None:
                raise ValueError
            value = float(match[3])
            if not 0 <= value < float("inf"):
                raise ValueError
            thresholds.setdefault(match[1], {})[match[2]] = value
        except ValueError:
            raise UserError(
                f"--threshold wants CRITERION.FIELD=NUMBER, such as six_sigma.sigma=8, not {option!r}"
            ) from None
    return thresholds
