"""A layer as a sequence of smaller ones: which factors it has, and their structure without the weights."""

from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict
from torch import nn

from .errors import ArtifactError

FactorKind = Literal["svd", "tucker2", "spatial", "cp", "embedding"]


class Factors(BaseModel):
    """How a layer was split into a product of smaller ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FactorKind
    ranks: tuple[int, ...]
    """The inner width; for `tucker2` those of input and output, full where that side stays whole."""


def factored(layer: nn.Module, factors: Factors, path: str) -> nn.Sequential:
    """The factors of a layer with untrained weights, the bias in the last one; a full `tucker2` rank needs no factor.

    Raises ArtifactError where the kind of factors, or the number of ranks, is not for such a layer.
    """
    if isinstance(layer, nn.Linear) and factors.kind == "svd" and len(factors.ranks) == 1:
        return _factored_linear(layer, *factors.ranks)
    if isinstance(layer, nn.Embedding) and factors.kind == "embedding" and len(factors.ranks) == 1:
        return _factored_embedding(layer, *factors.ranks)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        if factors.kind == "svd" and len(factors.ranks) == 1 and set(layer.kernel_size) == {1}:
            return _factored_pointwise(layer, *factors.ranks)
        if factors.kind == "tucker2" and len(factors.ranks) == 2:
            return _factored_kernel(layer, *factors.ranks)
        if factors.kind == "spatial" and len(factors.ranks) == 1:
            return _factored_by_axes(layer, *factors.ranks)
        if factors.kind == "cp" and len(factors.ranks) == 1:
            return _factored_into_columns(layer, *factors.ranks)
    raise ArtifactError(
        f"the blueprint factorizes `{path}`, a {type(layer).__name__}, by {factors.kind} with ranks {factors.ranks}, "
        "which do not fit such a layer"
    )


def _factored_linear(layer: nn.Linear, rank: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=_has_bias(layer))
    )


def _factored_embedding(layer: nn.Embedding, rank: int) -> nn.Sequential:
    """A narrow embedding and a linear layer that widens what it finds (Lan et al. 2020, arXiv:1909.11942)."""
    narrow = nn.Embedding(
        layer.num_embeddings,
        rank,
        padding_idx=layer.padding_idx,
        scale_grad_by_freq=layer.scale_grad_by_freq,
        sparse=layer.sparse,
    )
    return nn.Sequential(narrow, nn.Linear(rank, layer.embedding_dim, bias=False))


def _factored_pointwise(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    # Stride and padding in the first factor: the second then runs on no more positions than the layer did.
    first = _spatial(layer, layer.in_channels, rank, bias=False)
    return nn.Sequential(first, nn.Conv2d(rank, layer.out_channels, 1, bias=_has_bias(layer)))


def _factored_kernel(layer: nn.Conv2d, rank_in: int, rank_out: int) -> nn.Sequential:
    bias = _has_bias(layer)
    before = [nn.Conv2d(layer.in_channels, rank_in, 1, bias=False)] if rank_in < layer.in_channels else []
    after = [nn.Conv2d(rank_out, layer.out_channels, 1, bias=bias)] if rank_out < layer.out_channels else []
    return nn.Sequential(*before, _spatial(layer, rank_in, rank_out, bias=bias and not after), *after)


def _factored_by_axes(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    """A convolution down the columns, then one along the rows, each with its own axis's settings."""
    first = _spatial(layer, layer.in_channels, rank, bias=False, axis=0)
    return nn.Sequential(first, _spatial(layer, rank, layer.out_channels, bias=_has_bias(layer), axis=1))


def _factored_into_columns(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    """1×1, a depthwise k×1 and a 1×k, and 1×1 (Lebedev et al. 2015); one depthwise for a window of a single line."""
    axes = (None,) if 1 in layer.kernel_size else (0, 1)
    between = [_spatial(layer, rank, rank, bias=False, axis=axis, groups=rank) for axis in axes]
    last = nn.Conv2d(rank, layer.out_channels, 1, bias=_has_bias(layer))
    return nn.Sequential(nn.Conv2d(layer.in_channels, rank, 1, bias=False), *between, last)


def _has_bias(layer: Any) -> bool:
    return layer.bias is not None


def _spatial(
    layer: nn.Conv2d, in_channels: int, out_channels: int, *, bias: bool, axis: int | None = None, groups: int = 1
) -> nn.Conv2d:
    """A convolution with the layer's window, or with that of one axis and nothing along the other one."""

    def along(settings: Any, idle: int) -> Any:
        if axis is None or isinstance(settings, str):
            return settings
        return (settings[0], idle) if axis == 0 else (idle, settings[1])

    return nn.Conv2d(
        in_channels,
        out_channels,
        along(layer.kernel_size, 1),
        stride=along(layer.stride, 1),
        padding=along(layer.padding, 0),
        dilation=along(layer.dilation, 1),
        groups=groups,
        bias=bias,
        padding_mode=cast(Any, layer.padding_mode),
    )
