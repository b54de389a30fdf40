"""Input gradients."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..method import Method, Observation, Term
from ..pair import Pair
from ..rerun import differentiable, only_real_numbers, rerun

TINY = 1e-6
"""The least length that a gradient is divided by."""


class InputGradients(Method, frozen=True, extra="forbid"):
    """Which changes of the input move the label's logit, by the direction of its gradient.

    Runs both networks once more and differentiates the student twice, which is about three further steps of work.
    """

    kind = "response"
    needs = ("gradients", "labels")
    source = "Sobolev training, Czarnecki et al. 2017, arXiv 1706.04859; Srinivas & Fleuret 2018, arXiv 1803.00443"
    runs_networks = True

    weight: Annotated[float, Field(gt=0)] = 0.01
    """About what 20, the weight in use for CIFAR, makes of a mean over 3 · 32 · 32 numbers."""

    def term(self, pair: Pair) -> Term:
        """For networks whose inputs are real numbers, such as images."""
        if not only_real_numbers(pair.example()):
            raise pair.cannot("an input is no tensor of real numbers, so that there is no gradient for it")
        return _InputGradientsTerm(pair)


class _InputGradientsTerm(Term):
    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self._context = pair.context

    def forward(self, seen: Observation) -> Tensor:
        """(B,); the student as it trains: in train mode, where a BatchNorm lets samples depend on each other."""
        assert seen.teacher_model is not None
        inputs, target = differentiable(seen.batch.inputs), seen.batch.target
        # Of the attention kernels, the plain one alone can be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH), self._context.autocast():
            mine, theirs = rerun(seen.student_model, inputs), rerun(seen.teacher_model, inputs)
        return squared_distance(
            gradients_of(mine, inputs, target, create_graph=True), gradients_of(theirs, inputs, target)
        )


def gradients_of(logits: Tensor, inputs: Mapping[str, Tensor], target: Tensor, *, create_graph: bool = False) -> Tensor:
    """∂z_y/∂x of each sample, all inputs in one row: (B, D) from logits (B, C) and labels (B,)."""
    scores = logits.gather(1, target[:, None]).sum()
    found = torch.autograd.grad(scores, tuple(inputs.values()), create_graph=create_graph)
    return torch.cat([gradient.flatten(1) for gradient in found], 1)


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """‖g_s/‖g_s‖ - g_t/‖g_t‖‖², from 0 to 4; gradients (B, D) in, (B,) out. Srinivas & Fleuret 2018."""
    mine, theirs = functional.normalize(student, dim=1, eps=TINY), functional.normalize(teacher, dim=1, eps=TINY)
    return (mine - theirs).square().sum(1)
