"""Training a compressed artifact back up against the run's teacher."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..pipeline.artifact import Artifact
from ..pipeline.errors import StageError
from ..pipeline.quantization import Quantization
from ..pipeline.training import Objective
from .knowledge.objective import DistillationTraining, learn, name_of
from .stage import Context


class Recovery(DistillationTraining, frozen=True, extra="forbid"):
    """A short distillation after a compression; `epochs: 0` leaves the compressed weights as they are."""

    epochs: Annotated[int, Field(ge=0)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 0.01

    @model_validator(mode="after")
    def _keeps_the_structure(self) -> Self:
        for method in self.knowledge:
            if method.stays_at_inference:
                raise ValueError(f"`{name_of(method)}` changes the student's structure: it is for `distill` alone")
        return self


def recover(
    artifact: Artifact,
    recovery: Recovery,
    context: Context,
    *,
    name: str = "recover",
    grids: Literal["anew", "as they are"] = "anew",
    beside: Callable[[Objective], Objective] | None = None,
) -> Artifact:
    """A copy of `artifact`, trained against the run's teacher; where it is quantized, under its quantizers.

    A quantized artifact's grids are calibrated anew, since the structure may have changed under them, unless `grids`
    says that they fit; the training then follows them, or holds them, as its calibration says. `name` tells the
    trainings of one step apart; `beside` gives a float model's objective terms of its own.
    """
    if artifact.quantization is not None:
        assert beside is None  # no stage asks for it under quantizers
        started = artifact if grids == "as they are" else calibrated_anew(artifact, context)
        return _recover_quantized(started, recovery, context, name)
    model = deepcopy(artifact.model)
    learn(model, recovery, artifact.blueprint, context, name=name, beside=beside)
    return replace(artifact, model=model)


def calibrated_anew(artifact: Artifact, context: Context) -> Artifact:
    """The artifact as an engine is built from it before it is trained on: a quantized one with fresh grids."""
    if artifact.quantization is None:
        return artifact
    from .quantization.calibration import calibrated

    return replace(artifact, quantization=calibrated(artifact.model, artifact.quantization, context))


def _recover_quantized(artifact: Artifact, recovery: Recovery, context: Context, name: str) -> Artifact:
    from ..pipeline.fake_quantization import fake_quantized, quantization_of
    from ..pipeline.learned_steps import learn_steps

    quantization = artifact.quantization
    assert quantization is not None
    if recovery.norm_bias_rate != 1:
        raise StageError(
            "`norm_bias_rate` is for float models: under quantizers batch norms are parts of the convolutions before "
            "them; leave it out of `recover`"
        )
    if recovery.epochs == 0:
        return artifact
    student = fake_quantized(artifact.model, quantization, context.data.example())
    if quantization.learn_steps:
        learn_steps(student, context.data.example())
    learn(artifact.model, recovery, artifact.blueprint, context, name=name, through=student)
    model = deepcopy(artifact.model)
    # The capture drops buffers that eval mode does not read; the model keeps its own.
    model.load_state_dict(model.state_dict() | student.trained_state())
    trained = quantization_of(student, quantization)
    if quantization.learn_steps:
        _record_steps(quantization, trained, context)
    return replace(artifact, model=model, quantization=trained)


def _record_steps(calibrated: Quantization, learned: Quantization, context: Context) -> None:
    ratios = sorted(grid.scale / calibrated.activations[name].scale for name, grid in learned.activations.items())
    fact = {"smallest": ratios[0], "median": ratios[len(ratios) // 2], "largest": ratios[-1]}
    context.journal.fact("learned scales of activations, as shares of the calibrated ones", fact)
