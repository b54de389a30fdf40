"""Giving a smaller network a part of a larger relative's weights to begin with."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ..pipeline.errors import StageError


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> None:
    """Overwrite the student's weights by a selection of the teacher's, in place.

    Weight selection, Xu et al. 2024, arXiv 2311.18823: the first blocks of each stage, and in every layer evenly spaced
    channels. Since the spacing depends on two sizes alone, layers that share channels keep the same ones. Raises
    StageError where a weight of the student has no larger namesake in the teacher.
    """
    mine = cast(Mapping[str, Tensor], student.state_dict())
    theirs = cast(Mapping[str, Tensor], teacher.state_dict())
    for name, tensor in mine.items():
        source = theirs.get(name)
        if (
            source is None
            or source.ndim != tensor.ndim
            or any(small > large for small, large in zip(tensor.shape, source.shape, strict=True))
        ):
            shape = "none" if source is None else tuple(source.shape)
            raise StageError(
                f"`weights: teacher`: the student's `{name}` {tuple(tensor.shape)} has no namesake in the "
                f"teacher that is as large or larger (there: {shape}); use `weights: new`"
            )
        for axis, size in enumerate(tensor.shape):
            source = source.index_select(axis, spaced(source.shape[axis], size, source.device))
        tensor.copy_(source)


def spaced(of: int, count: int, device: torch.device) -> Tensor:
    """`count` evenly spaced positions of `of`."""
    return (torch.arange(count, device=device) * of) // count
