"""Relations between values."""

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..anatomy import FUSED
from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import Shape
from .attention import check_tokens


class ValueRelations(LayerMethod, frozen=True, extra="forbid"):
    """How alike the values of each two tokens are in a transformer's last attention.

    Widths may differ, and so may the networks' own heads: as in MiniLMv2 (arXiv 2012.15828) the values are cut into
    any number of heads. `auto` finds the layers that give values by their usual names.
    """

    kind = "transformer"
    needs = ("tokens",)
    source = "MiniLM, Wang et al. 2020, arXiv 2002.10957"

    heads: Annotated[int, Field(ge=1)] | Literal["teacher"] = "teacher"
    """Into how many heads both networks' values are cut; as many as the teacher's attention has, or a number."""
    weight: Annotated[float, Field(gt=0)] = 1.0

    def term(self, pair: Pair) -> Term:
        """Networks of as many tokens whose widths divide into the heads."""
        matches = pair.values()[-1:] if self.layers == "auto" else pair.matches(self.layers, axes=(3,))
        check_tokens(pair, matches)
        heads = self.heads if self.heads != "teacher" else self._teachers_heads(pair)
        for match in matches:
            widths = (_width(match.student, match.student_shape), _width(match.teacher, match.teacher_shape))
            if widths[0] % heads or widths[1] % heads:
                shared = math.gcd(*widths)
                fitting = [str(count) for count in range(1, shared + 1) if shared % count == 0]
                raise pair.cannot(
                    f"the values are {widths[0]} wide in the student and {widths[1]} in the teacher, which do not both "
                    f"divide into {heads} heads; give `heads` one of {', '.join(fitting)}"
                )
        return _ValueRelations(matches, heads)

    def _teachers_heads(self, pair: Pair) -> int:
        attentions = pair.teacher.attentions()
        if not attentions:
            raise pair.cannot("no module of the teacher shows how many heads its attention has; give `heads` a number")
        return pair.teacher.shape(attentions[-1])[1]


class _ValueRelations(Term):
    def __init__(self, matches: list[Match], heads: int) -> None:
        super().__init__(matches)
        self._heads = heads

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, (B,)."""
        return mean_over_layers(
            [
                relation_divergence(_values(match.student, mine), _values(match.teacher, theirs), self._heads)
                for match, (mine, theirs) in zip(self.matches, self.maps(seen), strict=True)
            ]
        )


def _is_fused(tap: str) -> bool:
    return tap.rpartition(".")[2] in FUSED


def _width(tap: str, shape: Shape) -> int:
    return shape[2] // 3 if _is_fused(tap) else shape[2]


def _values(tap: str, tensor: Tensor) -> Tensor:
    return tensor.chunk(3, -1)[2] if _is_fused(tap) else tensor


def relation_divergence(student: Tensor, teacher: Tensor, heads: int) -> Tensor:
    """(1 / hN) Σ_a Σ_t KL(R_T[a, t] ‖ R_S[a, t]) of values (B, N, D): (B,).

    R[a] = softmax(V_a V_aᵀ / √d), V_a (N, d) the values of head a, d = D / h; Wang et al. 2020, arXiv 2002.10957,
    equations 6 to 8. Costs B·h·N² numbers for each network, as an attention does.
    """
    mine, theirs = (_log_relations(values, heads) for values in (student, teacher))
    return functional.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1).mean((1, 2))


def _log_relations(values: Tensor, heads: int) -> Tensor:
    """(B, N, D) to (B, h, N, N)."""
    by_head = values.reshape(*values.shape[:2], heads, -1).transpose(1, 2)
    return functional.log_softmax(by_head @ by_head.transpose(2, 3) / math.sqrt(by_head.shape[-1]), dim=-1)
