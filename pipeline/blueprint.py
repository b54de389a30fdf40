"""How to rebuild a model: the reference it came from, and every structural change recorded since."""

from collections.abc import Iterable
from copy import deepcopy
from itertools import chain
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from .bottleneck import Bottleneck
from .compact_filters import Compact
from .cost import CONVOLUTIONS, TRANSPOSED
from .errors import ArtifactError
from .factors import Factors, factored
from .front_end import FrontEnd, WithFrontEnd
from .models import ModelReference, PythonModel, build
from .networks.network import Network
from .sharing import Cluster
from .structure import submodule as _submodule


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerSize(_Frozen):
    """The sizes of a resized layer: channels of convolutions and norms, features of linear layers and embeddings."""

    in_channels: int
    """0 for norms, PReLU and embeddings, which have one size only."""
    out_channels: int
    groups: int = 1


class Resize(_Frozen):
    """Layers that lost channels, and what else of a model holds their number."""

    edit: Literal["resize"] = "resize"
    layers: dict[str, LayerSize]
    tensors: dict[str, tuple[int, ...]] = Field(default_factory=dict[str, tuple[int, ...]])
    """The shapes of parameters and buffers outside of these layers, such as position embeddings, by name."""
    attributes: dict[str, int] = Field(default_factory=dict[str, int])
    """Integers that code reads from modules, such as the number of heads, by the module's path and their name."""

    def apply(self, model: nn.Module) -> None:
        """Replace each layer and tensor by one of its new size, whose values are still to be loaded."""
        for path, size in self.layers.items():
            model.set_submodule(path, _resized(_submodule(model, path), size, path))
        for path, shape in self.tensors.items():
            owner, name = _held(model, path, torch.Tensor)
            tensor = getattr(owner, name)
            zeros = tensor.new_zeros(shape)
            setattr(owner, name, nn.Parameter(zeros) if isinstance(tensor, nn.Parameter) else zeros)
        for path, value in self.attributes.items():
            owner, name = _held(model, path, int)
            setattr(owner, name, value)


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
            layer, norm = _submodule(model, layer_path), _submodule(model, norm_path)
            size = size_of(layer)
            if size is None or not hasattr(layer, "bias") or not isinstance(norm, _NORMS):
                raise ArtifactError(
                    f"the blueprint folds `{norm_path}`, a {type(norm).__name__}, into `{layer_path}`, "
                    f"a {type(layer).__name__}: a batch norm folds into a convolution or linear layer only"
                )
            _add_bias(layer, size)
            model.set_submodule(norm_path, nn.Identity())


class AddBias(_Frozen):
    """Layers without a bias that were given one."""

    edit: Literal["add_bias"] = "add_bias"
    layers: tuple[str, ...]

    def apply(self, model: nn.Module) -> None:
        """Give each layer a bias of zero; its values are still to be loaded."""
        for path in self.layers:
            layer = _submodule(model, path)
            size = size_of(layer)
            if size is None or not hasattr(layer, "bias"):
                raise ArtifactError(
                    f"the blueprint gives `{path}`, a {type(layer).__name__}, a bias: only convolutions and linear "
                    "layers can have one"
                )
            _add_bias(layer, size)


class Insert(_Frozen):
    """A bottleneck that maps pass before they reach a layer without weights, such as the last pooling."""

    edit: Literal["insert"] = "insert"
    before: str
    in_channels: int
    out_channels: int
    factor: int

    def apply(self, model: nn.Module) -> None:
        """Put the bottleneck before the layer, both in one sequence at the layer's path; weights are still to come."""
        layer = _submodule(model, self.before)
        bottleneck = Bottleneck(self.in_channels, self.out_channels, self.factor)
        model.set_submodule(self.before, nn.Sequential(bottleneck, layer))


class Bypass(_Frozen):
    """Residual blocks that were taken out: what came in goes on as it is."""

    edit: Literal["bypass"] = "bypass"
    blocks: tuple[str, ...]

    def apply(self, model: nn.Module) -> None:
        """Replace each block by an identity."""
        for path in self.blocks:
            _submodule(model, path)  # refuses a path that the model does not have
            model.set_submodule(path, nn.Identity())


class Sparsify(_Frozen):
    """Layers whose weights hold 2:4 sparsity; every later training leaves their zeros at zero."""

    edit: Literal["sparsify"] = "sparsify"
    layers: tuple[str, ...]

    def apply(self, model: nn.Module) -> None:
        """Nothing in the structure changes: the zeros come with the weights."""
        for path in self.layers:
            _submodule(model, path)  # refuses a path that the model does not have


AnyEdit = Resize | Factorize | FoldBatchNorm | AddBias | Insert | Bypass | Cluster | Compact | Sparsify
Edit = Annotated[AnyEdit, Field(discriminator="edit")]


