"""What a model is for: the loss it is trained on and the metric it is judged by."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from .data import Dataset
from .errors import DataError, RecipeError


class Task(Protocol):
    """One kind of problem."""

    @property
    def metric(self) -> str:
        """What `correct` counts, as a share of all samples: the word in the report."""
        ...

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar."""
        ...

    def correct(self, outputs: Tensor, target: Tensor) -> int:
        """How many samples of a batch are right."""
        ...

    def validate(self, dataset: Dataset) -> None:
        """Raise DataError where the data is not for this task."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class of several for every sample; outputs are logits (B, classes)."""

    metric: str = "accuracy"

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy, in float32 whatever the outputs are in."""
        return functional.cross_entropy(outputs.float(), target)

    def correct(self, outputs: Tensor, target: Tensor) -> int:
        """How often the largest logit is the target's; the first one wins a tie."""
        return int((outputs.argmax(1) == target).sum())

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


TASKS: dict[str, Task] = {"classification": Classification()}


def task_named(name: str) -> Task:
    """The task of this name, or a RecipeError that lists them."""
    if name not in TASKS:
        raise RecipeError(f"task: {name!r} is not known; allowed: {', '.join(TASKS)}")
    return TASKS[name]
