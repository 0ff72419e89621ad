"""Trial: one block run alone, with every parameter and its hidden states drawn at random.

A proof on the model's own weights may say nothing: where a layer scale or a gate starts at zero, every wrong
branch passes. A trial has no such zeros, needs the memory of one block only, and leaves the model as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Cache

from outlierscope.errors import ProofError
from outlierscope.model.discovery.recording import Passage, Recording, record

if TYPE_CHECKING:
    from outlierscope.model.anatomy import Tap
    from outlierscope.model.attention.masks import MaskFormat


@dataclass(frozen=True)
class Linear:
    """A module that was seen to compute ``x @ W.T + b`` (or ``x @ W + b``).

    Attributes:
        module: full name.
        weight: full name of the parameter.
        transposed: whether the weight is stored [in, out].
        reads: the passage that entered.
        writes: the passage that left.
        error: of ``W x + b`` against what left, relative to the largest value.
    """

    module: str
    weight: str
    transposed: bool
    reads: Passage
    writes: Passage
    error: float


@dataclass
class Trial:
    """What was seen of one block under random parameters.

    Attributes:
        block: full name of the block.
        entrance: where its hidden states enter.
        exit: where they leave.
        recording: everything that passed, with the random parameters.
        linears: modules that proved to be linear, by name.
        norms: modules of the residual's width that proved to be norms, with (input, output).
        small_norms: other modules that proved to be norms (of queries and keys).
    """

    block: str
    entrance: Tap
    exit: Tap
    recording: Recording
    linears: dict[str, Linear]
    norms: dict[str, tuple[Passage, Passage]]
    small_norms: tuple[str, ...]


Value = TypeVar("Value")

Shapes = tuple[tuple[str, tuple[int, ...], torch.device, bool], ...]
"""Name, shape, device and whether it is a convolution's, of every floating parameter of a block."""


