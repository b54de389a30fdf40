"""Learning without memorizing: Grad-CAM maps."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ....pipeline.taps import Outputs, outputs_of
from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import common_size


class GradCams(LayerMethod, frozen=True, extra="forbid"):
    """The regions that speak for a class: normalised Grad-CAM maps, at distance L1.

    Runs the teacher again, with gradients, and differentiates the student twice behind the taps. `auto` takes the
    deepest maps alone, as Grad-CAM does. Batch norms behind a tap let samples see each other, so that gradients by the
    student's earlier maps hold a little of its neighbours.
    """

    needs = ("maps", "gradients")
    source = "Dhar et al. 2019, arXiv 1811.08051; Grad-CAM: Selvaraju et al. 2017, arXiv 1610.02391"
    runs_networks = True

    of: Literal["label", "teacher"] = "teacher"
    """The class whose maps are compared: the teacher's top class as in the paper, or the sample's own."""
    weight: Annotated[float, Field(gt=0)] = 0.1

    def term(self, pair: Pair) -> Term:
        """Maps alone, of any channels; they are compared at the smaller of both sizes."""
        matches = pair.matches(self.layers, axes=(4,))
        return _GradCams(matches[-1:] if self.layers == "auto" else matches, self, pair)


class _GradCams(Term):
    def __init__(self, matches: list[Match], method: GradCams, pair: Pair) -> None:
        super().__init__(matches)
        self._of = method.of
        self._autocast = pair.context.autocast

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, (B,)."""
        teacher = self._teacher(seen)
        target = seen.batch.target if self._of == "label" else teacher.logits.argmax(1)
        losses: list[Tensor] = []
        for match in self.matches:
            student_map = class_map(seen.student, match.student, target)
            teacher_map = class_map(teacher, match.teacher, target).detach()
            losses.append(attention_distance(student_map, teacher_map))
        return mean_over_layers(losses)

    def _teacher(self, seen: Observation) -> Outputs:
        assert seen.teacher_model is not None
        # Its parameters are frozen; gradients by its maps flow only where its inputs ask for some.
        inputs = {
            name: tensor.detach().requires_grad_(tensor.is_floating_point())
            for name, tensor in seen.batch.inputs.items()
        }
        with torch.enable_grad(), self._autocast():
            return outputs_of(seen.teacher_model, inputs, [match.teacher for match in self.matches])


def class_map(outputs: Outputs, tap: str, target: Tensor) -> Tensor:
    """Grad-CAM, (B, 1, H, W): ReLU(Σ_k α_k A_k), α_k the mean over height and width of ∂z_target / ∂A_k.

    Selvaraju et al. 2017, arXiv 1610.02391. A are the maps (B, C, H, W) at the tap, z the logits, target (B,).
    """
    score = outputs.logits.gather(1, target[:, None]).sum()
    alpha = outputs.gradient(score, tap).mean((2, 3), keepdim=True)
    return (alpha * outputs.maps[tap]).sum(1, keepdim=True).relu()


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_j |q_s / ‖q_s‖₂ - q_t / ‖q_t‖₂|_j of maps (B, 1, H, W) read as vectors q: (B,).

    Dhar et al. 2019, arXiv 1811.08051, equation 4. Maps of different sizes are averaged to the smaller one.
    """
    mine, theirs = (functional.normalize(maps.flatten(1)) for maps in common_size(student, teacher))
    return (mine - theirs).abs().sum(1)
