"""Terms that compare channels, of which student and teacher need as many."""

from torch import Tensor, nn

from .method import Observation, Term
from .pair import Match
from .projection import Shape, as_maps, projector


class BridgedTerm(Term):
    """Has a projector for each pair of layers whose channels differ; layers of as many are compared as they are."""

    def __init__(self, matches: list[Match]) -> None:
        super().__init__(matches)
        self.bridges = nn.ModuleList(_bridge(match.student_shape, match.teacher_shape) for match in matches)

    def grids(self, seen: Observation) -> list[tuple[Tensor, Tensor]]:
        """Student's and teacher's maps (B, C, H, W) with the teacher's channels, tokens read as the grids they are."""
        pairs = zip(self.bridges, self.maps(seen), strict=True)
        return [(as_maps(bridge(mine)), as_maps(theirs)) for bridge, (mine, theirs) in pairs]


def _bridge(student: Shape, teacher: Shape) -> nn.Module:
    return nn.Identity() if _channels(student) == _channels(teacher) else projector(student, teacher)


def _channels(shape: Shape) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]
