"""Reusing the teacher's classifier."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ....pipeline.blueprint import Edit, Insert, LayerSize, Resize
from ..method import Method, Observation, Term
from ..pair import Pair
from ..projection import common_size
from .hint import squared_error


class SimKD(Method, frozen=True, extra="forbid"):
    """The maps before the last pooling, projected into the teacher's own classifier, which the student keeps."""

    kind = "feature"
    needs = ("linear head",)
    source = "SimKD, Chen et al. 2022, arXiv 2203.14001"
    task_weight = 0.0
    stays_at_inference = True

    factor: Annotated[int, Field(ge=1)] = 2
    """The projector's inner channels are the teacher's over this."""

    def edits(self, pair: Pair) -> tuple[Edit, ...]:
        """A projector before the student's last pooling, and a head of the teacher's width."""
        maps = pair.last_maps()
        mine, theirs = maps.student_shape[1], maps.teacher_shape[1]
        head = LayerSize(in_channels=theirs, out_channels=pair.teacher.num_classes)
        return (
            Insert(before=pair.pooling(), in_channels=mine, out_channels=theirs, factor=self.factor),
            Resize(layers={pair.heads()[0]: head}),
        )

    def take_over(self, pair: Pair) -> None:
        """The teacher's classifier becomes the student's; without a task weight, nothing trains it any more."""
        mine, theirs = pair.heads()
        pair.student.module(mine).load_state_dict(pair.teacher.module(theirs).state_dict())

    def term(self, pair: Pair) -> Term:
        """The error of the projected maps; the projector is the student's own by now."""
        maps = pair.last_maps()
        if maps.student_shape[1] != maps.teacher_shape[1]:
            raise pair.cannot("needs a new student, whose projector `distill` puts in place")
        return _LastMaps([maps])


class _LastMaps(Term):
    def forward(self, seen: Observation) -> Tensor:
        """Mean squared error of the maps at the smaller size of the two, (B,)."""
        ((mine, theirs),) = self.maps(seen)
        return squared_error(*common_size(mine, theirs))
