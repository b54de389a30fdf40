"""Contrastive representation distillation."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ....pipeline.data import moved
from ..method import Method, Observation, Term
from ..pair import Match, Pair


class Contrast(Method, frozen=True, extra="forbid"):
    """Each sample's features in the teacher, to be told from those of other samples, and the other way round.

    Keeps what both networks last gave for every training sample, so it needs 2·M·`width` numbers for M samples, and a
    step takes B·M·`width` operations for a batch of B. Linear layers, dropped afterwards, make features of one width.
    """

    kind = "relation"
    needs = ("features", "labels")
    source = "CRD, Tian et al. 2020, arXiv 1910.10699"

    negatives: Annotated[int, Field(ge=1)] = 16384
    """How many other samples each is told from, drawn anew in every step, some more than once."""
    negatives_from: Literal["other classes", "other samples"] = "other classes"
    """Whether samples of its own class are left out, or no sample but itself."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """How much of a sample's kept features remains when it is seen again."""
    width: Annotated[int, Field(ge=1)] = 128
    """Of the features that are compared."""
    weight: Annotated[float, Field(gt=0)] = 0.8

    def term(self, pair: Pair) -> Term:
        """For networks with a linear head, of any width, and data of two classes or more."""
        target = pair.context.data.train.target
        groups = target if self.negatives_from == "other classes" else torch.arange(len(target))
        if bool((groups == groups[0]).all()):
            raise pair.cannot(f"no training sample has {self.negatives_from} to be told from")
        return _ContrastTerm(self, pair.features(), groups)


class _ContrastTerm(Term):
    """Banks and normalising constants are buffers: a resumed training goes on with the same ones."""

    student_bank: Tensor
    """(M, width)."""
    teacher_bank: Tensor
    log_sums: Tensor
    """log Z of the student's bank and of the teacher's, fixed by the first batch."""
    begun: Tensor

    def __init__(self, method: Contrast, match: Match, groups: Tensor) -> None:
        super().__init__([match])
        self._method = method
        self.student_embedding = nn.Linear(match.student_shape[1], method.width)
        self.teacher_embedding = nn.Linear(match.teacher_shape[1], method.width)
        self.others = Others(groups)
        for name in ("student_bank", "teacher_bank"):
            # Lengths of about one, as those of the features that come.
            bound = math.sqrt(3 / method.width)
            self.register_buffer(name, torch.empty(len(groups), method.width).uniform_(-bound, bound))
        self.register_buffer("log_sums", torch.zeros(2))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def forward(self, seen: Observation) -> Tensor:
        """(B,)."""
        ((mine, theirs),) = self.maps(seen)
        index = moved(seen.batch.index, mine.device)
        mine = functional.normalize(self.student_embedding(mine), dim=1)
        theirs = functional.normalize(self.teacher_embedding(theirs), dim=1)
        compared = torch.cat([index[:, None], self.others.draw(index, self._method.negatives)], 1)
        scores = [
            (features @ bank.T).gather(1, compared) / self._method.temperature
            for features, bank in ((theirs, self.student_bank), (mine, self.teacher_bank))
        ]
        self._begin(scores)
        count = len(self.student_bank)
        losses = [noise_contrast(each, log_sum, count) for each, log_sum in zip(scores, self.log_sums, strict=True)]
        self.student_bank = moved_towards(self.student_bank, index, mine, self._method.momentum)
        self.teacher_bank = moved_towards(self.teacher_bank, index, theirs, self._method.momentum)
        return losses[0] + losses[1]

    def _begin(self, scores: list[Tensor]) -> None:
        first = torch.stack([log_sum_over_bank(each.detach(), len(self.student_bank)) for each in scores])
        self.log_sums = torch.where(self.begun, self.log_sums, first)
        self.begun = torch.ones_like(self.begun)


class Others(nn.Module):
    """Draws samples of other groups than a sample's own, each as probably as the next."""

    order: Tensor
    """The samples, group by group."""
    first: Tensor
    """By sample, where its group begins in that order."""
    size: Tensor
    """By sample, how many its group has."""

    def __init__(self, groups: Tensor) -> None:
        super().__init__()
        sizes = torch.bincount(groups)
        # They follow from the data, and so need not be kept in checkpoints.
        self.register_buffer("order", torch.argsort(groups, stable=True), persistent=False)
        self.register_buffer("first", (torch.cumsum(sizes, 0) - sizes)[groups], persistent=False)
        self.register_buffer("size", sizes[groups], persistent=False)

    def draw(self, index: Tensor, count: int) -> Tensor:
        """(B, count) samples for those at `index` (B,), from torch's global generator."""
        first, size = self.first[index, None], self.size[index, None]
        # So large a range that its remainder is as good as evenly spread over any number of samples.
        draws = torch.randint(2**62, (len(index), count), device=index.device) % (len(self.order) - size)
        return self.order[torch.where(draws < first, draws, draws + size)]


def noise_contrast(scores: Tensor, log_sum: Tensor, count: int) -> Tensor:
    """-log h(positive) - Σ log(1 - h(negative)) with h = P / (P + N/M), (B,).

    Tian et al. 2020, with the noise-contrastive estimate of Wu et al. 2018 (arXiv 1805.01978): P = exp(score)/Z for
    M = `count` samples and N negatives. Scores (B, 1 + N) are cosines over the temperature, the positive's first.
    """
    noise = math.log((scores.shape[1] - 1) / count)
    surplus = scores - log_sum - noise
    return -functional.logsigmoid(surplus[:, 0]) - functional.logsigmoid(-surplus[:, 1:]).sum(1)


def log_sum_over_bank(scores: Tensor, count: int) -> Tensor:
    """log Z, the sum of exp(score) over all `count` samples of a bank, as the mean of scores (B, 1 + N) lets expect."""
    return scores.flatten().logsumexp(0) - math.log(scores.numel()) + math.log(count)


@torch.no_grad()
def moved_towards(bank: Tensor, index: Tensor, features: Tensor, momentum: float) -> Tensor:
    """A copy of the bank (M, D) whose rows at `index` are nearer to features (B, D), and of length 1.

    A copy, since the backward pass still needs the bank that the features were compared with.
    """
    rows = momentum * bank[index] + (1 - momentum) * features
    return bank.index_copy(0, index, functional.normalize(rows, dim=1))
