"""Hidden states."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ..feature.hint import squared_error
from ..method import LayerMethod, Observation, Term
from ..pair import Match, Pair
from ..projection import Shape, like


class HiddenStates(LayerMethod, frozen=True, extra="forbid"):
    """The tokens that a transformer's blocks return, through one linear map that is dropped afterwards.

    As in the paper all blocks share the map, and the layers' errors are summed. Blocks correspond evenly spaced. Tokens
    of another number are averaged or interpolated as grids of patches, a class token kept apart.
    """

    kind = "transformer"
    needs = ("tokens",)
    source = "TinyBERT, Jiao et al. 2020, arXiv 1909.10351"

    embeddings: bool = False
    """Also what goes into the first block, through a map of its own."""
    weight: Annotated[float, Field(gt=0)] = 1.0

    def term(self, pair: Pair) -> Term:
        """Tokens of any width and number."""
        return _HiddenStates(pair.matches(self.layers, axes=(3,)), [pair.embeddings()] if self.embeddings else [])


class _HiddenStates(Term):
    def __init__(self, blocks: list[Match], embeddings: list[Match]) -> None:
        super().__init__([*embeddings, *blocks])
        names = ["embeddings" for _ in embeddings] + [
            _name(match.student_shape, match.teacher_shape) for match in blocks
        ]
        self._names = names
        self.projectors = nn.ModuleDict(
            {
                name: nn.Linear(match.student_shape[2], match.teacher_shape[2], bias=False)
                for name, match in zip(names, self.matches, strict=True)
            }
        )

    def forward(self, seen: Observation) -> Tensor:
        """The sum over the layers of the mean squared error, (B,)."""
        losses = [
            squared_error(like(self.projectors[name](mine), tuple(theirs.shape)), theirs)
            for name, (mine, theirs) in zip(self._names, self.maps(seen), strict=True)
        ]
        return torch.stack(losses).sum(0)


def _name(student: Shape, teacher: Shape) -> str:
    """One map serves all blocks of the same widths."""
    return f"{student[2]} to {teacher[2]}"
