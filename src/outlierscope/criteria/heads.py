"""Dim to head: which attention head a dim of the concatenated heads belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outlierscope.criteria.criterion import Evidence
    from outlierscope.model.sites import Site


def dim_to_head(dim: int, head_dim: int) -> int:
    """Head that dim ``dim`` of an attention block's concatenated heads belongs to, both from 0.

    Bondarenko et al. 2023, section 3: dims 180 and 720 of bert-base are those of heads 2 and 11.

    Raises:
        ValueError: for a negative dim or a head dim below 1.

    >>> dim_to_head(180, 64), dim_to_head(720, 64)
    (2, 11)
    """
    if dim < 0 or head_dim < 1:
        raise ValueError(f"no head holds dim {dim} with heads of {head_dim} dims")
    return dim // head_dim


def head_of(evidence: Evidence, site: Site, dim: int) -> int | None:
    """Head of a dim of ``z`` or ``cross_z``; ``None`` at other sites, whose dims are no head's own."""
    layer = evidence.anatomy.layer(site)
    if site.name not in ("z", "cross_z") or layer is None:
        return None
    attention = layer.attention if site.name == "z" else layer.cross_attention
    return None if attention is None else dim_to_head(dim, attention.head_dim)


def head_of_same_index(evidence: Evidence, site: Site, dim: int, width: int) -> int | None:
    """Head whose concatenated dims hold the same index, for sites as wide as the concatenated heads.

    This is how Bondarenko et al. 2023 read dims of the residual stream: the index alone; the output
    projection mixes heads, so it says which head the index falls into, not which head wrote the value.
    """
    layer = evidence.anatomy.layer(site)
    if layer is None or layer.attention is None:
        return None
    attention = layer.attention
    if width != attention.heads * attention.head_dim:
        return None
    return dim_to_head(dim, attention.head_dim)
