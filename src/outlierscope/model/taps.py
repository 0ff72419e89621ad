"""Taps: reading the tensors of sites while a forward pass runs."""

from __future__ import annotations

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
            concatenated, factors and layer scales applied.

    Raises:
        KeyError: on construction, for a site that the anatomy does not have.

    An exception in ``consume`` passes through the model's forward pass to its caller. On leaving, every hook
    is removed, whatever happened.
    """

    def __init__(self, module: nn.Module, anatomy: Anatomy, sites: Iterable[Site], consume: Consume) -> None:
        self.module = module
        self.consume = consume
        self.shape: tuple[int, int] | None = None
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
            self._watch_shape()
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

    def _watch_shape(self) -> None:
        # Some families flatten the batch before the MLP; the input of the stack's first block still has both.
        for stack in {site.stack for site in self._taps}:
            entrance = self._anatomy.stacks[stack].taps.get("embed")
            if entrance is None:
                continue

            def remember(
                _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tap: Tap = entrance
            ) -> None:
                hidden = args[tap.index] if tap.argument is None else kwargs[tap.argument]
                self.shape = (hidden.shape[0], hidden.shape[1])

            module = self.module.get_submodule(entrance.module)
            self._handles.append(module.register_forward_pre_hook(remember, with_kwargs=True))

    def _attach(self, site: Site, tap: Tap) -> None:
        module = self.module.get_submodule(tap.module)
        scale = None if tap.scale_parameter is None else self.module.get_parameter(tap.scale_parameter)

        def hand_over(tensor: Tensor) -> None:
            tensor = tensor.detach()
            if tap.factor != 1.0:
                tensor = tensor * tap.factor
            if scale is not None:
                tensor = tensor * scale.detach().reshape(-1).to(tensor.dtype)
            self.consume(site, self._by_token(tensor))

        def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hand_over(args[tap.index] if tap.argument is None else kwargs[tap.argument])

        def on_output(_module: nn.Module, _args: object, output: Tensor | Sequence[Tensor]) -> None:
            hand_over(output if isinstance(output, Tensor) else output[tap.index])

        if tap.side == "input":
            self._handles.append(module.register_forward_pre_hook(on_input, with_kwargs=True))
        else:
            self._handles.append(module.register_forward_hook(on_output))

    def _by_token(self, tensor: Tensor) -> Tensor:
        if tensor.ndim == 3:
            return tensor
        if tensor.ndim == 2 and self.shape is not None:
            return tensor.reshape(*self.shape, -1)  # [B * T, d] -> [B, T, d]
        if tensor.ndim == 4:
            return tensor.flatten(2)  # [B, T, H, D] -> [B, T, H * D]
        raise ValueError(f"a site's tensor of shape {list(tensor.shape)} is not by token")
