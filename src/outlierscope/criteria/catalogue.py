"""The catalogue of criteria: a new one is a class and a line here."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from outlierscope.criteria.activation import Massive, SixSigma, SystematicActivation
from outlierscope.criteria.attention import Sink, SystematicAttention
from outlierscope.criteria.extreme_neuron import ExtremeNeuron
from outlierscope.criteria.formats import FORMATS
from outlierscope.criteria.idle_heads import NoOpHead, ValueDrain
from outlierscope.criteria.int8_feature import Int8Feature
from outlierscope.criteria.norm_weight import NormWeight
from outlierscope.criteria.super_weight import SuperWeightCandidate
from outlierscope.criteria.weight import WeightColumn, WeightRow
from outlierscope.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from outlierscope.criteria.criterion import Criterion

CRITERIA: tuple[type[Any], ...] = (
    Massive,
    SystematicActivation,
    SixSigma,
    ExtremeNeuron,
    Int8Feature,
    NormWeight,
    WeightColumn,
    WeightRow,
    SuperWeightCandidate,
    SystematicAttention,
    Sink,
    NoOpHead,
    ValueDrain,
    *FORMATS,
)


def choose_criteria(kinds: Iterable[str], thresholds: Mapping[str, Mapping[str, float]]) -> list[Criterion]:
    """Criteria of the given kinds, with their published thresholds where no others are given.

    Raises:
        UserError: for a threshold of an unknown criterion, or one that a criterion does not have.
    """
    check_names(thresholds)
    kinds = set(kinds)
    return [
        _make(criterion, thresholds.get(criterion.name, {}))
        for criterion in CRITERIA
        if criterion.kind in kinds
    ]


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names themselves, when all are criteria.

    Raises:
        UserError: for a name that is none.
    """
    known = [criterion.name for criterion in CRITERIA]
    for name in (names := tuple(names)):
        if name not in known:
            raise UserError(f"unknown criterion {name!r}; choose from {', '.join(known)}")
    return names


def _make(criterion: type[Any], thresholds: Mapping[str, float]) -> Any:
    kinds = {item.name: int if isinstance(item.default, int) else float for item in fields(criterion)}
    for name, value in thresholds.items():
        if name not in kinds:
            raise UserError(f"{criterion.name} has no threshold {name!r}; it has {', '.join(kinds)}")
        if kinds[name] is int and value != int(value):
            raise UserError(f"{criterion.name}.{name} is a whole number, not {value:g}")
    return criterion(**{name: kinds[name](value) for name, value in thresholds.items()})
