"""Activation boundaries."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..method import LayerMethod, Observation, Share, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import projector


class ActivationBoundaries(LayerMethod, frozen=True, extra="forbid"):
    """Which neurons of the teacher are active, however strongly.

    Compares what goes into the activations; layers that a recipe names are taken as they are, so name those before an
    activation, such as ``layer1.0.relu2:input``. The paper transfers boundaries first and learns the task after;
    here the task is learnt all along, and the boundaries in the first quarter of the training. The paper sums over
    neurons; with the mean, the weight of the usual code for the three stages of a CIFAR ResNet is 36.
    """

    source = "AB, Heo et al. 2019, arXiv 1811.03233"

    margin: Annotated[float, Field(ge=0)] = 1.0
    """How far on the teacher's side of zero the student's values must be."""
    weight: Annotated[float, Field(gt=0)] = 36.0
    until: Share = 0.25

    def term(self, pair: Pair) -> Term:
        """A projector for each pair of layers; `auto` takes maps alone, as a transformer's blocks end in no activation.

        Raises StageError where no module shows what goes into an activation.
        """
        axes = (4,) if self.layers == "auto" else (2, 3, 4)
        return _Boundaries(pair.matches(self.layers, axes=axes, before_activation=True), self.margin)


class _Boundaries(Term):
    def __init__(self, matches: list[Match], margin: float) -> None:
        super().__init__(matches)
        self._margin = margin
        self.projectors = nn.ModuleList(projector(match.student_shape, match.teacher_shape) for match in matches)

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, (B,)."""
        pairs = zip(self.projectors, self.maps(seen), strict=True)
        return mean_over_layers(
            [wrong_side(projector(mine), theirs, self._margin) for projector, (mine, theirs) in pairs]
        )


def wrong_side(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """The mean of relu(m - s)² where t > 0 and relu(m + s)² where t ≤ 0, of values before activations: (B, …) to (B,).

    Heo et al. 2019: the square in place of the step function whose gradient is zero.
    """
    side = (teacher > 0).to(student.dtype) * 2 - 1
    return functional.relu(margin - side * student).square().flatten(1).mean(1)
