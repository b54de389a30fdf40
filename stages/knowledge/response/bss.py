"""Boundary supporting samples."""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import Method, Observation, Share, Term
from ..pair import Pair
from ..rerun import only_real_numbers, rerun
from .dkd import others
from .kd import soft_targets

OVERSHOOT = 1e-4
"""Added to the gap between two probabilities, so that a step towards the boundary also crosses it."""


class BoundarySamples(Method, frozen=True, extra="forbid"):
    """The teacher's outputs for samples that an attack has moved just across one of its decision boundaries.

    Costs up to `steps` forwards and backwards of the teacher with `samples` samples, and one more step of the student.
    """

    kind = "response"
    needs = ("logits", "gradients", "labels")
    source = "BSS, Heo et al. 2019, arXiv 1805.05532"
    runs_networks = True

    temperature: Annotated[float, Field(gt=0)] = 3.0
    samples: Annotated[int, Field(ge=1)] = 32
    """At most so many of each batch are moved, of those that both networks classify right."""
    steps: Annotated[int, Field(ge=1)] = 10
    """What has not crossed a boundary after so many steps is left out."""
    step_size: Annotated[float, Field(gt=0)] = 0.3
    """How far (L2, of the normalised input) a step moves a sample for a gap of 1 between the two probabilities."""
    weight: Annotated[float, Field(gt=0)] = 0.22
    """The usual 2 multiplies the divergence without T²; with T² = 9 this is as much."""
    decay: Share = 0.8
    until: Share = 0.8

    def term(self, pair: Pair) -> Term:
        """For networks with one input of real numbers, such as images."""
        inputs = pair.example()
        if len(inputs) > 1 or not only_real_numbers(inputs):
            raise pair.cannot("moves samples along gradients, and needs one input, of real numbers")
        return _BoundarySamplesTerm(self, pair)


class _BoundarySamplesTerm(Term):
    def __init__(self, method: BoundarySamples, pair: Pair) -> None:
        super().__init__()
        self._method = method
        self._context = pair.context

    def forward(self, seen: Observation) -> Tensor:
        """(B,): zero for samples without a moved one; the mean over B is that over the moved ones."""
        assert seen.teacher_model is not None
        teacher = seen.teacher_model
        method, target = self._method, seen.batch.target
        student_logits, teacher_logits = seen.student.logits, seen.teacher.logits
        nothing = 0 * student_logits.sum(1)
        right = (student_logits.argmax(1) == target) & (teacher_logits.argmax(1) == target)
        chosen = right.nonzero().squeeze(1)[: method.samples]
        if not len(chosen):
            return nothing
        ((name, clean),) = seen.batch.inputs.items()

        def classify(samples: Tensor) -> Tensor:
            with self._context.autocast():
                return rerun(teacher, {name: samples})

        base = target[chosen]
        goal = drawn_classes(teacher_logits[chosen], base)
        moved = across_boundary(classify, clean[chosen], base, goal, steps=method.steps, step_size=method.step_size)
        # Among the batch's other samples, so that a BatchNorm of the student sees as many of them as ever.
        with self._context.autocast():
            mine = rerun(seen.student_model, {name: clean.index_copy(0, chosen, moved)})[chosen]
        with torch.no_grad():
            theirs = classify(moved)
        found = theirs.argmax(1) == goal
        losses = soft_targets(mine, theirs, method.temperature) * found / found.sum().clamp(min=1)
        return nothing.index_add(0, chosen, len(target) * losses)


def drawn_classes(logits: Tensor, base: Tensor) -> Tensor:
    """A class other than `base` for each sample, with the probabilities that the logits (N, C) give the others: (N,).

    Drawn from the global generator of the device. Heo et al. 2019.
    """
    drawn = functional.softmax(others(logits, base), dim=1).multinomial(1).squeeze(1)
    return drawn + (drawn >= base)


def across_boundary(
    classify: Callable[[Tensor], Tensor], samples: Tensor, base: Tensor, goal: Tensor, *, steps: int, step_size: float
) -> Tensor:
    """The samples (N, …), each moved until it is classified as `base` (N,) no more, or for so many steps.

    A step is x - η·(L + ε)·∇L/‖∇L‖ with L = p[base] - p[goal], within the range of the samples' values. Heo et al.
    2019; that the classification scores are probabilities is from the official code, whose η is made for them.
    """
    low, high = samples.aminmax()
    moved = samples.detach()
    for _ in range(steps):
        leaf = moved.clone().requires_grad_()
        logits = classify(leaf)
        moving = logits.argmax(1) == base
        if not moving.any():
            break
        probabilities = logits.softmax(1)
        gap = (probabilities.gather(1, base[:, None]) - probabilities.gather(1, goal[:, None])).squeeze(1)
        (gradient,) = torch.autograd.grad(gap.sum(), leaf)
        direction = functional.normalize(gradient.flatten(1), dim=1)
        length = step_size * (gap.detach() + OVERSHOOT) * moving
        moved = (moved - (length[:, None] * direction).view_as(moved)).clamp(low, high)
    return moved
