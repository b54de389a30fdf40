"""Attention matrices."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..feature.hint import squared_error
from ..method import Method, Observation, Term
from ..pair import Match, Pair

LEAST = 1e-7
"""Probabilities below this count as this, so that logarithms and their gradients stay finite."""


class AttentionMatrices(Method, frozen=True, extra="forbid"):
    """Which tokens the blocks of a transformer attend to.

    `mse` compares the scores before the softmax in evenly spaced blocks, summed over them (TinyBERT); `kl` compares the
    probabilities in the last block alone (MiniLM). Heads are compared one by one where both networks have as many,
    otherwise the means over the heads, which is not in the papers.
    """

    kind = "transformer"
    needs = ("attention",)
    source = "TinyBERT, Jiao et al. 2020, arXiv 1909.10351; MiniLM, Wang et al. 2020, arXiv 2002.10957"

    distance: Literal["mse", "kl"] = "mse"
    """`mse` needs softmax modules in both networks; `kl` also reads what a dropout behind a function is given."""
    weight: Annotated[float, Field(gt=0)] = 1.0

    def term(self, pair: Pair) -> Term:
        """Networks that attend among as many tokens: a token has no counterpart among another number of them."""
        matches = pair.attentions(scores=True) if self.distance == "mse" else pair.attentions()[-1:]
        check_tokens(pair, matches)
        return _AttentionMatrices(matches, self.distance)


class _AttentionMatrices(Term):
    def __init__(self, matches: list[Match], distance: Literal["mse", "kl"]) -> None:
        super().__init__(matches)
        self._distance = distance

    def forward(self, seen: Observation) -> Tensor:
        """The sum over the blocks, (B,)."""
        compare = squared_error if self._distance == "mse" else divergence
        return torch.stack([compare(*alike_heads(*maps)) for maps in self.maps(seen)]).sum(0)


def check_tokens(pair: Pair, matches: list[Match]) -> None:
    """Raise StageError for matrices of tokens by tokens of different numbers."""
    for match in matches:
        mine, theirs = match.student_shape[-2], match.teacher_shape[-2]
        if mine != theirs:
            raise pair.cannot(
                f"compares matrices of tokens by tokens, but there are {mine} at `{match.student}` of the student and "
                f"{theirs} at `{match.teacher}` of the teacher, so their rows do not correspond"
            )


def alike_heads(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, heads, N, N) as they are, or where their heads are not as many, the means over them: (B, 1, N, N)."""
    if student.shape[1] == teacher.shape[1]:
        return student, teacher
    return student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """(1 / hN) Σ_a Σ_t KL(A_T[a, t] ‖ A_S[a, t]) of probabilities (B, h, N, N): (B,).

    Wang et al. 2020, arXiv 2002.10957, equation 5.
    """
    logs = teacher.clamp_min(LEAST).log() - student.clamp_min(LEAST).log()
    return (teacher * logs).sum(-1).mean((1, 2))
