"""Measurements: all Stats of a scan, by site and name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from outlierscope.model.sites import Site
    from outlierscope.stats.stat import Stat


class Measurements:
    """A table of Stats, one per (site, statistic).

    Sites are canonical here: ``Anatomy.canonical`` maps an alias to the site that carries its statistics.
    """

    def __init__(self) -> None:
        self._stats: dict[Site, dict[str, Stat[Any]]] = {}

    def add(self, site: Site, stat: Stat[Any]) -> None:
        """Make room for a statistic; a second request for the same one changes nothing."""
        self._stats.setdefault(site, {}).setdefault(stat.name, stat)

    def get(self, site: Site, name: str) -> Stat[Any] | None:
        """The statistic called ``name`` of a site, or ``None``."""
        return self._stats.get(site, {}).get(name)

    def at(self, site: Site) -> list[Stat[Any]]:
        """All statistics of one site."""
        return list(self._stats.get(site, {}).values())

    def __iter__(self) -> Iterator[tuple[Site, Stat[Any]]]:
        for site, stats in self._stats.items():
            for stat in stats.values():
                yield site, stat

    def sites(self) -> list[Site]:
        """The sites with statistics."""
        return list(self._stats)

    def __len__(self) -> int:
        return sum(len(stats) for stats in self._stats.values())

    def copy(self) -> Measurements:
        """A table that goes on from here by itself; what it takes in is not seen here."""
        copied = Measurements()
        copied._stats = {site: dict(stats) for site, stats in self._stats.items()}
        return copied

    def take(self, site: Site, seen: Any, *, dear: bool) -> None:
        """Let the statistics of a site take in one batch; the dear ones only if asked.

        Each is copied first, as another table may hold it.
        """
        stats = self._stats[site]
        for name, stat in stats.items():
            if dear or not stat.dear:
                stats[name] = taken = stat.copy()
                taken.update(seen)

    def state(self) -> dict[str, Tensor]:
        """Every state under ``stack.layer.site.stat/field``."""
        return {
            f"{site}.{stat.name}/{field}": value
            for site, stat in self
            for field, value in stat.state().items()
        }

    def load_state(self, get: Callable[[str], Tensor], keys: list[str]) -> None:
        """Restore every statistic that was added, from a reader of named tensors."""
        by_stat: dict[str, dict[str, str]] = {}
        for key in keys:
            name, _, field = key.partition("/")
            by_stat.setdefault(name, {})[field] = key
        for site, stat in self:
            fields = by_stat[f"{site}.{stat.name}"]
            stat.load_state({field: get(key) for field, key in fields.items()})
