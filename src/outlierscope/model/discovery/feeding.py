"""Feeding: tiny passes that reach every stack of a model, through the whole of it or tower by tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from outlierscope.errors import UserError
from outlierscope.model.discovery.blocks import attends_by_registry, block_lists
from outlierscope.model.discovery.example_inputs import input_candidates
from outlierscope.model.discovery.module_names import is_in, outermost
from outlierscope.model.discovery.owner_inputs import owner_inputs, width_asked_for, widths_of
from outlierscope.model.discovery.recording import BrokenOffError
from outlierscope.model.discovery.whole_pass import record_whole

if TYPE_CHECKING:
    from outlierscope.model.discovery.recording import Recording


MOST_WIDTHS = 4
"""So many widths of hidden states are tried before no more are learned from messages."""


@dataclass(frozen=True)
class Fed:
    """One pass that ran.

    Attributes:
        entry: name of the module that was run; empty for the whole model.
        recording: what passed.
    """

    entry: str
    recording: Recording


def feed(root: nn.Module) -> tuple[list[Fed], list[str]]:
    """Run a model with the simplest inputs that reach all its stacks, and what they leave out tower by tower.

    A list of blocks that no such pass reaches is entered through a module that holds it, with hidden states.

    Returns:
        The passes that ran, and a reason for every part that may attend but could not be run.

    Raises:
        UserError: where the model has no config.
    """
    fed: list[Fed] = []
    failures: dict[str, str] = {}
    waiting = [""]
    while waiting:
        entry = waiting.pop(0)
        passed = _run(root, entry)
        if isinstance(passed, Fed):
            fed.append(passed)
            waiting += [name for name in _towers(root, entry) if _is_idle(root, name, fed)]
        else:
            failures[entry] = passed
            waiting += outermost(_towers(root, entry))
    if _idle_lists(root, fed) and "" not in failures:
        fed = _widened(root, fed)
    for container in _idle_lists(root, fed):
        if _idle_lists(root, fed, container):  # the owner of another list may have run this one as well
            fed += _run_owner(root, container, fed)
    reasons = []
    for container in _idle_lists(root, fed):
        tried = [entry for entry in failures if is_in(container, entry)]
        reasons.append(failures[min(tried, key=len)] if tried else f"{container} was not run")
    return fed, list(dict.fromkeys(reasons))


def runs_whole(root: nn.Module) -> bool:
    """Whether some example inputs pass through the whole of a model.

    Raises:
        UserError: where the model has no config.
    """
    return isinstance(_run(root, ""), Fed)


def _widened(root: nn.Module, fed: list[Fed]) -> list[Fed]:
    """The same passes, the first of which reaches more of the whole model: of the towers that run in no other way."""
    whole = _run(root, "", towers_apart=False)
    if not isinstance(whole, Fed):
        return fed
    others = [passed for passed in fed if passed.entry and _is_idle(root, passed.entry, [whole])]
    wider = [whole, *others]
    return wider if len(_idle_lists(root, wider)) < len(_idle_lists(root, fed)) else fed


def _run(root: nn.Module, entry: str, towers_apart: bool = True) -> Fed | str:
    """The first pass that leaves nothing idle, else the best; or why none ran.

    With ``towers_apart`` what could be fed alone may stay idle.
    """
    module = root.get_submodule(entry)
    best: tuple[int, Fed] | None = None
    failure, furthest = "", -1
    broken: Fed | None = None
    try:
        for inputs in input_candidates(module):
            try:
                passed = Fed(entry, record_whole(root, inputs, entry))
            except BrokenOffError as error:
                # What failed last tells most: other layouts fail at the door.
                if (reached := sum(error.recording.calls.values())) > furthest:
                    cause = error.__cause__
                    message = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
                    failure = f"a tiny forward pass of {type(module).__name__} failed ({message})"
                    furthest, broken = reached, Fed(entry, error.recording)
                continue
            towers = _towers(root, entry) if towers_apart else []
            towers = [name for name in towers if _is_idle(root, name, [passed])]
            left = [
                container
                for container in _idle_lists(root, [passed], entry)
                if not any(is_in(container, tower) for tower in towers)
            ]
            if best is None or len(left) < best[0]:
                best = len(left), passed
            if not left:
                break
    except UserError as error:
        if not hasattr(module, "config"):
            raise
        failure = failure or str(error)
    if best is None and broken is not None and _ran_all_blocks(root, broken):
        return broken  # what comes after the blocks may fail where a configuration fits its blocks only
    return best[1] if best is not None else failure


def _ran_all_blocks(root: nn.Module, broken: Fed) -> bool:
    """Whether a pass that failed at last had run every list of blocks within what was run, and seen each attend."""
    lists = [
        names
        for container, names in block_lists(root).items()
        if is_in(container, broken.entry) and any(may_attend(root.get_submodule(name)) for name in names)
    ]
    left = {passage.module for passage in broken.recording.passages if passage.side == "output"}
    return bool(lists) and all(
        set(names) <= left and attends_by_registry(names, broken.recording) for names in lists
    )


def _run_owner(root: nn.Module, container: str, fed: list[Fed]) -> list[Fed]:
    """A pass that calls a list's elements, and none called before: of the outermost of its owners that takes it."""
    parts = container.split(".")
    block = next(iter(root.get_submodule(container).children()))
    before = set(_called_lists(root, fed))
    for length in range(len(parts)):
        entry = ".".join(parts[:length])
        module = root.get_submodule(entry)
        if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            continue
        widths: list[int] = []
        learned = widths_of(block)
        while learned:  # a failed pass may name the width that it wants
            widths, learned = [*widths, *learned], []
            for inputs in owner_inputs(module, widths):
                try:
                    passed = Fed(entry, record_whole(root, inputs, entry))
                except BrokenOffError as error:
                    asked = width_asked_for(str(error.__cause__))
                    if asked and asked not in (*widths, *learned) and len(widths) < MOST_WIDTHS:
                        learned.append(asked)
                    continue
                called = set(_called_lists(root, [passed]))
                if container in called and not called & before:
                    return [passed]
    return []


def _called_lists(root: nn.Module, fed: list[Fed]) -> list[str]:
    """Lists with an element that may attend, some element of which was called."""
    return [
        container
        for container, names in block_lists(root).items()
        if any(may_attend(root.get_submodule(name)) for name in names)
        and not all(_is_idle(root, name, fed) for name in names)
    ]


def _towers(root: nn.Module, entry: str) -> list[str]:
    """Parts of a module that are models of their own, outer ones first."""
    return [
        name
        for name, module in root.named_modules()
        if isinstance(module, PreTrainedModel) and name != entry and is_in(name, entry) and may_attend(module)
    ]


def _is_idle(root: nn.Module, name: str, fed: list[Fed]) -> bool:
    """Whether none of the parts of a module was called."""
    parts = [f"{name}.{part}" if part else name for part, _ in root.get_submodule(name).named_modules()]
    return not any(passed.recording.calls[part] for passed in fed for part in parts)


def _idle_lists(root: nn.Module, fed: list[Fed], entry: str = "") -> list[str]:
    """Lists with an element that may attend, none of whose elements was called."""
    idle = [
        container
        for container, names in block_lists(root).items()
        if is_in(container, entry)
        and any(may_attend(root.get_submodule(name)) for name in names)
        and all(_is_idle(root, name, fed) for name in names)
    ]
    return outermost(idle)


def may_attend(module: nn.Module) -> bool:
    """Whether some part of a module calls itself attention: only what does is missed where it was not run."""
    return any(
        "attention" in kind or "attn" in kind for kind in {type(m).__name__.lower() for m in module.modules()}
    )
