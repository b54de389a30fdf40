"""Folding batch norms into the layers before them, so that the engine sees one layer and one quantizer."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, fx, nn

from ...pipeline.blueprint import FoldBatchNorm
from ...pipeline.quantization import capture, module_path, operator_name

FOLDABLE = frozenset({"conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear"})


def fold_batch_norms(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[nn.Module, FoldBatchNorm]:
    """A copy that computes the same in eval mode, without the batch norms that directly follow a layer; and the edit.

    A norm stays when its layer has other readers or runs more than once. Formula: w' = w·γ/√(σ²+ε),
    b' = (b − μ)·γ/√(σ²+ε) + β (Jacob et al. 2018, arXiv 1712.05877, §3.2).
    """
    edit = FoldBatchNorm(edit="fold_batch_norm", layers=_pairs(capture(model, inputs)))
    folded = deepcopy(model).eval()
    edit.apply(folded)
    for layer_path, norm_path in edit.layers.items():
        layer, norm = model.get_submodule(layer_path), model.get_submodule(norm_path)
        weight, bias = _folded(layer, norm)
        target = folded.get_submodule(layer_path)
        target.load_state_dict({"weight": weight, "bias": bias})
    return folded, edit


def _pairs(graph: fx.GraphModule) -> dict[str, str]:
    nodes = list(graph.graph.nodes)
    calls: dict[str, int] = {}
    for node in nodes:
        if operator_name(node) in (*FOLDABLE, "batch_norm"):
            calls[module_path(node)] = calls.get(module_path(node), 0) + 1
    pairs: dict[str, str] = {}
    for norm in nodes:
        if operator_name(norm) != "batch_norm":
            continue
        layer = norm.args[0]
        foldable = operator_name(layer) in FOLDABLE and len(layer.users) == 1
        if foldable and calls[module_path(layer)] == 1 and calls[module_path(norm)] == 1:
            pairs[module_path(layer)] = module_path(norm)
    return pairs


@torch.no_grad()
def _folded(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    factor = (variance + norm.eps).rsqrt()
    shift = -mean
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    if norm.affine:
        factor = factor * norm.weight.double()
    bias = shift * factor
    if norm.affine:
        bias = bias + norm.bias.double()
    weight, spatial = layer.weight.double(), (1,) * (layer.weight.ndim - 2)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):  # (in, out / groups, …), the inputs group by group
        factor = factor.view(layer.groups, -1).repeat_interleave(layer.in_channels // layer.groups, 0)
        return (weight * factor.view(*factor.shape, *spatial)).float(), bias.float()
    return (weight * factor.view(-1, 1, *spatial)).float(), bias.float()
