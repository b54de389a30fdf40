"""Class attention transfer."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ....pipeline.taps import Marked
from ..method import FAINT, Method, Observation, Term
from ..pair import Match, Pair
from ..projection import as_maps


class ClassAttention(Method, frozen=True, extra="forbid"):
    """Every class's activation map: where in the image the head sees it.

    The official code takes the mean over the pooled places, the paper their sum: its weights are 1 / resolution² of
    the official ones. Its settings for training with labels set `normalize: false`, with weights that are here 0.2
    (ResNet-56 to 20) to 4 (ResNet-32x4 to 8x4).
    """

    kind = "feature"
    needs = ("linear head",)
    source = "Guo et al. 2023, arXiv 2304.12777"

    resolution: Annotated[int, Field(ge=1)] = 2
    """Height and width to which maps are averaged before they are compared."""
    normalize: bool = True
    """Each map is scaled to length 1, so that where counts, and not how much."""
    weight: Annotated[float, Field(gt=0)] = 12.5

    def term(self, pair: Pair) -> Term:
        """Networks whose heads are linear layers on the means of maps, or of a grid of tokens."""
        return _ClassAttention(pair.last_maps(grids=True), pair.heads(), self)


class _ClassAttention(Term):
    def __init__(self, match: Match, heads: tuple[str, str], method: ClassAttention) -> None:
        super().__init__([match])
        self._heads = heads
        self._method = method

    def forward(self, seen: Observation) -> Tensor:
        """(B,)."""
        assert seen.teacher_model is not None
        ((student, teacher),) = self.maps(seen)
        size = self._method.resolution
        mine = class_activations(as_maps(student), _weight(seen.student_model, self._heads[0]), size)
        theirs = class_activations(as_maps(teacher), _weight(seen.teacher_model, self._heads[1]), size)
        return activation_distance(mine, theirs, normalize=self._method.normalize)


def _weight(model: nn.Module, head: str) -> Tensor:
    state = model.float_state() if isinstance(model, Marked) else model.state_dict(keep_vars=True)
    return state[f"{head}.weight"].float()


def class_activations(maps: Tensor, weight: Tensor, size: int) -> Tensor:
    """A_c = Σ_k w_ck F_k averaged to `size` by `size` places: maps (B, K, H, W), head (C, K) to (B, C, size, size).

    Zhou et al. 2016, arXiv 1512.04150, without the head's bias. Averaging first gives the same for less.
    """
    pooled = functional.adaptive_avg_pool2d(maps, size)
    return (weight @ pooled.flatten(2)).reshape(len(maps), -1, size, size)


def activation_distance(student: Tensor, teacher: Tensor, *, normalize: bool = True) -> Tensor:
    """(1/C) Σ_c ‖a_c / ‖a_c‖₂ - b_c / ‖b_c‖₂‖² of activation maps (B, C, h, w): (B,).

    Guo et al. 2023, arXiv 2304.12777; without `normalize`, of the maps as they are.
    """
    mine, theirs = student.flatten(2), teacher.flatten(2)
    if normalize:
        mine, theirs = functional.normalize(mine, dim=2, eps=FAINT), functional.normalize(theirs, dim=2, eps=FAINT)
    return (mine - theirs).square().sum(2).mean(1)
