"""Progressive self-knowledge distillation."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ....pipeline.data import moved
from ....pipeline.training import Moment
from ..method import Method, Observation, Term
from ..pair import Pair


class ProgressiveSelfDistillation(Method, frozen=True, extra="forbid"):
    """The student's own outputs of an epoch ago, which take over more and more of the labels' weight."""

    kind = "scheme"
    needs = ("logits", "labels")
    source = "PS-KD, Kim et al. 2021, arXiv 2006.12000"
    learns_from_teacher = False

    share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """How much of the target is the own prediction in the last epoch; it rises linearly from epoch to epoch."""

    @property
    def taken_from_task(self) -> float:
        """The target is a mixture: what the own predictions gain, the labels lose."""
        return self.weight * self.share

    def term(self, pair: Pair) -> Term:
        """Remembers a probability for each training sample and class: 20 MB for CIFAR-100, 5 GB for ImageNet."""
        return _OwnPast(pair, self.share)


class _OwnPast(Term):
    past: Tensor
    """The latest prediction for each training sample (N, C); a label's until there is one."""

    def __init__(self, pair: Pair, share: float) -> None:
        super().__init__()
        data = pair.context.data
        self.register_buffer("past", functional.one_hot(data.train.target, pair.student.num_classes).float())
        self._share = share
        self._steps_per_epoch = pair.context.steps_per_epoch

    def forward(self, seen: Observation) -> Tensor:
        """What the labels' cross-entropy lacks to be that of the mixed target, (B,)."""
        logits, index = seen.student.logits, moved(seen.batch.index, self.past.device)
        share = self._share_at(seen.moment)
        loss = progressive(logits, self.past[index].to(logits.dtype), seen.batch.target, share)
        # An epoch takes each sample once at most, so what is overwritten here is read no more in this one.
        self.past[index] = logits.detach().softmax(1).to(self.past.dtype)
        return loss

    def _share_at(self, moment: Moment) -> float:
        num_epochs = max(moment.num_steps // self._steps_per_epoch, 1)
        return self._share * min((moment.epoch + 1) / num_epochs, 1.0)


def progressive(logits: Tensor, past: Tensor, target: Tensor, share: float) -> Tensor:
    """α·(H(q, p) - H(y, p)) for the earlier prediction q: logits and q (B, C), labels y (B,) in, (B,) out.

    Added to the cross-entropy H(y, p) with weight 1, this is H((1 - α)·y + α·q, p), the loss of PS-KD, Kim et al.
    2021, arXiv 2006.12000. It can be negative; the sum cannot.
    """
    log_predicted = logits.log_softmax(1)
    soft = -(past * log_predicted).sum(1)
    return share * (soft - functional.nll_loss(log_predicted, target, reduction="none"))
