"""Loops over arrays that Numba compiles, for what PyTorch would need many passes or many small calls for.

Numba brings its own compiler. What it compiles is kept beside the source, or in the user's cache folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

Loop = TypeVar("Loop", bound="Callable[..., object]")


def compiled(loop: Loop) -> Loop:
    """A decorator: the function is compiled on its first call and runs without the GIL.

    Multiplications and additions may be fused; no other liberty is taken with floating point. What is kept is
    compiled anew when the function's own file changes, not when that of a compiled function it calls does.

    >>> @compiled
    ... def total(values):
    ...     result = 0.0
    ...     for value in values:
    ...         result += value
    ...     return result
    >>> import numpy as np
    >>> total(np.array([1.0, 2.0]))
    3.0
    """
    fast: Loop
    try:
        fast = numba.njit(loop, cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
    except RuntimeError:  # neither the source's folder nor a cache folder can be written to
        fast = numba.njit(loop, nogil=True, fastmath={"contract"}, error_model="numpy")
    return fast
