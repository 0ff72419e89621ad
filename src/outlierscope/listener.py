"""Listener: who wants to know how far a long job has come."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Called as a long job goes on (a progress bar)."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` tokens (stage ``scan``) or pieces of work; no total: it cannot be told."""


def silent(stage: str, done: int, total: int | None) -> None:
    """A listener that does nothing."""
