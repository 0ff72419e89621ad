"""One batch through the model under its taps, with nothing committed before the whole pass succeeded."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import torch

from outlierscope.errors import UserError
from outlierscope.model.attention.observer import AttentionObserver
from outlierscope.model.sites import PATTERNS
from outlierscope.model.taps import Taps
from outlierscope.stats.observation import Observation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from outlierscope.corpus.batch import Batch
    from outlierscope.model.attention.observation import AttentionObservation
    from outlierscope.model.observed import ObservedModel
    from outlierscope.model.sites import Site
    from outlierscope.stats.measurements import Measurements


class TappedModel:
    """A model with its taps in place; a context manager that takes them off again.

    Attributes:
        halved: numbers of the batches that had to be halved for lack of memory.
        unobserved: attention that could not be observed, with the reason.
    """

    def __init__(self, observed: ObservedModel, sites: Iterable[Site]) -> None:
        self._observed = observed
        self._sites = set(sites)
        self._batch: Batch | None = None
        self._taken: Measurements | None = None
        self._scratch: dict[Any, Any] = {}
        self._exit = ExitStack()
        self.halved: list[int] = []
        self.unobserved: dict[Site, str] = {}

    def __enter__(self) -> Self:
        module, anatomy = self._observed.module, self._observed.anatomy
        self._exit.enter_context(
            Taps(module, anatomy, [site for site in self._sites if site.name not in PATTERNS], self._tensor)
        )
        patterns = {site for site in self._sites if site.name in PATTERNS}
        self._attention = (
            AttentionObserver(module, anatomy, self._pattern, sites=patterns) if patterns else None
        )
        if self._attention:
            self._exit.enter_context(self._attention)
            self.unobserved = self._attention.unobserved
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def observe(self, batch: Batch, measurements: Measurements) -> Measurements:
        """The measurements with one more batch; those given stay as they are.

        The batch is halved when memory does not suffice for it.
        """
        try:
            return self._pass(batch, measurements)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(batch.sequence_ids) < 2:
                raise UserError(
                    f"a sequence of {batch.real.shape[1]} tokens does not fit into the memory of "
                    f"{self._observed.device}; try a smaller --length, --dtype bfloat16 or another --device"
                ) from error
        if self._observed.device.type == "cuda":
            torch.cuda.empty_cache()
        self.halved.append(batch.number)
        first, second = batch.split()
        return self.observe(second, self.observe(first, measurements))

    def _pass(self, batch: Batch, measurements: Measurements) -> Measurements:
        taken = measurements.copy()
        self._batch, self._taken, self._scratch = batch, taken, {}
        try:
            if self._attention:
                self._attention.begin(batch)
            inputs = self._observed.placed(batch.inputs)
            runner = self._observed.runner(batch.stack)
            if "use_cache" in inspect.signature(runner.forward).parameters:
                inputs["use_cache"] = False
            # Not inference mode: what statistics keep shall be ordinary tensors.
            with torch.no_grad():
                runner(**inputs)
        finally:
            self._batch, self._taken, self._scratch = None, None, {}
        return taken

    def _tensor(self, site: Site, tensor: Tensor) -> None:
        assert self._batch is not None  # noqa: S101  (taps fire within a pass only)
        tokens = self._batch.of(site.stack)
        assert tokens is not None  # noqa: S101  (the plan names stacks that are fed)
        self._take(Observation(site, tensor, tokens, self._scratch))

    def _pattern(self, observation: AttentionObservation) -> None:
        self._take(observation)

    def _take(self, seen: Observation | AttentionObservation) -> None:
        assert self._batch is not None  # noqa: S101
        assert self._taken is not None  # noqa: S101
        self._taken.take(seen.site, seen, dear=self._batch.dear)


def _out_of_memory(error: BaseException) -> bool:
    # The CPU allocator and CUDA's libraries report a lack of memory as a plain RuntimeError.
    return (
        not isinstance(error, RuntimeError)
        or isinstance(error, torch.OutOfMemoryError)
        or any(words in str(error) for words in ("allocate memory", "out of memory", "ALLOC_FAILED"))
    )
