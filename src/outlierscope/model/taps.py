"""Taps: reading the tensors of sites while a forward pass runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

if TYPE_CHECKING:
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle

    from outlierscope.model.anatomy import Anatomy, Tap
    from outlierscope.model.sites import Site

Consume = Callable[["Site", Tensor], None]


class Taps:
    """Context manager under which every forward pass hands the tensors of sites over.

    Args:
        module: the module that is run, the one that ``anatomy`` was discovered in.
        anatomy: where its sites are.
        sites: which sites to read; aliases are resolved, and each canonical site is read once.
        consume: called with (canonical site, tensor [B, T, d]) in the order in which data passes; the tensor
            may be the model's own, in its dtype and on its device: neither keep nor change it. Heads are
            concatenated, offsets, factors and layer scales applied.

    Raises:
        KeyError: on construction, for a site that the anatomy does not have.

    An exception in ``consume`` passes through the model's forward pass to its caller. On leaving, every hook
    is removed, whatever happened.
    """

    def __init__(self, module: nn.Module, anatomy: Anatomy, sites: Iterable[Site], consume: Consume) -> None:
        self.module = module
        self.consume = consume
        self._entered: dict[
            str, tuple[int, ...]
        ] = {}  # stack -> leading dims of what entered its first block
        self._calls: Counter[Site] = Counter()
        self._anatomy = anatomy
        self._taps: dict[Site, Tap] = {}
        for site in sites:
            canonical = anatomy.canonical(site)
            tap = anatomy.tap(canonical)
            if tap is None:
                raise KeyError(f"site {site} is not observed in this model")
            self._taps[canonical] = tap
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        try:
            self._watch_entrances()
            for site, tap in self._taps.items():
                self._attach(site, tap)
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook off; does nothing where there is none."""
        while self._handles:
            self._handles.pop().remove()

    def _watch_entrances(self) -> None:
        for name in {site.stack for site in self._taps}:
            stack = self._anatomy.stacks[name]
            sites = [site for site in self._taps if site.stack == name]

            def begin(_module: nn.Module, _args: object, sites: list[Site] = sites) -> None:
                self._calls.update({site: -self._calls[site] for site in sites})

            self._handles.append(self.module.get_submodule(stack.entry).register_forward_pre_hook(begin))
            entrance = stack.taps.get("embed")
            if entrance is None:
                continue

            def remember(
                _module: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                tap: Tap = entrance,
                name: str = name,
            ) -> None:
                hidden = args[tap.index] if tap.argument is None else kwargs[tap.argument]
                self._entered[name] = tuple(hidden.shape[:-1])

            module = self.module.get_submodule(entrance.module)
            self._handles.append(module.register_forward_pre_hook(remember, with_kwargs=True))

    def _attach(self, site: Site, tap: Tap) -> None:
        module = self.module.get_submodule(tap.module)
        offset = None if tap.offset_parameter is None else self.module.get_parameter(tap.offset_parameter)
        scale = None if tap.scale_parameter is None else self.module.get_parameter(tap.scale_parameter)

        def hand_over(tensor: Tensor) -> None:
            tensor = tensor.detach()
            if offset is not None:
                tensor = tensor + offset.detach().reshape(-1).to(tensor.dtype)
            if tap.factor != 1.0:
                tensor = tensor * tap.factor
            if scale is not None:
                tensor = tensor * scale.detach().reshape(-1).to(tensor.dtype)
            self.consume(site, by_token(tensor, self._entered.get(site.stack)))

        def is_meant() -> bool:
            self._calls[site] += 1
            return self._calls[site] == tap.call + 1

        def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if is_meant():
                hand_over(args[tap.index] if tap.argument is None else kwargs[tap.argument])

        def on_output(
            _module: nn.Module, _args: object, output: Tensor | Sequence[Tensor] | dict[str, Tensor]
        ) -> None:
            if is_meant():
                values = tuple(output.values()) if isinstance(output, dict) else output
                hand_over(values if isinstance(values, Tensor) else values[tap.index])

        if tap.side == "input":
            self._handles.append(module.register_forward_pre_hook(on_input, with_kwargs=True))
        else:
            self._handles.append(module.register_forward_hook(on_output))


def by_token(tensor: Tensor, entered: tuple[int, ...] | None) -> Tensor:
    """A site's tensor as [B, T, d], whatever dims its family gives it.

    Args:
        tensor: of any of the shapes named below.
        entered: leading dims of the hidden states that entered the stack: (B, T); (N,) where the patches of all
            images are packed into one row; (B, H, W) where they lie on a grid.

    Raises:
        ValueError: for a tensor of another shape.

    >>> import torch
    >>> by_token(torch.zeros(6, 8), (2, 3)).shape  # a flattened batch
    torch.Size([2, 3, 8])
    >>> by_token(torch.zeros(2, 3, 4, 5), (2, 3)).shape  # heads
    torch.Size([2, 3, 20])
    >>> by_token(torch.zeros(2, 3, 4, 5), (2, 3, 4)).shape  # a grid of patches
    torch.Size([2, 12, 5])
    >>> by_token(torch.zeros(7, 5), (7,)).shape  # packed patches
    torch.Size([1, 7, 5])
    """
    if entered is not None:
        batch, tokens = (1, *entered) if len(entered) == 1 else (entered[0], math.prod(entered[1:]))
        if len(entered) != 2 and tuple(tensor.shape[: len(entered)]) == entered:
            return tensor.reshape(batch, tokens, -1)
        if tensor.ndim == 2:
            return tensor.reshape(batch, tokens, -1)  # [B * T, d] -> [B, T, d]
    if tensor.ndim == 3:
        return tensor
    if tensor.ndim == 4:
        return tensor.flatten(2)  # [B, T, H, D] -> [B, T, H * D]
    raise ValueError(f"a site's tensor of shape {list(tensor.shape)} is not by token")
