"""Raw outputs."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..method import LogitMethod


class RawLogits(LogitMethod, frozen=True, extra="forbid"):
    """The teacher's outputs themselves, logits before any softmax, by their mean squared difference."""

    needs = ("outputs",)
    source = "Ba & Caruana 2014, arXiv 1312.6184; Kim et al. 2021, arXiv 2105.08919"
    task_weight = 0.1

    weight: Annotated[float, Field(gt=0)] = 1.0

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """(B,), from outputs of any shape (B, …)."""
        return squared_difference(student.flatten(1), teacher.flatten(1))


def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_c (z_s - z_t)², logits (B, C) in, (B,) out.

    The papers sum over classes. The mean is twice what T²·KL tends to for high temperatures where the logits have mean
    zero (Hinton et al. 2015, §2.1), so that weights mean the same here and there, whatever the number of classes.
    """
    return (student - teacher).square().mean(1)
