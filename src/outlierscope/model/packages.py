"""Packages that only some models need."""

from __future__ import annotations

from importlib.util import find_spec

from outlierscope.errors import UserError


def need_package(package: str, what: str, extra: str) -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        package: its name.
        what: what needs it, for the message.
        extra: the extra of outlierscope that brings it.

    Raises:
        UserError: when it is not.

    >>> need_package("torch", "everything", "all")
    """
    if find_spec(package) is None:
        raise UserError(f"{what} needs the package {package}; pip install 'outlierscope[{extra}]'")
