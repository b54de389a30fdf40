"""What a model is for: the loss it is trained on and the metric it is judged by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from .data import Dataset
from .data_checks import Targets
from .errors import DataError, ModelError, RecipeError
from .metric import ACCURACY, RMSE, Metric


class Task(Protocol):
    """One kind of problem."""

    @property
    def targets(self) -> Targets:
        """What the data's targets must be."""
        ...

    @property
    def metric(self) -> Metric:
        """What is made of the samples' `values`: the number in the report."""
        ...

    @property
    def identity(self) -> str:
        """What tells this task from another one in fingerprints."""
        ...

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar."""
        ...

    def values(self, outputs: Tensor, target: Tensor) -> Tensor:
        """What each sample of a batch adds to the metric, float (B,)."""
        ...

    def validate(self, dataset: Dataset) -> None:
        """Raise DataError where the data is not for this task."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class of several for every sample; outputs are logits (B, classes)."""

    targets: Targets = "classes"
    metric: Metric = ACCURACY
    identity: str = "classification"

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy, in float32 whatever the outputs are in."""
        return functional.cross_entropy(outputs.float(), target)

    def values(self, outputs: Tensor, target: Tensor) -> Tensor:
        """1 where the largest logit is the target's, else 0; the first one wins a tie."""
        return (outputs.argmax(1) == target).float()

    def validate(self, dataset: Dataset) -> None:
        """Raise DataError unless every label is one of the classes, and there are two of those or more."""
        if dataset.num_classes < 2:
            raise DataError(f"{dataset.description}: a classification needs two classes or more")
        for name, split in (("train", dataset.train), ("validation", dataset.validation), ("test", dataset.test)):
            if split is None:
                continue
            wrong = ((split.target < 0) | (split.target >= dataset.num_classes)).nonzero()
            if len(wrong):
                raise DataError(
                    f"{dataset.description}: {len(wrong)} labels of the {name} split are out of range, first "
                    f"{int(split.target[wrong[0]])} at sample {int(wrong[0])}; "
                    f"they must be 0 to {dataset.num_classes - 1}"
                )


@dataclass(frozen=True)
class Regression:
    """Numbers for every sample: one, a vector or a map; outputs have the shape of the target (B, …).

    Judged by the root mean squared error over all samples, which is in the unit of the targets.
    """

    targets: Targets = "numbers"
    metric: Metric = RMSE
    identity: str = "regression"

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean squared error, in float32 whatever the outputs are in."""
        _demand_equal_shapes(outputs, target)
        return functional.mse_loss(outputs.float(), target)

    def values(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Each sample's own mean squared error."""
        _demand_equal_shapes(outputs, target)
        return (outputs.float() - target).square().flatten(1).mean(1)

    def validate(self, dataset: Dataset) -> None:
        """Raise DataError where all targets of the training split are the same number."""
        low, high = dataset.train.target.aminmax()
        if float(low) == float(high):
            raise DataError(
                f"{dataset.description}: all targets of the train split are {float(low):g}; there is nothing to learn"
            )


def _demand_equal_shapes(outputs: Tensor, target: Tensor) -> None:
    # Broadcasting would compare every output with every target of the batch.
    if outputs.shape != target.shape:
        given, asked = (" x ".join(map(str, tensor.shape)) for tensor in (outputs, target))
        raise ModelError(
            f"the model gives outputs of shape {given} for targets of shape {asked}, batch first; both must be alike"
        )


CLASSIFICATION = "classification"
TASKS: dict[str, Task] = {CLASSIFICATION: Classification(), "regression": Regression()}


def task_named(name: str, directory: Path = Path()) -> Task:
    """The task of this name, or the user's own, `file.py:function`, whose relative path starts at `directory`.

    Raises RecipeError for a name that is none, TaskError for a function whose result is no task.
    """
    if name in TASKS:
        return TASKS[name]
    if ":" in name:
        from .own_task import own_task

        return own_task(name, directory)
    raise RecipeError(f"task: {name!r} is not known; allowed: {', '.join(TASKS)}, my_task.py:make")
