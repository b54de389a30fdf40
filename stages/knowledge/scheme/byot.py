"""Being one's own teacher."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..method import Method, Observation, Term
from ..pair import Layers, Match, Pair
from ..projection import Shape, as_tokens, projector
from ..response.kd import soft_targets


class BeYourOwnTeacher(Method, frozen=True, extra="forbid"):
    """The network's own outputs and last features, by heads at its earlier stages that are dropped afterwards."""

    kind = "scheme"
    needs = ("maps", "labels")
    source = "BYOT, Zhang et al. 2019, arXiv 1905.08094"
    learns_from_teacher = False

    layers: Layers = "auto"
    """Where heads stand; the last layer is the one whose features they learn. `auto`: the ends of the stages."""
    temperature: Annotated[float, Field(gt=0)] = 3.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1
    """How much a head learns from the deepest output in place of the labels."""
    beta: Annotated[float, Field(ge=0)] = 1e-4
    """Multiplies the squared distance to the deepest features. The authors' code sums it over the batch, with 1e-6."""

    def term(self, pair: Pair) -> Term:
        """A bottleneck and a classifier for each layer but the last."""
        return _Heads(pair.matches(self.layers, at_least=2), pair, self)


class _Heads(Term):
    def __init__(self, matches: list[Match], pair: Pair, settings: BeYourOwnTeacher) -> None:
        super().__init__(matches)
        *earlier, deepest = [match.student_shape for match in matches]
        self.bottlenecks = nn.ModuleList(bottleneck(shape, deepest) for shape in earlier)
        channels = deepest[1] if len(deepest) == 4 else deepest[-1]
        self.classifiers = nn.ModuleList(nn.Linear(channels, pair.student.num_classes) for _ in earlier)
        self._settings = settings

    def forward(self, seen: Observation) -> Tensor:
        """The sum of the heads' losses, (B,)."""
        *earlier, deepest = [seen.student.maps[match.student] for match in self.matches]
        losses: list[Tensor] = []
        for narrowed, classifier, maps in zip(self.bottlenecks, self.classifiers, earlier, strict=True):
            features = narrowed(maps)
            logits = classifier(as_tokens(features).mean(1) if features.ndim > 2 else features)
            losses.append(self._loss(logits, features, seen, deepest))
        return torch.stack(losses).sum(0)

    def _loss(self, logits: Tensor, features: Tensor, seen: Observation, deepest: Tensor) -> Tensor:
        settings = self._settings
        return (
            (1 - settings.alpha) * functional.cross_entropy(logits, seen.batch.target, reduction="none")
            + settings.alpha * soft_targets(logits, seen.student.logits.detach(), settings.temperature)
            + settings.beta * (features - deepest.detach()).square().flatten(1).sum(1)
        )


def bottleneck(shape: Shape, deepest: Shape) -> nn.Module:
    """From what flows at an earlier layer to the shape of the deepest: strided convolutions, or a layer on tokens."""
    if len(shape) != 4:
        return nn.Sequential(nn.Linear(shape[-1], shape[-1]), nn.GELU(), projector(shape, deepest))
    channels, height, width = shape[1:]
    layers: list[nn.Module] = []
    smallest = deepest[2:] if len(deepest) == 4 else (height, width)
    while not layers or (height > smallest[0] and width > smallest[1]):
        stride = 2 if height > smallest[0] and width > smallest[1] else 1
        layers += [
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        height, width = -(-height // stride), -(-width // stride)
    return nn.Sequential(*layers, projector((shape[0], channels, height, width), deepest))
