"""Reading back what ``scan.json`` says of settings and anatomy."""

from __future__ import annotations

from typing import Any

from outlierscope.model.anatomy import Anatomy, AttentionPlace, LayerAnatomy, Matrix, StackAnatomy, Tap
from outlierscope.model.sites import Site
from outlierscope.scanning.settings import ScanSettings


def restore_settings(described: dict[str, Any]) -> ScanSettings:
    """The inverse of ``ScanSettings.describe``.

    >>> restore_settings(ScanSettings(tokens=5).describe()) == ScanSettings(tokens=5)
    True
    """
    choices: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in described.items()
    }
    return ScanSettings(**choices)


def restore_anatomy(described: dict[str, Any]) -> Anatomy:
    """The inverse of ``Anatomy.describe``."""
    return Anatomy(
        stacks={name: _stack(stack) for name, stack in described["stacks"].items()},
        proved=described["proved"],
        reason=described["reason"],
    )


def _stack(described: dict[str, Any]) -> StackAnatomy:
    return StackAnatomy(
        **described
        | _places(described)
        | {
            "layers": [_layer(layer) for layer in described["layers"]],
            "matrices": [Matrix(**matrix) for matrix in described["matrices"]],
        }
    )


def _layer(described: dict[str, Any]) -> LayerAnatomy:
    attentions = {
        name: AttentionPlace(**described[name]) if described[name] else None
        for name in ("attention", "cross_attention")
    }
    return LayerAnatomy(
        **described
        | _places(described)
        | attentions
        | {
            "matrices": [Matrix(**matrix) for matrix in described["matrices"]],
        }
    )


def _places(described: dict[str, Any]) -> dict[str, Any]:
    return {
        "taps": {name: Tap(**tap) for name, tap in described["taps"].items()},
        "aliases": {name: Site.parse(site) for name, site in described["aliases"].items()},
    }
