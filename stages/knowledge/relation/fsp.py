"""The flow of the solution procedure."""

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..bridged import BridgedTerm
from ..method import LayerMethod, Observation, Share, Term, mean_over_layers
from ..pair import Pair
from ..projection import common_size


class Flow(LayerMethod, frozen=True, extra="forbid"):
    """How the channels of one stage go together with those of the next.

    The paper demands as many channels of the student as of the teacher; where they differ, projectors bridge them. It
    trains on the flow alone before the task; here `until` ends the flow early, and the task is learnt throughout.
    """

    kind = "relation"
    source = "FSP, Yim et al. 2017, CVPR"

    weight: Annotated[float, Field(gt=0)] = 50.0
    until: Share = 0.25
    """Fifty of two hundred epochs, the usual first stage on CIFAR."""

    def term(self, pair: Pair) -> Term:
        """For two layers or more of maps, or of tokens that are a square grid of patches."""
        return _FlowTerm(pair.matches(self.layers, grids=True, at_least=2))


class _FlowTerm(BridgedTerm):
    def forward(self, seen: Observation) -> Tensor:
        """The mean over the consecutive layers, (B,)."""
        steps = pairwise(self.grids(seen))
        return mean_over_layers(
            [
                flow_distance((mine, mine_next), (theirs, theirs_next))
                for (mine, theirs), (mine_next, theirs_next) in steps
            ]
        )


def flow_distance(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """The mean over the channels of (G_s - G_t)², (B,) from two maps each. Yim et al. 2017, where it is the sum."""
    return (flow(*student) - flow(*teacher)).square().mean((1, 2))


def flow(first: Tensor, second: Tensor) -> Tensor:
    """G_ij = Σ_{h,w} F_i·F'_j / (H·W) of maps (B, C, H, W) and (B, C', H', W'): (B, C, C'). Yim et al. 2017.

    The larger maps are averaged to the size of the smaller ones.
    """
    first, second = (maps.flatten(2) for maps in common_size(first, second))
    return first @ second.transpose(1, 2) / first.shape[2]
