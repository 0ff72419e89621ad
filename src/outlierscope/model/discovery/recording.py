"""Recording: a forward pass whose modules' inputs and outputs are kept, with what computed them.

Only for tiny passes: every tensor is copied. Nothing of the model is changed once a recording is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from outlierscope.model.anatomy import Tap
from outlierscope.model.attention.exact import eager_function
from outlierscope.model.attention.masks import as_added, boolean_mask, without_blind

if TYPE_CHECKING:
    from torch.autograd.graph import Node

    from outlierscope.model.attention.masks import MaskFormat

RECORDING_ATTENTION: dict[MaskFormat, str] = {
    "added": "outlierscope_recording",
    "boolean": "outlierscope_recording_boolean",
}
"""Names of the attention function that records, by the mask that it is given; eager in everything else."""


@dataclass(frozen=True, eq=False)
class Passage:
    """One tensor that entered or left a module.

    Attributes:
        module: full name of the module.
        side: whether it entered or left.
        index: positional argument or tuple element.
        argument: name of the keyword argument, if it came by keyword.
        value: a copy of the tensor as it passed.
        origin: autograd's node of what computed it; ``None`` where gradients were off.
        order: rises with every passage of a recording.
        call: which call of the module it belongs to, from 0.
    """

    module: str
    side: Literal["input", "output"]
    index: int
    argument: str | None
    value: Tensor
    origin: Node | None
    order: int
    call: int = 0

    @property
    def tap(self) -> Tap:
        """Where to read this tensor again."""
        return Tap(self.module, self.side, self.index, self.argument, call=self.call)


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of the attention function.

    Attributes:
        module: full name of the module handed to the attention function.
        pattern: [B, H, T, S] probabilities.
        value: [B, G, S, E] for G value heads.
        z: [B, T, H * E], heads concatenated.
        origins: autograd's nodes of ``q``, ``k``, ``v`` and ``z``.
        window: the sliding window that the module asked for.
    """

    module: str
    pattern: Tensor
    value: Tensor
    z: Tensor
    origins: dict[str, Node | None]
    window: int | None