class Blueprint(_Frozen):
    """A model reference and the edits made since, in order; `build` gives the structure, weights are loaded into it."""

    model: ModelReference
    input_shapes: dict[str, tuple[int, ...]]
    """By input name, without the batch axis."""
    num_classes: int
    """How many outputs it has for one sample along their first axis: of a classification the classes, of a regression
    the numbers or a map's channels; 0 where only the user's model and task know."""
    vocabulary: int = 0
    """How many tokens the data's tokenizer knows; 0 where samples are no texts."""
    front_end: FrontEnd | None = None
    """What makes maps of the waveforms that are the input; the model is then one for these maps."""
    edits: tuple[Edit, ...] = ()

    def build(self) -> nn.Module:
        """The structure with untrained weights. Raises ArtifactError when an edit does not fit the model."""
        model = self.unedited(self.model)
        for edit in self.edits:
            edit.apply(model)
        return model

    def unedited(self, model: Network | PythonModel) -> nn.Module:
        """A new network of this or another reference, for the same inputs and outputs."""
        if self.front_end is None:
            return build(model, self.input_shapes, self.num_classes, self.vocabulary)
        ((name, (samples,)),) = self.input_shapes.items()
        network = build(model, {name: self.front_end.shape(samples)}, self.num_classes)
        return WithFrontEnd(self.front_end.module(), network)

    @property
    def sparse_layers(self) -> tuple[str, ...]:
        """The paths of the layers whose weights hold 2:4 sparsity."""
        return tuple(path for edit in self.edits if isinstance(edit, Sparsify) for path in edit.layers)

    def with_edit(self, edit: AnyEdit) -> "Blueprint":
        """The same blueprint with one more edit at its end."""
        return self.model_copy(update={"edits": (*self.edits, edit)})


def _add_bias(layer: Any, size: LayerSize) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(size.out_channels))


def _held(model: nn.Module, path: str, kind: type) -> tuple[Any, str]:
    """The module that holds what `path` names, and its name there."""
    parent, _, name = path.rpartition(".")
    owner = _submodule(model, parent)
    if not isinstance(getattr(owner, name, None), kind):
        raise ArtifactError(
            f"the blueprint edits `{path}`, which the model does not have; the code of the model has changed since the "
            "artifact was made"
        )
    return owner, name


_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_LAYER_NORMS = (nn.LayerNorm, nn.RMSNorm)
_STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def size_of(layer: nn.Module) -> LayerSize | None:
    """The size of a layer that `Resize` can change; None for every other module."""
    known: Any = layer
    state = {name for name, _ in chain(layer.named_parameters(), layer.named_buffers())}
    if isinstance(layer, _LAYER_NORMS) and state <= _STATE:
        return (
            LayerSize(in_channels=0, out_channels=known.normalized_shape[0])
            if len(known.normalized_shape) == 1
            else None
        )
    if isinstance(layer, nn.GroupNorm) and state <= _STATE:
        return LayerSize(in_channels=0, out_channels=layer.num_channels, groups=layer.num_groups)
    if not state or not state <= _STATE:
        return None  # such as a layer under weight norm, whose size lies in tensors of other names
    if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        return LayerSize(in_channels=known.in_channels, out_channels=known.out_channels, groups=known.groups)
    if isinstance(layer, nn.Linear):
        return LayerSize(in_channels=known.in_features, out_channels=known.out_features)
    if isinstance(layer, _NORMS):
        return LayerSize(in_channels=0, out_channels=known.num_features)
    if isinstance(layer, nn.Embedding):
        return LayerSize(in_channels=0, out_channels=layer.embedding_dim)
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return LayerSize(in_channels=0, out_channels=layer.num_parameters)
    return None


def layer_sizes(model: nn.Module) -> dict[str, LayerSize]:
    """The sizes of all layers that `Resize` can change, by path, in the order the model lists them."""
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    sizes = ((path, size_of(module)) for path, module in modules)
    return {path: size for path, size in sizes if size is not None}


def _resized(layer: nn.Module, size: LayerSize, path: str) -> nn.Module:
    """A copy with the layer's class and every other setting; its tensors are zero, of the new shapes."""
    if size_of(layer) is None:
        raise ArtifactError(
            f"the blueprint resizes `{path}`, a {type(layer).__name__}, which has no channels that can be taken out"
        )
    resized = deepcopy(layer)
    for name, value in _size_attributes(layer, size).items():
        setattr(resized, name, value)
    for name, parameter in layer.named_parameters():
        setattr(resized, name, nn.Parameter(parameter.new_zeros(_shape(layer, name, parameter, size))))
    for name, buffer in layer.named_buffers():
        setattr(resized, name, buffer.new_zeros(_shape(layer, name, buffer, size)))
    return resized


def _size_attributes(layer: nn.Module, size: LayerSize) -> dict[str, int | tuple[int, ...]]:
    if isinstance(layer, nn.Linear):
        return {"in_features": size.in_channels, "out_features": size.out_channels}
    if isinstance(layer, _LAYER_NORMS):
        return {"normalized_shape": (size.out_channels,)}
    if isinstance(layer, nn.GroupNorm):
        return {"num_channels": size.out_channels, "num_groups": size.groups}
    if isinstance(layer, nn.Embedding):
        return {"embedding_dim": size.out_channels}
    if isinstance(layer, nn.PReLU):
        return {"num_parameters": size.out_channels}
    if isinstance(layer, _NORMS):
        return {"num_features": size.out_channels}
    return {"in_channels": size.in_channels, "out_channels": size.out_channels, "groups": size.groups}


def _shape(layer: nn.Module, name: str, tensor: torch.Tensor, size: LayerSize) -> tuple[int, ...]:
    if tensor.ndim == 0:
        return ()
    if tensor.ndim == 1:
        return (size.out_channels,)
    if isinstance(layer, nn.Embedding):
        return (len(tensor), size.out_channels)
    if isinstance(layer, TRANSPOSED):
        return (size.in_channels, size.out_channels // size.groups, *tensor.shape[2:])
    return (size.out_channels, size.in_channels // size.groups, *tensor.shape[2:])
