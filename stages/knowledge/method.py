"""What every way of passing knowledge on is: its settings in a recipe, and the term of the loss they make.

A method is one module in a folder of its kind: a subclass of `Method`, called in recipes like its module; its fields
are its YAML keys. Nothing else has to be registered.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ...pipeline.blueprint import Edit
from ...pipeline.data import Batch
from ...pipeline.lengths import MASK
from ...pipeline.taps import Outputs
from ...pipeline.training import Moment
from .pair import Layers, Match, Pair

Need = Literal[
    "outputs",
    "logits",
    "maps",
    "features",
    "linear head",
    "gradients",
    "attention",
    "tokens",
    "two views",
    "labels",
]
OF_CLASSES: frozenset[Need] = frozenset(("logits", "linear head", "gradients", "two views", "labels"))
"""What only networks that tell classes apart have, or what has only been tried on them."""
Share = Annotated[float, Field(ge=0, le=1)]

LOOSE = 1e-7
"""Added to standard deviations before dividing by them, as the official code of logit standardisation does."""
FAINT = 1e-4
"""Maps of less than this length, or strength, are not scaled up to 1, so that gradients by maps of zeros stay small."""


@dataclass(frozen=True)
class Views:
    """What student and teacher gave for the strongly augmented view of a batch."""

    student: Outputs
    teacher: Outputs


@dataclass(frozen=True)
class Observation:
    """One step of a training, as a term sees it: all tensors on the device, in float32, the teacher's detached."""

    batch: Batch
    moment: Moment
    student: Outputs
    teacher: Outputs
    """Empty maps and the student's own logits where no term learns from a teacher."""
    student_model: nn.Module
    teacher_model: nn.Module | None
    """Frozen, in eval mode; for methods that run the teacher themselves. None without a teacher."""
    look_again: Callable[[], Views] | None = None

    @cached_property
    def strong(self) -> Views:
        """The same samples, strongly augmented; both networks run on them when this is first asked for."""
        assert self.look_again is not None, "only methods of two views may ask for the second"
        return self.look_again()


Taught = Tensor | tuple[Tensor, Tensor]
"""A loss, a scalar or one value a sample (B,); with a second scalar, the loss of what the term trains for itself."""


class Term(nn.Module, ABC):
    """The loss that a method makes of each step, not weighted. Its own parameters are trained and dropped after."""

    def __init__(self, matches: list[Match] | None = None) -> None:
        super().__init__()
        self.matches = tuple(matches or ())
        """The taps that it needs of each network."""

    @abstractmethod
    def forward(self, seen: Observation) -> Taught:
        """The loss of one step."""

    def maps(self, seen: Observation) -> list[tuple[Tensor, Tensor]]:
        """What flows at the matched taps, student's and teacher's; nothing where samples are padded."""
        mask = seen.batch.inputs.get(MASK)
        pairs = [(seen.student.maps[match.student], seen.teacher.maps[match.teacher]) for match in self.matches]
        return pairs if mask is None else [(_bare(mine, mask), _bare(theirs, mask)) for mine, theirs in pairs]