@dataclass
class Recording:
    """What passed.

    Attributes:
        passages: in the order in which they happened.
        attention: calls of the attention function, in order.
        calls: how often each module was called.
        arguments: what modules were called with (those that were asked for), as it came: by module and call,
            (args, kwargs).
        parameters: random parameters by full name, where the pass ran with such; else empty.
        mask: the format of the masks that attention was given.
    """

    passages: list[Passage] = field(default_factory=list)
    attention: list[AttentionCall] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    arguments: dict[tuple[str, int], tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    mask: MaskFormat = "added"

    def of(self, module: str) -> list[Passage]:
        """What entered and left one module."""
        return [passage for passage in self.passages if passage.module == module]

    def through(self, module: str) -> tuple[Passage, Passage] | None:
        """What entered and what left a module that was called once with one tensor; ``None`` for others."""
        passages = self.of(module)
        if self.calls[module] != 1 or [passage.side for passage in passages] != ["input", "output"]:
            return None
        return passages[0], passages[1]

    def find(self, tap: Tap) -> Passage:
        """The passage that a tap reads, before offset, factor and scale.

        Raises:
            KeyError: where the module was never called, or passes no such tensor.
        """
        for passage in self.passages:
            place = (passage.module, passage.call, passage.side, passage.argument)
            if place == (tap.module, tap.call, tap.side, tap.argument) and (
                tap.argument is not None or passage.index == tap.index
            ):
                return passage
        raise KeyError(f"nothing passed at {tap.side} {tap.argument or tap.index} of {tap.module}")

    def read(self, tap: Tap) -> Tensor:
        """The tensor that a tap reads, plus its offset parameter, times its factor and its scale parameter."""
        value = self.find(tap).value
        if tap.offset_parameter is not None:
            value = value + self.parameters[tap.offset_parameter].reshape(-1)
        value = value * tap.factor
        if tap.scale_parameter is not None:
            value = value * self.parameters[tap.scale_parameter].reshape(-1)
        return value


class BrokenOffError(Exception):
    """A pass that failed before its end; the cause is what failed.

    Attributes:
        recording: what passed before.
    """

    def __init__(self, recording: Recording) -> None:
        super().__init__("the pass broke off")
        self.recording = recording


def is_pattern(value: Tensor) -> bool:
    """Whether a tensor is [B, H, T, S] and its rows are distributions."""
    if value.ndim != 4 or value.shape[-2] < 2 or value.numel() == 0:
        return False
    rows = value.float().sum(-1)  # [B, H, T]
    return bool((value >= 0).all()) and bool((rows - 1).abs().max() < 1e-2)


def returned_patterns(recording: Recording) -> list[Passage]:
    """Attention patterns that modules returned beside something else; innermost modules come first."""
    return [p for p in recording.passages if p.side == "output" and p.index > 0 and is_pattern(p.value)]


def tensors_in(
    values: object, names: tuple[str, ...] | None = None
) -> Iterator[tuple[int, str | None, Tensor]]:
    """The tensors of a module's arguments or output, one level deep: (index, name or None, tensor)."""
    if isinstance(values, Tensor):
        values = (values,)
    if isinstance(values, Mapping):
        if names is None:  # a ModelOutput: addressed by position, as a tuple would be
            values = tuple(values.values())
        else:
            yield from ((0, name, value) for name, value in values.items() if isinstance(value, Tensor))
            return
    if isinstance(values, tuple | list):
        yield from ((index, None, value) for index, value in enumerate(values) if isinstance(value, Tensor))


class _Recorder:
    def __init__(
        self,
        root: nn.Module,
        keep: Callable[[str, Tensor], bool],
        arguments_of: frozenset[str],
        recording: Recording,
    ) -> None:
        self.recording = recording
        self.keep = keep
        self.arguments_of = arguments_of
        self.names = {id(module): name for name, module in root.named_modules()}

    def passes(
        self, name: str, side: Literal["input", "output"], values: object, keywords: bool = False
    ) -> None:
        for index, argument, tensor in tensors_in(values, ("kwargs",) if keywords else None):
            if tensor.is_floating_point() and self.keep(name, tensor):
                order = len(self.recording.passages)
                value = tensor.detach().clone()
                call = self.recording.calls[name] - 1
                self.recording.passages.append(
                    Passage(name, side, index, argument, value, tensor.grad_fn, order, call)
                )

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = self.names[id(module)]
        if name in self.arguments_of:
            self.recording.arguments[name, self.recording.calls[name]] = (args, kwargs)
        self.recording.calls[name] += 1
        self.passes(name, "input", args)
        self.passes(name, "input", kwargs, keywords=True)

    def after(self, module: nn.Module, _args: object, _kwargs: object, output: object) -> None:
        self.passes(self.names[id(module)], "output", output)

    def attend(
        self, module: nn.Module, tensors: dict[str, Tensor], pattern: Tensor, window: int | None
    ) -> None:
        self.recording.attention.append(
            AttentionCall(
                module=self.names.get(id(module), ""),
                pattern=pattern.detach().clone(),
                value=tensors["v"].detach().clone(),
                z=tensors["z"].detach().flatten(2).clone(),
                origins={name: tensor.grad_fn for name, tensor in tensors.items()},
                window=window,
            )
        )


_recorders: list[_Recorder] = []


def _recording_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    z, pattern = eager_function(module)(module, query, key, value, attention_mask, **kwargs)
    if _recorders:
        window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
        tensors = {"q": query, "k": key, "v": value, "z": z}
        _recorders[-1].attend(module, tensors, pattern, window if isinstance(window, int) else None)
    return z, pattern


def _recording_attention_of_boolean_masks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    added, blind = as_added(attention_mask, query.dtype)
    z, pattern = _recording_attention(module, query, key, value, added, **kwargs)
    return without_blind(z, blind), pattern


AttentionInterface.register(RECORDING_ATTENTION["added"], _recording_attention)
AttentionMaskInterface.register(RECORDING_ATTENTION["added"], eager_mask)
AttentionInterface.register(RECORDING_ATTENTION["boolean"], _recording_attention_of_boolean_masks)
AttentionMaskInterface.register(RECORDING_ATTENTION["boolean"], boolean_mask)


@contextmanager
def attention_set_to(root: nn.Module, name: str) -> Iterator[None]:
    """Let every part of a model dispatch to the attention function ``name``, and restore on exit."""
    configs = {id(c): c for module in root.modules() if (c := getattr(module, "config", None)) is not None}
    before = [
        (config, config._attn_implementation_internal)
        for config in configs.values()
        if hasattr(config, "_attn_implementation_internal")
    ]
    try:
        for config, _ in before:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def record(
    root: nn.Module,
    run: Callable[[], Any],
    *,
    modules: list[str],
    keep: Callable[[str, Tensor], bool] = lambda _name, _tensor: True,
    arguments_of: frozenset[str] = frozenset(),
    mask: MaskFormat = "added",
    into: Recording | None = None,
) -> Recording:
    """Run ``run`` under the recording attention function and keep what passes.

    Args:
        root: the model; names are relative to it.
        run: makes the forward pass.
        modules: names of the modules to watch.
        keep: which tensors of which module are kept.
        arguments_of: modules whose call arguments are kept as they are.
        mask: the format of the masks that attention is given.
        into: an empty recording to fill, for whoever wants what passed before an exception; none: a new one.

    The hooks are removed and the attention function is restored whatever happens; exceptions pass through.
    """
    recorder = _Recorder(root, keep, arguments_of, Recording() if into is None else into)
    recorder.recording.mask = mask
    with ExitStack() as stack:
        stack.enter_context(attention_set_to(root, RECORDING_ATTENTION[mask]))
        for name in modules:
            module = root.get_submodule(name)
            before = module.register_forward_pre_hook(recorder.before, with_kwargs=True)
            stack.callback(before.remove)
            after = module.register_forward_hook(recorder.after, with_kwargs=True)
            stack.callback(after.remove)
        _recorders.append(recorder)
        stack.callback(_recorders.remove, recorder)
        run()
    return recorder.recording
