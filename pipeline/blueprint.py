"""How to rebuild a model: the reference it came from, and every structural change recorded since."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from .errors import ArtifactError
from .models import ModelReference, build


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerSize(_Frozen):
    """The sizes of a resized layer: channels of convolutions and norms, features of linear layers."""

    in_channels: int
    """0 for norms, which have one size only."""
    out_channels: int
    groups: int = 1


class Factors(_Frozen):
    """How a layer was split into a product of smaller ones."""

    kind: Literal["svd", "tucker2"]
    ranks: tuple[int, ...]
    """`svd`: the inner width; `tucker2`: the inner widths of input and output."""


class Resize(_Frozen):
    """Layers that lost channels."""

    edit: Literal["resize"] = "resize"
    layers: dict[str, LayerSize]

    def apply(self, model: nn.Module) -> None:
        """Replace each layer by one of its new size, whose weights are still to be loaded."""
        for path, size in self.layers.items():
            model.set_submodule(path, _resized(_submodule(model, path), size, path))


class Factorize(_Frozen):
    """Layers that became a sequence of factors, numbered in the order they run."""

    edit: Literal["factorize"] = "factorize"
    layers: dict[str, Factors]

    def apply(self, model: nn.Module) -> None:
        """Replace each layer by its factors, whose weights are still to be loaded."""
        for path, factors in self.layers.items():
            model.set_submodule(path, factored(_submodule(model, path), factors, path))


class FoldBatchNorm(_Frozen):
    """Batch norms that were folded into the layers before them."""

    edit: Literal["fold_batch_norm"] = "fold_batch_norm"
    layers: dict[str, str]
    """From the layer's path to its norm's."""

    def apply(self, model: nn.Module) -> None:
        """Give each layer a bias and take its norm out; the weights are still to be loaded."""
        for layer_path, norm_path in self.layers.items():
            layer = _submodule(model, layer_path)
            if layer.bias is None:
                out_channels = cast(torch.Tensor, layer.weight).shape[0]
                layer.bias = nn.Parameter(cast(torch.Tensor, layer.weight).new_zeros(out_channels))
            _submodule(model, norm_path)
            model.set_submodule(norm_path, nn.Identity())


Edit = Annotated[Resize | Factorize | FoldBatchNorm, Field(discriminator="edit")]


class Blueprint(_Frozen):
    """A model reference and the edits made since, in order; `build` gives the structure, weights are loaded into it."""

    model: ModelReference
    input_shapes: dict[str, tuple[int, ...]]
    """By input name, without the batch axis."""
    num_classes: int
    edits: tuple[Edit, ...] = ()

    def build(self) -> nn.Module:
        """The structure with untrained weights. Raises ArtifactError when an edit does not fit the model."""
        model = build(self.model, self.input_shapes, self.num_classes)
        for edit in self.edits:
            edit.apply(model)
        return model

    def with_edit(self, edit: Resize | Factorize | FoldBatchNorm) -> "Blueprint":
        """The same blueprint with one more edit at its end."""
        return self.model_copy(update={"edits": (*self.edits, edit)})


def _submodule(model: nn.Module, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ArtifactError(
            f"the blueprint edits a layer `{path}` that the model does not have; the code of the model has changed "
            "since the artifact was made"
        ) from error


def _resized(layer: Any, size: LayerSize, path: str) -> nn.Module:
    for kind, make in _RESIZERS.items():
        if isinstance(layer, kind):
            return make(layer, size)
    raise ArtifactError(f"the blueprint resizes `{path}`, a {type(layer).__name__}, which has no channels to resize")


def _resized_convolution(layer: Any, size: LayerSize) -> nn.Module:
    return type(layer)(
        size.in_channels,
        size.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=size.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
    )


def _resized_linear(layer: Any, size: LayerSize) -> nn.Module:
    return nn.Linear(size.in_channels, size.out_channels, bias=layer.bias is not None)


def _resized_norm(layer: Any, size: LayerSize) -> nn.Module:
    return type(layer)(
        size.out_channels,
        eps=layer.eps,
        momentum=layer.momentum,
        affine=layer.affine,
        track_running_stats=layer.track_running_stats,
    )


_RESIZERS: Mapping[Any, Callable[[Any, LayerSize], nn.Module]] = {
    (nn.Conv1d, nn.Conv2d): _resized_convolution,
    nn.Linear: _resized_linear,
    (nn.BatchNorm1d, nn.BatchNorm2d): _resized_norm,
}


def factored(layer: Any, factors: Factors, path: str) -> nn.Sequential:
    """The factors of a layer with untrained weights: the last one has the bias, the middle or first one the stride."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear) and factors.kind == "svd":
        (rank,) = factors.ranks
        return nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=bias)
        )
    if isinstance(layer, nn.Conv2d) and factors.kind == "svd":
        (rank,) = factors.ranks
        return nn.Sequential(
            nn.Conv2d(layer.in_channels, rank, 1, stride=cast(Any, layer.stride), bias=False),
            nn.Conv2d(rank, layer.out_channels, 1, bias=bias),
        )
    if isinstance(layer, nn.Conv2d) and factors.kind == "tucker2":
        rank_in, rank_out = factors.ranks
        core = nn.Conv2d(
            rank_in,
            rank_out,
            cast(Any, layer.kernel_size),
            stride=cast(Any, layer.stride),
            padding=cast(Any, layer.padding),
            dilation=cast(Any, layer.dilation),
            bias=False,
        )
        return nn.Sequential(
            nn.Conv2d(layer.in_channels, rank_in, 1, bias=False), core, nn.Conv2d(rank_out, layer.out_channels, 1, bias=bias)
        )
    raise ArtifactError(f"the blueprint factorizes `{path}`, a {type(layer).__name__}, by {factors.kind}")
