"""Weights that share values: a small codebook a layer, and for every weight the number of its entry, packed into bits.

Trained quantization and weight sharing (Han et al. 2016, Deep Compression, arXiv 1510.00149).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .errors import ArtifactError
from .structure import submodule

MOST_CLUSTERS = 256
"""What eight bits can number."""


class Codebook(BaseModel, frozen=True, extra="forbid"):
    """How many values the weights of one layer take."""

    clusters: Annotated[int, Field(ge=2, le=MOST_CLUSTERS)]
    """Different values, the zero among them."""
    zero: bool = False
    """Whether the first value is exactly 0 and stays so: weights that were pruned before stay out."""

    @property
    def bits(self) -> int:
        """Of one weight's number."""
        return (self.clusters - 1).bit_length()

    @property
    def entries(self) -> int:
        """The values that can be trained."""
        return self.clusters - self.zero

    def stored_bytes(self, weights: int) -> int:
        """Of the packed numbers and the float values of a layer with so many weights."""
        return sum(plane.stop - plane.start for plane in planes(weights, self.bits)) + 4 * self.clusters


class Cluster(BaseModel, frozen=True, extra="forbid"):
    """Layers whose weights came to share the values of a codebook."""

    edit: Literal["cluster"] = "cluster"
    layers: dict[str, Codebook]

    def apply(self, model: nn.Module) -> None:
        """Let each layer's weight be read from a codebook; its values and the numbers are still to be loaded."""
        for path, codebook in self.layers.items():
            layer = submodule(model, path)
            weight = getattr(layer, "weight", None)
            if not isinstance(weight, nn.Parameter) or parametrize.is_parametrized(layer):
                raise ArtifactError(
                    f"the blueprint lets the weights of `{path}`, a {type(layer).__name__}, share values, "
                    "but it has no weight of its own"
                )
            share(layer, SharedWeight(weight.shape, codebook))


@dataclass(frozen=True)
class Plane:
    """Some of the bits of every number, as many numbers in a byte as fit."""

    width: int
    """Bits: 8, 4, 2 or 1."""
    offset: int
    """How far these bits are shifted in the number."""
    start: int
    """Where the plane's bytes begin."""
    stop: int

    @property
    def mask(self) -> int:
        """The bits of one number, at a byte's low end."""
        return 2**self.width - 1

    @property
    def shifts(self) -> list[int]:
        """Where in a byte its numbers' bits begin."""
        return list(range(0, 8, self.width))


def planes(count: int, bits: int) -> Iterator[Plane]:
    """How `count` numbers of so many bits lie in bytes: bits that do not divide 8 are split into some that do."""
    offset = start = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            stop = start + math.ceil(count * width / 8)
            yield Plane(width, offset, start, stop)
            offset, start = offset + width, stop


def packed(numbers: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2^bits, (N), as bytes."""
    found: list[Tensor] = []
    for plane in planes(len(numbers), bits):
        part = (numbers.to(torch.uint8) >> plane.offset) & plane.mask
        rows = nn.functional.pad(part, (0, -len(part) % len(plane.shifts))).view(-1, len(plane.shifts))
        found.append((rows << _shifts(plane, rows)).sum(1, dtype=torch.uint8))
    return torch.cat(found)


def unpacked(stored: Tensor, count: int, bits: int) -> Tensor:
    """The `count` numbers that `packed` put away, int64."""
    numbers = torch.zeros(count, dtype=torch.int64, device=stored.device)
    for plane in planes(count, bits):
        rows = stored[plane.start : plane.stop, None]
        part = (rows >> _shifts(plane, rows)) & plane.mask
        numbers |= part.flatten()[:count].long() << plane.offset
    return numbers


def _shifts(plane: Plane, rows: Tensor) -> Tensor:
    return torch.tensor(plane.shifts, dtype=torch.uint8, device=rows.device)


class SharedWeight(nn.Module):
    """A weight made of its codebook, as a parametrization: the values are trained, which weight has which is held.

    The gradients of all weights that have a value are summed in it. What is trained is the value times the root of how
    many weights have it: in these coordinates a step of gradient descent is that of the single weights, projected on
    those that share values, so learning rates and the limit of the gradient's norm mean what they did before.
    """

    packed: Tensor

    def __init__(self, shape: Sequence[int], codebook: Codebook, numbers: Tensor | None = None) -> None:
        """`numbers`, (N), says which value each weight has; without them, all have the first one."""
        super().__init__()
        self.shape = torch.Size(shape)
        self.codebook = codebook
        if numbers is None:
            numbers = torch.zeros(self.shape.numel(), dtype=torch.uint8)
        self.register_buffer("packed", packed(numbers, codebook.bits))

    @property
    def numbers(self) -> Tensor:
        """Which value each weight has, (N)."""
        return unpacked(self.packed, self.shape.numel(), self.codebook.bits)

    def values(self, entries: Tensor) -> Tensor:
        """The whole codebook, with its zero, of what is trained."""
        return self._values(entries, self.numbers)

    def forward(self, entries: Tensor) -> Tensor:
        """The weight, in the layer's shape."""
        numbers = self.numbers
        return self._values(entries, numbers).index_select(0, numbers).view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained, for the values that come nearest to a weight: the means of those that share each of them."""
        numbers = self.numbers
        sums = torch.zeros(self.codebook.clusters, dtype=torch.float64, device=weight.device)
        sums.index_add_(0, numbers, weight.detach().flatten().double())
        return (sums / self._roots(numbers).double()).to(weight.dtype)[self.codebook.zero :]

    def _values(self, entries: Tensor, numbers: Tensor) -> Tensor:
        values = entries / self._roots(numbers)[self.codebook.zero :]
        return torch.cat([values.new_zeros(1), values]) if self.codebook.zero else values

    def _roots(self, numbers: Tensor) -> Tensor:
        return torch.bincount(numbers, minlength=self.codebook.clusters).clamp(min=1).float().sqrt()


def share(layer: nn.Module, shared: SharedWeight) -> None:
    """Put a codebook in the place of the layer's own weight, its entries as near to that as they come."""
    parametrize.register_parametrization(layer, "weight", shared)


def shared_weights(model: nn.Module) -> dict[str, SharedWeight]:
    """The layers whose weights share values, by path."""
    found: dict[str, SharedWeight] = {}
    for path, module in cast(Iterable[tuple[str, Any]], model.named_modules()):
        if parametrize.is_parametrized(module, "weight") and isinstance(
            module.parametrizations.weight[0], SharedWeight
        ):
            found[path] = module.parametrizations.weight[0]
    return found


def codebook_of(layer: nn.Module) -> Tensor:
    """The values that the weights of such a layer share."""
    parametrized = cast(Any, layer).parametrizations.weight
    return cast(SharedWeight, parametrized[0]).values(parametrized.original).detach()


def plain(model: nn.Module) -> nn.Module:
    """A copy whose layers have their weights as ordinary tensors; the model itself where none of them share values."""
    paths = shared_weights(model)
    if not paths:
        return model
    copy = deepcopy(model)
    for path in paths:
        layer: Any = copy.get_submodule(path)
        weight = nn.Parameter(layer.weight.detach(), requires_grad=layer.parametrizations.weight.original.requires_grad)
        # torch's own `remove_parametrizations` changes the class, which copies of a layer have in common.
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer.parametrizations
        layer.register_parameter("weight", weight)
    return copy