class RandomParameters:
    """Draws random parameters once for all blocks of the same shape."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._drawn: dict[Shapes, dict[str, Tensor]] = {}

    def of(self, block: nn.Module) -> dict[str, Tensor]:
        """float32 values for every floating parameter of ``block``, by its name in the block."""
        shapes = tuple(
            (name, tuple(parameter.shape), parameter.device, _is_convolution(block, name))
            for name, parameter in block.named_parameters()
            if parameter.is_floating_point()
        )
        if shapes not in self._drawn:
            self._drawn.clear()  # one block's worth of memory, not one per kind of block
            self._drawn[shapes] = self._draw(shapes)
        return self._drawn[shapes]

    def _draw(self, shapes: Shapes) -> dict[str, Tensor]:
        drawn = {}
        generators: dict[torch.device, torch.Generator] = {}
        for name, shape, device, convolution in shapes:
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(self.seed)
            generator = generators[device]
            if sum(size > 1 for size in shape) <= 1:
                # Gammas, biases, layer scales, gates: all away from zero, and no two dims alike.
                magnitude = torch.rand(shape, generator=generator, device=device) + 0.5
                sign = torch.randint(0, 2, shape, generator=generator, device=device) * 2 - 1
                drawn[name] = magnitude * sign
            else:
                fan_in = math.prod(shape[1:]) if convolution else shape[-1]
                drawn[name] = torch.randn(shape, generator=generator, device=device) / math.sqrt(fan_in)
        return drawn


def _is_convolution(block: nn.Module, parameter: str) -> bool:
    owner = block.get_submodule(parameter.rpartition(".")[0])
    return isinstance(owner, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def run_trial(
    root: nn.Module,
    block: str,
    entrance: Tap,
    exit_: Tap,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    parameters: RandomParameters,
    seed: int = 0,
    mask: MaskFormat = "added",
) -> Trial:
    """Run a block alone in float32 with random parameters and random hidden states.

    Args:
        root: the model.
        block: name of the block in it.
        entrance: where the block's hidden states enter.
        exit_: where they leave.
        arguments: what the block was called with in a real pass: masks, rotary tables and the like.
        parameters: draws the parameters.
        seed: of the hidden states.
        mask: the format of the masks in that pass.

    Raises:
        ProofError: where the block cannot be run alone.
    """
    module = root.get_submodule(block)
    drawn = parameters.of(module)
    buffers = {name: _float32(buffer) for name, buffer in module.named_buffers()}
    args, kwargs = [_float32(value) for value in arguments[0]], _float32(arguments[1])
    # A cache holds the keys of the pass that was recorded: with it the block would see every token twice.
    args = [None if isinstance(value, Cache) else value for value in args]
    kwargs = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
    old = args[entrance.index] if entrance.argument is None else kwargs[entrance.argument]
    generator = torch.Generator(old.device).manual_seed(seed)
    with torch.enable_grad():
        # Times one, so that blocks may add to it in place.
        hidden = torch.randn(old.shape, generator=generator, device=old.device).requires_grad_() * 1.0
        # So that what was computed from another stack's hidden states can be followed to where it came from.
        args = [_followed(value) for value in args]
        kwargs = {name: _followed(value) for name, value in kwargs.items()}
        if entrance.argument is None:
            args[entrance.index] = hidden
        else:
            kwargs[entrance.argument] = hidden
        names = [f"{block}.{name}" if name else block for name, _ in module.named_modules()]
        try:
            recording = record(
                root,
                lambda: functional_call(module, {**drawn, **buffers}, tuple(args), kwargs),
                modules=names,
                mask=mask,
            )
        except Exception as error:  # foreign code may fail in any way; the reason goes into the anatomy
            message = f"it cannot be run alone ({type(error).__name__}: {error})".splitlines()[0]
            raise ProofError(message) from error
    recording.parameters = {f"{block}.{name}": value for name, value in drawn.items()}
    width = hidden.shape[-1]
    linears: dict[str, Linear] = {}
    norms: dict[str, tuple[Passage, Passage]] = {}
    small_norms = []
    for name in names[1:]:
        passages = recording.through(name)
        if passages is None or not passages[0].value.numel():  # tokens of a kind that was not fed
            continue
        linear = _as_linear(root, name, passages, recording)
        if linear is not None:
            linears[name] = linear
        elif _is_norm(root, name, passages, recording):
            if passages[0].value.shape[-1] == width:
                norms[name] = passages
            else:
                small_norms.append(name)
    return Trial(block, entrance, exit_, recording, linears, norms, tuple(small_norms))


def _followed(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3:
        return value.detach().requires_grad_() * 1.0
    return value


def _float32(value: Value) -> Value:
    """The same value with every floating tensor in it as float32."""
    return _deep_float32(value)  # type: ignore[return-value]


def _deep_float32(value: object) -> object:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_deep_float32(item) for item in value) if type(value) in (tuple, list) else value
    if type(value) is dict:
        return {key: _deep_float32(item) for key, item in value.items()}
    return value


def _own_parameters(root: nn.Module, name: str, recording: Recording) -> dict[str, Tensor]:
    module = root.get_submodule(name)
    return {
        own: recording.parameters[f"{name}.{own}"]
        for own, _ in module.named_parameters()
        if f"{name}.{own}" in recording.parameters
    }


def _as_linear(
    root: nn.Module, name: str, passages: tuple[Passage, Passage], recording: Recording
) -> Linear | None:
    own = _own_parameters(root, name, recording)
    matrices = [key for key, value in own.items() if value.ndim == 2]
    vectors = [value for value in own.values() if value.ndim == 1]
    if len(matrices) != 1 or len(vectors) > 1 or len(own) != len(matrices) + len(vectors):
        return None
    reads, writes = passages
    weight = own[matrices[0]]
    for transposed in (False, True):
        matrix = weight if transposed else weight.T  # [in, out]
        if (reads.value.shape[-1], writes.value.shape[-1]) != tuple(matrix.shape):
            continue
        expected = reads.value @ matrix + (vectors[0] if vectors else 0.0)
        if expected.shape != writes.value.shape:
            continue
        error = float((expected - writes.value).abs().max() / writes.value.abs().max())
        if error <= 1e-5:
            return Linear(name, f"{name}.{matrices[0]}", transposed, reads, writes, error)
    return None


def _is_norm(root: nn.Module, name: str, passages: tuple[Passage, Passage], recording: Recording) -> bool:
    """Whether the module forgets the scale of its input: what every norm does and no activation."""
    reads, writes = passages
    own = _own_parameters(root, name, recording)
    if reads.value.shape != writes.value.shape or any(value.ndim > 1 for value in own.values()):
        return False
    if torch.equal(reads.value, writes.value):
        return False
    module = root.get_submodule(name)
    try:
        with torch.no_grad():
            again = functional_call(module, own, (reads.value * 8.0,))
    except Exception:  # a module that needs more than one tensor is no norm
        return False
    return isinstance(again, Tensor) and bool(
        (again - writes.value).abs().max() <= 1e-2 * writes.value.abs().max()
    )
