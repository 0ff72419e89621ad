"""How numbers, lists and layers are put into words, the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def number(value: float | None) -> str:
    """A figure with the digits that a reader can use.

    >>> number(103795.2), number(28.84), number(0.314159), number(0.0), number(None)
    ('103,795', '28.8', '0.314', '0', 'unknown')
    """
    if value is None or value != value:
        return "unknown"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e9 or size < 1e-3:
        return f"{value:.2g}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def share(value: float | None) -> str:
    """A share as per cent.

    >>> share(0.5), share(0.00012), share(1.0)
    ('50 %', '0.012 %', '100 %')
    """
    if value is None:
        return "unknown"
    return f"{100 * value:.3g} %" if value < 0.1 else f"{100 * value:.0f} %"


def layers(indices: Iterable[int]) -> str:
    """Layers as ranges.

    >>> layers([3, 4, 5, 9]), layers([2]), layers([])
    ('layers 3-5, 9', 'layer 2', 'no layer')
    """
    ordered = sorted(set(indices))
    if not ordered:
        return "no layer"
    runs: list[list[int]] = []
    for index in ordered:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"layer {text}" if len(ordered) == 1 else f"layers {text}"


def some(items: Iterable[object], most: int = 3) -> str:
    """The first few items, and how many more there are.

    >>> some([99, 63, 7, 5]), some(["a"])
    ('99, 63, 7 and 1 more', 'a')
    """
    listed = [str(item) for item in items]
    more = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {more} more" if more > 0 else "")


def quoted(token: str | None, token_id: int | None) -> str:
    """A token as shown to a reader: visible, without control characters.

    >>> quoted(".", 1012), quoted(chr(10), 13), quoted(None, 5), quoted("[CLS]", 101)
    ("'.'", "'\\\\n'", 'token 5', '[CLS]')
    """
    if token is None:
        return "any token" if token_id is None else f"token {token_id}"
    if len(token) > 2 and token[0] in "[<" and token[-1] in "]>" and token.isprintable():
        return token
    return repr(token)


CLASS_WORDS = {
    "cls": "[CLS]",
    "register": "register positions",
    "border_flat": "flat patches of the border",
    "border_textured": "textured patches of the border",
    "inner_flat": "flat inner patches",
    "inner_textured": "textured inner patches",
    "quiet": "quiet frames",
    "sound": "sounding frames",
}
"""Classes of positions that are no tokens, for a reader."""


def positions_of(token_class: str | None) -> str:
    """Positions of one class.

    >>> positions_of("border_flat"), positions_of("other"), positions_of(None)
    ('flat patches of the border', 'other positions', 'any position')
    """
    if token_class is None:
        return "any position"
    return CLASS_WORDS.get(token_class, f"{token_class} positions")


def position_of(token_class: str) -> str:
    """One position of a class that is no token.

    >>> position_of("inner_flat"), position_of("cls"), position_of("other")
    ('one of the flat inner patches', '[CLS]', 'a position of class other')
    """
    words = CLASS_WORDS.get(token_class)
    if words is None:
        return f"a position of class {token_class}"
    return words if words.startswith("[") else f"one of the {words}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun.

    >>> counted(1, "head"), counted(1200, "head")
    ('1 head', '1,200 heads')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
