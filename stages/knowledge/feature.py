"""Knowledge in the teacher's feature maps."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...pipeline.seeding import seeded


class HintLoss(nn.Module):
    """Mean squared error between the teacher's maps and the student's, which a trained 1×1 projector widens.

    FitNets, Romero et al. 2015, arXiv 1412.6550. The projectors are sized from the shapes of one forward, trained with
    the student and dropped with this loss.
    """

    def __init__(
        self,
        pairs: list[tuple[str, str]],
        student: Mapping[str, tuple[int, ...]],
        teacher: Mapping[str, tuple[int, ...]],
        seed: int,
    ) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        with seeded(seed, "projectors"):
            self.projectors = nn.ModuleList(_projector(student[mine], teacher[theirs]) for mine, theirs in pairs)

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """The mean over the pairs; maps by layer path in, a scalar out."""
        losses = [
            functional.mse_loss(_resized(projector(student[mine]), teacher[theirs]).float(), teacher[theirs].float())
            for projector, (mine, theirs) in zip(self.projectors, self.pairs, strict=True)
        ]
        return torch.stack(losses).mean()


def _projector(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    if len(student) == 4:
        return nn.Sequential(nn.Conv2d(student[1], teacher[1], 1, bias=False), nn.BatchNorm2d(teacher[1]))
    return nn.Linear(student[-1], teacher[-1])


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    """Maps brought to the height and width of others: averaged where they are larger, interpolated where smaller."""
    if maps.ndim != 4 or maps.shape[2:] == like.shape[2:]:
        return maps
    if maps.shape[2] >= like.shape[2] and maps.shape[3] >= like.shape[3]:
        return functional.adaptive_avg_pool2d(maps, (like.shape[2], like.shape[3]))
    return functional.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)
