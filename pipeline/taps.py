"""Reading what flows through a network while it runs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

INPUT = ":input"
"""Ends a tap that reads what goes into a module; without it, a tap reads what comes out."""


class Marked(nn.Module, ABC):
    """A model whose forward is a graph without its modules; marks stand where the tapped ones were."""

    marks: Mapping[str, nn.Module]
    """By tap, a module through which the tapped tensor passes unchanged."""

    @abstractmethod
    def float_state(self) -> dict[str, Tensor]:
        """The parameters and buffers of the model that the graph is of, by its own names."""


class Taps:
    """A context manager within which the tensors at `taps` are kept while the model runs.

    A tap is a module path, such as ``layer3.2.relu2`` for what the module returns, or ``layer3.2.relu2:input`` for its
    first argument. Tensors are copied when they pass, since a later operation may change them in place; gradients flow
    through the copies. A module that runs several times in one forward leaves what it had last.
    """

    def __init__(self, model: nn.Module, taps: Iterable[str]) -> None:
        self.tensors: dict[str, Tensor] = {}
        """By tap, of the last forward; a tap whose module gave no single tensor is missing."""
        self.edges: dict[str, GradientEdge] = {}
        """By tap, where the tensor stood in the graph when it passed; taps without gradients are missing."""
        self._model = model
        self._taps = tuple(taps)
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for tap in self._taps:
            mark = self._model.marks[tap] if isinstance(self._model, Marked) else None
            module = mark or self._model.get_submodule(path_of(tap))
            if tap.endswith(INPUT) and mark is None:
                self._handles.append(module.register_forward_pre_hook(self._input_keeper(tap)))
            else:
                self._handles.append(module.register_forward_hook(self._output_keeper(tap)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _input_keeper(self, tap: str) -> Any:
        def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], Tensor):
                self._keep(tap, arguments[0])

        return keep

    def _output_keeper(self, tap: str) -> Any:
        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._keep(tap, output)

        return keep

    def _keep(self, tap: str, tensor: Tensor) -> None:
        self.tensors[tap] = tensor.clone()
        if tensor.requires_grad:
            self.edges[tap] = get_gradient_edge(tensor)


def path_of(tap: str) -> str:
    """The module that a tap reads at."""
    return tap.removesuffix(INPUT)


def module_paths(model: nn.Module) -> list[str]:
    """Every module below the model itself."""
    return [path for path in dict(cast("Iterator[tuple[str, nn.Module]]", model.named_modules())) if path]


@dataclass(frozen=True)
class Outputs:
    """What a network gave for one batch, in float32."""

    logits: Tensor
    """Shape (B, classes)."""
    maps: Mapping[str, Tensor]
    """By tap: feature maps (B, C, H, W), tokens (B, N, D), vectors (B, D), or attention (B, heads, N, N)."""
    edges: Mapping[str, GradientEdge] = field(default_factory=dict[str, GradientEdge])
    """By tap, where the map stood in the graph; none for a network that ran without gradients."""
    whole: Callable[[Tensor], Tensor] | None = None
    """Where several processes ran the network: makes what belongs to this one's rows that of the whole batch."""

    def gradient(self, score: Tensor, tap: str) -> Tensor:
        """The derivative of a scalar of the logits by the map at a tap, itself differentiable.

        The maps are copies that the logits do not depend on; this is the derivative by what the network went on with.
        """
        (found,) = torch.autograd.grad(score, [self.edges[tap]], create_graph=True)
        return found.float() if self.whole is None else self.whole(found)


def outputs_of(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    taps: Collection[str] = (),
    run: Callable[..., Tensor] | None = None,
) -> Outputs:
    """Run the model, or what computes the same without taps, and keep what flows at the taps."""
    with Taps(model, taps) as found:
        logits = (run or model)(*inputs.values())
    return Outputs(logits.float(), {tap: tensor.float() for tap, tensor in found.tensors.items()}, found.edges)
