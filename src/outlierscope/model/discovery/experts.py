"""Experts: the matrices of a mixture that are kept in one parameter of three dims, and what they read.

Such a parameter has no module of its own and is used row by row, so that its role cannot be read off linear layers. It
follows from its shape beside that of its partner: what reads the residual stream gives gate and up together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlierscope.model.anatomy import Matrix
from outlierscope.model.discovery.dataflow import depends

if TYPE_CHECKING:
    from torch import Tensor

    from outlierscope.model.discovery.recording import Passage
    from outlierscope.model.discovery.trial import Trial


def experts_of(trial: Trial, out: Passage, base: int) -> tuple[Passage | None, list[Matrix]] | None:
    """What the experts of an MLP branch read, and their matrices; ``None`` where it has none.

    What they read is ``None`` where each is handed tokens that were weighed or sorted before.

    Args:
        trial: of the block.
        out: the branch's output.
        base: order of the residual stream that the branch is added to; what was computed before is not of it.

    The matrices are empty where their shapes do not tell which is which.
    """
    hidden = trial.recording.find(trial.entrance).value  # [..., d]
    fused: dict[str, dict[str, Tensor]] = {}
    for name, value in trial.recording.parameters.items():
        if value.ndim == 3:
            fused.setdefault(name.rpartition(".")[0], {})[name] = value
    for module, parameters in fused.items():
        passages = trial.recording.of(module)
        reads = next((p for p in passages if p.side == "input" and p.order >= base), None)
        writes = next((p for p in passages if p.side == "output"), None)
        if reads is None or writes is None or not depends(out.origin, writes.origin):
            continue
        whole = reads.value.numel() == hidden.numel() and reads.value.shape[-1] == hidden.shape[-1]
        return reads if whole else None, _matrices(module, parameters, hidden.shape[-1])
    return None


def _matrices(module: str, parameters: dict[str, Tensor], width: int) -> list[Matrix]:
    """Gate and up together [E, 2 m, d] or [E, d, 2 m], and down [E, d, m] or [E, m, d], in their order."""
    inner = {name: _inner(value, width) for name, value in parameters.items()}
    sizes = sorted(size for size in inner.values() if size)
    if len(inner) != 2 or len(sizes) != 2 or sizes[1] != 2 * sizes[0]:
        return []
    matrices = []
    for name, value in parameters.items():
        fused = inner[name] == sizes[1]
        # A matrix that reads the residual stream is stored [out, in] when its last dim is the stream's width.
        transposed = (value.shape[-1] != width) if fused else (value.shape[-1] == width)
        matrices.append(Matrix("gate_up" if fused else "down", module, name, transposed))
    return matrices


def _inner(value: Tensor, width: int) -> int:
    """The dim of an expert's matrix that does not face the residual stream; 0 where that cannot be told."""
    rows, columns = value.shape[-2:]
    if (rows == width) == (columns == width):
        return 0
    return int(columns if rows == width else rows)
