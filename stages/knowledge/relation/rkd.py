"""Distances and angles between samples."""

from functools import partial
from typing import Annotated, Any, cast

from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType] - untyped

from ..method import Method, Observation, Term
from ..pair import Pair

TINY = 1e-12
"""The least squared distance that is divided by."""
AT_ONCE = 2**20
"""Triples whose angles are held in memory at the same time."""


class RelationalDistillation(Method, frozen=True, extra="forbid"):
    """Distances between the samples' pooled features, and angles in their triangles."""

    kind = "relation"
    needs = ("features",)
    source = "RKD, Park et al. 2019, arXiv 1904.05068"

    distance: Annotated[float, Field(ge=0)] = 25.0
    """Weighs the distances."""
    angle: Annotated[float, Field(ge=0)] = 50.0
    """Weighs the angles."""

    def term(self, pair: Pair) -> Term:
        """For pooled features of any widths."""
        return _Geometry(self, pair)


class _Geometry(Term):
    def __init__(self, method: RelationalDistillation, pair: Pair) -> None:
        super().__init__([pair.features()])
        self._method = method

    def forward(self, seen: Observation) -> Tensor:
        """A scalar."""
        ((mine, theirs),) = self.maps(seen)
        loss = self._method.distance * unlike_distances(mine, theirs)
        if self._method.angle:
            loss = loss + self._method.angle * unlike_angles(mine, theirs)
        return loss


def unlike_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean Huber loss of all distances, each over the mean of its network's; features (B, D) in, a scalar out.

    Park et al. 2019, eq. 3 to 5. The mean is over ordered pairs of different samples; global scales cancel.
    """
    count = len(student)
    if count < 2:
        return 0 * student.sum()
    return functional.smooth_l1_loss(_relative(student), _relative(teacher), reduction="sum") / (count * (count - 1))


def unlike_angles(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean Huber loss of the cosines at all corners of all triangles; features (B, D) in, a scalar out.

    Park et al. 2019, eq. 6 to 8, the mean over ordered triples of different samples. The B³ cosines come from (B, B)
    products, some corners at a time, and are computed again in the backward pass instead of being kept.
    """
    count = len(student)
    if count < 3:
        return 0 * student.sum()
    mine, theirs = _products(student), _products(teacher)
    step = max(AT_ONCE // count**2, 1)
    total = student.new_zeros(())
    for start in range(0, count, step):
        part = partial(_corners, start=start, end=min(start + step, count))
        found = cast(Any, checkpoint)(part, mine, theirs, use_reentrant=False, preserve_rng_state=False)
        total = total + cast(Tensor, found)
    return total / (count * (count - 1) * (count - 2))


def _relative(features: Tensor) -> Tensor:
    """Distances (B, B) over the mean of those that are not zero."""
    squares = _squares(_products(features))
    distances = (squares + TINY).sqrt() * (squares > TINY)
    return distances / (distances.sum() / (distances > 0).sum().clamp(min=1)).clamp(min=TINY)


def _products(features: Tensor) -> Tensor:
    """Inner products (B, B) of the centred features: near each other, they lose the fewest digits in differences."""
    centred = features - features.mean(0)
    return centred @ centred.T


def _squares(products: Tensor) -> Tensor:
    norms = products.diagonal()
    return (norms[:, None] + norms[None, :] - 2 * products).clamp(min=0)


def _corners(student: Tensor, teacher: Tensor, start: int, end: int) -> Tensor:
    return functional.smooth_l1_loss(_cosines(student, start, end), _cosines(teacher, start, end), reduction="sum")


def _cosines(products: Tensor, start: int, end: int) -> Tensor:
    """cos∠(i, j, k) at the corners j from `start` to `end`: (end - start, B, B)."""
    at = products[start:end]
    inner = products[None] - at[:, :, None] - at[:, None, :] + products.diagonal()[start:end, None, None]
    lengths = (_squares(products)[start:end] + TINY).sqrt()
    scale = lengths[:, :, None] * lengths[:, None, :]
    apart = _squares(products)[start:end] > TINY
    return inner / scale * (apart[:, :, None] & apart[:, None, :])
