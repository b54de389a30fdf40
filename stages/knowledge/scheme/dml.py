"""Deep mutual learning."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn

from ....pipeline.models import ModelReference, resolve
from ....pipeline.training import move
from ..method import Method, Observation, Term
from ..pair import Pair
from ..response.kd import kl_divergence

TEACHER = "teacher"
"""What stands among the peers for a copy of the run's teacher."""


def _form(value: Any) -> str:
    return TEACHER if value == TEACHER else "model"


def _how_told(value: Any) -> str | None:
    if isinstance(value, int):
        return "a number"
    return "a list" if isinstance(value, list | tuple) else None


Peer = Annotated[
    Annotated[Literal["teacher"], Tag(TEACHER)] | Annotated[ModelReference, Tag("model")], Discriminator(_form)
]
Peers = Annotated[
    Annotated[int, Field(ge=1), Tag("a number")] | Annotated[tuple[Peer, ...], Field(min_length=1), Tag("a list")],
    Discriminator(_how_told),
]


class MutualLearning(Method, frozen=True, extra="forbid"):
    """The outputs of peers that are trained at the same time and dropped afterwards."""

    kind = "scheme"
    needs = ("logits", "labels")
    source = "Zhang et al. 2018, arXiv 1706.00384"
    learns_from_teacher = False
    runs_networks = True

    peers: Peers = 1
    """How many networks of the student's structure with other first weights; or a list of networks, `teacher` for one
    that begins as a copy of the run's teacher."""
    teaches: Literal["both", "student"] = "both"
    """`student`: the peers learn from the labels and each other, and the student does not teach them."""

    def term(self, pair: Pair) -> Term:
        """Peers, each trained on the labels with weight 1 and on the others, and the student's loss against them."""
        return _Peers(self._networks(pair), pair, both_ways=self.teaches == "both")

    def _networks(self, pair: Pair) -> Iterator[nn.Module]:
        if isinstance(self.peers, int):
            if pair.blueprint.edits:
                raise pair.cannot(
                    f"`peers: {self.peers}` would build networks of the student's structure, but the student was cut "
                    "from a trained network and has no first weights of its own; name its peers, such as "
                    "`peers: [teacher]`"
                )
            yield from (pair.blueprint.build() for _ in range(self.peers))
            return
        for peer in self.peers:
            if isinstance(peer, str):
                yield deepcopy(pair.context.require_teacher().artifact.model)
            else:
                yield pair.blueprint.unedited(resolve(peer, pair.context.directory))


class _Peers(Term):
    def __init__(self, networks: Iterator[nn.Module], pair: Pair, *, both_ways: bool) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        for network in self.networks:
            move(network.requires_grad_(requires_grad=True), pair.context.device, torch.channels_last)
        self._context = pair.context
        self._both_ways = both_ways

    def forward(self, seen: Observation) -> tuple[Tensor, Tensor]:
        """The student's loss (B,), and the sum of the peers' own."""
        peers = [self._context.outputs(network, seen.batch.inputs).logits for network in self.networks]
        student = seen.student.logits
        own: list[Tensor] = []
        for number, peer in enumerate(peers):
            others = [*peers[:number], *peers[number + 1 :], *([student] if self._both_ways else [])]
            loss = self._context.task.loss(peer, seen.batch.target)
            own.append(loss + mutual(peer, others).mean() if others else loss)
        return mutual(student, peers), torch.stack(own).sum()


def mutual(learner: Tensor, others: list[Tensor]) -> Tensor:
    """The mean over the others of KL(σ(z_other) ‖ σ(z_learner)): logits (B, C) in, (B,) out.

    Deep mutual learning, Zhang et al. 2018, arXiv 1706.00384, without a temperature.
    The others are not moved by it.
    """
    return torch.stack([kl_divergence(learner, other.detach()) for other in others]).mean(0)