class Comparison(Term):
    """The mean over the matched taps of what a function makes of the student's tensor and the teacher's."""

    def __init__(self, matches: list[Match], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(matches)
        self._loss = loss

    def forward(self, seen: Observation) -> Tensor:
        """A scalar or (B,), as the function gives."""
        return mean_over_layers([self._loss(mine, theirs) for mine, theirs in self.maps(seen)])


class Method(BaseModel, ABC, frozen=True, extra="forbid"):
    """Settings that all methods have."""

    kind: ClassVar[Literal["response", "feature", "relation", "transformer", "scheme"]]
    needs: ClassVar[tuple[Need, ...]]
    """What it reads of both networks."""
    source: ClassVar[str]
    """The paper: authors, year, identifier."""
    learns_from_teacher: ClassVar[bool] = True
    runs_networks: ClassVar[bool] = False
    """Whether it runs student or teacher itself, so that stored outputs of the teacher do not serve it."""
    task_weight: ClassVar[float] = 1.0
    """What the default weight is meant beside: the weight of the task's own loss."""
    stays_at_inference: ClassVar[bool] = False
    """Whether the finished student is larger for it; then `distill` alone can use it."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the loss."""
    warmup: Share = 0.0
    """The share of the training over which the weight rises linearly from zero."""
    decay: Share = 0.0
    """The share of the training, before `until`, over which the weight falls linearly to zero."""
    until: Share = 1.0
    """The share of the training after which the term is left out."""

    @classmethod
    def needs_classes(cls) -> bool:
        """Whether it is for networks that tell classes apart alone."""
        return not OF_CLASSES.isdisjoint(cls.needs)

    @abstractmethod
    def term(self, pair: Pair) -> Term:
        """The loss for two networks. Raises StageError where the method cannot serve them."""

    @property
    def taken_from_task(self) -> float:
        """How much its loss takes off the weight of the task's own at most, which must be as large."""
        return 0.0

    def edits(self, pair: Pair) -> tuple[Edit, ...]:
        """Changes of the student's structure that stay; only methods that stay at inference have any."""
        return ()

    def take_over(self, pair: Pair) -> None:
        """Give the student, whose `edits` are made, what it keeps of the teacher's weights."""

    def weight_at(self, progress: float) -> float:
        """The weight when this share of the training is done."""
        if progress >= self.until:
            return 0.0
        risen = min(progress / self.warmup, 1.0) if self.warmup else 1.0
        left = min((self.until - progress) / self.decay, 1.0) if self.decay else 1.0
        return self.weight * risen * left


class LogitMethod(Method, ABC, frozen=True, extra="forbid"):
    """A method that compares logits alone."""

    kind = "response"
    needs = ("logits",)

    standardize: bool = False
    """Logits are first shifted and scaled to mean 0 and standard deviation 1 in each sample (Sun et al. 2024)."""

    @abstractmethod
    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """From logits (B, C) and labels (B,): one value a sample (B,), or a scalar where samples do not stand alone."""

    def term(self, pair: Pair) -> Term:
        """The loss of the logits, whatever the networks are."""
        return _LogitTerm(self)

    def compared(self, logits: Tensor) -> Tensor:
        """Logits (B, C) as the method compares them."""
        return standardized(logits) if self.standardize else logits


class _LogitTerm(Term):
    def __init__(self, method: LogitMethod) -> None:
        super().__init__()
        self._method = method

    def forward(self, seen: Observation) -> Tensor:
        """(B,) or a scalar."""
        method = self._method
        return method.loss(
            method.compared(seen.student.logits), method.compared(seen.teacher.logits), seen.batch.target
        )


def _bare(tensor: Tensor, mask: Tensor) -> Tensor:
    """Tokens (B, N, D), or attention (B, heads, N, N), of which the mask (B, N) has a 0 for the padded ones, as 0."""
    padded, count = mask == 0, mask.shape[1]
    if tensor.ndim == 3 and tensor.shape[1] == count:
        return tensor.masked_fill(padded[:, :, None], 0.0)
    if tensor.ndim == 4 and tensor.shape[2:] == (count, count):
        return tensor.masked_fill(padded[:, None, :, None] | padded[:, None, None, :], 0.0)
    return tensor


def standardized(logits: Tensor) -> Tensor:
    """Each sample's logits (B, C) with mean 0 and standard deviation 1 (Sun et al. 2024, arXiv 2403.01427)."""
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + LOOSE)


class LayerMethod(Method, ABC, frozen=True, extra="forbid"):
    """A method that compares what flows at corresponding layers."""

    kind = "feature"
    needs = ("maps",)

    layers: Layers = "auto"
    """`auto` (the ends of the resolution stages, or the blocks of a transformer), a pattern, or pairs of paths."""


def mean_over_layers(losses: list[Tensor]) -> Tensor:
    """The mean of the layers' losses: of scalars, or of one value a sample (B,) each."""
    return torch.stack(losses).mean(0)
