"""Training a compressed artifact back up against the run's teacher."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from ..pipeline.artifact import Artifact
from ..pipeline.errors import StageError
from .knowledge.objective import DistillationTraining, learn, name_of
from .stage import Context, Stage

LOGITS_ALONE = frozenset({"logits", "labels", "two views"})
"""What can be learnt from while a model is a captured graph without modules."""


class Recovery(DistillationTraining, frozen=True, extra="forbid"):
    """A short distillation after a compression; `epochs: 0` leaves the compressed weights as they are."""

    epochs: Annotated[int, Field(ge=0)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 0.01


def recover(artifact: Artifact, recovery: Recovery, context: Context, *, samples: int = 256) -> Artifact:
    """A copy of `artifact`, trained against the run's teacher; where it is quantized, under its quantizers.

    A quantized artifact's grids are calibrated anew on `samples` training samples, since the structure may have
    changed under them; the training then follows them.
    """
    if artifact.quantization is not None:
        return _recover_quantized(artifact, recovery, context, samples)
    model = deepcopy(artifact.model)
    learn(model, recovery, artifact.blueprint, context, name="recover")
    return replace(artifact, model=model)


def recovery_problem(recovery: Recovery, earlier: Sequence[Stage], *, quantized: bool) -> str | None:
    """Why a recovery after the stages `earlier` cannot learn as it is told, in a sentence; None where it can."""
    return (_taps_problem(recovery) if quantized else None) or recovery.teachers_problem(earlier)


def _taps_problem(recovery: Recovery) -> str | None:
    for method in recovery.knowledge:
        if not LOGITS_ALONE.issuperset(method.needs):
            return (
                f"`{name_of(method)}` taps a model's modules, which it no longer has once it is quantized; use methods "
                "on logits alone, such as `kd`, in the `knowledge` of stages at and after `quantize`"
            )
    return None


def _recover_quantized(artifact: Artifact, recovery: Recovery, context: Context, samples: int) -> Artifact:
    from ..pipeline.fake_quantization import fake_quantized, quantization_of
    from .quantization.calibration import calibrated

    assert artifact.quantization is not None
    problem = _taps_problem(recovery)
    if problem is not None:
        raise StageError(f"{context.step}: {problem}")
    quantization = calibrated(artifact.model, artifact.quantization.weight_bits, context, samples)
    if recovery.epochs == 0:
        return replace(artifact, quantization=quantization)
    student = fake_quantized(artifact.model, quantization, context.data.example())
    learn(student, recovery, artifact.blueprint, context, name="recover")
    model = deepcopy(artifact.model)
    # The capture drops buffers that eval mode does not read; the model keeps its own.
    model.load_state_dict(model.state_dict() | student.float_state())
    return replace(artifact, model=model, quantization=quantization_of(student, quantization))
