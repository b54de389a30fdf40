"""Bias correction: what rounding adds to the mean of a layer's outputs, taken from its bias.

Nagel et al. 2019, arXiv 1906.04721, §4.2, in its empirical form; Banner et al. 2019, arXiv 1810.05723.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx

from ...pipeline.artifact import Artifact
from ...pipeline.blueprint import AddBias
from ...pipeline.fake_quantization import FakeQuantizedModel, fake_quantized
from ...pipeline.quantization import module_path, operator_name
from ..stage import Context
from .calibration import samples
from .placement import LAYERS


def with_biases(artifact: Artifact, paths: Iterable[str]) -> Artifact:
    """The artifact with a bias of zero in those of its layers that have none."""
    bare = tuple(path for path in paths if cast(Any, artifact.model.get_submodule(path)).bias is None)
    if not bare:
        return artifact
    edit = AddBias(layers=bare)
    model = deepcopy(artifact.model)
    edit.apply(model)
    return replace(artifact, model=model, blueprint=artifact.blueprint.with_edit(edit))


@torch.no_grad()
def bias_corrected(artifact: Artifact, context: Context) -> Artifact:
    """The calibrated artifact with biases that undo the mean error of every channel of its int8 layers.

    The layers go in the order of the graph, each on inputs from layers that are corrected already. Their outputs are
    compared on the samples of the calibration.
    """
    assert artifact.quantization is not None
    graph = fake_quantized(artifact.model, artifact.quantization, context.data.example())
    layers, left = _correctable(graph.graph)
    errors = dict.fromkeys(layers.values(), torch.zeros(()))
    deviations = dict.fromkeys(layers.values(), 0.0)
    batches = list(samples(artifact.quantization, context))
    total = sum(len(batch.target) for batch in batches)
    for batch in batches:
        share = len(batch.target) / total
        for path, (error, deviation) in _errors(graph, layers, batch.inputs).items():
            errors[path] = errors[path] + share * error
            deviations[path] += share * deviation
    corrected = with_biases(artifact, layers.values())
    model = deepcopy(corrected.model)
    for path, error in errors.items():
        cast(Any, model.get_submodule(path)).bias.sub_(error)
    shares = {path: float(error.square().mean().sqrt()) / deviations[path] for path, error in errors.items()}
    context.journal.fact("mean errors taken from biases, as shares of the outputs' deviation", shares)
    if left:
        context.journal.fact("biases not corrected", left)
    return replace(corrected, model=model)


def _correctable(graph: fx.GraphModule) -> tuple[dict[fx.Node, str], dict[str, str]]:
    """The int8 layers with a weight of their own that run once, by node; and the others, with the reason."""
    found: dict[fx.Node, str] = {}
    left: dict[str, str] = {}
    for node in graph.graph.nodes:
        if operator_name(node) not in LAYERS or node.args[1].op != "call_module":
            continue
        weight, path = node.args[1].args[0], module_path(node)
        if len(node.args[1].users) > 1:
            left[path] = "it runs more than once"
        elif weight.target != f"{path}.weight":
            left[path] = "its weights are those of another module"
        else:
            found[node] = path
    return found, left


def _errors(
    graph: FakeQuantizedModel, layers: Mapping[fx.Node, str], inputs: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, float]]:
    """By layer the mean errors of its channels in one batch, and the standard deviation of its float outputs.

    Each is measured with the errors of the layers before it taken away.
    """
    floats: dict[str, tuple[Tensor, float]] = {}
    errors: dict[str, tuple[Tensor, float]] = {}

    def look(node: fx.Node, output: Tensor) -> Tensor:
        floats[layers[node]] = _mean(node, output), max(float(output.std()), torch.finfo(torch.float32).eps)
        return output

    def correct(node: fx.Node, output: Tensor) -> Tensor:
        mean, deviation = floats[layers[node]]
        error = _mean(node, output) - mean
        errors[layers[node]] = error, deviation
        return output - (error if operator_name(node) == "linear" else error.view(-1, *(1,) * (output.ndim - 2)))

    with graph.rounding(on=False):
        _Watched(graph.graph, layers, look).run(*inputs.values())
    _Watched(graph.graph, layers, correct).run(*inputs.values())
    return errors


def _mean(node: fx.Node, output: Tensor) -> Tensor:
    channels = output.ndim - 1 if operator_name(node) == "linear" else 1
    return output.mean([axis for axis in range(output.ndim) if axis != channels])


class _Watched(fx.Interpreter):
    """Runs a graph and passes the outputs of some nodes through a function."""

    def __init__(
        self, graph: fx.GraphModule, nodes: Iterable[fx.Node], see: Callable[[fx.Node, Tensor], Tensor]
    ) -> None:
        super().__init__(graph)
        self._nodes = set(nodes)
        self._see = see

    def run_node(self, n: fx.Node) -> Any:
        """What the node gives, as the function leaves it."""
        output = super().run_node(n)
        return self._see(n, output) if n in self._nodes else output
