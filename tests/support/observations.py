"""Observations of networks that need not exist, and what every loss has to bear."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from potstill.pipeline.data import Batch
from potstill.pipeline.taps import Outputs
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.method import Observation


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(count: int, num_classes: int, seed: int = 0) -> Tensor:
    """Random class numbers (count,)."""
    return torch.randint(0, num_classes, (count,), generator=torch.Generator().manual_seed(seed))


def observation(
    *,
    student: Tensor | None = None,
    teacher: Tensor | None = None,
    student_maps: Mapping[str, Tensor] | None = None,
    teacher_maps: Mapping[str, Tensor] | None = None,
    target: Tensor | None = None,
    step: int = 0,
    num_steps: int = 10,
) -> Observation:
    """One step's observation from tensors alone; logits default to zeros of 4 classes."""
    known = next(each for each in (student, *(student_maps or {}).values()) if each is not None)
    zeros = torch.zeros(len(known), 4, dtype=known.dtype)
    mine = zeros if student is None else student
    labelled = torch.zeros(len(known), dtype=torch.int64) if target is None else target
    return Observation(
        batch=Batch({}, labelled, torch.arange(len(known))),
        moment=Moment(step, num_steps, 0),
        student=Outputs(mine, dict(student_maps or {})),
        teacher=Outputs(torch.zeros_like(mine) if teacher is None else teacher, dict(teacher_maps or {})),
        student_model=torch.nn.Identity(),
        teacher_model=None,
    )


HARD_CASES: dict[str, Callable[..., Tensor]] = {
    "usual": lambda *shape: draws(*shape, dtype=torch.float32),
    "large": lambda *shape: 30 * draws(*shape, dtype=torch.float32),
    "constant": lambda *shape: torch.full(shape, 0.5),
    "zero": lambda *shape: torch.zeros(*shape),
    "one sample": lambda *shape: draws(1, *shape[1:], dtype=torch.float32),
    "equal samples": lambda *shape: draws(1, *shape[1:], dtype=torch.float32).expand(*shape).clone(),
}
"""Student tensors on which a loss and its gradient must be finite; called with a shape (B, …)."""


def finite_gradients(loss: Callable[[Tensor], Any], student: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether loss and gradient are finite for a student whose values are stored in `dtype` and compared in float32.

    `loss` is given the student's tensor in float32, as training gives it.
    """
    leaf = student.detach().to(dtype).requires_grad_()
    found = loss(leaf.float())
    value = (found[0] if isinstance(found, tuple) else found).mean()
    (gradient,) = torch.autograd.grad(value, leaf)
    return bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all())
