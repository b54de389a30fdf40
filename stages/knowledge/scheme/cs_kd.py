"""Class-wise self-knowledge distillation."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..method import Method, Observation, Term
from ..pair import Pair
from ..response.kd import soft_targets


class ClassWiseSelfDistillation(Method, frozen=True, extra="forbid"):
    """The student's own softened outputs for another sample of the same class."""

    kind = "scheme"
    needs = ("logits", "labels")
    source = "CS-KD, Yun et al. 2020, arXiv 2003.13964"
    learns_from_teacher = False
    runs_networks = True

    temperature: Annotated[float, Field(gt=0)] = 4.0

    def term(self, pair: Pair) -> Term:
        """A second, not differentiated forward of the student in each step."""
        return _SameClass(pair, self.temperature)


class _SameClass(Term):
    def __init__(self, pair: Pair, temperature: float) -> None:
        super().__init__()
        self._context = pair.context
        self._partners = Partners(pair.context.data.train.target)
        self._temperature = temperature

    def forward(self, seen: Observation) -> Tensor:
        """T²·KL(σ(z(x')/T) ‖ σ(z(x)/T)) for another x' of x's class, (B,)."""
        context = self._context
        index = self._partners.drawn(seen.batch.index.cpu())
        partners = context.to_device(context.data.train.batch(index, view=seen.batch.view))
        # In train mode, as in the authors' code: batch norms see the partners, too.
        with torch.no_grad():
            theirs = context.outputs(seen.student_model, partners.inputs).logits
        return soft_targets(seen.student.logits, theirs, self._temperature)


class Partners:
    """Draws for each sample another one of its class; a sample that is alone in its class is its own partner."""

    def __init__(self, target: Tensor) -> None:
        self._by_class = torch.argsort(target, stable=True)
        self._place = torch.argsort(self._by_class)
        """Where in `_by_class` each sample stands."""
        counts = torch.bincount(target)
        self._count = counts[target]
        self._first = (counts.cumsum(0) - counts)[target]
        """Where the samples of its class begin."""

    def drawn(self, index: Tensor) -> Tensor:
        """The partners' positions (B,) for positions (B,), from torch's global generator."""
        count, first = self._count[index], self._first[index]
        steps = 1 + (torch.rand(len(index)) * (count - 1)).long().clamp(max=count - 2)
        return self._by_class[first + (self._place[index] - first + steps) % count]
