"""In which metric factors come near to a layer: that of its weight, or that of its output on training samples."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..judgement import SAMPLES, sampled
from ..stage import Context

MetricName = Literal["weights", "outputs"]

DAMPING = 0.01
"""Of the mean square of the inputs, added to each, so that directions that the samples lack are not free (as much as in
GPTQ, arXiv:2210.17323)."""
WIDEST = 4096
"""Layers of more inputs get each input's mean square instead of all products of two, a matrix too large to hold."""


@dataclass(frozen=True)
class Metric:
    """A root S of the second moment S Sᵀ of what a layer reads: an error E of its weight is ‖E S‖² at its output.

    Wang et al. 2024 (SVD-LLM, arXiv:2403.07378): factors of W S that lose the least, with S⁻¹ multiplied back into the
    first one, lose the least of the output. Kernels are whitened over their input channels, all positions of a window
    alike: exact for linear layers and 1×1 convolutions, for others as if a window's positions did not correlate.
    An embedding reads tokens, which never come together: S holds the roots of their frequencies (Chen et al. 2018,
    arXiv:1806.06950).
    """

    root: Tensor
    """Lower triangular (inputs, inputs), or the diagonal (inputs) alone; float64."""

    @classmethod
    def of_moment(cls, moment: Tensor) -> "Metric":
        """From the mean of x xᵀ, or that of the squares alone; damped."""
        diagonal = moment if moment.ndim == 1 else moment.diagonal()
        damping = DAMPING * float(diagonal.mean()) or 1.0  # nothing but zeros was read: all errors count alike
        if moment.ndim == 1:
            return cls((moment + damping).sqrt())
        cholesky = cast(Any, torch.linalg).cholesky
        return cls(cholesky(moment + damping * torch.eye(len(moment), dtype=moment.dtype)))

    def whitened(self, weight: Tensor) -> Tensor:
        """The weight (out, in, …) times the root, over its inputs; in float64."""
        columns = weight.double().movedim(1, -1)
        product = columns * self.root if self.root.ndim == 1 else columns @ self.root
        return product.movedim(-1, 1)

    def unwhitened(self, first: Tensor) -> Tensor:
        """The first factor (rank, in, …) of a whitened weight, as it reads the layer's own inputs."""
        columns = first.movedim(1, -1)
        if self.root.ndim == 1:
            return (columns / self.root).movedim(-1, 1)
        solve = cast(Any, torch.linalg).solve_triangular
        solved = cast(Tensor, solve(self.root, columns.flatten(0, -2), upper=False, left=False))
        return solved.reshape(columns.shape).movedim(-1, 1)


@torch.no_grad()
def metrics(model: nn.Module, paths: Iterable[str], context: Context) -> dict[str, Metric]:
    """The metric of each layer's output, from SAMPLES training samples; layers that did not run have none.

    Layers that are too wide for more than the squares of single inputs are named.
    """
    running = deepcopy(model).to(context.device).eval()
    moments: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def remember(path: str) -> Any:
        def hook(layer: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            moment, count = _moment(layer, (*arguments, *keywords.values())[0])
            moments[path] = moments[path] + moment if path in moments else moment
            counts[path] = counts.get(path, 0) + count

        return hook

    hooks = [running.get_submodule(path).register_forward_pre_hook(remember(path), with_kwargs=True) for path in paths]
    try:
        for batch in sampled(context, SAMPLES, context.data.batch_size, "inputs of layers"):
            running(*batch.inputs.values())
    finally:
        for hook in hooks:
            hook.remove()
    wide = [path for path in moments if _inputs(running.get_submodule(path)) > WIDEST]
    if wide:
        context.journal.fact("each input taken by itself", wide)
        context.progress.say(f"{context.step}: too wide to tell how inputs go together: {', '.join(wide)}")
    return {path: Metric.of_moment((moment / counts[path]).cpu()) for path, moment in moments.items()}


def _moment(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, int]:
    """The sum of x xᵀ, or of the squares alone, over all vectors that the layer read, and how many they were."""
    if isinstance(layer, nn.Embedding):
        return torch.bincount(inputs.flatten(), minlength=layer.num_embeddings).double(), inputs.numel()
    if isinstance(layer, nn.Conv2d):
        read = inputs[..., :: layer.stride[0], :: layer.stride[1]] if set(layer.kernel_size) == {1} else inputs
        vectors = read.movedim(1, -1).flatten(0, -2)
    else:
        vectors = inputs.flatten(0, -2)
    vectors = vectors.double()
    if _inputs(layer) > WIDEST:
        return vectors.square().sum(0), len(vectors)
    return vectors.T @ vectors, len(vectors)


def _inputs(layer: nn.Module) -> int:
    """How many inputs may go together; the words of an embedding never do."""
    known: Any = layer
    if isinstance(layer, nn.Embedding):
        return 1
    return known.in_channels if isinstance(layer, nn.Conv2d) else known.in_features
