"""Softmax regression representation learning."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ....pipeline.errors import StageError
from ..method import Method, Observation, Term
from ..pair import Match, Pair
from ..projection import as_maps, width
from .hint import squared_error


class SoftmaxRegression(Method, frozen=True, extra="forbid"):
    """The teacher's pooled features, and what its own head makes of the student's in their place.

    A projector brings the student's last maps to the teacher's channels. The loss of the logits is the mean squared
    error, as in the official code.
    """

    kind = "feature"
    needs = ("features",)
    source = "SRRL, Yang et al. 2021, ICLR"

    features: Annotated[float, Field(ge=0)] = 1.0
    """Multiplies the loss of the pooled features."""
    logits: Annotated[float, Field(ge=0)] = 5.0
    """Multiplies the loss of the logits that the teacher's head gives."""
    weight: Annotated[float, Field(gt=0)] = 1.0

    def term(self, pair: Pair) -> Term:
        """For any two networks with linear heads; on the pooled features where a head does not stand on maps' means."""
        pooled = pair.features()
        try:
            maps = pair.last_maps(grids=True)
        except StageError:
            match = pooled
        else:
            match = Match(maps.student, pooled.teacher, maps.student_shape, pooled.teacher_shape)
        examples = pair.teacher.look([pooled.teacher]).maps[pooled.teacher]
        return _Regression(match, pair.heads()[1], self, rectified=bool((examples >= 0).all()))


class _Regression(Term):
    def __init__(self, match: Match, head: str, method: SoftmaxRegression, *, rectified: bool) -> None:
        super().__init__([match])
        self._head = head
        self._method = method
        mine, theirs = width(match.student_shape), width(match.teacher_shape)
        self.projector = (
            nn.Linear(mine, theirs)
            if len(match.student_shape) == 2
            else nn.Sequential(nn.Conv2d(mine, theirs, 1, bias=False), nn.BatchNorm2d(theirs))
        )
        self._rectified = rectified
        """Whether the teacher's features are behind a ReLU, as those of the paper's networks are."""

    def forward(self, seen: Observation) -> Tensor:
        """(B,)."""
        assert seen.teacher_model is not None
        ((mine, theirs),) = self.maps(seen)
        features = self._projected(mine)
        logits = seen.teacher_model.get_submodule(self._head)(features)
        return self._method.features * squared_error(features, theirs) + self._method.logits * squared_error(
            logits, seen.teacher.logits
        )

    def _projected(self, student: Tensor) -> Tensor:
        """The student's maps or features as features of the teacher's width (B, D)."""
        found = self.projector(student if student.ndim == 2 else as_maps(student))
        if self._rectified:
            found = functional.relu(found)
        return found.flatten(2).mean(2) if found.ndim == 4 else found
