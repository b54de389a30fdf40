"""A task of the user's own: an object that a function in the user's file returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .data import Dataset
from .data_checks import Targets
from .errors import TaskError
from .metric import Metric
from .python_reference import PythonReference

EXAMPLE = "return an object with `metric`, `higher_is_better`, `loss(outputs, target)` and `values(outputs, target)`"


class UsersTask(Protocol):
    """What the function of `task: my_task.py:make` returns: any object that has these, whatever its class.

    `outputs` is the model's tensor (B, …) in float32; `target` holds the batch's targets (B, …), float32 where the data
    source gives fractions and int64 where it gives whole numbers, on the same device.
    """

    metric: str
    """What reports call the mean of `values` over the test samples, such as ``mean absolute error``."""
    higher_is_better: bool

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """What a training lowers: the mean over the batch, a tensor of shape ()."""
        ...

    def values(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Each sample's own value of the metric, shape (B,); finite."""
        ...

    def validate(self, dataset: Dataset) -> None:
        """Raise ValueError with a sentence where the data is not for this task. May be left out."""
        ...


@dataclass(frozen=True)
class OwnTask:
    """The user's object as a task; what its methods return is checked each time."""

    reference: PythonReference
    made: Any
    metric: Metric
    identity: str
    """The recipe's word for it and the hash of its source."""
    targets: Targets = "any"

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The object's loss. TaskError where it is no tensor of shape ()."""
        with self.reference.users_code():
            found: object = self.made.loss(outputs.float(), target)
        return self._tensor(found, "loss", (), "one number: use .mean()")

    def values(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The object's values in float. TaskError where they are not one finite number a sample."""
        with self.reference.users_code():
            found: object = self.made.values(outputs.float(), target)
        values = self._tensor(found, "values", (len(target),), "one number a sample: use .flatten(1).mean(1)")
        if not torch.isfinite(values).all():
            raise TaskError(f"{self.reference}: `values` returned NaN or infinity; every sample needs a finite number")
        return values.float()

    def validate(self, dataset: Dataset) -> None:
        """What the object says, where it has a say. TaskError with its sentence."""
        check = getattr(self.made, "validate", None)
        if check is not None:
            with self.reference.users_code():
                check(dataset)

    def _tensor(self, found: object, method: str, shape: tuple[int, ...], what: str) -> Tensor:
        if not isinstance(found, Tensor):
            raise TaskError(
                f"{self.reference}: `{method}` returned a value of type {type(found).__name__}; it must return a tensor"
            )
        if tuple(found.shape) != shape:
            raise TaskError(
                f"{self.reference}: `{method}` returned a tensor of shape {tuple(found.shape)}; it must be of shape "
                f"{shape}, {what}"
            )
        return found


def own_task(text: str, directory: Path) -> OwnTask:
    """What the function named by `file.py:function` returns. TaskError says in one line what is wrong with it."""
    reference = PythonReference.parse(text, directory, TaskError)
    made: Any = reference.call({})
    problem = _problem(made)
    if problem is not None:
        raise TaskError(f"{reference}: {problem}; {EXAMPLE}")
    metric = Metric(name=made.metric, higher_is_better=made.higher_is_better, kind="mean")
    return OwnTask(reference, made, metric, f"{text} {reference.sha256()}")


def _problem(made: Any) -> str | None:
    lacking = [name for name in ("metric", "higher_is_better", "loss", "values") if not hasattr(made, name)]
    if lacking:
        return (
            f"returned a value of type {type(made).__name__}, which lacks {', '.join(f'`{name}`' for name in lacking)}"
        )
    if not isinstance(made.metric, str) or not 0 < len(made.metric) <= 40:
        return f"`metric` is {made.metric!r}, and must be a name of at most 40 letters, such as 'mean absolute error'"
    if not isinstance(made.higher_is_better, bool):
        return f"`higher_is_better` is {made.higher_is_better!r}, and must be True or False"
    for name in ("loss", "values", "validate"):
        if hasattr(made, name) and not callable(getattr(made, name)):
            return f"`{name}` is a value of type {type(getattr(made, name)).__name__}, and must be a method"
    return None
