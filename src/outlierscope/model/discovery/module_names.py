"""Names of modules: which stands within which."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


def is_in(name: str, container: str) -> bool:
    """Whether a module is another one, or a part of it.

    >>> is_in("layers.1.mlp", "layers.1"), is_in("layers.10", "layers.1"), is_in("layers", "")
    (True, False, True)
    """
    return container == "" or name == container or name.startswith(container + ".")


def outermost(names: Collection[str]) -> list[str]:
    """Those modules that are part of none of the others.

    >>> outermost(["layers.0", "layers", "norm"])
    ['layers', 'norm']
    """
    return [name for name in names if not any(other != name and is_in(name, other) for other in names)]
