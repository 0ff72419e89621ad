"""outlierscope: an oscilloscope for the outliers of transformers.

    import outlierscope as osc

    model = osc.load("bert-base-uncased")
    scan = osc.scan(model, "my.jsonl", tokens=100_000)
    scan.findings.to_pandas()

Names are imported when they are first used, so that ``import outlierscope`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from outlierscope.errors import ProofError as ProofError
from outlierscope.errors import UserError as UserError
from outlierscope.version import __version__ as __version__

if TYPE_CHECKING:
    from outlierscope.model.load import load as load
    from outlierscope.model.load import wrap as wrap
    from outlierscope.model.sites import Site as Site
    from outlierscope.scanning.run import scan as scan
    from outlierscope.scanning.scan import Scan as Scan
    from outlierscope.scanning.settings import ScanSettings as ScanSettings
    from outlierscope.scanning.weights import scan_weights as scan_weights

_HOMES = {
    "load": "outlierscope.model.load",
    "wrap": "outlierscope.model.load",
    "Site": "outlierscope.model.sites",
    "ScanSettings": "outlierscope.scanning.settings",
    "scan": "outlierscope.scanning.run",
    "scan_weights": "outlierscope.scanning.weights",
    "Scan": "outlierscope.scanning.scan",
}

__all__ = ["ProofError", "UserError", "__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'outlierscope' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
