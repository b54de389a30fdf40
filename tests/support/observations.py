"""Observations of networks that need not exist, and what every loss has to bear."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from potstill.pipeline.data import Batch
from potstill.pipeline.taps import Outputs
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.method import Observation, Views


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
    strong: tuple[Tensor, Tensor] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    student_model: nn.Module | None = None,
    teacher_model: nn.Module | None = None,
) -> Observation:
    """One step's observation from tensors alone; logits default to zeros of 4 classes.

    `strong` are the logits of the second view, student's and teacher's.
    """
    known = next(each for each in (student, *(student_maps or {}).values()) if each is not None)
    zeros = torch.zeros(len(known), 4, dtype=known.dtype)
    mine = zeros if student is None else student
    labelled = torch.zeros(len(known), dtype=torch.int64) if target is None else target

    def look_again() -> Views:
        assert strong is not None
        return Views(Outputs(strong[0], {}), Outputs(strong[1], {}))

    return Observation(
        batch=Batch(dict(inputs or {}), labelled, torch.arange(len(known))),
        moment=Moment(step, num_steps, 0),
        student=Outputs(mine, dict(student_maps or {})),
        teacher=Outputs(torch.zeros_like(mine) if teacher is None else teacher, dict(teacher_maps or {})),
        student_model=student_model or nn.Identity(),
        teacher_model=teacher_model,
        look_again=None if strong is None else look_again,
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
