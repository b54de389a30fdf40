"""Convolutions with compact filters in the place of dense ones."""

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Field
from torch import nn

from .errors import ArtifactError
from .structure import submodule

FilterKind = Literal["depthwise_separable", "grouped"]
"""`depthwise_separable`: k×k on each channel alone, then 1×1 over all (Howard et al. 2017, MobileNet, arXiv
1704.04861); `grouped`: k×k within groups of channels (Krizhevsky et al. 2012)."""


class CompactFilter(BaseModel, frozen=True, extra="forbid"):
    """What takes the place of a dense k×k convolution."""

    kind: FilterKind
    number: Annotated[int, Field(ge=1)]
    """`depthwise_separable`: k×k filters for each input channel; `grouped`: groups."""


class Compact(BaseModel, frozen=True, extra="forbid"):
    """Convolutions that got compact filters."""

    edit: Literal["compact"] = "compact"
    layers: dict[str, CompactFilter]

    def apply(self, model: nn.Module) -> None:
        """Replace each layer by its compact form, whose weights are still to be loaded."""
        for path, filters in self.layers.items():
            model.set_submodule(path, compacted(submodule(model, path), filters, path))


def compacted(layer: nn.Module, filters: CompactFilter, path: str) -> nn.Sequential | nn.Conv2d:
    """The compact form of a layer with untrained weights, in its mode; stride and padding stay with the k×k filters.

    Raises ArtifactError where such a layer has none.
    """
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        has_bias = cast(Any, layer).bias is not None
        if filters.kind == "depthwise_separable":
            hidden = layer.in_channels * filters.number
            depthwise = _windowed(layer, hidden, layer.in_channels, bias=False)
            return nn.Sequential(depthwise, nn.Conv2d(hidden, layer.out_channels, 1, bias=has_bias)).train(
                layer.training
            )
        if not layer.in_channels % filters.number and not layer.out_channels % filters.number:
            return _windowed(layer, layer.out_channels, filters.number, bias=has_bias).train(layer.training)
    raise ArtifactError(
        f"the blueprint gives `{path}`, a {type(layer).__name__}, {filters.number} {filters.kind} filters, "
        "which such a layer cannot have"
    )


def _windowed(layer: nn.Conv2d, out_channels: int, groups: int, *, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(
        layer.in_channels,
        out_channels,
        cast(tuple[int, int], layer.kernel_size),
        stride=cast(tuple[int, int], layer.stride),
        padding=cast(Any, layer.padding),
        dilation=cast(tuple[int, int], layer.dilation),
        groups=groups,
        bias=bias,
        padding_mode=cast(Any, layer.padding_mode),
    )
