"""Parts of a model that have nothing to do with each other, as one module: exported at once, timed one by one."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .fingerprints import fingerprint
from .seeding import generator


@dataclass(frozen=True)
class Part:
    """A layer or a block that takes one float tensor."""

    module: nn.Module
    """Tensors on the meta device are drawn when it is run: the many sizes of one layer need no memory until then."""
    shape: tuple[int, ...]
    """Of the tensor when the model runs on one sample."""

    @cached_property
    def description(self) -> str:
        """What its time can depend on: class, settings and sizes, in one line."""
        kind = type(self.module)
        sizes = " ".join(f"{name}{list(tensor.shape)}" for name, tensor in self.module.state_dict().items())
        return f"{kind.__module__}.{kind.__qualname__} {' '.join(repr(self.module).split())} {sizes}"

    @cached_property
    def key(self) -> str:
        """Equal for parts of equal description and shape."""
        return fingerprint(self.description, list(self.shape))

    @property
    def num_weights(self) -> int:
        """Elements of its parameters."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def inputs(self, batch: int) -> Tensor:
        """Drawn values, the same ones each time; the first dimension is `batch` times that of one sample."""
        return torch.randn(self.shape[0] * batch, *self.shape[1:], generator=generator(0, "part"))

    def runnable(self) -> nn.Module:
        """A copy in eval mode with every tensor in memory."""
        module = deepcopy(self.module).eval()
        if any(parameter.is_meta for parameter in module.parameters()):
            module.to_empty(device="cpu")
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.1, generator=generator(0, "part"))
        return module


class SideBySide(nn.Module):
    """Each part on an input of its own; as many outputs as parts."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part.runnable() for part in parts)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The parts' outputs in their order."""
        return tuple(part(values) for part, values in zip(self.parts, inputs, strict=True))
