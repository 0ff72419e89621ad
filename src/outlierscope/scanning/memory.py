"""Whether there is main memory for the activations of a batch, told before it is tried.

Systems that promise more memory than they have kill a process that uses it, without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlierscope.errors import UserError
from outlierscope.model.device import GIBIBYTE, available_memory

if TYPE_CHECKING:
    from outlierscope.corpus.batch import Batch
    from outlierscope.model.observed import ObservedModel

RESIDUALS = 6
"""Tensors as wide as the residual stream that are alive at once, besides what the matrices of a block give."""

PATTERNS = 3
"""Copies of a pattern that eager attention holds: logits, their softmax in float32, and that in the model's dtype."""


def activation_bytes(observed: ObservedModel, sequences: int, length: int) -> int:
    """About how many bytes the activations of one block need, all of them alive: an upper estimate.

    Args:
        observed: the model.
        sequences: of the batch.
        length: positions of each.
    """
    parameters = dict(observed.module.named_parameters(remove_duplicate=False))
    most = 0
    for stack in observed.anatomy.stacks.values():
        for layer in stack.layers:
            width = RESIDUALS * stack.hidden_size
            for matrix in layer.matrices:
                shape = parameters[matrix.parameter].shape
                if len(shape) == 2:
                    width += int(shape[1] if matrix.transposed else shape[0])
            if layer.attention is not None and layer.attention.route != "registry":
                width += PATTERNS * layer.attention.heads * length
            most = max(most, width)
    # Statistics are made in float32 whatever the model's dtype.
    return sequences * length * most * 4


def check_activations(observed: ObservedModel, batch: Batch) -> None:
    """Refuse a batch whose activations do not fit into main memory.

    Raises:
        UserError: naming both figures and what to do.
    """
    if observed.device.type != "cpu":
        return
    sequences, length = batch.real.shape
    needed, available = activation_bytes(observed, sequences, length), available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"a batch of {sequences} x {length} tokens needs about {needed / GIBIBYTE:.1f} GiB of memory, "
            f"{available / GIBIBYTE:.1f} GiB are available; try --batch {max(1, sequences // 2)} or a smaller --length"
        )
